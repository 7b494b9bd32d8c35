"""Interactive figures of what a campaign gained, and of how well its models knew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loop.goal import Goal
from loop.history import History, Label
from loop.metrics import bootstrap_mean, coverage, wilson
from loop.properties import heading
from loop.report.columns import unit_of
from loop.report.drawing import (
    COLOURS,
    FAINT,
    GOOD,
    NAMES,
    SOFT,
    SYMBOLS,
    VIOLET,
    Trace,
    errors,
    every,
    figure,
    level,
    named,
)
from loop.report.gain import compared, value_of
from loop.report.summary import hits_of, reports_now
from loop.settings import ARMS, BASELINE, ENGINE, SHADOW

OFFSETS = {ENGINE: -0.16, SHADOW: 0.16, BASELINE: 0.0}
SMOOTH = 5  # iterations averaged in learning curves
NAMED_ROUNDS = 5  # how many of them the axis of the iterations names
DRIFT = {
    "validity": "accepted / crystals",
    "uniqueness": "unique / accepted",
    "novelty": "new / unique",
    "replay": "replay of training crystals",
    "f_block_share": "f-block share",
    "element_concentration": "element concentration (HHI)",
}
MODELS = (COLOURS[ENGINE], VIOLET, GOOD, "#db2777")  # one per property


def goal_head(history: History, goal: Goal) -> str:
    """An objective as the title of an axis."""
    return heading(goal.name, unit_of(history, goal.name))


def goal_shapes(goal: Goal) -> list[dict[str, Any]]:
    """Target and window of an objective, across a figure whose y axis it is."""
    shapes = [] if goal.target is None else [level(goal.target, "target")]
    if goal.window is not None:
        low, high = goal.window
        style = {"fillcolor": GOOD, "opacity": 0.12, "line": {"width": 0}, "layer": "below"}
        shapes.append({"type": "rect", "xref": "paper", "x0": 0, "x1": 1, "y0": low, "y1": high, **style})
    return shapes


def of_arm(labels: Sequence[Label], arm: str) -> list[Label]:
    """Labels of one arm."""
    return [label for label in labels if label.pick.arm == arm]


def best_so_far(history: History, goal: Goal) -> dict[str, Any] | None:
    """The best value of an objective among the finds after each label of an arm."""
    settings, traces = history.settings, list[Trace]()
    for arm in (BASELINE, SHADOW, ENGINE):
        best: tuple[float, str] | None = None
        x, y, who = list[int](), list[float](), list[str]()
        own = of_arm(history.labels(), arm)
        finds = {label.candidate.id for label in compared(own, goal, settings)}
        for number, label in enumerate(own, 1):
            value = value_of(label, goal.name, settings)
            if label.candidate.id in finds and (best is None or goal.badness(value) < goal.badness(best[0])):
                best = (value, named(label))
            if best is not None:
                x, y, who = [*x, number], [*y, best[0]], [*who, best[1]]
        style = {"color": COLOURS[arm], "width": 2.6 if arm == ENGINE else 1.8, "shape": "hv"}
        tip = "%{text}<br>%{y:.4g} after %{x} labels<extra>" + arm + "</extra>"
        if x:
            shown = {"name": NAMES[arm], "text": who, "hovertemplate": tip, "line": style, "mode": "lines"}
            traces.append({"type": "scatter", "x": x, "y": y, **shown})
    if not traces:
        return None
    return figure(traces, "labels spent by the arm", f"best {goal_head(history, goal)}", shapes=goal_shapes(goal))


def objective_by_round(history: History, goal: Goal) -> dict[str, Any] | None:
    """Every usable label's value of an objective by round and arm, finds filled, and the mean of the finds."""
    settings, labels, traces = history.settings, history.labels(), list[Trace]()
    finds = {label.candidate.id for label in compared(labels, goal, settings)}
    rng = np.random.default_rng(0)  # points beside each other, not on top
    for arm in ARMS:
        own = [x for x in of_arm(labels, arm) if np.isfinite(value_of(x, goal.name, settings))]
        for chosen, kind in ((True, "finds"), (False, "other labels")):
            some = [label for label in own if (label.candidate.id in finds) is chosen]
            symbol = SYMBOLS[arm] if chosen else f"{SYMBOLS[arm]}-open"
            style = {"color": COLOURS[arm], "size": 7, "symbol": symbol, "opacity": 0.75 if chosen else 0.5}
            x = [label.pick.round + OFFSETS[arm] + float(rng.uniform(-0.08, 0.08)) for label in some]
            y = [value_of(label, goal.name, settings) for label in some]
            tip = "%{text}<br>%{y:.4g}<extra>" + f"{arm}, {kind}" + "</extra>"
            shown = {"text": [named(label) for label in some], "hovertemplate": tip, "marker": style}
            if some:
                traces.append({"type": "scatter", "mode": "markers", "x": x, "y": y, "name": f"{arm}, {kind}", **shown})
        traces += _means(own, finds, arm, goal, history)
    if not traces:
        return None
    rounds = sorted({label.pick.round for label in labels})
    axis: dict[str, Any] = {"tickvals": every(rounds), "range": [min(rounds) - 0.5, max(rounds) + 0.5]}
    return figure(traces, "round", goal_head(history, goal), shapes=goal_shapes(goal), xaxis=axis)


