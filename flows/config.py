"""One YAML file is one `CampaignConfig`: the settings of the loop and of each room, which live beside their code."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from flows import configfile
from flows.blocks import BudgetBlock, GoalBlock, SpaceBlock, expanded, origins
from flows.goals import check_agrees, check_measured, one_goal
from flows.overrides import give_way
from flows.registry import GENERATORS, ORACLES
from flows.scale import Scale
from flows.upgrade import begun_before, upgraded
from generator.policy import PolicyConfig
from generator.rl.config import FinetuneConfig
from generator.substitution import SubstitutionConfig
from loop.approval import ApprovalRule
from loop.errors import ConfigError
from loop.novelty import Tolerances
from loop.registry import Registry, as_mapping
from loop.reward import RewardConfig
from loop.settings import CHANGEABLE, CampaignSettings
from loop.validity import ValidityRules
from oracles.cheap import ScreenConfig
from oracles.dft.handoff import HandoffConfig
from oracles.dft.oracle import DftConfig
from oracles.mlip import MlipConfig
from oracles.opinion import OpinionConfig
from surrogates.acquisition import AcquisitionConfig
from surrogates.properties import GPConfig

Settings = TypeVar("Settings")
Choice = Literal["acquisition", "rank"]
CONFIG_FILE = "config.yaml"
MLIP = "mlip"  # the kind of oracle that labels by a potential, and the section that says how


def forbid_extra(kind: type[Settings]) -> type[Settings]:
    """Make pydantic refuse unknown keys of a dataclass and of those in it, and know what each key means.

    By itself it drops unknown keys silently, and of descriptions it reads those of the class itself, not of its bases.
    """
    kind.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[attr-defined]
    hints = get_type_hints(kind)
    meanings = configfile.meanings(kind)
    for item in fields(kind):  # type: ignore[arg-type]
        if item.name in meanings:
            item.metadata = MappingProxyType({"description": meanings[item.name]})
        for part in (hints[item.name], *get_args(hints[item.name])):
            if isinstance(part, type) and is_dataclass(part):
                forbid_extra(part)
    return kind


@dataclass(frozen=True)
class DftTier(DftConfig):
    """DFT for some of each round."""

    best: int = 2
    """Candidates per round."""
    only_stable: bool = False
    """Only candidates that are stable by the labelling oracle."""
    choose: Choice = "acquisition"
    """By what the tier found so far and what it costs (acquisition), or the best by rank alone."""
    shadow_share: float = 0.25
    """Of all that go up: picked by chance, to compare with."""
    approval: ApprovalRule | None = None
    """A person decides before each round's work; none: nobody is asked."""

    def oracle_config(self) -> DftConfig:
        """Settings of the oracle itself."""
        return DftConfig(**{item.name: getattr(self, item.name) for item in fields(DftConfig)})


@dataclass(frozen=True)
class HandoffTier(HandoffConfig):
    """Inputs for people for the best of each round."""

    best: int = 5
    """Candidates per round."""
    only_stable: bool = True
    """Only candidates that are stable by the labelling oracle."""
    choose: Choice = "acquisition"
    """By what came back so far and what it cost (acquisition), or the best by rank alone."""
    shadow_share: float = 0.0
    """Of all that are handed out: picked by chance, to compare with."""
    approval: ApprovalRule | None = None
    """A person decides before each round's work; none: nobody is asked."""

    def oracle_config(self) -> HandoffConfig:
        """Settings of the oracle itself."""
        return HandoffConfig(**{item.name: getattr(self, item.name) for item in fields(HandoffConfig)})


ROOMS: tuple[type[Any], ...]
ROOMS = (CampaignSettings, FinetuneConfig, PolicyConfig, ValidityRules, Tolerances, RewardConfig, MlipConfig, GPConfig)
ROOMS += (AcquisitionConfig, ScreenConfig, DftTier, HandoffTier, SubstitutionConfig, OpinionConfig)
for room_settings in ROOMS:
    forbid_extra(room_settings)


class Section(BaseModel):
    """A part of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Chosen(Section):
    """A section that chooses a part by its registered name, which may have options of its own."""

    registry: ClassVar[Registry[Any]]

    kind: str
    options: dict[str, Any] = Field({}, description="settings of what is chosen", validate_default=True)

    @field_validator("kind", mode="after", check_fields=False)
    @classmethod
    def _registered(cls, kind: str) -> str:
        cls.registry.get(kind)
        return kind

    @field_validator("options", mode="after")
    @classmethod
    def _written_out(cls, given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Checked, and with every default: a campaign's settings do not change when those of a package do."""
        return cls.complete(info.data["kind"], given) if "kind" in info.data else given

    @classmethod
    def complete(cls, kind: str, given: dict[str, Any]) -> dict[str, Any]:
        """All options of a kind."""
        return as_mapping(cls.registry.options(kind, given))

    @property
    def chosen_options(self) -> Any:
        """As the dataclass that the chosen part declares."""
        return self.registry.options(self.kind, self.options)


