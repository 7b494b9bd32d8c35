"""Verbs of the known crystals that ship: reference show, lookup, export, build."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Json, Output
from flows.console import emit, note, progress
from flows.progress import of_stage
from loop.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from oracles.references.crystals import ReferenceCrystals

Table = Annotated[Path | None, typer.Option(help="Table of `reference build`. Default: the one that is shipped.")]
SHOWN = ("id", "formula", "space_group_symbol", "n_atoms", "e_above_hull", "formation_energy", "release")

reference_app = typer.Typer(no_args_is_help=True)


@reference_app.callback()
def reference() -> None:
    """Known crystals of the Materials Project (CC BY 4.0), as they ship: show, look up, export, build again."""


@reference_app.command()
def show(
    what: Annotated[str, typer.Argument(metavar="FORMULA|ID", help="E.g. LiFePO4, or mp-19017.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the crystals; the ending says the format.")
    ] = None,
    table: Table = None,
    json: Json = False,
) -> None:
    """Known crystals of a formula, the lowest first, or the one of an id: space group, published energies, cell."""
    from flows.tables.outputs import check_crystals
    from oracles.references.crystals import load_reference_crystals

    if output is not None:
        check_crystals(output)
    crystals = load_reference_crystals(table)
    ids = _ids(crystals, what)
    frame = _frame(crystals, ids)
    if output is not None:
        _write(crystals, frame, output)
    if json:
        emit({"crystals": frame.to_dict("records"), "attribution": _attribution()}, json)
        return
    emit({}, json, _listed(frame))
    if len(ids) == 1:
        emit({}, json, f"\n{crystals.structure(ids[0])}")
    note(_attribution())


@reference_app.command()
def lookup(
    input: Annotated[Path, typer.Option("--input", "-i", help="CSV with a column material_id (mp-149) or formula.")],
    output: Output,
    table: Table = None,
    json: Json = False,
) -> None:
    """Put the known crystals into a table that names them; a formula stands for its lowest crystal. Columns stay."""
    from flows.tables.columns import write_output
    from flows.tables.lookup import look_up
    from flows.tables.outputs import check_crystals
    from flows.tables.screening import statuses_of
    from oracles.references.crystals import load_reference_crystals

    check_crystals(output, input)
    with progress() as report:
        rows, frame = look_up(input, load_reference_crystals(table), report)
    write_output(output, rows, frame, rows.structures)
    for name, status, message in zip(rows.ids, frame["status"], frame["message"], strict=True):
        if status != "ok":
            note(f"row {name}: {message}")
    summary = {"rows": len(frame), "statuses": statuses_of(frame), "attribution": _attribution()}
    emit({**summary, "output": str(output)}, json)


@reference_app.command()
def export(
    chemical_system: Annotated[str, typer.Option(help="E.g. Li-Fe-O; its subsystems come along.")],
    output: Output,
    max_e_above_hull: Annotated[
        float | None, typer.Option(help="eV/atom, as published; leaves out what has no published value.")
    ] = None,
    lowest: Annotated[bool, typer.Option("--lowest", help="One crystal per formula, the lowest published.")] = False,
    table: Table = None,
    json: Json = False,
) -> None:
    """Write the known crystals of a chemical system, with their published energies."""
    from flows.tables.outputs import check_crystals
    from oracles.references.crystals import load_reference_crystals

    check_crystals(output)
    crystals = load_reference_crystals(table)
    elements = [part.strip() for part in chemical_system.split("-")]
    frame = _frame(crystals, crystals.in_system(elements))
    if lowest:
        frame = frame.drop_duplicates("formula")
    if max_e_above_hull is not None:
        frame = frame[frame["e_above_hull"] <= max_e_above_hull]
    if frame.empty:
        raise InputError(f"expected reference crystals of {chemical_system} under these conditions, found none")
    _write(crystals, frame, output)
    summary = {"crystals": len(frame), "formulas": int(frame["formula"].nunique())}
    emit({**summary, "attribution": _attribution(), "output": str(output)}, json)


@reference_app.command()
def build(
    sources: Annotated[list[Path], typer.Argument(help="CSVs with material_id, cif and published energies.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Table to write: .npz, a .json beside it.")],
    split: Annotated[list[str] | None, typer.Option(help="Values of a column `split`. Default: train, val.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes side by side.")] = 1,
    json: Json = False,
) -> None:
    """Make the table of known crystals from tables of crystals; no crystal moves by more than 0.001 A."""
    from flows.tables.outputs import check_file
    from oracles.references.build import SPLITS
    from oracles.references.build import build as build_table

    if output.suffix != ".npz":
        raise InputError(f"expected the name of a .npz file to write, got {output}")
    check_file(output, *sources)
    with progress() as report:
        about = build_table(sources, output, tuple(split or SPLITS), workers, of_stage(report, "pack"))
    shown = {name: about[name] for name in ("crystals", "formulas", "left_out", "largest_error_angstrom")}
    emit({**shown, "left_out": len(shown["left_out"]), "output": str(output)}, json)


def _ids(crystals: ReferenceCrystals, what: str) -> list[str]:
    if re.fullmatch(r"[A-Za-z]+-\d+", what):
        crystals.known(what)  # refuses what is not there
        return [what]
    found = crystals.of_formula(what)
    if not found:
        from loop.hull import amounts_of

        system = "-".join(sorted(amounts_of(what)))
        raise InputError(
            f"no reference crystal has the formula {what} (the package leaves out the published test split, NaCl among "
            f"it; docs/oracles.md); those of its elements: `discovery-loop reference export --chemical-system {system}`"
        )
    return found


def _frame(crystals: ReferenceCrystals, ids: list[str]) -> pd.DataFrame:
    import pandas as pd
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    rows = []
    for id in ids:
        known = crystals.known(id)
        symbol = sg_symbol_from_int_number(known.space_group)
        rows.append(vars(known) | {"space_group_symbol": symbol, "n_atoms": crystals.n_atoms(id)})
    return pd.DataFrame(rows)


def _listed(frame: pd.DataFrame) -> str:
    shown = frame[list(SHOWN)].rename(
        columns={"e_above_hull": "E_hull (eV/atom)", "formation_energy": "E_form (eV/atom)"}
    )
    return str(shown.to_string(index=False, na_rep="–", float_format=lambda value: f"{value:.4f}"))


def _write(crystals: ReferenceCrystals, frame: pd.DataFrame, output: Path) -> None:
    from loop.io.crystals import write_crystals

    ids = frame["id"].tolist()
    write_crystals(output, ids, [crystals.structure(id) for id in ids], frame)


def _attribution() -> str:
    from oracles.references.crystals import ATTRIBUTION

    return ATTRIBUTION


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.add_typer(reference_app, name="reference", rich_help_panel="Oracles and surrogates")
