"""Verbs of the oracles and surrogates: relax, hull, predict."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli import reference_crystals, references
from flows.cli.options import Device, Environment, Input, Json, Output, Potential, Trust
from flows.cli.potential import load
from flows.console import emit, note, progress
from flows.progress import of_stage
from loop.errors import EnergyTypeError, InputError
from loop.stability import IMPLAUSIBLE, METASTABLE

if TYPE_CHECKING:
    import pandas as pd

if TYPE_CHECKING:
    from flows.console import Reporter
    from flows.journal import Journal
    from oracles.potentials.base import Potential as LoadedPotential
    from oracles.references.hull_on_demand import DemandHull
    from oracles.references.table import References

Fmax = Annotated[float, typer.Option(help="Largest force at convergence, eV/A.")]
Smax = Annotated[float, typer.Option(help="Largest stress at convergence, GPa.")]
MaxSteps = Annotated[int, typer.Option(min=0, help="Most steps of a relaxation.")]


def relax(
    input: Input,
    output: Output,
    potential: Potential = "chgnet",
    fmax: Fmax = 0.05,
    smax: Smax = 0.5,
    max_steps: MaxSteps = 200,
    time_limit: Annotated[float, typer.Option(help="Seconds of computing for one crystal.")] = 60.0,
    fixed_cell: Annotated[bool, typer.Option("--fixed-cell", help="Relax positions only.")] = False,
    device: Device = None,
    trust: Trust = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Relax crystals with a potential: status, energy (eV/atom), steps, forces, stress, seconds for each.

    Finished crystals are kept beside the output (OUTPUT.partial.jsonl): repeat the command, and a killed one resumes.
    """
    from flows.journal import Journal
    from flows.tables import screening
    from flows.tables.columns import read_input, write_output
    from flows.tables.outputs import check_crystals
    from oracles.relax import RelaxConfig

    check_crystals(output, input)
    config = RelaxConfig(fmax, smax, max_steps, time_limit, relax_cell=not fixed_cell)
    with progress() as report:
        table = read_input(input)
        loaded = load(potential, device=device, trust=trust, environment=environment)
        with Journal(output, screening.relax_settings(loaded, config)) as journal:
            tell_resumed(journal, report)
            frame, structures = screening.relax_table(table, loaded, config, report, journal)
            write_output(output, table, frame, structures)
    statuses = screening.statuses_of(frame)
    emit({"rows": len(frame), "statuses": statuses, "potential": str(loaded.energy_type), "output": str(output)}, json)
    fail_if_none_ok(frame)


def fail_if_none_ok(frame: pd.DataFrame) -> None:
    """Bad rows among good ones are counted; nothing but bad rows is an error."""
    if len(frame) and frame["status"].str.startswith("failed").all():
        reasons = frame["message"].dropna() if "message" in frame else frame["status"]
        raise InputError(f"none of {len(frame)} crystals could be evaluated; the first: {reasons.iloc[0]}")


def tell_resumed(journal: Journal, report: Reporter) -> None:
    """Say that an earlier call's results are used."""
    if journal.found:
        report.log(f"resuming: {journal.found} crystals are done already in {journal.path.name}")


hull_app = typer.Typer(invoke_without_command=True, no_args_is_help=True)
references.register(hull_app)


