"""Crystals in the formats that ASE and pymatgen read, each with its id and the values beside it.

Nothing is read that could run code: no pickles, no classes named in a file.
"""

from __future__ import annotations

import csv
import io
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.errors import InputError
from loop.io.ase_atoms import in_table, structure_of, values_of
from loop.io.cells import ID_COLUMNS, typed
from loop.io.cif import cif_blocks, read_cif
from loop.io.extxyz import read_extxyz, split_frames
from loop.io.files import INDEX, marked_files, sha256
from loop.io.opening import bare_name, clean, read_bytes, read_text
from loop.io.structure_dicts import crystals_of_json, from_dict, looks_like_dict

if TYPE_CHECKING:
    from pymatgen.core import Structure

Crystal = tuple["Structure", str]
"""A structure, and what is to be told of its reading ("": nothing)."""


@dataclass(frozen=True, eq=False)
class Entry:
    """One crystal of a source."""

    id: str | None  # None: the number of its row
    make: Callable[[], Crystal]  # raises InputError
    values: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None  # a cell of a table, which goes back as it came


CIF, EXTXYZ, POSCAR, JSON, JSON_LINES, DATABASE = "CIF", "extxyz", "POSCAR", "JSON", "JSON lines", "ASE database"
_ENDINGS = {".cif": CIF, ".mcif": CIF, ".extxyz": EXTXYZ, ".xyz": EXTXYZ, ".vasp": POSCAR, ".poscar": POSCAR}
_ENDINGS |= {".contcar": POSCAR, ".json": JSON, ".jsonl": JSON_LINES, ".db": DATABASE}
_POSCAR_NAME = re.compile(r"(POSCAR|CONTCAR)([._-].*)?", re.IGNORECASE)
# of ASE, by ending or name: all frames of a trajectory, the last of a calculation
_ALL_FRAMES = {".traj": "traj", "XDATCAR": "vasp-xdatcar"}
_LAST_FRAME = {".xsf": "xsf", ".gen": "gen", ".res": "res", ".cell": "castep-cell", ".magres": "magres", ".cfg": "cfg"}
_LAST_FRAME |= {"OUTCAR": "vasp-out", "vasprun.xml": "vasp-xml", ".pwi": "espresso-in", ".pwo": "espresso-out"}
_LAST_FRAME |= {"geometry.in": "aims", "geometry.in.next_step": "aims", ".gpw": "gpw", ".cube": "cube"}
_REFUSED = {
    ".pkl": "a pickle, which can run code",
    ".pickle": "a pickle, which can run code",
    ".zip": "a zip archive: unpack it, and give the file or the folder",
    ".tar": "an archive: unpack it, and give the file or the folder",
    ".tgz": "an archive: unpack it, and give the file or the folder",
}
FORMATS = (
    "a .csv or .csv.gz with a column 'cif', .cif, .extxyz, POSCAR (.vasp), .traj, ASE .db, .json of pymatgen or ASE, "
    ".jsonl of OPTIMADE, another file of crystals that ASE reads, or a folder of them; packed by gzip or not"
)


def kind_of(path: Path) -> str | None:
    """The format of a file by its name; None where no crystals are expected in it."""
    name = bare_name(path)
    ending = Path(name).suffix.lower()
    if ending in _ENDINGS:
        return _ENDINGS[ending]
    if _POSCAR_NAME.fullmatch(name):
        return POSCAR
    return next((key for key in (name, ending) if key in _ALL_FRAMES or key in _LAST_FRAME), None)


def entries_of(path: Path) -> Iterator[Entry]:
    """Entries of a file (not of a CSV), in its order.

    Raises:
        InputError: the file cannot be opened, or is of no known format.
    """
    kind = kind_of(path)
    stem = Path(bare_name(path)).stem
    if kind is None:
        reason = _REFUSED.get(Path(bare_name(path)).suffix.lower())
        raise InputError(f"expected {FORMATS}, got {path}" + (f", which is {reason}" if reason else ""))
    if kind == DATABASE:
        return _database_entries(path)
    if kind not in _READERS:
        return _ase_entries(path, kind, stem)
    return _READERS[kind](read_text(path), stem)


