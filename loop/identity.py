"""When two crystals are one for the ledger: up to the choice of cell, origin, axes and handedness, within a tolerance.

A label is reused only where a calculation would give it again, so this is far stricter than novelty: the same space
group, cells equal to 0.3 %, and every atom within 0.01 A of its counterpart. That is above what a CIF with four
decimals loses, and below the distortions that tell polymorphs apart (a ferroelectric's are 0.05 A and more). Crystals
are compared and not hashed: a hash of rounded numbers would give two keys to equal crystals that fall on either side of
an edge.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Self

import numpy as np
from pymatgen.core import Element, Structure

from loop.fingerprint import geometry
from loop.moyo import find_symmetry

SHIFT = 0.01  # A, of any atom
LENGTHS = 0.003  # relative, of the primitive lattice vectors: some 1e-5 eV/atom
ANGLES = 0.3  # degrees
GEOMETRY = 0.008  # largest difference of `loop.fingerprint.geometry`; SHIFT and LENGTHS change it by less
MAX_GIVEN = 500  # atoms in the cell as it comes; the search for symmetry takes seconds beyond
MAX_SITES = 100  # atoms in the primitive cell; larger crystals are told apart by their content id alone


@dataclass(frozen=True)
class Identity:
    """A crystal in its primitive cell."""

    lattice: list[list[float]]  # (3, 3), A
    numbers: list[int]
    coords: list[list[float]]  # fractional
    space_group: int

    @classmethod
    def of(cls, structure: Structure) -> Self | None:
        """Identity of an ordered crystal; None for what has none: not ordered, not finite, too large."""
        found = find_symmetry(structure, SHIFT) if len(structure) <= MAX_GIVEN else None
        if found is None:
            return None
        reduced = found.prim_std_cell
        if len(reduced.numbers) > MAX_SITES:
            return None
        positions = np.mod(reduced.positions, 1.0).tolist()
        return cls(np.array(reduced.basis).tolist(), list(reduced.numbers), positions, int(found.number))

    @cached_property
    def structure(self) -> Structure:
        """The primitive cell."""
        return Structure(self.lattice, [Element.from_Z(z) for z in self.numbers], self.coords)

    @cached_property
    def geometry(self) -> np.ndarray:
        """Fingerprint (24,) that changes little with small displacements."""
        return geometry(self.structure)

    @property
    def family(self) -> str:
        """What equal crystals share exactly: composition of the primitive cell and space group."""
        return f"{self.structure.composition.formula.replace(' ', '')}|{self.space_group}"

    def equals(self, other: Identity) -> bool:
        """Whether they are one crystal within the tolerances."""
        if self.family != other.family or abs(self.structure.volume / other.structure.volume - 1) > 3 * LENGTHS:
            return False
        if np.abs(self.geometry - other.geometry).max() > GEOMETRY:
            return False
        return _largest_shift(self.structure, other.structure) <= SHIFT

    def to_json(self) -> str:
        """Text for the ledger."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Inverse of `to_json`."""
        return cls(**json.loads(text))


def find(identity: Identity, known: Iterable[tuple[str, Identity]]) -> str | None:
    """Key of the first known crystal that equals this one."""
    return next((key for key, other in known if identity.equals(other)), None)


def _largest_shift(one: Structure, other: Structure) -> float:
    """Largest displacement (A) between two cells laid over each other as well as possible; infinite if never."""
    from pymatgen.analysis.structure_matcher import StructureMatcher

    size = (one.volume / len(one)) ** (1 / 3)
    matcher = StructureMatcher(
        ltol=LENGTHS, stol=2 * SHIFT / size, angle_tol=ANGLES, primitive_cell=False, scale=False
    )  # fmt: skip
    distances = matcher.get_rms_dist(one, other)
    return float("inf") if distances is None else float(distances[1]) * size
