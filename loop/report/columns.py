"""The columns that people see of the ranked list: the same in the console, the report, Prefect and the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loop.history import SECOND_OPINION, History
from loop.properties import heading, spec_of
from loop.prototypes import family
from loop.ranking import FIND, KNOWN_STABLE, SUSPECTS
from loop.stability import is_suspect

HEADINGS = {
    "rank": "rank", "formula": "formula", "space_group": "space group", "n_atoms": "atoms", "prototype": "prototype",
    "prototype_count": "same prototype", "decoration": "lattice", "stable": "stable", "new": "new", "match": "known as",
    "suspect": "suspect", "status": "status", "arm": "arm", "round": "round", "candidate_id": "id",
}  # fmt: skip
BRIEF = ("rank", "formula", "space_group", "prototype", "decoration", "", "new", "match", "suspect", "candidate_id")
FULL: tuple[str, ...] = (
    "rank",
    "formula",
    "space_group",
    "n_atoms",
    "prototype",
    "prototype_count",
    "decoration",
    "",
    "stable",
)
FULL += ("new", "match", "suspect", "status", "arm", "round", "candidate_id")


def unit_of(history: History, name: str) -> str:
    """Unit of a property: as the labels have it, else as the registry knows it."""
    for evaluation in history.evaluations.values():
        if name in evaluation.properties:
            return evaluation.properties[name].unit
    for prefix, tier in history.tiers.items():
        for evaluation in tier.evaluations.values():
            plain = name.removeprefix(f"{prefix}_")
            if plain != name and plain in evaluation.properties:
                return evaluation.properties[plain].unit
    return spec_of(name).unit


def goal_names(history: History) -> list[str]:
    """Stability and all objectives of a campaign, each once."""
    settings = history.settings
    return list(dict.fromkeys([settings.stability, *(goal.name for goal in settings.goals)]))


def opinion_name(history: History) -> str:
    """Key in a ranked row of what a second opinion says of stability; empty where a campaign asks for none."""
    return f"{SECOND_OPINION}_{history.settings.stability}" if SECOND_OPINION in history.tiers else ""


def opinions(history: History, finds: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many finds a second potential judged, and how many of these it calls stable, too; empty without one."""
    if not (name := opinion_name(history)):
        return {}
    values = [row[name] for row in finds if row.get(name) is not None]
    agreed = sum(value <= history.settings.threshold and not is_suspect(value) for value in values)
    return {"second_opinions": len(values), "stable_by_both": agreed}


def shown_names(history: History) -> list[str]:
    """Stability, by the second opinion, too, and all objectives of a campaign."""
    names = goal_names(history)
    return [*names[:1], *filter(None, [opinion_name(history)]), *names[1:]]


def columns(history: History, keys: Sequence[str] = FULL) -> dict[str, str]:
    """Key in a ranked row to heading with unit; the empty key stands for stability and the objectives."""
    found: dict[str, str] = {}
    for key in keys:
        if key:
            found[key] = HEADINGS[key]
        else:
            found |= {name: heading(name, unit_of(history, name)) for name in shown_names(history)}
    return found


def headings(row: Mapping[str, Any], units: Mapping[str, str]) -> dict[str, str]:
    """Heads of the keys of a row, from the units that a summary gives."""
    return {key: HEADINGS.get(key) or heading(key, units.get(key, "")) for key in row}


def goal_text(history: History) -> str:
    """What the campaign looks for, with units: goals, and what counts as stable."""
    settings = history.settings
    goals = "; ".join(goal.text(unit_of(history, goal.name)) for goal in settings.goals)
    return f"{goals}; among new crystals with {heading(settings.stability)} at most {settings.threshold:g}"


def units(history: History) -> dict[str, str]:
    """Unit of each property that is shown."""
    return {name: unit_of(history, name) for name in shown_names(history)}


def in_group(rows: Sequence[dict[str, Any]], group: str) -> list[dict[str, Any]]:
    """Rows of one part of the ranked list."""
    return [row for row in rows if row["group"] == group]


def diversity(rows: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """How many prototypes, families and chemical systems some rows hold, and how many are decorated lattices.

    None where no row has a prototype: ledgers of earlier versions do not say them.
    """
    named = [row for row in rows if row["prototype"]]
    unsaid = bool(rows) and not named
    return {
        "prototypes": None if unsaid else len({row["prototype"] for row in named}),
        "families": None if unsaid else len({family(row["prototype"], row["decoration"]) for row in named}),
        "chemical_systems": len({row["chemical_system"] for row in rows}),
        "decorations": None if unsaid else sum(bool(row["decoration"]) for row in rows),
    }


def counts(rows: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How many rows are finds (stable and new), stable and known or copies, and suspect."""
    return {
        "stable": sum(row["stable"] for row in rows),
        "stable_new": len(in_group(rows, FIND)),
        "stable_known": len(in_group(rows, KNOWN_STABLE)),
        "suspect": len(in_group(rows, SUSPECTS)),
    }


def best_objective(history: History, finds: list[dict[str, Any]]) -> float | None:
    """Value of the first objective of the best find; None where no find has one."""
    name = history.settings.objective
    values = [row[name] for row in finds if row.get(name) is not None]
    return min(values, key=history.settings.wanted.badness) if values else None
