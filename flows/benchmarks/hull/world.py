"""A chemical system to discover in: known phases, an oracle with a budget, and what counts as a discovery."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.hull import Hull, HullEntry
from loop.io.files import write_text
from loop.novelty import NoveltyIndex
from loop.stability import REFUSED
from loop.values import NEW, Candidate, failed

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from loop.known import KnownCrystals
    from oracles.potentials.base import Potential
    from oracles.relax import RelaxConfig, Relaxed


NO_ENERGY = failed("no-energy")


@dataclass(frozen=True)
class Answer:
    """What the oracle says of one crystal: status, energy (eV/atom) and relaxed structure."""

    status: str
    energy: float = float("nan")
    structure: Structure | None = None
    steps: int = 0

    @property
    def ok(self) -> bool:
        """Whether there is an energy: also of a relaxation that ran out of steps, as in the published benchmark."""
        return self.structure is not None and math.isfinite(self.energy)


@dataclass(frozen=True)
class Referee:
    """A costlier potential, which relaxes on what another one has relaxed, where that may end near its own hull.

    Args:
        potential: the referee's.
        config: of its relaxations.
        hull: of its energies.
        near: eV/atom above that hull; what lies further off as the other potential left it stays so.
    """

    potential: Potential
    config: RelaxConfig
    hull: Hull
    near: float

    def __call__(self, relaxed: Sequence[Relaxed]) -> list[Relaxed]:
        """Energies of the referee, in order; a crystal that the other potential could not relax stays without."""
        from oracles.relax import relax

        found = list(relaxed)
        there = {i: each.structure for i, each in enumerate(found) if each.structure is not None}
        if not there:
            return found
        structures = list(there.values())
        energies = self.potential.energies(structures)
        places = self.hull.batch([s.composition for s in structures], energies, self.hull.energy_type)
        close = {i: there[i] for i, at in zip(there, places, strict=True) if at.e_above_hull <= self.near}
        for i, energy in zip(there, energies.tolist(), strict=True):
            found[i] = replace(found[i], energy=energy, status=found[i].status if math.isfinite(energy) else NO_ENERGY)
        for i, each in zip(close, relax(list(close.values()), self.potential, self.config), strict=True):
            found[i] = replace(each, steps=found[i].steps + each.steps)
        return found


def hull_of(elements: Sequence[str], potential: Potential, ledger: Path) -> Hull:
    """The potential's own hull of a chemical system, each of its phases relaxed; `ledger` keeps what they cost."""
    from oracles.references.hull_on_demand import demand_hull
    from oracles.relax import RelaxConfig

    demand = demand_hull(potential, RelaxConfig(), ledger=str(ledger))
    demand.settle(elements)
    return Hull(demand.phases(elements), potential.energy_type)


class RelaxingOracle:
    """The potential, relaxing; answers are kept in a file, so that methods that ask the same share one relaxation.

    Args:
        potential: relaxes.
        config: of the relaxation.
        path: JSON lines, one an answer; read if there, written to at each new answer.
        referee: another potential that goes on from there, and whose energies count.
    """

    def __init__(self, potential: Potential, config: RelaxConfig, path: Path, referee: Referee | None = None) -> None:
        self._potential, self._config, self._path, self._referee = potential, config, path, referee
        self._answers: dict[str, Answer] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                id, answer = _read(line)
                self._answers[id] = answer

    def __call__(self, candidates: Sequence[Candidate]) -> list[Answer]:
        """One answer a crystal, in order."""
        from oracles.relax import relax

        missing = list({c.id: c for c in candidates if c.id not in self._answers}.values())
        size = self._config.batch_size  # what relaxes together, and what a kill may cost
        for part in (missing[start : start + size] for start in range(0, len(missing), size)):
            relaxed = relax([candidate.structure for candidate in part], self._potential, self._config)
            if self._referee is not None:
                relaxed = self._referee(relaxed)
            for candidate, found in zip(part, relaxed, strict=True):
                self._answers[candidate.id] = Answer(found.status, found.energy, found.structure, found.steps)
            write_text(self._path, "".join(_line(id, answer) for id, answer in self._answers.items()))
        return [self._answers[candidate.id] for candidate in candidates]


