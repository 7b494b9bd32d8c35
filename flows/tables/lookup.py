"""Known crystals for tables that name them: by the id of the Materials Project, or by the formula."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from flows.console import Reporter
    from loop.io.crystals import CrystalTable
    from oracles.references.crystals import ReferenceCrystals

IDS, FORMULAS = ("material_id", "mp_id", "id"), ("formula", "pretty_formula")
PUBLISHED = re.compile(r"[A-Za-z]+-\d+")
NOT_KNOWN = "failed:not-known"
NOTHING: dict[str, Any] = {"material_id": "", "space_group": None, "status": NOT_KNOWN, "message": ""}


def look_up(path: Path, crystals: ReferenceCrystals, report: Reporter) -> tuple[CrystalTable, pd.DataFrame]:
    """The known crystal of each row of a CSV: that of its id, else the lowest of its formula.

    A row whose id is the crystal of another formula than the row's fails: one of the two is wrong. A formula names no
    polymorph: the one with the lowest published energy above the hull is taken, and `message` says how many others
    there are.

    Args:
        path: CSV with a column of `IDS` or `FORMULAS`.
        crystals: those that are known.
        report: told how many rows are done.

    Returns:
        The rows with their crystals, None where none is known, and the columns to write.

    Raises:
        InputError: neither column is there, or no row has a known crystal.
    """
    from flows.tables.columns import rows_with
    from loop.io.cells import read_cells
    from loop.io.crystals import CrystalTable

    frame = read_cells(path)
    column = _column(path, frame)
    formulas = next((frame[name] for name in FORMULAS if name in frame and column in IDS), None)
    results: dict[int, dict[str, Any]] = {}
    for row, text in enumerate(frame[column]):
        formula = "" if formulas is None else str(formulas.iloc[row]).strip()
        results[row] = _of_row(str(text).strip(), formula, crystals)
        report("known crystals", row + 1, len(frame), {})
    names = [result["material_id"] for result in results.values()]
    if not any(names):
        raise InputError(f"{path}: none of its {len(frame)} rows names a known crystal in the column {column!r}")
    structures = [crystals.structure(name) if name else None for name in names]
    if column == "material_id":  # what it says stays, empty cells are filled
        stated = [str(text).strip() for text in frame[column]]
        results = {row: result | {column: stated[row] or result[column]} for row, result in results.items()}
    elif column in IDS:
        results = {row: {k: v for k, v in result.items() if k != "material_id"} for row, result in results.items()}
    ids = [name or str(row) for row, name in enumerate(names)]
    table = CrystalTable(ids, structures, frame, [])
    return table, rows_with(table, results)


def _column(path: Path, frame: pd.DataFrame) -> str:
    """The column that names the crystals; an id says more than a formula."""
    for name in IDS:
        if name in frame and frame[name].astype(str).str.strip().map(PUBLISHED.fullmatch).any():
            return name
    for name in FORMULAS:
        if name in frame:
            return name
    found = ", ".join(map(str, frame.columns))
    raise InputError(f"expected a column material_id (as mp-149) or formula in {path}, found {found}")


def _of_row(text: str, formula: str, crystals: ReferenceCrystals) -> dict[str, Any]:
    """`_found` of a row with, perhaps, a formula beside what names its crystal."""
    if not text and formula:
        found = _found(formula, crystals)
        told = f"{found['material_id']}, by its formula; {found['message']}".removesuffix("; ")
        return found | {"message": told} if found["material_id"] else found
    found = _found(text, crystals)
    if not found["material_id"] or not formula:
        return found
    try:
        agrees = found["material_id"] in crystals.of_formula(formula)
    except InputError:  # a name in words
        agrees = True
    if agrees:
        return found
    known = crystals.known(found["material_id"]).formula
    return NOTHING | {"message": f"{text} is {known}, but the row says {formula}"}


def _found(text: str, crystals: ReferenceCrystals) -> dict[str, Any]:
    """Id, symmetry, status and message of one row."""
    try:
        ids = [text] if PUBLISHED.fullmatch(text) and text in crystals else crystals.of_formula(text)
    except InputError as error:
        ids, reason = [], str(error)
    else:
        reason = f"no known crystal is {text or 'named'}"
    if not ids:
        return NOTHING | {"message": reason}
    others = f"the lowest of {len(ids)} known crystals of this formula" if len(ids) > 1 else ""
    return {"material_id": ids[0], "space_group": crystals.known(ids[0]).space_group, "status": "ok", "message": others}