def _means(own: list[Label], finds: set[str], arm: str, goal: Goal, history: History) -> list[Trace]:
    """Mean of an arm's finds in each round, with its interval."""
    rounds = sorted({label.pick.round for label in own if label.candidate.id in finds})
    if not rounds:
        return []
    means = []
    for number in rounds:
        some = [label for label in own if label.pick.round == number and label.candidate.id in finds]
        values = [value_of(label, goal.name, history.settings) for label in some]
        means.append(bootstrap_mean(values, seed=history.settings.seed))
    y = [mean.value for mean in means]
    bars = errors(y, [mean.low for mean in means], [mean.high for mean in means])
    style = {"color": "#111827", "size": 11, "symbol": f"{SYMBOLS[arm]}-open", "line": {"width": 2}}
    tip = "mean of the finds %{y:.4g}<extra>" + arm + "</extra>"
    x = [number + OFFSETS[arm] for number in rounds]
    shown = {"error_y": {**bars, "color": "#111827"}, "marker": style, "hovertemplate": tip, "showlegend": False}
    return [{"type": "scatter", "mode": "markers", "x": x, "y": y, "name": f"{arm}, mean of the finds", **shown}]


def learning_curve(history: History) -> dict[str, Any] | None:
    """Stable crystals found by the engine after each label, and what as many labels give at the random arms' rates."""
    settings, labels = history.settings, history.labels()
    engine = [label.is_stable(settings) for label in of_arm(labels, ENGINE)]
    if not engine:
        return None
    ends, traces = [0, len(engine)], list[Trace]()
    for arm in (BASELINE, SHADOW):
        hits, n = hits_of(of_arm(labels, arm), settings)
        if n == 0:
            continue
        rate, colour = wilson(hits, n), COLOURS[arm]
        band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "type": "scatter"}
        traces.append({"x": ends, "y": [rate.low * end for end in ends], **band})
        fill = {"fill": "tonexty", "fillcolor": f"{colour}2e", **band}
        traces.append({"x": ends, "y": [rate.high * end for end in ends], **fill})
        line = {"color": colour, "dash": "dash", "width": 1.8}
        name = f"at the rate of the {NAMES[arm]}: {hits} of {n}"
        expected = [rate.value * end for end in ends]
        traces.append({"type": "scatter", "mode": "lines", "x": ends, "y": expected, "name": name, "line": line})
    found = np.concatenate([[0], np.cumsum(engine)])
    line = {"color": COLOURS[ENGINE], "width": 2.6, "shape": "hv"}
    name = f"engine: {sum(engine)} of {len(engine)}"
    x = list(range(len(found)))
    traces.append({"type": "scatter", "mode": "lines", "x": x, "y": found, "name": name, "line": line})
    return figure(traces, "labels spent by the engine", "stable crystals", yaxis={"rangemode": "tozero"})


