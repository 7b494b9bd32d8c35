"""A hull whose competing phases are computed by the very oracle that judges, and only those that can matter.

Every known crystal of a chemical system enters a linear program with a lower bound of its relaxed energy (an estimate
minus a margin, `oracles.references.phase_estimates`). The phases of the optimum that were not computed yet are
computed, side by side, and replace their bounds: first as they stand where the estimate was another's, which is cheap
and may rule them out, then relaxed. That is repeated until the optimum consists of relaxed phases alone. A phase that
was left out could then not lower the hull even if it relaxed by its whole margin: the distance is that of the complete
hull, as long as the margins hold. Margins that computed phases break are widened.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Self

import numpy as np

from loop.hull import Hull, HullEntry, HullResult, amounts_of
from loop.values import OK, EnergyType, Evaluation
from oracles.references.element_prototypes import MOLECULES, prototypes
from oracles.references.phase_estimates import CrystalSource, Estimates, Phase
from oracles.references.phase_ledger import PhaseLedger, PotentialPhases, Progress, relaxation, require_crystals
from oracles.references.table import References, is_element, shipped_tables
from oracles.relax import RelaxConfig

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure

    from oracles.potentials.base import Potential

LOWEST = -100.0  # eV/atom: stands for a phase of which nothing is known, which is then computed
LARGEST_PROTOTYPE = 12  # atoms per cell, of prototypes tried for an element beside its published crystals
BOND = 1.15  # times the length in the gas: the longest bond of a molecule in a crystal
WIDEN = 1.25  # times the largest drop below an estimate that was seen, where that exceeds the margin


class DemandHull(Hull):
    """The hull of the phases that matter, each computed when it is first needed.

    Args:
        ledger: computes phases, once.
        source: known crystals.
        estimates: what their energies could be.
        finds: further phases of known energy, such as a campaign's own.
        levels: distances (eV/atom) that are asked about; see `deciding`. None: the distance itself is wanted.
        progress: called with phases done and their total, of each round of computing.
    """

    def __init__(
        self,
        ledger: PhaseLedger,
        source: CrystalSource,
        estimates: Estimates,
        *,
        min_compounds: int | None = None,
        finds: Sequence[HullEntry] = (),
        levels: Sequence[float] | None = None,
        progress: Progress | None = None,
    ) -> None:
        super().__init__((), ledger.computer.energy_type, min_compounds=min_compounds)
        self.ledger, self.source, self.estimates, self.progress = ledger, source, estimates, progress
        self.levels = None if levels is None else tuple(levels)
        self._finds = tuple(finds)
        self._computed: dict[str, Evaluation] = {}  # by id of the phase, failures included
        self._phases: dict[frozenset[str], list[Phase]] = {}
        self._corners: dict[str, tuple[HullEntry, ...]] = {}  # by element
        self._points: dict[str, Evaluation] = {}  # of phases as they stand, failures included
        # eV/atom, by chemical system and whether a phase was computed as it stands
        self._widened: dict[tuple[frozenset[str], bool], float] = {}

    @property
    def checksum(self) -> str:
        """Of everything that a distance depends on: phases, settings of their relaxation, margins."""
        margins = self.estimates.margins
        what = [self.ledger.key.oracle, self.ledger.key.settings, margins, self.source.checksum]
        what += [*self.estimates.rules, *self.estimates.standing]
        what += [] if self.levels is None else [self.levels]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    @property
    def computed(self) -> dict[str, Evaluation]:
        """Phases that were computed or found in the ledger, by id; failures included."""
        return dict(self._computed)

    @property
    def looked_at(self) -> dict[str, Evaluation]:
        """Phases that were computed as they stand, by id; failures included."""
        return dict(self._points)

    @property
    def points(self) -> dict[str, float]:
        """Energies (eV/atom) of phases as they stand that were computed, by id; NaN where there is none."""
        return {id: found.value("energy") for id, found in self._points.items()}

    def with_entries(self, entries: Iterable[HullEntry], energy_type: EnergyType) -> Self:
        """A hull with further phases, such as new finds; what is computed through either counts for both.

        Raises:
            EnergyTypeError: their energies are of another type.
        """
        self.require(energy_type)
        return self._like((*self._finds, *entries), self.levels)

    def deciding(self, levels: Sequence[float], progress: Progress | None = None) -> Self:
        """A hull that computes no phase once it is certain on which side of each level a distance lies.

        Most verdicts ("within 0.1 eV/atom") need nothing computed where a table holds the energies of the phases as
        published: relaxation lowers those, by no more than the margin, so the distance lies between two bounds.
        Where no level lies between them, the lower bound stands for the distance, and the message says so. What is
        computed through either hull counts for both. `progress` is as of the class; none: this hull's own.
        """
        return self._like(self._finds, levels, progress)

    def _like(
        self, finds: Sequence[HullEntry], levels: Sequence[float] | None, progress: Progress | None = None
    ) -> Self:
        hull = type(self)(
            self.ledger, self.source, self.estimates,
            min_compounds=self.min_compounds, finds=finds, levels=levels, progress=progress or self.progress,
        )  # fmt: skip
        hull._computed, hull._phases, hull._corners = self._computed, self._phases, self._corners
        hull._widened, hull._points = self._widened, self._points
        return hull

    def e_above_hull(
        self, composition: Composition | Mapping[str, float] | str, energy_per_atom: float, energy_type: EnergyType
    ) -> HullResult:
        """`batch` of one energy."""
        return self.batch([composition], [energy_per_atom], energy_type)[0]

    def batch(
        self,
        compositions: Sequence[Composition | Mapping[str, float] | str],
        energies_per_atom: Sequence[float] | np.ndarray,
        energy_type: EnergyType,
    ) -> list[HullResult]:
        """Distances from the hull; the phases that they need are computed together.

        A competing phase that could not be computed is left out, and named in the message.

        Raises:
            EnergyTypeError: the energies are of another type.
            InputError: a composition is none.
        """
        self.require(energy_type)
        asked = [amounts_of(composition) for composition in compositions]
        results: list[HullResult | None] = [None] * len(asked)
        finite = [index for index, energy in enumerate(energies_per_atom) if np.isfinite(energy)]
        open_ = set(range(len(asked)))
        self._settle_corners(sorted({symbol for index in finite for symbol in asked[index]}))
        while open_:
            hulls: dict[frozenset[str], Hull] = {}
            tops: dict[frozenset[str], Hull] = {}
            wanted: dict[frozenset[str], set[str]] = {}
            for index in sorted(open_):
                system = frozenset(asked[index])
                if system not in hulls:
                    hulls[system] = self._bounded(system)
                result = hulls[system].e_above_hull(asked[index], float(energies_per_atom[index]), energy_type)
                missing = self._unknown(system, result)
                if missing and self.levels is not None:
                    if system not in tops:
                        tops[system] = self._highest(system)
                    least = tops[system].e_above_hull(asked[index], float(energies_per_atom[index]), energy_type)
                    if (bound := self._decided(least, result)) is not None:
                        missing, result = set(), bound
                wanted.setdefault(system, set()).update(missing)
                if not missing:
                    lost = self._lost(system, asked[index], result, hulls[system])
                    results[index] = self._told(system, result, lost)
                    open_.discard(index)
            self._look_at(wanted)
            widened = {system for system, ids in wanted.items() if self._widen(system, ids)}
            open_ |= {index for index in finite if frozenset(asked[index]) in widened}
        return [result for result in results if result is not None]

    def bounds(
        self, compositions: Sequence[Composition | Mapping[str, float] | str], energies_per_atom: Sequence[float]
    ) -> list[tuple[float, float]]:
        """Between which distances (eV/atom) each lies, by what is known so far; computes no compound.

        The lower bound is the distance by phases as published, of those with an energy of this potential; the upper one
        lets each come down by its margin. NaN without an energy or an element.
        """
        asked = [amounts_of(composition) for composition in compositions]
        self._settle_corners(sorted({symbol for amounts in asked for symbol in amounts}))
        hulls: dict[frozenset[str], tuple[Hull, Hull]] = {}
        found = []
        for amounts, energy in zip(asked, map(float, energies_per_atom), strict=True):
            system = frozenset(amounts)
            if system not in hulls:
                hulls[system] = self._highest(system), self._bounded(system)
            low, high = (hull.e_above_hull(amounts, energy, self.energy_type).e_above_hull for hull in hulls[system])
            found.append((low, high) if np.isfinite(energy) else (np.nan, np.nan))
        return found

    def complete(self, elements: Iterable[str]) -> Hull:
        """The hull of every known compound of a chemical system, all of them computed: what `batch` saves."""
        system = frozenset(elements)
        self._settle_corners(sorted(system))
        phases = [phase for phase in self._phases_of(system) if not is_element(phase.formula) and not phase.settled]
        self._compute({phase.id for phase in phases if phase.crystal})
        return self._bounded(system)

    def phases(self, elements: Iterable[str]) -> list[HullEntry]:
        """The phases of a chemical system that were computed, the lowest of each composition; no bounds."""
        system = frozenset(elements)
        self._settle_corners(sorted(system))
        known = [phase for phase in self._phases_of(system) if phase.settled or phase.id in self._computed]
        entries = [entry for phase in known if (entry := self._entry(phase, {}, system)) is not None]
        corners = [entry for symbol in sorted(system) for entry in self._corners[symbol]]
        return Hull([*corners, *entries], self.energy_type).phases(system)

    def settle(self, elements: Iterable[str], largest: int | None = None) -> None:
        """Compute every phase that lies on a hull of these elements, so that no distance has to wait for one.

        Args:
            elements: of a chemical space.
            largest: number of elements in one phase; None: any.
        """
        phases = [phase for phase in self._phases_of(frozenset(elements)) if not is_element(phase.formula)]
        formulas = sorted(
            {phase.formula for phase in phases if largest is None or len(amounts_of(phase.formula)) <= largest}
        )
        # where a phase lies on the hull, it is its own decomposition
        self.batch(formulas, np.zeros(len(formulas)), self.energy_type)

    def elements_of(self, symbols: Iterable[str]) -> set[str]:
        """Those of the symbols that have a corner; computed where it was not."""
        wanted = sorted(set(symbols))
        self._settle_corners(wanted)
        return {symbol for symbol in wanted if self._corners[symbol]}

    # phases -----------------------------------------------------------------------------------------------------------

    def _phases_of(self, system: frozenset[str]) -> list[Phase]:
        if system not in self._phases:
            self._phases[system] = self.estimates.phases(sorted(system), self.source)
        return self._phases[system]

    def _settle_corners(self, symbols: Sequence[str]) -> None:
        """Energies of the elements: from an own table, else all crystals of the element are computed."""
        new = [symbol for symbol in symbols if symbol not in self._corners]
        settled = {entry.formula: entry for entry in self.estimates.corners(new)}
        for symbol in new:
            self._corners[symbol] = (settled[symbol],) if symbol in settled else ()
        rest = [symbol for symbol in new if symbol not in settled and symbol in self.ledger.computer.elements]
        crystals = {symbol: self._allotropes(symbol) for symbol in rest}
        if self.ledger.computer.costly:
            crystals = self._worth_relaxing(crystals)
        self._compute({id for ids in crystals.values() for id in ids})
        for symbol, ids in crystals.items():
            good = [(self._computed[id].value("energy"), id) for id in ids if _usable(self._computed[id])]
            if good:
                energy, id = min(good)
                self._corners[symbol] = (HullEntry(symbol, energy, id),)

    def _allotropes(self, symbol: str) -> set[str]:
        """Crystals of an element that may be its lowest, by what is published of them, and prototypes."""
        if self.ledger.computer.costly and (few := self._few_allotropes(symbol)):
            return few
        phases = self._phases_of(frozenset((symbol,)))
        heights = np.array([phase.estimate for phase in phases])
        near = heights <= np.nanmin(heights, initial=np.inf) + self.estimates.element_margin
        published = {phase.id for phase, keep in zip(phases, near | np.isnan(heights), strict=True) if keep}
        return published | other_crystals(symbol).keys()

    def _few_allotropes(self, symbol: str) -> set[str]:
        """Those of about the lowest published height, and those that relaxed lowest by the potentials of the tables."""
        all_ = {phase.id: self.source.known(phase.id).e_above_hull for phase in self._phases_of(frozenset((symbol,)))}
        lowest = min((height for height in all_.values() if np.isfinite(height)), default=np.inf)
        near = {id: round(height, 3) for id, height in all_.items() if height <= lowest + self.estimates.element_margin}
        packings = [id for id in near if symbol in MOLECULES and _is_molecular(self._structure(id), symbol)]
        if packings:  # of one molecule, which differ by no more than the margin: the smallest cell stands for all
            return {min(packings, key=lambda one: (len(self._structure(one)), near[one], one))}
        return near.keys() | (self.estimates.lowest_crystals(symbol) & all_.keys())

    def _worth_relaxing(self, crystals: Mapping[str, set[str]]) -> dict[str, set[str]]:
        """Of each element those that may end lowest, by their energies as they stand and the margin of relaxation."""
        self._point({id for ids in crystals.values() for id in ids})
        found = {}
        for symbol, ids in crystals.items():
            points = {id: self._points[id].value("energy") for id in ids if _usable(self._points[id])}
            lowest = min(points.values(), default=np.nan)
            found[symbol] = {id for id, point in points.items() if point <= lowest + self.estimates.own_margin}
        return found

    def _elemental(self, system: frozenset[str]) -> dict[str, float]:
        """eV/atom of the elements that have a corner."""
        return {symbol: entries[0].energy for symbol in system if (entries := self._corners.get(symbol))}

    def _bounded(self, system: frozenset[str]) -> Hull:
        """The hull of computed energies, and of lower bounds where there are none yet."""
        elements = self._elemental(system)
        entries = [entry for symbol in system for entry in self._corners.get(symbol, ())]
        if len(elements) == len(system):
            phases = [self._entry(phase, elements, system) for phase in self._phases_of(system)]
            entries += [entry for entry in phases if entry is not None]
            entries += [find for find in self._finds if set(amounts_of(find.formula)) <= system]
        return Hull(entries, self.energy_type, min_compounds=self.min_compounds)

    def _entry(self, phase: Phase, elements: Mapping[str, float], system: frozenset[str]) -> HullEntry | None:
        done = self._computed.get(phase.id)
        if done is not None:
            return HullEntry(phase.formula, done.value("energy"), phase.id) if _usable(done) else None
        if is_element(phase.formula) or _is_lost(phase):  # an element's corner is settled
            return None
        if phase.settled:
            return HullEntry(phase.formula, phase.estimate, phase.id)
        lower = self._known(phase).lower(elements, self._widened.get((system, phase.id in self._points), 0.0))
        return HullEntry(phase.formula, max(lower, LOWEST), phase.id)

    def _highest(self, system: frozenset[str]) -> Hull:
        """The hull of upper bounds: relaxed energies, and this potential's own of crystals as published."""
        entries = [entry for symbol in system for entry in self._corners.get(symbol, ())]
        for phase in map(self._known, self._phases_of(system)):
            done = self._computed.get(phase.id)
            if done is not None and _usable(done):
                entries.append(HullEntry(phase.formula, done.value("energy"), phase.id))
            elif done is None and not phase.guessed and not is_element(phase.formula):
                entries.append(HullEntry(phase.formula, phase.estimate, phase.id))
        entries += [find for find in self._finds if set(amounts_of(find.formula)) <= system]
        return Hull(entries, self.energy_type, min_compounds=self.min_compounds)

    def _decided(self, least: HullResult, most: HullResult) -> HullResult | None:
        """The lower bound, where none of the levels lies between it and the upper one."""
        assert self.levels is not None
        low, high = least.e_above_hull, most.e_above_hull
        if least.status != OK or any(low <= level <= high for level in self.levels):
            return None
        told = f"a lower bound, the distance is at most {high:.3f} eV/atom: by phases as published, not relaxed"
        notes = "; ".join(filter(None, (least.message, told)))
        return replace(least, message=notes, n_entries=most.n_entries, sparse=most.sparse)

    def _known(self, phase: Phase) -> Phase:
        """With the energy as it stands in place of a guess, where that is known."""
        point = self._points.get(phase.id)
        if point is None or not _usable(point):
            return phase
        return Phase(phase.id, phase.formula, point.value("energy"), False, self.estimates.own_margin, guessed=False)

    def _look_at(self, wanted: Mapping[frozenset[str], set[str]]) -> None:
        """Energies of phases as they stand where those are unknown; relaxation of the others."""
        points, relaxed = set[str](), set[str]()
        for system, missing in wanted.items():
            phases = {phase.id: phase for phase in self._phases_of(system) if phase.id in missing}
            guessed = {id for id in phases if phases[id].guessed and id not in self._points}
            points |= guessed
            relaxed |= set() if guessed else phases.keys()  # a look is cheap, and may rule the others out
        self._point(points)
        self._compute(relaxed)

    def _point(self, ids: set[str]) -> None:
        if todo := sorted(ids - self._points.keys()):
            self._points |= self.ledger.computer.points({id: self._structure(id) for id in todo}, self.progress)

    def _unknown(self, system: frozenset[str], result: HullResult) -> set[str]:
        """Phases of a decomposition that stand there with a bound."""
        if result.status != OK:
            return set()
        bounded = {phase.id for phase in self._phases_of(system) if not phase.settled} - self._computed.keys()
        return {id for id in result.ids.values() if id in bounded and id not in self._settled_ids(system)}

    def _settled_ids(self, system: frozenset[str]) -> set[str]:
        return {entry.id for symbol in system for entry in self._corners.get(symbol, ())}

    def _compute(self, ids: set[str]) -> None:
        todo = sorted(ids - self._computed.keys())
        if not todo:
            return
        crystals = {id: self._structure(id) for id in todo}
        self._computed |= self.ledger.energies(crystals, self.progress)

    def _structure(self, id: str) -> Structure:
        symbol, named, _ = id.partition(" ")
        return other_crystals(symbol)[id] if named else self.source.structure(id)

    def _widen(self, system: frozenset[str], ids: set[str]) -> bool:
        """Whether phases lie further below their estimates than was thought: others of the system may, too."""
        before = dict(self._widened)
        elements = self._elemental(system)
        for phase in self._phases_of(system) if ids else []:
            if phase.id not in ids:
                continue
            known, point, done = self._known(phase), self._points.get(phase.id), self._computed.get(phase.id)
            if point is not None:
                drop = phase.lower(elements, 0.0) + phase.margin - point.value("energy")
                self._note((system, False), phase, drop)
            if done is not None:
                drop = known.lower(elements, 0.0) + known.margin - done.value("energy")
                self._note((system, point is not None), known, drop)
        return self._widened != before

    def _note(self, key: tuple[frozenset[str], bool], phase: Phase, drop: float) -> None:
        """`drop`: how far below its estimate a phase turned out to lie, eV/atom."""
        if np.isfinite(drop) and drop > phase.margin:
            self._widened[key] = max(self._widened.get(key, 0.0), WIDEN * drop)

    def _lost(
        self, system: frozenset[str], amounts: Mapping[str, float], result: HullResult, hull: Hull
    ) -> list[Phase]:
        """Phases without crystal and energy of this potential that could lower the hull here."""
        phases = [phase for phase in self._phases_of(system) if _is_lost(phase)]
        if result.status != OK or not phases:
            return []
        elements = self._elemental(system)
        bounds = [HullEntry(p.formula, max(p.lower(elements, 0.0), LOWEST), p.id) for p in phases]
        lower = hull.with_entries(bounds, self.energy_type).e_above_hull(amounts, 0.0, self.energy_type)
        return [phase for phase in phases if phase.id in lower.ids.values()]

    def _told(self, system: frozenset[str], result: HullResult, absent: Sequence[Phase]) -> HullResult:
        """With a word on the phases that could not be computed, and on those whose relaxation was cut off."""
        if result.status != OK:
            return result
        tried = {**self._points, **self._computed}
        phases = self._phases_of(system)
        lost = [
            f"{p.formula} ({p.id}: {tried[p.id].status})" for p in phases if p.id in tried and not _usable(tried[p.id])
        ]
        lost += [f"{p.formula} ({p.id}: its crystal is not in the package)" for p in absent]
        standing = [
            f"{p.formula} ({p.id})" for p in phases if p.settled and not p.crystal and result.ids.get(p.formula) == p.id
        ]
        stopped = [
            f"{formula} ({id}: {self._computed[id].status})"
            for formula, id in result.ids.items()
            if id in self._computed and not self._computed[id].ok
        ]
        notes = [result.message]
        if standing:
            names = ", ".join(standing)
            notes.append(f"rests on the table's energy of a crystal that is not in the package: {names}")
        if lost:
            notes.append(f"not among the phases: {', '.join(lost)}")
        if stopped:
            names = ", ".join(stopped)
            notes.append(f"rests on a phase whose relaxation did not end, so it is this far above or further: {names}")
        return replace(result, message="; ".join(filter(None, notes)))


