"""Fidelity tiers above the default oracle: some of a round go on to a costlier one, or into a folder for people.

Which ones, an acquisition decides that knows what the costlier oracle found before and what it costs (`TierSelection`);
until there is enough to go by, or where a tier says so, the best by rank go up. A share of all that go up is picked by
chance from the same crystals: what the choice is worth can then be seen.

What a tier finds is kept in the ledger under the relaxed crystal that it was asked about, and shown under its name:
property ``band_gap`` of tier ``dft`` is ``dft_band_gap``. Surrogates, ranking and reports may use it like any other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from loop import approval
from loop.approval import ApprovalRule
from loop.contracts import Oracle, Recorder
from loop.errors import ConfigError
from loop.history import RANK, TIER, Label, TierHistory
from loop.properties import heading, spec_of
from loop.ranking import ranked
from loop.settings import ENGINE, SHADOW, CampaignSettings
from loop.stages import Novelty, Submitted
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


class TierSelection(Protocol):
    """Chooses which labelled crystals a tier looks at."""

    def __call__(
        self, seen: Sequence[Label], open: Sequence[Label], settings: CampaignSettings, tier: str, k: int
    ) -> list[int] | None:
        """Indices of at most k of `open`, best first; None where rank is to decide.

        Args:
            seen: those that the tier was asked about before.
            open: those that it may be asked about now.
            settings: of the campaign.
            tier: its name.
            k: how many.
        """
        ...


@dataclass(frozen=True)
class Tier:
    """An oracle above the default one.

    Raises:
        ConfigError: the name or number makes no sense.
    """

    name: str  # prefix of its properties
    oracle: Oracle | HandOff
    best: int = 2  # candidates of a round
    only_stable: bool = False
    accepts: Callable[[Structure], bool] | None = None  # what it can measure at all; the others are passed over
    selection: TierSelection | None = None  # from this round and earlier ones; None: the best of the round by rank
    shadow_share: float = 0.0  # of all that go up: picked by chance among those that may, never by rank
    approval: ApprovalRule | None = None  # a person decides before each round's work; None: nobody is asked
    together: bool = False  # quick enough to be asked about all of a round in one go
    only_new: bool = False  # never what is known or a copy, as proposed or as relaxed

    def __post_init__(self) -> None:
        """Check values."""
        if not self.name.isidentifier() or self.best < 1:
            raise ConfigError(f"a tier needs a name such as dft and best >= 1, got {self.name!r} and {self.best}.")
        if not 0 <= self.shadow_share < 1:
            raise ConfigError(f"shadow_share of a tier must be at least 0 and below 1, got {self.shadow_share}.")

    @property
    def key(self) -> OracleKey:
        """What its labels are kept under."""
        return key_of(self.oracle)


def key_of(oracle: Oracle | HandOff) -> OracleKey:
    """What labels of an oracle are kept under."""
    return OracleKey(oracle.name, oracle.settings_hash)


def chosen_of(
    labels: Sequence[Label], settings: CampaignSettings, tier: Tier, round: int, told: TierHistory | None
) -> dict[str, str]:
    """Candidate ids of the labels that a tier shall look at in a round, each with the arm that chose it, in order.

    Args:
        labels: of all rounds so far.
        settings: of the campaign; its seed decides what chance picks.
        tier: the tier.
        round: now.
        told: what it was asked before; None: nothing.
    """
    before = set() if told is None else told.labels.keys()
    seen = [label for label in labels if label.candidate.id in before]
    open_ = [label for label in labels if label.candidate.id not in before and _may_be_submitted(label, settings, tier)]
    here = [label for label in open_ if label.pick.round == round]
    chance = _by_chance(here, settings, tier, round, told)
    left = [label for label in open_ if label.candidate.id not in chance]
    k = tier.best - len(chance)
    rows = None if tier.selection is None or not k else tier.selection(seen, left, settings, tier.name, k)
    if rows is None:
        best = ranked([label for label in left if label.pick.round == round], settings)[:k]
        return {label.candidate.id: RANK for label in best} | dict.fromkeys(chance, SHADOW)
    return {left[row].candidate.id: ENGINE for row in rows} | dict.fromkeys(chance, SHADOW)


def _may_be_submitted(label: Label, settings: CampaignSettings, tier: Tier) -> bool:
    refused = (tier.only_stable and not label.is_stable(settings)) or (tier.only_new and not label.may_be_new)
    if refused or not label.evaluation.ok:
        return False
    return tier.accepts is None or tier.accepts(as_submitted(label.candidate, label.first).structure)


def _by_chance(
    labels: Sequence[Label], settings: CampaignSettings, tier: Tier, round: int, told: TierHistory | None
) -> list[str]:
    """So many that the shadow's share of all that ever went up is kept, rounded down: one of two would be half."""
    arms = [] if told is None else list(told.arms.values())
    owed = math.floor(tier.shadow_share * (len(arms) + tier.best)) - arms.count(SHADOW)
    n = max(0, min(owed, tier.best, len(labels)))
    rng = np.random.default_rng(settings.seed_for(round, f"rung-{tier.name}"))  # the former name: seeds stay
    return [labels[row].candidate.id for row in rng.choice(len(labels), n, replace=False)] if n else []


