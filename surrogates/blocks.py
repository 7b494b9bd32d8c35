"""Blocks of features: each turns crystals into named columns. A block never sees labels.

A column is named ``group:name``; the columns of a group share one lengthscale in the Gaussian processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Protocol

import numpy as np
from pymatgen.core import Structure

from loop.moyo import find_symmetry
from surrogates.elements import MAX_Z, PROPERTIES, STATISTICS, composition_statistics, element_table

SYSTEMS = ("triclinic", "monoclinic", "orthorhombic", "tetragonal", "trigonal", "hexagonal", "cubic")
_LAST_GROUP = np.array([2, 15, 74, 142, 167, 194, 230])
_LATTICE_DOF = (6, 4, 3, 2, 2, 2, 1)
_CENTRINGS = "PIFCR"
# Site symmetries that leave coordinates free (International Tables A): all others fix the point.
_FREE = {"1": 3, "m": 2, **dict.fromkeys(("2", "3", "4", "6", "3m", "4mm", "6mm", "mm2", "m2m", "2mm"), 1)}


class Block(Protocol):
    """Named columns computed from structures alone."""

    @property
    def key(self) -> str:
        """What the columns depend on besides their names; enters the identity of a cache."""
        ...

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, ``group:name``."""
        ...

    def compute(self, structures: Sequence[Structure]) -> np.ndarray:
        """Array of shape (n, len(columns)); NaN where something is missing. May raise on a bad crystal."""
        ...


def named(group: str, *names: str) -> tuple[str, ...]:
    """Column names of a group."""
    return tuple(f"{group}:{name}" for name in names)


def amounts(structures: Sequence[Structure]) -> np.ndarray:
    """Atoms of each element, shape (n, MAX_Z + 1), indexed by atomic number.

    Raises:
        ValueError: an element beyond the tables.
    """
    beyond = sorted({species.symbol for s in structures for species in s.species if species.Z > MAX_Z})
    if beyond:
        raise ValueError(
            f"expected elements up to Z = {MAX_Z}, found {', '.join(beyond)}, of which too little is known"
        )
    return np.stack([np.bincount(structure.atomic_numbers, minlength=MAX_Z + 1) for structure in structures]).astype(
        float
    )


@dataclass(frozen=True)
class CompositionBlock:
    """Magpie-like statistics of elemental properties, and the number and evenness of the elements."""

    key: str = ""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """``<property>_<statistic>``, then numbers that take all elements together."""
        statistics = tuple(f"{prop}_{stat}" for prop in PROPERTIES for stat in STATISTICS)
        return named("composition", *statistics, "n_elements", "norm_2", "norm_3", "ionicity_max", "ionicity_mean")

    def compute(self, structures: Sequence[Structure]) -> np.ndarray:
        """Vectorised over crystals; shape (n, d)."""
        counts = amounts(structures)
        fraction = counts / counts.sum(axis=1, keepdims=True)
        norms = [np.count_nonzero(counts, axis=1), *((fraction**p).sum(axis=1) ** (1 / p) for p in (2, 3))]
        return np.column_stack([composition_statistics(counts), *norms, *_ionicity(fraction)])


