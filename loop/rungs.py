"""Rungs above the default oracle: some of a round go on to a dearer one, or into a folder for people.

Which ones, an acquisition decides that knows what the dearer oracle found before and what it costs (`Climbers`); until
there is enough to go by, or where a rung says so, the best by rank go up. A share of all that go up is picked by chance
from the same crystals: what the choice is worth can then be seen.

What a rung finds is kept in the ledger under the relaxed crystal that it was asked about, and shown under its name:
property ``band_gap`` of rung ``dft`` is ``dft_band_gap``. Surrogates, ranking and reports may use it like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from loop import approval
from loop.approval import ApprovalRule
from loop.contracts import Oracle, Recorder
from loop.errors import ConfigError
from loop.history import RANK, RUNG, Label, RungHistory
from loop.properties import heading, spec_of
from loop.ranking import ranked
from loop.settings import ENGINE, SHADOW, CampaignSettings
from loop.stages import SentUp
from loop.store import OracleKey
from loop.values import Candidate, Evaluation, Origin

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from loop.campaign import Campaign

APPROVAL = "approval"  # kind of the event that tells what a person decided


@runtime_checkable
class HandOff(Protocol):
    """Gives candidates to people or to a queue elsewhere; their results come by ``import-labels``."""

    @property
    def name(self) -> str:
        """``name@version``."""
        ...

    @property
    def settings_hash(self) -> str:
        """Hash of what is asked for."""
        ...

    def hand_out(self, candidates: Sequence[Candidate], folder: Path) -> None:
        """Write what is needed to measure candidates into a folder; one that is there already stays."""
        ...


class Climbers(Protocol):
    """Chooses which labelled crystals a rung looks at."""

    def __call__(
        self, seen: Sequence[Label], open: Sequence[Label], settings: CampaignSettings, rung: str, k: int
    ) -> list[int] | None:
        """Indices of at most k of `open`, best first; None where rank is to decide.

        Args:
            seen: those that the rung was asked about before.
            open: those that it may be asked about now.
            settings: of the campaign.
            rung: its name.
            k: how many.
        """
        ...


@dataclass(frozen=True)
class Rung:
    """An oracle above the default one.

    Raises:
        ConfigError: the name or number makes no sense.
    """

    name: str  # prefix of its properties
    oracle: Oracle | HandOff
    best: int = 2  # candidates of a round
    only_stable: bool = False
    accepts: Callable[[Structure], bool] | None = None  # what it can measure at all; the others are passed over
    climbers: Climbers | None = None  # chooses, from this round and earlier ones; None: the best of the round by rank
    shadow_share: float = 0.0  # of all that go up: picked by chance among those that may, never by rank
    approval: ApprovalRule | None = None  # a person decides before each round's work; None: nobody is asked

    def __post_init__(self) -> None:
        """Check values."""
        if not self.name.isidentifier() or self.best < 1:
            raise ConfigError(f"a rung needs a name such as dft and best >= 1, got {self.name!r} and {self.best}.")
        if not 0 <= self.shadow_share < 1:
            raise ConfigError(f"shadow_share of a rung must be at least 0 and below 1, got {self.shadow_share}.")

    @property
    def key(self) -> OracleKey:
        """What its labels are kept under."""
        return key_of(self.oracle)


def key_of(oracle: Oracle | HandOff) -> OracleKey:
    """What labels of an oracle are kept under."""
    return OracleKey(oracle.name, oracle.settings_hash)


def chosen_of(
    labels: Sequence[Label], settings: CampaignSettings, rung: Rung, round: int, told: RungHistory | None
) -> dict[str, str]:
    """Candidate ids of the labels that a rung shall look at in a round, each with the arm that chose it, in order.

    Args:
        labels: of all rounds so far.
        settings: of the campaign; its seed decides what chance picks.
        rung: the rung.
        round: now.
        told: what it was asked before; None: nothing.
    """
    before = set() if told is None else told.labels.keys()
    seen = [label for label in labels if label.candidate.id in before]
    open_ = [label for label in labels if label.candidate.id not in before and _may_climb(label, settings, rung)]
    here = [label for label in open_ if label.pick.round == round]
    chance = _by_chance(here, settings, rung, round, told)
    left = [label for label in open_ if label.candidate.id not in chance]
    k = rung.best - len(chance)
    rows = None if rung.climbers is None or not k else rung.climbers(seen, left, settings, rung.name, k)
    if rows is None:
        best = ranked([label for label in left if label.pick.round == round], settings)[:k]
        return {label.candidate.id: RANK for label in best} | dict.fromkeys(chance, SHADOW)
    return {left[row].candidate.id: ENGINE for row in rows} | dict.fromkeys(chance, SHADOW)


def _may_climb(label: Label, settings: CampaignSettings, rung: Rung) -> bool:
    usable = label.evaluation.ok and (not rung.only_stable or label.is_stable(settings))
    return usable and (rung.accepts is None or rung.accepts(sent_up(label.candidate, label.first).structure))


def _by_chance(
    labels: Sequence[Label], settings: CampaignSettings, rung: Rung, round: int, told: RungHistory | None
) -> list[str]:
    """So many that the shadow's share of all that ever went up is kept, rounded down: one of two would be half."""
    arms = [] if told is None else list(told.arms.values())
    owed = math.floor(rung.shadow_share * (len(arms) + rung.best)) - arms.count(SHADOW)
    n = max(0, min(owed, rung.best, len(labels)))
    rng = np.random.default_rng(settings.seed_for(round, f"rung-{rung.name}"))
    return [labels[row].candidate.id for row in rng.choice(len(labels), n, replace=False)] if n else []