class GeneratorSection(Chosen):
    """What proposes, and how it learns."""

    registry = GENERATORS

    kind: str = Field(
        "crystalformer",
        description="what proposes: crystalformer (learned), substitution (ion substitution, which learns nothing), or "
        "what an installed package adds",
    )
    checkpoint: Path | None = Field(None, description="folder of the base checkpoint; none: the one that is shipped")
    device: str = Field("cpu", description="cpu or cuda")
    dtype: Literal["float32", "float64", "bfloat16"] = Field("float32", description="precision of the network")
    proposals: PolicyConfig = Field(default_factory=PolicyConfig, description="how candidates are drawn")
    finetune: FinetuneConfig = Field(default_factory=FinetuneConfig, description="how the policy learns")


class NoveltySection(Section):
    """What counts as new."""

    reference: Literal["shipped", "none"] | Path = Field("shipped", description="known crystals: a table, or these")
    tolerances: Tolerances = Field(default_factory=Tolerances, description="when two crystals are the same")


class SurrogateSection(Section):
    """What predicts labels."""

    gp: GPConfig = Field(default_factory=GPConfig, description="Gaussian processes and random forests")
    known: Path | None = Field(None, description="crystals with `property (unit)` columns: labels to learn from, too")


class OracleSection(Chosen):
    """What labels."""

    registry = ORACLES

    kind: str = Field(
        MLIP, description="what labels: mlip (a potential, by the section mlip), dft, or what an installed package adds"
    )
    screen: ScreenConfig | None = Field(
        None, description="cheap potential that rewards, screens and describes crystals; none: the one that labels"
    )
    label: str | None = Field(None, exclude=True, description="potential that labels: short for mlip.potential")
    mlip: MlipConfig = Field(default_factory=MlipConfig, description="potential, relaxation, bulk modulus")
    dft: DftTier | None = Field(None, description="DFT for candidates of each round; none: no DFT")
    handoff: HandoffTier | None = Field(None, description="inputs for people for the best of each round")
    second_opinion: OpinionConfig | None = Field(
        None, description="potential that judges what is stable, on its own hull, after the one that labels; none: none"
    )
    workers: int = Field(0, ge=0, description="processes side by side; 0: one per core")

    @field_validator("kind", mode="after")
    @classmethod
    def _labels(cls, kind: str) -> str:
        if not ORACLES.get(kind).labels:
            raise ConfigError(f"{kind!r} hands crystals to people and labels nothing: give it as oracle.{kind}")
        return kind

    @classmethod
    def complete(cls, kind: str, given: dict[str, Any]) -> dict[str, Any]:
        """All options of a kind; those of a potential have a section of their own."""
        if kind == MLIP and given:
            raise ConfigError(f"of the kind {MLIP!r} they stand under oracle.{MLIP}: write them there")
        return {} if kind == MLIP else super().complete(kind, given)

    @property
    def chosen_options(self) -> Any:
        """As the dataclass that the chosen part declares."""
        return self.mlip if self.kind == MLIP else super().chosen_options


