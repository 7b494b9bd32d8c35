"""Phase diagrams of the chemical systems of the best candidates, from the reference phases that a report keeps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from loop.history import History, Label
from loop.ranking import ranked
from loop.report.drawing import COLOURS, plain, text
from loop.settings import ENGINE, CampaignSettings

SYSTEMS = 6  # whose diagrams a report draws
DRAWN = (2, 3)  # elements of a system that a flat diagram can show
SHOWN = 0.3  # eV/atom above the hull up to which phases are drawn
STYLE = {  # of pymatgen's marks: name, colour, symbol, size
    "Stable": ("known, on the hull", "#059669", "circle", 11),
    "Above Hull": ("known, above the hull", "#ea580c", "diamond", 7),
    "Highlighted": ("this campaign", COLOURS[ENGINE], "square", 11),
}
OWN = STYLE["Highlighted"][0]
# of a name's letter and line, as shares of the axes of a diagram on a screen of 500 pixels
LETTER, LINE = 0.021, 0.055


def systems_of(labels: Iterable[Label], settings: CampaignSettings) -> list[str]:
    """Chemical systems of the best candidates with two or three elements, best first."""
    usable = [label for label in labels if label.evaluation.ok and not label.suspect(settings)]
    systems = (label.candidate.structure.chemical_system for label in ranked(usable, settings))
    return list(dict.fromkeys(system for system in systems if len(system.split("-")) in DRAWN))[:SYSTEMS]


def diagram(history: History, system: str) -> dict[str, Any]:
    """Phase diagram of a chemical system: its reference phases, and the campaign's crystals among them.

    Args:
        history: the campaign.
        system: one of those that the newest report keeps, such as ``Li-O``.
    """
    from pymatgen.analysis.phase_diagram import PDPlotter, PhaseDiagram

    own = [
        _entry(label.candidate.formula, label.evaluation.value("energy"), label.candidate.id)
        for label in members(history, system)
    ]
    known = [_entry(phase.formula, phase.energy, phase.id or "reference") for phase in history.phases()[system]]
    plotter = PDPlotter(PhaseDiagram([*known, *own]), show_unstable=SHOWN, backend="plotly", linewidth=1)
    # pymatgen writes the words of the highlighted entries in the order given, beside marks in the order of its own
    stable, unstable = plotter.pd_plot_data[1:]
    in_order = [entry for entry in (*stable.values(), *unstable) if entry in own]
    made = plain(plotter.get_plot(highlight_entries=in_order, label_stable=False))
    named = tuple(STYLE) if len(system.split("-")) == 2 else ("Highlighted",)  # a triangle has no room for all
    traces = [trace for trace in made["data"] if not trace.get("name", "").startswith("Labels")]
    made["data"] = [_styled(trace, trace.get("name") in named) for trace in traces]
    thin_out(made["data"])
    made["layout"] = _framed(made["layout"])
    return made


def members(history: History, system: str) -> list[Label]:
    """Labelled crystals of a chemical system and its subsystems that can stand in its diagram, lowest of a formula."""
    elements, lowest = set(system.split("-")), dict[str, Label]()
    for label in history.labels():
        usable = label.first.ok and not label.suspect(history.settings)
        if not usable or not set(label.candidate.structure.chemical_system.split("-")) <= elements:
            continue
        best = lowest.setdefault(label.candidate.formula, label)
        if label.evaluation.value("energy") < best.evaluation.value("energy"):
            lowest[label.candidate.formula] = label
    return list(lowest.values())


def _entry(formula: str, energy: float, id: str) -> Any:  # the plotter's types do not say that it takes these
    from pymatgen.core import Composition
    from pymatgen.entries.computed_entries import ComputedEntry

    composition = Composition(formula)
    return ComputedEntry(composition, energy * composition.num_atoms, entry_id=text(id))


def _styled(trace: dict[str, Any], named: bool) -> dict[str, Any]:
    """The plotter's marks in the report's sizes and words; with formulas beside them where asked for."""
    style = STYLE.get(trace.get("name", ""))
    trace |= {"showlegend": bool(style)}
    if trace.get("line", {}).get("color") == "black":
        trace["line"]["color"] = "#94a3b8"
    if style is None:
        return trace
    name, colour, symbol, size = style
    marker = {"color": colour, "size": size, "symbol": symbol, "line": {"color": "white", "width": 1}}
    if named:
        words = {"text": [tip.partition(" (")[0] for tip in trace["hovertext"]], "mode": "markers+text"}
        side = "top" if trace["name"] == "Highlighted" else "bottom"
        trace |= words | {"textposition": f"{side} center", "textfont": {"size": 11}, "cliponaxis": False}
    return trace | {"name": name, "marker": marker, "error_y": {"visible": False}}


def thin_out(traces: list[dict[str, Any]]) -> None:
    """Empty names that would lie on others or on marks where the page is narrow; tooltips tell them. Own come first."""
    heights = [y for trace in traces if trace.get("text") for y in trace.get("y") or ()]
    tallest = (max(heights) - min(heights) if heights else 0.0) or 1.0
    marks = [place for trace in traces if trace.get("hovertext") for place in _places(trace, tallest)]
    taken = [(x, y, LETTER) for x, y in marks]
    for trace in sorted(traces, key=lambda trace: trace.get("name") != OWN):
        if not trace.get("text"):
            continue
        beside = (1.01 if trace["textposition"].startswith("top") else -1.01) * LINE
        for index, (x, y) in enumerate(_places(trace, tallest)):
            word = re.sub("<.*?>", "", trace["text"][index])
            box = (x, y + beside, LETTER * len(word))
            corner = "a" in trace and len(re.findall("[A-Z]", word)) == 1  # the triangle's corners have their names
            if corner or any(_overlap(box, other) for other in taken):
                trace["text"][index] = ""
            else:
                taken.append(box)


def _places(trace: dict[str, Any], tallest: float) -> Iterator[tuple[float, float]]:
    """Where the marks of a trace stand, in shares of the axes."""
    if "a" not in trace:
        yield from ((x, y / tallest) for x, y in zip(trace["x"], trace["y"], strict=True))
        return
    for a, b, c in zip(trace["a"], trace["b"], trace["c"], strict=True):
        yield (c + a / 2) / (a + b + c), a / (a + b + c)


def _overlap(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    """Whether two names (middle, height, width) lie on each other."""
    return abs(one[0] - other[0]) < (one[2] + other[2]) / 2 and abs(one[1] - other[1]) < LINE


def _framed(layout: dict[str, Any]) -> dict[str, Any]:
    """The plotter's axes in the report's sizes."""
    kept: dict[str, Any] = {key: layout[key] for key in ("xaxis", "yaxis", "ternary") if key in layout}
    for axis in (kept.get("xaxis"), kept.get("yaxis")):
        if axis:
            axis |= {"title": {"text": axis["title"]["text"]}, "tickfont": {"size": 12}, "mirror": False}
    for axis in kept.get("ternary", {}).values():
        if isinstance(axis, dict):
            axis["title"] = {"text": axis["title"]["text"], "font": {"size": 16}}
    legend = {"y": 1.12} if "ternary" in kept else {}  # above the name of the corner
    return {**kept, "height": 460, "margin": {"t": 60, "b": 50, "l": 60, "r": 40}, "legend": legend}
