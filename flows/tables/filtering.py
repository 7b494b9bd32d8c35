"""Rows of a table of crystals chosen by their columns: those that fulfil conditions, or the best ones, in order.

Nothing is computed with a potential, and no crystal and no cell of the input is changed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from flows.tables.columns import renamed_columns, status_of
from flows.tables.expressions import Expression, all_of
from flows.tables.typed_columns import TEXT, Columns, Values, mostly_numbers
from loop.io.cells import ID_COLUMNS

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from loop.contracts import Progress
    from loop.io.crystals import CrystalTable

RANK, PROTOTYPE = "rank", "prototype"


@dataclass
class Chosen:
    """Rows of a table, in the order in which they are written."""

    rows: list[int] = field(default_factory=list)
    columns: dict[int, dict[str, Any]] = field(default_factory=dict)  # by row: what is written beside the input's
    no_value: dict[str, int] = field(default_factory=dict)  # rows without a value, by the column or the key
    left_out: dict[str, int] = field(default_factory=dict)  # rows, by the reason
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Limits:
    """What a ranking keeps."""

    top: int | None = None  # rows
    per_prototype: int | None = None  # rows of one prototype, see `loop.prototypes`
    unique: bool = False  # of equal crystals, compared as a campaign does (`loop.novelty`), only the first

    @property
    def any(self) -> bool:
        """Whether anything may be left out."""
        return self.unique or self.top is not None or self.per_prototype is not None


def filtered(table: CrystalTable, conditions: Sequence[Expression], *, keep_failed: bool = False) -> Chosen:
    """Rows for which all conditions hold, in their order.

    Args:
        table: crystals with their columns.
        conditions: what must hold.
        keep_failed: rows without a crystal stay, whatever the conditions say of them; else they are left out.

    Raises:
        InputError: a condition names a column that does not exist, or compares what cannot be compared.
    """
    columns = Columns(with_ids(table))
    chosen = Chosen(notes=columns.notes)
    failed = {failure.row for failure in table.failures}
    holds: list[bool | None] = [True] * len(table)
    for condition in conditions:
        truths = condition.truths(columns)
        for name in condition.names():
            cells = columns[name].cells
            chosen.no_value[name] = sum(cells[row] is None for row in range(len(table)) if row not in failed)
        holds = [all_of(pair) for pair in zip(holds, truths, strict=True)]
    chosen.rows = [row for row, held in enumerate(holds) if (keep_failed if row in failed else held)]
    chosen.left_out["undecided"] = sum(held is None for row, held in enumerate(holds) if row not in failed)
    chosen.left_out["unreadable"] = 0 if keep_failed else len(failed)
    return chosen


def ranked(table: CrystalTable, by: Sequence[str], limits: Limits, progress: Progress | None = None) -> Chosen:
    """Rows sorted, with their `rank` from 1: by the first key, equal ones by the next, then in the input's order.

    Rows without a value of a key come after those that have one. Rows without a crystal get no rank: they come last, or
    are left out where `limits` keep a part only.

    Args:
        table: crystals with their columns.
        by: names of columns (``-`` before it: the largest first), or expressions that give numbers.
        limits: what is kept.
        progress: told of the rows that are kept.

    Raises:
        InputError: there is no such column, or an expression is none.
    """
    columns = Columns(with_ids(table))
    chosen = Chosen(notes=columns.notes)
    failed = {failure.row for failure in table.failures}
    ordered = [row for row in _sorted(columns, by, chosen, failed) if row not in failed]
    for rank, row in enumerate(_kept(table, ordered, chosen, limits), 1):
        chosen.rows.append(row)
        chosen.columns.setdefault(row, {})[RANK] = rank
        if progress is not None:
            progress("rank", rank, limits.top or len(ordered), {})
    if limits.any:
        chosen.left_out["unreadable"] = len(failed)
    else:
        chosen.rows += sorted(failed)
    return chosen


def _sorted(columns: Columns, by: Sequence[str], chosen: Chosen, failed: set[int]) -> list[int]:
    """All rows in order."""
    import pandas as pd

    keys: dict[str, pd.Series] = {}
    ascending: list[bool] = []
    for number, text in enumerate(by):
        cells, descending = _key(columns, text)
        chosen.no_value[text] = sum(cell is None for row, cell in enumerate(cells) if row not in failed)
        keys[str(number)] = pd.Series(cells, dtype=object if any(isinstance(cell, str) for cell in cells) else float)
        ascending.append(not descending)
    frame = pd.DataFrame(keys)
    order = frame.sort_values(list(keys), ascending=ascending, kind="stable", na_position="last")
    return [int(row) for row in order.index]


def _key(columns: Columns, text: str) -> tuple[list[Any], bool]:
    """Values to sort by, and whether the largest come first."""
    for name, descending in ((text, False), (text.removeprefix("-"), text.startswith("-"))):
        bare = name[1:-1] if len(name) > 2 and name[0] == name[-1] == "`" else name
        if bare.isidentifier() or bare in map(str, columns.frame):
            return _sortable(columns, columns[bare]), descending
    return list(Expression.parse(text).numbers(columns)), False


def _sortable(columns: Columns, values: Values) -> list[Any]:
    """Numbers where at least half of a column is numbers (the rest is no value, and told), else texts."""
    return values.cells if values.kind == TEXT and not mostly_numbers(values) else list(columns.numbers(values))


def _kept(table: CrystalTable, rows: Sequence[int], chosen: Chosen, limits: Limits) -> Iterator[int]:
    """The rows that stay. Crystals are compared one by one, no more of them than it takes."""
    copies = _Copies() if limits.unique else None
    prototypes = None if limits.per_prototype is None else _Prototypes(limits.per_prototype)
    chosen.left_out |= {"duplicates": 0} if copies else {}
    chosen.left_out |= {"same_prototype": 0} if prototypes else {}
    found = 0
    for row in rows:
        structure = table.structures[row]
        if found == limits.top:
            return
        if structure is None:
            continue
        original = copies.original(structure, table.ids[row]) if copies else None
        if original is not None:
            chosen.left_out["duplicates"] += 1
            chosen.notes.append(f"{table.ids[row]} is left out: the same crystal as {original}")
            continue
        if prototypes is not None:
            label, full = prototypes.count(structure)
            chosen.left_out["same_prototype"] += full
            if full:
                continue
            chosen.columns[row] = {PROTOTYPE: label}
        found += 1
        yield row


class _Copies:
    """Crystals that were kept, to compare others with."""

    def __init__(self) -> None:
        from loop.novelty import NoveltyIndex

        self.index = NoveltyIndex()

    def original(self, structure: Structure, name: str) -> str | None:
        """Id of the earlier crystal that this one equals; if there is none, it is remembered."""
        (verdict,) = self.index.judge([structure], [name])
        if verdict.match is None:
            self.index.add([structure], [name])
        return verdict.match


class _Prototypes:
    """How many crystals of each prototype there are so far."""

    def __init__(self, most: int) -> None:
        self.most, self.counts = most, Counter[str]()

    def count(self, structure: Structure) -> tuple[str, bool]:
        """Prototype of a crystal, and whether enough of it were kept before; one without a label is its own."""
        from loop.prototypes import prototype

        label = prototype(structure)
        self.counts[label] += 1
        return label, bool(label) and self.counts[label] > self.most


def part_of(table: CrystalTable, chosen: Chosen) -> tuple[CrystalTable, pd.DataFrame]:
    """The chosen rows as a table of their own, and its columns with those that were found.

    Where a row has no crystal, or something is to be told of how it was read, `status` and `message` say so.
    """
    import pandas as pd

    rows, places = chosen.rows, {row: place for place, row in enumerate(chosen.rows)}
    failures = [replace(item, row=places[item.row]) for item in table.failures if item.row in places]
    notes = {places[row]: told for row, told in table.notes.items() if row in places}
    part = replace(
        table,
        ids=[table.ids[row] for row in rows],
        structures=[table.structures[row] for row in rows],
        frame=table.frame.iloc[rows].reset_index(drop=True),
        failures=failures,
        notes=notes,
        texts=[table.texts[row] for row in rows] if table.texts else [],
    )
    found = [chosen.columns.get(row, {}) for row in rows]
    own = pd.DataFrame(found, index=range(len(rows)), dtype=object)
    kept = renamed_columns(_told(part), [str(name) for name in own], changed=False)
    return part, pd.concat([kept, own], axis=1)


def with_ids(table: CrystalTable) -> pd.DataFrame:
    """The table's columns, with one of ids where the source has none."""
    if any(name in table.frame for name in ID_COLUMNS):
        return table.frame
    frame = table.frame.copy()
    frame.insert(0, "id", table.ids)
    return frame


def _told(table: CrystalTable) -> pd.DataFrame:
    """Columns of a table, in which rows that could not be read say so."""
    frame = with_ids(table).copy()
    for failure in table.failures:
        if _cell(frame, failure.row, "status") == "":
            _put(frame, failure.row, "status", status_of(failure))
            _put(frame, failure.row, "message", _joined(_cell(frame, failure.row, "message"), failure.reason))
    for row, told in table.notes.items():
        _put(frame, row, "message", _joined(_cell(frame, row, "message"), told))
    return frame


def _cell(frame: pd.DataFrame, row: int, name: str) -> str:
    value = frame[name].iloc[row] if name in frame else None
    return "" if value is None or value != value else str(value)


def _put(frame: pd.DataFrame, row: int, name: str, text: str) -> None:
    cells = list(frame[name]) if name in frame else [None] * len(frame)
    cells[row] = text
    frame[name] = cells


def _joined(message: str, told: str) -> str:
    return message if told in message else "; ".join(filter(None, (message, told)))
