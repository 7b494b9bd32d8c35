"""Verbs of the generator: generate, likelihood, pretrain, finetune, import-checkpoint, average-checkpoints."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from flows.cli.options import Input, Json, Output, Resume
from flows.console import emit, note, progress
from flows.progress import of_stage
from loop.errors import InputError

if TYPE_CHECKING:
    from generator.constraints.conditions import Sampling

PLURAL = ("--spacegroup", "--elements", "--exclude", "--require", "--sites")

Checkpoint = Annotated[
    Path | None,
    typer.Option(help="Checkpoint folder, output of finetune, or results of a campaign. Default: the shipped one."),
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]


class Dtype(StrEnum):
    """Number formats."""

    float32 = "float32"
    float64 = "float64"
    bfloat16 = "bfloat16"


class Method(StrEnum):
    """What draws crystals."""

    learned = "learned"
    substitution = "substitution"


class PluralCommand(TyperCommand):
    """A command whose list options take several values: ``--elements Li O`` is ``--elements Li --elements O``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each of its values; commas separate values, too."""
        spread: list[str] = []
        option = ""
        for arg in args:
            name, equals, value = arg.partition("=")
            if arg.startswith("-") and not arg.lstrip("-").isdigit():
                option = name if name in PLURAL else ""
                if option and equals:
                    spread += [part for item in value.split(",") for part in (option, item)]
                elif not option:
                    spread.append(arg)
            elif option:
                spread += [part for item in arg.split(",") if item for part in (option, item)]
            else:
                spread.append(arg)
        return super().parse_args(ctx, spread)


def generate(
    n: Annotated[int, typer.Option("--n", "-n", min=1, help="Number of crystals.")],
    output: Output,
    seed: Annotated[int, typer.Option(help="The same seed gives the same crystals.")] = 0,
    checkpoint: Checkpoint = None,
    spacegroup: Annotated[
        list[str] | None,
        typer.Option(help="Allowed space groups, by number or symbol (225, Fm-3m). Default: all, by the learned p(g)."),
    ] = None,
    elements: Annotated[list[str] | None, typer.Option(help="Allowed elements.")] = None,
    exclude: Annotated[list[str] | None, typer.Option(help="Elements that are not allowed.")] = None,
    require: Annotated[list[str] | None, typer.Option(help="Elements that must occur.")] = None,
    formula: Annotated[str | None, typer.Option(help="Reduced formula that all must have.")] = None,
    chemical_system: Annotated[
        str | None, typer.Option(help="Elements that all occur, and no others, e.g. Sr-Ti-O.")
    ] = None,
    max_elements: Annotated[int | None, typer.Option(min=1, help="Most different elements.")] = None,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Most atoms in the primitive cell.")] = None,
    n_atoms: Annotated[int | None, typer.Option(min=1, help="Atoms in the primitive cell.")] = None,
    sites: Annotated[list[str] | None, typer.Option(help="Wyckoff positions that must occur: c, or c:Ti.")] = None,
    temperature: Annotated[float, typer.Option(help="Above 1: more diverse; below 1: more probable crystals.")] = 1.0,
    top_p: Annotated[float, typer.Option(help="Share of probability that choices are drawn from, 0 to 1.")] = 1.0,
    min_distance: Annotated[
        float, typer.Option(min=0, help="Crystals with atoms closer than this (A) are drawn again; 0: all are kept.")
    ] = 0.5,
    method: Annotated[
        Method, typer.Option(help="learned: the generator; substitution: other ions in known crystals, the baseline.")
    ] = Method.learned,
    device: Device = "cpu",
    dtype: Dtype = Dtype.float32,
    json: Json = False,
) -> None:
    """Draw crystals from the generator. Conditions are exact: every crystal keeps them.

    Tables get logp_drawn, the log-probability of the draw under what was asked (nats; `likelihood` gives logp, that of
    the crystal), the atoms of the primitive cell as n_atoms, and the tokens as drawn. CIFs in a folder state their
    symmetry.
    """
    from flows import models
    from flows.tables import generation
    from flows.tables.outputs import check_crystals
    from generator.constraints.conditions import Sampling
    from generator.constraints.guard import Guard

    check_crystals(output)
    sampling = Sampling(
        temperature=temperature,
        top_p=top_p,
        elements=tuple(elements or ()),
        exclude=tuple(exclude or ()),
        require=tuple(require or ()),
        formula=formula,
        chemical_system=chemical_system or (),
        max_elements=max_elements,
        max_atoms=max_atoms,
        n_atoms=n_atoms,
        sites=tuple(sites or ()),
        space_groups=tuple(spacegroup or ()),
    )
    guard = Guard(min_distance=min_distance) if min_distance else None
    if method is Method.substitution:
        _substitute(n, seed, sampling, min_distance, output, json)
        return
    with progress() as report:
        model = models.load_model(checkpoint, device, dtype.value)
        made = generation.generate(model, n, seed, sampling, guard, report)
    found = made.candidates
    generation.write_generated(output, made)
    if len(found) < n:
        note(
            f"warning: {len(found)} of {n} crystals written: {made.drawn} were drawn, the others have atoms closer "
            f"than {min_distance} A or no volume. Ask for more, or loosen the conditions."
        )
    accepted = {"drawn": made.drawn, "acceptance": made.acceptance, "acceptance_error": made.acceptance_error}
    summary = {
        "written": len(found),
        "asked": n,
        **accepted,
        "seed": seed,
        "checkpoint": model.checksum,
        "output": str(output),
    }
    emit(summary, json)


def _substitute(n: int, seed: int, sampling: Sampling, min_distance: float, output: Path, json: bool) -> None:
    """`generate --method substitution`."""
    from flows import models
    from flows.tables import generation
    from generator.substitution import SubstitutionConfig
    from loop.io.crystals import write_crystals

    generator = models.substitution(sampling, SubstitutionConfig(min_distance=min_distance))
    found = generator.propose(n, seed=seed, round=0)
    columns = generation.substituted_columns(found)
    write_crystals(output, columns["id"], [candidate.structure for candidate in found], columns)
    if len(found) < n:
        note(f"warning: {len(found)} of {n} crystals written after {generator.tried} attempts: loosen the conditions.")
    summary = {"written": len(found), "asked": n, "attempts": generator.tried, "seed": seed, "method": "substitution"}
    emit({**summary, "output": str(output)}, json)


def likelihood(
    input: Input,
    output: Output,
    checkpoint: Checkpoint = None,
    compat: Annotated[bool, typer.Option("--compat", help="The published definition, for imported models.")] = False,
    as_written: Annotated[
        bool, typer.Option("--as-written/--canonical", help="Score the tokens that came with a crystal, where any did.")
    ] = True,
    device: Device = "cpu",
    dtype: Dtype = Dtype.float32,
    json: Json = False,
) -> None:
    """Log-probabilities of crystals in nats: logp_w, logp_a, logp_xyz, logp_l and their sum, given the space group."""
    from flows import models
    from flows.tables import generation, screening
    from flows.tables.columns import read_input, write_output
    from flows.tables.outputs import check_crystals

    check_crystals(output, input)
    with progress() as report:
        model = models.load_model(checkpoint, device, dtype.value)
        table = read_input(input)
        frame = generation.likelihoods(model, table, compat, report, as_written=as_written)
    write_output(output, table, frame)
    good = frame[frame["status"] == "ok"]
    means = {f"mean_{name}": float(good[name].mean()) for name in good.columns if name.startswith("logp")}
    statuses = screening.statuses_of(frame)
    emit({"rows": len(frame), "statuses": statuses, **means, "output": str(output)}, json)


def pretrain(
    train: Annotated[Path, typer.Option(help="Training crystals: CSV or CSV.gz with a cif column.")],
    val: Annotated[Path, typer.Option(help="Validation crystals.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint folder to write.")],
    config: Annotated[Path | None, typer.Option(help="YAML with settings of the training.")] = None,
    init: Annotated[Path | None, typer.Option(help="Checkpoint to start from, for another set; shipped: ours.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", "-s", help="Change a setting, e.g. epochs=10.")] = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Train a generator by maximum likelihood."""
    from flows import configfile
    from flows.config import forbid_extra
    from flows.tables import generation
    from flows.tables.outputs import check_folder
    from generator.checkpoint import default_checkpoint
    from generator.pretrain import PretrainConfig

    check_folder(output)
    chosen = configfile.parse_settings(settings or [])
    if init is not None:
        chosen["init"] = str(default_checkpoint() if str(init) == "shipped" and not init.exists() else init)
    checked = configfile.load(forbid_extra(PretrainConfig), config, chosen)
    with progress() as report:
        summary = generation.pretrain(train, val, output, checked, resume=resume, progress=report)
    emit({**summary, "output": str(output)}, json)


