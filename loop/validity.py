"""Cheap rules that a crystal must pass before anything is spent on it, each with a name that is counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from pymatgen.core import Composition, Element, Structure
from pymatgen.optimization.neighbors import find_points_in_spheres

from loop.errors import ConfigError

NOBLE_GASES = frozenset({2, 10, 18, 36, 54, 86, 118})
RADIOACTIVE = frozenset({43, 61, *range(84, 119)})  # atomic numbers of elements without a stable isotope


@dataclass(frozen=True)
class ValidityRules:
    """Rules, in the order in which they are tried. A rule set to None (or False) is off.

    Raises:
        ConfigError: an element is unknown, or a bound makes no sense.
    """

    max_atoms: int | None = 60
    """Largest cell, atoms, as given."""
    max_elements: int | None = 6
    """Largest number of different elements."""
    elements: tuple[str, ...] | None = None
    """Allowed elements; none: all."""
    exclude: tuple[str, ...] = ()
    """Forbidden elements."""
    radioactive: bool = False
    """Allow radioactive elements."""
    noble_gases: bool = False
    """Allow noble gases."""
    volume_per_atom: tuple[float, float] | None = (4.0, 150.0)
    """Lower and upper bound, A^3; C in diamond has 5.7, Cs 115."""
    cell_lengths: tuple[float, float] | None = (1.5, 100.0)
    """Lower and upper bound, A."""
    cell_angles: tuple[float, float] | None = (15.0, 165.0)
    """Lower and upper bound, degrees."""
    min_distance: float | None = 0.5
    """Smallest distance of any two atoms, A, as in CDVAE (Xie et al., ICLR 2022)."""
    radius_fraction: float | None = 0.7
    """Smallest distance of a pair, as a fraction of the sum of its covalent radii."""
    charge_balance: bool = True
    """SMACT's rule, as in CDVAE: an alloy of metals, or neutral with electronegativities in order."""

    def __post_init__(self) -> None:
        """Check elements and bounds."""
        for name in (*(self.elements or ()), *self.exclude):
            if not Element.is_valid_symbol(name):
                raise ConfigError(f"{name!r} is no element: give symbols such as Na, Cl.")
        for name in ("volume_per_atom", "cell_lengths", "cell_angles"):
            bounds = getattr(self, name)
            if bounds is not None and not 0 < bounds[0] < bounds[1]:
                raise ConfigError(f"{name} must be two rising positive numbers, got {bounds}.")

    def __call__(self, structures: Sequence[Structure]) -> list[str | None]:
        """Per structure the name of the first rule that it breaks, or None: about 0.5 ms each."""
        return [self.reason(structure) for structure in structures]

    def reason(self, structure: Structure) -> str | None:
        """Name of the first rule that a structure breaks, or None."""
        numbers = (
            np.array([getattr(site.specie, "Z", 0) for site in structure]) if structure.is_ordered else np.zeros(1)
        )
        checks: tuple[Callable[[], str | None], ...] = (
            lambda: self._composition_reason(numbers),
            lambda: self._cell_reason(structure),
            lambda: self._distance_reason(structure, numbers),
            lambda: self._charge_reason(structure),
        )
        return next((reason for check in checks if (reason := check())), None)

    def _composition_reason(self, numbers: np.ndarray) -> str | None:
        kinds = set(numbers.tolist())
        allowed = None if self.elements is None else _numbers(self.elements)
        rules = {
            "no-atoms": len(numbers) == 0,
            "disordered": not all(0 < kind < len(_radii()) for kind in kinds),  # or dummy species
            "too-many-atoms": self.max_atoms is not None and len(numbers) > self.max_atoms,
            "too-many-elements": self.max_elements is not None and len(kinds) > self.max_elements,
            "element-not-allowed": bool(kinds & _numbers(self.exclude)) or not (allowed is None or kinds <= allowed),
            "radioactive": not self.radioactive and bool(kinds & RADIOACTIVE),
            "noble-gas": not self.noble_gases and bool(kinds & NOBLE_GASES),
        }
        return next((name for name, broken in rules.items() if broken), None)

    def _cell_reason(self, structure: Structure) -> str | None:
        lattice = structure.lattice
        if not (np.isfinite(lattice.matrix).all() and np.isfinite(structure.frac_coords).all()):
            return "not-finite"
        if not _inside(lattice.abc, self.cell_lengths):
            return "cell-lengths"
        if not _inside(lattice.angles, self.cell_angles):
            return "cell-angles"
        return None if _inside((lattice.volume / len(structure),), self.volume_per_atom) else "volume-per-atom"

    def _distance_reason(self, structure: Structure, numbers: np.ndarray) -> str | None:
        radii = _radii()[numbers]
        fraction, floor = self.radius_fraction or 0.0, self.min_distance or 0.0
        cutoff = max(floor, 2 * fraction * float(radii.max()))
        if cutoff == 0:
            return None
        lattice = np.ascontiguousarray(structure.lattice.matrix)
        coords = np.mod(structure.frac_coords, 1.0) @ lattice  # far-away atoms would be looked for cell by cell
        pbc = np.ones(3, dtype=np.int64)
        one, other, images, distances = find_points_in_spheres(coords, coords, r=cutoff, pbc=pbc, lattice=lattice)
        pairs = (one != other) | images.any(axis=1)  # an atom is not too close to itself, but may be to its image
        if (distances[pairs] < floor).any():
            return "atoms-too-close"
        short = distances < fraction * (radii[one] + radii[other])
        return "bonds-too-short" if (short & pairs).any() else None

    def _charge_reason(self, structure: Structure) -> str | None:
        if not self.charge_balance:
            return None
        formula = structure.composition.reduced_formula
        if unknown_elements(formula):
            return "no-oxidation-states"
        return None if is_charge_balanced(formula) else "charge-balance"


