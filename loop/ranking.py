"""The ranked list: stable and new crystals first, by the goals; then what is stable and known, suspect, unstable."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from loop.goal import Goal
from loop.history import NOT_JUDGED, Label
from loop.metrics import pareto_front
from loop.settings import CampaignSettings

# groups of the list, best first; a report shows the first by themselves
FIND, KNOWN_STABLE, SUSPECTS, UNSTABLE, FAILED = "find", "known", "suspect", "unstable", "failed"
UNJUDGED = NOT_JUDGED  # stable, in a round whose relaxed crystals are not compared with the known ones yet
GROUPS = (FIND, UNJUDGED, KNOWN_STABLE, SUSPECTS, UNSTABLE, FAILED)


def ranked(labels: list[Label], settings: CampaignSettings) -> list[Label]:
    """Best first. Finds and known stable crystals by the goals, then by stability; suspect and unstable by stability.

    Several goals: by Pareto front, within a front by the first goal. Ties go by id, so that the same labels give the
    same list.
    """
    groups: dict[str, list[Label]] = {name: [] for name in GROUPS}
    for label in labels:
        groups[group_of(label, settings)].append(label)
    found: list[Label] = []
    for name, members in groups.items():
        by_goals = name in (FIND, UNJUDGED, KNOWN_STABLE)
        fronts = pareto_fronts(members, settings.goals) if by_goals else [0] * len(members)
        keys = [_sort_key(name, label, front, settings) for label, front in zip(members, fronts, strict=True)]
        found += [members[i] for i in sorted(range(len(members)), key=keys.__getitem__)]
    return found


def group_of(label: Label, settings: CampaignSettings) -> str:
    """One of `GROUPS`: only a find is stable, new as proposed and relaxed, and not implausibly far below the hull."""
    if not label.evaluation.ok or math.isnan(label.evaluation.value(settings.stability)):
        return FAILED
    if label.suspect(settings):
        return SUSPECTS
    if not label.is_stable(settings):
        return UNSTABLE
    if label.verdict == NOT_JUDGED:
        return UNJUDGED
    return FIND if label.is_new else KNOWN_STABLE


def pareto_fronts(labels: Sequence[Label], goals: Sequence[Goal]) -> list[int]:
    """Front of each label by all goals, 0 the best: that of NSGA-II's sorting. One goal makes one front of all."""
    if len(goals) < 2 or not labels:
        return [0] * len(labels)
    points = np.array([[goal.score(label.evaluation.value(goal.name)) for goal in goals] for label in labels])
    fronts, left = np.zeros(len(labels), dtype=int), np.arange(len(labels))
    while len(left):
        best = left[pareto_front(points[left])]
        left = np.setdiff1d(left, best)
        fronts[left] += 1
    return fronts.tolist()


def _sort_key(group: str, label: Label, front: int, settings: CampaignSettings) -> tuple[float | str, ...]:
    stability = label.evaluation.value(settings.stability)
    badness = settings.wanted.badness(label.evaluation.value(settings.objective))
    if group == FAILED:
        return (label.candidate.id,)
    if group in (SUSPECTS, UNSTABLE):
        return (stability, *badness, label.candidate.id)
    return (front, *badness, stability, label.candidate.id)
