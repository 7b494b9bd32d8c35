"""The goal of a campaign, said once under `campaign`: selection and reward follow it; contradictions are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from flows.registry import ORACLES
from loop.errors import ConfigError
from loop.goal import Goal
from loop.reward import STABLE_ENOUGH, RewardConfig, Term
from loop.settings import CampaignSettings, goal_keys
from loop.values import PRODUCT
from surrogates.acquisition import AcquisitionConfig
from surrogates.properties import DEFAULT_PROPERTIES, default_property

if TYPE_CHECKING:
    from flows.config import CampaignConfig

GOAL_KEYS = ("objective", "goal", "target", "window", "also")


def one_goal(data: Mapping[str, Any]) -> dict[str, Any]:
    """Raw settings in which what is left open about the goal is filled in from where it was said.

    `campaign.objective` and its goal give `selection.objectives`; a window also gives the constraints that keep it, the
    reward its term. Where only `selection.objectives` are given, the campaign ranks by them.

    Raises:
        ConfigError: two places say different things; names both.
    """
    filled = dict(data)
    campaign, selection = (_mapping(data.get(name)) for name in ("campaign", "selection"))
    if campaign is None or selection is None:
        return filled  # no section at all: the check of types says so
    campaign = goal_keys(campaign)
    given = selection.get("objectives", ())
    said = [_mapping(item) for item in given] if isinstance(given, list | tuple) else [None]
    objectives = [item for item in said if item is not None and "name" in item]
    if objectives:
        campaign = _from_selection(campaign, objectives)
    filled["campaign"] = campaign
    try:
        said_of_it = {name: campaign[name] for name in GOAL_KEYS if name in campaign}
        settings = TypeAdapter(CampaignSettings).validate_python(said_of_it)
    except ValidationError:
        return filled  # the check of the section itself says what is wrong
    if not said:
        filled["selection"] = selection | _wanted(settings.goals, selection)
    filled["surrogate"] = _predicting(data.get("surrogate"), settings.goals)
    window = settings.wanted.window
    if data.get("reward") is None and window is not None:
        term = {"property": settings.objective, "goal": "range", "low": window[0], "high": window[1]}
        filled["reward"] = {"terms": [asdict(STABLE_ENOUGH), term]}
    return {name: section for name, section in filled.items() if section is not None or name in data}


def measured_properties(config: CampaignConfig) -> set[str]:
    """Names of all properties that labels of a campaign can have: of the oracle, of costlier ones, of known labels."""
    oracle = config.oracle
    with ORACLES.blaming(oracle.kind):
        found = set(ORACLES.get(oracle.kind).measures(oracle.chosen_options))
    for name, tier in (("dft", oracle.dft), ("handoff", oracle.handoff)):
        if tier is not None:
            found |= {f"{name}_{item}" for item in ORACLES.get(name).measures(tier)}
    if config.surrogate.known is not None:  # their values come by import-labels under the same name
        found |= {item.name for item in config.surrogate.gp.properties}
    return found


def check_measured(config: CampaignConfig) -> None:
    """Refuse an objective that nothing would ever measure: the whole budget would go, and no crystal be ranked.

    Raises:
        ConfigError: names the objective and what is measured.
    """
    measured = measured_properties(config)
    if config.campaign.stability not in measured:
        raise ConfigError(
            f"campaign.stability {config.campaign.stability!r}: nothing measures it, so that nothing would be stable. "
            f"Measured are {', '.join(sorted(measured))}."
        )
    for goal in config.campaign.goals:
        if not set(goal.name.split(PRODUCT)) <= measured:
            raise ConfigError(
                f"campaign.objective {goal.name!r}: nothing measures it. Measured are {', '.join(sorted(measured))}; "
                "moduli of shear need oracle.mlip.elastic, phonons oracle.mlip.phonons, gaps oracle.dft or "
                "oracle.handoff, and properties of your own surrogate.known."
            )


def check_agrees(campaign: CampaignSettings, reward: RewardConfig, selection: AcquisitionConfig) -> None:
    """Refuse a reward or a selection that pulls an objective away from the campaign's goal.

    Raises:
        ConfigError: names both places.
    """
    for goal in campaign.goals:
        for objective in selection.objectives:
            if objective.name == goal.name and not _same(goal, objective.goal, objective.target):
                raise ConfigError(
                    f"campaign says {goal.text()}, selection.objectives {objective.goal} {objective.name} "
                    f"{'' if objective.target is None else objective.target}".rstrip()
                    + ": keep one of them."
                )
        for term in reward.terms:
            if term.property == goal.name and _apart(goal, term):
                raise ConfigError(
                    f"campaign says {goal.text()}, reward.terms {term.goal} {term.property} from {term.low:g} to "
                    f"{term.high:g}: they contradict each other."
                )


def _apart(goal: Goal, term: Term) -> bool:
    """Whether a term rewards another end of the property, or a window beside the goal's."""
    if term.goal in ("maximise", "minimise"):
        return goal.kind != term.goal
    low, high = goal.window or (goal.centre, goal.centre)
    return goal.kind == "target" and (high < term.low or low > term.high)


