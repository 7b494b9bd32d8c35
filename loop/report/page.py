"""The report: one HTML file that needs nothing else, figures and crystals inside, made from the ledger alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from loop.history import SECOND_OPINION, History, Label
from loop.io.files import write_text
from loop.properties import spec_of
from loop.ranking import FIND, KNOWN_STABLE, SUSPECTS, UNJUDGED, UNSTABLE, ranked
from loop.report import charts, crystal_charts, phases
from loop.report.candidates import Card, cards
from loop.report.columns import best_objective, counts, diversity, goal_text, in_group, unit_of
from loop.report.drawing import COLOURS, VIOLET, rows_of
from loop.report.export import ranked_rows
from loop.report.gain import GoalGain, goal_gains
from loop.report.summary import reports_now
from loop.report.tables import number, percent, ratio, tables
from loop.report.words import goal_verdicts, not_shown, protocol, rate_verdicts
from loop.settings import ENGINE

Facts = Sequence[tuple[str, str]]
ASSETS = ("plotly-cartesian.min.js", "3Dmol-min.js", "page.js", "page.css")
PARTS = {
    FIND: "Finds: stable and new",
    UNJUDGED: "Stable, not compared with known crystals yet",
    KNOWN_STABLE: "Stable, but known or a copy: no finds",
    SUSPECTS: "Suspect: implausibly far below the hull",
    UNSTABLE: "Nothing is stable and new: the nearest to the hull",
}


@dataclass(frozen=True)
class Panel:
    """A figure with its words, and its numbers as a table where they are few."""

    title: str
    caption: str
    json: str
    height: int
    titles: list[str]
    rows: list[list[str]]
    wide: bool = False


def write_report(
    history: History, directory: Path, protocol: list[tuple[str, str]] | None = None, facts: Facts = ()
) -> Path:
    """Write ``report.html`` into a folder.

    Args:
        history: the campaign.
        directory: where to.
        protocol: further lines (term, explanation) on how numbers were got: commit, versions.
        facts: lines (term, text) for the head of the page that the ledger alone does not tell: space, potentials, hull.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("loop"), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["people"] = number
    shown = context(history, protocol or [], facts) | {"assets": {name: asset(name) for name in ASSETS}}
    path = directory / "report.html"
    write_text(path, environment.get_template("report.html").render(shown))
    return path


@cache
def asset(name: str) -> str:
    """A script or style sheet of the page."""
    return files("loop.report").joinpath("assets", name).read_text(encoding="utf-8")


