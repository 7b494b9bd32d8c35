"""What no potential should be asked: structures that are no crystal, so that a model never meets them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from loop.plausibility import FARTHEST, MAX_VOLUME, MIN_DISTANCE, MIN_VOLUME, shortest_distance
from loop.values import OK, failed


@dataclass(frozen=True)
class Limits:
    """Bounds outside which a crystal is refused before any model sees it."""

    max_atoms: int = 500
    min_distance: float = MIN_DISTANCE  # A
    min_volume: float = MIN_VOLUME  # A^3/atom
    max_volume: float = MAX_VOLUME  # A^3/atom
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
    distance = shortest_distance(matrix, frac, limits.min_distance)
    if distance < limits.min_distance:
        return Verdict(
            failed("overlap"), f"expected atoms at least {limits.min_distance} A apart, got {distance:.3g} A"
        )
    return Verdict()


def unsupported(structure: Structure, elements: frozenset[str]) -> list[str]:
    """Symbols of a structure's species that are not among the elements, sorted."""
    return sorted({getattr(species, "symbol", str(species)) for species in structure.composition} - elements)
