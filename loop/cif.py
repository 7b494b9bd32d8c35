"""The CIF format: a fast path for plain P1 files, pymatgen for the rest."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from loop.errors import InputError

_CELL_KINDS = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
_SITE_TAGS = ["fract_x", "fract_y", "fract_z", "type_symbol", "?occupancy"]
_SYMMETRY_TAGS = ("_symmetry_equiv_pos_as_xyz", "_space_group_symop_operation_xyz")
_NAME_TAGS = (
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_alt",
    "_symmetry_Int_Tables_number",
    "_space_group_IT_number",
)
_P1_NAMES = {"P1", "1", "?", "."}

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Cell (3, 3) with row vectors in Angstrom, atomic numbers (n,) and fractional coordinates (n, 3)."""


class DisorderedError(InputError):
    """The crystal has partial occupancies or unknown species."""


def parse_cif(text: str) -> Arrays:
    """Cell, atomic numbers and fractional coordinates of the first crystal of a CIF.

    A CIF in P1 with full occupancies is read straight from its loop, which is some ten times faster; any other goes
    through pymatgen, symmetry expanded.

    Raises:
        InputError: no crystal can be made of the text (`DisorderedError`: it is disordered).
    """
    try:
        arrays = _parse_p1(text)
    except IndexError as error:  # of gemmi's C++, for loops without values
        raise InputError(f"unreadable CIF: {error}") from error
    return _parse_by_pymatgen(text) if arrays is None else arrays


def cif_blocks(text: str) -> list[tuple[str, str]]:
    """Name and text of the data blocks that hold atoms; one nameless block where the text is no CIF."""
    import gemmi

    try:
        document = gemmi.cif.read_string(text)
    except (ValueError, RuntimeError, IndexError):
        return [("", text)]
    blocks = [block for block in document if block.find("_atom_site_", ["fract_x"])]
    return [(block.name, block.as_string()) for block in blocks] or [("", text)]


def _parse_by_pymatgen(text: str) -> Arrays:
    from pymatgen.io.cif import CifParser

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure = CifParser.from_str(text).parse_structures(primitive=False, on_error="raise")[0]
    except Exception as error:  # the parser raises whatever its libraries raise
        raise InputError(f"unreadable CIF: {type(error).__name__}: {error}") from error
    if not structure.is_ordered:
        raise DisorderedError(f"expected full occupancies, found a disordered crystal: {structure.formula}")
    numbers = np.array([getattr(site.specie, "Z", 0) for site in structure])
    if (numbers < 1).any():
        raise DisorderedError(f"expected atoms of known elements, found {structure.formula}")
    return structure.lattice.matrix, numbers, structure.frac_coords


def _parse_p1(text: str) -> Arrays | None:
    """Read a plain P1 CIF; None where anything is unusual."""
    import gemmi

    number = gemmi.cif.as_number
    try:
        block = gemmi.cif.read_string(text).sole_block()
        if not _is_p1(block):
            return None
        cell = gemmi.UnitCell(*(number(block.find_value(f"_cell_{kind}")) for kind in _CELL_KINDS))
        table = block.find("_atom_site_", _SITE_TAGS)
        if len(table) == 0 or (table.has_column(4) and any(number(value) != 1.0 for value in table.column(4))):
            return None
        numbers = np.array([gemmi.Element(value).atomic_number for value in table.column(3)])
        coordinates = np.array([[number(value) for value in table.column(axis)] for axis in range(3)]).T
    except (ValueError, RuntimeError, TypeError):
        return None
    basis = np.array(cell.orth.mat.tolist()).T
    finite = np.isfinite(basis).all() and np.isfinite(coordinates).all()
    return (basis, numbers, coordinates) if finite and numbers.min() > 0 and cell.volume > 0 else None


def _is_p1(block: Any) -> bool:
    """Whether the identity is the only symmetry that the block states, by operators or by name."""
    for tag in _SYMMETRY_TAGS:
        operators = list(block.find_values(tag))
        if operators:
            return len(operators) == 1 and operators[0].strip("'\" ").replace(" ", "").lower() == "x,y,z"
    names = [name for name in (block.find_value(tag) for tag in _NAME_TAGS) if name]
    return bool(names) and all(name.strip("'\" ").replace(" ", "") in _P1_NAMES for name in names)