def finetune(
    config: Annotated[str, typer.Argument(help="YAML file of a campaign, or the name of a preset.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tuned checkpoint and its curve.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", "-s", help="Change a setting, e.g. generator.finetune.iterations=50.")
    ] = None,
    resume: Resume = False,
    json: Json = False,
) -> None:
    """Tune the generator towards a campaign's reward, without a campaign: no oracle is called.

    Of the reward, the terms of a surrogate are left out: there are no labels to fit one to.
    """
    from flows import configfile
    from flows.config import read_config
    from flows.tables import generation
    from flows.tables.outputs import check_folder

    check_folder(output)
    checked = read_config(config, configfile.parse_settings(settings or []))
    with progress() as report:
        summary = generation.finetune(checked, output, resume=resume, progress=report)
    emit({**summary, "output": str(output)}, json)


def evaluate_generator(
    input: Annotated[Path, typer.Option("--input", "-i", help="Generated crystals.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for record, table and figure.")],
    reference: Annotated[
        Path | None, typer.Option(help="Known crystals, for novelty and distributions: CSV with a cif column, ...")
    ] = None,
    held_out: Annotated[Path | None, typer.Option(help="Crystals whose likelihood is measured, by term.")] = None,
    checkpoint: Checkpoint = None,
    energies: Annotated[bool, typer.Option(help="Energies above the hull by the default potential.")] = True,
    relax: Annotated[int, typer.Option(min=0, help="Crystals to relax, too; 0: none.")] = 100,
    second_opinion: Annotated[
        str | None, typer.Option(help="Another potential: who is stable and S.U.N. by both, relaxed.")
    ] = None,
    second_below: Annotated[
        float, typer.Option(help="Distance from the first potential's hull up to which the second is asked, eV/atom.")
    ] = 0.1,
    shipped: Annotated[bool, typer.Option(help="Count what is among the shipped fingerprints as known.")] = True,
    seed: Annotated[int, typer.Option(help="Which crystals are relaxed.")] = 0,
    json: Json = False,
) -> None:
    """Validity, uniqueness, novelty, stability, likelihood and distributions of generated crystals."""
    from flows.build import Builder
    from flows.cli.oracles import tell_resumed
    from flows.config import CampaignConfig
    from flows.evaluation.report import EvaluationConfig, Evaluators, evaluate, told
    from flows.journal import Journal
    from flows.models import load_model
    from flows.tables.columns import read_input
    from flows.tables.outputs import check_folder
    from loop.io.crystals import read_crystals
    from loop.stability import LEVELS
    from oracles.opinion import OpinionConfig

    check_folder(output)
    if second_opinion is not None and not (energies and relax):
        raise InputError("--second-opinion judges relaxed crystals: leave --no-energies and --relax 0 out")
    config = EvaluationConfig(relax=relax, shipped=shipped, seed=seed, second_below=second_below)
    with progress() as report:
        samples = read_input(input, report)
        known = None if reference is None else read_crystals(reference)
        model = None if held_out is None else load_model(checkpoint, "cpu", "float32")
        builder = Builder(CampaignConfig())
        evaluators = Evaluators(
            builder if energies else None,
            model,
            None if held_out is None else read_crystals(held_out),
        )
        if second_opinion is None:
            record = evaluate(samples, known, output, evaluators, config, report)
        else:
            section = OpinionConfig(second_opinion)
            opinion = builder.opinion(section, LEVELS, of_stage(report, "competing phases"))
            by = {"second_opinion": opinion.name, "settings": opinion.settings_hash}
            with Journal(output / "second_opinion", by) as journal:
                tell_resumed(journal, report)
                judged = replace(evaluators, opinion=opinion, opinions=journal)
                record = evaluate(samples, known, output, judged, config, report)
    results = record["results"]
    emit(results if json else {**told(results), "record": f"{output}/record.json"}, json)


