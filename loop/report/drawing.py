"""What the report's interactive figures have in common: colours, words, and how they go into the page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loop.history import Label
from loop.settings import BASELINE, ENGINE, SHADOW

COLOURS = {ENGINE: "#2563eb", SHADOW: "#ea8a0b", BASELINE: "#8492a6"}
NAMES = {ENGINE: "engine", SHADOW: "shadow (random, same pool)", BASELINE: "untuned generator (random)"}
SYMBOLS = {ENGINE: "circle", SHADOW: "diamond", BASELINE: "square"}
INK, FAINT, GOOD, SOFT, VIOLET = "#1f2937", "#e5e7eb", "#059669", "#9ca3af", "#7c3aed"
TABLE_ROWS = 80  # points beyond which a figure's data are those of ranked.csv

Trace = dict[str, Any]


def figure(traces: Iterable[Trace], x: str = "", y: str = "", *, height: int = 360, **layout: Any) -> dict[str, Any]:
    """A figure as the page takes it: plotly's JSON, checked by plotly, without its template.

    Args:
        traces: of plotly.
        x: title of the x axis.
        y: title of the y axis.
        height: pixels.
        layout: more of plotly's layout.
    """
    from plotly import graph_objects as go

    axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
    made = go.Figure([_finite(trace) for trace in traces], merged({**axes, "height": height}, layout))
    return plain(made)


def plain(made: Any) -> dict[str, Any]:
    """A plotly figure as JSON without its template, which the page has once."""
    data: dict[str, Any] = json.loads(made.to_json())
    data["layout"].pop("template", None)
    return data


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings in one; the second wins."""
    found = dict(base)
    for key, value in more.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def _finite(trace: Trace) -> Trace:
    """Numbers as plain lists, None where there is none: JSON knows no NaN."""
    return {key: _plain(value) if key in ("x", "y", "z") else value for key, value in trace.items()}


def _plain(values: Any) -> Any:
    if hasattr(values, "tolist"):
        values = values.tolist()
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if isinstance(values, float):
        return round(values, 6) if math.isfinite(values) else None
    return values


def text(value: object) -> str:
    """Plotly reads some HTML in texts: what comes from a campaign is escaped."""
    return html.escape(str(value), quote=False)


def named(label: Label) -> str:
    """Formula and id of a candidate, for a tooltip."""
    return f"<b>{text(label.candidate.formula)}</b> {text(label.candidate.id)}"


def errors(values: Sequence[float], lows: Sequence[float], highs: Sequence[float]) -> dict[str, Any]:
    """Error bars from intervals; none where an interval is not known."""
    up = [high - value if math.isfinite(high) else 0.0 for value, high in zip(values, highs, strict=True)]
    down = [value - low if math.isfinite(low) else 0.0 for value, low in zip(values, lows, strict=True)]
    return {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.6, "width": 4}


def level(y: float, name: str, colour: str = GOOD) -> dict[str, Any]:
    """A horizontal line across the figure, with its name."""
    style = {"color": colour, "width": 1.4, "dash": "dash"}
    label = {"text": name, "textposition": "end", "font": {"size": 11, "color": colour}}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": style, "label": label}


def upright(x: float, colour: str = GOOD) -> dict[str, Any]:
    """A vertical line across the figure."""
    style = {"color": colour, "width": 1.4, "dash": "dash"}
    return {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": x, "x1": x, "line": style}


def every(rounds: Sequence[int], most: int = 14) -> list[int]:
    """Rounds that an axis names: all, or every second, third, ... where there are too many for a narrow page."""
    return list(rounds[:: -(-len(rounds) // most)])


def rows_of(made: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The numbers of a figure as a table, for readers without JavaScript; none where they are in ranked.csv."""
    layout, rows = made["layout"], []
    for trace in made["data"]:
        x, y = trace.get("x"), trace.get("y")
        if trace.get("type") in ("scatter", "bar") and isinstance(x, list) and isinstance(y, list):
            rows += [[trace.get("name", ""), _cell(a), _cell(b)] for a, b in zip(x, y, strict=True) if b is not None]
    titles = [layout.get(axis, {}).get("title", {}).get("text", axis[0]) or axis[0] for axis in ("xaxis", "yaxis")]
    return ["series", *titles], rows if len(rows) <= TABLE_ROWS else []


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else html.unescape(str(value))
