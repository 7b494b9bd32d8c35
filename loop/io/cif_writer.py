"""CIFs as this program writes them, so that all readers see the crystal that is held.

In a table each crystal stands as held: its atoms and its cell in P1 (`to_cif`). A file of its own holds the
conventional cell with symbol, number and operators of its space group (`to_symmetrised_cif`), if that text, read
again, gives the crystal that is held; in P1 otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from loop.moyo import find_symmetry

if TYPE_CHECKING:
    from pymatgen.core import Structure

# A. How far an atom, or a vector of the cell, may move where a symmetry is written down; what is found at the first
# tolerance and moves nothing further is taken.
MOVED = 0.01
TOLERANCES = (0.01, 1e-3, 1e-4)
_ON_SITE = 1e-6  # of a lattice vector: images of a standardised atom that are one point

_HEADER = """data_{formula}
_symmetry_space_group_name_H-M   '{symbol}'
_symmetry_space_group_name_Hall   {hall}
_symmetry_Int_Tables_number   {number}
_chemical_formula_sum   '{formula_sum}'
_cell_formula_units_Z   {z}
_cell_length_a   {0:.8f}
_cell_length_b   {1:.8f}
_cell_length_c   {2:.8f}
_cell_angle_alpha   {3:.8f}
_cell_angle_beta   {4:.8f}
_cell_angle_gamma   {5:.8f}
_cell_volume   {volume:.6f}
loop_
 _symmetry_equiv_pos_site_id
 _symmetry_equiv_pos_as_xyz
"""
_SITES = """loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_symmetry_multiplicity
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
"""


class _Sites(NamedTuple):
    """Inequivalent atoms of a cell."""

    symbols: Sequence[str]
    multiplicities: Sequence[int]
    coordinates: np.ndarray  # (n, 3), fractional


def to_cif(structure: Structure) -> str:
    """An ordered structure as CIF in P1, its atoms and cell as they are but for the cell's orientation.

    A left-handed cell is turned over, since lengths and angles describe a right-handed one. Oxidation states are left
    out. Some hundred times faster than pymatgen's.
    """
    import gemmi

    coordinates = structure.frac_coords
    if np.linalg.det(structure.lattice.matrix) < 0:
        coordinates = -coordinates
    symbols = [site.specie.symbol for site in structure]
    sites = _Sites(symbols, [1] * len(symbols), coordinates)
    return _text(structure.lattice.parameters, gemmi.get_spacegroup_reference_setting(1), ("x,y,z",), sites)


def to_symmetrised_cif(structure: Structure) -> str:
    """An ordered structure as CIF in the standard setting of its space group, one line per orbit.

    The setting is that of the International Tables: unique axis b, hexagonal axes, origin on an inversion centre. What
    is found at the first of `TOLERANCES` that moves no atom by more than `MOVED` is taken, and read again by its
    operators; P1 where no reading gives the atoms that are held.
    """
    for tolerance in TOLERANCES:
        found = find_symmetry(structure, tolerance, setting=_standard())
        text = None if found is None or found.number == 1 else _standardised(found)
        if text is not None and _reads_as(text, structure, found):
            return text
    return to_cif(structure)


def _standard() -> Any:
    from moyopy import Setting

    return Setting.standard()


def _standardised(found: Any) -> str | None:
    """The standard cell that was found, as text; None where the group's operators do not keep it."""
    import gemmi
    from ase.data import chemical_symbols

    cell = found.std_cell
    numbers, points = np.array(cell.numbers), np.array(cell.positions) % 1.0
    orbits = _orbits(numbers, points, _operators(found.number))
    if orbits is None:
        return None
    first = [orbit[0] for orbit in orbits]
    sites = _Sites([chemical_symbols[z] for z in numbers[first]], [len(orbit) for orbit in orbits], points[first])
    group = gemmi.get_spacegroup_reference_setting(found.number)
    return _text(_parameters(np.array(cell.basis)), group, [op.triplet() for op in group.operations()], sites)


@cache
def _operators(number: int) -> np.ndarray:
    """Operators (k, 3, 4) of a space group in its standard setting, on fractional coordinates."""
    import gemmi

    return np.array([op.float_seitz() for op in gemmi.get_spacegroup_reference_setting(number).operations()])[:, :3]


