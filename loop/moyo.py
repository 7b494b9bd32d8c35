"""The symmetry finder, made safe: moyopy may end in a panic of its Rust code, which Python sees as no Exception.

And it may never end: where the tolerance is a tenth of a lattice vector of the primitive cell, one call in twenty does
not come back; in cells 100 times as long as thin, a twentieth is enough (found with random cells). Tolerances are cut
accordingly. No known crystal is touched by that: the shortest vector there is, of beryllium, has 2.2 A, and the largest
tolerance in use is 0.1 A.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.plausibility import ALL_PAIRS, shortest_distance, thinnest

if TYPE_CHECKING:
    from moyopy import MoyoDataset
    from pymatgen.core import Lattice, Structure

FLATTEST = 1e-3  # volume over the product of the three lengths: below it there is no cell to search
SHARE = 0.05  # largest tolerance over the shortest translation there can be
LONGEST = 50.0  # length of a cell over its shortest translation, beyond which the share is smaller
THINNEST = 1e4  # length over shortest translation, beyond which it is none
NARROWEST = 0.5  # largest angle tolerance over the angle between two long vectors that differ by the shortest
LARGEST = 1e6  # A or lattice vectors: beyond, coordinates have lost their decimals
_LOG = logging.getLogger("moyo")


def find_symmetry(structure: Structure, symprec: float, **options: Any) -> MoyoDataset | None:
    """What moyopy finds; None for what is no crystal, and where it finds nothing.

    Args:
        structure: any.
        symprec: in Angstrom; less where a primitive cell might be shorter than twenty times that.
        options: of `moyopy.MoyoDataset`, e.g. its setting.
    """
    if len(structure) == 0 or not structure.is_ordered:
        return None
    numbers = np.array([int(getattr(species, "Z", 0)) for species in structure.species])
    return symmetry_of(structure.lattice.matrix, numbers, structure.frac_coords, symprec, **options)


def symmetry_of(
    matrix: np.ndarray, numbers: np.ndarray, coords: np.ndarray, symprec: float, **options: Any
) -> MoyoDataset | None:
    """The same for arrays: row vectors (3, 3) in Angstrom, atomic numbers (n,), fractional coordinates (n, 3)."""
    if len(numbers) == 0 or not _is_cell(matrix, coords):
        return None
    import moyopy

    _LOG.setLevel(logging.ERROR)  # it warns about every supercell, and about its operations
    try:
        tolerance, angle = symprec, options.get("angle_tolerance", 0.0)
        if not _is_roomy(matrix, coords, symprec, angle):
            tolerance = tolerance_of(matrix, numbers, coords, symprec)
            if not tolerance > 0:
                return None
            if angle > NARROWEST * tolerance / symprec * _narrowness(matrix):
                options = {name: value for name, value in options.items() if name != "angle_tolerance"}
        cell = moyopy.Cell(matrix.tolist(), coords.tolist(), numbers.tolist())
        return moyopy.MoyoDataset(cell, symprec=tolerance, **options)
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException:  # it raises bare exceptions of several kinds, and panics that are not even these
        return None


def safe_tolerance(structure: Structure, symprec: float) -> float:
    """The tolerance, or a twentieth of the shortest translation that can leave the crystal as it is, in Angstrom.

    Zero for a cell that is thinner than any: there is nothing to find in it.

    A translation takes each atom to one of its element: it is no shorter than the largest of all atoms' distances from
    their nearest such neighbours. Those that are far enough for the tolerance do not matter.
    """
    numbers = np.array([species.Z for species in structure.species])
    return tolerance_of(structure.lattice.matrix, numbers, structure.frac_coords, symprec)


def tolerance_of(matrix: np.ndarray, numbers: np.ndarray, coords: np.ndarray, symprec: float) -> float:
    """`safe_tolerance` of arrays, see `symmetry_of`."""
    from pymatgen.core import Lattice
    from pymatgen.optimization.neighbors import find_points_in_spheres

    given = Lattice(matrix)
    lattice = given.get_lll_reduced_lattice()  # so that few images need to be looked at
    shortest = min(lattice.abc)
    if shortest * THINNEST < max(lattice.abc):
        return 0.0
    enough = max(symprec / SHARE, (symprec / SHARE * max(lattice.abc) / LONGEST) ** 0.5)
    reach = min(enough, shortest)
    if len(np.unique(numbers)) == len(numbers):
        return min(symprec, _share(lattice, shortest) * shortest)
    frac = np.mod(lattice.get_fractional_coords(given.get_cartesian_coords(coords)), 1.0)
    scaled = lattice.matrix / reach  # in units of the reach: below 0.1 the search takes 0.1, which may be 1e8 cells
    points = np.ascontiguousarray(frac @ scaled)
    radius = max(1.0, 0.5 * (lattice.volume / len(numbers)) ** (1 / 3) / reach)  # short ones make it sort empty space
    first, second, image, distance = find_points_in_spheres(
        points, points, r=radius, pbc=np.ones(3, dtype=np.int64), lattice=np.ascontiguousarray(scaled), tol=1e-8
    )
    distance = distance * reach
    other = (numbers[first] == numbers[second]) & ((first != second) | (image != 0).any(axis=1))
    nearest = np.full(len(numbers), reach)
    np.minimum.at(nearest, first[other], distance[other])
    shortest = float(nearest.max())
    return min(symprec, _share(lattice, shortest) * shortest)


def _is_roomy(matrix: np.ndarray, coords: np.ndarray, symprec: float, angle: float) -> bool:
    """Whether the atoms alone show that no translation is short enough for either tolerance to matter: cheap."""
    longest = float(np.linalg.norm(matrix, axis=1).max())
    enough = max(symprec / SHARE, (symprec / SHARE * longest / LONGEST) ** 0.5, angle * longest / NARROWEST)
    if len(coords) > ALL_PAIRS or not thinnest(matrix) > 2 * enough:
        return False
    result: bool = shortest_distance(matrix, coords, enough) > enough
    return result


def _narrowness(matrix: np.ndarray) -> float:
    """Shortest over longest vector of the reduced cell: the angle (rad) by which one turns when the other is added."""
    from pymatgen.core import Lattice

    lengths = Lattice(matrix).get_lll_reduced_lattice().abc
    return float(min(lengths) / max(lengths))


def _share(lattice: Lattice, shortest: float) -> float:
    """`SHARE`, and less of it for cells more than `LONGEST` times as long as thin."""
    return SHARE * min(1.0, LONGEST * shortest / max(lattice.abc))


def _is_cell(matrix: np.ndarray, coords: np.ndarray) -> bool:
    if not (np.isfinite(matrix).all() and np.isfinite(coords).all()):
        return False
    lengths = np.linalg.norm(matrix, axis=1)
    if not (lengths.min() > 0 and lengths.max() < LARGEST and np.abs(coords).max() < LARGEST):
        return False
    return bool(abs(np.linalg.det(matrix / lengths[:, None])) > FLATTEST)
