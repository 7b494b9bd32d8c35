"""Convex hulls of energies of one type: how far a crystal lies above what it would decompose into.

The distance is the optimum of a linear program: the cheapest mixture of known phases with the crystal's composition
(Ong et al., Chem. Mater. 20, 1798 (2008), doi 10.1021/cm702327g). Its dual solution is a facet of the hull, and facets
are kept: a composition that falls in a known one costs a matrix product.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Self

import numpy as np

from loop.errors import EnergyTypeError, InputError
from loop.values import OK, EnergyType, failed

if TYPE_CHECKING:
    from pymatgen.core import Composition

_SYMBOL = re.compile("[A-Z][a-z]?")
_TIGHT = 1e-9  # eV/atom within which an entry lies on a facet; fractions below it are none
_DIGITS = 12  # of distances and fractions: last bits of a linear solve depend on where its arrays lie in memory


@dataclass(frozen=True)
class HullEntry:
    """A known phase."""

    formula: str
    energy: float  # eV/atom
    id: str = ""


@dataclass(frozen=True)
class HullResult:
    """Distance of an energy from the hull at its composition."""

    e_above_hull: float = float("nan")  # eV/atom, negative below the hull; NaN where the status is not ``ok``
    decomposition: dict[str, float] = field(
        default_factory=dict
    )  # formula of each competing phase -> fraction of atoms
    ids: dict[str, str] = field(default_factory=dict)  # formula of each competing phase -> its id
    n_entries: int = 0  # known phases in the chemical system
    sparse: bool = False  # too few of them for the distance to mean much
    status: str = OK
    message: str = ""


class Hull:
    """Known phases with energies of one type.

    Args:
        entries: known phases; of several with one formula the lowest counts.
        energy_type: of all their energies.
        min_compounds: a chemical system with fewer compounds than this is sparse. By default one for each pair of its
            elements: with fewer, some pair has no known compound at all, and a distance mostly says that nobody looked.

    Raises:
        InputError: an entry has no finite energy or no formula.
    """

    def __init__(
        self, entries: Iterable[HullEntry], energy_type: EnergyType, *, min_compounds: int | None = None
    ) -> None:
        self.energy_type = energy_type
        self.min_compounds = min_compounds
        self._entries: dict[frozenset[str], tuple[HullEntry, ...]] = {}
        self._systems: dict[frozenset[str], _System | None] = {}
        self._add(entries)

    def __len__(self) -> int:
        return sum(map(len, self._entries.values()))

    @property
    def elements(self) -> frozenset[str]:
        """Elements that have a reference of their own."""
        return frozenset(symbol for key in self._entries if len(key) == 1 for symbol in key)

    def with_entries(self, entries: Iterable[HullEntry], energy_type: EnergyType) -> Self:
        """A new hull with further phases, e.g. new finds, so that earlier ones can be ranked again.

        Raises:
            EnergyTypeError: their energies are of another type.
        """
        self.require(energy_type)
        hull = type(self)((), self.energy_type, min_compounds=self.min_compounds)
        hull._entries = dict(self._entries)
        changed = hull._add(entries)
        hull._systems = {key: value for key, value in self._systems.items() if not any(new <= key for new in changed)}
        return hull

    def e_above_hull(
        self, composition: Composition | Mapping[str, float] | str, energy_per_atom: float, energy_type: EnergyType
    ) -> HullResult:
        """Distance of one energy from the hull.

        Args:
            composition: amounts of each element, in any normalisation, or a formula.
            energy_per_atom: eV/atom
            energy_type: of this energy.

        Returns:
            ``failed:no-energy`` for an energy that is not finite, ``failed:no-reference`` for an element unknown here.

        Raises:
            EnergyTypeError: the energy is of another type than the hull's.
            InputError: the composition is none.
        """
        self.require(energy_type)
        amounts = amounts_of(composition)
        if not np.isfinite(energy_per_atom):
            return HullResult(status=failed("no-energy"), message=f"expected an energy, got {energy_per_atom}")
        missing = sorted(set(amounts) - self.elements_of(amounts))
        if missing:
            return HullResult(
                status=failed("no-reference"), message=f"the hull has no reference for element {', '.join(missing)}"
            )
        system = self._system(frozenset(amounts))
        fractions = np.array([amounts[symbol] for symbol in system.symbols])
        fractions /= fractions.sum()
        hull_energy, mixture = system.lowest(fractions)
        phases = [(system.entries[index], fraction) for index, fraction in mixture if fraction > _TIGHT]
        return HullResult(
            e_above_hull=round(float(energy_per_atom - hull_energy), _DIGITS) + 0.0,  # never -0.0
            decomposition={entry.formula: round(fraction, _DIGITS) for entry, fraction in phases},
            ids={entry.formula: entry.id for entry, _ in phases},
            n_entries=len(system.entries),
            sparse=self._is_sparse(system),
        )

    def batch(
        self,
        compositions: Sequence[Composition | Mapping[str, float] | str],
        energies_per_atom: Sequence[float] | np.ndarray,
        energy_type: EnergyType,
    ) -> list[HullResult]:
        """`e_above_hull` of many crystals."""
        pairs = zip(compositions, energies_per_atom, strict=True)
        return [self.e_above_hull(composition, float(energy), energy_type) for composition, energy in pairs]

    def phases(self, elements: Iterable[str]) -> list[HullEntry]:
        """Known phases of a chemical system and its subsystems, the lowest of each composition."""
        return list(self._system(frozenset(elements)).entries)

    def elements_of(self, symbols: Iterable[str]) -> set[str]:
        """Those of the symbols that have an elemental reference."""
        return {symbol for symbol in symbols if frozenset((symbol,)) in self._entries}

    def require(self, energy_type: EnergyType) -> None:
        """Refuse energies of another type.

        Raises:
            EnergyTypeError: names both types.
        """
        if energy_type != self.energy_type:
            raise EnergyTypeError(
                f"This hull holds energies of type {self.energy_type}, an energy of type {energy_type} was put to it: "
                "evaluate the crystal with the hull's potential, or build a hull with the crystal's."
            )

    def _add(self, entries: Iterable[HullEntry]) -> set[frozenset[str]]:
        """Take up entries; returns their chemical systems."""
        groups: dict[frozenset[str], list[HullEntry]] = {}
        for entry in entries:
            key = symbols_of(entry.formula)
            if not key or not np.isfinite(entry.energy):
                raise InputError(f"expected a formula and a finite energy for each phase of a hull, got {entry}")
            groups.setdefault(key, []).append(entry)
        for key, new in groups.items():
            self._entries[key] = (*self._entries.get(key, ()), *new)
        return set(groups)

    def _system(self, key: frozenset[str]) -> _System:
        system = self._systems.get(key)
        if system is None:
            symbols = tuple(sorted(key))
            subsets = (frozenset(c) for size in range(1, len(symbols) + 1) for c in combinations(symbols, size))
            entries = [entry for subset in subsets for entry in self._entries.get(subset, ())]
            system = self._systems[key] = _System(symbols, entries)
        return system

    def _is_sparse(self, system: _System) -> bool:
        size = len(system.symbols)
        least = size * (size - 1) // 2 if self.min_compounds is None else self.min_compounds
        return len(system.entries) - size < least


class _System:
    """The phases of one chemical system, the lowest of each composition, and the facets met so far."""

    def __init__(self, symbols: tuple[str, ...], entries: Sequence[HullEntry]) -> None:
        self.symbols = symbols
        lowest: dict[tuple[float, ...], tuple[HullEntry, np.ndarray]] = {}
        for entry in entries:
            amounts = amounts_of(entry.formula)
            vector = np.array([amounts.get(symbol, 0.0) for symbol in symbols])
            vector /= vector.sum()
            key = tuple(np.round(vector, 8).tolist())
            if key not in lowest or entry.energy < lowest[key][0].energy:
                lowest[key] = (entry, vector)
        self.entries = [entry for entry, _ in lowest.values()]
        self.fractions = np.array([vector for _, vector in lowest.values()]).T  # (elements, phases)
        energies = np.array([entry.energy for entry in self.entries])
        pure = [int(np.argmax(row)) for row in self.fractions]
        self.elemental = energies[pure]  # (elements,) eV/atom
        self.formation = energies - self.elemental @ self.fractions  # (phases,) eV/atom
        # phases above the elements' own mixture are on no hull
        self.active = np.flatnonzero(self.formation <= 0.0)
        self.facets: list[tuple[np.ndarray, np.ndarray]] = []  # indices of the phases, inverse of their fractions

    def lowest(self, fractions: np.ndarray) -> tuple[float, list[tuple[int, float]]]:
        """Energy of the hull (eV/atom) at a composition and the mixture that has it: (phase, fraction of atoms)."""
        phases, mixture = self._known_facet(fractions) or self._solve(fractions)
        energy = float(self.elemental @ fractions + self.formation[phases] @ mixture)
        return energy, [(int(phase), float(share)) for phase, share in zip(phases, mixture, strict=True)]

    def _known_facet(self, fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        for phases, inverse in self.facets:
            mixture = inverse @ fractions
            if mixture.min() >= -1e-12:
                return phases, mixture
        return None

    def _solve(self, fractions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Solve the linear program, keep the facet where it is a simplex; returns phases and their shares."""
        from scipy.optimize import linprog

        matrix, cost = self.fractions[:, self.active], self.formation[self.active]
        options = {"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10}
        result = linprog(cost, A_eq=matrix, b_eq=fractions, bounds=(0, None), method="highs-ds", options=options)
        if not result.success:  # the elements alone always are a solution
            raise RuntimeError(f"the hull's linear program failed: {result.message}")
        on_facet = self.active[cost - result.eqlin.marginals @ matrix < _TIGHT]
        if len(on_facet) == len(self.symbols) and np.linalg.cond(self.fractions[:, on_facet]) < 1e8:
            inverse = np.linalg.inv(self.fractions[:, on_facet])
            self.facets.append((on_facet, inverse))
            return on_facet, inverse @ fractions
        used = np.flatnonzero(result.x > _TIGHT)
        shares, *_ = np.linalg.lstsq(matrix[:, used], fractions, rcond=None)
        return self.active[used], shares


def symbols_of(formula: str) -> frozenset[str]:
    """Symbols in a formula: much faster than parsing it, for tables of many thousands."""
    return frozenset(_SYMBOL.findall(formula))


def amounts_of(composition: Composition | Mapping[str, float] | str) -> dict[str, float]:
    """Positive amounts by symbol.

    Raises:
        InputError: nothing is left.
    """
    if isinstance(composition, str):
        from pymatgen.core import Composition

        try:
            composition = Composition(composition)
        except ValueError as error:
            raise InputError(f"expected a formula, got {composition!r}: {error}") from error
    if hasattr(composition, "get_el_amt_dict"):
        items: Mapping[str, float] = composition.get_el_amt_dict()
    else:
        items = composition
    amounts = {str(symbol): float(amount) for symbol, amount in items.items() if amount > 0}
    if not amounts or not np.isfinite(list(amounts.values())).all():
        raise InputError(f"expected a composition with positive amounts, got {composition!r}")
    return amounts
