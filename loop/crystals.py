"""Reading and writing crystals as users keep them.

A source is a CSV or CSV.gz with a `cif` column, an extxyz file, a CIF, or a folder of CIFs. Every crystal keeps the id
of its row; a row that cannot be read is listed with its reason while the rest goes on.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.cif import cif_blocks, parse_cif
from loop.cif_writer import to_cif, to_symmetrised_cif
from loop.errors import InputError
from loop.extxyz import read_extxyz, split_frames, to_extxyz

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

CIF_COLUMN = "cif"
ID_COLUMNS = ("material_id", "id")
FORMATS = "a .csv or .csv.gz with a column 'cif', an .extxyz, a .cif, or a folder of .cif files"

_SHOWN = 3  # reasons that an error message quotes


@dataclass(frozen=True)
class Unreadable:
    """A row that holds no usable crystal."""

    row: int
    id: str
    reason: str


@dataclass(frozen=True, eq=False)
class CrystalTable:
    """The crystals of a source, in its order."""

    ids: list[str]
    structures: list[Structure | None]  # None where the row could not be read
    frame: pd.DataFrame  # the other columns, one row a crystal, without `cif`
    failures: list[Unreadable]

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
        One entry a row; ids are the column `material_id` or `id`, the file name, or the row number from 0.

    Raises:
        InputError: nothing there, another format, no column `cif`, or not one readable crystal.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"expected crystals at {path} ({FORMATS}), there is no such file or folder")
    suffix = _suffix(path)
    frame: pd.DataFrame | None
    if path.is_dir():
        entries, frame, total = _folder_entries(path)
    elif suffix == ".csv":
        table, ids = read_frame(path)
        entries = ((i, partial(_structure, text)) for i, text in zip(ids, table[CIF_COLUMN], strict=True))
        frame, total = table.drop(columns=CIF_COLUMN), len(table)
    elif suffix in (".extxyz", ".xyz"):
        entries, frame, total = _extxyz_entries(path)
    elif suffix == ".cif":
        entries, frame, total = _cif_file_entries(path, path.stem), None, 0
    else:
        raise InputError(f"expected {FORMATS}, got {path}")
    return _read_entries(path, entries, frame, progress, total)


Entry = tuple[str, Callable[[], "Structure"]]
"""Id, and what makes the structure (or raises InputError)."""


def _read_entries(
    path: Path,
    entries: Iterator[Entry],
    frame: pd.DataFrame | None,
    progress: Callable[[int, int], None] | None,
    total: int,
) -> CrystalTable:
    import pandas as pd

    ids: list[str] = []
    structures: list[Structure | None] = []
    failures: list[Unreadable] = []
    for row, (name, make) in enumerate(entries):
        ids.append(name)
        try:
            structures.append(make())
        except InputError as error:
            structures.append(None)
            failures.append(Unreadable(row, name, str(error)))
        if progress is not None:
            progress(row + 1, total)
    if len(failures) == len(ids):
        reasons = "; ".join(f"{f.id}: {f.reason}" for f in failures[:_SHOWN])
        raise InputError(f"expected crystals in {path}, none of {len(ids)} entries can be read. {reasons}")
    frame = pd.DataFrame(index=range(len(ids))) if frame is None else frame.reset_index(drop=True)
    return CrystalTable(ids, structures, frame, failures)


def read_frame(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """A CSV or CSV.gz with a `cif` column, and the id of each row (see `read_crystals`).

    Raises:
        InputError: there is no such file, it is no CSV, or it has no column `cif`.
    """
    import pandas as pd

    if not path.is_file():
        raise InputError(f"expected a CSV file with a column {CIF_COLUMN!r} at {path}, there is no such file")
    try:
        # the formula NaN (sodium mononitride) is real: only an empty field is missing
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=dict.fromkeys(ID_COLUMNS, str))
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"expected a CSV file at {path}, cannot read it: {error}") from error
    if CIF_COLUMN not in frame:
        raise InputError(f"expected a column {CIF_COLUMN!r} in {path}, found {', '.join(map(str, frame.columns))}")
    column = next((name for name in ID_COLUMNS if name in frame), None)
    if column is None:
        return frame, [str(row) for row in range(len(frame))]
    return frame, [str(row) if text != text else text for row, text in enumerate(frame[column])]  # NaN: no id


def _structure(text: Any) -> Structure:
    from pymatgen.core import Element, Lattice, Structure

    if not isinstance(text, str):
        raise InputError("no CIF in this row")
    basis, numbers, coordinates = parse_cif(text)
    return Structure(Lattice(basis), [Element.from_Z(z) for z in numbers.tolist()], coordinates)


def _cif_file_entries(path: Path, name: str) -> Iterator[Entry]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return iter([(name, partial(_refuse, f"cannot read {path}: {error.strerror or error}"))])
    blocks = cif_blocks(text)
    if len(blocks) == 1:
        return iter([(name, partial(_structure, text))])
    return ((f"{name}/{block}", partial(_structure, content)) for block, content in blocks)


def _folder_entries(folder: Path) -> tuple[Iterator[Entry], None, int]:
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".cif")
    if not paths:
        raise InputError(f"expected .cif files in the folder {folder}, found none")
    return (entry for path in paths for entry in _cif_file_entries(path, path.stem)), None, len(paths)


def _extxyz_entries(path: Path) -> tuple[Iterator[Entry], pd.DataFrame, int]:
    import pandas as pd

    entries: list[Entry] = []
    columns: list[dict[str, Any]] = []
    for number, frame in enumerate(split_frames(path.read_text(encoding="utf-8", errors="replace"))):
        try:
            structure, info = read_extxyz(frame)
        except InputError as error:
            entries.append((str(number), partial(_refuse, str(error))))
            columns.append({})
            continue
        name = next((str(info[column]) for column in ID_COLUMNS if column in info), str(number))
        entries.append((name, partial(_keep, structure)))
        columns.append(info)
    return iter(entries), pd.DataFrame(columns), len(entries)


def _refuse(reason: str) -> Structure:
    raise InputError(reason)


def _keep(structure: Structure) -> Structure:
    return structure


def write_crystals(
    path: str | Path,
    ids: Sequence[str],
    structures: Sequence[Structure | None],
    columns: Mapping[str, Sequence[Any]] | pd.DataFrame | None = None,
) -> int:
    """Write crystals with their ids and further columns: .csv, .csv.gz, .extxyz, .cif (one crystal), or a folder.

    The file appears under its name only when complete. Rows without a structure keep an empty `cif` in a CSV and are
    left out of the other formats. The column `cif` holds crystals as they are, in P1; CIF files their conventional cell
    with its symmetry (`loop.cif_writer`).

    Returns:
        Number of crystals written.

    Raises:
        InputError: the format is unknown, or the place cannot be written.
    """
    import pandas as pd

    from loop.files import write_bytes, write_folder

    path = Path(path)
    frame = pd.DataFrame(index=range(len(ids))) if columns is None else pd.DataFrame(columns).reset_index(drop=True)
    if not any(name in frame for name in ID_COLUMNS):
        frame.insert(0, "id", list(ids))
    present = [(row, structure) for row, structure in enumerate(structures) if structure is not None]
    records = frame.to_dict("records")
    suffix = _suffix(path)
    if suffix == ".csv":
        frame[CIF_COLUMN] = ["" if structure is None else to_cif(structure) for structure in structures]
        text = frame.to_csv(index=False, lineterminator="\n").encode()
        write_bytes(path, _gzip(text) if path.suffix == ".gz" else text)
    elif suffix in (".extxyz", ".xyz"):
        write_bytes(path, "".join(to_extxyz(structure, records[row]) for row, structure in present).encode())
    elif suffix == ".cif" and len(present) == 1:
        write_bytes(path, to_symmetrised_cif(present[0][1]).encode())
    elif suffix == "":
        names = _file_names([ids[row] for row, _ in present])
        texts = [to_symmetrised_cif(structure) for _, structure in present]
        write_folder(path, lambda folder: _fill(folder, names, texts), (".cif",))
    else:
        raise InputError(f"expected a name ending in .csv, .csv.gz or .extxyz, or a folder, got {path}")
    return len(present)


def _fill(folder: Path, names: Sequence[str], texts: Sequence[str]) -> None:
    for name, text in zip(names, texts, strict=True):
        (folder / f"{name}.cif").write_text(text, encoding="utf-8")


def _file_names(ids: Sequence[str]) -> list[str]:
    """Distinct file names that stay in their folder."""
    names: list[str] = []
    taken: set[str] = set()
    for identifier in ids:
        stem = re.sub(r"[^\w.+-]", "_", identifier).lstrip(".") or "crystal"
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        names.append(name)
    return names


def _gzip(text: bytes) -> bytes:
    import gzip

    return gzip.compress(text, mtime=0)  # no time stamp: the same crystals give the same file


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()