def hit_rates(history: History) -> dict[str, Any]:
    """Share of stable labels by round and arm, with Wilson intervals."""
    labels, traces = history.labels(), list[Trace]()
    rounds = sorted({label.pick.round for label in labels})
    for arm in ARMS:
        own = [(number, [x for x in of_arm(labels, arm) if x.pick.round == number]) for number in rounds]
        counted = [(number, *hits_of(some, history.settings)) for number, some in own if some]
        rates = [wilson(hits, n) for _, hits, n in counted]
        if not rates:
            continue
        y = [rate.value for rate in rates]
        bars = errors(y, [rate.low for rate in rates], [rate.high for rate in rates])
        tip = "%{text} stable, %{y:.0%}<extra>round %{x:.0f}, " + arm + "</extra>"
        style = {"color": COLOURS[arm], "size": 10, "symbol": SYMBOLS[arm]}
        shown = {"error_y": bars, "marker": style, "text": [f"{hits} of {n}" for _, hits, n in counted]}
        x = [number + OFFSETS[arm] / 2 for number, *_ in counted]
        traces.append(
            {"type": "scatter", "mode": "markers", "x": x, "y": y, "name": arm, "hovertemplate": tip, **shown}
        )
    axes: dict[str, Any] = {
        "xaxis": {"tickvals": every(rounds)},
        "yaxis": {"range": [-0.02, 1.05], "tickformat": ".0%"},
    }
    return figure(traces, "round", "share of labels that are stable", **axes)


def acceleration(history: History) -> dict[str, Any] | None:
    """Engine's hit rate over that of the shadow arm, labels of all rounds so far, with its interval."""
    reports = [report for report in reports_now(history) if np.isfinite(report.metrics["acceleration"])]
    if not reports:
        return None
    rounds = [report.round for report in reports]
    y, low, high = ([report.metrics[f"acceleration{end}"] for report in reports] for end in ("", "_low", "_high"))
    line = {"color": COLOURS[ENGINE], "width": 2}
    shown = {"error_y": errors(y, low, high), "line": line, "marker": {"size": 9}, "name": "engine / shadow"}
    trace = {"type": "scatter", "mode": "lines+markers", "x": rounds, "y": y, "hovertemplate": "%{y:.2f}", **shown}
    ends = [np.log10(max(1 / 16, 0.8 * min(low))), np.log10(min(64, 1.25 * max(high)))]
    axis: dict[str, Any] = {"type": "log", "range": ends, "tickvals": [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 32, 64]}
    axes: dict[str, Any] = {
        "yaxis": axis,
        "xaxis": {"tickvals": every(rounds), "range": [min(rounds) - 0.5, max(rounds) + 0.5]},
    }
    one = level(1.0, "no better than chance", COLOURS[SHADOW])
    return figure([trace], "round", "hit rate, engine / shadow", shapes=[one], **axes)


# models ---------------------------------------------------------------------------------------------------------------


def predicted(history: History) -> list[str]:
    """Properties that were predicted before labels."""
    return list(next((x.pick.mean for x in history.labels() if x.first.ok and x.pick.mean), {}))


def _predictions(labels: Sequence[Label], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[Label]]:
    """Label, mean and standard deviation, each of shape (n,), of those that have all three."""
    chosen = [x for x in labels if x.first.ok and name in x.pick.mean and np.isfinite(x.first.value(name))]
    rows = [(x.first.value(name), x.pick.mean[name], x.pick.std[name]) for x in chosen]
    y, mean, std = np.array(rows, dtype=float).reshape(-1, 3).T
    return y, mean, std, chosen


def parity(history: History, name: str) -> dict[str, Any] | None:
    """Predicted against labelled, with 90 % error bars; predictions were made before the labels."""
    labels, traces, ends = history.labels(), list[Trace](), list[float]()
    for arm in (BASELINE, SHADOW, ENGINE):
        y, mean, std, chosen = _predictions(of_arm(labels, arm), name)
        if not len(y):
            continue
        ends += [y.min(), y.max(), mean.min(), mean.max()]
        bars = {"type": "data", "array": (1.645 * std).round(4).tolist(), "thickness": 0.8, "width": 0}
        style = {"color": COLOURS[arm], "size": 6, "symbol": SYMBOLS[arm], "opacity": 0.85}
        tip = "%{text}<br>label %{x:.4g}, predicted %{y:.4g} ± %{error_y.array:.2g} (90 %)<extra>" + arm + "</extra>"
        shown = {"error_y": bars, "marker": style, "text": [named(x) for x in chosen], "hovertemplate": tip}
        traces.append({"type": "scatter", "mode": "markers", "x": y, "y": mean, "name": arm, **shown})
    if not traces:
        return None
    line = {"color": SOFT, "width": 1.2}
    diagonal = {"mode": "lines", "line": line, "hoverinfo": "skip", "showlegend": False, "name": "perfect"}
    traces.insert(0, {"type": "scatter", "x": [min(ends), max(ends)], "y": [min(ends), max(ends)], **diagonal})
    return figure(traces, f"label: {heading(name, unit_of(history, name))}", "predicted before the label", height=400)


