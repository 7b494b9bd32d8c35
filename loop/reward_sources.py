"""Who says the value that a reward term inputs: the potential's hull, the surrogate, the elements, or a package's own.

An entry point of ``discovery_loop.rewards`` leads to a `RewardKind`, or to its `build` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from pymatgen.core import Structure

from loop.errors import ConfigError
from loop.registry import NoOptions, Registry
from loop.values import Candidate, Prediction

if TYPE_CHECKING:
    from loop.contracts import Surrogate
    from loop.reward import RewardConfig, RewardInputs, Term
    from loop.screening import HullScreen

E_ABOVE_HULL, SCARCITY = "e_above_hull", "scarcity"


@dataclass(frozen=True, eq=False)
class Judged:
    """What a source says of n crystals as drawn.

    Attributes:
        values: shape (n,), in the unit of the term's bounds; NaN where there is none: such a crystal gets no reward.
        std: standard deviations (n,); by default 0.
        refused: crystals that get no reward, by the guard that refuses them: masks (n,).
        abstained: crystals that get the mean of their batch, no push either way: masks (n,).
    """

    values: np.ndarray
    std: np.ndarray = field(default_factory=lambda: np.zeros(0))
    refused: Mapping[str, np.ndarray] = field(default_factory=dict)
    abstained: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Fill in certainty."""
        if not len(self.std):
            object.__setattr__(self, "std", np.zeros(len(self.values)))


@runtime_checkable
class RewardSource(Protocol):
    """Judges crystals as drawn: no relaxation, milliseconds each."""

    def __call__(self, candidates: Sequence[Candidate]) -> Judged:
        """One value per candidate, in order; never raises for one, never changes one."""
        ...


@dataclass(frozen=True)
class RewardRequest:
    """What a source is made of.

    Attributes:
        term: that it serves.
        options: instance of the kind's options.
        config: of the whole reward.
        inputs: potential with its hull, surrogate, novelty and validity of the campaign.
    """

    term: Term
    options: Any
    config: RewardConfig
    inputs: RewardInputs


@dataclass(frozen=True)
class RewardKind:
    """What an entry point of ``discovery_loop.rewards`` leads to.

    Attributes:
        build: makes the source; None where it has nothing to say yet, such as a surrogate before the first labels: its
            term is then left out.
        properties: names that a term may judge; empty: any.
        options: frozen dataclass of its settings, which a user gives as the term's ``options``.
    """

    build: Callable[[RewardRequest], RewardSource | None]
    properties: tuple[str, ...] = ()
    options: type = NoOptions


@dataclass(frozen=True, eq=False)
class HullSource:
    """Energies above the hull (eV/atom) by the potential, clipped from above; what is too far below is refused."""

    hull: HullScreen
    config: RewardConfig

    def __call__(self, candidates: Sequence[Candidate]) -> Judged:
        """Of the crystals as drawn."""
        above, sparse = self.hull.judge([candidate.structure for candidate in candidates])
        unknown, floor = ~np.isfinite(above), self.config.floor
        below = np.zeros(len(above), bool) if floor is None else ~unknown & (above < floor)
        abstained = {"sparse-hull": sparse & ~unknown & ~below} if self.config.abstain_on_sparse_hulls else {}
        refused = {"no-energy": unknown, "far-below-hull": below}
        return Judged(np.minimum(above, self.config.ceiling), refused=refused, abstained=abstained)


def hull_source(request: RewardRequest) -> RewardSource:
    """Raises ConfigError where there is no potential with a hull."""
    if request.inputs.hull is None:
        raise ConfigError("a reward term of source 'hull' needs a potential and a hull.")
    return HullSource(request.inputs.hull, request.config)


@dataclass(frozen=True, eq=False)
class SurrogateSource:
    """A predicted property, or a product of some."""

    surrogate: Surrogate
    factors: tuple[str, ...]

    def __call__(self, candidates: Sequence[Candidate]) -> Judged:
        """Mean and standard deviation."""
        return Judged(*_product(self.surrogate.predict(candidates), self.factors))


def surrogate_source(request: RewardRequest) -> RewardSource | None:
    """None while there are no labels to predict from."""
    surrogate = request.inputs.surrogate
    return None if surrogate is None else SurrogateSource(surrogate, request.term.factors)


def elements_source(_: RewardRequest) -> RewardSource:
    """How scarce the elements are."""
    return lambda candidates: Judged(np.array([scarcity(candidate.structure) for candidate in candidates], dtype=float))


HULL = RewardKind(hull_source, (E_ABOVE_HULL,))
SURROGATE = RewardKind(surrogate_source)
ELEMENTS = RewardKind(elements_source, (SCARCITY,))
REWARDS = Registry(
    "rewards",
    RewardKind,
    {
        "hull": "loop.reward_sources:HULL",
        "surrogate": "loop.reward_sources:SURROGATE",
        "elements": "loop.reward_sources:ELEMENTS",
    },
)


def _product(predicted: Prediction, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation, (n,) each, of a product of properties, to first order and as if independent."""
    means, stds = (np.stack(columns) for columns in zip(*map(predicted.column, names), strict=True))
    others = np.stack([np.prod(np.delete(means, k, axis=0), axis=0) for k in range(len(names))])
    return means.prod(axis=0), np.sqrt(((others * stds) ** 2).sum(axis=0))


@lru_cache(maxsize=100_000)
def _scarcity(formula: str) -> float:
    from pymatgen.analysis.hhi import HHIModel

    production, reserves = HHIModel().get_hhi(formula)
    return float("nan") if reserves is None else float(max(production, reserves))


def scarcity(structure: Structure) -> float:
    """Herfindahl-Hirschman index of the elements' production or reserves, by mass, 0 to 10,000; scarce above 2,500.

    Gaultois et al., Chem. Mater. 25, 2911 (2013). An element without a figure counts as 10,000.
    """
    value = _scarcity(structure.composition.reduced_formula)
    return 10_000.0 if np.isnan(value) else value
