"""What every crystal must be, in any file: a cell with a volume, in which no two atoms share a place.

One function, called where crystals are read, so that no verb scores, predicts or learns from what is no crystal. The
bounds are far outside of what any phase at any pressure has: they stop misread files, not unusual crystals.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from loop.errors import ImplausibleError

if TYPE_CHECKING:
    from pymatgen.core import Structure

MIN_DISTANCE = 0.5  # A; the shortest bond there is, H2, has 0.74 A
MIN_VOLUME = 2.0  # A^3/atom; diamond has 5.7, metallic hydrogen at 500 GPa about 1.2
MAX_VOLUME = 1000.0  # A^3/atom; solid caesium has 115
KINDS = ("size", "not-finite", "cell", "coordinates", "volume", "overlap")  # of what is wrong
FLATTEST = 1e-3  # volume over the product of the three lengths: below it there is no cell
FARTHEST = 1e4  # cells from the origin; beyond, coordinates have lost their decimals

ALL_PAIRS = 300  # atoms up to which all pairs are looked at

Vector = list[float]


def require_plausible(basis: np.ndarray, coordinates: np.ndarray) -> None:
    """Refuse what is no crystal.

    Args:
        basis: (3, 3) row vectors of the cell in Angstrom.
        coordinates: (n, 3) fractional.

    Raises:
        ImplausibleError: of one of `KINDS`, which is also the first word of its message.
    """
    if len(coordinates) == 0:
        raise ImplausibleError("size", "expected atoms, found none")
    farthest = float(np.abs(coordinates).max())
    a, b, c = basis.tolist()
    volume, lengths = _volume(a, b, c), math.hypot(*a) * math.hypot(*b) * math.hypot(*c)
    if not (math.isfinite(farthest) and math.isfinite(volume)):
        raise ImplausibleError("not-finite", "expected finite lattice and coordinates, got NaN or infinity")
    if not volume > FLATTEST * lengths:
        raise ImplausibleError("cell", "expected three vectors that span a cell, got a flat one; are its angles right?")
    if farthest > FARTHEST:
        raise ImplausibleError(
            "coordinates", f"expected fractional coordinates within {FARTHEST:g}, got {farthest:.3g}"
        )
    share = volume / len(coordinates)
    if not MIN_VOLUME <= share <= MAX_VOLUME:
        raise ImplausibleError("volume", f"expected {MIN_VOLUME:g} to {MAX_VOLUME:g} A^3/atom, got {share:.3g}")
    distance = shortest_distance(basis, coordinates, MIN_DISTANCE)
    if distance < MIN_DISTANCE:
        raise ImplausibleError("overlap", f"expected atoms at least {MIN_DISTANCE} A apart, got {distance:.3g} A")


def require_plausible_structure(structure: Structure) -> None:
    """The same of a pymatgen structure."""
    require_plausible(structure.lattice.matrix, structure.frac_coords)


def shortest_distance(basis: np.ndarray, coordinates: np.ndarray, cutoff: float) -> float:
    """Shortest distance between two atoms, images included, in Angstrom; infinity if none lies within the cutoff.

    In a cell whose faces are more than two cutoffs apart, only the nearest image of a pair can be within it. Others are
    reduced first, so that few images need to be looked at, whatever the skew.
    """
    if len(coordinates) <= ALL_PAIRS and thinnest(basis) > 2 * cutoff:
        return _nearest_images(basis, coordinates, cutoff)
    return _images_in_spheres(basis, coordinates, cutoff)


def _cross(a: Vector, b: Vector) -> Vector:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]  # numpy's takes 30 us


def _volume(a: Vector, b: Vector, c: Vector) -> float:
    return abs(sum(x * y for x, y in zip(a, _cross(b, c), strict=True)))


def thinnest(basis: np.ndarray) -> float:
    """Smallest distance between opposite faces of the cell."""
    a, b, c = basis.tolist()
    largest = max(math.hypot(*_cross(*pair)) for pair in ((a, b), (b, c), (c, a)))
    return _volume(a, b, c) / largest if largest > 0 else 0.0


def _nearest_images(basis: np.ndarray, coordinates: np.ndarray, cutoff: float) -> float:
    first, second = _pairs(len(coordinates))
    if len(first) == 0:
        return float("inf")
    steps = coordinates[first] - coordinates[second]
    steps -= np.rint(steps)
    vectors = steps @ basis
    shortest = math.sqrt(float(np.einsum("ij,ij->i", vectors, vectors).min()))
    return shortest if shortest <= cutoff else float("inf")


@lru_cache(maxsize=64)
def _pairs(n: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(n, 1)


def _images_in_spheres(basis: np.ndarray, coordinates: np.ndarray, cutoff: float) -> float:
    from pymatgen.core import Lattice
    from pymatgen.optimization.neighbors import find_points_in_spheres

    lattice = Lattice(basis)
    reduced = lattice.get_lll_reduced_lattice()
    coords = reduced.get_fractional_coords(lattice.get_cartesian_coords(coordinates))
    coords = reduced.get_cartesian_coords(np.mod(coords, 1.0))
    if not np.isfinite(coords).all():
        return 0.0
    first, second, image, distance = find_points_in_spheres(
        np.ascontiguousarray(coords), np.ascontiguousarray(coords), r=cutoff, pbc=np.ones(3, dtype=np.int64),
        lattice=np.ascontiguousarray(reduced.matrix), tol=1e-8,
    )  # fmt: skip
    other = (first != second) | (image != 0).any(axis=1)
    return float(distance[other].min(initial=np.inf))
