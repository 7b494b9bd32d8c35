"""What a campaign is for, said once: ``goal``, ``space``, ``oracle``, ``budget``, from which the sections follow.

    goal:
      stable: {e_above_hull: 0.05}     # eV/atom
      maximise: bulk_modulus           # or minimise; or target: {band_gap: 1.34, within: [1.1, 1.6]}; several: Pareto
    space: {required: [Li], allowed: [Li, O, F], max_atoms: 20}
    oracle: {screen: chgnet, label: sevennet}
    budget: {rounds: 5, label: 24, dft: 2}   # of a round

They are written out into the sections before these are checked: threshold, objectives, constraints, reward terms and
surrogate properties from the goal, the conditions of proposals and of fine-tuning alike from the space. What a section
says itself stays, and a contradiction is an error that names both places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flows.registry import ORACLES
from loop.errors import ConfigError
from loop.goal import Goal
from loop.reward import STABLE_ENOUGH
from loop.reward_sources import E_ABOVE_HULL
from surrogates.acquisition import AcquisitionConfig
from surrogates.properties import default_property

WEIGHT = 0.5  # of an objective's desirability beside that of stability, as in the quickstart
TYPICAL = 2.0  # standard deviations of a property's prior that its desirability spans, both ways
Elements = list[int | str]


class Block(BaseModel):
    """Part of what a campaign is for."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Target(Block):
    """A property to bring near to a value, or into a window."""

    name: str = Field(description="property")
    value: float | None = Field(None, description="value to come near to, in the property's unit")
    within: tuple[float, float] | None = Field(None, description="lower and upper bound, in the property's unit")

    @model_validator(mode="before")
    @classmethod
    def _short(cls, data: Any) -> Any:
        """Read ``{band_gap: 1.34, within: [1.1, 1.6]}``."""
        if not isinstance(data, Mapping) or "name" in data:
            return data
        names = [name for name in data if name != "within"]
        if len(names) != 1:
            raise ValueError(f"expected one property, as {{band_gap: 1.34, within: [1.1, 1.6]}}, got {dict(data)!r}")
        return {"name": names[0], "value": data[names[0]], "within": data.get("within")}


