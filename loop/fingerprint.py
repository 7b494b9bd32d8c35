"""A crystal in a few numbers: formula, symmetry, and a geometry that small distortions hardly change.

Symmetry alone cannot recognise a crystal again: a displacement of 0.05 A takes every space group away. So equality is
decided by geometry within a formula, and equal symmetry only widens the tolerance.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Element, Structure
from pymatgen.optimization.neighbors import find_points_in_spheres
from scipy.special import ndtr

from loop.moyo import find_symmetry

SYMPRECS = (0.1, 0.01)  # Angstrom: loose and tight, for relaxed and for published crystals
RADII = np.linspace(0.75, 2.8, 8)  # in units of (volume per atom)^(1/3): the first shell to about the fourth
WIDTH = 0.1  # smoothing of each neighbour's distance, same unit: above a displacement of 0.05 A and a strain of 3 %
N_GEOMETRY = 3 * len(RADII)


@dataclass(frozen=True)
class Fingerprint:
    """What a crystal is recognised by."""

    formula: int  # 40-bit hash of the reduced formula
    geometry: np.ndarray  # (24,)
    volume: float  # A^3/atom
    symmetries: tuple[int, ...] = ()  # 32-bit hashes, one a symprec of `SYMPRECS`
    space_groups: tuple[int, ...] = ()  # at the same tolerances


def fingerprint(structure: Structure, *, with_symmetry: bool = True) -> Fingerprint:
    """Fingerprint of an ordered crystal: about 2 ms, half of it for symmetry."""
    found = [symmetry(structure, symprec) for symprec in SYMPRECS] if with_symmetry else []
    return Fingerprint(
        formula_key(structure),
        geometry(structure),
        structure.volume / len(structure),
        tuple(key for _, key in found),
        tuple(number for number, _ in found),
    )


def formula_key(structure: Structure) -> int:
    """40-bit hash of the reduced formula: among 10^5 formulas a strange one meets one of them once in 10^7."""
    return _hash(structure.composition.reduced_formula, 5)


def symmetry(structure: Structure, symprec: float) -> tuple[int, int]:
    """Space group number, and a 32-bit hash of it with the multiset of (element, multiplicity, site symmetry).

    Wyckoff letters change with the choice of origin (the Euclidean normaliser permutes them); site symmetries do not.
    Multiplicities are those of the primitive cell. (1, 0) where no symmetry is found.
    """
    found = find_symmetry(structure, symprec)  # of supercells, too: their site symmetries are right all the same
    if found is None:
        return 1, 0
    numbers = [site.specie.Z for site in structure]
    multiset = Counter(zip(numbers, found.site_symmetry_symbols, strict=True))
    per_primitive = len(found.prim_std_cell.numbers) / len(numbers)  # the cell at hand may be a supercell
    text = ";".join(f"{z}:{symbol}:{count * per_primitive:.0f}" for (z, symbol), count in sorted(multiset.items()))
    return int(found.number), _hash(f"{found.number}|{text}", 4)


def geometry(structure: Structure) -> np.ndarray:
    """Scale-free neighbour counts, shape (24,): each of 8 radii for three weights of a pair.

    With lengths in units of the cube root of the volume per atom, an entry is the mean over atoms of the neighbours
    closer than r, each smoothed by a Gaussian, relative to an ideal gas of the same density. Pairs weigh 1, w_i w_j and
    w_i + w_j, with w the standardised rank of the element on Pettifor's scale: the second and third tell decorations of
    one lattice apart (the product alone takes the three half-Heusler variants of a formula for one). It is a cumulative
    form of the fingerprint of Oganov and Valle (J. Chem. Phys. 130, 104504), so supercell, origin and orientation do
    not enter. Two crystals are compared by the largest difference of an entry.
    """
    scale = (structure.volume / len(structure)) ** (1 / 3)
    lattice = np.ascontiguousarray(structure.lattice.matrix)
    coords = np.mod(structure.frac_coords, 1.0) @ lattice  # far-away atoms would be looked for cell by cell
    cutoff = (RADII[-1] + 3 * WIDTH) * scale
    pbc = np.ones(3, dtype=np.int64)
    centers, neighbors, _, distances = find_points_in_spheres(coords, coords, r=cutoff, pbc=pbc, lattice=lattice)
    apart = distances > 1e-8
    centers, neighbors, distances = centers[apart], neighbors[apart], distances[apart]
    weights = _chemical_weights(structure)
    counts = ndtr((RADII[None, :] - distances[:, None] / scale) / WIDTH)  # (pairs, radii)
    pairs = np.stack(
        [np.ones(len(centers)), weights[centers] * weights[neighbors], weights[centers] + weights[neighbors]]
    )
    result: np.ndarray = ((pairs @ counts) / (len(structure) * 4 / 3 * np.pi * RADII**3)).ravel()
    return result


def _chemical_weights(structure: Structure) -> np.ndarray:
    numbers = np.array([site.specie.Z for site in structure])
    kinds, inverse = np.unique(numbers, return_inverse=True)
    if len(kinds) == 1:
        return np.zeros(len(numbers))
    # the heaviest elements have no Mendeleev number: they come last, by atomic number
    order = np.argsort([Element.from_Z(int(z)).mendeleev_no or 1000 + z for z in kinds], kind="stable")
    ranks = np.argsort(order)[inverse].astype(float)
    result: np.ndarray = (ranks - ranks.mean()) / ranks.std()
    return result


def _hash(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")
