"""Space groups of crystals, by moyopy, and what they say of atoms, forces and stress."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element, Structure

from loop.moyo import find_symmetry

_ELEMENTS = {element.Z: element for element in Element}
CELLS_AT_ONCE = 4_000_000  # numbers held at a time while atoms are matched


@dataclass(frozen=True)
class Group:
    """Symmetry operations of one crystal, m of them, and what each does to its n atoms.

    Operation k takes atom i at fractional position x to ``rotations[k] @ x + t``, which is that of atom
    ``permutation[k, i]`` moved by the lattice vectors ``shift[k, i]``.
    """

    rotations: NDArray[np.int64]  # (m, 3, 3), acting on fractional coordinates
    permutation: NDArray[np.int64]  # (m, n)
    shift: NDArray[np.int64]  # (m, n, 3)

    @classmethod
    def trivial(cls, n_atoms: int) -> Group:
        """The identity alone."""
        atoms = np.arange(n_atoms)[None]
        return cls(np.eye(3, dtype=np.int64)[None], atoms, np.zeros((1, n_atoms, 3), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rotations)

    def cartesian(self, lattice: np.ndarray) -> np.ndarray:
        """Matrices (m, 3, 3) that rotate row vectors in Cartesian axes; lattice (3, 3) with row vectors in Angstrom."""
        result: np.ndarray = np.linalg.inv(lattice) @ self.rotations.transpose(0, 2, 1) @ lattice
        return result

    def symmetrise(self, forces: np.ndarray, stress: np.ndarray, lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean over the group of forces (n, 3) and stress (3, 3): their part that keeps the symmetry."""
        turns = self.cartesian(lattice)
        mean = np.zeros_like(forces)
        np.add.at(mean, self.permutation.ravel(), (forces @ turns).reshape(-1, 3))
        return mean / len(self), (turns.transpose(0, 2, 1) @ stress @ turns).mean(axis=0)


def space_group(structure: Structure, symprec: float) -> int:
    """International number of the space group, 1 where none is found; `symprec` in Angstrom."""
    found = find_symmetry(structure, symprec)
    return 1 if found is None else int(found.number)


def primitive(structure: Structure, symprec: float) -> Structure:
    """The primitive cell of a crystal, made exactly symmetric; the crystal itself where no symmetry is found.

    Args:
        structure: ordered, with finite coordinates.
        symprec: in Angstrom; atoms move by less than that.
    """
    return reduced(structure, symprec).primitive


@dataclass(frozen=True)
class Reduced:
    """A crystal of n atoms in its primitive cell of m atoms, and the way back into the cell that was given."""

    primitive: Structure
    rotation: np.ndarray  # (3, 3), takes Cartesian column vectors of the given crystal to those of the primitive cell
    linear: np.ndarray  # (3, 3), columns: vectors of the primitive cell in terms of the given ones
    atoms: NDArray[np.int64]  # (n,), which atom of the primitive cell each given one is an image of
    places: np.ndarray  # (n, 3), the given atoms in fractional coordinates of the given cell, made symmetric

    def restored(self, changed: Structure) -> Structure:
        """A changed crystal in the cell that was given: its axes, its number of atoms, their order.

        Args:
            changed: the primitive cell with other vectors and positions, atoms in the same order.
        """
        basis = self.rotation.T @ changed.lattice.matrix.T @ np.linalg.inv(self.linear)
        moved = changed.frac_coords - self.primitive.frac_coords
        moved -= np.rint(moved)
        species = [changed.species[atom] for atom in self.atoms]
        return Structure(basis.T, species, self.places + moved[self.atoms] @ self.linear.T)


def reduced(structure: Structure, symprec: float) -> Reduced:
    """The primitive cell of a crystal with the way back; the crystal itself where no symmetry is found.

    Args:
        structure: ordered, with finite coordinates.
        symprec: in Angstrom; atoms move by less than that.
    """
    found = find_symmetry(structure, symprec)
    if found is None:
        return Reduced(structure, np.eye(3), np.eye(3), np.arange(len(structure)), structure.frac_coords)
    cell = found.prim_std_cell
    smaller = Structure(cell.basis, [_ELEMENTS[z] for z in cell.numbers], np.mod(cell.positions, 1.0))
    linear, shift = np.array(found.prim_std_linear), np.array(found.prim_std_origin_shift)
    atoms = np.array(found.mapping_std_prim, dtype=np.int64)
    inside = (structure.frac_coords - shift) @ np.linalg.inv(linear).T  # of the primitive cell
    images = smaller.frac_coords[atoms] + np.rint(inside - smaller.frac_coords[atoms])
    return Reduced(smaller, np.array(found.std_rotation_matrix), linear, atoms, images @ linear.T + shift)


def find_group(structure: Structure, symprec: float) -> Group:
    """Symmetry operations of a crystal; the identity alone where none are found.

    Args:
        structure: exactly symmetric, as `primitive` gives it.
        symprec: in Angstrom.
    """
    found = find_symmetry(structure, symprec)
    if found is None or len(found.operations.rotations) < 2:
        return Group.trivial(len(structure))
    rotations = np.array(found.operations.rotations, dtype=np.int64)
    moved = structure.frac_coords @ rotations.transpose(0, 2, 1) + np.array(found.operations.translations)[:, None]
    block = max(1, CELLS_AT_ONCE // len(structure) ** 2 // 3)
    parts = [_match(structure, moved[k : k + block], symprec) for k in range(0, len(moved), block)]
    if any(part is None for part in parts):
        return Group.trivial(len(structure))
    permutation = np.concatenate([part[0] for part in parts if part])
    return Group(rotations, permutation, np.concatenate([part[1] for part in parts if part]))


def _match(structure: Structure, moved: np.ndarray, symprec: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Which atom each moved atom lands on: permutation (k, n) and shift (k, n, 3); None if one lands on none."""
    numbers = np.array(structure.atomic_numbers)
    apart = moved[:, :, None] - structure.frac_coords[None, None]  # (k, n, n, 3)
    whole = np.rint(apart)
    distance = np.linalg.norm((apart - whole) @ structure.lattice.matrix, axis=-1)
    distance[:, numbers[:, None] != numbers[None]] = np.inf
    permutation = distance.argmin(axis=-1)
    if not np.take_along_axis(distance, permutation[..., None], -1).max() < 2 * symprec:
        return None
    shift = np.take_along_axis(whole, permutation[..., None, None], 2)[:, :, 0].astype(np.int64)
    return permutation, shift
