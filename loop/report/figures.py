"""Static figures for the Prefect UI, as SVG text, in the colours and words of the report."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from loop.history import History, Label
from loop.metrics import coverage, pareto_front, wilson
from loop.properties import heading, spec_of
from loop.report.candidates import picture_of
from loop.report.columns import unit_of
from loop.report.crystal_charts import FUNNEL
from loop.report.drawing import COLOURS, FAINT, GOOD, INK, NAMES
from loop.report.summary import hits_of, reports_now
from loop.settings import ARMS, BASELINE, ENGINE, SHADOW

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
HALF, SMALL = (5.2, 3.5), (2.4, 2.4)  # inches


def to_svg(draw: Callable[[], Figure | None], name: str) -> str | None:
    """SVG element without XML header, on white, since the UI may be dark; None where there is nothing to draw.

    Args:
        draw: makes the figure.
        name: keeps its ids apart from those of other figures in a page.
    """
    text = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = draw()
        if figure is None:
            return None
        figure.savefig(text, format="svg", bbox_inches="tight", facecolor="white", metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    return re.sub(r'<g id="[^"]*"', "<g", svg)  # names of groups repeat in every figure, and nothing refers to them


def _axes(size: tuple[float, float], columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def crystal(cif: str) -> Figure:
    """The cell of a CIF with its atoms, those on its faces repeated, as ASE draws them."""
    from ase import Atoms
    from ase.visualize.plot import plot_atoms

    seen = picture_of(cif)
    atoms = Atoms(
        [atom[0] for atom in seen["atoms"]], [atom[1:] for atom in seen["atoms"]], cell=seen["cell"], pbc=False
    )
    figure, (axes,) = _axes(SMALL)
    plot_atoms(atoms, axes, rotation="-80x,15y,5z", radii=0.45)
    axes.set_axis_off()
    return figure


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


def funnel(history: History) -> Figure:
    """Counts of all rounds from samples down to finds, on a logarithmic axis."""
    figure, (axes,) = _axes(HALF)
    reports = reports_now(history)
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


def calibration_curve(history: History) -> Figure | None:
    """Observed against expected share of labels inside central intervals, one line per property."""
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
        y, mean, std = _predictions([x for x in labels if np.isfinite(x.first.value(name))], name)
        if len(y):
            axes.plot(levels, [coverage(y, mean, std, level) for level in levels], color=colour, lw=1.8, label=name)
    axes.set(xlabel="expected share inside", ylabel="observed share inside", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper left")
    return figure


def _predictions(labels: list[Label], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rows = [(x.first.value(name), x.pick.mean[name], x.pick.std[name]) for x in labels]
    y, mean, std = np.array(rows, dtype=float).reshape(-1, 3).T
    return y, mean, std


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


def _empty(figure: Figure, axes: Axes, text: str) -> Figure:
    axes.axis("off")
    axes.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", va="center", color="#6b7280")
    return figure
