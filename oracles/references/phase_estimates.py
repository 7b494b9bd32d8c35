"""What the energies of competing phases could be, before the potential that judges has computed them.

A phase is proposed by the cheapest number that there is: the same potential's energy of the crystal as published, else
another potential's formation energy, else the published one. Each comes with the margin by which the relaxed energy may
lie lower. Where a table holds the crystal's own relaxed energy, nothing is left to compute.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pymatgen.core import Composition, Structure

from loop.hull import HullEntry, symbols_of
from loop.values import EnergyType
from oracles.potentials.corrections import SCHEME, anion_correction
from oracles.references.table import References, is_element

if TYPE_CHECKING:
    from oracles.references.crystals import Known

OWN_MARGIN = 0.03  # eV/atom: relaxation lowered 99 % of 328 phases by less, from their published cells (docs/LOG.md)
OTHER_MARGIN = 0.20  # eV/atom: whatever is not the judge's own energy of this very crystal


class CrystalSource(Protocol):
    """Known crystals; `oracles.references.crystals.ReferenceCrystals` is one."""

    @property
    def checksum(self) -> str:
        """Of the crystals."""
        ...

    def in_system(self, elements: Collection[str]) -> list[str]:
        """Ids of the crystals that hold no other elements."""
        ...

    def known(self, id: str) -> Known:
        """What is published about one."""
        ...

    def structure(self, id: str) -> Structure:
        """The crystal."""
        ...


@dataclass(frozen=True)
class Phase:
    """A competing phase that was not computed yet."""

    id: str
    formula: str
    estimate: float  # eV/atom on the judge's scale; relative to the elements where `formation`; NaN: unknown
    formation: bool
    margin: float  # eV/atom by which its relaxed energy may lie below the estimate
    guessed: bool = True  # not the judge's own energy of this very crystal
    settled: bool = False  # the estimate is the relaxed energy itself
    crystal: bool = True  # whether there is one to compute; a table may hold energies of crystals that are not shipped

    def lower(self, elements: Mapping[str, float], widened: float) -> float:
        """Lower bound of its energy in eV/atom, -inf where nothing is known.

        Args:
            elements: eV/atom of each element, for formation energies.
            widened: margin that phases already computed have shown to be needed.
        """
        if not np.isfinite(self.estimate):
            return -np.inf
        shift = _mixture(self.formula, elements) if self.formation else 0.0
        return self.estimate + shift - max(self.margin, widened)


def _mixture(formula: str, elements: Mapping[str, float]) -> float:
    composition = Composition(formula)
    return sum(composition.get_atomic_fraction(e) * elements[e.symbol] for e in composition.elements)


class Estimates:
    """Estimates from tables of reference phases, the judge's own first.

    Args:
        tables: of any energy types.
        energy_type: of the judge.
        own_margin: of energies of its own type, unrelaxed, eV/atom.
        other_margin: of formation energies by others, and of polymorphs of what an own table holds, eV/atom.
        relaxation: settings that phases are to be relaxed by; only relaxed energies of a table that says the same
            (``relaxation`` in its JSON) count as such.
        element_margin: eV/atom above the lowest published crystal of an element, within which another may be lower;
            None: `other_margin`.
        uncorrected: the judge's energies are raw PBE: MP2020's anion corrections are taken out of others', and
            polymorphs are put as far above their formula's lowest as is published.
        held_out: whether formulas count of which there is no crystal, such as those of the test split. Benchmarks that
            ask about these leave them out.
    """

    def __init__(
        self,
        tables: Sequence[References],
        energy_type: EnergyType,
        own_margin: float = OWN_MARGIN,
        other_margin: float = OTHER_MARGIN,
        relaxation: Mapping[str, Any] | None = None,
        element_margin: float | None = None,
        *,
        uncorrected: bool = False,
        held_out: bool = True,
    ) -> None:
        self._own = [_Table(table, relaxation) for table in tables if table.energy_type == energy_type]
        others = [table for table in tables if table.energy_type != energy_type]
        self._others = [(_Table(table), table.energy_type.corrections) for table in others]
        self._uncorrected, self._held_out = uncorrected, held_out
        self.own_margin, self.other_margin = own_margin, other_margin
        self.element_margin = other_margin if element_margin is None else element_margin

    @property
    def margins(self) -> list[float]:
        """All that are not those of each other, eV/atom."""
        named = [self.own_margin, self.other_margin]
        return named if self.element_margin == self.other_margin else [*named, self.element_margin]

    @property
    def has_own(self) -> bool:
        """Whether a table of the judge's own energies is among them."""
        return bool(self._own)

    @property
    def rules(self) -> list[str]:
        """What else decides which phases matter; a rule that changes gets another name, so distances do not mix."""
        return [] if self._uncorrected else ["polymorphs as low as their formula's lowest"]

    @property
    def standing(self) -> list[str]:
        """Checksums of own tables: energies of crystals that are not shipped count as they are, marked or not."""
        return [table.checksum for table in self._own] if self._held_out else []

    def corners(self, elements: Collection[str]) -> list[HullEntry]:
        """Elements whose lowest relaxed prototype an own table holds; they need no computing."""
        found = {symbol: table.corners[symbol] for table in self._own for symbol in elements if symbol in table.corners}
        return [HullEntry(symbol, energy, name) for symbol, (name, energy) in sorted(found.items())]

    def lowest_crystals(self, element: str) -> set[str]:
        """Ids of the crystals of an element that relaxed lowest by the potentials of the tables."""
        tables = [*self._own, *(table for table, _ in self._others)]
        return {table.corners[element][0] for table in tables if element in table.corners}

    def phases(self, elements: Collection[str], source: CrystalSource) -> list[Phase]:
        """All known crystals of a chemical system and its subsystems, and formulas that are known by energy alone."""
        known = [source.known(id) for id in source.in_system(elements)]
        lowest: dict[str, Known] = {}
        for each in known:
            if each.e_above_hull < getattr(lowest.get(each.formula), "e_above_hull", np.inf):
                lowest[each.formula] = each
        found = [self._phase(each, lowest.get(each.formula)) for each in known]
        return found + self._without_crystal(elements, {each.formula for each in known})

    def _without_crystal(self, elements: Collection[str], known: set[str]) -> list[Phase]:
        """Formulas of the tables of which the source has no crystal: own energies count as they are.

        Without them a hull could lack a compound as common as rock salt, whose crystal is not shipped.
        """
        found: dict[str, Phase] = {}
        for table in self._own if self._held_out else []:
            for formula in table.in_system(elements):
                if formula not in known and formula not in found:
                    id, energy = table.lowest[formula]
                    found[formula] = Phase(id, formula, energy, False, 0.0, guessed=False, settled=True, crystal=False)
        for table, corrections in self._others if self._held_out else []:
            for formula in table.in_system(elements):
                if formula not in known and formula not in found and (height := table.formation(formula)) is not None:
                    height -= self._correction(formula, corrections)
                    id, _ = table.lowest[formula]
                    found[formula] = Phase(id, formula, height, True, self.other_margin, crystal=False)
        return list(found.values())

    def _phase(self, known: Known, lowest: Known | None) -> Phase:
        above = self._above(known, lowest)
        for table in self._own:
            if known.id in table.relaxed and not is_element(known.formula):
                energy = table.relaxed[known.id]
                return Phase(known.id, known.formula, energy, False, 0.0, guessed=False, settled=True)
            if known.id in table.points:
                return Phase(known.id, known.formula, table.points[known.id], False, self.own_margin, guessed=False)
            if known.formula in table.energy:
                estimate = self._lowest_of(table, known.formula, lowest or known) + above
                return Phase(known.id, known.formula, estimate, False, self.other_margin)
        for table, corrections in self._others:
            if (formation := table.formation(known.formula)) is not None:
                formation -= self._correction(known.formula, corrections)
                return Phase(known.id, known.formula, formation + above, True, self.other_margin)
        formation = known.formation_energy - self._correction(known.formula, SCHEME)  # as published
        return Phase(known.id, known.formula, formation, True, self.other_margin)

    def _above(self, known: Known, lowest: Known | None) -> float:
        """How far (eV/atom) a crystal is put above its formula's lowest: as published for elements and for PBE alone.

        Which polymorph is the lowest, and by how much, potentials and published energies of several releases often
        disagree about. Unknown differences count as none.
        """
        if lowest is None or not (self._uncorrected or is_element(known.formula)):
            return 0.0
        above = known.e_above_hull - lowest.e_above_hull
        return float(above) if np.isfinite(above) else 0.0

    def _lowest_of(self, table: _Table, formula: str, lowest: Known) -> float:
        """Energy (eV/atom) of a formula's lowest crystal: the judge's own, or the published one where that is lower."""
        own: float = table.points.get(lowest.id, table.energy[formula])
        if (elements := table.mixture(formula)) is None:
            return own
        return float(np.fmin(own, lowest.formation_energy - self._correction(formula, SCHEME) + elements))

    def _correction(self, formula: str, scheme: str) -> float:
        """What lies in another's formation energy and not in the judge's, eV/atom."""
        return anion_correction(formula) if self._uncorrected and scheme == SCHEME else 0.0