@cache
def other_crystals(symbol: str) -> dict[str, Structure]:
    """Crystals of an element that nobody published, or not in the table: ASE's state, molecules, named prototypes."""
    found = {f"{symbol} {each.name}": each.structure for each in prototypes(symbol, largest=0)}
    return {id: structure for id, structure in found.items() if len(structure) <= LARGEST_PROTOTYPE}


def demand_hull(
    potential: Potential,
    config: RelaxConfig,
    *,
    ledger: str | None = None,
    source: CrystalSource | None = None,
    tables: Sequence[References] | None = None,
    held_out: bool = True,
    progress: Progress | None = None,
) -> DemandHull:
    """The hull on demand of a potential over the reference crystals in the package.

    Args:
        potential: judges, and computes the phases.
        config: how candidates are relaxed, and so the phases.
        ledger: file or URL; by default `oracles.references.phase_ledger.default_ledger`.
        source: other crystals.
        tables: other tables that propose phases; by default all that are shipped, the potential's own first.
        held_out: whether formulas count whose crystals are not shipped (`Estimates`).
        progress: called with phases done and their total.

    Raises:
        InputError: the package holds no reference crystals.
    """
    crystals = require_crystals(source)
    proposed = shipped_tables() if tables is None else tables
    estimates = Estimates(proposed, potential.energy_type, relaxation=relaxation(config), held_out=held_out)
    phases = PhaseLedger(PotentialPhases(potential, config), ledger)
    return DemandHull(phases, crystals, estimates, progress=progress)


def _is_lost(phase: Phase) -> bool:
    """Whether there is neither a crystal to compute nor an energy of this potential."""
    return not phase.crystal and not phase.settled


def _is_molecular(crystal: Structure, symbol: str) -> bool:
    """Whether each atom has one neighbour at the distance of a diatomic molecule."""
    bond, _ = MOLECULES[symbol]
    bound = crystal.get_neighbor_list(BOND * bond)[0]
    return bool((np.bincount(bound, minlength=len(crystal)) == 1).all())


def _usable(evaluation: Evaluation) -> bool:
    """Whether there is an energy: one that did not converge is an upper bound, and better than no phase."""
    return bool(np.isfinite(evaluation.value("energy")))
