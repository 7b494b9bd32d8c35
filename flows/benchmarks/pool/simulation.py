"""One simulated campaign: labels are asked for batch by batch, and what was found is counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import numpy as np

from flows.benchmarks.pool.tasks import TASKS, Pool
from loop.contracts import Surrogate
from loop.metrics import calibration
from loop.selection import shadow_size
from loop.values import Candidate, Evaluation, Prediction
from surrogates.acquisition import AcquisitionConfig, PoolAcquisition
from surrogates.features import FeatureExtractor
from surrogates.forest import COLUMNS, Forest
from surrogates.gp import GPSurrogate
from surrogates.product import ProductSurrogate
from surrogates.properties import GPConfig
from surrogates.utility import bind

FOREST = "forest_greedy"  # the outside baseline: a random forest, best predicted means first
RANDOM = "random"
HELD_OUT = 500  # unlabelled crystals, drawn at random each round, on which calibration is measured
TREES = 50  # of the forest
TARGET = 0.5  # share of the top crystals whose finding is timed


@dataclass(frozen=True)
class Campaign:
    """Settings of one simulated campaign.

    Attributes:
        strategy: a key of `surrogates.acquisition.ACQUISITIONS`, or `FOREST`.
        seed: of the initial labels (equal seeds begin with the same crystals, whatever the strategy) and of choices.
        initial: random labels to begin with; they count as labels.
        batch: labels per round.
        budget: labels in all.
        shadow: share of the labels after the initial that chance picks, as in a campaign of the engine; they come
            first in their batch and count as labels. The outside baseline has none.
    """

    strategy: str
    seed: int
    initial: int = 20
    batch: int = 10
    budget: int = 300
    shadow: float = 0.1


@dataclass(frozen=True)
class Engine:
    """Settings of surrogate and selection; properties, objectives and constraints are the task's."""

    gp: GPConfig = field(default_factory=GPConfig)
    acquisition: AcquisitionConfig = field(default_factory=AcquisitionConfig)


@dataclass(frozen=True)
class Outcome:
    """What a campaign did.

    Attributes:
        campaign: its settings.
        found: share of the top crystals among the first 1, 2, ... labels.
        best: best utility so far, likewise.
        order: rows of the pool as they were labelled.
        rounds: one row per round: labels before it, and calibration on random unlabelled crystals (``random_*``) and on
            the very batch chosen (``chosen_*``), both before their labels were known.
        seconds: wall time.
    """

    campaign: Campaign
    found: list[float]
    best: list[float]
    order: list[int]
    rounds: list[dict[str, float]]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Outcome:
        """Inverse of `to_dict`."""
        return cls(**{**data, "campaign": Campaign(**data["campaign"])})


