"""From predictions for crystals to one number each: only here "lower is better" becomes "higher is better".

A reward is a product of desirabilities in [0, 1] (Derringer and Suich, J. Qual. Technol. 12, 214 (1980)), so that no
objective can be traded away altogether, and no posterior pays more than 1. What is no acceptable crystal gets 0.
Guards against reward hacking are settings, on by default, and every time one bites it is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from pymatgen.core import Structure

from loop.contracts import Surrogate, Validity
from loop.errors import ConfigError
from loop.goal import BRITISH
from loop.novelty import NoveltyIndex
from loop.reward_sources import E_ABOVE_HULL, REWARDS, RewardRequest, RewardSource
from loop.screening import HullScreen
from loop.stability import IMPLAUSIBLE
from loop.values import DUPLICATE, KNOWN, Candidate

GUARDS = ("invalid", "no-energy", "far-below-hull", "sparse-hull", "single-element", "repeated", "known", "uncertain")
_FLOOR = 1e-3  # of a desirability: where one objective is hopeless, the others still point somewhere
_UNCERTAIN = 0.1  # an uncertainty penalty is counted when it takes this much off a desirability


@dataclass(frozen=True)
class Term:
    """One objective.

    `minimise` is 1 at `low` and below, 0 at `high` and above; `maximise` the reverse; `target` is 1 midway between
    `low` and `high` and 0 outside them; `range` is 1 within and falls to 0 over one width of the range outside.

    Raises:
        ConfigError: bounds, shape or weight make no sense.
    """

    property: str
    """Property of the surrogate, or a product such as "band_gap*eps"; source hull: e_above_hull; source elements:
    scarcity.
    """
    goal: Literal["minimise", "maximise", "target", "range", "minimize", "maximize"]
    """minimise, maximise, target or range."""
    low: float
    """Lower end of the ramp, in the property's unit."""
    high: float
    """Upper end of the ramp, in the property's unit."""
    weight: float = 1.0
    """Exponent of the term in the product of all terms."""
    shape: float = 1.0
    """Exponent of the ramp: above 1, the last step towards the goal is worth more."""
    source: str = "surrogate"
    """Where the value comes from: the screening potential's hull, the surrogate's posterior, the elements' scarcity, or
    what an installed package adds.
    """
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Settings of a source that an installed package adds."""

    def __post_init__(self) -> None:
        """Check bounds and source, and read American spellings."""
        object.__setattr__(self, "goal", BRITISH.get(self.goal, self.goal))
        if not self.low < self.high or self.weight <= 0 or self.shape <= 0:
            raise ConfigError(
                f"reward term of {self.property}: expected low < high, weight > 0 and shape > 0, got {self.low:g}, "
                f"{self.high:g}, {self.weight:g} and {self.shape:g}."
            )
        given = REWARDS.get(self.source).properties
        if given and self.property not in given:
            names = " or ".join(map(repr, given))
            raise ConfigError(f"source {self.source!r} of a reward term gives {names}, not {self.property!r}.")
        REWARDS.options(self.source, self.options)

    def desirability(self, x: np.ndarray) -> np.ndarray:
        """In [0, 1], shape as x."""
        place = (x - self.low) / (self.high - self.low)
        rising = {
            "minimise": 1 - place,
            "maximise": place,
            "target": 1 - np.abs(2 * place - 1),
            "range": 1 - np.maximum(np.maximum(-place, place - 1), 0),
        }[self.goal]
        result: np.ndarray = np.clip(rising, 0, 1) ** self.shape
        return result

    def under_doubt(self, mean: np.ndarray, std: np.ndarray, kappa: float) -> np.ndarray:
        """Desirability of the less desirable end of mean +- kappa std; with kappa < 0 of the more desirable end."""
        ends = self.desirability(mean - kappa * std), self.desirability(mean + kappa * std)
        result: np.ndarray = np.minimum(*ends) if kappa >= 0 else np.maximum(*ends)
        return result

    @cached_property
    def factors(self) -> tuple[str, ...]:
        """Properties whose product is judged: ``band_gap*eps_total`` is a figure of merit."""
        return tuple(self.property.split("*"))


# Unrelaxed crystals of an untuned generator lie mostly some tenths of an eV/atom above the hull, so the slope reaches
# there; it does not end on the hull, or hardly anything on it would be sought (docs/rl.md). Worth 0.71 at 0, 0.48 at
# 0.05, 0.32 at 0.1, 0.03 at 0.3 eV/atom.
STABILITY = Term(E_ABOVE_HULL, "minimise", low=-0.05, high=0.55, shape=4.0, source="hull")
BESIDE = 0.3  # factor on known crystals beside another aim, whose best ones are often known
# Beside another aim, as in the quickstart: flat near the hull, so that the other one chooses among what is stable.
STABLE_ENOUGH = Term(E_ABOVE_HULL, "minimise", low=0.0, high=2.0, shape=4.0, source="hull")


@dataclass(frozen=True)
class RewardConfig:
    """Objectives and guards.

    Raises:
        ConfigError: there is no term, or a guard is out of range.
    """

    terms: tuple[Term, ...] = (STABILITY,)
    """Objectives; the reward is their weighted geometric mean (Derringer and Suich)."""
    known_factor: float | None = None
    """Factor on the reward of a crystal in the novelty reference; 1: no novelty term. None: 1 where stability is all
    that is asked for, which keeps the policy near crystals that exist (docs/rl.md); 0.3 beside another aim.
    """
    duplicate_factor: float = 0.3
    """Factor on the reward of a crystal labelled before, or drawn earlier in the batch."""
    kappa: float = 1.0
    """Standard deviations by which a surrogate's prediction is discounted; negative: a bonus."""
    failure: float = 0.0
    """Reward of what is refused; negative: worse than a hopeless crystal."""
    floor: float | None = IMPLAUSIBLE
    """Crystals further below the hull (eV/atom) are errors of the potential and earn as what is refused; none: no
    floor.
    """
    ceiling: float = 2.0
    """Crystals above this distance from the hull (eV/atom) are equally hopeless."""
    abstain_on_sparse_hulls: bool = True
    """Where too few phases are known, a crystal earns the mean of its batch: no push either way."""
    single_elements: bool = False
    """Reward crystals of a single element."""
    max_repeats: int | None = 4
    """Crystals of one formula per batch that are rewarded in full."""
    repeat_factor: float = 0.3
    """Factor on the reward of those beyond."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.terms:
            raise ConfigError("a reward needs at least one term.")
        for name in ("known_factor", "duplicate_factor", "repeat_factor"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise ConfigError(f"{name} must lie between 0 and 1, got {getattr(self, name)}.")
        if not np.isfinite(self.kappa) or (self.max_repeats is not None and self.max_repeats < 1):
            raise ConfigError(f"expected finite kappa and max_repeats >= 1, got {self.kappa:g} and {self.max_repeats}.")
        if not -10 <= self.failure <= 0:
            raise ConfigError(f"the reward of a failure must lie between -10 and 0, got {self.failure}.")
        if self.floor is not None and not self.floor < 0 < self.ceiling:
            raise ConfigError(f"expected floor < 0 < ceiling, got {self.floor:g} and {self.ceiling:g}.")

    @property
    def credit_of_known(self) -> float:
        """`known_factor`, or what stands for none."""
        if self.known_factor is not None:
            return self.known_factor
        return 1.0 if all(term.property == E_ABOVE_HULL for term in self.terms) else BESIDE


@dataclass(frozen=True)
class RewardInputs:
    """What a reward asks."""

    validity: Validity
    novelty: NoveltyIndex | None = None
    hull: HullScreen | None = None  # needed by terms of source "hull"
    surrogate: Surrogate | None = None  # None while there are no labels: its terms are then left out


class PropertyReward:
    """Implements `loop.contracts.Reward`. Each batch is one call of the potential, and depends on nothing before it.

    Raises:
        ConfigError: a term asks for a judge that is not there.
    """

    def __init__(self, config: RewardConfig, inputs: RewardInputs) -> None:
        self.config = config
        self.inputs = inputs
        self.counts: Counter[str] = Counter()  # how often each guard was triggered, over the life of this object
        self.failures: Counter[str] = Counter()  # crystals refused as invalid, by the rule that they broke
        sources = [(term, _source(term, config, inputs)) for term in config.terms]
        self._active = [(term, source) for term, source in sources if source is not None]

    def __call__(self, candidates: Sequence[Candidate | None]) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Rewards of shape (n,) in [0, 1], or `failure`, and their components.

        Components are values, desirabilities, ``guard_<name>``, and where novelty is judged ``known`` and ``replay`` (a
        crystal that the shipped generator was trained on): 0 or 1.
        """
        batch = _Batch(candidates)
        self._drop_invalid(batch)
        self._limit_elements(batch)
        self._favour_new(batch)
        for term, source in self._active:
            self._apply(term, source, batch)
        self._limit_repeats(batch)
        rewards = batch.rewards(sum(term.weight for term, _ in self._active), self.config.failure)
        self.counts.update({name: int(flags.sum()) for name, flags in batch.guards.items() if flags.any()})
        return rewards, batch.rows(rewards)

    def _drop_invalid(self, batch: _Batch) -> None:
        here = batch.alive()
        reasons = self.inputs.validity(batch.structures(here))
        self.failures.update(reason for reason in reasons if reason is not None)
        self.failures["no-crystal"] += len(batch.candidates) - len(here)
        batch.refuse("invalid", here[np.array([reason is not None for reason in reasons], dtype=bool)])

    def _limit_elements(self, batch: _Batch) -> None:
        if not self.config.single_elements:
            here = batch.alive()
            single = [len(structure.composition) == 1 for structure in batch.structures(here)]
            batch.refuse("single-element", here[np.array(single, dtype=bool)])

    def _apply(self, term: Term, source: RewardSource, batch: _Batch) -> None:
        """What a source says of the crystals that are left, as desirabilities; doubt counts against a crystal."""
        here = batch.alive()
        if not len(here):
            return
        judged = source([batch.crystal(index) for index in here])
        for guard, mask in judged.refused.items():
            batch.refuse(guard, here[mask])
        for guard, mask in judged.abstained.items():
            batch.abstain(guard, here[mask])
        good = np.isin(here, batch.alive())
        unknown = good & ~(np.isfinite(judged.values) & np.isfinite(judged.std))
        batch.refuse("no-energy", here[unknown])
        good &= ~unknown
        values, std = judged.values[good], judged.std[good]
        plain, sure = term.desirability(values), term.under_doubt(values, std, self.config.kappa)
        batch.flag("uncertain", here[good][plain - sure > _UNCERTAIN])
        batch.multiply(term, here[good], values, sure)

    def _limit_repeats(self, batch: _Batch) -> None:
        if self.config.max_repeats is None:
            return
        seen: Counter[str] = Counter()
        for index in batch.alive():
            formula = batch.crystal(index).formula
            seen[formula] += 1
            if seen[formula] > self.config.max_repeats:
                batch.scale("repeated", index, self.config.repeat_factor)

    def _favour_new(self, batch: _Batch) -> None:
        if self.inputs.novelty is None:
            return
        here = batch.alive()
        verdicts = self.inputs.novelty.judge(batch.structures(here), [str(index) for index in here], quick=True)
        factors = {KNOWN: self.config.credit_of_known, DUPLICATE: self.config.duplicate_factor}
        for index, verdict in zip(here, verdicts, strict=True):
            batch.components[index] |= {"known": float(verdict.kind == KNOWN), "replay": float(verdict.in_training)}
            if verdict.kind not in factors:
                continue
            if factors[verdict.kind] > 0:
                batch.scale("known", index, factors[verdict.kind])
            else:  # worth nothing: not even a call of the potential
                batch.refuse("known", np.array([index]))