def folder_entries(folder: Path) -> tuple[list[Callable[[], Iterator[Entry]]], list[str]]:
    """Readers of the files of a folder by name, and the names of files that are left out.

    Hidden files are no crystals: those of macOS (``._a.cif``) hold none. Ids and columns come from the table that this
    program puts into its folders, for files that are unchanged since.
    """
    index = read_index(folder)
    files = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".") and not path.is_dir()]
    known = [path for path in files if kind_of(path) is not None]
    stems = Counter(Path(bare_name(path)).stem for path in known)
    readers: list[Callable[[], Iterator[Entry]]] = [
        partial(_file_of_folder, path, _stem(path, stems), index.get(path.name)) for path in known
    ]
    return readers, [path.name for path in files if path not in known and not (index and path.name == INDEX)]


def _stem(path: Path, stems: Counter[str]) -> str:
    """Name without endings; the whole name where another file would be called the same."""
    stem = Path(bare_name(path)).stem
    return stem if stems[stem] == 1 else path.name


def _file_of_folder(path: Path, stem: str, known: Entry | None) -> Iterator[Entry]:
    """Entries of a file of a folder; one that says why, where the file as a whole cannot be read."""
    try:
        entries = list(entries_of(path))
    except InputError as error:
        return iter([Entry(stem if known is None else known.id, partial(refuse, str(error)))])
    if known is not None and len(entries) == 1:
        return iter([replace(known, make=entries[0].make)])
    if len(entries) == 1:
        return iter([entries[0] if _id_of(entries[0].values) else replace(entries[0], id=stem)])
    return (entry if entry.id is not None else replace(entry, id=f"{stem}/{n}") for n, entry in enumerate(entries))


def read_index(folder: Path) -> dict[str, Entry]:
    """Id and columns by file, of a folder that this program wrote; without files that were changed since."""
    marked = marked_files(folder)
    if INDEX not in marked:
        return {}
    try:
        rows = list(csv.DictReader(io.StringIO(read_text(folder / INDEX))))
        sound = {
            name for name, digest in marked.items() if (folder / name).is_file() and sha256(folder / name) == digest
        }
    except (InputError, csv.Error, OSError):
        return {}
    found = {}
    for row in rows:
        name = row.pop("file", "")
        if name in sound:
            values = {key: typed(cell) if key not in ID_COLUMNS else cell for key, cell in row.items()}
            found[name] = Entry(_id_of(row), partial(refuse, ""), values)
    return found


def refuse(reason: str) -> Crystal:
    """What makes no crystal."""
    raise InputError(reason)


def _keep(structure: Structure) -> Crystal:
    return structure, ""


