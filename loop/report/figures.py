"""The report's figures, as SVG text. Colours mean the same everywhere: engine blue, shadow orange, baseline grey."""

from __future__ import annotations

import io
import re
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pymatgen.core import Element

from loop.history import History, Label
from loop.metrics import coverage, pareto_front, wilson
from loop.properties import heading, spec_of
from loop.report.columns import unit_of
from loop.report.summary import hits_of
from loop.settings import ARMS, BASELINE, ENGINE, SHADOW
from loop.stages import Proposed

COLOURS = {ENGINE: "#2563eb", SHADOW: "#ea8a0b", BASELINE: "#8492a6"}
NAMES = {ENGINE: "engine", SHADOW: "shadow (random, same pool)", BASELINE: "baseline (untuned generator, random)"}
INK, FAINT, GOOD = "#1f2937", "#e5e7eb", "#059669"
STYLE: Any = {  # matplotlib types the keys as literals
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",  # for the layout; the page's style sheet shows its own
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#9ca3af",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.8,
    "xtick.color": "#4b5563",
    "ytick.color": "#4b5563",
    "legend.frameon": False,
    "legend.fontsize": 9,
}
WIDE, HALF = (8.6, 3.4), (5.2, 3.5)
SMOOTH = 5  # iterations averaged in learning curves


