"""What the engine gained in the goal itself: its finds beside those of random picks and of the untuned generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from loop.goal import Goal
from loop.history import History, Label
from loop.metrics import CONFIDENCE, Interval, bootstrap_mean
from loop.report.columns import unit_of
from loop.settings import ARMS, BASELINE, ENGINE, SHADOW, CampaignSettings


@dataclass(frozen=True)
class ArmGoal:
    """The values of one objective in one arm."""

    arm: str
    labels: int  # paid, failures included
    values: tuple[float, ...]  # of the crystals that are compared, in the order of their labels
    mean: Interval
    best: float  # NaN where there is no value


@dataclass(frozen=True)
class GoalGain:
    """One objective in all arms.

    Attributes:
        goal: what is wanted.
        unit: of the objective.
        of: which crystals are compared: ``finds``, or ``usable labels`` where the objective is stability itself.
        arms: by name, those that have labels.
        gains: mean score of the engine minus that of another arm, in the objective's unit, more is better.
    """

    goal: Goal
    unit: str
    of: str
    arms: dict[str, ArmGoal]
    gains: dict[str, Interval]


def goal_gains(history: History) -> list[GoalGain]:
    """The gain in each objective of a campaign."""
    labels = history.labels()
    return [_gain(history, labels, goal) for goal in history.settings.goals]


def value_of(label: Label, name: str, settings: CampaignSettings) -> float:
    """An objective's value; of stability the one at the label, as on its own hull the best all have 0."""
    return (label.first if name == settings.stability else label.evaluation).value(name)


def compared(labels: Sequence[Label], goal: Goal, settings: CampaignSettings) -> list[Label]:
    """The labels by which arms are compared in an objective: finds, or all usable ones where it is stability."""
    judged = [x for x in labels if x.is_find(settings) or (goal.name == settings.stability and x.first.ok)]
    return [x for x in judged if math.isfinite(value_of(x, goal.name, settings)) and not x.suspect(settings)]


def _gain(history: History, labels: list[Label], goal: Goal) -> GoalGain:
    settings, arms = history.settings, dict[str, ArmGoal]()
    for arm in ARMS:
        own = [label for label in labels if label.pick.arm == arm]
        values = tuple(value_of(label, goal.name, settings) for label in compared(own, goal, settings))
        if own:
            best = min(values, key=goal.badness, default=math.nan)
            arms[arm] = ArmGoal(arm, len(own), values, bootstrap_mean(values, seed=settings.seed), best)
    scores = {arm: np.array([goal.score(value) for value in found.values]) for arm, found in arms.items()}
    others = [arm for arm in (SHADOW, BASELINE) if arm in arms and ENGINE in arms]
    gains = {arm: difference(scores[ENGINE], scores[arm]) for arm in others}
    of = "usable labels" if goal.name == settings.stability else "finds"
    return GoalGain(goal, unit_of(history, goal.name), of, arms, gains)


def difference(ours: np.ndarray, theirs: np.ndarray) -> Interval:
    """Difference of two means with Welch's interval (Biometrika 34, 28 (1947)).

    The interval is NaN where an arm has fewer than two values or neither varies, the value where one has none.
    """
    if not len(ours) or not len(theirs):
        return Interval(math.nan, math.nan, math.nan)
    value = float(ours.mean() - theirs.mean())
    if min(len(ours), len(theirs)) < 2 or np.ptp(ours) == np.ptp(theirs) == 0:
        return Interval(value, math.nan, math.nan)
    found = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(CONFIDENCE)
    return Interval(value, float(found.low), float(found.high))