@hull_app.callback()
def hull(
    context: typer.Context,
    input: Annotated[
        Path | None,
        typer.Option("--input", "-i", help="Crystals: CSV with a cif column, or what ASE reads."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="CSV to write, or another format by the ending.")
    ] = None,
    potential: Potential = "chgnet",
    relax_first: Annotated[bool, typer.Option("--relax", help="Relax before: cell and positions.")] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Table of reference phases (of `hull build`), shipped, or demand: relaxed as they are needed. "
            "Default: shipped; demand where none is shipped and crystals are relaxed."
        ),
    ] = None,
    device: Device = None,
    trust: Trust = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Energies above the hull (eV/atom) with their decomposition. `hull build` makes a table of reference phases.

    Finished crystals are kept beside the output (OUTPUT.partial.jsonl): repeat the command, and a killed one resumes.
    """
    if context.invoked_subcommand is not None:
        return
    if input is None or output is None:
        raise typer.BadParameter("give --input and --output")
    from flows.journal import Journal
    from flows.tables import screening
    from flows.tables.columns import read_input, write_output
    from flows.tables.outputs import check_crystals
    from oracles.relax import RelaxConfig

    check_crystals(output, input)
    with progress() as report:
        table = read_input(input)
        config = RelaxConfig() if relax_first else None
        table_of_phases = _table_of_phases(reference, relax_first)
        loaded = load(potential, device=device, trust=trust, environment=environment)
        references = table_of_phases or _judge(loaded, reference, relax_first, report)
        settings = screening.hull_settings(loaded, config)
        with Journal(output, settings) as journal:
            tell_resumed(journal, report)
            frame, structures = screening.hull_table(table, loaded, references, config, report, journal=journal)
            write_output(output, table, frame, structures)
    values = frame["e_above_hull"].dropna() if "e_above_hull" in frame else frame["status"][:0].astype(float)
    summary: dict[str, Any] = {"rows": len(frame), "statuses": screening.statuses_of(frame)}
    summary |= {"median_e_above_hull": float(values.median()), "below_0.1": int((values <= METASTABLE).sum())}
    summary |= {"suspect": int((values < IMPLAUSIBLE).sum())}  # so far below the hull lies an error, hardly a find
    emit({**summary, "reference": references.checksum[:16], "output": str(output)}, json)
    fail_if_none_ok(frame)


def _table_of_phases(reference: str | None, relaxed: bool) -> References | None:
    """The table in a file, read before anything is computed; None where the potential decides which one.

    Raises:
        InputError: the file is none, or phases that are relaxed would meet candidates that are not.
    """
    from oracles.mlip import DEMAND
    from oracles.references.table import load_references

    if reference == DEMAND and not relaxed:
        raise InputError(
            "expected --relax with --reference demand: competing phases are relaxed there, and candidates that are not "
            "would look too unstable"
        )
    return None if reference in (None, "shipped", DEMAND) else load_references(reference)


def _judge(
    potential: LoadedPotential, reference: str | None, relaxed: bool, report: Reporter
) -> References | DemandHull:
    """The shipped table of a potential's energies, or its hull on demand: where relaxed crystals have no such table.

    Raises:
        EnergyTypeError: no such table is shipped.
        InputError: the package holds no reference crystals.
    """
    from oracles.mlip import DEMAND
    from oracles.references.hull_on_demand import demand_hull
    from oracles.references.table import shipped_for
    from oracles.relax import RelaxConfig

    if reference != DEMAND:
        with suppress(EnergyTypeError) if reference is None and relaxed else nullcontext():
            return shipped_for(potential.energy_type)
    return demand_hull(potential, RelaxConfig(), progress=of_stage(report, "competing phases"))


def predict(
    input: Input,
    output: Output,
    campaign: Annotated[
        Path | None, typer.Option(help="Results folder whose surrogates to use. Default: the prior, no labels.")
    ] = None,
    json: Json = False,
) -> None:
    """What a campaign's surrogates predict for crystals: mean and standard deviation of each property."""
    from flows.tables.columns import read_input, write_output
    from flows.tables.outputs import check_crystals
    from flows.tables.prediction import predict_table

    check_crystals(output, input)
    with progress() as report:
        table = read_input(input)
        frame, labels = predict_table(table, campaign, report)
    write_output(output, table, frame)
    if campaign is None:
        note("no --campaign was given: these are predictions of the prior, before any label")
    statuses = dict(frame["status"].value_counts())
    emit({"rows": len(frame), "statuses": {k: int(v) for k, v in statuses.items()}, "labels": labels}, json)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (relax, predict):
        app.command(rich_help_panel="Oracles and surrogates")(verb)
    app.add_typer(hull_app, name="hull", rich_help_panel="Oracles and surrogates")
    reference_crystals.register(app)
