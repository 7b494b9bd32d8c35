"""Reading and writing crystals as users keep them.

A source is a CSV or CSV.gz with a `cif` column, an extxyz file, one CIF, or a folder of CIFs. Every crystal keeps the
id of its row; a row that cannot be read is listed with its reason while the rest goes on.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loop.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

CIF_COLUMN = "cif"
ID_COLUMNS = ("material_id", "id")

_CELL_KINDS = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
_CELL_TAGS = tuple(f"_cell_{kind}" for kind in _CELL_KINDS)
_SITE_TAGS = ("fract_x", "fract_y", "fract_z", "type_symbol", "?occupancy")
_SYMMETRY_TAGS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
_NAME_TAGS = (
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_alt",
    "_symmetry_Int_Tables_number",
    "_space_group_IT_number",
)
_P1_NAMES = {"P1", "1", "?", "."}


def parse_cif(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cell (3, 3) with row vectors in Angstrom, atomic numbers (n,) and fractional coordinates (n, 3) of a CIF.

    A CIF in P1 with full occupancies is read straight from its loop, which is some ten times faster; any other goes
    through pymatgen.

    Raises:
        InputError: no crystal can be made of the text, or it is disordered.
    """
    arrays = _parse_p1(text)
    if arrays is not None:
        return arrays
    structure = structure_from_cif(text)
    if not structure.is_ordered:
        raise InputError(f"expected full occupancies, found a disordered crystal: {structure.formula}")
    return structure.lattice.matrix, np.array(structure.atomic_numbers), structure.frac_coords


def structure_from_cif(text: str) -> Structure:
    """The first structure of a CIF, with symmetry expanded, by pymatgen's parser.

    Raises:
        InputError: pymatgen cannot make a structure of it.
    """
    import warnings

    from pymatgen.io.cif import CifParser

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return CifParser.from_str(text).parse_structures(primitive=False, on_error="raise")[0]
    except Exception as error:  # the parser raises whatever its libraries raise
        raise InputError(f"unreadable CIF: {type(error).__name__}: {error}") from error


def _parse_p1(text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Read a plain P1 CIF; None where anything is unusual."""
    import gemmi

    try:
        block = gemmi.cif.read_string(text).sole_block()
        if not _is_p1(block):
            return None
        cell = gemmi.UnitCell(*(gemmi.cif.as_number(block.find_value(tag)) for tag in _CELL_TAGS))
        table = block.find("_atom_site_", list(_SITE_TAGS))
        if len(table) == 0:
            return None
        if table.has_column(4) and any(gemmi.cif.as_number(value) != 1.0 for value in table.column(4)):
            return None
        numbers = np.array([gemmi.Element(value).atomic_number for value in table.column(3)])
        columns = [[gemmi.cif.as_number(value) for value in table.column(axis)] for axis in range(3)]
    except (ValueError, RuntimeError):
        return None
    basis, coordinates = np.array(cell.orth.mat.tolist()).T, np.array(columns).T
    if not (np.isfinite(basis).all() and np.isfinite(coordinates).all() and numbers.min() > 0 and cell.volume > 0):
        return None
    return basis, numbers, coordinates


def _is_p1(block: object) -> bool:
    """Whether the identity is the only symmetry that the block states, by operators or by name."""
    for tag in _SYMMETRY_TAGS:
        operators = list(block.find_values(tag))  # type: ignore[attr-defined]
        if operators:
            return len(operators) == 1 and operators[0].strip("'\" ").replace(" ", "").lower() == "x,y,z"
    names = [block.find_value(tag) for tag in _NAME_TAGS]  # type: ignore[attr-defined]
    return any(names) and all(name.strip("'\" ").replace(" ", "") in _P1_NAMES for name in names if name)


def read_frame(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """A CSV or CSV.gz with a `cif` column, and the id of each row.

    The id is the column `material_id` or `id` where there is one, else the row number from 0.

    Raises:
        InputError: there is no such file, it is no CSV, or it has no column `cif`.
    """
    import pandas as pd

    if not path.is_file():
        raise InputError(f"expected a CSV file with a column {CIF_COLUMN!r} at {path}, there is no such file")
    try:
        # the formula NaN (sodium mononitride) is real: only an empty field is missing
        frame = pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError, EOFError, UnicodeError, zlib.error) as error:
        raise InputError(f"expected a CSV file at {path}, cannot read it: {error}") from error
    if CIF_COLUMN not in frame:
        raise InputError(f"expected a column {CIF_COLUMN!r} in {path}, found {', '.join(map(str, frame.columns))}")
    return frame, row_ids(frame)


def row_ids(frame: pd.DataFrame) -> list[str]:
    """The ids of the rows: column `material_id`, else `id`, else the row number."""
    for column in ID_COLUMNS:
        if column in frame:
            numbers = (str(i) for i in range(len(frame)))
            return [
                n if missing else str(v)
                for v, missing, n in zip(frame[column], frame[column].isna(), numbers, strict=True)
            ]
    return [str(i) for i in range(len(frame))]
