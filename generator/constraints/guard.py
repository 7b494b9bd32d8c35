"""A guard against atoms on top of each other: whole crystals are drawn again, and how often is reported.

The cell is drawn last, so no distance is known before a crystal is complete, and a guard on single sites could not
keep the likelihood exact. Rejection can: what passes has the probability p(x) / Z, with Z the share that passes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from generator.constraints.conditions import ConditionError
from generator.representation.tokens import CrystalBatch, expand
from generator.representation.wyckoff import tables

_IMAGES = np.array(list(product((-1, 0, 1), repeat=3)))  # (27, 3)
_ORIGIN = 13  # row of the image (0, 0, 0)
_TRICLINIC_OR_MONOCLINIC = 15  # last group whose conventional axes need not be reduced ones
_PAIRS = 20_000  # distances of this many pairs at a time


@dataclass(frozen=True)
class Guard:
    """When atoms are too close, and how long to try.

    `min_distance` is the rule of CDVAE (Xie et al., ICLR 2022) and of all that compare with it. `radius_fraction` 0.7
    is the stricter one, with the covalent radii of Cordero et al., doi 10.1039/b801115j.
    """

    min_distance: float = 0.5
    """Smallest distance of any two atoms, A."""
    radius_fraction: float = 0.0
    """Smallest distance of a pair, as a fraction of the sum of its covalent radii."""
    max_tries: int = 20
    """Draws allowed per crystal asked for."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.min_distance < 0 or self.radius_fraction < 0 or self.max_tries < 1:
            raise ConditionError(
                f"expected min_distance and radius_fraction >= 0 and max_tries >= 1, got {self.min_distance}, "
                f"{self.radius_fraction} and {self.max_tries}"
            )

    def passes(self, batch: CrystalBatch) -> np.ndarray:
        """Which crystals keep their atoms apart, bool (n,); what is no crystal (a cell without volume) does not."""
        return np.array([self._apart(batch, i) for i in range(len(batch))], dtype=bool)

    def _apart(self, batch: CrystalBatch, i: int) -> bool:
        arrays = expand(batch, i)
        if arrays is None:
            return False
        basis, numbers, coordinates = arrays
        volume = abs(np.linalg.det(basis)) / len(numbers)
        if volume < self.min_distance**3 / math.sqrt(2):  # denser than the densest packing of spheres
            return False
        g, letters = int(batch.G[i]), batch.W[i][batch.W[i] > 0].astype(int)
        counts = tables().multiplicity[g, letters]
        first = np.cumsum(counts) - counts  # one point of each orbit speaks for all of it
        if g <= _TRICLINIC_OR_MONOCLINIC:
            basis, coordinates = _reduced(basis, coordinates)
        limits = np.full((len(first), len(numbers)), self.min_distance)
        if self.radius_fraction:
            radii = _radii()[numbers]
            limits = np.maximum(limits, self.radius_fraction * (radii[first][:, None] + radii))
        return _all_beyond(basis, coordinates, first, limits)


def _all_beyond(basis: np.ndarray, coordinates: np.ndarray, first: np.ndarray, limits: np.ndarray) -> bool:
    """Whether all images of all atoms (n, 3) keep their distance `limits` (s, n) from the atoms `first` (s,).

    In a Minkowski-reduced basis the nearest image of a wrapped difference is among its 27 neighbours, and so are the
    shortest lattice vectors.
    """
    shifts = _IMAGES @ basis
    rows = max(1, _PAIRS // len(coordinates))
    for start in range(0, len(first), rows):
        some = first[start : start + rows]
        difference = coordinates[some][:, None] - coordinates
        difference = (difference - np.round(difference)) @ basis  # (s, n, 3)
        squared = ((difference[:, :, None] + shifts) ** 2).sum(-1)  # (s, n, 27)
        squared[np.arange(len(some)), some, _ORIGIN] = np.inf  # an atom and itself
        if (squared.min(-1) < limits[start : start + rows] ** 2).any():
            return False
    return True


def _reduced(basis: np.ndarray, coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same crystal in a Minkowski-reduced basis."""
    from ase.geometry import minkowski_reduce

    reduced, operation = minkowski_reduce(basis)
    return np.asarray(reduced), coordinates @ np.linalg.inv(operation)


def _radii() -> np.ndarray:
    """Covalent radii (A) by atomic number."""
    from ase.data import covalent_radii

    return covalent_radii
