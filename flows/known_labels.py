"""Labels that a user has already: crystals with measured properties, from which surrogates learn beside a campaign's.

What the Materials Project, the literature or an earlier project knows need not be paid for again. They teach the
surrogates alone: they are no finds, cost nothing, and count in no comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loop.errors import InputError
from loop.properties import physical
from loop.values import OK, Candidate, Evaluation, Quantity
from surrogates.properties import Property

if TYPE_CHECKING:
    import pandas as pd

    from loop.io.crystals import CrystalTable

ORACLE = "known"


@dataclass(frozen=True)
class KnownLabels:
    """Candidates and evaluations of equal length.

    Attributes:
        candidates: one for each row that holds a crystal and a value.
        evaluations: its labels.
        unreadable: rows without a crystal.
        empty: rows without a value.
        contradicting: ids of crystals for which rows give different values.
    """

    candidates: list[Candidate]
    evaluations: list[Evaluation]
    unreadable: int = 0
    empty: int = 0
    contradicting: tuple[str, ...] = ()


def read_known_labels(path: Path, properties: Sequence[Property]) -> KnownLabels:
    """Read a table of crystals with a column for one or more properties, `name (unit)` or `name`.

    Args:
        path: any source of crystals (see `loop.io.crystals`) that has columns.
        properties: what the surrogates learn; other columns are not looked at, empty cells are no labels.

    Raises:
        InputError: no readable crystal, no column of any property, another unit, or a cell that is no number or one
            that its property cannot have.
    """
    from loop.io.crystals import read_crystals

    table = read_crystals(path)
    columns = {prop: column for prop in properties if (column := _column(path, table.frame, prop)) is not None}
    if not columns:
        wanted = ", ".join(f"'{prop.name} ({prop.unit})'" for prop in properties)
        found = ", ".join(map(str, table.frame.columns)) or "none"
        raise InputError(f"{path} teaches nothing: expected a column {wanted}, found {found}")
    values = np.column_stack([_numbers(path, table, column, prop) for prop, column in columns.items()])
    candidates, evaluations, empty = [], [], 0
    for structure, row in zip(table.structures, values, strict=True):
        if structure is None:
            continue
        pairs = zip(columns, row.tolist(), strict=True)
        measured = {prop.name: Quantity(value, prop.unit) for prop, value in pairs if np.isfinite(value)}
        empty += not measured
        if measured:
            candidates.append(Candidate(structure))
            evaluations.append(Evaluation(candidates[-1].id, ORACLE, path.name, OK, measured))
    if not candidates:
        raise InputError(f"{path} teaches nothing: none of its {len(table)} rows holds a crystal and a value")
    return KnownLabels(candidates, evaluations, len(table.failures), empty, _contradicting(evaluations))


def _contradicting(evaluations: Sequence[Evaluation]) -> tuple[str, ...]:
    """Ids of crystals that have several values of one property."""
    said: dict[tuple[str, str], set[float]] = {}
    for evaluation in evaluations:
        for name, quantity in evaluation.properties.items():
            said.setdefault((evaluation.candidate_id, name), set()).add(quantity.value)
    return tuple(dict.fromkeys(crystal for (crystal, _), values in said.items() if len(values) > 1))


def _column(path: Path, frame: pd.DataFrame, prop: Property) -> str | None:
    """The column of a property, None where there is none."""
    plain, full = prop.name, f"{prop.name} ({prop.unit})"
    mine = [str(name) for name in frame.columns if str(name).split("(")[0].strip() == prop.name]
    wrong = [name for name in mine if name.replace(" ", "") not in (plain, full.replace(" ", ""))]
    if wrong:
        raise InputError(
            f"{path}: expected the unit {prop.unit} in column {wrong[0]!r}: convert the values, then name it {full!r}"
        )
    if len(mine) > 1:
        raise InputError(f"{path}: two columns hold {prop.name}: keep one of {', '.join(map(repr, mine))}")
    return mine[0] if mine else None


def _numbers(path: Path, table: CrystalTable, column: str, prop: Property) -> np.ndarray:
    """Values of a column, shape (rows,), NaN where a cell is empty."""
    import pandas as pd

    values = np.full(len(table), np.nan)
    for at, cell in enumerate(table.frame[column]):
        text = "" if pd.isna(cell) else str(cell).strip()
        if text:
            try:
                values[at] = physical(prop.name, float(text))
            except (ValueError, InputError) as error:
                told = error if isinstance(error, InputError) else "expected a finite number or nothing"
                raise InputError(
                    f"{path}: {told} in column {column!r}, got {str(cell)!r} for {table.ids[at]}"
                ) from None
    return values