class _Batch:
    """A batch while it is judged: logarithm of each product so far, who is refused, who is abstained on."""

    def __init__(self, candidates: Sequence[Candidate | None]) -> None:
        n = len(candidates)
        self.candidates = candidates
        self.guards = {name: np.zeros(n, dtype=bool) for name in GUARDS}
        self.components: list[dict[str, float]] = [{} for _ in candidates]
        self._log = np.zeros(n)  # weighted sum of log desirabilities
        self._factor = np.ones(n)
        self._refused = np.array([candidate is None for candidate in candidates], dtype=bool)
        self.guards["invalid"] |= self._refused
        self._abstained = np.zeros(n, dtype=bool)

    def alive(self) -> np.ndarray:
        """Indices of the crystals that nothing has refused yet."""
        return np.flatnonzero(~self._refused)

    def crystal(self, index: int) -> Candidate:
        candidate = self.candidates[index]
        if candidate is None:
            raise ValueError(f"sample {index} is no crystal")
        return candidate

    def structures(self, indices: np.ndarray) -> list[Structure]:
        return [self.crystal(index).structure for index in indices]

    def flag(self, guard: str, indices: np.ndarray) -> None:
        self.guards.setdefault(guard, np.zeros(len(self.candidates), dtype=bool))[indices] = True

    def refuse(self, guard: str, indices: np.ndarray) -> None:
        self.flag(guard, indices)
        self._refused[indices] = True

    def abstain(self, guard: str, indices: np.ndarray) -> None:
        self.flag(guard, indices)
        self._abstained[indices] = True

    def scale(self, guard: str, index: int, factor: float) -> None:
        self.guards[guard][index] = True
        self._factor[index] *= factor

    def multiply(self, term: Term, indices: np.ndarray, values: np.ndarray, desirabilities: np.ndarray) -> None:
        self._log[indices] += term.weight * np.log(np.maximum(desirabilities, _FLOOR))
        for index, value, desirability in zip(indices, values, desirabilities, strict=True):
            self.components[index] |= {term.property: float(value), f"d_{term.property}": float(desirability)}

    def rewards(self, total_weight: float, failure: float) -> np.ndarray:
        """Weighted geometric mean of the desirabilities, times the factors; shape (n,), in [0, 1], or `failure`."""
        rewards = np.where(self._refused, failure, np.exp(self._log / max(total_weight, 1e-12)) * self._factor)
        judged = ~self._refused & ~self._abstained
        abstained = ~self._refused & self._abstained
        return np.where(abstained, rewards[~abstained].mean() if judged.any() else failure, rewards)

    def rows(self, rewards: np.ndarray) -> list[dict[str, float]]:
        flags = [{f"guard_{name}": float(bits[i]) for name, bits in self.guards.items()} for i in range(len(rewards))]
        return [row | flag for row, flag in zip(self.components, flags, strict=True)]


def _source(term: Term, config: RewardConfig, inputs: RewardInputs) -> RewardSource | None:
    """Who says the value of a term; None while it has nothing to say."""
    kind = REWARDS.get(term.source)
    with REWARDS.blaming(term.source):
        return kind.build(RewardRequest(term, REWARDS.options(term.source, term.options), config, inputs))
