"""The report: one HTML file that needs nothing else, figures inside, made from the ledger alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.history import History
from loop.io.files import write_text
from loop.properties import spec_of
from loop.ranking import FIND
from loop.report.columns import best_objective, counts, diversity, goal_text, in_group, unit_of
from loop.report.export import ranked_rows
from loop.report.tables import number, percent, ratio, tables
from loop.stability import IMPLAUSIBLE
from loop.stages import Finetuned, Proposed

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """A figure with its words."""

    title: str
    caption: str
    svg: str
    wide: bool = False


def write_report(history: History, directory: Path, protocol: list[tuple[str, str]] | None = None) -> Path:
    """Write ``report.html`` into the campaign's folder.

    Args:
        history: the campaign.
        directory: its folder; the ranked table links to ``cifs/`` in it.
        protocol: further lines (term, explanation) on how numbers were got: potential, hull, novelty reference.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("loop"), autoescape=True, trim_blocks=False)
    page = environment.get_template("report.html").render(context(history, protocol or []))
    path = directory / "report.html"
    write_text(path, page)
    return path


def context(history: History, protocol: list[tuple[str, str]]) -> dict[str, Any]:
    """All that the template shows."""
    titles, round_rows = _rounds(history)
    rows = ranked_rows(history)
    return {
        "name": history.name,
        "subtitle": _subtitle(history),
        "goal": goal_text(history),
        "cards": _cards(history, rows),
        "verdicts": _verdicts(history),
        "diversity": _diversity(rows),
        "sections": _sections(history),
        "tables": tables(history, rows),
        "round_titles": titles,
        "round_rows": round_rows,
        "protocol": [*_protocol(history), *protocol],
    }


def _subtitle(history: History) -> str:
    done, planned = max(0, len(history.reports()) - 1), history.settings.rounds
    running = not history.reports() or done < planned
    state = f"stopped: {history.stopped}" if history.stopped else ("running" if running else "")
    parts = [f"{done} of {planned} rounds after the baseline", f"oracle {history.oracle.oracle}"]
    return " · ".join(part for part in (*parts, f"seed {history.settings.seed}", state) if part)


def _diversity(rows: list[dict[str, Any]]) -> str:
    """What the finds are, beside their number: hundreds of orderings of one lattice are one idea."""
    finds = in_group(rows, FIND)
    if not finds:
        return "No find: no crystal is stable and new."
    found = diversity(finds)
    if found["prototypes"] is None:
        systems = found["chemical_systems"]
        return f"The {len(finds)} finds lie in {systems} chemical systems; their prototypes are not in this ledger."
    lattices = Counter(row["decoration"] for row in finds if row["decoration"])
    kinds = ", ".join(f"{count} {name}" for name, count in lattices.most_common())
    text = (
        f"The {len(finds)} finds hold {found['prototypes']} prototypes in {found['families']} families and "
        f"{found['chemical_systems']} chemical systems."
    )
    if not kinds:
        return text
    return f"{text} Ordered decorations of a simple lattice, which alloys often take disordered: {kinds}."


