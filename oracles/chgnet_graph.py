"""Many crystals as one CHGNet graph, built with array operations.

CHGNet's own converter builds Python objects edge by edge (4 ms for 10 atoms, 21 ms for 34); this one gives the same
graph, up to the order of its edges, in a tenth of that. Cutoffs and angles are those of Deng et al., Nat. Mach. Intell.
5, 1031 (2023), doi 10.1038/s42256-023-00716-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure
from pymatgen.optimization.neighbors import find_points_in_spheres

PERIODIC = np.ones(3, dtype=np.int64)
SELF_TOLERANCE = 1e-8  # A, below which a neighbour is the atom itself


@dataclass(frozen=True)
class GraphBatch:
    """Atoms, bonds and angles of several crystals, indices running through the batch.

    n atoms, g crystals, e directed bonds, u undirected bonds, s undirected bonds short enough for angles, t angles.
    """

    numbers: NDArray[np.int64]  # (n,)
    frac: NDArray[np.float64]  # (n, 3)
    lattice: NDArray[np.float64]  # (g, 3, 3), Angstrom
    owner: NDArray[np.int64]  # (n,) crystal of each atom
    n_atoms: NDArray[np.int64]  # (g,)
    center: NDArray[np.int64]  # (e,)
    neighbor: NDArray[np.int64]  # (e,)
    image: NDArray[np.int64]  # (e, 3) lattice translations of the neighbour
    undirected: NDArray[np.int64]  # (e,) undirected bond of each directed one
    directed: NDArray[np.int64]  # (u,) one directed bond of each undirected one
    short: NDArray[np.int64]  # (s,) undirected bonds that take part in angles
    angle_center: NDArray[np.int64]  # (t,)
    angle_bonds: NDArray[np.int64]  # (t, 2) positions in `short`
    angle_directed: NDArray[np.int64]  # (t, 2) directed bonds, both leaving the centre
    isolated: NDArray[np.bool_]  # (g,) whether some atom has no neighbour within the cutoff


def build_graph(structures: Sequence[Structure], bond_cutoff: float, angle_cutoff: float) -> GraphBatch:
    """Graph of a batch of ordered crystals; cutoffs in Angstrom."""
    n_atoms = np.array([len(structure) for structure in structures])
    offsets = np.concatenate([[0], np.cumsum(n_atoms)])
    owner = np.repeat(np.arange(len(structures)), n_atoms)
    frac = np.concatenate([structure.frac_coords for structure in structures])
    lattice = np.array([structure.lattice.matrix for structure in structures])
    neighbours = [_neighbours(structure, bond_cutoff) for structure in structures]
    center = np.concatenate([part[0] + offset for part, offset in zip(neighbours, offsets, strict=False)])
    neighbor = np.concatenate([part[1] + offset for part, offset in zip(neighbours, offsets, strict=False)])
    image = np.concatenate([part[2] for part in neighbours]).astype(np.int64)
    distance = np.concatenate([part[3] for part in neighbours])

    keep, directed, undirected = _pair(center, neighbor, image, int(offsets[-1]))
    center, neighbor, image, distance = center[keep], neighbor[keep], image[keep], distance[keep]
    left, right = _angles(center, undirected, distance[directed] < angle_cutoff)
    short, positions = np.unique(undirected[np.concatenate([left, right])], return_inverse=True)
    lonely = np.bincount(center, minlength=offsets[-1]) == 0
    return GraphBatch(
        numbers=np.concatenate([structure.atomic_numbers for structure in structures]).astype(np.int64),
        frac=frac,
        lattice=lattice,
        owner=owner,
        n_atoms=n_atoms,
        center=center,
        neighbor=neighbor,
        image=image,
        undirected=undirected,
        directed=directed,
        short=short,
        angle_center=center[left],
        angle_bonds=positions.reshape(2, -1).T,
        angle_directed=np.stack([left, right], axis=1),
        isolated=np.bincount(owner, weights=lonely, minlength=len(structures)) > 0,
    )


def _neighbours(structure: Structure, cutoff: float) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Directed bonds of one crystal: centres, neighbours, images, distances (Angstrom)."""
    coords = np.ascontiguousarray(structure.cart_coords, dtype=float)
    matrix = np.ascontiguousarray(structure.lattice.matrix, dtype=float)
    center, neighbor, image, distance = find_points_in_spheres(
        coords, coords, r=cutoff, pbc=PERIODIC, lattice=matrix, tol=SELF_TOLERANCE
    )
    other = (center != neighbor) | (distance > SELF_TOLERANCE)
    return center[other], neighbor[other], image[other], distance[other]


def _pair(center: NDArray, neighbor: NDArray, image: NDArray, n_atoms: int) -> tuple[NDArray, NDArray, NDArray]:
    """Match each directed bond with its reverse.

    Returns the directed bonds to keep (those whose reverse was found too: at the very cutoff round-off may lose one of
    the two, where its weight is zero anyway), one directed bond of each undirected one, and the undirected of each.
    """
    reach = int(np.abs(image).max(initial=0))
    base = 2 * reach + 1

    def encode(first: NDArray, second: NDArray, shift: NDArray) -> NDArray:
        code = first * n_atoms + second
        for axis in range(3):
            code = code * base + (shift[:, axis] + reach)
        return code

    key = np.minimum(encode(center, neighbor, image), encode(neighbor, center, -image))
    _, inverse, counts = np.unique(key, return_inverse=True, return_counts=True)
    keep = counts[inverse] == 2
    _, directed, undirected = np.unique(key[keep], return_index=True, return_inverse=True)
    return np.flatnonzero(keep), directed, undirected


def _angles(center: NDArray, undirected: NDArray, is_short: NDArray) -> tuple[NDArray, NDArray]:
    """Ordered pairs of different short directed bonds that leave the same atom."""
    bonds = np.flatnonzero(is_short[undirected])
    bonds = bonds[np.argsort(center[bonds], kind="stable")]
    _, start, size = np.unique(center[bonds], return_index=True, return_counts=True)
    size_of_bond, start_of_bond = np.repeat(size, size), np.repeat(start, size)
    left = np.repeat(np.arange(len(bonds)), size_of_bond)
    first = np.repeat(np.cumsum(size_of_bond) - size_of_bond, size_of_bond)
    right = np.repeat(start_of_bond, size_of_bond) + np.arange(len(left)) - first
    different = left != right
    return bonds[left[different]], bonds[right[different]]
