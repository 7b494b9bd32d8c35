"""What one round did, as numbers: the funnel, hit rates per arm, acceleration, calibration, learning, drift, cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict

import numpy as np
from pymatgen.core import Element

from loop.history import History, Label
from loop.metrics import Interval, calibration, concentration, rate_ratio, wilson
from loop.settings import BASELINE, ENGINE, SHADOW, STAGES, CampaignSettings
from loop.stages import Finetuned, HullPoint, Proposed, Selected
from loop.values import RoundReport

_F_BLOCK = (*range(57, 72), *range(89, 104))  # atomic numbers, La to Lu and Ac to Lr
F_BLOCK = frozenset(Element.from_Z(number).symbol for number in _F_BLOCK)


def round_report(history: History, round: int, hull: dict[str, HullPoint] | None = None) -> RoundReport:
    """Report of a round whose labels are in. Metrics marked ``_total`` span all rounds up to this one.

    Args:
        history: the campaign; it is not changed.
        round: the one that is summed up.
        hull: finds judged on the hull that holds all of them, by candidate id; None: the newest of the history.
    """
    so_far = [label for label in history.labels(hull=hull) if label.pick.round <= round]
    labels = [label for label in so_far if label.pick.round == round]
    funnel = _funnel(history, round, labels)
    metrics = _judged(history, labels, so_far)
    metrics |= _calibration(labels)
    metrics |= _learning(history, round)
    metrics |= _drift(history, round)
    metrics["oracle_seconds"] = sum(label.evaluation.cost.seconds for label in labels)
    metrics["oracle_core_hours"] = sum(x.evaluation.cost.seconds * x.evaluation.cost.cores for x in labels) / 3600
    metrics["paid_total"] = float(history.paid)
    seconds = {stage: history.done[round, stage].seconds for stage in STAGES if (round, stage) in history.done}
    return RoundReport(round, funnel, metrics, seconds)


def reports_now(history: History) -> list[RoundReport]:
    """Every round's report, its labels judged on the hull of today, as the ranked list judges them.

    `History.reports` keeps what each round said when it ended (stop rules read that): a crystal that was stable then
    may lie above the hull that holds all later finds. Pages that show both would count one label in two ways.
    """
    labels = history.labels()
    return [_judged_now(history, report, labels) for report in history.reports()]


def _judged_now(history: History, then: RoundReport, labels: list[Label]) -> RoundReport:
    so_far = [label for label in labels if label.pick.round <= then.round]
    own = [label for label in so_far if label.pick.round == then.round]
    metrics = then.metrics | _judged(history, own, so_far)
    return RoundReport(then.round, _funnel(history, then.round, own), metrics, then.seconds)


def _judged(history: History, labels: list[Label], so_far: list[Label]) -> dict[str, float]:
    """Metrics that depend on where the hull lies; all others of a round stand once it has ended."""
    return _rates(history, labels, so_far) | _acceleration(history, so_far) | _objective(history, so_far)


def _funnel(history: History, round: int, labels: list[Label]) -> dict[str, int]:
    """Counts from what was asked of the generator down to stable new crystals."""
    settings, selected = history.settings, history.record(round, Selected)
    predicted = selected.pool_mean.get(settings.stability) or selected.pool_screen
    stable = [label for label in labels if label.is_stable(settings)]
    return {
        **asdict(history.record(round, Proposed).funnel),
        "predicted_stable": sum(value <= settings.threshold for value in predicted),
        "selected": len(selected.picks),
        "labelled": len(labels),
        "usable": sum(label.evaluation.ok for label in labels),
        "stable": len(stable),
        "stable_new": sum(label.is_new for label in stable),
        "suspect": sum(bool(label.suspect(settings)) for label in labels),
    }


def _rates(history: History, labels: list[Label], so_far: list[Label]) -> dict[str, float]:
    """Share of paid labels that are stable, with Wilson intervals: this round, and per arm over all rounds."""
    settings = history.settings
    metrics = _named("hit_rate", wilson(*hits_of(labels, settings)))
    for arm in (BASELINE, ENGINE, SHADOW):
        hits, n = hits_of([label for label in so_far if label.pick.arm == arm], settings)
        metrics |= _named(f"{arm}_hit_rate", wilson(hits, n))
        metrics |= {f"{arm}_hits": float(hits), f"{arm}_labels": float(n)}
    stable = [label for label in so_far if label.is_stable(settings)]
    metrics["stable_total"] = float(len(stable))
    metrics["stable_new_total"] = float(sum(label.is_new for label in stable))
    return metrics


def hits_of(labels: Iterable[Label], settings: CampaignSettings) -> tuple[int, int]:
    """(stable labels, labels)."""
    outcomes = [label.is_stable(settings) for label in labels]
    return sum(outcomes), len(outcomes)


def _acceleration(history: History, so_far: list[Label]) -> dict[str, float]:
    """Hit rate of the engine's picks over that of random picks from the same pools, and from the untuned generator."""
    counts = {
        arm: hits_of([label for label in so_far if label.pick.arm == arm], history.settings)
        for arm in (BASELINE, ENGINE, SHADOW)
    }
    metrics = _named("acceleration", rate_ratio(counts[ENGINE], counts[SHADOW], seed=history.settings.seed))
    return metrics | _named(
        "gain_over_baseline", rate_ratio(counts[ENGINE], counts[BASELINE], seed=history.settings.seed)
    )


def _objective(history: History, so_far: list[Label]) -> dict[str, float]:
    """The best value of the objective among the finds: a known crystal is none."""
    settings = history.settings
    values = [label.evaluation.value(settings.objective) for label in so_far if label.is_find(settings)]
    values = [value for value in values if math.isfinite(value)]
    return {"best_objective": min(values, key=settings.wanted.badness) if values else math.nan}


def _calibration(labels: list[Label]) -> dict[str, float]:
    """Of predictions made before the labels of this round were known."""
    usable = [label for label in labels if label.first.ok and label.pick.mean]
    metrics: dict[str, float] = {}
    for name in usable[0].pick.mean if usable else ():
        y = np.array([label.first.value(name) for label in usable])
        mean = np.array([label.pick.mean[name] for label in usable])
        std = np.array([label.pick.std[name] for label in usable])
        metrics |= {f"{name}_{key}": value for key, value in calibration(y, mean, std).items()}
    return metrics


def _learning(history: History, round: int) -> dict[str, float]:
    rows = history.record(round, Finetuned).rows
    if not rows:
        return {}
    metrics = {"reward_first": float(rows[0]["reward"]), "reward_last": float(rows[-1]["reward"])}
    return metrics | {"kl": float(rows[-1]["kl"]), "iterations": float(len(rows))}


def _drift(history: History, round: int) -> dict[str, float]:
    """Signs of a policy that collapses or copies: validity, uniqueness, novelty, replay, elements."""
    proposed = history.record(round, Proposed)
    funnel, elements = proposed.funnel, proposed.elements
    sampled, valid, unique = (max(1, count) for count in (funnel.sampled, funnel.accepted, funnel.unique))
    total = max(1, sum(elements.values()))
    return {
        "validity": funnel.accepted / sampled,
        "uniqueness": funnel.unique / valid,
        "novelty": funnel.new / unique,
        "replay": proposed.replayed / unique,
        "f_block_share": sum(count for element, count in elements.items() if element in F_BLOCK) / total,
        "element_concentration": concentration(list(elements.values())),
    }


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
