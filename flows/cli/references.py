"""Verbs that make and check tables of reference phases: hull build, hull check, hull fetch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import Device, Environment, Json, Potential, Trust
from flows.cli.potential import load
from flows.console import emit, note, progress
from flows.progress import of_stage
from loop.errors import InputError

if TYPE_CHECKING:
    from oracles.references.table import References

Output = Annotated[Path, typer.Option("--output", "-o", help="Table to write: .csv or .csv.gz, a .json beside it.")]


def build(
    output: Output,
    sources: Annotated[
        list[Path] | None,
        typer.Argument(help="CSVs of known crystals with a cif column. Default: the known crystals that ship."),
    ] = None,
    chemical_system: Annotated[
        str | None, typer.Option(help="Of the shipped crystals take this system's, e.g. Li-Fe-O, subsystems included.")
    ] = None,
    potential: Potential = "chgnet",
    split: Annotated[list[str] | None, typer.Option(help="Values of a column `split` to take. Default: all.")] = None,
    energies: Annotated[
        str | None, typer.Option(help="Take this column of energies (eV/atom) instead of a potential's, elements too.")
    ] = None,
    functional: Annotated[str, typer.Option(help="Of given energies.")] = "PBE(+U)",
    corrections: Annotated[str, typer.Option(help="That given energies hold already: none, MP2020, ...")] = "none",
    correct: Annotated[bool, typer.Option("--correct", help="Add MP2020 corrections to given energies.")] = False,
    relax_within: Annotated[
        float, typer.Option(help="Relax phases up to this far (eV/atom) above the hull of single points.")
    ] = 0.1,
    relax_atoms: Annotated[int | None, typer.Option(min=1, help="Most atoms of a cell to relax. Default: any.")] = None,
    unrelaxed: Annotated[bool, typer.Option("--unrelaxed", help="Single points only, but for the elements.")] = False,
    device: Device = None,
    trust: Trust = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Evaluate known crystals with a potential: the reference phases of its hull. An interrupted build resumes.

    Phases near the hull are relaxed, as candidates are; each element is the lowest of many relaxed prototypes.
    MP2020 corrections go to uncorrected PBE(+U) energies: --potential mace:medium+mp2020, or --energies with --correct.
    """
    from flows.tables.outputs import check_file
    from flows.tables.shipped_crystals import shipped_crystals
    from oracles.references.energies import BuildConfig, build_references
    from oracles.references.given_energies import Given, references_from
    from oracles.relax import RelaxConfig

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
            config = BuildConfig(
                splits=tuple(split) if split else None,
                relax=None if unrelaxed else RelaxConfig(),
                relax_within=relax_within,
                relax_atoms=relax_atoms,
            )
            built = build_references(sources, output, loaded, config, report)
    emit({"phases": len(built), **left_out(built), "energy_type": str(built.energy_type), "output": str(output)}, json)


SHOWN = 10  # ids of rows left out that are named


def left_out(built: References) -> dict[str, Any]:
    """How many rows of the sources could not be used, why, and which; the table's JSON names all of them."""
    ids, reasons = built.provenance["dropped_ids"], built.provenance["dropped"]
    if ids:
        more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        note(f"left out {len(ids)} rows ({why}): {', '.join(ids[:SHOWN])}{more}")
    return {"left_out": reasons}


def check(
    reference: Annotated[Path | None, typer.Option(help="Table to check. Default: the one that is shipped.")] = None,
    potential: Potential = "chgnet",
    elements: Annotated[list[str] | None, typer.Option(help="Symbols to check. Default: all of the table.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="CSV of all prototypes tried.")] = None,
    device: Device = None,
    trust: Trust = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Relax prototypes of each element and compare a table's corners with the lowest; exit code 1: one is too high.

    A corner that is too high makes everything look stable that decomposes into it.
    """
    from flows.corners import examine
    from flows.tables.outputs import check_file
    from loop.io.files import write_text
    from oracles.references.table import load_references

    if output is not None:
        check_file(output)
    with progress() as report:
        loaded = load(potential, device=device, trust=trust, environment=environment)
        found = examine(load_references(reference), loaded, elements, report)
    if output is not None:
        write_text(output, found.tried.to_csv(index=False, float_format="%.5f", lineterminator="\n"))
    emit({"elements": found.checked, "too_high": found.too_high}, json)
    if found.too_high:
        raise InputError(
            "elements above their lowest prototype, in eV/atom: "
            + ", ".join(f"{element} by {excess:.3f}" for element, excess in found.too_high.items())
            + ". Make the table with `hull build` again."
        )


def fetch(
    systems: Annotated[list[str], typer.Argument(help="Chemical systems, e.g. Li-Fe-O; subsystems come along.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="CSV of crystals and energies, for `hull build`.")],
    endpoint: Annotated[str | None, typer.Option(help="Another server of the same interface.")] = None,
    json: Json = False,
) -> None:
    """Fetch known crystals of chemical systems from the Materials Project. Needs your key in MP_API_KEY.

    What was fetched is cached by database version. Then: `hull build OUTPUT -o table.csv` for a potential's hull, or
    with `--energies energy_per_atom --corrections MP2020` for the hull of the DFT energies themselves.
    """
    from flows.paths import state_dir
    from flows.tables.outputs import check_file
    from loop.io.files import write_text
    from oracles.references.materials_project import ATTRIBUTION
    from oracles.references.materials_project import fetch as fetch_systems

    check_file(output)
    cache = state_dir() / "materials-project"
    with progress() as report:
        found = fetch_systems(systems, cache, endpoint=endpoint, progress=of_stage(report, "systems"))
    write_text(output, found.frame.to_csv(index=False, lineterminator="\n"))
    summary: dict[str, Any] = {"crystals": len(found.frame), "database": found.version}
    summary |= {"downloaded": list(found.downloaded), "attribution": ATTRIBUTION, "output": str(output)}
    emit(summary, json)


def register(hull_app: typer.Typer) -> None:
    """Add the verbs below `hull`."""
    hull_app.command("build")(build)
    hull_app.command("check")(check)
    hull_app.command("fetch")(fetch)
