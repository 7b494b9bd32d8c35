"""When a campaign begins no further round: calls, hours, core-hours, no progress, drift."""

from __future__ import annotations

import math

from loop.history import History


def stop_reason(history: History) -> str:
    """Why no further round is begun; empty while nothing speaks against one. The baseline round is always run."""
    reports, settings = history.reports(), history.settings
    if not reports:
        return ""
    hours, stale = history.seconds() / 3600, rounds_without_progress(history)
    if settings.max_calls is not None and history.paid >= settings.max_calls:
        return f"{history.paid} oracle calls are paid, max_calls is {settings.max_calls}"
    if settings.max_hours is not None and hours >= settings.max_hours:
        return f"{hours:.2f} hours are worked, max_hours is {settings.max_hours}"
    if settings.max_core_hours is not None and history.core_hours >= settings.max_core_hours:
        return f"{history.core_hours:.3g} core-hours are paid, max_core_hours is {settings.max_core_hours:g}"
    if settings.patience is not None and stale >= settings.patience:
        return f"{stale} rounds without a new stable crystal or a better objective, patience is {settings.patience}"
    return drift_reason(history)


def drift_reason(history: History) -> str:
    """Whether the last fine-tuned policy went past a limit of `stop_below` or `stop_above`."""
    last, settings = history.reports()[-1], history.settings
    if last.round == 0:
        return ""
    for name, limit in settings.stop_below.items():
        if last.metrics.get(name, math.nan) < limit:
            return f"drift: {name} is {last.metrics[name]:.3g}, the limit is {limit:g}"
    for name, limit in settings.stop_above.items():
        if last.metrics.get(name, math.nan) > limit:
            return f"drift: {name} is {last.metrics[name]:.3g}, the limit is {limit:g}"
    return ""


def rounds_without_progress(history: History) -> int:
    """How many of the last rounds brought neither a new stable crystal nor a better objective."""
    badness, stale = history.settings.wanted.badness, 0
    finds, best = -1.0, badness(math.nan)
    for report in history.reports():
        found, objective = report.metrics["stable_new_total"], badness(report.metrics["best_objective"])
        stale = 0 if found > finds or objective < best else stale + 1
        finds, best = max(finds, found), min(best, objective)
    return stale
