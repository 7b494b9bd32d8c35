"""Verbs of DFT and of people's labels: dft, dft-inputs, import-labels."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import Input, Json
from flows.console import emit, note, progress
from flows.progress import of_stage
from loop.errors import InputError


class Preset(StrEnum):
    """Presets of `oracles.dft.presets`."""

    test = "test"
    fast = "fast"
    converged = "converged"


class What(StrEnum):
    """Properties beside the energy."""

    gap = "gap"
    dielectric = "dielectric"


class Relax(StrEnum):
    """What may move."""

    none = "none"
    positions = "positions"
    cell = "cell"


class Code(StrEnum):
    """Codes whose inputs can be written."""

    vasp = "vasp"
    espresso = "espresso"


def dft(
    input: Input,
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV to write; an existing one is continued.")],
    preset: Annotated[Preset, typer.Option(help="How accurate.")] = Preset.fast,
    property: Annotated[list[What] | None, typer.Option(help="Beside the energy. Repeatable. Default: both.")] = None,
    relax: Annotated[Relax, typer.Option(help="What may move.")] = Relax.none,
    settings: Annotated[list[str] | None, typer.Option("--set", "-s", help="Change the preset, e.g. ecut=500.")] = None,
    hull: Annotated[
        bool, typer.Option("--hull", help="Distance above DFT's own hull too; needs --relax cell. Minutes to hours.")
    ] = False,
    margin: Annotated[
        float, typer.Option(min=0.0, help="With --hull: eV/atom by which a phase may lie below its estimate.")
    ] = 0.1,
    phase_atoms: Annotated[int, typer.Option(min=1, help="With --hull: of a competing phase's primitive cell.")] = 16,
    energy_only: Annotated[bool, typer.Option("--energy-only", help="Neither gap nor dielectric constant.")] = False,
    max_atoms: Annotated[int, typer.Option(min=1, help="Of the primitive cell; larger crystals are left out.")] = 16,
    time_limit: Annotated[float, typer.Option(help="Seconds for one crystal.")] = 1800.0,
    cores: Annotated[int, typer.Option(min=0, help="MPI processes; 0: one per core, at most 8.")] = 0,
    memory: Annotated[float, typer.Option(help="GiB for one crystal.")] = 8.0,
    python: Annotated[str | None, typer.Option(help="Interpreter that has GPAW. Default: this one.")] = None,
    json: Json = False,
) -> None:
    """Energy, band gap and dielectric constant of crystals by DFT (PBE, GPAW), with or without relaxation.

    With --hull the distance above the hull, whose competing phases are computed with the same settings: those that can
    matter, each once (OUTPUT.phases.csv). Energies are raw PBE, without corrections.
    """
    from flows import configfile
    from flows.tables.columns import read_input
    from flows.tables.dft import dft_table, phases_file
    from flows.tables.outputs import check_file
    from flows.tables.screening import statuses_of
    from loop.stability import METASTABLE
    from oracles.dft.hull import DftHull
    from oracles.dft.oracle import ALL, DftConfig, DftOracle
    from oracles.dft.process import Resources

    if not output.name.endswith((".csv", ".csv.gz")):
        raise InputError(f"expected a name ending in .csv or .csv.gz, got {output}")
    if hull and relax is not Relax.cell:
        raise InputError(
            "expected --relax cell with --hull: competing phases are relaxed, and a crystal that is not would look too "
            "unstable"
        )
    check_file(output, input)
    asked = [] if energy_only else [item.value for item in property or What]
    config = DftConfig(
        preset=preset.value,
        settings=configfile.parse_settings(settings or []),
        properties=tuple(name for name in ALL if name in asked),
        relax=relax.value,
        max_atoms=max_atoms,
        time_limit=time_limit,
        references="demand" if hull else None,
        phase_margin=margin,
        phase_atoms=phase_atoms,
        resources=Resources(cores=cores, memory_gib=memory, python=python),
    )
    with progress() as report:
        places = None
        if hull:
            places = DftHull(config, progress=of_stage(report, "competing phases"))
        oracle = DftOracle(config, places)
        frame = dft_table(read_input(input), oracle, output, report, places)
    summary: dict[str, Any] = {"rows": len(frame), "statuses": statuses_of(frame)}
    if hull:
        summary |= {"below_0.1": int((frame["e_above_hull"] <= METASTABLE).sum()), "margin": margin}
        summary |= {"phases": str(phases_file(output))}
    emit({**summary, "energy_type": str(oracle.energy_type), "output": str(output)}, json)


def dft_inputs(
    input: Input,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write; one folder per crystal.")],
    code: Annotated[Code, typer.Option(help="vasp (needs the extra discovery-loop[vasp]) or espresso.")] = Code.vasp,
    json: Json = False,
) -> None:
    """Write inputs of relaxation, static run and dielectric response for VASP or Quantum ESPRESSO."""
    from flows.tables.columns import read_input
    from flows.tables.outputs import check_folder
    from oracles.dft.inputs import write_inputs

    check_folder(output)
    table = read_input(input)
    folders = write_inputs(table.readable(), output, code.value)
    emit({"crystals": len(folders), "unreadable": len(table.failures), "output": str(output)}, json)


def import_labels(
    campaign: Annotated[Path, typer.Argument(help="Results folder of the campaign.")],
    file: Annotated[Path, typer.Argument(help="CSV: candidate_id, and columns such as 'band_gap (eV)'.")],
    name: Annotated[str, typer.Option(help="Prefix of the columns: NAME_band_gap.")] = "handoff",
    json: Json = False,
) -> None:
    """Put results from elsewhere into a campaign's ledger; ranking, resume and retraining use them."""
    from flows.plain import open_history, open_store
    from flows.tables.import_labels import import_labels as take

    with open_store(campaign) as (store, campaign_name):
        done = take(store, campaign_name, file, tier=name)
    if done.taken:
        from loop.report.export import write_ranked

        with open_history(campaign) as history:
            write_ranked(history, campaign)
    for line in done.examples:
        note(f"skipped: {line}")
    emit(done.summary(), json)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (dft, dft_inputs):
        app.command(rich_help_panel="Oracles and surrogates")(verb)
    app.command(rich_help_panel="Campaigns")(import_labels)