def sent_up(candidate: Candidate, evaluation: Evaluation) -> Candidate:
    """What a rung measures: the relaxed crystal where there is one, as a child of the candidate."""
    if evaluation.structure is None:
        return candidate
    return Candidate(evaluation.structure, Origin("relaxed", parent=candidate.id), candidate.round)


def approved(campaign: Campaign, round: int, rung: Rung, rule: ApprovalRule, labels: Sequence[Label]) -> int:
    """Ask a person how many crystals may go up; returns the number, 0 for none. Goes on record."""
    settings = campaign.settings
    names = (settings.stability, settings.objective)
    rows = [
        {"candidate": label.candidate.id, "formula": label.candidate.formula}
        | {heading(name, spec_of(name).unit): round_to(label.evaluation, name) for name in names}
        for label in labels
    ]
    path = campaign.directory / approval.FOLDER / f"round_{round:03d}_{rung.name}.yaml"
    question = approval.ask(path, settings.name, round, rung.name, rule, rows)
    answer = campaign.runner.ask(question)
    campaign.record(round, "label", APPROVAL, {"rung": rung.name, **asdict(answer)})
    return answer.crystals


def round_to(evaluation: Evaluation, name: str) -> float | None:
    """A property to four digits, for people; None where it was not measured."""
    return float(f"{evaluation.value(name):.4g}") if name in evaluation.properties else None


def climb(campaign: Campaign, round: int, rung: Rung) -> int:
    """Have a dearer oracle look at some labels; returns how many. Who was chosen once stays chosen."""
    history = campaign.history
    labels = history.labels()
    up = {label.candidate.id: sent_up(label.candidate, label.first) for label in labels}
    told = history.rungs.get(rung.name)
    if told is None or round not in told.rounds:
        arms = chosen_of(labels, campaign.settings, rung, round, told)
        if arms and rung.approval is not None:
            shown = [label for label in labels if label.candidate.id in arms]
            n = approved(campaign, round, rung, rung.approval, shown)
            arms = chosen_of(labels, campaign.settings, replace(rung, best=n), round, told) if n else {}
        campaign.store.add_candidates(history.name, [up[key] for key in arms])
        sent = {key: up[key].id for key in arms}
        event = SentUp(rung.name, rung.key.oracle, rung.key.settings, sent, chosen=True, arms=arms)
        campaign.record(round, "label", RUNG, event.to_dict())
    candidates = [up[key] for key in history.rungs[rung.name].rounds[round]]
    if isinstance(rung.oracle, HandOff):
        rung.oracle.hand_out(candidates, campaign.directory / rung.name / f"round_{round:03d}")
    elif isinstance(rung.oracle, Recorder):  # it keeps each as it comes
        campaign.label(candidates, rung.oracle)
    else:
        for done, candidate in enumerate(candidates):  # one by one: each may take hours, and is kept at once
            campaign.progress(rung.name, done, len(candidates), {})
            campaign.label([candidate], rung.oracle)
    history.refresh(campaign.store)
    return len(candidates)