def in_script(data: Any) -> str:
    """JSON that can stand in a script element: no ``<`` in it can end or begin a tag."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def context(history: History, more: list[tuple[str, str]], facts: Facts = ()) -> dict[str, Any]:
    """All that the template shows."""
    titles, round_rows = _rounds(history)
    rows, gains = ranked_rows(history), goal_gains(history)
    labels = ranked(history.labels(), history.settings)
    shown = cards(history, list(zip(rows, labels, strict=True)))
    finds = [label for row, label in zip(rows, labels, strict=True) if row["group"] == FIND]
    with_card = {card.id for some in shown.values() for card in some}
    return {
        "name": history.name,
        "state": _state(history),
        "facts": [*_facts(history), *facts],
        "cards": _headlines(history, rows, gains),
        "gains": gains,
        "goal_verdicts": [verdict for gain in gains for verdict in goal_verdicts(gain)],
        "rate_verdicts": rate_verdicts(history),
        "diversity": _diversity(rows),
        "sections": _sections(history, rows, finds) if history.reports() else {},
        "candidates": [(PARTS[group], some, [_picture(card) for card in some]) for group, some in shown.items()],
        "tables": tables(history, rows, with_card),
        "round_titles": titles,
        "round_rows": round_rows,
        "not_shown": not_shown(history, rows, gains),
        "protocol": [*protocol(history), *more],
    }


def _picture(card: Card) -> str:
    return in_script(card.picture)


def _state(history: History) -> str:
    done, planned = max(0, len(history.reports()) - 1), history.settings.rounds
    running = not history.reports() or done < planned
    state = f"stopped: {history.stopped}" if history.stopped else ("not finished" if running else "finished")
    return f"{state} · {done} of {planned} rounds after the baseline round"


def _facts(history: History) -> list[tuple[str, str]]:
    """Goal, oracle, dates and seed, as the ledger has them."""
    types = sorted({str(x.evaluation.energy_type) for x in history.labels() if x.evaluation.energy_type})
    dates = [datetime.fromtimestamp(time, UTC) for time in (history.begun, history.latest) if time]
    days = list(dict.fromkeys(f"{date:%Y-%m-%d %H:%M}" for date in dates))
    words = {SECOND_OPINION: "second opinion by"}
    tiers = "".join(f"; {words.get(name, 'then')} {tier.key.oracle}" for name, tier in history.tiers.items())
    facts = [("Goal", goal_text(history)), ("Oracle", f"{history.oracle.oracle}{tiers}")]
    facts += [("Energies", "; ".join(types))] if types else []
    facts += [("Dates", f"{' to '.join(days)} UTC")] if days else []
    hours = number(history.seconds() / 3600, 2, "h of work")
    return [*facts, ("Seed", f"{history.settings.seed}"), ("Spent", f"{history.paid} oracle calls, {hours}")]


def _diversity(rows: list[dict[str, Any]]) -> str:
    """What the finds are, beside their number: hundreds of orderings of one lattice are one idea."""
    finds = in_group(rows, FIND)
    if not finds:
        return "No find: no crystal is stable and new."
    found = diversity(finds)
    if found["prototypes"] is None:
        systems = found["chemical_systems"]
        return f"The {len(finds)} finds lie in {systems} chemical systems; their prototypes are not in this ledger."
    lattices = Counter(row["decoration"].removeprefix("decoration of ") for row in finds if row["decoration"])
    kinds = ", ".join(f"{count} of {name}" for name, count in lattices.most_common())
    text = (
        f"The {_counted(len(finds), 'find')} hold {_counted(found['prototypes'], 'prototype')} in "
        f"{_counted(found['families'], 'family', 'families')} and "
        f"{_counted(found['chemical_systems'], 'chemical system')}."
    )
    if not kinds:
        return text
    return f"{text} Orderings of a simple lattice, which real alloys often have disordered: {kinds}."


def _counted(count: int | None, one: str, many: str = "") -> str:
    """A count with its noun."""
    return f"{count} {one if count == 1 else many or f'{one}s'}"


def _headlines(history: History, rows: list[dict[str, Any]], gains: Sequence[GoalGain]) -> list[dict[str, str]]:
    reports = reports_now(history)
    if not reports:
        return [{"title": "state", "value": "no round done", "note": "figures follow with the first report"}]
    first, last = reports[0].metrics, reports[-1].metrics
    name, found = history.settings.objective, counts(rows)
    cost = sum(row["cost_seconds"] for row in rows)
    apart = f"{found['stable_known']} stable, known or copies; {found['suspect']} suspect; {len(rows)} labelled"
    best = best_objective(history, in_group(rows, FIND))
    items = [(f"best {spec_of(name).label}", number(best, 4, unit_of(history, name)), "among the stable and new")]
    items += [_mean_headline(gain) for gain in gains[:1] if gain.arms]
    items += [
        ("stable and new", f"{found['stable_new']}", apart),
        ("hit rate, last round", percent(last["hit_rate"]), f"untuned generator: {percent(first['hit_rate'])}"),
        ("stable: engine against shadow", _times(last["acceleration"]), _interval(last, "acceleration")),
        ("oracle calls paid", f"{history.paid}", f"{number(cost / 3600, 2)} h of oracle time, workers added up"),
    ]
    return [{"title": title, "value": value, "note": note} for title, value, note in items]


def _mean_headline(gain: GoalGain) -> tuple[str, str, str]:
    values = {arm: number(found.mean.value, 3, gain.unit) for arm, found in gain.arms.items()}
    others = ", ".join(f"{arm} {value}" for arm, value in values.items() if arm != ENGINE)
    return f"mean {spec_of(gain.goal.name).label} of the engine's {gain.of}", values.get(ENGINE, "–"), others


def _times(value: float) -> str:
    return f"{ratio(value)} ×" if math.isfinite(value) else "–"


def _interval(metrics: dict[str, float], name: str) -> str:
    if not math.isfinite(metrics[f"{name}_low"]):
        return "no ratio: labels of both arms and at least one hit are needed"
    return f"95 % interval {ratio(metrics[f'{name}_low'])} to {ratio(metrics[f'{name}_high'])}"


# figures --------------------------------------------------------------------------------------------------------------


def _panel(title: str, made: dict[str, Any] | None, caption: str, *, wide: bool = False) -> list[Panel]:
    if made is None:
        return []
    titles, rows = rows_of(made)
    return [Panel(title, caption, in_script(made), int(made["layout"]["height"]), titles, rows, wide)]


def _sections(history: History, rows: list[dict[str, Any]], finds: list[Label]) -> dict[str, list[Panel]]:
    return {
        "goal": [panel for goal in history.settings.goals for panel in _goal(history, goal)],
        "stability": _stability(history),
        "fronts": _fronts(history),
        "phases": [
            panel
            for system in history.phases()
            for panel in _panel(
                system.replace("-", "–"),
                phases.diagram(history, system),
                "Known phases by the oracle's energies, and this campaign's crystals (squares; hover for energies).",
            )
        ],
        "crystals": _crystals(history, in_group(rows, FIND), finds),
        "models": _models(history),
        "drift": _learning(history),
    }


def _goal(history: History, goal: Any) -> list[Panel]:
    label = spec_of(goal.name).label
    best = "The best find of each arm after each of its labels: a higher line at the same place is a better search."
    each = "Every usable label; filled: finds. Black: mean of a round's finds with its 95 % bootstrap interval."
    curve = charts.best_so_far(history, goal)
    return _panel(f"Best {label} so far", curve, best) + _panel(
        f"{label[:1].upper()}{label[1:]} by round", charts.objective_by_round(history, goal), each
    )


def _stability(history: History) -> list[Panel]:
    return [
        *_panel(
            "Stable crystals against labels",
            charts.learning_curve(history),
            "Dashed: the engine's number of labels at the random arms' hit rates, with 95 % Wilson bands.",
        ),
        *_panel(
            "Hit rate by round",
            charts.hit_rates(history),
            "Share of paid labels that are stable, failures included; bars: 95 % Wilson intervals.",
        ),
        *_panel(
            "Engine against shadow",
            charts.acceleration(history),
            "Ratio of hit rates over all rounds so far. An interval that includes 1 shows no advantage.",
        ),
        *_panel(
            "Energy above the hull",
            crystal_charts.hull_histogram(history),
            "Of labelled candidates: as proposed (single point) and relaxed. The last bin holds all above; dashed: the "
            "threshold.",
        ),
    ]


def _fronts(history: History) -> list[Panel]:
    caption = "Every usable label. The dotted line joins those that no other one beats in both; below 0 a crystal lies "
    caption += "below the hull of the reference phases."
    pairs, made = crystal_charts.fronts(history), list[Panel]()
    for across, up in pairs:
        title = f"{spec_of(across).label} and {spec_of(up).label}"
        made += _panel(title, crystal_charts.pareto(history, across, up), caption, wide=len(pairs) == 1)
    return made


def _crystals(history: History, rows: list[dict[str, Any]], finds: list[Label]) -> list[Panel]:
    share = "Share of crystals that hold each element; the buttons choose of which crystals."
    named = "The most frequent among the finds, coloured by the simple lattice that they decorate. Hover for formulas."
    return [
        *_panel("Elements", crystal_charts.elements(history, finds), share, wide=True),
        *_panel("Funnel", crystal_charts.funnel(history), "From samples to finds, all rounds together."),
        *_panel("Prototypes", crystal_charts.prototypes(rows), named),
    ]


def _models(history: History) -> list[Panel]:
    caption = "Predicted before the label was known; bars: 90 % intervals."
    inside = "Share of labels inside the predicted central intervals, all rounds. Below the diagonal: too sure."
    made = [
        panel
        for name in charts.predicted(history)
        for panel in _panel(f"Predicted {spec_of(name).label}", charts.parity(history, name), caption)
    ]
    return made + _panel("Calibration", charts.calibration_curve(history), inside)


def _learning(history: History) -> list[Panel]:
    kl = "Divergence from the frozen base; what grows without bound leaves the known chemistry."
    reward = charts.learning(history, "reward", "mean reward", COLOURS[ENGINE])
    return [
        *_panel("Reward", reward, "Each fine-tuning iteration, and the mean of up to five of its round."),
        *_panel("Divergence", charts.learning(history, "kl", "KL to the base (nats)", VIOLET), kl),
        *_panel("Drift", charts.drift(history), "Signs of a policy that collapses or copies.", wide=True),
    ]


def _rounds(history: History) -> tuple[list[str], list[list[str]]]:
    titles = ["round", "sampled", "accepted", "unique", "new", "predicted", "labelled", "stable", "stable new"]
    titles += ["hit rate", "reward", "KL", "MAE (eV/atom)", "coverage 90 %", "minutes"]
    keys = ("sampled", "accepted", "unique", "new", "predicted_stable", "labelled", "stable", "stable_new")
    stability, rows = history.settings.stability, []
    for report in reports_now(history):
        metrics = report.metrics
        reward = (
            f"{number(metrics.get('reward_first'))} → {number(metrics.get('reward_last'))}" if "kl" in metrics else "–"
        )
        row = [str(report.round), *(f"{report.funnel[key]:,}" for key in keys), percent(metrics["hit_rate"]), reward]
        row += [number(metrics.get("kl")), number(metrics.get(f"{stability}_mae"))]
        row += [percent(metrics.get(f"{stability}_coverage90", math.nan)), number(sum(report.seconds.values()) / 60)]
        rows.append(row)
    return titles, rows