def _ionicity(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pauling's ionic character 1 - exp(-(dX)^2 / 4): of the most different pair, and averaged over pairs of atoms."""
    electronegativity = element_table()[:, PROPERTIES.index("X")]
    electronegativity = np.nan_to_num(electronegativity)
    pair = 1 - np.exp(-((electronegativity[:, None] - electronegativity[None, :]) ** 2) / 4)
    present = fraction > 0
    low = np.where(present, electronegativity, np.inf).min(axis=1)
    high = np.where(present, electronegativity, -np.inf).max(axis=1)
    return 1 - np.exp(-((high - low) ** 2) / 4), np.einsum("ni,ij,nj->n", fraction, pair, fraction)


@dataclass(frozen=True)
class ElementBlock:
    """Fractions of the elements: what kinds of crystals have in common beyond their statistics."""

    key: str = ""

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """``elements:<symbol>``."""
        from pymatgen.core import Element

        return named("elements", *(Element.from_Z(z).symbol for z in range(1, MAX_Z + 1)))

    def compute(self, structures: Sequence[Structure]) -> np.ndarray:
        """Shape (n, MAX_Z)."""
        counts = amounts(structures)[:, 1:]
        result: np.ndarray = counts / counts.sum(axis=1, keepdims=True)
        return result


@dataclass(frozen=True)
class SymmetryBlock:
    """Space group and Wyckoff sites, by moyopy. Free of coordinates, so insensitive to relaxation."""

    symprec: float = 0.1  # Angstrom; the tolerance of `loop.values.Evaluation.space_group`
    columns: tuple[str, ...] = named(
        "symmetry",
        "space_group",
        *(f"system_{system}" for system in SYSTEMS),
        *(f"centring_{letter}" for letter in _CENTRINGS),
        "log_operations",
        "log_atoms_primitive",
        "n_orbits",
        "orbits_per_element",
        "log_multiplicity_mean",
        "log_multiplicity_max",
        "lattice_dof",
        "coordinate_dof",
        "dof_per_atom",
        "share_general",
        "share_fixed",
    )

    @property
    def key(self) -> str:
        """The tolerance."""
        return f"symprec {self.symprec}"

    def compute(self, structures: Sequence[Structure]) -> np.ndarray:
        """Shape (n, d)."""
        return np.array([self._row(structure) for structure in structures])

    def _row(self, structure: Structure) -> list[float]:
        found = find_symmetry(structure, self.symprec)
        if found is None:
            raise ValueError(f"no space group found for {structure.formula}")
        system = int(np.searchsorted(_LAST_GROUP, found.number))
        orbits, multiplicity = np.unique(found.orbits, return_counts=True)
        atoms = len(structure)
        primitive = len(found.prim_std_cell.numbers)
        dof = np.array([_FREE.get(found.site_symmetry_symbols[i].replace(".", ""), 0) for i in orbits])
        per_primitive = np.log(multiplicity * primitive / atoms)
        return [
            found.number,
            *np.eye(len(SYSTEMS))[system],
            *(float(found.pearson_symbol[1] == letter) for letter in _CENTRINGS),
            np.log(_order(found.number)),
            np.log(primitive),
            len(orbits),
            len(orbits) / len(set(structure.atomic_numbers)),
            per_primitive.mean(),
            per_primitive.max(),
            _LATTICE_DOF[system],
            dof.sum(),
            (dof.sum() + _LATTICE_DOF[system]) / primitive,
            multiplicity[dof == 3].sum() / atoms,
            multiplicity[dof == 0].sum() / atoms,
        ]


@cache
def _order(number: int) -> int:
    """Order of the point group of a space group."""
    from moyopy import operations_from_number

    return len(operations_from_number(number, primitive=True))


@dataclass(frozen=True)
class GeometryBlock:
    """Volume, packing and nearest neighbours. Cheap, and sensitive to bad contacts in unrelaxed crystals."""

    cutoff: float = 6.0  # Angstrom; an atom without neighbour inside counts as having one at the cutoff
    # Two groups: density decides much of dielectric constant and stiffness, whatever the contacts.
    columns: tuple[str, ...] = (
        *named("density", "log_volume_per_atom", "log_volume_ratio", "log_density", "packing"),
        *named(
            "contacts",
            "nearest_min",
            "nearest_mean",
            "nearest_std",
            "contact_min",
            "contact_mean",
            "contact_std",
            "coordination_min",
            "coordination_mean",
            "coordination_max",
            "unlike_share",
            "log_axis_ratio",
            "angle_deviation",
        ),
    )

    @property
    def key(self) -> str:
        """The cutoff."""
        return f"cutoff {self.cutoff}"

    def compute(self, structures: Sequence[Structure]) -> np.ndarray:
        """Shape (n, d)."""
        return np.array([self._row(structure) for structure in structures])

    def _row(self, structure: Structure) -> list[float]:
        table = element_table()
        numbers = np.array(structure.atomic_numbers)
        radius = table[numbers, PROPERTIES.index("atomic_radius")]
        elemental = table[numbers, PROPERTIES.index("molar_volume")].mean() / 0.602214076  # cm3/mol -> A3/atom
        volume = structure.volume / len(structure)
        angles = np.abs(np.array(structure.lattice.angles) - 90.0)
        return [
            np.log(volume),
            np.log(volume / elemental),
            np.log(structure.density),
            np.log((4 / 3 * np.pi * radius**3).mean() / volume),
            *self._neighbours(structure, numbers, radius),
            np.log(max(structure.lattice.abc) / min(structure.lattice.abc)),
            angles.mean(),
        ]

    def _neighbours(self, structure: Structure, numbers: np.ndarray, radius: np.ndarray) -> list[float]:
        """Nearest distances (A), the same over sums of radii, coordination numbers, share of unlike contacts."""
        centre, other, _, distance = structure.get_neighbor_list(self.cutoff)
        atoms = len(numbers)
        nearest = np.full(atoms, self.cutoff)
        np.minimum.at(nearest, centre, distance)
        contact = np.full(atoms, self.cutoff / (2 * radius.mean()))
        np.minimum.at(contact, centre, distance / (radius[centre] + radius[other]))
        # Hoppe, Z. Kristallogr. 150, 23 (1979): effective coordination number, here relative to the nearest neighbour.
        weight = np.exp(1 - (distance / nearest[centre]) ** 6)
        coordination = np.bincount(centre, weight, minlength=atoms)
        unlike = weight[numbers[centre] != numbers[other]].sum() / weight.sum() if len(weight) else 0.0
        spread = [[a.min(), a.mean(), a.std()] for a in (nearest, contact)]
        return [*spread[0], *spread[1], coordination.min(), coordination.mean(), coordination.max(), unlike]


UNRELAXED_HULL = "hull:unrelaxed_e_above_hull"  # eV/atom
Descriptors = Callable[[Sequence[Structure]], tuple[np.ndarray, np.ndarray]]
"""``descriptors(structures) -> (energies (n,) in eV/atom, descriptors (n, d))``, NaN where the potential fails."""
HullDistance = Callable[[Sequence[Structure], np.ndarray], np.ndarray]
"""``e_above_hull(structures, energies) -> (n,)`` in eV/atom, unrelaxed, NaN where the hull abstains."""


@dataclass(frozen=True)
class PotentialBlock:
    """Energy and invariant descriptors of a frozen potential, and the unrelaxed distance to the hull.

    `key` names the potential and the hull (weights' checksum, reference table); it enters the cache's identity.
    """

    descriptors: Descriptors
    key: str
    e_above_hull: HullDistance | None = None
    size: int = 64

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """`UNRELAXED_HULL` where there is a hull, then the energy and the descriptors."""
        hull = (UNRELAXED_HULL,) if self.e_above_hull else ()
        return (*hull, *named("potential", "energy", *(f"descriptor_{i}" for i in range(self.size))))

    def compute(self, structures: Sequence[Structure]) -> np.ndarray:
        """Shape (n, d)."""
        energies, descriptors = self.descriptors(structures)
        hull = [self.e_above_hull(structures, energies)] if self.e_above_hull else []
        return np.column_stack([*hull, energies, descriptors])
