"""Methods of discovery that the hull benchmark compares: which crystal to ask the oracle about next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from flows.benchmarks.crystals import RANDOM
from flows.benchmarks.hull.world import Answer, Episode
from loop.fingerprint import formula_key, symmetry
from loop.values import OK, Candidate, Evaluation, Quantity

if TYPE_CHECKING:
    from loop.hull import Hull
    from loop.known import KnownCrystals
    from surrogates.features import FeatureExtractor

GENERATOR, RANKING, OURS = "generator", "generator_ranking", "ours"
METHODS = (OURS, RANKING, GENERATOR, RANDOM)  # the random crystals take longest to relax
MIN_DISTANCE = 0.5  # Angstrom: filter of the published ranking
SYMPREC = 0.1  # Angstrom: crystals of one formula and one symmetry at this tolerance are tried once


class Method(Protocol):
    """Chooses queries; told of each answer."""

    def propose(self, episode: Episode, k: int) -> list[Candidate]:
        """Up to k crystals to ask about next."""
        ...

    def observe(self, candidate: Candidate, answer: Answer, initial: float) -> None:
        """An answer, and the distance from the initial hull (eV/atom), NaN where there is none."""
        ...


@dataclass(frozen=True)
class Pool:
    """Crystals drawn by the generator in one system, in the order drawn, with unrelaxed energies (eV/atom)."""

    candidates: tuple[Candidate, ...]
    energies: np.ndarray  # (n,), NaN where the potential fails


class InOrder:
    """Asks about given crystals in a given order: methods that do not look at answers."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._rest = list(candidates)

    def propose(self, _: Episode, k: int) -> list[Candidate]:
        """The next k."""
        chosen, self._rest = self._rest[:k], self._rest[k:]
        return chosen

    def observe(self, candidate: Candidate, answer: Answer, initial: float) -> None:
        """Nothing to learn."""


class Ranking:
    """Lowest energy above the hull first, of crystals that pass the published filters.

    Args:
        pool: crystals with energies.
        hull: of the potential of these energies; None: the episode's present one.
    """

    def __init__(self, pool: Pool, hull: Hull | None = None) -> None:
        keep = [i for i in _apart(pool) if np.isfinite(pool.energies[i])]
        keep = _unique(pool, sorted(keep, key=lambda i: pool.energies[i]))
        self._rest = {i: pool.candidates[i] for i in keep}
        self._energies, self._hull = pool.energies, hull

    def propose(self, episode: Episode, k: int) -> list[Candidate]:
        """The k lowest."""
        rows = list(self._rest)
        above = distances(self._hull or episode.hull, [self._rest[i] for i in rows], self._energies[rows])
        return [self._rest.pop(rows[i]) for i in np.argsort(above, kind="stable")[:k]]

    def observe(self, candidate: Candidate, answer: Answer, initial: float) -> None:
        """Nothing to learn but the episode's hull."""


