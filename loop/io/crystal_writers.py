"""Crystals and their columns in the formats that a name's ending asks for."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.errors import InputError
from loop.io.ase_atoms import plain
from loop.io.ase_database import to_bytes
from loop.io.cif_writer import to_cif, to_symmetrised_cif
from loop.io.extxyz import to_extxyz
from loop.io.files import INDEX, write_bytes, write_marked_folder
from loop.io.opening import bare_name
from loop.io.poscar import to_poscar

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure


@dataclass(frozen=True, eq=False)
class Rows:
    """What is written: rows of equal length."""

    ids: list[str]
    structures: list[Structure | None]
    frame: pd.DataFrame
    texts: list[str | None]  # cells of the column `cif` as they were read; [] where the crystals are new
    as_held: bool = False  # whether CIF files keep cell and atoms as they are, or show the symmetry

    def present(self) -> list[tuple[int, Structure]]:
        """Rows with a crystal."""
        return [(row, structure) for row, structure in enumerate(self.structures) if structure is not None]

    @property
    def cif(self) -> Callable[[Structure], str]:
        """What makes the text of a CIF file."""
        return to_cif if self.as_held else to_symmetrised_cif

    def records(self) -> list[dict[Any, Any]]:
        """Columns by row."""
        return self.frame.astype(object).to_dict("records")


Writer = Callable[[Path, Rows], None]
OUTPUTS = (
    ".csv (with a column cif), .extxyz or .json (each also with .gz), .cif (one file), .db (of ASE), .poscar (a folder "
    "of POSCARs), or no ending (a folder of CIFs)"
)
LONGEST = 200  # bytes of a file's name without its ending


def writer_of(path: Path) -> Writer:
    """What writes the format of a name's ending.

    Raises:
        InputError: no format has this ending.
    """
    packed = path.suffix == ".gz"
    ending = Path(bare_name(path)).suffix.lower()
    if path.suffix.lower() in (".bz2", ".xz") or ending not in _WRITERS or (packed and ending not in _PACKED):
        raise InputError(f"expected a name ending in {OUTPUTS}, got {path}")
    return _WRITERS[ending]


def is_folder(path: Path) -> bool:
    """Whether the output of this name is a folder of files."""
    return writer_of(path) in (_cif_folder, _poscar_folder)


def _save(path: Path, data: bytes) -> None:
    # no time stamp: the same crystals give the same file
    write_bytes(path, gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _csv(path: Path, rows: Rows) -> None:
    cells: list[Any] = list(rows.texts)
    if not cells:
        cells = ["" if structure is None else to_cif(structure) for structure in rows.structures]
    _save(path, rows.frame.assign(cif=cells).to_csv(index=False, lineterminator="\n").encode())


def _extxyz(path: Path, rows: Rows) -> None:
    records = rows.records()
    _save(path, "".join(to_extxyz(structure, records[row]) for row, structure in rows.present()).encode())


def _json(path: Path, rows: Rows) -> None:
    dicts = [None if structure is None else structure.as_dict() for structure in rows.structures]
    records = [{str(key): _or_none(value) for key, value in record.items()} for record in rows.records()]
    whole = [record | {"structure": data} for record, data in zip(records, dicts, strict=True)]
    _save(path, (json.dumps(whole, allow_nan=False) + "\n").encode())


def _or_none(value: Any) -> Any:
    cell = None if value is None else plain(value)
    return None if cell != cell or cell in (float("inf"), float("-inf")) else cell


def _database(path: Path, rows: Rows) -> None:
    records = rows.records()
    _save(path, to_bytes((structure, records[row]) for row, structure in rows.present()))


def _cif_file(path: Path, rows: Rows) -> None:
    present = rows.present()
    names = file_names([re.sub(r"[^\w.+-]", "_", rows.ids[row], flags=re.ASCII)[:75] for row, _ in present])
    _save(path, one_cif_file(names, [rows.cif(crystal) for _, crystal in present]).encode())


def one_cif_file(names: Sequence[str], texts: Sequence[str]) -> str:
    """Several CIFs as one text, each a data block of its name."""
    return "".join(re.sub(r"\Adata_\S*", f"data_{name}", text) for name, text in zip(names, texts, strict=True))


def _cif_folder(path: Path, rows: Rows) -> None:
    _folder(path, rows, ".cif", rows.cif)


def _poscar_folder(path: Path, rows: Rows) -> None:
    _folder(path, rows, ".vasp", to_poscar)


def _folder(path: Path, rows: Rows, ending: str, write: Callable[[Structure], str]) -> None:
    """One file per crystal, and a table of ids and other columns."""
    names = [f"{name}{ending}" for name in file_names(rows.ids)]
    pairs = list(zip(names, rows.structures, strict=True))
    index = rows.frame.copy()
    index.insert(0, "file", [name if structure is not None else "" for name, structure in pairs], allow_duplicates=True)

    def fill(folder: Path) -> None:
        for name, structure in pairs:
            if structure is not None:
                (folder / name).write_text(write(structure), encoding="utf-8")
        (folder / INDEX).write_bytes(index.to_csv(index=False, lineterminator="\n").encode())

    write_marked_folder(path, fill)


def file_names(ids: Sequence[str]) -> list[str]:
    """Distinct names that stay in their folder, on file systems that tell no capitals, too.

    What is longer than file systems allow is cut, with a checksum of the whole id.
    """
    names: list[str] = []
    taken: set[str] = set()
    for identifier in ids:
        stem = re.sub(r"[^\w.+-]", "_", identifier).lstrip(".") or "crystal"
        if len(stem.encode()) > LONGEST:
            mark = hashlib.sha256(identifier.encode()).hexdigest()[:12]
            stem = f"{stem.encode()[: LONGEST - 13].decode(errors='ignore')}-{mark}"
        name, number = stem, 1
        while name.casefold() in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


_WRITERS: dict[str, Writer] = {
    ".csv": _csv,
    ".extxyz": _extxyz,
    ".xyz": _extxyz,
    ".json": _json,
    ".cif": _cif_file,
    ".db": _database,
    ".poscar": _poscar_folder,
    ".vasp": _poscar_folder,
    "": _cif_folder,
}
_PACKED = (".csv", ".extxyz", ".xyz", ".json")


def keeps_all_rows(path: Path) -> bool:
    """Whether the format has a place for rows without a crystal."""
    return writer_of(path) in (_csv, _json, _cif_folder, _poscar_folder)
