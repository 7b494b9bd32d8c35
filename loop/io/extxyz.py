"""The extended XYZ format, frame by frame, so that a broken frame does not hide the good ones.

`energy` is the total energy of the cell in eV, as every reader takes it. Texts stay texts: one that looks like a
number, a truth value or a list is written as JSON, which ASE reads back as the text it is.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from loop.errors import InputError
from loop.io.ase_atoms import for_ase, in_table, plain, structure_of
from loop.io.cells import ID_COLUMNS, number_of

if TYPE_CHECKING:
    from pymatgen.core import Structure

_COUNT = re.compile(r"\s*\d+\s*")
_GEOMETRY = {"lattice", "properties", "pbc", "nneightol", "cutoff"}
_MATRICES = {"virial", "stress"}  # readers take nothing but nine numbers for them
_TRUTH = {"T": True, "F": False, "true": True, "false": False, "True": True, "False": False, "TRUE": True}
_TRUTH["FALSE"] = False
_JSON = "_JSON "
_LATTICE = re.compile(r"""(?<!\S)lattice\s*=\s*["'{\[]([^"'}\]]*)""", re.IGNORECASE)
_PROPERTIES = re.compile(r"""(?<!\S)properties\s*=\s*"?([^\s"]+)""", re.IGNORECASE)
# key, then a value between quotes or brackets, or bare
_PAIR = re.compile(
    r"""\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^\s="']+)
    (?:\s*=\s*("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|\{[^}]*\}|\[[^\]]*\]|[^\s]+))?""",
    re.VERBOSE,
)


def split_frames(text: str) -> Iterator[tuple[str, str]]:
    """Frames of an (ext)xyz file: a line with the number of atoms, a comment, the atoms.

    Yields:
        The frame, and what is wrong with its number of atoms ("" where nothing is). A frame ends where the next number
        stands alone on a line, so that one wrong count costs no other frame.
    """
    lines = text.replace("\r\n", "\n").split("\n")
    start = 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        known = _COUNT.fullmatch(lines[start]) is not None
        end = start + 2 if known else start + 1
        while end < len(lines) and not _COUNT.fullmatch(lines[end]):
            end += 1
        whole = start + 2 + int(lines[start]) if known else end
        if whole < end and not lines[whole].strip():
            end = whole  # what follows an empty line is no part of it
        frame = lines[start:end]
        while len(frame) > 2 and not frame[-1].strip():
            frame.pop()
        problem = "" if known else "expected the number of atoms on the first line of a frame"
        found = len(frame) - 2
        if known and found != int(frame[0]):
            problem = f"expected {int(frame[0])} atoms, as the frame's first line says, found {max(found, 0)}"
        yield "\n".join(frame) + "\n", problem
        start = end


def read_extxyz(frame: str) -> tuple[Structure, dict[str, Any]]:
    """Structure and further values of one frame: numbers, truth values, texts, and lists as JSON.

    Raises:
        InputError: the frame is broken, not periodic in three directions, or holds unknown elements.
    """
    from ase.io import read

    try:
        atoms: Any = read(io.StringIO(frame), format="extxyz", index=0)
    except KeyError as error:
        raise InputError(f"expected atoms of known elements, found {error.args[0]!r}") from error
    except Exception as error:  # ASE raises whatever its parser meets
        raise InputError(_wrong_with(frame) or f"unreadable frame: {type(error).__name__}: {error}") from error
    return structure_of(atoms), in_table(_values(frame.split("\n")[1]))


def _wrong_with(frame: str) -> str:
    """What is wrong with a frame that cannot be read, in our words; empty where we do not know."""
    comment, *rows = frame.split("\n")[1:]
    lattice = _LATTICE.search(comment)
    if lattice and len(lattice[1].split()) != 9:
        return f"expected nine numbers as Lattice, found {len(lattice[1].split())}"
    layout = _PROPERTIES.search(comment)
    widths = layout[1].split(":")[2::3] if layout else []
    if widths and all(width.isdigit() for width in widths):
        expected = sum(map(int, widths))
        for number, row in enumerate(rows, 1):
            if row.strip() and len(row.split()) != expected:
                return f"expected {expected} columns as Properties says, found {len(row.split())} for atom {number}"
    return ""


def _values(comment: str) -> dict[str, Any]:
    """What a comment line says beside the geometry."""
    found: dict[str, Any] = {}
    for match in _PAIR.finditer(comment):
        key, raw = _unquoted(match[1])[0], match[2]
        if key.lower() not in _GEOMETRY:
            found[key] = True if raw is None else _value(key, *_unquoted(raw))
    return found


def _unquoted(raw: str) -> tuple[str, bool]:
    """Text without its quotes, and whether it had any."""
    quoted = len(raw) > 1 and raw[0] in "\"'{[" and raw[-1] in "\"'}]"
    if not quoted:
        return raw, False
    inner = raw[1:-1] if raw[0] in "\"'" or not raw.startswith(("[[", '["', '{"')) else raw
    return re.sub(r"\\(.)", r"\1", inner), True


def _value(key: str, text: str, quoted: bool) -> Any:
    if text.startswith(_JSON):
        try:
            return plain(json.loads(text.removeprefix(_JSON)))
        except ValueError:
            return text
    if key in ID_COLUMNS:
        return text
    parts = re.split(r"[\s,]+", text.strip())
    if quoted and len(parts) == 1:
        return text
    values = [_TRUTH.get(part, number_of(part)) for part in parts]
    if any(isinstance(value, str) for value in values):
        return text
    return values[0] if len(values) == 1 else json.dumps(values)


def to_extxyz(structure: Structure, values: Mapping[Any, Any]) -> str:
    """One frame. What is None, NaN or an empty text is left out.

    Args:
        structure: ordered.
        values: numbers, truth values and texts; an `energy` with an `energy_type` beside it is in eV/atom (that is how
            this program's tables have it) and becomes the total energy, with `energy_per_atom` beside it.
    """
    pairs = for_ase(values, len(structure))
    written = [f"{_key(str(key))}={_text(value)}" for key, value in pairs.items()]
    lattice = " ".join(map(repr, structure.lattice.matrix.ravel().tolist()))
    head = [f'Lattice="{lattice}"', "Properties=species:S:1:pos:R:3", *written, 'pbc="T T T"']
    symbols = [site.specie.symbol for site in structure]
    atoms = zip(symbols, structure.cart_coords.tolist(), strict=True)
    rows = [f"{symbol:<2} {x:17.10f} {y:17.10f} {z:17.10f}" for symbol, (x, y, z) in atoms]
    return "\n".join([str(len(structure)), " ".join(head), *rows]) + "\n"


def _key(name: str) -> str:
    name = f"input_{name}" if name.lower() in _GEOMETRY | _MATRICES else name
    return name if re.fullmatch(r"[A-Za-z_][\w.+-]*", name, re.ASCII) else _quote(name)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63):
        return repr(value)
    bare = isinstance(value, str) and re.fullmatch(r"[\w.:+/-]+", value, re.ASCII)
    if bare and value not in _TRUTH and not _looks_numeric(value) and not value.startswith("_JSON"):
        return str(value)
    quoted = isinstance(value, str) and re.fullmatch(r"[\w.:;+/()<>|&%#@!?*^~$ -]+", value, re.ASCII)
    if quoted and value == value.strip() and not any(_looks_numeric(part) or part in _TRUTH for part in value.split()):
        return _quote(str(value)) if not str(value).startswith(_JSON) else _quote(_JSON + json.dumps(value))
    return _quote(_JSON + json.dumps(value))


def _looks_numeric(text: str) -> bool:
    """Whether a reader may take a text for a number: also 1e400, 1_000, nan and infinity."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
