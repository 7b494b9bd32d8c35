"""The report's ranked list: finds by themselves, then what is known, suspect, not stable; and numbers for people."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from loop.history import History, Label
from loop.properties import heading
from loop.ranking import FAILED, FIND, KNOWN_STABLE, SUSPECTS, UNJUDGED, UNSTABLE, ranked
from loop.report.columns import HEADINGS, goal_names, unit_of
from loop.report.export import file_stem

MAX_ROWS = 100  # of each part of the ranked list in the page; ranked.csv has them all
PARTS = {  # groups of the ranked list: title, words
    (FIND,): ("Finds: stable and new", "New as proposed and as relaxed."),
    (UNJUDGED,): (
        "Stable, not compared with known crystals yet",
        "That is done for the relaxed crystals of a round when all its labels are in.",
    ),
    (KNOWN_STABLE,): ("Stable, but known or a copy", "No finds: each is the crystal that is named."),
    (SUSPECTS,): (
        "Suspect: implausibly far below the hull",
        "Most likely errors of the potential: check them by another method before anything else.",
    ),
    (UNSTABLE, FAILED): ("Not stable, or without a usable label", ""),
}


@dataclass(frozen=True)
class Cell:
    """A cell of the ranked table."""

    text: str
    number: bool = False
    link: str = ""
    tag: str = ""
    key: float | None = None  # what the column is sorted by


@dataclass(frozen=True)
class Table:
    """A part of the ranked list."""

    title: str
    note: str
    columns: list[dict[str, Any]]
    rows: list[list[Cell]]


def number(value: float | None, digits: int = 3, unit: str = "") -> str:
    """A number for people; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    unit = "" if unit == "1" else unit
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"
    return f"{text} {unit}".strip()


def ratio(value: float) -> str:
    """A ratio for people: beyond 100 a few labels tell no more than that it is large."""
    return "more than 100" if value > 100 else f"{value:.2f}" if value < 10 else number(value, 2)


def energy(value: float | None, std: float | None = None) -> str:
    """An energy in eV/atom for people, to 1 meV, or to 10 meV with its standard deviation."""
    if value is None or not math.isfinite(value):
        return "–"
    # adding zero turns a negative zero into a plain one
    return f"{round(value, 3) + 0.0:.3f}" if std is None else f"{round(value, 2) + 0.0:.2f} ± {std:.2f}"


def percent(value: float) -> str:
    """A share for people."""
    return f"{value:.0%}" if math.isfinite(value) else "–"


def tables(history: History, rows: list[dict[str, Any]], with_card: Collection[str] = ()) -> list[Table]:
    """The parts of the ranked list; those without a row are left out, but for the finds.

    Args:
        history: the campaign.
        rows: its ranked list.
        with_card: ids of the candidates that the page shows by themselves, to which their formulas link.
    """
    pairs = list(zip(rows, ranked(history.labels(), history.settings), strict=True))
    made = []
    for groups, (title, words) in PARTS.items():
        part = [pair for pair in pairs if pair[0]["group"] in groups]
        if part or FIND in groups:
            made.append(_table(history, title, words, part, with_card))
    return made


def _table(
    history: History, title: str, words: str, part: list[tuple[dict[str, Any], Label]], with_card: Collection[str]
) -> Table:
    cells = [_cells(row, label, history, with_card) for row, label in part[:MAX_ROWS]]
    heads = [{"title": head, "number": cell.number} for head, cell in cells[0].items()] if cells else []
    shown = (
        f"The best {MAX_ROWS} of {len(part)}; all in ranked.csv." if len(part) > MAX_ROWS else f"{len(part)} in all."
    )
    return Table(title, f"{words} {shown}".strip(), heads, [list(row.values()) for row in cells])


def _cells(row: dict[str, Any], label: Label, history: History, with_card: Collection[str]) -> dict[str, Cell]:
    stability = history.settings.stability
    stable, new = ("yes" if row[name] else "no" for name in ("stable", "new"))
    goals = {name: heading(name, unit_of(history, name)) for name in goal_names(history)}

    def numeric(text: Any, key: float | None = None) -> Cell:
        return Cell("–" if text is None else str(text), number=True, key=key)

    return {
        "rank": numeric(row["rank"]),
        "formula": Cell(row["formula"], link=f"#c-{row['candidate_id']}" if row["candidate_id"] in with_card else ""),
        "space group": numeric(row["space_group"]),
        "atoms": numeric(row["n_atoms"]),
        HEADINGS["prototype"]: Cell(row["prototype"] or "–"),
        HEADINGS["prototype_count"]: numeric(row["prototype_count"]),
        HEADINGS["decoration"]: Cell(row["decoration"] or "–"),
        goals[stability]: numeric(energy(row[stability]), row[stability]),
        "when found": numeric(energy(row[f"{stability}_at_label"]), row[f"{stability}_at_label"]),
        "predicted": numeric(energy(row.get(f"{stability}_predicted"), row.get(f"{stability}_sigma"))),
        **{head: numeric(number(row[name]), row[name]) for name, head in goals.items() if name != stability},
        **{head: numeric(number(row.get(name)), row.get(name)) for name, head in _higher(history) if name not in goals},
        "stable": Cell(stable, tag=stable),
        "new": Cell(label.verdict, tag=new),
        HEADINGS["match"]: Cell(row["match"] or "–"),
        **({HEADINGS["suspect"]: Cell(row["suspect"], tag="no")} if row["suspect"] else {}),
        "round": numeric(row["round"]),
        "arm": Cell(row["arm"], tag=row["arm"]),
        "status": Cell(row["status"]),
        "cost (s)": numeric(number(row["cost_seconds"], 2)),
        "competing phases": Cell(_mixture(row)),
        "file": Cell("CIF", link=f"cifs/{file_stem(row['rank'], label)}.cif"),
    }


def _higher(history: History) -> list[tuple[str, str]]:
    """Properties that costlier oracles have measured and a person reads: name in the row and heading."""
    shown = (history.settings.stability, "band_gap", "dielectric_electronic", "dielectric_total")
    return [
        (f"{tier}_{key}", heading(f"{tier}_{key}"))
        for tier in history.tiers
        for key in shown
        if any(key in evaluation.properties for evaluation in history.tiers[tier].evaluations.values())
    ]


def _mixture(row: dict[str, Any]) -> str:
    """Competing phases; of a crystal that lies on the newest hull itself, those it had before it was found."""
    itself = list(row["decomposition"]) == [row["formula"]]
    parts = sorted((row["competing_phases"] if itself else row["decomposition"]).items(), key=lambda item: -item[1])
    return " + ".join(f"{fraction:.2f} {name}" for name, fraction in parts[:4]) or "–"
