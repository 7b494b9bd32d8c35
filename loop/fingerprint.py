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
from scipy.special import ndtr

SYMPRECS = (0.1, 0.01)  # Angstrom: loose and tight, for relaxed and for published crystals
_CUTOFF = 2.4  # in units of (volume per atom)^(1/3)
_RADII = np.linspace(0.75, _CUTOFF, 12)
_WIDTH = 0.07  # smoothing of each neighbour's distance, same unit
N_GEOMETRY = 2 * len(_RADII)


@dataclass(frozen=True)
class Symmetry:
    """Space group, and a hash of the multiset of (element, multiplicity, site symmetry): free of the origin's choice.

    Wyckoff letters change with the origin (the Euclidean normaliser permutes them); site symmetries do not.
    """

    number: int
    sites: int  # 32-bit hash


def formula_key(structure: Structure) -> int:
    """64-bit hash of the reduced formula."""
    return _hash(structure.composition.reduced_formula, 8)


def _hash(text: str, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest(), "big")


def symmetry(structure: Structure, symprec: float) -> Symmetry:
    """Symmetry found by moyopy; P1 without sites where the search fails."""
    import moyopy

    numbers = [site.specie.Z for site in structure]
    cell = moyopy.Cell(structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), numbers)
    try:
        found = moyopy.MoyoDataset(cell, symprec=symprec)
    except Exception:  # moyopy raises bare exceptions of several kinds where no cell is found
        return Symmetry(1, 0)
    multiset = Counter(zip(numbers, found.site_symmetry_symbols, strict=True))
    per_primitive = len(found.prim_std_cell.numbers) / len(numbers)  # the input may be a supercell
    text = ";".join(
        f"{z}:{symbol}:{round(count * per_primitive, 3)}" for (z, symbol), count in sorted(multiset.items())
    )
    return Symmetry(int(found.number), _hash(text, 4))


def geometry(structure: Structure) -> np.ndarray:
    """Scale-free neighbour counts, shape (24,): 12 of all pairs, then 12 weighted by chemistry.

    With lengths in units of the cube root of the volume per atom, entry r is the mean number of neighbours closer than
    r, each smoothed by a Gaussian, relative to an ideal gas of the same density. In the second half each pair counts
    w_i w_j, with w the standardised rank of the element on Pettifor's scale: it tells decorations of one lattice apart.
    The cumulative and smoothed form of the structure fingerprint of Oganov and Valle (J. Chem. Phys. 130, 104504).
    """
    scale = (structure.volume / len(structure)) ** (1 / 3)
    centers, neighbors, _, distances = structure.get_neighbor_list(_CUTOFF * scale * 1.1)
    weights = _chemical_weights(structure)
    counts = ndtr((_RADII[None, :] - distances[:, None] / scale) / _WIDTH)  # (pairs, radii)
    ideal = len(structure) * 4 / 3 * np.pi * _RADII**3
    pair = weights[centers] * weights[neighbors]
    return np.concatenate([counts.sum(axis=0) / ideal, pair @ counts / ideal])


def _chemical_weights(structure: Structure) -> np.ndarray:
    numbers = np.array([site.specie.Z for site in structure])
    ranked = sorted(set(numbers.tolist()), key=lambda z: Element.from_Z(z).mendeleev_no)
    ranks = np.array([ranked.index(z) for z in numbers], dtype=float)
    return (ranks - ranks.mean()) / ranks.std() if len(ranked) > 1 else np.zeros(len(ranks))