def import_checkpoint(
    pkl: Annotated[Path, typer.Argument(help="Checkpoint of CrystalFormer v0.4, e.g. epoch_005500.pkl.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint folder to write.")],
    json: Json = False,
) -> None:
    """Read a published CrystalFormer checkpoint; its pickle is read by a reader that can build nothing but arrays."""
    from generator.importer import convert_checkpoint

    _check_new(output)
    checksum = convert_checkpoint(pkl, output)
    emit({"checkpoint": str(output), "sha256": checksum}, json)


def average_checkpoints(
    checkpoints: Annotated[list[Path], typer.Argument(help="Checkpoint folders of one architecture, two or more.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Checkpoint folder to write.")],
    share: Annotated[
        list[float] | None, typer.Option(help="Share of each in the mean, once per checkpoint. Default: equal.")
    ] = None,
    json: Json = False,
) -> None:
    """Average the weights of trainings that began at one checkpoint: often better than each of them."""
    from generator.average import average_checkpoints as average

    _check_new(output)
    checksum = average(checkpoints, share or [], output)
    emit({"checkpoint": str(output), "sha256": checksum}, json)


def _check_new(output: Path) -> None:
    """Refuse a folder that holds something; one that is not there is made when there is something to write."""
    from flows.tables.outputs import check_folder

    if output.exists():
        check_folder(output)
        if any(output.iterdir()):
            raise InputError(f"{output} is not empty: choose a new folder for the checkpoint")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command(rich_help_panel="Generator", cls=PluralCommand)(generate)
    for verb in (likelihood, pretrain, finetune):
        app.command(rich_help_panel="Generator")(verb)
    app.command("evaluate-generator", rich_help_panel="Generator")(evaluate_generator)
    app.command("import-checkpoint", rich_help_panel="Generator")(import_checkpoint)
    app.command("average-checkpoints", rich_help_panel="Generator")(average_checkpoints)
