"""Columns of a table as numbers, truth values or texts: whatever they are where they are used.

A cell in which nothing stands is None throughout, never a number that compares.
"""

from __future__ import annotations

import difflib
import math
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from loop.errors import InputError
from loop.io.ase_atoms import plain
from loop.io.cells import ID_COLUMNS

if TYPE_CHECKING:
    import pandas as pd

FORMULAS = ("formula", "pretty_formula", "formula_pretty", "reduced_formula", "chemical_system", "chemsys", "elements")
NUMBER, TEXT, TRUTH = "numbers", "texts", "truth values"
_NOTHING = {"nan", "na", "null", "none"}


@dataclass(frozen=True, eq=False)
class Values:
    """What a part of an expression is, row by row; None where there is no value."""

    kind: str
    cells: list[Any]
    column: str = ""  # whose values they are; "" for what was computed or is a constant
    texts: list[str | None] = field(default_factory=list)  # of a column, as they stand there


@dataclass(eq=False)
class Columns:
    """The columns of a table, converted where they are used."""

    frame: pd.DataFrame
    notes: list[str] = field(default_factory=list)  # what could not be converted
    used: dict[str, Values] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Values:
        """Values of a column.

        Raises:
            InputError: there is no such column; lists those that there are.
        """
        found = self._found(name)
        if found not in self.used:
            self.used[found] = _values(found, [_cell(value) for value in self.frame[found]])
        return self.used[found]

    def _found(self, name: str) -> str:
        names = [str(column) for column in self.frame]
        if name in names:
            return name
        # Python normalises the letters of names, such as the micro sign
        alike = [column for column in names if unicodedata.normalize("NFKC", column) == name]
        if alike:
            return alike[0]
        hint = "; for cells in which nothing stands write isnull(column)" if name.lower() in _NOTHING else ""
        lower = {column.lower(): column for column in names}
        close = [lower[found] for found in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
        asked = f" (close: {', '.join(close)})" if close else ""
        raise InputError(f"there is no column {name!r}{asked}; the columns are {', '.join(names)}{hint}")

    def numbers(self, values: Values) -> list[float | None]:
        """Values as numbers; a text among them is no value, and this is noted.

        Raises:
            InputError: not one of them is a number.
        """
        if values.kind == NUMBER:
            return values.cells
        if values.kind == TRUTH:
            return [None if cell is None else float(cell) for cell in values.cells]
        found = [None if cell is None else _number(cell) for cell in values.cells]
        odd = [cell for cell, number in zip(values.cells, found, strict=True) if cell is not None and number is None]
        if odd and (not values.column or len(odd) == sum(cell is not None for cell in values.cells)):
            where = f"in the column {values.column}" if values.column else "where it is compared or computed with"
            raise InputError(f"expected numbers {where}, found the text {odd[0]!r}")
        if odd:
            note = f"{len(odd)} cells of {values.column} are no numbers, such as {odd[0]!r}: they count as no value"
            self.notes += [note] if note not in self.notes else []
        return [None if number is None or math.isnan(number) else number for number in found]

    def truths(self, values: Values) -> list[bool | None]:
        """Values as truth values: also numbers that are 0 or 1.

        Raises:
            InputError: they are others.
        """
        if values.kind == TRUTH:
            return values.cells
        taken = (None, 0, 1) if values.column else (None,)
        odd = next((cell for cell in values.cells if cell not in taken), None)
        if odd is not None:
            what = values.column or "column"
            raise InputError(f"expected a condition, such as {what} > 0 or {what} == 'ok', found {odd!r}")
        return [None if cell is None else bool(cell) for cell in values.cells]


def _cell(value: Any) -> Any:
    """A cell as text, number or truth value; None for nothing."""
    cell = None if value is None else plain(value)
    if isinstance(cell, str):
        return cell if cell.strip() else None
    return None if cell != cell else cell


def _values(name: str, cells: list[Any]) -> Values:
    """A column as truth values or numbers, where it holds nothing else; ids and formulas (NaN is one) are texts."""
    texts = [None if cell is None else str(cell) for cell in cells]
    present = [cell for cell in cells if cell is not None]
    if name not in (*ID_COLUMNS, *FORMULAS):
        if present and all(_truth(cell) is not None for cell in present):
            return Values(TRUTH, [None if cell is None else _truth(cell) for cell in cells], name, texts)
        numbers = [None if cell is None else _number(cell) for cell in cells]
        if sum(number is not None for number in numbers) == len(present):
            return Values(NUMBER, [None if n is None or math.isnan(n) else n for n in numbers], name, texts)
    return Values(TEXT, texts, name, texts)


def mostly_numbers(values: Values) -> bool:
    """Whether at least half of what stands in a column of texts are numbers; ids and formulas are texts."""
    if not values.column or values.column in (*ID_COLUMNS, *FORMULAS):
        return False
    present = [_number(cell) for cell in values.cells if cell is not None]
    return 2 * sum(number is not None and math.isfinite(number) for number in present) >= max(len(present), 1)


def _truth(cell: Any) -> bool | None:
    if isinstance(cell, bool):
        return cell
    return {"true": True, "false": False}.get(cell.strip().lower()) if isinstance(cell, str) else None


def _number(cell: Any) -> float | None:
    try:
        return None if isinstance(cell, str) and "_" in cell else float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
