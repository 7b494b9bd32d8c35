"""What no potential should be asked: structures that are no crystal, so that a model never meets them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from loop.values import OK, failed

FARTHEST = 1e4  # cells from the origin; beyond, neighbours are looked for in vain until the memory is full


@dataclass(frozen=True)
class Limits:
    """Bounds outside which a crystal is refused before any model sees it."""

    max_atoms: int = 500
    min_distance: float = 0.5  # A; the shortest bond there is, H2, has 0.74 A
    min_volume: float = 2.0  # A^3/atom; diamond has 5.7, metallic hydrogen at 500 GPa about 1.2
    max_volume: float = 1000.0  # A^3/atom; solid caesium has 115
    max_length: float = 200.0  # A, of a lattice vector


@dataclass(frozen=True)
class Verdict:
    """Whether a structure may be computed: status ``ok`` or ``failed:<kind>``, and why."""

    status: str = OK
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether it may be computed."""
        return self.status == OK


def check(structure: Structure, elements: frozenset[str], limits: Limits) -> Verdict:
    """Look at a structure before the model does. `elements`: symbols that the potential knows."""
    if not structure.is_ordered:
        return Verdict(failed("disordered"), f"expected full occupancies, got {structure.formula}")
    if len(structure) == 0 or len(structure) > limits.max_atoms:
        return Verdict(failed("size"), f"expected 1 to {limits.max_atoms} atoms, got {len(structure)}")
    unknown = unsupported(structure, elements)
    if unknown:
        return Verdict(failed("unsupported-element"), f"the potential does not know {', '.join(unknown)}")
    matrix, frac = structure.lattice.matrix, structure.frac_coords
    if not (np.isfinite(matrix).all() and np.isfinite(frac).all()):
        return Verdict(failed("not-finite"), "expected finite lattice and coordinates, got NaN or infinity")
    if np.abs(frac).max() > FARTHEST:
        return Verdict(
            failed("coordinates"), f"expected fractional coordinates within {FARTHEST:g}, got {np.abs(frac).max():.3g}"
        )
    longest = float(np.linalg.norm(matrix, axis=1).max())
    volume = abs(float(np.linalg.det(matrix))) / len(structure)
    if longest > limits.max_length or not limits.min_volume <= volume <= limits.max_volume:
        return Verdict(
            failed("volume"),
            f"expected {limits.min_volume} to {limits.max_volume} A^3/atom and lattice vectors below "
            f"{limits.max_length} A, got {volume:.3g} A^3/atom and {longest:.3g} A",
        )
    distance = shortest_distance(structure, limits.min_distance)
    if distance < limits.min_distance:
        return Verdict(
            failed("overlap"), f"expected atoms at least {limits.min_distance} A apart, got {distance:.3g} A"
        )
    return Verdict()


def unsupported(structure: Structure, elements: frozenset[str]) -> list[str]:
    """Symbols of a structure's species that are not among the elements, sorted."""
    return sorted({getattr(species, "symbol", str(species)) for species in structure.composition} - elements)


def shortest_distance(structure: Structure, cutoff: float) -> float:
    """Shortest distance between two atoms, images included, in Angstrom; infinity if none lies within the cutoff."""
    from pymatgen.optimization.neighbors import find_points_in_spheres

    # images are searched cell by cell: a reduced cell keeps that cheap for any skew, and has the same distances
    reduced = structure.lattice.get_lll_reduced_lattice()
    coords = reduced.get_cartesian_coords(np.mod(reduced.get_fractional_coords(structure.cart_coords), 1.0))
    if not np.isfinite(coords).all():
        return 0.0
    first, second, image, distance = find_points_in_spheres(
        np.ascontiguousarray(coords), np.ascontiguousarray(coords), r=cutoff, pbc=np.ones(3, dtype=np.int64),
        lattice=np.ascontiguousarray(reduced.matrix), tol=1e-8,
    )  # fmt: skip
    other = (first != second) | (image != 0).any(axis=1)
    return float(distance[other].min(initial=np.inf))
