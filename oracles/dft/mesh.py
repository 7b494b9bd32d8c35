"""Meshes of k-points that are as symmetric as the crystal, wherever they can be."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from loop.moyo import find_symmetry

# Points of the highest site symmetry have multiples of 1/8 or of 1/12 as coordinates in the standard settings of all
# space groups (International Tables A), seen from the standard origin.
ORIGIN_STEPS = (8, 12)
CUBIC = 195  # first of the cubic space groups
SAME = 1e-4  # fractional coordinates and translations


def mesh_size(lattice: np.ndarray, spacing: float, *, even: bool = False) -> NDArray[np.int64]:
    """Points along each reciprocal vector so that neighbours are at most `spacing` apart.

    Args:
        lattice: rows are lattice vectors, Angstrom; shape (3, 3).
        spacing: 1/Angstrom, 2 pi included.
        even: round up to even numbers.
    """
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(lattice).T, axis=1)
    size = np.maximum(1, np.ceil(lengths / spacing - 1e-9)).astype(np.int64)
    result: np.ndarray = size + size % 2 if even else size
    return result


def monkhorst_pack(size: np.ndarray, shift: tuple[int, int, int] | np.ndarray = (0, 0, 0)) -> np.ndarray:
    """Fractional k-points of shape (n, 3): i/size, each axis moved by half a step where `shift` is 1.

    Monkhorst and Pack, Phys. Rev. B 13, 5188 (1976); without a shift the mesh holds Gamma.
    """
    axes = [(np.arange(n) + 0.5 * s) / n for n, s in zip(size, shift, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    result: np.ndarray = points - np.rint(points)
    return result


def response_mesh(cell: Structure, spacing: float, symprec: float) -> np.ndarray:
    """Even mesh moved off Gamma along all axes; fractional points (n, 3) of the crystal's primitive cell.

    Sums over the zone converge far faster on it: Si has 13.4 at 8 x 8 x 8 points with Gamma, 12.3 without, and 12.5 at
    12 x 12 x 12; GaAs 23.5 and 12.5 (docs/dft.md). In cubic face-centred and hexagonal lattices it lacks some of the
    crystal's symmetry: single components may differ a little where they should not, their mean does not care.
    """
    return Frame.of(cell, spacing, symprec, even=True).mesh(spacing, even=True)


def gamma_mesh(cell: Structure, spacing: float, symprec: float) -> np.ndarray:
    """Mesh with Gamma; fractional points (n, 3) of the crystal's primitive cell."""
    return Frame.of(cell, spacing, symprec).mesh(spacing)


@dataclass(frozen=True)
class Frame:
    """Axes along which a mesh has the crystal's symmetry: those of the primitive cell or of the conventional one.

    Points along the primitive vectors of a body-centred tetragonal or orthorhombic or of a face-centred orthorhombic
    lattice break its symmetry where their numbers differ, so that little but time reversal saves work: with the preset
    `converged` 221 points of 441 are left of a CaCl2 in I4_1/amd, and 32 of 216 along the conventional vectors.
    """

    lattice: np.ndarray  # (3, 3), rows: the axes, Angstrom
    linear: np.ndarray  # (3, 3), columns: the axes in terms of the primitive cell's
    rotations: NDArray[np.int64]  # (m, 3, 3), the crystal's, acting on fractional coordinates of the primitive cell

    @classmethod
    def of(cls, cell: Structure, spacing: float, symprec: float, *, even: bool = False) -> Frame:
        """The primitive cell's own axes if the mesh along them is symmetric, or if no other is.

        Cubic crystals keep their own: the errors in results/dft are those of such meshes.
        """
        found = find_symmetry(cell, symprec)
        identity = np.eye(3)
        if found is None:
            return cls(cell.lattice.matrix, identity, identity[None].astype(np.int64))
        rotations = np.array(found.operations.rotations, dtype=np.int64)
        linear = np.array(found.std_linear)
        own = cls(cell.lattice.matrix, identity, rotations)
        # else the cell is no primitive one of this symmetry, and the conventional axes span no multiple of it
        whole = np.allclose(linear, np.rint(linear), atol=SAME) and abs(np.linalg.det(linear)) > 0.5
        if found.number >= CUBIC or not whole or own.keeps(own.mesh(spacing, even=even)):
            return own
        other = cls(linear.T @ cell.lattice.matrix, np.rint(linear), rotations)
        return other if other.keeps(other.mesh(spacing, even=even)) else own

    def mesh(self, spacing: float, *, even: bool = False) -> np.ndarray:
        """Points at most `spacing` (1/Angstrom) apart along the axes; even: an even number, half a step off Gamma."""
        size = mesh_size(self.lattice, spacing, even=even)
        points = monkhorst_pack(size, (1, 1, 1) if even else (0, 0, 0))
        cells = round(abs(np.linalg.det(self.linear)))  # primitive ones in that of the axes
        if cells == 1 and np.allclose(self.linear, np.eye(3)):
            return points
        # the reciprocal lattice of the axes is finer than the primitive cell's: the mesh once around each of its points
        corners = np.array(list(itertools.product(range(cells), repeat=3)))
        everywhere = (points[:, None] + corners[None]).reshape(-1, 3) @ np.linalg.inv(self.linear)
        within = everywhere - np.rint(everywhere)
        _, first = np.unique(_keys(within), axis=0, return_index=True)
        result: np.ndarray = within[np.sort(first)]
        return result

    def keeps(self, points: np.ndarray) -> bool:
        """Whether each operation of the crystal takes the mesh (n, 3) to itself."""
        mesh = {tuple(key) for key in _keys(points)}
        return all(tuple(key) in mesh for turn in self.rotations for key in _keys(points @ turn))


def centred(cell: Structure, symprec: float) -> Structure:
    """The crystal seen from the point about which operations save most k-points; axes and order of atoms stay.

    GPAW makes use of operations without a translation alone, and of time reversal, which does for k-points what
    inversion does. In diamond 24 operations keep an atom in place, without inversion among them, and 12 the centre of a
    bond, the standard origin.

    Args:
        cell: exactly symmetric, as `oracles.symmetry.primitive` gives it.
        symprec: in Angstrom.
    """
    found = find_symmetry(cell, symprec)
    if found is None:
        return cell
    rotations = np.array(found.operations.rotations)
    steps = np.concatenate([np.array(list(itertools.product(range(n), repeat=3))) / n for n in ORIGIN_STEPS])
    origins = np.array(found.prim_std_origin_shift) + steps
    left = np.einsum("kij,nj->nki", rotations - np.eye(3), origins) + np.array(found.operations.translations)
    kept = (np.abs(left - np.rint(left)) < SAME).all(axis=2)
    inversion = kept[:, (rotations == -np.eye(3)).all(axis=(1, 2))].any(axis=1)
    of_points = kept.sum(axis=1) * np.where(inversion, 1, 2)
    best = origins[of_points.argmax()]  # of equals the first, the standard origin itself where it is among them
    return Structure(cell.lattice, cell.species, np.mod(cell.frac_coords - best, 1.0))


def _keys(points: np.ndarray) -> NDArray[np.int64]:
    """Whole numbers that are the same for points (n, 3) a reciprocal lattice vector apart."""
    scale = 2**20  # no fraction of a mesh lies halfway between two whole numbers
    result: NDArray[np.int64] = np.mod(np.rint(points * scale), scale).astype(np.int64)
    return result
