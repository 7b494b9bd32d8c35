"""Three ways to spend a budget of DFT on one pool: the closed loop, the published protocol, and chance.

All begin with the same surrogates, trained on published labels. The closed loop learns from each of its own labels, and
decides after every gap whether the constant is worth its price (`surrogates.two_steps`); the published protocol takes
the best by predicted merit and computes both; chance takes any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from flows.benchmarks.rl.properties_models import GAP
from loop.values import OK, Candidate, Evaluation, Quantity
from surrogates.features import FeatureExtractor
from surrogates.product import ProductSurrogate
from surrogates.properties import GPConfig, Property
from surrogates.two_steps import Costs, Factors, index_to_finish
from surrogates.utility import log_expected_improvement

CONSTANT = Property("dielectric_electronic", "1", "log", prior_mean=1.5, prior_std=0.5)
MERIT = Property("figure_of_merit", "eV", prior_mean=9.6, prior_std=4.2)  # mean and spread of 3,166 published ones
# no forests, hyperparameters from some of the labels (all are conditioned on): fits are many, and take seconds
GP = GPConfig(properties=(GAP, CONSTANT), max_labels=6000, forest=False, max_fit=150, maxiter=15)
CLOSED, GREEDY, WHOLE, PAPER, RANDOM = "closed", "retrained-greedy", "closed-one-step", "paper", "random"
ARMS = {
    CLOSED: "retrained with its own labels; by expected gain over cost, the constant only where the gap earned it",
    WHOLE: "retrained; by expected gain, gap and constant together",
    GREEDY: "retrained; the best by predicted merit, gap and constant together",
    PAPER: "surrogates as they were before; the best by predicted merit, gap and constant together",
    RANDOM: "any crystal of the pool, gap and constant together",
}
LEARNS = (CLOSED, WHOLE, GREEDY)
BAND_GAP, DIELECTRIC = GAP.name, CONSTANT.name


def labelled(candidate: Candidate, gap: float | None, constant: float | None) -> Evaluation:
    """A label with what is known of it."""
    pairs = ((GAP, gap), (CONSTANT, constant))
    known = {prop.name: Quantity(float(value), prop.unit) for prop, value in pairs if value is not None}
    return Evaluation(candidate.id, "labels@1", "benchmark", OK, known)


@dataclass(frozen=True, eq=False)
class Lesson:
    """Published labels from which all arms begin: candidates and evaluations."""

    candidates: Sequence[Candidate]
    evaluations: Sequence[Evaluation]


@dataclass
class Arm:
    """What one arm has measured, and what it predicts.

    Attributes:
        name: a key of `ARMS`.
        pool: candidates.
        threshold: merit (eV) above which a crystal counts.
        costs: of the two steps.
        seed: of chance.
    """

    name: str
    pool: Sequence[Candidate]
    threshold: float
    costs: Costs
    seed: int
    gaps: dict[int, float] = field(default_factory=dict)  # by row of the pool; NaN where DFT failed
    constants: dict[int, float] = field(default_factory=dict)  # likewise
    posterior: Factors | None = None  # in the pool, newest; those in a crystal whose gap is known are from before
    merit: np.ndarray | None = None  # predicted, (n, 2): mean and standard deviation
    _order: list[int] = field(default_factory=list)
    _index: dict[int, float] = field(default_factory=dict)
    _above: float = 0.0  # merit that gains are counted from
    _formulas: set[str] = field(default_factory=set)  # begun since the last plan

    def merits(self) -> dict[int, float]:
        """Gap (eV) times constant of the crystals that have both."""
        return {row: self.gaps[row] * value for row, value in self.constants.items()}

    def learn(self, surrogate: ProductSurrogate, lesson: Lesson) -> dict[str, float]:
        """Fit to the lesson and, where the arm learns, to its own labels; then look at the pool again."""
        mine = sorted(self.gaps) if self.name in LEARNS else []
        labels = [labelled(self.pool[row], _finite(self.gaps[row]), _finite(self.constants.get(row))) for row in mine]
        metrics = surrogate.fit([*lesson.candidates, *(self.pool[row] for row in mine)], [*lesson.evaluations, *labels])
        self.look(surrogate)
        return metrics

    def look(self, surrogate: ProductSurrogate) -> None:
        """Predict the pool; what was predicted of a crystal before its gap was known stays."""
        fresh, known = surrogate.factors(self.pool), np.array(sorted(self.gaps), dtype=int)
        if self.posterior is not None and len(known):  # the constant's posterior may be newer, the gap's surprise not
            fresh.mean[known, 0], fresh.std[known, 0] = self.posterior.mean[known, 0], self.posterior.std[known, 0]
        self.posterior = fresh
        self.merit = np.column_stack([part[:, 0] for part in surrogate.marginal(self.pool)])

    def next_step(self) -> tuple[int, str] | None:
        """The row of the pool to measure now, and what of it: ``gap``, ``dielectric`` or ``both``; None: all is done.

        Between two rounds of learning a formula is begun once.
        """
        left = [row for row in self._order if row not in self.gaps]
        fresh = [row for row in left if self.pool[row].formula not in self._formulas] or left
        if self.name != CLOSED:
            return (fresh[0], "both") if fresh else None
        steps = [(self._index[fresh[0]], fresh[0], "gap")] if fresh else []
        waiting = [r for r in self.gaps if r not in self.constants and np.isfinite(self.gaps[r])]
        if waiting and self.posterior is not None:
            gaps, posterior = np.array([self.gaps[row] for row in waiting]), _part(self.posterior, np.array(waiting))
            finish = index_to_finish(gaps, posterior, self._above, self.costs)
            best = int(np.argmax(finish))
            steps.append((float(finish[best]), waiting[best], "dielectric"))
        return max(steps, key=lambda step: step[0])[1:] if steps else None

    def plan(self) -> None:
        """Put the pool in the order in which new crystals are begun, by what is predicted now."""
        n = len(self.pool)
        self._formulas.clear()
        if self.name == RANDOM:
            self._order = np.random.default_rng(self.seed).permutation(n).tolist()
            return
        assert self.merit is not None
        mean, std = self.merit.T
        # where nothing is expected to reach the threshold, a gain above it would be a tail's: the best that is expected
        self._above = min(self.threshold, float(mean.max()))
        score = expected_excess(mean, std, self._above) / self.costs.both if self.name in (CLOSED, WHOLE) else mean
        self._index = {row: float(score[row]) for row in range(n)}
        self._order = np.lexsort((-mean, -score)).tolist()  # ties: what is expected to be better

    def take(self, row: int, kind: str, gap: float | None, constant: float | None) -> None:
        """Write down what a step found; None or NaN where it failed."""
        self._formulas.add(self.pool[row].formula)
        if kind in ("gap", "both"):
            self.gaps[row] = float("nan") if gap is None else gap
        if kind in ("dielectric", "both"):
            self.constants[row] = float("nan") if constant is None else constant


def surrogate_for(extractor: FeatureExtractor, gp: GPConfig = GP) -> ProductSurrogate:
    """The surrogates of gap, constant and their product."""
    return ProductSurrogate(extractor, gp, MERIT)


def cost_of(kind: str, costs: Costs) -> float:
    """Of a step."""
    return {"gap": costs.first, "dielectric": costs.second, "both": costs.both}[kind]


def _part(posterior: Factors, rows: np.ndarray) -> Factors:
    return replace(posterior, mean=posterior.mean[rows], std=posterior.std[rows])


def _finite(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else value


def expected_excess(mean: np.ndarray, std: np.ndarray, threshold: float) -> np.ndarray:
    """E[max(x - threshold, 0)] for normal x, (n,)."""
    return np.exp(log_expected_improvement(mean, std, threshold))