_OFF: dict[str, Any] = dict.fromkeys(("max_atoms", "max_elements", "radius_fraction", "cell_lengths", "cell_angles"))
_OFF |= {"radioactive": True, "noble_gases": True, "charge_balance": False}
# structure validity of CDVAE (Xie et al., ICLR 2022) and all that compare with it: shortest distance and volume
STRUCTURE = ValidityRules(**_OFF, volume_per_atom=(0.1, math.inf), min_distance=0.5)
STRICT = replace(STRUCTURE, radius_fraction=0.7)  # nor atoms nearer than 0.7 of the sum of their covalent radii


def validity_flags(structures: Sequence[Structure]) -> dict[str, np.ndarray]:
    """Validity as the field reports it, the one meaning of ``valid`` for samples (see `loop.stability.DEFINITIONS`).

    Returns:
        ``structure_valid``, ``composition_valid``, ``valid``, each of shape (n,), bool.
    """
    sound = np.array([reason is None for reason in STRUCTURE(structures)], dtype=bool)
    balanced = [is_charge_balanced(structure.composition.reduced_formula) for structure in structures]
    found = {"structure_valid": sound, "composition_valid": np.array(balanced, dtype=bool)}
    return found | {"valid": sound & found["composition_valid"]}


@lru_cache
def _numbers(symbols: tuple[str, ...]) -> frozenset[int]:
    return frozenset(Element(name).Z for name in symbols)


def _inside(values: Sequence[float], bounds: tuple[float, float] | None) -> bool:
    return bounds is None or (min(values) >= bounds[0] and max(values) <= bounds[1])


@lru_cache(maxsize=1)
def _radii() -> np.ndarray:
    """Covalent radii (A) by atomic number (Cordero et al. 2008, as tabulated by ASE)."""
    from ase.data import covalent_radii

    return covalent_radii


@lru_cache(maxsize=100_000)
def unknown_elements(formula: str) -> tuple[str, ...]:
    """Elements of a formula of which SMACT has no data, such as Rf."""
    from smact import Element as SmactElement

    def known(symbol: str) -> bool:
        try:
            SmactElement(symbol)
        except (KeyError, NameError):  # which one depends on SMACT's version
            return False
        return True

    return tuple(str(element) for element in Composition(formula) if not known(str(element)))


@lru_cache(maxsize=100_000)
def is_charge_balanced(formula: str) -> bool:
    """SMACT's validity of a formula (Davies et al., J. Open Source Softw. 4, 1361), with the oxidation states of 2014.

    These states and the Pauling test are what CDVAE and the generators after it report as composition validity; metals
    and elements count as valid. A formula with an element of which SMACT knows nothing (Rf and beyond) does not.
    """
    from smact.screening import smact_validity

    if unknown_elements(formula):
        return False
    return bool(smact_validity(formula, use_pauling_test=True, include_alloys=True, oxidation_states_set="smact14"))
