"""Which measured crystals go up to the next fidelity: the posterior of the step between them, and what it costs.

The costlier value is modelled as the cheaper one plus a Gaussian process on features and the cheaper value itself (an
autoregressive step after Kennedy and O'Hagan, Biometrika 87, 1 (2000), on the property's own scale): where both agree
the process has little to add, where the cheaper oracle errs for a kind of crystal it learns by how much. The score of a
crystal is the probability that it is of use, times the expected improvement, over what it costs. What is to be improved
on is the k-th best so far where k are chosen at a time: a list is wanted, not one record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from surrogates.calibration import conformal_factor
from surrogates.exact import ExactGP
from surrogates.properties import Property, default_property
from surrogates.scaling import InputScaler
from surrogates.utility import Objective, bind, log_expected_improvement

if TYPE_CHECKING:
    from loop.history import Label
    from loop.settings import CampaignSettings
    from surrogates.features import FeatureExtractor

MIN_FIT = 8  # measured steps from which hyperparameters are fitted; below they stay at their priors' centres
MIN_SEEN = 4  # measured steps of a campaign; before, rank decides
STABILITY_ERROR = 0.03  # eV/atom: of a distance from the hull by a potential, against the costlier tier's
MAXITER = 50  # L-BFGS steps of that fit
STEP = 0.5  # prior standard deviation of a step, over that of the property itself
COST_SLOPE = 2.0  # prior exponent of a cost in the size of a crystal: between a potential's and that of DFT
NO_USE = 1e-12  # probability of being of use that counts as none: such crystals come last
COST_WEIGHT = 4.0  # measurements that this prior counts as


@dataclass(frozen=True)
class Steps:
    """Crystals between two fidelities.

    Attributes:
        features: (n, d), NaN where missing.
        low: (n,) cheaper values, own unit; NaN where there is none, which says nothing about the step.
        high: (n,) costlier values, own unit; NaN where not measured or failed.
        cost: (n,) of the costlier measurement, any one unit; NaN where not measured.
        size: (n,) what a cost grows with, such as the number of electrons.
        useful: (n,) probability that a crystal is of use at all, such as that of its stability.
    """

    features: np.ndarray
    low: np.ndarray
    high: np.ndarray
    cost: np.ndarray
    size: np.ndarray
    useful: np.ndarray

    def but(self, row: int, high: float) -> Steps:
        """With one more value taken for measured."""
        values = self.high.copy()
        values[row] = high
        return replace(self, high=values)


class StepModel:
    """Posterior of the costlier value.

    Args:
        steps: measured and open ones; inputs are scaled by all of them.
        groups: of the feature columns, see `surrogates.features.FeatureExtractor.groups`.
        prop: property, whose scale and prior count.
    """

    def __init__(self, steps: Steps, groups: dict[str, np.ndarray], prop: Property) -> None:
        low = prop.to_scale(steps.low)
        centre = float(np.nanmean(low)) if np.isfinite(low).any() else prop.prior_mean
        offset = np.where(np.isfinite(low), low, centre)
        width = steps.features.shape[1]
        self._groups = {**groups, "fidelity": np.array([width])}
        columns = np.column_stack([steps.features, low])
        self._scaler = InputScaler.fit(columns, self._groups)
        self._Z, self._offset = self._scaler(columns, self._groups), offset
        self._prior = (0.0, STEP * prop.prior_std)
        self._state: dict[str, np.ndarray] | None = None
        self._factor = 1.0
        self._prop = prop

    def predict(self, high: np.ndarray, *, fit: bool) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) on the property's scale, given costlier values (n,), NaN where unknown.

        Args:
            high: own unit.
            fit: find hyperparameters and calibrate; else those of the last fit.
        """
        t = self._prop.to_scale(high)
        rows = np.flatnonzero(np.isfinite(t))
        gp = ExactGP(self._Z[rows], t[rows], self._scaler.group, self._offset[rows], self._prior)
        if fit:
            if len(rows) >= MIN_FIT:
                gp.fit(rows=np.arange(len(rows)), maxiter=MAXITER)
            self._state = gp.hyperparameters()
            if len(rows) >= MIN_FIT:
                mean, std = gp.leave_one_block_out(np.arange(len(rows)))
                self._factor = conformal_factor(t[rows], mean, std)
        elif self._state is not None:
            gp.load(self._state)
        mean, std = gp.predict(self._Z, self._offset)
        return mean, std * self._factor


def selected_for_tier(
    steps: Steps,
    groups: dict[str, np.ndarray],
    prop: Property,
    objective: Objective,
    k: int,
    *,
    by_cost: bool = True,
    rows: np.ndarray | None = None,
) -> list[int]:
    """Rows of the k crystals to measure next, best first; each is assumed to come out as expected for the next.

    Args:
        steps: all crystals; those with a finite `cost` were measured, whatever came out.
        groups: of the feature columns.
        prop: costlier property.
        objective: what is wanted of it.
        k: at most.
        by_cost: divide by the expected cost.
        rows: those that may be chosen; None: all that were not measured.
    """
    goals = bind([objective], [], [prop])
    model = StepModel(steps, groups, prop)
    open_ = np.flatnonzero(np.isnan(steps.cost)) if rows is None else np.asarray(rows)
    expense = np.log(costs(steps)) if by_cost else np.zeros(len(steps.low))
    chosen: list[int] = []
    for turn in range(min(k, len(open_))):
        mean, std = model.predict(steps.high, fit=turn == 0)
        value, spread = goals.moments(mean[:, None], std[:, None])
        # what was measured counts by how likely it is of use: an unstable record is none to beat
        good = np.isfinite(steps.high) & (steps.useful >= 0.5)
        reached = np.sort(goals.values(prop.to_scale(steps.high[good])[:, None])[:, 0])
        best = float(reached[-min(k, len(reached))]) if good.any() else float((value - spread).min())
        score = log_expected_improvement(value[:, 0], spread[:, 0], best) - expense
        score = score + np.log(np.maximum(steps.useful, NO_USE))
        score = np.where(steps.useful > NO_USE, score, score - np.ptp(score) - 1.0)
        left = np.setdiff1d(open_, chosen)
        row = int(left[np.argmax(score[left])])
        chosen.append(row)
        steps = steps.but(row, float(prop.from_scale(mean[row])))
    return chosen


