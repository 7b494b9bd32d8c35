"""From simulated campaigns to numbers with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.pool.simulation import FOREST, TARGET, Outcome
from loop.metrics import acceleration_factor, bootstrap_mean, enhancement_factor

if TYPE_CHECKING:
    import pandas as pd

CHECKPOINTS = (50, 100, 200, 300, 500)  # labels at which recall and EF are reported
STEP = 5  # labels between two rows of the curves' table
SETTLED = 3  # rounds before calibration counts


def summarise(
    outcomes: Mapping[str, Sequence[Outcome]], sizes: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """One row per task and strategy; 95 % bootstrap intervals over seeds as ``<name>_low`` and ``<name>_high``.

    ``af``: labels that chance needs in expectation for half of the top crystals, over those that the strategy needed;
    a campaign that did not get there within its budget enters with 0, and ``reached`` is the share that did.
    ``ef_<n>``: top crystals found after n labels over chance's expectation. ``area``: mean recall over the budget, and
    ``area_minus_<other>``: its difference to greedy and forest, paired by seed.
    """
    return [
        _row(task, strategy, _of(runs, strategy), runs, sizes[task]["pool"])
        for task, runs in outcomes.items()
        for strategy in dict.fromkeys(outcome.campaign.strategy for outcome in runs)
    ]


def _of(runs: Sequence[Outcome], strategy: str) -> list[Outcome]:
    return [outcome for outcome in runs if outcome.campaign.strategy == strategy]


def _row(task: str, strategy: str, own: Sequence[Outcome], runs: Sequence[Outcome], n: int) -> dict[str, Any]:
    chance = (np.arange(1, n + 1) / n).tolist()
    factors = [acceleration_factor(outcome.found, chance, TARGET) for outcome in own]
    row: dict[str, Any] = {"task": task, "strategy": strategy, "seeds": len(own)}
    row |= _interval("af", factors) | {"reached": float(np.mean([factor > 0 for factor in factors]))}
    for labels in CHECKPOINTS:
        if labels <= len(own[0].found):
            row |= _interval(f"recall_{labels}", [outcome.found[labels - 1] for outcome in own])
            row |= _interval(f"ef_{labels}", [enhancement_factor(o.found, chance, labels) for o in own])
    row |= _interval("area", [float(np.mean(outcome.found)) for outcome in own])
    for other in ("greedy", FOREST):
        row |= _paired(own, _of(runs, other), other)
    for kind in ("random", "chosen"):
        row |= _coverage(own, kind)
    row["seconds"] = float(np.mean([outcome.seconds for outcome in own]))
    return row


def _paired(own: Sequence[Outcome], others: Sequence[Outcome], name: str) -> dict[str, float]:
    theirs = {outcome.campaign.seed: float(np.mean(outcome.found)) for outcome in others}
    differences = [float(np.mean(o.found)) - theirs[o.campaign.seed] for o in own if o.campaign.seed in theirs]
    return _interval(f"area_minus_{name}", differences) if differences else {}


def _coverage(own: Sequence[Outcome], kind: str) -> dict[str, float]:
    """Coverage of 90 % intervals after round `SETTLED`: mean over seeds, and its lowest and highest round."""
    tables = [[row[f"{kind}_coverage90"] for row in outcome.rounds[SETTLED:]] for outcome in own if outcome.rounds]
    if not tables or not tables[0]:
        return {}
    by_round = np.mean(tables, axis=0)
    result = {f"coverage90_{kind}": float(by_round.mean())}
    return result | {f"coverage90_{kind}_min": float(by_round.min()), f"coverage90_{kind}_max": float(by_round.max())}


def _interval(name: str, values: Sequence[float]) -> dict[str, float]:
    interval = bootstrap_mean(values)
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def tables(outcomes: Mapping[str, Sequence[Outcome]], summary: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """``summary``, ``curves`` (recall and best, each `STEP` labels) and ``calibration`` (by round)."""
    import pandas as pd

    curves, rounds = [], []
    for task, runs in outcomes.items():
        for outcome in runs:
            head = {"task": task, "strategy": outcome.campaign.strategy, "seed": outcome.campaign.seed}
            pairs = zip(outcome.found, outcome.best, strict=True)
            curves += [
                head | {"labels": i, "recall": found, "best": best}
                for i, (found, best) in enumerate(pairs, 1)
                if i % STEP == 0
            ]
            rounds += [head | row for row in outcome.rounds]
    return {"summary": pd.DataFrame(summary), "curves": pd.DataFrame(curves), "calibration": pd.DataFrame(rounds)}
