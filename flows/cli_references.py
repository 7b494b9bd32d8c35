"""Verbs that make tables of reference phases: hull build, hull fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli_potential import Environment, Potential, load
from flows.console import emit, progress
from loop.errors import InputError

Device = Annotated[str | None, typer.Option(help="cpu or cuda. Default: cuda where there is one.")]
Trust = Annotated[bool, typer.Option("--trust", help="Load a MACE file, which is a pickle and can run code.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="Table to write: .csv or .csv.gz, a .json beside it.")]


def build(
    output: Output,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="CSVs of known crystals with a cif column. Default: the known crystals that ship."),
    ] = None,
    chemical_system: Annotated[
        str | None, typer.Option(help="Of the crystals that ship take this system's, as Li-Fe-O, subsystems included.")
    ] = None,
    potential: Potential = "chgnet",
    split: Annotated[list[str] | None, typer.Option(help="Values of a column `split` to take. Default: all.")] = None,
    energies: Annotated[
        str | None, typer.Option(help="Take this column of energies (eV/atom) instead of a potential's, elements too.")
    ] = None,
    functional: Annotated[str, typer.Option(help="Of given energies.")] = "PBE(+U)",
    corrections: Annotated[str, typer.Option(help="That given energies hold already: none, MP2020, ...")] = "none",
    correct: Annotated[bool, typer.Option("--correct", help="Add MP2020 corrections to given energies.")] = False,
    device: Device = None,
    trust: Trust = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Evaluate known crystals with a potential: the reference phases of its hull. A cut-off build goes on.

    MP2020 corrections go to uncorrected PBE(+U) energies: --potential mace:medium+mp2020, or --energies with --correct.
    """
    from flows.outputs import check_file
    from flows.shipped_crystals import shipped_crystals
    from oracles.given_energies import Given, references_from
    from oracles.references import BuildConfig, build_references

    check_file(output, *(sources or ()))
    if sources and chemical_system is not None:
        raise InputError("--chemical-system chooses among the crystals that ship: leave it out, or the files")
    if not sources and energies is not None:
        raise InputError("--energies names a column of your own CSVs: give at least one")
    sources = sources or [shipped_crystals(chemical_system)]
    with progress() as report:
        if energies is not None:
            given = Given(energies, functional=functional, corrections=corrections, correct=correct)
            built = references_from(sources, output, given)
        else:
            loaded = load(potential, device=device, trust=trust, environment=environment)
            config = BuildConfig(splits=tuple(split)) if split else BuildConfig()
            built = build_references(
                sources, output, loaded, config, lambda done, total: report("evaluate", done, total, {})
            )
    emit({"phases": len(built), "energy_type": str(built.energy_type), "output": str(output)}, json)


def fetch(
    systems: Annotated[list[str], typer.Argument(help="Chemical systems, as Li-Fe-O; subsystems come along.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV of crystals and energies, for `hull build`.")],
    endpoint: Annotated[str | None, typer.Option(help="Another server of the same interface.")] = None,
    json: Json = False,
) -> None:
    """Fetch known crystals of chemical systems from the Materials Project. Wants your key in MP_API_KEY.

    What was fetched is cached by database version. Then: `hull build OUTPUT -o table.csv` for a potential's hull, or
    with `--energies energy_per_atom --corrections MP2020` for the hull of the DFT energies themselves.
    """
    from flows.outputs import check_file
    from flows.paths import state_dir
    from loop.files import write_text
    from oracles.materials_project import ATTRIBUTION
    from oracles.materials_project import fetch as fetch_systems

    check_file(output)
    cache = state_dir() / "materials-project"
    with progress() as report:
        found = fetch_systems(
            systems, cache, endpoint=endpoint, progress=lambda done, total: report("systems", done, total, {})
        )
    write_text(output, found.frame.to_csv(index=False, lineterminator="\n"))
    summary: dict[str, Any] = {"crystals": len(found.frame), "database": found.version}
    summary |= {"downloaded": list(found.downloaded), "attribution": ATTRIBUTION, "output": str(output)}
    emit(summary, json)


def register(hull_app: typer.Typer) -> None:
    """Add the verbs below `hull`."""
    hull_app.command("build")(build)
    hull_app.command("fetch")(fetch)