def _line(id: str, answer: Answer) -> str:
    structure = None if answer.structure is None else answer.structure.as_dict(verbosity=0)
    energy = answer.energy if answer.ok else None
    data = {"id": id, "status": answer.status, "energy": energy, "steps": answer.steps, "structure": structure}
    return json.dumps(data) + "\n"


def _read(line: str) -> tuple[str, Answer]:
    from pymatgen.core import Structure

    data = json.loads(line)
    structure = None if data["structure"] is None else Structure.from_dict(data["structure"])
    energy = float("nan") if data["energy"] is None else data["energy"]
    return data["id"], Answer(data["status"], energy, structure, data["steps"])


@dataclass(frozen=True)
class Query:
    """One call of the oracle and what it brought."""

    id: str
    formula: str
    status: str
    energy: float  # eV/atom
    e_above_hull: float  # eV/atom, on the hull of that moment, the crystal included
    verdict: str  # new, known or duplicate (of an earlier query); empty without an energy


@dataclass
class Episode:
    """Queries one after the other, with the hull and the discoveries that follow from them.

    A discovery is a relaxed crystal that is neither known nor a duplicate of an earlier query and lies within a
    tolerance of the hull; earlier ones are counted again on each new hull (Malik et al., arXiv 2601.20996).

    Args:
        initial: hull of the known phases.
        known: fingerprints of known crystals.
        tolerances: eV/atom.
    """

    initial: Hull
    known: KnownCrystals | None
    tolerances: tuple[float, ...]
    hull: Hull = field(init=False)
    queries: list[Query] = field(init=False, default_factory=list)
    curves: dict[float, list[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.hull = self.initial
        self.curves = {tolerance: [] for tolerance in self.tolerances}
        self._novelty = NoveltyIndex(self.known)
        self._new: list[tuple[Any, float]] = []  # composition and energy of what is new

    def take(self, candidate: Candidate, answer: Answer) -> float:
        """Count one query; returns the distance from the initial hull (eV/atom), NaN without an energy."""
        status, above, verdict, initial = answer.status, float("nan"), "", float("nan")
        if answer.ok and answer.structure is not None:
            composition, kind = answer.structure.composition, self.initial.energy_type
            initial = self.initial.e_above_hull(composition, answer.energy, kind).e_above_hull
            if initial < REFUSED:
                status, initial = failed("energy-outlier"), float("nan")
            else:
                entry = HullEntry(answer.structure.composition.reduced_formula, answer.energy, candidate.id)
                self.hull = self.hull.with_entries([entry], kind)
                above = self.hull.e_above_hull(composition, answer.energy, kind).e_above_hull
                verdict = self._novelty.judge([answer.structure], [candidate.id])[0].kind
                self._novelty.add([answer.structure], [candidate.id])
                if verdict == NEW:
                    self._new.append((composition, answer.energy))
        self.queries.append(Query(candidate.id, candidate.formula, status, answer.energy, above, verdict))
        self._count()
        return initial

    def _count(self) -> None:
        kind = self.hull.energy_type
        above = [self.hull.e_above_hull(composition, energy, kind).e_above_hull for composition, energy in self._new]
        for tolerance, curve in self.curves.items():
            curve.append(sum(value <= tolerance + 1e-9 for value in above))


@dataclass(frozen=True)
class Outcome:
    """An episode on disk: discoveries after 1, 2, ... queries by tolerance, and the queries."""

    system: str
    method: str
    seed: int
    curves: dict[str, list[int]]  # tolerance in eV/atom -> discoveries
    queries: list[dict[str, Any]]
    seconds: float

    @classmethod
    def of(cls, name: tuple[str, str, int], episode: Episode, seconds: float) -> Outcome:
        """From a finished episode."""
        curves = {f"{tolerance:g}": curve for tolerance, curve in episode.curves.items()}
        return cls(*name, curves, [asdict(query) for query in episode.queries], seconds)