class _Table:
    """A table by formula, unrelaxed energies, since those are upper bounds of relaxed ones; and by crystal.

    Args:
        table: of reference phases; may hold several crystals of a formula.
        relaxation: settings by which energies must have been relaxed to count as such; None: none do.
    """

    def __init__(self, table: References, relaxation: Mapping[str, Any] | None = None) -> None:
        energies = table.energies if table.unrelaxed is None else table.unrelaxed
        self.checksum = table.checksum
        self.points = dict(zip(table.ids, energies.tolist(), strict=True))  # by id, as they stand
        self.lowest: dict[str, tuple[str, float]] = {}  # id and energy of each formula, relaxed where that is known
        for formula, id, energy in zip(table.formulas, table.ids, table.energies.tolist(), strict=True):
            if energy < self.lowest.get(formula, ("", np.inf))[1]:
                self.lowest[formula] = (id, energy)
        self.energy: dict[str, float] = {}  # the lowest of each formula
        for formula, energy in zip(table.formulas, energies.tolist(), strict=True):
            self.energy[formula] = min(energy, self.energy.get(formula, np.inf))
        same = relaxation is not None and table.provenance.get("relaxation") == dict(relaxation)
        rows = zip(table.ids, table.energies.tolist(), strict=True)
        self.relaxed = {id: energy for id, energy in rows if same and id in table.relaxed}
        singles = {f: symbol for f in table.formulas if (symbol := is_element(f))}
        corners = table.provenance.get("corners", {})
        self.corners = {symbol: (str(c["name"]), float(c["energy"])) for symbol, c in corners.items()}
        # a molecular crystal as built, before it relaxes, may lie eV too high, and all its compounds look too deep
        self._elements = {symbol: self.energy[formula] for formula, symbol in singles.items()}
        self._elements |= {symbol: energy for symbol, (_, energy) in self.corners.items()}

    @cached_property
    def _systems(self) -> dict[frozenset[str], list[str]]:
        """Formulas of compounds by their elements."""
        found: dict[frozenset[str], list[str]] = {}
        for formula in self.energy:
            system = symbols_of(formula)
            if len(system) > 1:
                found.setdefault(system, []).append(formula)
        return found

    def in_system(self, elements: Collection[str]) -> list[str]:
        """Formulas of the compounds of these elements."""
        symbols = sorted(elements)
        systems = (frozenset(few) for size in range(2, len(symbols) + 1) for few in combinations(symbols, size))
        return [formula for system in systems for formula in self._systems.get(system, ())]

    def formation(self, formula: str) -> float | None:
        """eV/atom relative to the table's elements."""
        if formula not in self.energy or (elements := self.mixture(formula)) is None:
            return None
        return float(self.energy[formula] - elements)

    def mixture(self, formula: str) -> float | None:
        """Energy (eV/atom) of the table's elements in a formula's proportions; None where it lacks one."""
        if not symbols_of(formula) <= self._elements.keys():
            return None
        return _mixture(formula, self._elements)