class GoalBlock(Block):
    """What is looked for."""

    stable: dict[str, float] | None = Field(None, description="property that decides stability, and its highest value")
    maximise: str | list[str] = Field([], description="property, or list of properties (a Pareto front), to maximise")
    minimise: str | list[str] = Field([], description="property, or list of properties, to minimise")
    target: Target | None = Field(
        None, description="property to bring near a value or into a window, as {band_gap: 1.34, within: [1.1, 1.6]}"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if self.stable is not None and len(self.stable) != 1:
            raise ValueError(f"stable: expected one property, as {{e_above_hull: 0.05}}, got {self.stable!r}")
        if self.stable is None and not self.goals:
            raise ValueError("expected stable, maximise, minimise or target")
        return self

    @property
    def goals(self) -> list[Goal]:
        """Objectives, in the order in which they are asked for."""
        both = ((self.maximise, "maximise"), (self.minimise, "minimise"))
        found = [Goal(name, kind) for names, kind in both for name in ([names] if isinstance(names, str) else names)]  # type: ignore[arg-type]
        wanted = self.target
        return found if wanted is None else [Goal(wanted.name, "target", wanted.value, wanted.within), *found]


class SpaceBlock(Block):
    """Which crystals are looked for: conditions of proposals, fine-tuning and baselines alike."""

    required: Elements = Field([], description="elements that must all occur")
    allowed: Elements = Field([], description="elements that may occur; none: all")
    forbidden: Elements = Field([], description="elements that must not occur")
    chemical_system: str | None = Field(None, description="exactly these elements occur, as Sr-Ti-O")
    formula: str | None = Field(None, description="reduced formula")
    space_groups: list[int | str] = Field([], description="allowed, by number or symbol; none: all")
    max_atoms: int | None = Field(None, description="largest primitive cell, atoms")
    n_atoms: int | None = Field(None, description="exact number of atoms in the primitive cell")
    max_elements: int | None = Field(None, description="largest number of different elements")
    sites: list[str] = Field([], description="Wyckoff positions that must occur, as c or c:Ti")


class BudgetBlock(Block):
    """What may be spent."""

    rounds: int | None = Field(None, description="rounds after the baseline round 0")
    label: int | None = Field(None, description="labels per round")
    baseline: int | None = Field(None, description="labels of the baseline round; none: as label")
    dft: int | None = Field(None, description="crystals per round for DFT")
    handoff: int | None = Field(None, description="crystals per round for people")
    calls: int | None = Field(None, description="labels in total")
    hours: float | None = Field(None, description="hours of work in total")
    core_hours: float | None = Field(None, description="core-hours of all oracles in total")


SAMPLING = {"required": "require", "allowed": "elements", "forbidden": "exclude"}  # other names are those of `Sampling`
SHORT = ("space_groups", "max_atoms")  # which `proposals` and `finetune` also take outside their `sampling`
BUDGET = {"rounds": "campaign.rounds", "label": "campaign.budget", "baseline": "campaign.baseline_budget"}
BUDGET |= {"calls": "campaign.max_calls", "hours": "campaign.max_hours"}
BUDGET |= {"core_hours": "campaign.max_core_hours"}
BUDGET |= {"dft": "oracle.dft.best", "handoff": "oracle.handoff.best"}


def expanded(data: Mapping[str, Any]) -> dict[str, Any]:
    """Raw settings with the blocks written out into the sections; a block that is none is left to the check of types.

    Raises:
        ConfigError: a section contradicts a block; names both places, a line each.
    """
    writer = _written(data)
    if writer.contradictions:
        raise ConfigError("; ".join(writer.contradictions))
    return writer.data


def origins(data: Mapping[str, Any]) -> dict[str, str]:
    """Where the keys that blocks wrote were said, as ``{"campaign.rounds": "budget.rounds"}``.

    A section that is of the blocks' making alone is there too, with all that was said of it.
    """
    written, given = _written(data).said, Writer(dict(data))
    found = dict(written)
    for section in {key.rpartition(".")[0] for key in written}:
        if given.there(section) is None:
            homes = sorted({home for key, home in written.items() if key.startswith(f"{section}.")})
            found[section] = " and ".join(homes)
    return found


def _written(data: Mapping[str, Any]) -> Writer:
    writer = Writer(dict(data))
    _write_oracle(writer)
    for name, (kind, write) in BLOCKS.items():
        if data.get(name) is not None:
            try:
                block = data[name] if isinstance(data[name], kind) else kind.model_validate(data[name])
                write(writer, block)
            except ValidationError:
                continue
    return writer


class Writer:
    """Puts values under dotted keys where nothing is said, and notes where something else is."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data, self.contradictions, self.said = data, list[str](), dict[str, str]()

    def there(self, key: str) -> Any:
        """What is said under a dotted key; None where nothing is."""
        found: Any = self.data
        for part in key.split("."):
            found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
        return found

    def put(self, key: str, value: Any, said: str) -> None:
        """Say something under a dotted key, copying the sections on the way."""
        there = self.there(key)
        if there is not None:
            if _plain(there) != _plain(value):
                self.contradictions.append(f"{said} says {value!r}, {key} says {there!r}: keep one of them")
            return
        *parents, last = key.split(".")
        section = self.data
        for part in parents:
            inner = section.get(part)
            if inner is not None and not isinstance(inner, Mapping):
                return  # no section: the check of types says so
            section[part] = dict(inner or {})
            section = section[part]
        section[last] = value
        self.said[key] = said


def _plain(value: Any) -> Any:
    """For comparing a list with a tuple, or an element's symbol with itself."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _write_goal(writer: Writer, goal: GoalBlock) -> None:
    goals, limits = goal.goals, stability_limits(goal)
    for limit in limits:
        writer.put("campaign.stability", limit["name"], "goal.stable")
        writer.put("campaign.threshold", limit["at_most"], "goal.stable")
    if goals:
        first = goals[0]
        said = "goal.target" if first.kind == "target" else f"goal.{first.kind}"
        for key, value in {"objective": first.name, "goal": first.kind, "target": first.target}.items():
            if value is not None:
                writer.put(f"campaign.{key}", value, said)
        if first.window is not None:
            writer.put("campaign.window", list(first.window), said)
        if goals[1:]:
            writer.put("campaign.also", [_item(item) for item in goals[1:]], "goal")
        _write_reward(writer, goals)
    _write_constraints(writer, goals, limits)


def _item(goal: Goal) -> dict[str, Any]:
    return {name: value for name, value in asdict(goal).items() if value is not None}


def _write_constraints(writer: Writer, goals: list[Goal], limits: list[dict[str, Any]]) -> None:
    """Bounds of the selection: stability, the default guards of other properties, and windows."""
    given = writer.there("selection.constraints")
    for item in given if isinstance(given, list | tuple) and limits else ():
        said = item.get("at_most") if isinstance(item, Mapping) and item.get("name") == limits[0]["name"] else None
        if said not in (None, limits[0]["at_most"]):
            writer.contradictions.append(
                f"goal.stable says {limits[0]['name']} at most {limits[0]['at_most']}, selection.constraints at most "
                f"{said}: keep one of them"
            )
    if given is not None or not limits:
        return
    default = [_said(asdict(item)) for item in AcquisitionConfig().constraints]
    named = {item["name"] for item in limits}
    kept = [item for item in default if "at_least" in item or item["name"] not in named]
    writer.put("selection.constraints", limits + kept + window_limits(writer, goals), "goal")


def stability_limits(goal: GoalBlock) -> list[dict[str, Any]]:
    """What stability asks of the selection, as an item of its constraints."""
    return [{"name": name, "at_most": limit} for name, limit in (goal.stable or {}).items()]


def window_limits(writer: Writer, goals: list[Goal]) -> list[dict[str, Any]]:
    """Windows that candidates must keep: of the block's goals, else of the one under ``campaign``."""
    windows = [(item.name, item.window) for item in goals if item.window is not None]
    if not goals:
        name, window = writer.there("campaign.objective"), writer.there("campaign.window")
        is_one = isinstance(name, str) and isinstance(window, list | tuple) and len(window) == 2
        windows = [(name, (window[0], window[1]))] if is_one else []
    sides = ("at_least", "at_most")
    return [{"name": name, side: end} for name, ends in windows for side, end in zip(sides, ends, strict=True)]


def _said(item: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in item.items() if value is not None}


def _write_reward(writer: Writer, goals: list[Goal]) -> None:
    """Stability as the potential sees it, and each objective as the surrogate predicts it."""
    if writer.there("reward.terms") is None:
        terms = [_term(goal) for goal in goals if goal.name != E_ABOVE_HULL]
        writer.put("reward.terms", [asdict(STABLE_ENOUGH), *terms], "goal")


def _term(goal: Goal) -> dict[str, Any]:
    """Desirability of an objective: over its window, else over what its prior finds usual.

    Raises:
        ConfigError: nothing is known of the property, so that its usual range has to be said.
    """
    if goal.window is not None:
        low, high = goal.window
        return {"property": goal.name, "goal": "range", "low": low, "high": high, "weight": WEIGHT}
    prior = default_property(goal.name)
    if prior is None:
        raise ConfigError(
            f"goal: the usual range of {goal.name!r} is not known: say how it is rewarded (reward.terms: property, "
            "goal, low, high) and predicted (surrogate.gp.properties: name, unit)"
        )
    ends = prior.from_scale(prior.prior_mean + np.array([-TYPICAL, TYPICAL]) * prior.prior_std)
    low, high = float(ends[0]), float(ends[1])
    if goal.kind == "target":
        low, high = goal.centre - (high - low) / 2, goal.centre + (high - low) / 2
    return {"property": goal.name, "goal": goal.kind, "low": low, "high": high, "weight": WEIGHT}


def _write_space(writer: Writer, space: SpaceBlock) -> None:
    conditions = {name: value for name, value in space.model_dump().items() if value not in (None, [])}
    for name, value in conditions.items():
        for section in ("generator.proposals", "generator.finetune"):
            writer.put(f"{section}.sampling.{SAMPLING.get(name, name)}", value, f"space.{name}")
            short = writer.there(f"{section}.{name}") if name in SHORT else None
            if short not in (None, (), []) and _plain(short) != _plain(value):
                writer.contradictions.append(f"space.{name} says {value!r}, {section}.{name} says {short!r}: keep one")


def _write_oracle(writer: Writer) -> None:
    """Names alone: ``screen: chgnet`` and ``label: sevennet``, or what labels in place of a potential."""
    label = writer.there("oracle.label")
    for name in ("screen", "second_opinion"):
        if isinstance(potential := writer.there(f"oracle.{name}"), str):
            writer.data["oracle"] = {**writer.data["oracle"], name: {"potential": potential}}
    if isinstance(label, str):
        writer.put("oracle.kind" if label in ORACLES else "oracle.mlip.potential", label, "oracle.label")


def _write_budget(writer: Writer, budget: BudgetBlock) -> None:
    for name, value in budget.model_dump().items():
        if value is not None:
            writer.put(BUDGET[name], value, f"budget.{name}")


BLOCKS: dict[str, tuple[type[Block], Any]] = {
    "goal": (GoalBlock, _write_goal),
    "space": (SpaceBlock, _write_space),
    "budget": (BudgetBlock, _write_budget),
}
