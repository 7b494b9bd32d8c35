"""Interactive figures of the crystals that a campaign found: fronts, funnel, prototypes, elements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pymatgen.core import Element

from loop.history import History, Label
from loop.metrics import pareto_front
from loop.properties import heading
from loop.prototypes import family
from loop.report.charts import goal_head, goal_shapes, of_arm
from loop.report.drawing import COLOURS, INK, SYMBOLS, Trace, figure, named, text, upright
from loop.report.gain import value_of
from loop.report.summary import reports_now
from loop.settings import ARMS, ENGINE
from loop.stages import Proposed

FUNNEL = {
    "asked": "asked of the generator",
    "sampled": "crystals",
    "accepted": "accepted by the rules",
    "unique": "unique",
    "new": "new",
    "predicted_stable": "predicted stable",
    "selected": "selected",
    "labelled": "labelled",
    "stable": "stable",
    "stable_new": "stable and new",
}
PROTOTYPES = 15  # bars
LATTICES = {"": COLOURS[ENGINE], "fcc": "#d97706", "bcc": "#b91c1c", "hcp": "#7c3aed"}


def fronts(history: History) -> list[tuple[str, str]]:
    """Pairs of properties whose front a report shows: stability and each objective, and the objectives."""
    settings = history.settings
    names = [goal.name for goal in settings.goals if goal.name != settings.stability]
    pairs = [(settings.stability, name) for name in names]
    return pairs + [(names[i], names[j]) for i in range(len(names)) for j in range(i + 1, len(names))]


def pareto(history: History, across: str, up: str) -> dict[str, Any] | None:
    """Two ends that a campaign serves, with the front of what is new and not suspect.

    Stability is that of the label, on the reference phases alone: on the campaign's own hull the best all lie at 0.
    A front of two objectives is one of the finds.
    """
    settings = history.settings
    goals = {goal.name: goal for goal in settings.goals}
    stability = across == settings.stability
    points = {
        label.candidate.id: (value_of(label, across, settings), value_of(label, up, settings))
        for label in history.labels()
        if label.first.ok
    }
    labels = [label for label in history.labels() if np.isfinite(points.get(label.candidate.id, (np.nan,))).all()]
    if not labels:
        return None
    traces = [_points(of_arm(labels, arm), points, arm) for arm in ARMS if of_arm(labels, arm)]
    apart = [label for label in labels if not label.is_new or label.suspect(settings)]
    if apart:
        marker = {"symbol": "x-thin", "size": 9, "line": {"color": INK, "width": 1.4}}
        traces.append(_points(apart, points, "known, copy or suspect") | {"marker": marker, "hoverinfo": "skip"})
    eligible = [x for x in labels if x not in apart and (stability or x.is_find(settings))]
    if eligible:
        both = np.round([points[label.candidate.id] for label in eligible], 6)  # a rounding error dominates nothing
        scores = [(-a if stability else goals[across].score(a), goals[up].score(b)) for a, b in both]
        front = sorted((eligible[i] for i in pareto_front(np.array(scores))), key=lambda x: points[x.candidate.id])
        style = {"color": INK, "width": 1.6, "dash": "dot", "shape": "hv" if stability else "linear"}
        marker = {"symbol": "circle-open", "size": 13, "color": INK, "line": {"width": 1.8}}
        shown: dict[str, Any] = {"mode": "lines+markers", "marker": marker, "line": style, "hoverinfo": "skip"}
        traces.append(_points(front, points, f"Pareto front of the {'new' if stability else 'finds'}") | shown)
    shapes = goal_shapes(goals[up]) + ([upright(settings.threshold)] if stability else [])
    head = f"{heading(across)}, on the reference phases" if stability else goal_head(history, goals[across])
    axis: dict[str, Any] = {"range": _span([points[x.candidate.id][0] for x in labels])} if stability else {}
    return figure(traces, head, goal_head(history, goals[up]), height=420, shapes=shapes, xaxis=axis)


def _points(labels: Sequence[Label], points: Mapping[str, tuple[float, float]], name: str) -> Trace:
    x, y = np.array([points[label.candidate.id] for label in labels]).T
    style = {"color": COLOURS.get(name, INK), "size": 8, "symbol": SYMBOLS.get(name, "circle"), "opacity": 0.8}
    tip = "%{text}<br>%{x:.3f}, %{y:.4g}<extra>" + name + "</extra>"
    shown = {"text": [named(x) for x in labels], "marker": style, "hovertemplate": tip, "mode": "markers"}
    return {"type": "scatter", "x": x, "y": y, "name": name, **shown}


def _span(values: Sequence[float]) -> list[float]:
    """Range of an axis of energies above the hull, eV/atom: what lies far above is beyond it, and can be zoomed to."""
    low, high = min(values), float(np.clip(max(values), 0.15, 1.0))
    room = 0.04 * (high - low)
    return [low - room, high + room]


def funnel(history: History) -> dict[str, Any]:
    """Counts of all rounds from samples down to finds, on a logarithmic axis."""
    reports = reports_now(history)
    counts = [sum(report.funnel[key] for report in reports) for key in FUNNEL]
    shades = [f"hsl(221, 83%, {78 - 3 * i}%)" for i in range(len(FUNNEL))]
    shown: dict[str, Any] = {
        "orientation": "h",
        "marker": {"color": shades},
        "text": [f"{count:,}" for count in counts],
    }
    shown |= {"textposition": "outside", "cliponaxis": False, "hovertemplate": "%{y}: %{text}<extra></extra>"}
    trace = {"type": "bar", "x": [max(count, 0.5) for count in counts], "y": list(FUNNEL.values()), **shown}
    top = float(np.log10(3 * max([*counts, 1])))
    axes: dict[str, Any] = {
        "xaxis": {"type": "log", "range": [-0.31, top], "dtick": 1},
        "yaxis": {"autorange": "reversed"},
    }
    return figure([trace], "count, all rounds", **axes, showlegend=False)


def hull_histogram(history: History) -> dict[str, Any] | None:
    """Energies above the hull of the labelled candidates, before and after relaxation."""
    settings = history.settings
    labels = [label for label in history.labels() if label.first.ok]
    after = np.array([label.first.value(settings.stability) for label in labels], dtype=float)
    before = np.array([label.pick.screen for label in labels if label.pick.screen is not None], dtype=float)
    values = np.concatenate([after, before])
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = min(-0.05, float(values.min())), float(np.clip(np.quantile(values, 0.98), 0.3, 3.0))
    edges = np.linspace(low, high, 31)
    middle, traces = (edges[:-1] + edges[1:]) / 2, []
    for data, name, colour in ((before, "as proposed", "#94a3b8"), (after, "relaxed", COLOURS[ENGINE])):
        data = data[np.isfinite(data)]
        counts, _ = np.histogram(np.clip(data, low, high), edges)
        shown: dict[str, Any] = {"name": f"{name} ({len(data)})", "marker": {"color": colour}, "opacity": 0.75}
        tip = "%{y} at %{x:.3f} eV/atom<extra>" + name + "</extra>"
        if len(data):
            traces.append({"type": "bar", "x": middle, "y": counts, "hovertemplate": tip, **shown})
    more: dict[str, Any] = {"barmode": "overlay", "bargap": 0.04, "shapes": [upright(settings.threshold)]}
    return figure(traces, f"{heading(settings.stability)}, on the reference phases", "labelled candidates", **more)


def prototypes(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The most frequent prototypes of some rows of the ranked list, coloured by their parent lattice."""
    counts = Counter((row["prototype"], row["decoration"].removeprefix("decoration of ")) for row in rows)
    counts.pop(("", ""), None)
    if not counts:
        return None
    top = counts.most_common(PROTOTYPES)
    names = [text(prototype) for (prototype, _), _ in top]
    traces = []
    for lattice, colour in LATTICES.items():
        some = [(name, count) for name, ((_, parent), count) in zip(names, top, strict=True) if parent == lattice]
        own = [(_members(rows, name), family(name, lattice)) for name, _ in some]
        tips = [f"{text(members)}<br>family {text(kin)}" for members, kin in own]
        shown: dict[str, Any] = {"orientation": "h", "marker": {"color": colour}, "text": tips, "textposition": "none"}
        shown |= {"name": f"decoration of {lattice}" if lattice else "no simple parent lattice"}
        tip = "%{y}: %{x}<br>%{text}<extra></extra>"
        if some:
            x, y = [count for _, count in some], [name for name, _ in some]
            traces.append({"type": "bar", "x": x, "y": y, "hovertemplate": tip, **shown})
    axis: dict[str, Any] = {
        "autorange": "reversed",
        "categoryorder": "array",
        "categoryarray": names,
        "title": {"text": ""},
    }
    more: dict[str, Any] = {"barmode": "stack", "xaxis": {"tickformat": "d"}, "yaxis": axis}
    return figure(traces, "finds", height=120 + 22 * len(top), **more)