def crystal_of(text: Any) -> Crystal:
    """The crystal of a cell: a CIF with one crystal, or a structure as pymatgen's dict (CrystalFormer writes those).

    Raises:
        InputError: the cell is empty, holds several crystals, or none.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError("no CIF in this row")
    if looks_like_dict(text):
        return from_dict(text), ""
    return cif_crystal(clean(text))


def cif_crystal(text: str) -> Crystal:
    """The crystal of one block of a CIF."""
    read = read_cif(text)
    return read.structure, "; ".join(read.notes)


def _cif_entries(text: str, stem: str) -> Iterator[Entry]:
    blocks = cif_blocks(text)
    if len(blocks) == 1:
        return iter([Entry(stem, partial(cif_crystal, blocks[0][1]))])
    return (Entry(f"{stem}/{name}", partial(cif_crystal, content)) for name, content in blocks)


def _extxyz_entries(text: str, _: str) -> Iterator[Entry]:
    for frame, problem in split_frames(text):
        try:
            if problem:
                raise InputError(problem)
            structure, values = read_extxyz(frame)
        except InputError as error:
            yield Entry(None, partial(refuse, str(error)))
            continue
        yield Entry(_id_of(values), partial(_keep, structure), values)


def _id_of(values: Mapping[str, Any]) -> str | None:
    return next((str(values[name]) for name in ID_COLUMNS if values.get(name) not in (None, "")), None)


def _poscar_entries(text: str, stem: str) -> Iterator[Entry]:
    return iter([Entry(stem, partial(_poscar, text))])


def _poscar(text: str) -> Crystal:
    from pymatgen.io.vasp import Poscar

    _check_counts(text.splitlines())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = Poscar.from_str(text, read_velocities=False)
    except Exception as error:  # the parser raises whatever it meets
        raise InputError(f"unreadable POSCAR: {type(error).__name__}: {error}") from error
    if not found.true_names:  # pymatgen would take H, He, Li, ... instead
        raise InputError("expected the elements above their numbers, found a POSCAR of VASP 4 without them")
    return from_dict(found.structure.as_dict(verbosity=0)), ""


def _check_counts(lines: list[str]) -> None:
    """Refuse a POSCAR that names other elements than it counts, or counts other atoms than it lists.

    Raises:
        InputError: so it is. Files that differ in layout are left to the reader.
    """
    names, counts = (line.split("!")[0].split() for line in (lines[5:7] if len(lines) > 7 else ["", ""]))
    if not names or names[0].isdigit() or not all(count.isdigit() for count in counts):
        return
    if len(names) != len(counts):
        raise InputError(f"expected a number for each of {' '.join(names)}, found {' '.join(counts)}")
    first = 9 if lines[7].lstrip()[:1].lower() == "s" else 8  # selective dynamics
    expected, found = sum(map(int, counts)), 0
    for line in lines[first : first + expected]:
        if len(line.split()) < 3:
            break
        found += 1
    if found < expected:
        raise InputError(f"expected {expected} positions ({' '.join(names)}: {' '.join(counts)}), found {found}")


def _json_entries(text: str, stem: str) -> Iterator[Entry]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise InputError(f"unreadable JSON: {error}") from error
    if isinstance(data, dict) and {"ids", "nextid"} <= set(data):
        return _ase_json_entries(text)
    return _dict_entries(crystals_of_json(data), stem)


def _json_line_entries(text: str, stem: str) -> Iterator[Entry]:
    rows: list[Any] = []
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except ValueError as error:
            raise InputError(f"unreadable JSON on line {number}: {error}") from error
    rows = [row for row in rows if not (isinstance(row, dict) and "x-optimade" in row)]
    return _dict_entries(crystals_of_json(rows), stem)


def _dict_entries(found: list[tuple[str | None, Any, dict[str, Any]]], stem: str) -> Iterator[Entry]:
    alone = stem if len(found) == 1 else None
    return (Entry(_id_of(values) or name or alone, partial(_from_dict, data), values) for name, data, values in found)


def _from_dict(data: Any) -> Crystal:
    return from_dict(data), ""


def _ase_json_entries(text: str) -> Iterator[Entry]:
    from ase.io import iread

    return _atoms_entries(lambda: list(iread(io.StringIO(text), ":", format="json")), None)


def _ase_entries(path: Path, kind: str, stem: str) -> Iterator[Entry]:
    """Crystals of any other file, read by ASE."""
    from ase.io import read

    trajectory = kind in _ALL_FRAMES
    data = read_bytes(path)
    format, index = (_ALL_FRAMES[kind], ":") if trajectory else (_LAST_FRAME[kind], "-1:")
    return _atoms_entries(lambda: _from_bytes(data, lambda source: read(source, index, format=format)), stem)


def _from_bytes(data: bytes, read: Callable[[str], Any]) -> Any:
    """What `read` makes of a file with these bytes: some of ASE's readers take nothing but a path."""
    import tempfile

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return read(file.name)


def _atoms_entries(read: Callable[[], list[Any]], stem: str | None) -> Iterator[Entry]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frames = read()
    except Exception as error:  # ASE raises whatever its parsers meet
        raise InputError(f"unreadable: {type(error).__name__}: {error}") from error
    for atoms in frames:
        values = in_table(values_of(atoms))
        name = _id_of(values) or (stem if len(frames) == 1 else None)
        yield Entry(name, partial(_structure, atoms), values)


def _structure(atoms: Any) -> Crystal:
    return structure_of(atoms), ""


def _database_entries(path: Path) -> Iterator[Entry]:
    """Rows of ASE's SQLite database, with their key-value pairs."""
    from loop.io.ase_database import read_rows

    try:
        rows = _from_bytes(read_bytes(path), read_rows)
    except InputError:
        raise
    except Exception as error:  # of SQLite, or of whatever a damaged row makes ASE raise
        raise InputError(f"cannot read {path} as an ASE database: {type(error).__name__}: {error}") from error
    for atoms, pairs in rows:
        values = in_table(values_of(atoms) | pairs)
        yield Entry(_id_of(values), partial(_structure, atoms), values)


_READERS: dict[str, Callable[[str, str], Iterator[Entry]]] = {
    CIF: _cif_entries,
    EXTXYZ: _extxyz_entries,
    POSCAR: _poscar_entries,
    JSON: _json_entries,
    JSON_LINES: _json_line_entries,
}