def _orbits(numbers: np.ndarray, points: np.ndarray, operators: np.ndarray) -> list[list[int]] | None:
    """Atoms by orbit; None where an image is no atom of the cell, or one of another element."""
    orbits: list[list[int]] = []
    left = dict.fromkeys(range(len(points)))
    while left:
        atom = next(iter(left))
        images = operators[:, :, :3] @ points[atom] + operators[:, :, 3]
        difference = images[:, None] - points
        same = (np.abs(difference - np.round(difference)) < _ON_SITE).all(-1)  # (operators, atoms)
        orbit = np.flatnonzero(same.any(0)).tolist()
        if not (same.sum(1) == 1).all() or (numbers[orbit] != numbers[atom]).any() or not set(orbit) <= set(left):
            return None
        orbits.append(sorted(orbit))
        for member in orbit:
            del left[member]
    return orbits


def _text(parameters: Sequence[float], group: Any, operators: Sequence[str], sites: _Sites) -> str:
    import gemmi
    from pymatgen.core import Composition

    counts: Counter[str] = Counter()
    for symbol, multiplicity in zip(sites.symbols, sites.multiplicities, strict=True):
        counts[symbol] += multiplicity
    z = gcd(*counts.values())
    formula = [f"{symbol}{counts[symbol] // z if counts[symbol] > z else ''}" for symbol in _hill(counts)]
    header = _HEADER.format(
        *parameters,
        formula="".join(Composition(counts).reduced_formula.split()),
        formula_sum=" ".join(formula),
        z=z,
        symbol=group.xhm(),
        hall=gemmi.cif.quote(group.hall),
        number=group.number,
        volume=gemmi.UnitCell(*parameters).volume,
    )
    listed = "".join(f"  {number}  '{operator.replace(',', ', ')}'\n" for number, operator in enumerate(operators, 1))
    places = zip(sites.symbols, sites.multiplicities, sites.coordinates.tolist(), strict=True)
    rows = (
        f"  {symbol}  {symbol}{number}  {multiplicity}  {x:.10f}  {y:.10f}  {z:.10f}  1\n"
        for number, (symbol, multiplicity, (x, y, z)) in enumerate(places, 1)
    )
    return header + listed + _SITES + "".join(rows)


def _hill(counts: Counter[str]) -> list[str]:
    """Elements in Hill's order, that of CIF: carbon, then hydrogen, then the alphabet; without carbon the alphabet."""
    first = [symbol for symbol in ("C", "H") if symbol in counts] if "C" in counts else []
    return first + sorted(set(counts) - set(first))


def _reads_as(text: str, held: Structure, found: Any) -> bool:
    """Whether the text, expanded by gemmi, gives the held crystal within `MOVED`, no atom more, none less."""
    import gemmi

    linear, shift = np.array(found.std_linear), np.array(found.std_origin_shift)
    expected = gemmi.UnitCell(*_parameters(linear.T @ held.lattice.matrix))
    read = gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block())
    atoms = read.get_all_unit_cell_sites()
    basis = np.array(read.cell.orth.mat.tolist()).T
    if len(atoms) != round(len(held) * abs(np.linalg.det(linear))):
        return False
    if np.abs(basis - np.array(expected.orth.mat.tolist()).T).max() > MOVED:
        return False
    points = np.array([atom.fract.tolist() for atom in atoms])
    numbers = np.array([atom.element.atomic_number for atom in atoms])
    apart = _distances(points, points, basis) + 3 * MOVED * np.eye(len(points))
    away = _distances(points @ linear.T + shift, held.frac_coords, held.lattice.matrix)
    away[numbers[:, None] != np.array(held.atomic_numbers)] = np.inf
    return bool(apart.min() > 2 * MOVED and away.min(axis=1).max() <= MOVED)


def _parameters(matrix: np.ndarray) -> tuple[float, ...]:
    from pymatgen.core import Lattice

    return Lattice(matrix).parameters


def _distances(some: np.ndarray, others: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """Distances (n, m) in Angstrom of points in a periodic cell: right for those much shorter than the cell."""
    difference = some[:, None] - others
    result: np.ndarray = np.linalg.norm((difference - np.round(difference)) @ basis, axis=-1)
    return result
