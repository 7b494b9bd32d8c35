"""Which candidates to label: strategies over a discrete pool, as `loop.contracts.Acquisition`.

A pool of up to 10^5 candidates is scored analytically; strategies that look at a batch as a whole then work on the
joint posterior of the best few of it. BoTorch's acquisition functions where it has them (surrogates/batch.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from loop.contracts import Surrogate
from loop.errors import ConfigError
from loop.registry import NoOptions, Registry
from loop.stability import METASTABLE, REFUSED
from loop.values import Candidate
from surrogates.posterior import JointPrediction
from surrogates.properties import Property
from surrogates.utility import (
    BoundObjectives,
    Constraint,
    Objective,
    bind,
    log_expected_improvement,
    upper_confidence_bound,
)

FORMER = {"stability_improvement": "logcei", "probability": "pof"}  # names of earlier configurations


@dataclass(frozen=True)
class AcquisitionConfig:
    """Settings of the selection.

    On two to three simulated campaigns of `benchmark pool` ucb and qlogei found about as much; ucb needs no sampling.

    Raises:
        ConfigError: no such strategy, or a number is out of its range.
    """

    strategy: str = "ucb"
    """Acquisition function: random, greedy, ucb, thompson, logcei (constrained log expected improvement), pof (the
    probability of feasibility alone), qlogei, qlognehvi, or what an installed package adds.
    """
    objectives: tuple[Objective, ...] = (Objective("bulk_modulus"),)
    """What to improve; several are scalarised (each divided by its spread among the labels) by all strategies but
    qlognehvi, which seeks their Pareto front.
    """
    constraints: tuple[Constraint, ...] = (
        Constraint("e_above_hull", at_most=METASTABLE),
        Constraint("e_above_hull", at_least=REFUSED),  # below, the potential errs, and the oracle refuses the label
    )
    """Bounds that a candidate must keep."""
    incumbent: int = 1
    """Improvement is counted over the label of this rank: 1 seeks the single best crystal, more seek many good ones."""
    beta: float = 2.0
    """Of ucb: the square of the number of standard deviations that count as a bonus."""
    screen: int = 512
    """Candidates, best by analytic score, on which joint strategies work."""
    samples: int = 64
    """Quasi-Monte Carlo samples of joint strategies."""
    feasible: float = 0.5
    """greedy and ucb rank candidates whose probability of feasibility is below this behind all others."""
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Settings of a strategy that an installed package adds."""

    def __post_init__(self) -> None:
        """Check values, and read former names."""
        object.__setattr__(self, "strategy", FORMER.get(self.strategy, self.strategy))
        try:
            ACQUISITIONS.options(self.strategy, self.options)
        except ConfigError as error:
            raise ConfigError(f"selection.strategy: {error}") from error
        wrong = [f"{name} >= 1" for name in ("incumbent", "screen", "samples") if getattr(self, name) < 1]
        wrong += ["beta >= 0"] if not self.beta >= 0 else []
        wrong += ["feasible from 0 up to, but not, 1"] if not 0 <= self.feasible < 1 else []
        if wrong:
            raise ConfigError(f"selection expects {', '.join(wrong)}; got {self}")