def calibration_curve(history: History) -> dict[str, Any] | None:
    """Observed against expected share of labels inside central intervals, one line per property."""
    labels, names = history.labels(), predicted(history)
    known = {name: found for name in names if len((found := _predictions(labels, name))[0])}
    if not known:
        return None
    levels = np.linspace(0, 1, 21)
    spread = 1.96 * np.sqrt(levels * (1 - levels) / max(len(found[0]) for found in known.values()))
    band = {"type": "scatter", "mode": "lines", "x": levels, "line": {"width": 0}, "hoverinfo": "skip"}
    traces: list[Trace] = [{**band, "y": np.clip(levels - spread, 0, 1), "showlegend": False}]
    filled = {"fill": "tonexty", "fillcolor": FAINT, "name": "chance, 95 %"}
    traces.append({**band, "y": np.clip(levels + spread, 0, 1), **filled})
    line = {"color": SOFT, "width": 1.2}
    traces.append({"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "name": "perfect", "line": line})
    for (name, (y, mean, std, _)), colour in zip(known.items(), MODELS, strict=False):
        inside = [coverage(y, mean, std, value) for value in levels]
        tip = "expected %{x:.0%}, observed %{y:.0%}<extra>" + f"{len(y)} labels</extra>"
        shown = {"line": {"color": colour, "width": 2.2}, "name": heading(name).split(" (")[0], "hovertemplate": tip}
        traces.append({"type": "scatter", "mode": "lines", "x": levels, "y": inside, **shown})
    axis: dict[str, Any] = {"range": [0, 1], "tickformat": ".0%"}
    return figure(traces, "expected share inside", "observed share inside", height=400, xaxis=axis, yaxis=axis)


def drift(history: History) -> dict[str, Any] | None:
    """Signs of a policy that collapses or copies, by round."""
    reports = reports_now(history)
    colours = (GOOD, COLOURS[ENGINE], VIOLET, "#dc2626", "#ea8a0b", "#6b7280")
    rounds = [report.round for report in reports]
    traces = []
    for (key, name), colour in zip(DRIFT.items(), colours, strict=True):
        shown = {"name": name, "line": {"color": colour}, "hovertemplate": "%{y:.1%}"}
        y = [report.metrics[key] for report in reports]
        traces.append({"type": "scatter", "mode": "lines+markers", "x": rounds, "y": y, **shown})
    axes: dict[str, Any] = {
        "xaxis": {"tickvals": every(rounds)},
        "yaxis": {"range": [-0.02, 1.04], "tickformat": ".0%"},
    }
    return figure(traces, "round", "share of the pool's samples", height=400, hovermode="x unified", **axes)


def learning(history: History, key: str, title: str, colour: str) -> dict[str, Any] | None:
    """Mean reward or divergence from the frozen base over all fine-tuning iterations."""
    rows = history.learning_rows()
    values = np.array([row.get(key, np.nan) for row in rows], dtype=float)
    if not np.isfinite(values).any():
        return None
    steps, smooth, shapes = list(range(1, len(rows) + 1)), np.full(len(rows), np.nan), []
    rounds = sorted({row["round"] for row in rows})
    for number in rounds:
        inside = np.flatnonzero([row["round"] == number for row in rows])
        first = int(inside[0])
        smooth[inside] = [values[max(first, i - SMOOTH + 1) : i + 1].mean() for i in inside]
        words = f"round {number}" if number in every(rounds, NAMED_ROUNDS) else ""
        name = {"text": words, "textposition": "start", "font": {"size": 10, "color": "#6b7280"}}
        line = {"color": "#d1d5db", "width": 1}
        place = {"x0": first + 0.5, "x1": first + 0.5, "yref": "paper", "y0": 0, "y1": 1}
        shapes.append({"type": "line", **place, "line": line, "label": {**name, "textangle": 0, "xanchor": "left"}})
    each = {"mode": "lines", "line": {"color": colour, "width": 1}, "opacity": 0.45, "name": "each iteration"}
    mean = {"mode": "lines", "line": {"color": colour, "width": 2.4}, "name": f"mean of up to {SMOOTH}"}
    traces = [{"type": "scatter", "x": steps, "y": y, **shown} for y, shown in ((values, each), (smooth, mean))]
    return figure(traces, "fine-tuning iteration", title, height=320, shapes=shapes)