def _members(rows: Sequence[Mapping[str, Any]], prototype: str) -> str:
    formulas = [row["formula"] for row in rows if text(row["prototype"]) == prototype]
    return ", ".join(formulas[:6]) + (f" and {len(formulas) - 6} more" if len(formulas) > 6 else "")


def element_counts(history: History, finds: Sequence[Label]) -> dict[str, tuple[Counter[str], int]]:
    """How many crystals hold each element, of how many: finds, labelled candidates, the last round's samples."""
    found: dict[str, tuple[Counter[str], int]] = {}
    for name, labels in (("finds", finds), ("labelled", history.labels())):
        if labels:
            held = (element.symbol for x in labels for element in x.candidate.structure.composition.elements)
            found[name] = Counter(held), len(labels)
    for proposed in [*history.records(Proposed).values()][-1:]:
        found["last round's samples"] = Counter(proposed.elements), max(1, proposed.funnel.accepted)
    return found


def elements(history: History, finds: Sequence[Label]) -> dict[str, Any] | None:
    """Periodic table of the share of crystals that hold each element."""
    found = element_counts(history, finds)
    if not found:
        return None
    traces, buttons = [], []
    for index, (name, (counts, total)) in enumerate(found.items()):
        z: list[list[float | None]] = [[None] * 18 for _ in range(10)]
        symbols, tips = ([[""] * 18 for _ in range(10)] for _ in range(2))
        for number in range(1, 104):
            element = Element.from_Z(number)
            column, row = _place(number, element)
            count = counts.get(element.symbol, 0)
            z[row - 1][column - 1] = round(count / total, 4)
            symbols[row - 1][column - 1] = element.symbol
            tips[row - 1][column - 1] = f"{element.long_name}: {count} of {total}, {count / total:.1%}"
        shown: dict[str, Any] = {
            "text": symbols,
            "texttemplate": "%{text}",
            "customdata": tips,
            "visible": index == 0,
            "xgap": 2,
        }
        shown |= {"hovertemplate": "%{customdata}<extra></extra>", "colorscale": _SCALE, "zmin": 0, "ygap": 2}
        bar = {"tickformat": ".0%", "thickness": 10, "len": 0.6, "orientation": "h", "y": -0.04, "yanchor": "top"}
        traces.append({"type": "heatmap", "z": z, "name": name, "colorbar": bar, **shown})
        shows = [{"visible": [other == name for other in found]}]
        buttons.append({"label": name, "method": "restyle", "args": shows})
    menu = {"buttons": buttons, "type": "buttons", "direction": "right", "x": 0, "y": 1.04, "yanchor": "bottom"}
    hidden = dict.fromkeys(("showgrid", "showticklabels", "showline", "zeroline"), False) | {
        "fixedrange": True,
        "ticks": "",
    }
    axes: dict[str, Any] = {"xaxis": hidden, "yaxis": {**hidden, "autorange": "reversed"}}
    menus = [{**menu, "xanchor": "left", "showactive": True, "pad": {"b": 4}}]
    return figure(
        traces, height=420, updatemenus=menus, margin={"l": 6, "r": 6, "b": 30}, plot_bgcolor="rgba(0,0,0,0)", **axes
    )


_SCALE = [[0.0, "#f1f5f9"], [0.001, "#dbeafe"], [0.35, "#60a5fa"], [0.7, "#1d4ed8"], [1.0, "#172554"]]


def _place(number: int, element: Element) -> tuple[int, int]:
    """Column and row in the long form, lanthanides and actinides below after an empty row."""
    for first, row in ((57, 9), (89, 10)):
        if first <= number <= first + 14:
            return 4 + number - first, row
    return element.group, element.row
