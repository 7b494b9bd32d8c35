"""Crystals as the published CrystalFormer tokenised them, for its checkpoints and its likelihood.

The published pipeline took the origin and the representative of each site as pymatgen, spglib and pyxtal returned them;
the likelihood of its models depends on that choice. This follows the same steps with the same libraries, pyxtal's part
(`pyxtal.from_seed`, version 1.0.7) on our tables. For anything else use `generator.representation.tokens`, whose choice
is canonical and which is some fifty times faster.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from generator.representation.tokens import ATOM_TYPES, MAX_SITES, CrystalBatch, TokenError, cell_parameters
from generator.representation.wyckoff import letter_index, project, symmetrize_lattice, tables

if TYPE_CHECKING:
    from pymatgen.core import Structure

_SYMPREC, _RETRY_SYMPREC = 0.01, 1e-4  # Angstrom
_SNAP = 1e-4  # of coordinates to 1/3 and 2/3, relative
_ROUNDING = 1e-12
_ANGLE_TOLERANCE = 5.0  # degrees, pymatgen's and pyxtal's default


def tokenize_published(structure: Structure, max_sites: int = MAX_SITES) -> CrystalBatch:
    """Tokenise a structure as the published code did.

    Raises:
        TokenError: of kind disordered, unsupported-element, symmetry-failed or too-many-sites.
    """
    if not structure.is_ordered:
        raise TokenError("disordered", f"{structure.formula} has partial occupancies; ordered crystals were expected")
    if any(not 0 < getattr(site.specie, "Z", 0) < ATOM_TYPES for site in structure):
        raise TokenError("unsupported-element", f"{structure.formula}: expected elements 1..{ATOM_TYPES - 1}")
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib announces its next error handling on every call
        try:
            refined = SpacegroupAnalyzer(_as_parsed(structure), symprec=_SYMPREC).get_refined_structure()
        except Exception as error:  # pymatgen and spglib raise whatever they meet
            raise TokenError("symmetry-failed", f"{structure.formula}: {error}") from error
        try:
            return _tokenize(refined, _SYMPREC, max_sites)
        except TokenError as error:
            if error.kind != "symmetry-failed":
                raise
            return _tokenize(refined, _RETRY_SYMPREC, max_sites)


def _as_parsed(structure: Structure) -> Structure:
    """The structure as pymatgen's CIF parser gives it: orientation, order of sites and rounding decide the origin."""
    from pymatgen.core import Lattice, Structure

    coordinates = structure.frac_coords.copy()
    for ideal in (1 / 3, 2 / 3):
        coordinates[np.abs(coordinates / ideal - 1) < _SNAP] = ideal
    lattice = Lattice.from_parameters(*np.round(structure.lattice.parameters, 10))
    return Structure(lattice, structure.species, np.mod(coordinates, 1.0)).get_sorted_structure()


def _tokenize(refined: Structure, symprec: float, max_sites: int) -> CrystalBatch:
    cell = (refined.lattice.matrix, refined.frac_coords, refined.atomic_numbers)
    first = _dataset(cell, symprec)
    standard = int(tables().hall_numbers[first.number])
    if standard != first.hall_number:
        first = _dataset(cell, symprec, standard)
    second = _dataset((first.std_lattice, first.std_positions, first.std_types), symprec)
    if standard != second.hall_number:
        second = _dataset((first.std_lattice, first.std_positions, first.std_types), symprec, standard)
    g, rows = int(second.number), []
    for atom in np.unique(second.equivalent_atoms):
        w = letter_index(second.wyckoffs[atom])
        x = _first_representative(g, w, first.std_positions[atom], symprec)
        rows.append((w, *x.tolist(), int(first.std_types[atom])))
    n = len(rows)
    if n > max_sites:
        raise TokenError("too-many-sites", f"{n} inequivalent sites, at most {max_sites} were expected")
    rows.sort(key=lambda row: row[:4])
    W, A = np.zeros((2, 1, max_sites + 1), np.int8)
    XYZ = np.zeros((1, max_sites + 1, 3))
    W[0, :n], XYZ[0, :n], A[0, :n] = [r[0] for r in rows], [r[1:4] for r in rows], [r[4] for r in rows]
    lattice = _mean_lattice(g, cell_parameters(np.asarray(first.std_lattice)))
    lattice[:3] /= tables().multiplicity[g, W[0]].sum() ** (1 / 3)
    return CrystalBatch(np.array([g], np.int16), W, A, XYZ, lattice[None])


def _dataset(cell: tuple[Any, Any, Any], symprec: float, hall_number: int = 0) -> Any:
    import spglib

    try:
        found = spglib.get_symmetry_dataset(cell, symprec, angle_tolerance=_ANGLE_TOLERANCE, hall_number=hall_number)
    except Exception as error:
        raise TokenError("symmetry-failed", f"no space group found at tolerance {symprec} A: {error}") from error
    if found is None:
        raise TokenError("symmetry-failed", f"no space group found at tolerance {symprec} A")
    return found


def _first_representative(g: int, w: int, x: np.ndarray, tolerance: float) -> np.ndarray:
    """The first image of x, in the order of the group's operators, that satisfies op0(x) = x within a tolerance."""
    images = project(tables().general_ops(g), x)
    residual = images - project(tables().op0[g, w], images)
    found = np.flatnonzero(np.abs(residual - np.rint(residual)).sum(-1) < tolerance)
    if len(found) == 0:
        raise TokenError("symmetry-failed", f"no image of {x} lies on Wyckoff position {g}/{w}")
    point = images[found[0]] - np.floor(images[found[0]])
    return np.where(point > 1 - _ROUNDING, 0.0, point)


def _mean_lattice(g: int, parameters: np.ndarray) -> np.ndarray:
    """`symmetrize_lattice` with equal lengths averaged."""
    if g >= 195:
        parameters[:3] = parameters[:3].mean()
    elif g >= 75:
        parameters[:2] = parameters[:2].mean()
    return symmetrize_lattice(g, parameters)