def _same(goal: Goal, kind: str, target: float | None) -> bool:
    if goal.kind != kind:
        return False
    low, high = goal.window or (goal.centre, goal.centre)
    return target is None or target == goal.centre or (goal.target is None and low <= target <= high)


def _from_selection(campaign: dict[str, Any], objectives: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The campaign's goal from the objectives of the selection, where the campaign does not say it itself."""
    first = campaign.get("objective", objectives[0]["name"])
    mine = next((item for item in objectives if item["name"] == first), None)
    found = {"objective": first, **campaign}
    if mine is not None and not {"goal", "target", "window"} & set(campaign):
        found |= {name: mine[name] for name in ("goal", "target") if mine.get(name) is not None}
    if mine is not None and "also" not in campaign:
        names = ("name", "goal", "target")
        rest = [{n: item[n] for n in names if item.get(n) is not None} for item in objectives if item["name"] != first]
        found["also"] = [{"kind" if name == "goal" else name: value for name, value in item.items()} for item in rest]
    return found


def _wanted(goals: Sequence[Goal], selection: Mapping[str, Any]) -> dict[str, Any]:
    """Objectives of the selection, and constraints where none are given and a window has to be kept."""
    found: dict[str, Any] = {"objectives": [_objective(goal) for goal in goals]}
    windows = [(goal.name, goal.window) for goal in goals if goal.window is not None]
    if windows and "constraints" not in selection:
        default = [{k: v for k, v in asdict(item).items() if v is not None} for item in AcquisitionConfig().constraints]
        kept = [{"name": name, side: value} for name, (low, high) in windows
                for side, value in (("at_least", low), ("at_most", high))]  # fmt: skip
        found["constraints"] = default + kept
    return found


def _objective(goal: Goal) -> dict[str, Any]:
    if goal.kind != "target":
        return {"name": goal.name, "goal": goal.kind}
    return {"name": goal.name, "goal": "target", "target": goal.centre}


def _predicting(section: Any, goals: Sequence[Goal]) -> dict[str, Any] | None:
    """The surrogate's section with the objectives among what is predicted, where its properties are not given."""
    surrogate = _mapping(section)
    gp = None if surrogate is None else _mapping(surrogate.get("gp"))
    if surrogate is None or gp is None or "properties" in gp:
        return section
    there = {item.name for item in DEFAULT_PROPERTIES}
    # a product is learned from both sides: by its factors, and as it is
    names = [part for goal in goals for part in (*goal.name.split(PRODUCT), goal.name)]
    missing = [default_property(name) for name in dict.fromkeys(names) if name not in there]
    added = [asdict(item) for item in missing if item is not None]
    if not added:
        return section
    return {**surrogate, "gp": {**gp, "properties": [*(asdict(item) for item in DEFAULT_PROPERTIES), *added]}}


def _mapping(section: Any) -> dict[str, Any] | None:
    """A section as a mapping: empty where it is missing, None where it is something else."""
    if section is None:
        return {}
    if is_dataclass(section) and not isinstance(section, type):
        return asdict(section)
    if hasattr(section, "model_dump"):
        return dict(section.model_dump(exclude_unset=True))
    return dict(section) if isinstance(section, Mapping) else None
