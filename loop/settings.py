"""Settings of a campaign, its stages, and the seeds derived from one number."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from loop.errors import ConfigError
from loop.goal import BRITISH, Goal, GoalKind
from loop.stability import METASTABLE

STAGES = ("finetune", "propose", "select", "label", "retrain", "report")
BASELINE, ENGINE, SHADOW = "baseline", "engine", "shadow"
ARMS = (BASELINE, ENGINE, SHADOW)
NAME_CHARACTERS, NAME_BYTES = 128, 200  # what the ledger's column and a file system's names hold, with some to spare

# what a resumed campaign may change: when to stop, and how work is cut into pieces. All else would make it another one
CHANGEABLE = ("rounds", "max_calls", "max_hours", "max_core_hours", "patience", "stop_below", "stop_above", "chunk")


def check_name(name: str) -> None:
    """Refuse a name of a new campaign that can be no folder (ledgers of old may hold such names).

    Raises:
        ConfigError: says why.
    """
    wrong = {
        "1 to 128 characters": not name.strip() or len(name) > NAME_CHARACTERS,
        f"at most {NAME_BYTES} bytes, for it names a folder": len(name.encode(errors="replace")) > NAME_BYTES,
        "no '/' or '\\', for it names a folder": bool(set(name) & set("/\\")),
        "no '.' at its start, for it names a folder": name.startswith("."),
        "no space at its ends": name != name.strip(),
        "no line breaks or other characters that cannot be printed": not name.isprintable(),
    }
    rules = [rule for rule, broken in wrong.items() if broken]
    if rules:
        raise ConfigError(f"name must have {' and '.join(rules)}, got {name!r}.")


@dataclass(frozen=True)
class CampaignSettings:
    """Settings of the loop itself; those of generator, surrogates and oracles live in their rooms.

    Raises:
        ConfigError: a value is out of its range.
    """

    name: str = "campaign"
    """Name of the campaign, shown in reports and in Prefect."""
    seed: int = 0
    """Seed of everything random; the same seed gives the same ranked list on the same machine."""
    rounds: int = 3
    """Rounds after the baseline round 0."""
    pool: int = 256
    """Crystals sampled per round, before validity, duplicates and known crystals are taken out."""
    budget: int = 8
    """Oracle calls per round."""
    baseline_budget: int | None = None
    """Oracle calls of round 0, which labels the untuned generator; none: as `budget`."""
    shadow_share: float = 0.25
    """Share of a round's budget that goes to random picks from the same pool (the shadow arm)."""
    prototype_share: float = 0.25
    """Largest share of the engine's picks of a round that may be of one prototype, as proposed; 1: any."""
    stability: str = "e_above_hull"
    """Property that decides what counts as stable, in eV/atom."""
    threshold: float = METASTABLE
    """Stable at or below this value (eV/atom), unless implausibly far below the hull (`loop.stability`)."""
    objective: str = "bulk_modulus"
    """Property by which stable crystals are ranked."""
    goal: GoalKind = "maximise"
    """maximise, minimise or target; a target comes near to `target`, or into `window`."""
    target: float | None = None
    """Target value, in the objective's unit."""
    window: tuple[float, float] | None = None
    """Lower and upper bound, in the objective's unit; crystals inside it are ranked first."""
    also: tuple[Goal, ...] = ()
    """Further objectives; finds are then ranked by the Pareto fronts of all of them."""
    allow_known: bool = False
    """Keep crystals of the novelty reference in the pool."""
    chunk: int = 4
    """Labels that are relaxed and written together: what a kill may lose. Workers wait for the last of them."""
    max_calls: int | None = None
    """Stop before this total number of oracle calls is exceeded."""
    max_hours: float | None = None
    """Stop before the round that would begin after this many hours of work."""
    max_core_hours: float | None = None
    """Stop before the round that would begin after the oracles of all tiers have cost this many core-hours."""
    patience: int | None = None
    """Stop after this many rounds without a new stable crystal or a better objective."""
    stop_below: dict[str, float] = field(default_factory=lambda: {"validity": 0.05, "uniqueness": 0.05})
    """Stop when a metric of a round's report falls below its limit."""
    stop_above: dict[str, float] = field(default_factory=lambda: {"replay": 0.95})
    """Stop when a metric of a round's report rises above its limit."""

    def __post_init__(self) -> None:
        """Check ranges."""
        object.__setattr__(self, "goal", BRITISH.get(self.goal, self.goal))
        if self.window is not None:  # a list where it comes from JSON
            object.__setattr__(self, "window", tuple(self.window))
        object.__setattr__(self, "also", tuple(goal if isinstance(goal, Goal) else Goal(**goal) for goal in self.also))
        names = [goal.name for goal in self.goals]
        if len(set(names)) < len(names):
            raise ConfigError(f"each objective once, got {', '.join(names)}.")
        at_least = {
            "rounds": 0,
            "pool": 1,
            "budget": 1,
            "chunk": 1,
            "baseline_budget": 1,
            "max_calls": 1,
            "patience": 1,
        }
        for name, low in at_least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} must be at least {low}, got {value}.")
        if not 0 < self.prototype_share <= 1:
            raise ConfigError(f"prototype_share must be above 0 and at most 1, got {self.prototype_share}.")
        if not 0 <= self.shadow_share < 1:
            raise ConfigError(f"shadow_share must be at least 0 and below 1, got {self.shadow_share}.")
        if not self.name.strip() or len(self.name) > NAME_CHARACTERS:
            raise ConfigError(f"name must have 1 to {NAME_CHARACTERS} characters, got {self.name!r}.")

    @property
    def wanted(self) -> Goal:
        """What ranks the stable crystals."""
        return Goal(self.objective, self.goal, self.target, self.window)

    @property
    def goals(self) -> tuple[Goal, ...]:
        """All objectives, the one that is asked for first in front."""
        return (self.wanted, *self.also)

    @property
    def round0_budget(self) -> int:
        """Oracle calls of the baseline round."""
        return self.budget if self.baseline_budget is None else self.baseline_budget

    def budget_of(self, round: int, paid: int) -> int:
        """Oracle calls of a round, where so many are paid already."""
        budget = self.round0_budget if round == 0 else self.budget
        left = budget if self.max_calls is None else self.max_calls - paid
        return max(0, min(budget, left))

    def seed_for(self, round: int, stage: str) -> int:
        """Seed of one stage, independent of what ran before it in this process.

        The first 31 bits of SHA-256 of campaign seed, round and stage: different stages never share a random stream.
        """
        digest = hashlib.sha256(f"{self.seed}/{round}/{stage}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_dict`; keys of later versions are refused. Reads the `maximise` of earlier ledgers, too."""
        try:
            return cls(**goal_keys(data))
        except TypeError as error:
            raise ConfigError(f"Settings of a campaign cannot be read: {error}.") from error

    def check_resumes(self, earlier: CampaignSettings) -> None:
        """Refuse to continue under settings that make it another campaign.

        Raises:
            ConfigError: names what differs.
        """
        ours, theirs = self.to_dict(), earlier.to_dict()
        changed = [name for name in ours if ours[name] != theirs[name] and name not in CHANGEABLE]
        if changed:
            was = ", ".join(f"{name}={theirs[name]!r} (now {ours[name]!r})" for name in changed)
            raise ConfigError(
                f"Campaign {earlier.name!r} was begun with {was}: resume it with these values, or start a new campaign "
                f"(labels are shared, nothing is paid for twice). Free to change: {', '.join(CHANGEABLE)}."
            )


def goal_keys(data: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with `goal` in place of a former ``maximise: true`` or ``maximize: true``.

    Raises:
        ConfigError: both are given and contradict each other.
    """
    kept = {name: value for name, value in data.items() if name not in ("maximise", "maximize")}
    for name in ("maximise", "maximize"):
        if name not in data:
            continue
        if not isinstance(data[name], bool):
            raise ConfigError(f"{name}: expected true or false, got {data[name]!r}; or say it as goal: minimise.")
        said = "maximise" if data[name] else "minimise"
        if BRITISH.get(str(kept.get("goal")), kept.get("goal", said)) != said:
            raise ConfigError(f"{name}: {data[name]} contradicts goal: {kept['goal']}. Keep the goal alone.")
        kept.setdefault("goal", said)
    return kept