def costs(steps: Steps) -> np.ndarray:
    """Expected costs (n,), up to a factor: a power of the size, fitted to what was paid, its exponent held by a prior.

    Ridge regression of ln(cost) on ln(size): exponent about `COST_SLOPE`, as if seen `COST_WEIGHT` times.
    """
    size = np.log(np.maximum(steps.size, 1e-12))
    size = size - size.mean()
    seen = np.isfinite(steps.cost) & (steps.cost > 0)
    slope = COST_SLOPE
    if seen.sum() > 1:
        x, y = size[seen] - size[seen].mean(), np.log(steps.cost[seen])
        slope = float((x @ (y - y.mean()) + COST_WEIGHT * COST_SLOPE) / (x @ x + COST_WEIGHT))
    costs: np.ndarray = np.exp(slope * size)
    return costs


def probability_at_most(values: np.ndarray, bound: float, error: float | np.ndarray) -> np.ndarray:
    """Probability (n,) that what was measured with a standard error lies at or below a bound; 0 where it is NaN."""
    probability: np.ndarray = np.nan_to_num(norm.cdf((bound - np.asarray(values, dtype=float)) / error))
    return probability


class StepAcquisition:
    """Implements `loop.tiers.TierSelection`: which labelled crystals of a campaign go to a tier.

    Args:
        extractor: features of candidates.
        properties: as a campaign models them; others by `surrogates.properties.default_property`.
        by_cost: divide by the expected cost.
    """

    def __init__(
        self, extractor: FeatureExtractor, properties: Sequence[Property] = (), *, by_cost: bool = True
    ) -> None:
        self._extractor, self._by_cost = extractor, by_cost
        self._properties = {prop.name: prop for prop in properties}

    def __call__(
        self, seen: Sequence[Label], open: Sequence[Label], settings: CampaignSettings, tier: str, k: int
    ) -> list[int] | None:
        """Indices into `open`, best first; None where there is too little to go by, and rank has to decide.

        Args:
            seen: crystals that the tier was asked about.
            open: crystals that it may be asked about.
            settings: of the campaign.
            tier: its name.
            k: how many.
        """
        goal = next((goal for goal in settings.goals if goal.name.startswith(f"{tier}_")), None)
        prop = None if goal is None else self._properties.get(goal.name) or default_property(goal.name)
        if goal is None or prop is None or sum(self._is_known(label, tier, goal.name) for label in seen) < MIN_SEEN:
            return None
        both = [*seen, *open]
        steps = self._steps(both, replace(prop, offset=None), settings, tier)
        wanted = Objective(goal.name, goal.kind, goal.centre if goal.kind == "target" else None)
        rows = np.arange(len(seen), len(both))
        chosen = selected_for_tier(steps, self._extractor.groups, prop, wanted, k, by_cost=self._by_cost, rows=rows)
        return [row - len(seen) for row in chosen]

    @staticmethod
    def _is_known(label: Label, tier: str, name: str) -> bool:
        return tier in label.tiers and bool(np.isfinite(label.first.value(name)))

    def _steps(self, labels: Sequence[Label], prop: Property, settings: CampaignSettings, tier: str) -> Steps:
        crystals = [label.first.structure or label.candidate.structure for label in labels]
        spent = [label.tiers[tier].cost if tier in label.tiers else None for label in labels]
        steps = Steps(
            features=self._extractor([label.candidate for label in labels]),
            low=np.array([_cheaper(label, prop.name, tier) for label in labels]),
            high=np.array([label.first.value(prop.name) for label in labels]),
            cost=np.array([np.nan if cost is None else max(cost.seconds * cost.cores, 1e-9) for cost in spent]),
            size=np.array([float(sum(crystal.atomic_numbers)) for crystal in crystals]),
            useful=np.ones(len(labels)),
        )
        return replace(steps, useful=self._useful(labels, steps, settings, tier))

    def _useful(self, labels: Sequence[Label], steps: Steps, settings: CampaignSettings, tier: str) -> np.ndarray:
        """Probability (n,) that a crystal is new and stable, by the tier itself where that judges stability."""
        low = np.array([label.evaluation.value(settings.stability) for label in labels])
        high = np.array([label.first.value(f"{tier}_{settings.stability}") for label in labels])
        stable = probability_at_most(low, settings.threshold, STABILITY_ERROR)
        if np.isfinite(high).sum() >= MIN_SEEN:
            prop = Property(settings.stability, "eV/atom", prior_std=STABILITY_ERROR / STEP)
            model = StepModel(replace(steps, low=low), self._extractor.groups, prop)
            mean, std = model.predict(high, fit=True)
            stable = np.where(np.isfinite(low), probability_at_most(mean, settings.threshold, std), 0.0)
        wanted = [label.may_be_new and not label.suspect(settings) for label in labels]
        find: np.ndarray = stable * np.array(wanted, dtype=float)
        return find


def _cheaper(label: Label, name: str, tier: str) -> float:
    """The same property one fidelity below: as the label's oracle measured it, else as it was predicted."""
    measured = label.first.value(name.removeprefix(f"{tier}_"))
    return measured if np.isfinite(measured) else label.pick.mean.get(name, float("nan"))