@dataclass
class Ours:
    """Probability of stability by a Gaussian process that learns what the oracle changes.

    Each crystal of the pool that is valid and not known is asked about in the order of its probability of lying within
    the tolerance of the present hull. With `apart`, of those that share formula and symmetry only the most probable is
    tried, and none that shares them with a known crystal: relaxation keeps symmetry, and most of these end in the known
    one.

    Args:
        pool: valid crystals that are not known, with energies.
        extractor: features, the distance of the crystal from the initial hull among them.
        tolerance: eV/atom.
        known: known crystals; None for none.
        learn: off, the process stays at its prior.
        apart: new prototypes only, for crystals as drawn. Where they are relaxed, copies are known as such.
    """

    pool: Pool
    extractor: FeatureExtractor
    tolerance: float
    known: KnownCrystals | None = None
    learn: bool = True
    apart: bool = True
    _taken: set[tuple[str, int]] = field(init=False, default_factory=set)
    _asked: list[Candidate] = field(init=False, default_factory=list)
    _labels: list[Evaluation] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        from surrogates.gp import GPSurrogate
        from surrogates.properties import E_ABOVE_HULL, GPConfig

        self._property = E_ABOVE_HULL
        self._surrogate = GPSurrogate(self.extractor, GPConfig(properties=(E_ABOVE_HULL,)))
        usable = np.flatnonzero(np.isfinite(self.pool.energies))
        self._candidates = [self.pool.candidates[i] for i in usable]
        self._kinds = [kind_of(candidate) for candidate in self._candidates]
        if self.known is not None:
            pairs = zip(self._candidates, self._kinds, strict=True)
            self._taken |= {kind for candidate, kind in pairs if kind[1] in _symmetries(self.known, candidate)}
        if self._candidates:
            self._surrogate.adapt(self._candidates)

    def propose(self, episode: Episode, k: int) -> list[Candidate]:
        """The k most probable, each of another prototype."""
        chosen = []
        for i in np.argsort(-self.log_stable(episode), kind="stable"):
            kind = self._kinds[i] if self.apart else (self._candidates[i].id, 0)
            if kind not in self._taken:
                self._taken.add(kind)
                chosen.append(self._candidates[i])
            if len(chosen) == k:
                break
        return chosen

    def log_stable(self, episode: Episode) -> np.ndarray:
        """Log-probability (n,) of lying within the tolerance of the present hull."""
        from scipy.stats import norm

        if not self._candidates:
            return np.empty(0)
        if self.learn and self._labels:
            self._surrogate.fit(self._asked, self._labels)
        mean, std = self._surrogate.marginal(self._candidates)
        nothing = np.zeros(len(self._candidates))
        lowered = distances(episode.initial, self._candidates, nothing) - distances(
            episode.hull, self._candidates, nothing
        )  # how far the hull has come down since the start, eV/atom, at most 0
        bound = self._property.to_scale(self.tolerance + lowered)
        return norm.logcdf((bound - mean[:, 0]) / std[:, 0])

    def observe(self, candidate: Candidate, answer: Answer, initial: float) -> None:
        """One more label; what it relaxed to counts as tried."""
        if answer.ok and answer.structure is not None and np.isfinite(initial):
            self._taken.add(kind_of(Candidate(answer.structure)))
            self._asked.append(candidate)
            quantity = {self._property.name: Quantity(initial, self._property.unit)}
            self._labels.append(Evaluation(candidate.id, "benchmark@1", "hull", OK, quantity))


def distances(hull: Hull, candidates: Sequence[Candidate], energies: np.ndarray) -> np.ndarray:
    """Distances (n,) of energies (eV/atom) from a hull, eV/atom."""
    compositions = [candidate.structure.composition for candidate in candidates]
    return np.array([place.e_above_hull for place in hull.batch(compositions, energies, hull.energy_type)])


def kind_of(candidate: Candidate) -> tuple[str, int]:
    """Formula, and hash of space group and sites."""
    return candidate.formula, symmetry(candidate.structure, SYMPREC)[1]


def _symmetries(known: KnownCrystals, candidate: Candidate) -> set[int]:
    """Symmetry hashes of the known crystals of a formula."""
    rows = known.of_formula(formula_key(candidate.structure))
    return {key for row in rows for key in known.symmetries(row)}


def _apart(pool: Pool) -> list[int]:
    from loop.validity import ValidityRules

    rules = ValidityRules(
        min_distance=MIN_DISTANCE,
        radius_fraction=None,
        charge_balance=True,
        radioactive=True,
        noble_gases=True,
        cell_lengths=None,
        cell_angles=None,
        volume_per_atom=None,
    )
    return [i for i, candidate in enumerate(pool.candidates) if rules.reason(candidate.structure) is None]


def _unique(pool: Pool, rows: Sequence[int]) -> list[int]:
    """Rows without later copies of a crystal (pymatgen's StructureMatcher at its defaults)."""
    from loop.novelty import NoveltyIndex
    from loop.values import DUPLICATE

    verdicts = NoveltyIndex().judge([pool.candidates[i].structure for i in rows], [str(i) for i in rows])
    return [i for i, verdict in zip(rows, verdicts, strict=True) if verdict.kind != DUPLICATE]