def as_submitted(candidate: Candidate, evaluation: Evaluation) -> Candidate:
    """What a tier measures: the relaxed crystal where there is one, as a child of the candidate."""
    if evaluation.structure is None:
        return candidate
    return Candidate(evaluation.structure, Origin("relaxed", parent=candidate.id), candidate.round)


def approved(campaign: Campaign, round: int, tier: Tier, rule: ApprovalRule, labels: Sequence[Label]) -> int:
    """Ask a person how many crystals may go up; returns the number. The answer is kept in the ledger.

    Without crystals nobody is asked.
    """
    settings = campaign.settings
    names = (settings.stability, settings.objective)
    rows = [
        {"candidate": label.candidate.id, "formula": label.candidate.formula}
        | {heading(name, spec_of(name).unit): round_to(label.evaluation, name) for name in names}
        for label in labels
    ]
    path = campaign.directory / approval.FOLDER / f"round_{round:03d}_{tier.name}.yaml"
    if not rows:
        approval.withdraw(path)
        return 0
    question = approval.ask(path, settings.name, round, tier.name, rule, rows)
    answer = campaign.runner.ask(question)
    campaign.record(round, "label", APPROVAL, {"tier": tier.name, **asdict(answer)})
    return answer.crystals


def round_to(evaluation: Evaluation, name: str) -> float | None:
    """A property to four digits, for people; None where it was not measured."""
    return float(f"{evaluation.value(name):.4g}") if name in evaluation.properties else None


def run_tier(campaign: Campaign, round: int, tier: Tier, novelty: Mapping[str, Novelty]) -> int:
    """Have a costlier oracle look at some labels; returns how many. Who was chosen once stays chosen.

    Args:
        campaign: whose labels.
        round: now; its labels are there.
        tier: who looks.
        novelty: verdicts on the round's relaxed crystals, by candidate id, which the history does not have yet.
    """
    history = campaign.history
    labels = [label.judged(novelty.get(label.candidate.id)) for label in history.labels()]
    up = {label.candidate.id: as_submitted(label.candidate, label.first) for label in labels}
    told = history.tiers.get(tier.name)
    if told is None or round not in told.rounds:
        arms = chosen_of(labels, campaign.settings, tier, round, told)
        if tier.approval is not None:
            shown = [label for label in labels if label.candidate.id in arms]
            n = approved(campaign, round, tier, tier.approval, shown)
            arms = chosen_of(labels, campaign.settings, replace(tier, best=n), round, told) if n else {}
        campaign.store.add_candidates(history.name, [up[key] for key in arms])
        sent = {key: up[key].id for key in arms}
        event = Submitted(tier.name, tier.key.oracle, tier.key.settings, sent, chosen=True, arms=arms)
        campaign.record(round, "label", TIER, event.to_dict())
    candidates = [up[key] for key in history.tiers[tier.name].rounds[round]]
    if isinstance(tier.oracle, HandOff):
        tier.oracle.hand_out(candidates, campaign.directory / tier.name / f"round_{round:03d}")
    elif tier.together or isinstance(tier.oracle, Recorder):  # which keeps each as it comes
        campaign.label(candidates, tier.oracle)
    else:
        for done, candidate in enumerate(candidates):  # one by one: each may take hours, and is kept at once
            campaign.progress(tier.name, done, len(candidates), {})
            campaign.label([candidate], tier.oracle)
    history.refresh(campaign.store)
    return len(candidates)
