"""Reading and writing crystals as users keep them.

A source is a CSV with a `cif` column, any file of crystals that ASE or pymatgen reads, or a folder of such files (see
`loop.io.formats`). Every crystal keeps the id of its row; a row that cannot be read is listed with its reason while the
rest continues. Cells of a CSV come back as they came: 00123, 12e5 and NaN stay what they are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.errors import InputError
from loop.io.cells import ID_COLUMNS, read_cells, typed
from loop.io.formats import FORMATS, Entry, crystal_of, entries_of, folder_entries
from loop.io.opening import bare_name
from loop.plausibility import require_plausible_structure

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

CIF_COLUMN = "cif"

_SHOWN = 3  # reasons that an error message quotes


@dataclass(frozen=True)
class Unreadable:
    """A row that holds no usable crystal."""

    row: int
    id: str
    reason: str
    kind: str = InputError.kind  # "overlap", "volume", ... of `loop.plausibility` for what was read but is no crystal


@dataclass(frozen=True, eq=False)
class CrystalTable:
    """The crystals of a source, in its order."""

    ids: list[str]
    structures: list[Structure | None]  # None where the row could not be read
    frame: pd.DataFrame  # the other columns, one row per crystal, without `cif`
    failures: list[Unreadable]
    notes: dict[int, str] = field(default_factory=dict)  # by row: what is to be told of the reading of a crystal
    texts: list[str | None] = field(default_factory=list)  # cells of a column `cif`; [] where the source has none
    left_out: list[str] = field(default_factory=list)  # files of a folder that are no crystals

    def __len__(self) -> int:
        return len(self.ids)

    def readable(self) -> list[tuple[str, Structure]]:
        """Ids and structures of the rows that could be read."""
        return [(i, s) for i, s in zip(self.ids, self.structures, strict=True) if s is not None]


def read_crystals(path: str | Path, progress: Callable[[int, int], None] | None = None) -> CrystalTable:
    """Read all crystals of a source.

    Args:
        path: a file or folder of one of the formats above.
        progress: called with the number of rows done and their total (0 where it is not known).

    Returns:
        One entry per row; ids are the column `material_id` or `id`, the file name, or the row number from 0.

    Raises:
        InputError: nothing there, another format, no column `cif`, or not one readable crystal.
    """
    import pandas as pd

    path = Path(path)
    if not path.exists():
        raise InputError(f"expected crystals at {path} ({FORMATS}), there is no such file or folder")
    if path.is_dir():
        readers, left_out = folder_entries(path)
        if not readers:
            found = f" (found {', '.join(left_out[:_SHOWN])})" if left_out else ""
            raise InputError(f"expected .cif files or others of crystals in the folder {path}, found none{found}")
        files = itertools.chain.from_iterable(reader() for reader in readers)
        return _read_entries(path, files, None, progress, len(readers), left_out)
    if bare_name(path).lower().endswith(".csv"):
        table, ids = read_texts(path)
        cells = zip(ids, table[CIF_COLUMN].tolist(), strict=True)
        rows = (Entry(name, partial(crystal_of, text), text=text) for name, text in cells)
        others = [name for name in table if name != CIF_COLUMN]  # as objects: beside an empty cell 1 would become 1.0
        columns = {name: pd.Series([typed(cell) for cell in table[name]], dtype=object) for name in others}
        frame = pd.DataFrame(columns, index=range(len(table)))
        return _read_entries(path, rows, frame, progress, len(table))
    try:
        listed = list(entries_of(path))
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"cannot read {path}: {error}") from error
    return _read_entries(path, listed, None, progress, len(listed))


def _read_entries(
    path: Path,
    entries: Iterable[Entry],
    frame: pd.DataFrame | None,
    progress: Callable[[int, int], None] | None,
    total: int,
    left_out: Sequence[str] = (),
) -> CrystalTable:
    import pandas as pd

    ids: list[str] = []
    structures: list[Structure | None] = []
    failures: list[Unreadable] = []
    notes: dict[int, str] = {}
    texts: list[str | None] = []
    values: list[Mapping[str, Any]] = []
    for row, entry in enumerate(entries):
        ids.append(str(row) if entry.id is None else entry.id)
        values.append(entry.values)
        texts.append(entry.text)
        try:
            structure, note = entry.make()
            require_plausible_structure(structure)
            structures.append(structure)
            notes |= {row: note} if note else {}
        except InputError as error:
            structures.append(None)
            failures.append(Unreadable(row, ids[-1], str(error), error.kind))
        if progress is not None:
            progress(row + 1, total)
    if len(failures) == len(ids):
        reasons = "; ".join(f"{f.id}: {f.reason}" for f in failures[:_SHOWN])
        raise InputError(f"expected crystals in {path}, none of {len(ids)} entries can be read. {reasons}".strip())
    if frame is None:
        frame = pd.DataFrame(values, index=range(len(ids)), dtype=object)
    kept = texts if any(text is not None for text in texts) else []
    return CrystalTable(ids, structures, frame.reset_index(drop=True), failures, notes, kept, list(left_out))


def read_texts(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """A CSV with a `cif` column, every cell as the text that it is, and the id of each row (see `read_crystals`).

    Raises:
        InputError: there is no such file, it is no CSV, or it has no column `cif`.
    """
    if not path.is_file():
        raise InputError(f"expected a CSV file with a column {CIF_COLUMN!r} at {path}, there is no such file")
    frame = read_cells(path)
    if CIF_COLUMN not in frame:
        found = ", ".join(map(str, frame.columns))
        named = {"formula", "material_id"} & set(map(str, frame.columns))
        hint = "; `discovery-loop reference lookup` puts the known crystals into it" if named else ""
        raise InputError(f"expected a column {CIF_COLUMN!r} in {path}, found {found}{hint}")
    column = next((name for name in ID_COLUMNS if name in frame), None)
    if column is None:
        return frame, [str(row) for row in range(len(frame))]
    return frame, [cell or str(row) for row, cell in enumerate(frame[column])]


def read_frame(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """`read_texts` with numbers in columns that hold nothing else (ids aside), NaN where a cell is empty.

    Raises:
        InputError: as `read_texts`.
    """
    import numpy as np
    import pandas as pd

    frame, ids = read_texts(path)
    for name in frame.columns:
        if name in (*ID_COLUMNS, CIF_COLUMN):
            continue
        values, full = pd.to_numeric(frame[name], errors="coerce"), frame[name] != ""
        frame[name] = values if np.isfinite(values[full]).all() and full.any() else frame[name].where(full)
    return frame, ids


def write_crystals(
    path: str | Path,
    ids: Sequence[str],
    structures: Sequence[Structure | None],
    columns: Mapping[str, Sequence[Any]] | pd.DataFrame | None = None,
    texts: Sequence[str | None] = (),
    *,
    as_held: bool = False,
) -> int:
    """Write crystals with their ids and further columns, in the format that the name's ending asks for.

    The output appears under its name only when complete. Rows without a structure keep their columns in a CSV, a JSON
    and a folder's table, and are left out of the other formats. Columns named `cif` hold crystals as they are, in P1;
    CIF files their conventional cell with its symmetry, unless they shall be as they are, too.

    Args:
        path: see `loop.io.crystal_writers.OUTPUTS`.
        ids: of the rows.
        structures: None where there is no crystal.
        columns: further ones.
        texts: cells of the column `cif` of a CSV, where the crystals are those that were read; else [].
        as_held: CIF files keep the cell, the number of atoms and their order, as all other formats do.

    Returns:
        Number of crystals written.

    Raises:
        InputError: the format is unknown, or the place cannot be written.
    """
    import pandas as pd

    from loop.io.crystal_writers import Rows, writer_of

    path = Path(path)
    write = writer_of(path)
    frame = pd.DataFrame(index=range(len(ids))) if columns is None else pd.DataFrame(columns).reset_index(drop=True)
    if not any(name in frame for name in ID_COLUMNS):
        frame.insert(0, "id", list(ids))
    write(path, Rows(list(ids), list(structures), frame, list(texts), as_held))
    return sum(structure is not None for structure in structures)