def _cards(history: History, rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    reports = history.reports()
    if not reports:
        return [{"title": "state", "value": "no round done", "note": "figures follow with the first report"}]
    first, last = reports[0].metrics, reports[-1].metrics
    name, found = history.settings.objective, counts(rows)
    cost = sum(row["cost_seconds"] for row in rows)
    apart = f"{found['stable_known']} stable, known or copies; {found['suspect']} suspect; {len(rows)} labelled"
    cards = [
        ("stable and new", f"{found['stable_new']}", apart),
        ("hit rate, last round", percent(last["hit_rate"]), f"untuned generator: {percent(first['hit_rate'])}"),
        ("engine against shadow", f"{ratio(last['acceleration'])} ×", _interval(last, "acceleration")),
        (
            f"best {spec_of(name).label}",
            number(best_objective(history, in_group(rows, FIND)), 3, unit_of(history, name)),
            "among the stable and new",
        ),
        ("oracle calls paid", f"{history.paid}", f"{number(cost / 3600, 2)} h of oracle time"),
        ("working time", f"{number(history.seconds() / 60, 3)} min", f"{len(reports)} rounds with the baseline"),
    ]
    return [{"title": title, "value": value, "note": note} for title, value, note in cards]


def _interval(metrics: dict[str, float], name: str) -> str:
    if not math.isfinite(metrics[f"{name}_low"]):
        return "no ratio: labels of both arms and at least one hit are needed"
    return f"95 % interval {ratio(metrics[f'{name}_low'])} to {ratio(metrics[f'{name}_high'])}"


def _verdicts(history: History) -> list[dict[str, Any]]:
    """What the campaign shows, said plainly, and what it does not."""
    reports = history.reports()
    if not reports or not math.isfinite(reports[-1].metrics["acceleration"]):
        return []
    metrics = reports[-1].metrics
    comparisons = (
        ("acceleration", "shadow", "random picks from the same pools", "selection beats chance"),
        ("gain_over_baseline", "baseline", "random picks from the untuned generator", "learning and selection pay"),
    )
    return [_verdict(metrics, *comparison) for comparison in comparisons if f"{comparison[0]}_low" in metrics]


def _verdict(metrics: dict[str, float], name: str, arm: str, against: str, claim: str) -> dict[str, Any]:
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    counts = [f"{metrics[f'{a}_hits']:.0f} of {metrics[f'{a}_labels']:.0f}" for a in ("engine", arm)]
    text = (
        f"The engine's picks were stable {ratio(metrics[name])} times as often as {against} "
        f"({counts[0]} against {counts[1]}; 95 % interval {ratio(low)} to {ratio(high)})."
    )
    if round(low, 2) > 1:  # as it is shown
        return {"shown": True, "text": f"{text} The interval lies above 1: {claim} here."}
    if round(high, 2) < 1:
        return {"shown": False, "text": f"{text} The interval lies below 1: it did worse."}
    return {"shown": False, "text": f"{text} The interval includes 1: this campaign does not show that {claim}."}


def _sections(history: History) -> list[dict[str, Any]]:
    from loop.report import figures as f

    outcome = [
        _panel(
            history,
            f.learning_curve,
            "Finds against labels",
            "Dashed: the engine's number of labels at the random arms' hit rates, with 95 % Wilson bands.",
        ),
        _panel(
            history,
            f.hit_rates,
            "Hit rate by round",
            "Share of paid labels that are stable, failures included; bars: 95 % Wilson intervals.",
        ),
        _panel(
            history,
            f.acceleration,
            "Engine against shadow",
            "Ratio of hit rates over all rounds so far. An interval that includes 1 shows no advantage.",
        ),
        _panel(
            history,
            f.pareto,
            "Stability and objective",
            "Every usable label; the front joins the new ones that no other new one beats in both.",
        ),
    ]
    crystals = [
        _panel(history, f.funnel, "Funnel", "From samples to finds, all rounds together."),
        _panel(
            history,
            f.hull_histogram,
            "Energy above the hull",
            "Of labelled candidates: as proposed (single point) and relaxed. The last bin holds all above.",
        ),
        _panel(
            history,
            f.elements,
            "Elements",
            "Share of the last round's valid samples that hold each element.",
            wide=True,
        ),
    ]
    models = [
        _panel(
            history,
            f.parity,
            "Predictions and labels",
            "Predicted before the label was known; bars: 90 % intervals.",
            wide=True,
        ),
        _panel(
            history,
            f.calibration_curve,
            "Calibration",
            "Share of labels inside the predicted central intervals, all rounds.",
        ),
        _panel(history, f.drift, "Drift", "Signs of a policy that collapses or copies."),
        _panel(
            history,
            f.learning,
            "Learning",
            "Each fine-tuning iteration, and the mean of up to five of its round.",
            wide=True,
        ),
    ]
    sections = {"Finds": outcome, "Crystals": crystals, "Learning and calibration": models}
    return [{"title": title, "figures": [panel for panel in panels if panel]} for title, panels in sections.items()]


def _panel(
    history: History, draw: Callable[[History], Figure | None], title: str, caption: str, *, wide: bool = False
) -> Panel | None:
    import matplotlib as mpl

    from loop.report.figures import STYLE, to_svg

    if not history.reports():
        return None
    with mpl.rc_context(STYLE):
        figure = draw(history)
    return None if figure is None else Panel(title, caption, to_svg(figure, title), wide)


def _total(found: Iterable[Mapping[str, int]]) -> str:
    """Counts of all rounds, the most frequent first."""
    counts: Counter[str] = Counter()
    for of_round in found:
        counts.update(of_round)
    return ", ".join(f"{reason} {count}" for reason, count in counts.most_common()) or "none"


def _rounds(history: History) -> tuple[list[str], list[list[str]]]:
    titles = ["round", "sampled", "accepted", "unique", "new", "believed", "labelled", "stable", "stable new"]
    titles += ["hit rate", "reward", "KL", "MAE (eV/atom)", "coverage 90 %", "minutes"]
    keys = ("sampled", "accepted", "unique", "new", "predicted_stable", "labelled", "stable", "stable_new")
    stability, rows = history.settings.stability, []
    for report in history.reports():
        metrics = report.metrics
        reward = (
            f"{number(metrics.get('reward_first'))} → {number(metrics.get('reward_last'))}" if "kl" in metrics else "–"
        )
        row = [str(report.round), *(f"{report.funnel[key]:,}" for key in keys), percent(metrics["hit_rate"]), reward]
        row += [number(metrics.get("kl")), number(metrics.get(f"{stability}_mae"))]
        row += [percent(metrics.get(f"{stability}_coverage90", math.nan)), number(sum(report.seconds.values()) / 60)]
        rows.append(row)
    return titles, rows


def _rung_text(history: History, name: str) -> str:
    """What a dearer oracle was asked and how much of it came back."""
    rung = history.rungs[name]
    evaluations = rung.evaluations.values()
    types = sorted({str(evaluation.energy_type) for evaluation in evaluations if evaluation.energy_type})
    usable = sum(evaluation.ok for evaluation in evaluations)
    hours = sum(evaluation.cost.seconds * evaluation.cost.cores for evaluation in evaluations) / 3600
    text = f"{rung.key.oracle} on the relaxed crystals of the best: {len(rung.labels)} asked, {usable} usable"
    return f"{text}, {hours:.2g} core hours; energy type {'; '.join(types) or '–'}; gaps in eV, dielectric constants: 1"


def _protocol(history: History) -> list[tuple[str, str]]:
    settings = history.settings
    types = sorted({str(x.evaluation.energy_type) for x in history.labels() if x.evaluation.energy_type})
    share = f"{settings.shadow_share:.0%}"
    guards = _total(tuned.guards for tuned in history.records(Finetuned).values())
    invalid = _total(proposed.invalid for proposed in history.records(Proposed).values())
    return [
        (
            "stable",
            f"labelled by {history.oracle.oracle}, {settings.stability} at most {settings.threshold:g} eV/atom on the "
            "campaign's newest hull, which holds its own finds; suspect crystals are not counted",
        ),
        ("energy type", "; ".join(types) or "–"),
        *((f"{name} columns", _rung_text(history, name)) for name in history.rungs),
        (
            "when found",
            f"{settings.stability} (eV/atom) at the time of the label, on the reference phases alone: below 0 it lies "
            "under the known hull",
        ),
        ("hit rate", "stable labels / all paid labels; a failed or unconverged evaluation was paid for and is no hit"),
        (
            "engine, shadow, baseline",
            f"the acquisition's picks; a random {share} of each round's budget from the same pool; random picks from "
            "the untuned generator in round 0",
        ),
        (
            "engine against shadow",
            "ratio of hit rates of all rounds; interval: Bayesian bootstrap with Jeffreys' half counts (Rubin 1981)",
        ),
        ("guards that bit", f"while learning: {guards}"),
        ("accepted", f"passes the campaign's validity rules; turned away: {invalid}"),
        (
            "unique, new",
            "no copy within its batch; neither in the reference of known crystals nor labelled before. Fingerprint "
            "first, pymatgen's StructureMatcher where both crystals are at hand",
        ),
        ("new", "new as proposed and as relaxed: a relaxation may end in a known crystal, whose id is given"),
        (
            "suspect",
            f"more than {-IMPLAUSIBLE:g} eV/atom below the hull of the reference phases: by experience an error of the "
            "potential. Such a crystal is no find, and no phase of the campaign's hull",
        ),
        (
            "prototype",
            "anonymised formula, Pearson symbol, space group and Wyckoff letters as AFLOW writes them, of the relaxed "
            "crystal; a decoration is an ordering of fcc, bcc or hcp, new in name more than in kind",
        ),
        (
            "predicted",
            "surrogate's mean and standard deviation for the relaxed value, from the unrelaxed candidate, before the "
            "label was known",
        ),
        ("replay", "share of unique samples that equal a crystal of the generator's training set"),
    ]