class CampaignConfig(Section):
    """A campaign."""

    campaign: CampaignSettings = Field(default_factory=CampaignSettings, description="the loop itself")
    results: Path | None = Field(None, description="results folder; none: results/NAME")
    store: str | None = Field(None, description="URL of the ledger, ${VAR} allowed; none: campaign.db in the results")
    generator: GeneratorSection = Field(default_factory=GeneratorSection, description="what proposes")
    validity: ValidityRules = Field(default_factory=ValidityRules, description="what may enter the pool")
    novelty: NoveltySection = Field(default_factory=NoveltySection, description="what counts as new")
    reward: RewardConfig = Field(default_factory=RewardConfig, description="what the policy learns from")
    surrogate: SurrogateSection = Field(default_factory=SurrogateSection, description="what predicts labels")
    selection: AcquisitionConfig = Field(default_factory=AcquisitionConfig, description="what is labelled")
    oracle: OracleSection = Field(default_factory=OracleSection, description="what labels")
    scale: Scale | None = Field(None, description="workers on a Dask cluster; none: processes of this machine")
    notify: list[str] = Field(
        default_factory=list,
        description="Prefect's notification blocks, as slack-webhook/NAME: told of questions, ends and failures",
    )
    # written out into the sections above, which are what is kept
    goal: GoalBlock | None = Field(None, exclude=True, description="what is looked for; other sections follow from it")
    space: SpaceBlock | None = Field(
        None, exclude=True, description="which crystals are looked for, in fine-tuning, proposals and baselines alike"
    )
    budget: BudgetBlock | None = Field(None, exclude=True, description="what may be spent")

    @model_validator(mode="before")
    @classmethod
    def _goal_said_once(cls, data: Any) -> Any:
        """Blocks are written out; what selection and reward leave open follows the campaign's goal."""
        return one_goal(expanded(data)) if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        """Properties that are asked for are also predicted and measured, and no place contradicts another."""
        check_agrees(self.campaign, self.reward, self.selection)
        check_measured(self)
        known = {item.name for item in self.surrogate.gp.properties}
        asked = {f"selection: objective {item.name!r}": item.name for item in self.selection.objectives}
        asked |= {f"selection: constraint {item.name!r}": item.name for item in self.selection.constraints}
        terms = [term for term in self.reward.terms if term.source == "surrogate"]
        asked |= {f"reward: term {term.property!r}": name for term in terms for name in term.factors}
        missing = [what for what, name in asked.items() if name not in known]
        if missing:
            raise ValueError(f"{'; '.join(missing)}: not among surrogate.gp.properties ({', '.join(sorted(known))})")
        return self

    def directory(self, results: str | Path | None = None) -> Path:
        """Where the results go."""
        name = re.sub(r"[^\w.+-]+", "-", self.campaign.name)
        return Path(results) if results else self.results or Path("results") / name

    def ledger(self, directory: Path) -> str:
        """Where the ledger is, environment variables filled in: it may hold a password, never write it anywhere."""
        return configfile.expand_environment(self.store) if self.store else str(directory / "campaign.db")


def read_config(source: str | Path, overrides: Mapping[str, Any] | None = None) -> CampaignConfig:
    """Read a campaign's configuration from a file or preset.

    Raises:
        ConfigError: with every problem on a line of its own.
    """
    return configfile.load(CampaignConfig, source, overrides, upgraded, give_way, origins)


def stored_config(directory: Path, overrides: Mapping[str, Any] | None = None) -> CampaignConfig:
    """The configuration that a results folder was made with.

    Raises:
        ConfigError: the folder holds none.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{directory} holds no campaign: {CONFIG_FILE} is missing (start one with `discovery-loop run`)"
        )
    return read_config(path, {**begun_before(configfile.read_mapping(path)), **(overrides or {})})


def check_same(config: CampaignConfig, directory: Path, *, resume: bool = False) -> None:
    """Refuse to continue in a folder with settings that would make it another campaign.

    Raises:
        ConfigError: names what differs.
    """
    if not (directory / CONFIG_FILE).is_file():
        return
    ours, theirs = (flatten(c.model_dump(mode="json")) for c in (config, stored_config(directory)))
    free = {"results", "scale", "notify", "oracle.workers", "oracle.dft.resources"}
    free |= {"oracle.dft.approval", "oracle.handoff.approval", *(f"campaign.{name}" for name in CHANGEABLE)}
    keys = [key for key in {**theirs, **ours} if not any(key == name or key.startswith(f"{name}.") for name in free)]
    changed = [key for key in keys if ours.get(key) != theirs.get(key)]
    if changed:
        was = "; ".join(f"{key} was {theirs.get(key)!r}, now {ours.get(key)!r}" for key in changed)
        own = f"Continue it with its own settings by `discovery-loop resume {directory}`"
        advice = "Leave these as they were" if resume else own
        raise ConfigError(
            f"{directory} holds a campaign with other settings: {was}. {advice}, or run them in another folder "
            f"(--results). Free to change: {', '.join(sorted(free))}."
        )


def flatten(data: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        nested = isinstance(value, Mapping) and value
        flat |= flatten(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return flat


def renamed(text: str, name: str) -> str:
    """The text of a preset with another campaign name, in quotes, whatever the name; comments stay."""
    quoted = json.dumps(name, ensure_ascii=False)
    return re.sub(r"(?m)^(\s+name:).*$", lambda match: f"{match.group(1)} {quoted}", text, count=1)