def to_svg(figure: Figure, name: str) -> str:
    """SVG element without XML header; `name` keeps its ids apart from those of other figures in a page."""
    text = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure.savefig(text, format="svg", bbox_inches="tight", transparent=True, metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    return re.sub(r'<g id="[^"]*"', "<g", svg)  # names of groups repeat in every figure, and nothing refers to them


def _axes(size: tuple[float, float], columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def learning_curve(history: History) -> Figure:
    """Stable crystals found by the engine after each label, and what as many labels give at the random arms' rates."""
    figure, (axes,) = _axes(HALF)
    settings, labels = history.settings, history.labels()
    engine = [label.is_stable(settings) for label in labels if label.pick.arm == ENGINE]
    calls = np.arange(len(engine) + 1)
    for arm in (BASELINE, SHADOW):
        hits, n = hits_of([label for label in labels if label.pick.arm == arm], settings)
        rate = wilson(hits, n)
        if n:
            axes.plot(calls, rate.value * calls, "--", color=COLOURS[arm], label=f"{NAMES[arm]}: {hits} of {n}")
            axes.fill_between(calls, rate.low * calls, rate.high * calls, color=COLOURS[arm], alpha=0.15, lw=0)
    found = np.concatenate([[0], np.cumsum(engine)])
    axes.step(
        calls, found, where="post", color=COLOURS[ENGINE], lw=2.2, label=f"engine: {sum(engine)} of {len(engine)}"
    )
    axes.set(xlabel="labels spent by the engine", ylabel="stable crystals found", xlim=(0, max(1, len(engine))))
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left")
    return figure


def hit_rates(history: History) -> Figure:
    """Share of stable labels by round and arm, with Wilson intervals."""
    figure, (axes,) = _axes(HALF)
    labels = history.labels()
    rounds = sorted({label.pick.round for label in labels})
    for arm in ARMS:
        shown, offset = False, {ENGINE: -0.12, SHADOW: 0.12, BASELINE: 0.0}[arm]
        for number in rounds:
            hits, n = hits_of([x for x in labels if x.pick.round == number and x.pick.arm == arm], history.settings)
            if n == 0:
                continue
            rate = wilson(hits, n)
            errors = [[rate.value - rate.low], [rate.high - rate.value]]
            style: dict[str, Any] = {"color": COLOURS[arm], "fmt": "o", "ms": 7, "capsize": 3, "lw": 1.6}
            axes.errorbar(number + offset, rate.value, yerr=errors, label=None if shown else arm, **style)
            axes.annotate(
                f"{hits}/{n}", (number + offset, rate.high), (0, 3), textcoords="offset points", ha="center", size=8
            )
            shown = True
    axes.set(xlabel="round", ylabel="share of labels that are stable", ylim=(0, 1.12), xticks=rounds)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.legend(loc="upper left", ncols=3, bbox_to_anchor=(0, 1.12))
    return figure


def acceleration(history: History) -> Figure:
    """Engine's hit rate over that of the shadow arm, labels of all rounds so far, with its interval."""
    figure, (axes,) = _axes(HALF)
    reports = [report for report in history.reports() if np.isfinite(report.metrics["acceleration"])]
    if not reports:
        return _empty(figure, axes, "no round yet with labels of both arms")
    rounds = [report.round for report in reports]
    value, low, high = (
        np.array([report.metrics[f"acceleration{end}"] for report in reports]) for end in ("", "_low", "_high")
    )
    axes.axhline(1, color=COLOURS[SHADOW], ls="--", lw=1.4, label="no better than random")
    axes.errorbar(rounds, value, yerr=[value - low, high - value], color=COLOURS[ENGINE], fmt="o-", capsize=4, lw=1.8)
    axes.set_yscale("log", base=2)
    axes.set_ylim(max(1 / 16, 0.8 * float(low.min())), min(64, 1.25 * float(high.max())))
    axes.yaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.set(xlabel="round", ylabel="hit rate, engine / shadow", xticks=rounds)
    axes.legend(loc="best")
    return figure


FUNNEL = {
    "asked": "asked of the generator",
    "sampled": "crystals",
    "accepted": "accepted by the rules",
    "unique": "unique",
    "new": "new",
    "predicted_stable": "believed stable",
    "selected": "selected",
    "labelled": "labelled",
    "stable": "stable",
    "stable_new": "stable and new",
}


def funnel(history: History) -> Figure:
    """Counts of all rounds from samples down to finds, on a logarithmic axis."""
    figure, (axes,) = _axes(HALF)
    reports = history.reports()
    counts = [sum(report.funnel[key] for report in reports) for key in FUNNEL]
    shades = mpl.colormaps["Blues"](np.linspace(0.3, 0.85, len(FUNNEL)))
    axes.barh(list(FUNNEL.values()), np.maximum(counts, 0.5), color=shades, height=0.74)
    for row, count in enumerate(counts):
        axes.annotate(f"{count:,}", (max(count, 0.5), row), (4, 0), textcoords="offset points", va="center", size=9)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(0.5, max([*counts, 1]) * 3)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("count, all rounds")
    return figure


def hull_histogram(history: History) -> Figure:
    """Energies above the hull of the labelled candidates, before and after relaxation."""
    figure, (axes,) = _axes(HALF)
    settings = history.settings
    labels = [label for label in history.labels() if label.evaluation.ok]
    after = np.array([label.evaluation.value(settings.stability) for label in labels])
    before = np.array([label.pick.screen for label in labels if label.pick.screen is not None], dtype=float)
    values = np.concatenate([after, before])
    values = values[np.isfinite(values)]
    if not len(values):
        return _empty(figure, axes, "no usable label yet")
    low, high = min(-0.05, float(values.min())), float(np.clip(np.quantile(values, 0.98), 0.3, 3.0))
    bins = np.linspace(low, high, 31)
    styles: tuple[dict[str, Any], ...] = ({"color": COLOURS[ENGINE], "alpha": 0.75}, {"histtype": "step", "color": INK})
    for data, name, style in zip((after, before), ("relaxed", "as proposed"), styles, strict=True):
        data = data[np.isfinite(data)]
        if len(data):
            axes.hist(np.clip(data, low, high), bins.tolist(), lw=1.3, label=f"{name} ({len(data)})", **style)
    axes.axvline(settings.threshold, color=GOOD, ls="--", lw=1.4, label=f"threshold {settings.threshold:g}")
    axes.set(xlabel=heading(settings.stability), ylabel="labelled candidates")
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def parity(history: History) -> Figure | None:
    """Predicted against labelled, with 90 % error bars; predictions were made before the labels."""
    labels = [label for label in history.labels() if label.first.ok and label.pick.mean]
    names = list(labels[0].pick.mean) if labels else []
    if not names:
        return None
    figure, panels = _axes((4.3 * len(names), 3.9), len(names))
    for axes, name in zip(panels, names, strict=True):
        for arm in (SHADOW, ENGINE):
            chosen = [x for x in labels if x.pick.arm == arm and np.isfinite(x.first.value(name))]
            y, mean, std = _beliefs(chosen, name)
            style: dict[str, Any] = {
                "fmt": "o",
                "ms": 4.5,
                "lw": 0.9,
                "alpha": 0.8,
                "color": COLOURS[arm],
                "label": arm,
            }
            axes.errorbar(y, mean, yerr=1.645 * std, **style)
        y, mean, _ = _beliefs(labels, name)
        ends = [np.nanmin([y, mean]), np.nanmax([y, mean])]
        axes.plot(ends, ends, color="#9ca3af", lw=1)
        unit = unit_of(history, name)
        axes.set(xlabel=f"label: {heading(name, unit)}", ylabel="predicted before the label")
        axes.set_title(f"MAE {np.nanmean(np.abs(y - mean)):.3g} {unit}", size=10, loc="left")
    panels[0].legend()
    return figure


def calibration_curve(history: History) -> Figure | None:
    """Observed against expected share of labels inside central intervals, one line a property."""
    labels = [label for label in history.labels() if label.first.ok and label.pick.mean]
    if not labels:
        return None
    figure, (axes,) = _axes((4.3, 3.9))
    levels = np.linspace(0, 1, 41)
    axes.plot([0, 1], [0, 1], color="#9ca3af", lw=1, label="perfect")
    spread = 1.96 * np.sqrt(levels * (1 - levels) / len(labels))
    band: dict[str, Any] = {"color": FAINT, "alpha": 0.8, "lw": 0, "label": "chance, 95 %"}
    axes.fill_between(levels, np.clip(levels - spread, 0, 1), np.clip(levels + spread, 0, 1), **band)
    for name, colour in zip(labels[0].pick.mean, (COLOURS[ENGINE], "#7c3aed", GOOD, "#db2777"), strict=False):
        y, mean, std = _beliefs([x for x in labels if np.isfinite(x.first.value(name))], name)
        if len(y):
            axes.plot(levels, [coverage(y, mean, std, level) for level in levels], color=colour, lw=1.8, label=name)
    axes.set(xlabel="expected share inside", ylabel="observed share inside", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    return figure


def _beliefs(labels: list[Label], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = [(x.first.value(name), x.pick.mean[name], x.pick.std[name]) for x in labels]
    y, mean, std = np.array(rows, dtype=float).reshape(-1, 3).T
    return y, mean, std


def learning(history: History) -> Figure | None:
    """Mean reward and divergence from the frozen base over all fine-tuning iterations."""
    rows = history.learning_rows()
    if not rows:
        return None
    figure, (left, right) = _axes(WIDE, 2)
    steps = np.arange(1, len(rows) + 1)
    for axes, key, colour, text in (
        (left, "reward", COLOURS[ENGINE], "mean reward"),
        (right, "kl", "#7c3aed", "KL to the base (nats)"),
    ):
        values = np.array([row.get(key, np.nan) for row in rows], dtype=float)
        axes.plot(steps, values, color=colour, lw=1.2, alpha=0.45)
        for number in sorted({row["round"] for row in rows}):
            inside = np.flatnonzero([row["round"] == number for row in rows])
            first = int(inside[0])
            smooth = [values[max(first, i - SMOOTH + 1) : i + 1].mean() for i in inside]
            axes.plot(steps[inside], smooth, color=colour, lw=2.2)
            axes.axvline(first + 0.5, color="#d1d5db", lw=1)
            style: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "size": 8, "color": "#6b7280"}
            axes.annotate(f" round {number}", (first + 0.5, 0.97), va="top", **style)
        axes.set(xlabel="fine-tuning iteration", ylabel=text)
    return figure


def pareto(history: History) -> Figure:
    """The two ends that a campaign serves: stability and the objective, with the front of what is new and not suspect.

    Stability is that of the label, on the reference phases alone: on the campaign's own hull the best all lie at 0.
    """
    figure, (axes,) = _axes(HALF)
    settings = history.settings
    name, goal = settings.objective, settings.wanted
    labels = [x for x in history.labels() if x.first.ok and np.isfinite(x.first.value(settings.stability))]
    labels = [x for x in labels if np.isfinite(x.evaluation.value(name))]
    if not labels:
        return _empty(figure, axes, f"no label of {spec_of(name).label} yet")
    points = np.array([[x.first.value(settings.stability), x.evaluation.value(name)] for x in labels])
    for arm in (BASELINE, SHADOW, ENGINE):
        chosen = points[[x.pick.arm == arm for x in labels]]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=26, color=COLOURS[arm], alpha=0.85, label=arm, lw=0)
    apart = np.array([not x.is_new or bool(x.suspect(settings)) for x in labels])
    if apart.any():
        style: dict[str, Any] = {"s": 34, "marker": "x", "color": INK, "lw": 1.0, "label": "known, copy or suspect"}
        axes.scatter(points[apart, 0], points[apart, 1], **style)
    fresh = points[~apart]
    if len(fresh):
        front = fresh[pareto_front(np.array([[-above, goal.score(value)] for above, value in fresh]))]
        front = front[np.argsort(front[:, 0])]
        axes.step(front[:, 0], front[:, 1], where="post", color=INK, lw=1.2, label="Pareto front of the new")
        axes.scatter(front[:, 0], front[:, 1], s=52, facecolors="none", edgecolors=INK, linewidths=1.2)
    axes.axvline(settings.threshold, color=GOOD, ls="--", lw=1.4)
    if goal.window is not None:
        axes.axhspan(*goal.window, color=GOOD, alpha=0.12, lw=0)
    if goal.target is not None:
        axes.axhline(goal.target, color=GOOD, ls=":", lw=1.2)
    axes.set(xlabel=f"{heading(settings.stability)}, reference phases", ylabel=heading(name, unit_of(history, name)))
    axes.set_xlim(right=float(np.clip(points[:, 0].max() * 1.05, 0.3, 2.0)))
    axes.legend()
    return figure


DRIFT = {
    "validity": "accepted / crystals",
    "uniqueness": "unique / accepted",
    "novelty": "new / unique",
    "replay": "replay of training crystals",
    "f_block_share": "f-block share",
    "element_concentration": "element concentration (HHI)",
}


def drift(history: History) -> Figure:
    """Signs of a policy that collapses or copies, by round."""
    figure, (axes,) = _axes(HALF)
    reports = history.reports()
    colours = (GOOD, COLOURS[ENGINE], "#7c3aed", "#dc2626", "#ea8a0b", "#6b7280")
    for (key, text), colour in zip(DRIFT.items(), colours, strict=True):
        axes.plot(
            [r.round for r in reports], [r.metrics[key] for r in reports], "o-", ms=4, lw=1.5, color=colour, label=text
        )
    axes.set(
        xlabel="round", ylabel="share of the pool's samples", ylim=(-0.02, 1.04), xticks=[r.round for r in reports]
    )
    figure.legend(loc="outside upper left", ncols=3, fontsize=8)
    return figure


def elements(history: History) -> Figure:
    """Share of the last round's valid samples that hold each element."""
    figure, (axes,) = _axes((8.6, 4.0))
    last = [*history.records(Proposed).values()][-1:]
    total = max(1, *(proposed.funnel.accepted for proposed in last))
    counts = last[0].elements if last else {}
    colours = mpl.colormaps["YlGnBu"]
    top = max([*counts.values(), 1]) / total
    for number in range(1, 104):
        element = Element.from_Z(number)
        column, row = _place(number, element)
        share = counts.get(element.symbol, 0) / total
        face = colours(0.08 + 0.85 * share / top) if share else "#f3f4f6"
        axes.add_patch(mpl.patches.Rectangle((column, row), 0.94, 0.94, color=face, lw=0))
        ink = "white" if share / top > 0.6 else (INK if share else "#b6bcc6")
        axes.annotate(element.symbol, (column + 0.47, row + 0.36), ha="center", va="center", size=9, color=ink)
        if share:
            axes.annotate(f"{share:.1%}", (column + 0.47, row + 0.73), ha="center", va="center", size=5.5, color=ink)
    axes.set(xlim=(0.9, 19.1), ylim=(10.1, 0.9))
    axes.axis("off")
    return figure


def _place(number: int, element: Element) -> tuple[float, float]:
    """Column and row in the long form, lanthanides and actinides below."""
    for first, row in ((57, 8.3), (89, 9.3)):
        if first <= number <= first + 14:
            return 3 + number - first, row
    return element.group, element.row


def _empty(figure: Figure, axes: Axes, text: str) -> Figure:
    axes.axis("off")
    axes.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color="#6b7280")
    return figure
