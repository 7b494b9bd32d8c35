"""Tables in, tables out: what all verbs from files to files share.

Each output keeps the input's id, its other columns and the crystal, so that verbs chain. Columns of the input that a
verb would overwrite, or that describe a crystal which it changes, are kept as ``input_NAME``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.progress import of_stage
from loop.plausibility import KINDS
from loop.values import failed

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from flows.console import Reporter
    from loop.io.crystals import CrystalTable, Unreadable

UNREADABLE = "failed:unreadable"
KEPT = "input_"  # before the name of a column of the input that would mislead under its own
_IDS = ("material_id", "id")
# what this program's verbs and ASE's calculators say of a crystal as it is
_DESCRIBES = {"tokens", "space_group", "n_atoms_conventional", "description", "e_above_hull", "decomposition", "sparse"}
_DESCRIBES |= {"suspect"}
_DESCRIBES |= {"energy", "energy_type", "energy_per_atom", "steps", "max_force", "max_stress", "p_stable", "distance"}
_DESCRIBES |= {"mechanically_stable", "dynamically_stable", "elastic_tensor", "lowest_frequency", "highest_frequency"}
_DESCRIBES |= {"lowest_frequency_gamma", "at", "supercell", "prototype"}
_RESULTS = {"energy", "energy_per_atom", "free_energy", "stress", "virial", "dipole", "magmom", "charge"}


def read_input(path: Path, report: Reporter | None = None) -> CrystalTable:
    """`read_crystals`, which says what of a folder is left out."""
    from flows.console import note
    from loop.io.crystals import read_crystals

    table = read_crystals(path, of_stage(report, "read"))
    _check_formulas(table)
    if table.left_out:
        names = ", ".join(table.left_out[:5]) + (", ..." if len(table.left_out) > 5 else "")
        note(f"left out of {path}, no files of crystals: {names}")
    return table


def _check_formulas(table: CrystalTable) -> None:
    """Note rows whose column of formulas speaks of another crystal than the one that stands there."""
    for column in ("formula", "pretty_formula"):
        for row, (text, structure) in enumerate(zip(table.frame.get(column, ()), table.structures, strict=False)):
            expected = None if structure is None or not isinstance(text, str) else _reduced(text)
            if expected and structure is not None and expected != structure.composition.reduced_formula:
                told = f"the column {column} says {text}, the crystal is {structure.composition.reduced_formula}"
                table.notes[row] = "; ".join(filter(None, (table.notes.get(row), told)))


def _reduced(text: str) -> str | None:
    from pymatgen.core import Composition

    try:
        return str(Composition(text).reduced_formula)
    except ValueError:
        return None  # a name, or a formula that is none


def write_output(
    path: Path, table: CrystalTable, frame: pd.DataFrame, structures: Sequence[Structure | None] | None = None
) -> None:
    """Write a verb's results with the crystals, in the format of the name's ending, and say what was renamed.

    Crystals that were read leave in their cell with their atoms in order, in CIF files, too.

    Args:
        path: of the output.
        table: the input.
        frame: of `rows_with`.
        structures: the crystals that the results are of; None: those of the input, as they were written there.
    """
    from flows.console import note
    from loop.io.crystal_writers import keeps_all_rows
    from loop.io.crystals import write_crystals

    same = structures is None
    written = write_crystals(path, table.ids, table.structures if structures is None else structures, frame,
                             table.texts if same else (), as_held=True)  # fmt: skip
    renamed = [name for name in map(str, frame) if name.startswith(KEPT) and name not in table.frame]
    if renamed:
        note(f"columns of the input are kept under other names: {', '.join(renamed)}")
    if written < len(table) and not keeps_all_rows(path):
        note(f"{len(table) - written} rows without a crystal are not in {path}; a CSV keeps them with their reasons")


def rows_with(table: CrystalTable, results: dict[int, dict[str, Any]], *, changed: bool = False) -> pd.DataFrame:
    """The table's columns, then the results by row; a row that could not be read gets that status and its reason.

    Args:
        table: the input.
        results: by row.
        changed: the results are of other crystals than the input's, such as relaxed ones.
    """
    import pandas as pd

    rows = {failure.row: {"status": status_of(failure), "message": failure.reason} for failure in table.failures}
    rows |= {row: _noted(result, table.notes.get(row)) for row, result in results.items()}
    found = pd.DataFrame([rows.get(row, {"status": UNREADABLE, "message": ""}) for row in range(len(table))])
    kept = renamed_columns(table.frame, [str(name) for name in found], changed=changed)
    joined = pd.concat([kept.reset_index(drop=True), found], axis=1)
    if not set(_IDS) & set(joined):
        joined.insert(0, "id", table.ids)
    return joined


def status_of(failure: Unreadable) -> str:
    """``failed:overlap`` and the like of what was read but is no crystal, see `loop.plausibility`; else unreadable."""
    return failed(failure.kind) if failure.kind in KINDS else UNREADABLE


def _noted(result: dict[str, Any], note: str | None) -> dict[str, Any]:
    """A result whose message tells what was noticed when the crystal was read."""
    if not note:
        return result
    return {**result, "message": "; ".join(filter(None, (result.get("message"), note)))}


def renamed_columns(frame: pd.DataFrame, own: Collection[str], *, changed: bool) -> pd.DataFrame:
    """Columns of the input, those that would mislead under their names as ``input_NAME``; empty ones of them go."""
    stale = [name for name in map(str, frame) if name in own or (changed and describes(name, frame))]
    stale += [name for name in map(str, frame) if "energy" in own and name in _RESULTS and name not in stale]
    empty = [name for name in stale if (frame[name].isna() | (frame[name] == "")).all()]
    taken = set(map(str, frame)) | set(own)
    names: dict[str, str] = {}
    for name in stale:
        new, number = f"{KEPT}{name}", 1
        while new in taken:
            number += 1
            new = f"{KEPT}{name}_{number}"
        taken.add(new)
        names[name] = new
    return frame.drop(columns=empty).rename(columns=names)


def describes(name: str, columns: Collection[Any]) -> bool:
    """Whether a column says something of the crystal as it is: no longer true once the crystal is changed."""
    if name in _DESCRIBES | _RESULTS or name == "logp" or name.startswith("logp_"):
        return True
    stem = name.removesuffix("_mean").removesuffix("_std")
    return stem != name and f"{stem}_mean" in columns and f"{stem}_std" in columns  # what a surrogate predicted