class ForestSurrogate:
    """scikit-learn's random forest on the same features; the spread of its trees as standard deviation."""

    def __init__(self, extractor: FeatureExtractor, pool: Pool, seed: int) -> None:
        from sklearn.ensemble import RandomForestRegressor

        self._extractor, self._prop = extractor, TASKS[pool.task].prop
        self._forest = RandomForestRegressor(TREES, max_features=COLUMNS, random_state=seed, n_jobs=1)

    def fit(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation], **_: object) -> dict[str, float]:
        """Grow the forest again."""
        labels = [evaluation.value(self._prop.name) for evaluation in evaluations]
        self._forest.fit(np.nan_to_num(self._extractor(candidates)), labels)
        return {}

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Mean and spread over trees."""
        X = np.nan_to_num(self._extractor(candidates))
        trees = np.stack([tree.predict(X) for tree in self._forest.estimators_])
        std = np.maximum(trees.std(axis=0), 1e-6)
        return Prediction(trees.mean(axis=0)[:, None], std[:, None], (self._prop.name,), (self._prop.unit,))


def taught(pool: Pool, extractor: FeatureExtractor, folds: int = 5) -> float:
    """Acceleration factor, at half of what is sought, of a forest that has seen four fifths of the pool's labels.

    Each crystal is ranked by what a forest of all other fifths predicts for it, by the probability that it is sought
    where that is a matter of bounds: how well the features tell the best at all, whatever the strategy, and so how far
    a campaign of a tenth of the labels can hope to get.
    """
    from sklearn.model_selection import KFold

    task = TASKS[pool.task]
    X, t = np.nan_to_num(extractor(pool.candidates)), task.prop.to_scale(pool.labels)
    mean, std = np.empty((2, len(t)))
    for seen, unseen in KFold(folds, shuffle=True, random_state=0).split(X):
        forest = Forest(X[seen], t[seen], np.arange(len(seen)), float(t.std()), seed=0)
        mean[unseen], std[unseen] = forest.predict(X[unseen])
    goals, posterior = bind([task.objective], task.constraints, [task.prop]), (mean[:, None], std[:, None])
    score = goals.log_feasible(*posterior) if task.constraints else goals.moments(*posterior)[0][:, 0]
    found = np.cumsum(np.isin(np.argsort(-score, kind="stable"), list(pool.top))) / len(pool.top)
    return len(t) * TARGET / (int(np.searchsorted(found, TARGET)) + 1)


def simulate(pool: Pool, campaign: Campaign, extractor: FeatureExtractor, engine: Engine | None = None) -> Outcome:
    """Run one campaign.

    Args:
        pool: crystals with hidden labels.
        campaign: settings.
        extractor: features.
        engine: settings of what is tested.
    """
    import time

    engine = engine or Engine()

    start = time.perf_counter()
    rng = np.random.default_rng(campaign.seed)
    n, budget = len(pool.candidates), min(campaign.budget, len(pool.candidates))
    if campaign.strategy == RANDOM:
        order = rng.permutation(n)[:budget].tolist()
        return _outcome(pool, campaign, order, [], time.perf_counter() - start)
    engine = settings_of(pool, campaign, engine)
    surrogate = _surrogate(pool, campaign, extractor, engine.gp)
    acquisition = PoolAcquisition(engine.acquisition)
    order = rng.permutation(n)[: campaign.initial].tolist()
    drawn = order.copy()
    rounds = []
    before = pool.known.candidates if pool.known else []
    said = [pool.known.evaluate(i) for i in range(len(before))] if pool.known else []
    while len(order) < budget:
        by_chance = frozenset(pool.candidates[i].id for i in drawn)
        asked, answers = [pool.candidates[i] for i in order], [pool.evaluate(i) for i in order]
        surrogate.fit([*before, *asked], [*said, *answers], picked_at_random=by_chance)
        rest = np.setdiff1d(np.arange(n), order)
        k = min(campaign.batch, budget - len(order))
        shadow = rng.choice(rest, shadow_size(k, campaign.shadow if campaign.strategy != FOREST else 0), replace=False)
        left = np.setdiff1d(rest, shadow)
        seed = campaign.seed * 1000 + len(order)
        candidates = [pool.candidates[i] for i in left]
        chosen = left[acquisition.select(candidates, cast(Surrogate, surrogate), k - len(shadow), seed=seed)]
        rounds.append({"labels": float(len(order)), **_held_out(pool, surrogate, rest, chosen, rng)})
        drawn += shadow.tolist()
        order += [*shadow.tolist(), *chosen.tolist()]
    return _outcome(pool, campaign, order, rounds, time.perf_counter() - start)


def settings_of(pool: Pool, campaign: Campaign, engine: Engine) -> Engine:
    """The engine with what the task and the campaign say: property, objective, constraints, strategy."""
    task = TASKS[pool.task]
    strategy = "greedy" if campaign.strategy == FOREST else campaign.strategy
    acquisition = replace(
        engine.acquisition, objectives=(task.objective,), constraints=task.constraints, strategy=strategy
    )
    return Engine(replace(engine.gp, properties=task.parts or (task.prop,)), acquisition)


AnySurrogate = GPSurrogate | ProductSurrogate | ForestSurrogate


def _surrogate(pool: Pool, campaign: Campaign, extractor: FeatureExtractor, gp: GPConfig) -> AnySurrogate:
    if campaign.strategy == FOREST:
        return ForestSurrogate(extractor, pool, campaign.seed)
    task = TASKS[pool.task]
    surrogate = ProductSurrogate(extractor, gp, task.prop) if task.parts else GPSurrogate(extractor, gp)
    surrogate.adapt(pool.candidates)
    return surrogate


def _held_out(
    pool: Pool, surrogate: AnySurrogate, rest: np.ndarray, chosen: np.ndarray, rng: np.random.Generator
) -> dict[str, float]:
    drawn = rng.choice(rest, min(HELD_OUT, len(rest)), replace=False)
    return {
        f"{name}_{key}": value
        for name, rows in (("random", drawn), ("chosen", chosen))
        for key, value in _calibration(pool, surrogate, rows).items()
    }


def _calibration(pool: Pool, surrogate: AnySurrogate, rows: np.ndarray) -> dict[str, float]:
    candidates, labels = [pool.candidates[i] for i in rows], pool.labels[rows]
    if not isinstance(surrogate, ForestSurrogate):  # on the model scale, where the posterior is normal
        mean, std = surrogate.marginal(candidates)
        return calibration(TASKS[pool.task].prop.to_scale(labels), mean[:, 0], std[:, 0])
    prediction = surrogate.predict(candidates)
    return calibration(labels, prediction.mean[:, 0], prediction.std[:, 0])


def _outcome(
    pool: Pool, campaign: Campaign, order: list[int], rounds: list[dict[str, float]], seconds: float
) -> Outcome:
    found = np.cumsum([row in pool.top for row in order]) / len(pool.top)
    best = np.maximum.accumulate(pool.utilities()[order])
    return Outcome(campaign, found.tolist(), best.tolist(), [int(row) for row in order], rounds, seconds)