@runtime_checkable
class JointSurrogate(Protocol):
    """A surrogate that also tells how its errors go together. `surrogates.gp.GPSurrogate` does."""

    @property
    def properties(self) -> tuple[Property, ...]:
        """What is predicted."""
        ...

    @property
    def labels(self) -> np.ndarray:
        """Labels so far, own units, shape (n, m)."""
        ...

    def marginal(self, candidates: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation on the model scales, (n, m) each."""
        ...

    def joint(self, candidates: Sequence[Candidate]) -> JointPrediction:
        """Joint posterior."""
        ...


@runtime_checkable
class Committee(Protocol):
    """A surrogate of several posteriors of the same quantity. `surrogates.product.ProductSurrogate` is one.

    Where they disagree about what is best, an average finds neither's best: each member chooses its share of a batch.
    """

    @property
    def members(self) -> Sequence[JointSurrogate]:
        """Those who choose."""
        ...


class IndependentSurrogate:
    """Any surrogate as a joint one whose errors are independent and whose labels are not known."""

    def __init__(self, surrogate: Surrogate) -> None:
        self._surrogate = surrogate
        self.labels = np.empty((0, 0))
        self.properties: tuple[Property, ...] = ()

    def marginal(self, candidates: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
        """As predicted."""
        prediction = self._surrogate.predict(candidates)
        self.properties = tuple(Property(n, u) for n, u in zip(prediction.names, prediction.units, strict=True))
        self.labels = np.empty((0, len(self.properties)))
        return prediction.mean, prediction.std

    def joint(self, candidates: Sequence[Candidate]) -> JointPrediction:
        """Diagonal covariances."""
        mean, std = self.marginal(candidates)
        return JointPrediction(mean, np.stack([np.diag(column**2) for column in std.T]), self.properties)


AnySurrogate = Surrogate | JointSurrogate


@dataclass(frozen=True)
class PoolPosterior:
    """What a strategy sees of a pool: the posterior of each candidate, and what the labels reached."""

    surrogate: JointSurrogate
    goals: BoundObjectives
    mean: np.ndarray  # (n, m), model scale
    std: np.ndarray  # (n, m)
    labels: np.ndarray  # (n labels with every property measured, m), model scale
    incumbent: int

    @classmethod
    def of(cls, candidates: Sequence[Candidate], surrogate: AnySurrogate, config: AcquisitionConfig) -> PoolPosterior:
        """Predict the pool."""
        joint = surrogate if isinstance(surrogate, JointSurrogate) else IndependentSurrogate(surrogate)
        mean, std = joint.marginal(candidates)
        goals = bind(config.objectives, config.constraints, joint.properties)
        labels = [prop.to_scale(joint.labels[:, j]) for j, prop in enumerate(joint.properties)]
        table = np.column_stack(labels)
        needed = sorted({item[0] for item in (*goals.objectives, *goals.constraints)})
        table = table[np.isfinite(table[:, needed]).all(axis=1)]
        return cls(joint, goals, mean, std, table, config.incumbent)

    def log_feasible(self) -> np.ndarray:
        """Log-probability (n,) of keeping the constraints."""
        return self.goals.log_feasible(self.mean, self.std)

    def reached(self) -> np.ndarray:
        """Labels (n, m) that keep the constraints."""
        result: np.ndarray = self.labels[self.goals.kept(self.labels)]
        return result

    def scalar(self, weights: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) of the weighted sum of standardised utilities."""
        mean, std = self.goals.moments(self.mean, self.std)
        factor = self._factor(weights)
        return mean @ factor, np.sqrt(std**2 @ factor**2)

    def weigh(self, utilities: np.ndarray) -> np.ndarray:
        """Scalar utility (...) of utilities (..., objectives)."""
        result: np.ndarray = utilities @ self._factor(None)
        return result

    def best(self, weights: np.ndarray | None = None) -> float:
        """Scalar utility of the incumbent among labels that keep the constraints; below the pool if there is none."""
        reached = self.reached()
        if len(reached):
            utilities = np.sort(self.goals.values(reached) @ self._factor(weights))
            return float(utilities[-min(self.incumbent, len(utilities))])
        mean, std = self.scalar(weights)
        return float((mean - 3 * std).min())

    def _factor(self, weights: np.ndarray | None) -> np.ndarray:
        labelled = len(self.labels) > 1
        utilities = self.goals.values(self.labels) if labelled else self.goals.moments(self.mean, self.std)[0]
        spread = utilities.std(axis=0)
        return (np.ones(len(spread)) if weights is None else weights) / np.where(spread > 0, spread, 1.0)

    def log_improvement(self, weights: np.ndarray | None = None) -> np.ndarray:
        """Logarithm (n,) of expected improvement times the probability of keeping the constraints."""
        mean, std = self.scalar(weights)
        result: np.ndarray = log_expected_improvement(mean, std, self.best(weights)) + self.log_feasible()
        return result

    def screened(self, n: int) -> np.ndarray:
        """Indices of about n promising candidates: the best by `log_improvement` over a fan of weights, in turn."""
        count = len(self.goals.objectives)
        fan = np.vstack([np.ones(count), np.eye(count)]) if count > 1 else np.ones((1, 1))
        orders = np.stack([np.argsort(-self.log_improvement(weights), kind="stable") for weights in fan], axis=1)
        _, first = np.unique(orders.ravel(), return_index=True)
        return orders.ravel()[np.sort(first)][:n]


@dataclass(frozen=True)
class PoolRequest:
    """What a strategy chooses from, how many and by which settings.

    Attributes:
        posterior: of the pool.
        candidates: the pool.
        k: how many indices, at most as many as there are candidates.
        config: settings; those of a package's own strategy are in ``config.options``.
        seed: of all that is drawn.
    """

    posterior: PoolPosterior
    candidates: Sequence[Candidate]
    k: int
    config: AcquisitionConfig
    seed: int

    def joint(self, rows: np.ndarray) -> JointPrediction:
        """Joint posterior of some candidates."""
        return self.posterior.surrogate.joint([self.candidates[i] for i in rows])

    def screened(self) -> np.ndarray:
        """Indices of promising candidates, as many as the settings screen."""
        return self.posterior.screened(max(self.config.screen, self.k))


Strategy = Callable[[PoolRequest], list[int]]
"""From a request to indices, best first."""


def _top(score: np.ndarray, k: int) -> list[int]:
    return [int(i) for i in np.argsort(-score, kind="stable")[:k]]


def _random(request: PoolRequest) -> list[int]:
    return [int(i) for i in np.random.default_rng(request.seed).permutation(len(request.candidates))[: request.k]]


def _behind_feasible(score: np.ndarray, log_feasible: np.ndarray, config: AcquisitionConfig) -> np.ndarray:
    """Scores with the likely infeasible behind all others, the less infeasible first."""
    return np.where(log_feasible >= np.log(config.feasible), score, score.min() - 1.0 + log_feasible)


def _greedy(request: PoolRequest) -> list[int]:
    view = request.posterior
    return _top(_behind_feasible(view.scalar()[0], view.log_feasible(), request.config), request.k)


def _improvement(request: PoolRequest) -> list[int]:
    return _top(request.posterior.log_improvement(), request.k)


def _probability(request: PoolRequest) -> list[int]:
    """Highest probability of feasibility, whatever the objectives; ties go to improvement."""
    likely, improvement = request.posterior.log_feasible(), request.posterior.log_improvement()
    return [int(i) for i in np.lexsort((-improvement, -likely))[: request.k]]


def _ucb(request: PoolRequest) -> list[int]:
    """GP-BUCB (Desautels et al., JMLR 15, 4053 (2014)): choose one, shrink variances as if it were labelled, repeat.

    The covariance after a label does not depend on its value, so what is shrunk is exact.
    """
    view, k, config = request.posterior, request.k, request.config
    score, feasible = upper_confidence_bound(*view.scalar(), config.beta), view.log_feasible()
    rows = np.array(_top(_behind_feasible(score, feasible, config), max(config.screen, k)))
    likely = feasible[rows]
    covariance = request.joint(rows).covariance.copy()
    here = replace(view, mean=view.mean[rows], std=view.std[rows])
    chosen: list[int] = []
    for _ in range(min(k, len(rows))):
        score = upper_confidence_bound(*here.scalar(), config.beta)
        score = _behind_feasible(score, likely, config)
        score[chosen] = -np.inf
        best = int(np.argmax(score))
        chosen.append(best)
        column = covariance[:, :, best]
        covariance -= column[:, :, None] * column[:, None, :] / covariance[:, best, best][:, None, None]
        variance = np.diagonal(covariance, axis1=1, axis2=2).T
        here = replace(here, std=np.sqrt(np.maximum(variance, 1e-12)))
    return [int(rows[i]) for i in chosen]


def _thompson(request: PoolRequest) -> list[int]:
    """Each choice is the best of one joint sample of the posterior, among those that keep the constraints in it."""
    view, rows = request.posterior, request.screened()
    joint = request.joint(rows)
    rng = np.random.default_rng(request.seed)
    factors = [np.linalg.cholesky(c + 1e-9 * np.trace(c) / len(c) * np.eye(len(c))) for c in joint.covariance]
    chosen: list[int] = []
    for _ in range(min(request.k, len(rows))):
        noise = rng.standard_normal(joint.mean.shape)
        values = joint.mean + np.column_stack([factor @ z for factor, z in zip(factors, noise.T, strict=True)])
        score = view.weigh(view.goals.values(values))
        score = np.where(view.goals.kept(values), score, score.min() - 1.0)
        score[chosen] = -np.inf
        chosen.append(int(np.argmax(score)))
    return [int(rows[i]) for i in chosen]


def _batch(name: str) -> Strategy:
    def strategy(request: PoolRequest) -> list[int]:
        from surrogates import batch  # torch and botorch: only where they serve

        view, rows = request.posterior, request.screened()
        asked = batch.Request(
            request.joint(rows), view.goals, view.reached(), view.incumbent, request.k,
            samples=request.config.samples, seed=request.seed,
        )  # fmt: skip
        return [int(rows[i]) for i in getattr(batch, name)(asked)]

    return strategy


_qlogei, _qlognehvi = _batch("qlogei"), _batch("qlognehvi")


@dataclass(frozen=True)
class AcquisitionKind:
    """What an entry point of ``discovery_loop.acquisitions`` leads to, or its `choose` alone.

    Attributes:
        choose: the strategy.
        options: frozen dataclass of its settings; the user's are in ``config.options``.
    """

    choose: Strategy
    options: type = NoOptions


OURS = {"random": "_random", "greedy": "_greedy", "ucb": "_ucb", "thompson": "_thompson", "logcei": "_improvement"}
OURS |= {"pof": "_probability", "qlogei": "_qlogei", "qlognehvi": "_qlognehvi"}
ACQUISITIONS = Registry(
    "acquisitions", AcquisitionKind, {name: f"surrogates.acquisition:{function}" for name, function in OURS.items()}
)


class PoolAcquisition:
    """A strategy as `loop.contracts.Acquisition`.

    Args:
        config: settings.
    """

    def __init__(self, config: AcquisitionConfig | None = None) -> None:
        self.config = config or AcquisitionConfig()
        self._strategy = ACQUISITIONS.get(self.config.strategy).choose

    def select(self, candidates: Sequence[Candidate], surrogate: Surrogate, k: int, *, seed: int) -> list[int]:
        """Indices of k distinct candidates, best first; all of them where the pool holds fewer.

        The members of a committee choose one after the other, each its share, best first.

        Raises:
            ConfigError: an objective or constraint names a property that the surrogate does not predict.
        """
        members: Sequence[AnySurrogate] = surrogate.members if isinstance(surrogate, Committee) else [surrogate]
        chosen: list[int] = []
        for turn, member in enumerate(members):
            share = (min(k, len(candidates)) - len(chosen)) // (len(members) - turn)  # the last makes up for remainders
            left = np.setdiff1d(np.arange(len(candidates)), chosen)
            chosen += [int(left[i]) for i in self._choose([candidates[i] for i in left], member, share, seed)]
        return chosen

    def _choose(self, candidates: Sequence[Candidate], surrogate: AnySurrogate, k: int, seed: int) -> list[int]:
        if k <= 0:
            return []
        view = PoolPosterior.of(candidates, surrogate, self.config)
        with ACQUISITIONS.blaming(self.config.strategy):
            return self._strategy(PoolRequest(view, candidates, k, self.config, seed))
