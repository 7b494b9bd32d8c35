"""What a file says gives way to what is asked for beside it, as by ``--set`` or in the form of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from flows.blocks import BUDGET, GoalBlock, Writer, stability_limits, window_limits
from loop.goal import Goal
from loop.reward_sources import E_ABOVE_HULL
from loop.values import PRODUCT

OBJECTIVE = ("maximise", "minimise", "target")
WANTED = ("objective", "goal", "target", "window", "also", "maximise")  # keys of `campaign` that say what is looked for
GIVES_WAY: dict[str, tuple[str, tuple[str, ...]]]  # what of which block an override of a key replaces
GIVES_WAY = {key: ("budget", (name,)) for name, key in BUDGET.items()}
GIVES_WAY |= {f"campaign.{key}": ("goal", OBJECTIVE) for key in WANTED}
GIVES_WAY |= {f"goal.{key}": ("goal", OBJECTIVE) for key in OBJECTIVE} | {"goal.stable": ("goal", ("stable",))}
GIVES_WAY |= {"selection.objectives": ("goal", OBJECTIVE), "campaign.threshold": ("goal", ("stable",))}
GIVES_WAY |= {"oracle.mlip.potential": ("oracle", ("label",))}
GIVES_WAY |= {f"oracle.{name}.potential": ("oracle", (name,)) for name in ("screen", "second_opinion")}


def give_way(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Raw settings of a file without what its blocks say of keys that are overridden.

    Another goal replaces what the sections say of the former one, too: objective, bounds of the selection, and a reward
    that speaks of it.
    """
    found = _former_goal_gone(data, overrides)
    for name, lines in (GIVES_WAY[key] for key in overrides if key in GIVES_WAY):
        if isinstance(found.get(name), Mapping):
            found[name] = {key: value for key, value in found[name].items() if key not in lines}
            if not found[name]:
                del found[name]
    return found


def _former_goal_gone(data: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    found, names = dict(data), _names(data)
    asked = dict(overrides.get("goal") or {}) if isinstance(overrides.get("goal"), Mapping) else {}
    asked |= {key: overrides[f"goal.{key}"] for key in (*OBJECTIVE, "stable") if f"goal.{key}" in overrides}
    if not asked:
        return found
    kept = _bounds_kept(found, asked)
    if "stable" in asked:
        found = _without(found, ["campaign.stability", "campaign.threshold"])
    if set(OBJECTIVE) & set(asked):
        terms = {item.get("property") for item in _mappings(found, "reward.terms")}
        about = (names | {part for name in names for part in name.split(PRODUCT)}) - {E_ABOVE_HULL}
        outdated = [*(f"campaign.{key}" for key in WANTED), "selection.objectives"]
        found = _without(found, outdated + (["reward.terms"] if terms & about else []))
    return found if kept is None else {**found, "selection": {**found.get("selection", {}), "constraints": kept}}


def _bounds_kept(data: Mapping[str, Any], asked: Mapping[str, Any]) -> list[Any] | None:
    """The selection's own constraints, those of the new goal in place of the former's; None where it has none."""
    writer = Writer(dict(data))
    given = writer.there("selection.constraints")
    if not isinstance(given, list | tuple):
        return None
    with suppress(ValidationError):
        goal, former = GoalBlock.model_validate(asked), _goals(data)
        limits = stability_limits(goal) + (window_limits(writer, goal.goals) if goal.goals else [])
        outdated = window_limits(writer, former) if goal.goals else []
        about = {item["name"] for item in stability_limits(goal)}
        written = [{key: value for key, value in item.items() if value is not None}  # nulls: a file written out in full
                   for item in _mappings(data, "selection.constraints")]  # fmt: skip
        kept = [item for item in written
                if item not in outdated and not (item.get("name") in about and "at_most" in item)]  # fmt: skip
        return [*kept, *limits]
    return None


def _goals(data: Mapping[str, Any]) -> list[Goal]:
    """Of the block of a file."""
    with suppress(ValidationError):
        return GoalBlock.model_validate(data.get("goal")).goals
    return []


def _names(data: Mapping[str, Any]) -> set[str]:
    """Properties that a file looks for, wherever it says so."""
    names = {item.get("name") for key in ("selection.objectives", "campaign.also") for item in _mappings(data, key)}
    names.add(Writer(dict(data)).there("campaign.objective"))
    names |= {goal.name for goal in _goals(data)}
    return {name for name in names if isinstance(name, str)}


def _mappings(data: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    said = Writer(dict(data)).there(key)
    return [item for item in said if isinstance(item, Mapping)] if isinstance(said, list | tuple) else []


def _without(data: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Raw settings without the keys of sections, and without sections that are empty then."""
    found = dict(data)
    for section, _, key in (dotted.rpartition(".") for dotted in keys):
        if isinstance(found.get(section), Mapping) and key in found[section]:
            found[section] = {name: value for name, value in found[section].items() if name != key}
            if not found[section]:
                del found[section]
    return found
