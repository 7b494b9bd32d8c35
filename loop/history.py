"""A campaign as its ledger tells it: a read-only fold over events, candidates and evaluations.

`Campaign` adds to it; reports, exports and status need nothing else, no generator and no oracle.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

from loop.errors import StoreError
from loop.hull import HullEntry
from loop.settings import STAGES, CampaignSettings
from loop.stability import SUSPECT, is_suspect
from loop.stages import (
    Finetuned,
    HullPoint,
    Labelled,
    Novelty,
    Pick,
    Prototype,
    Reported,
    Selected,
    StageRecord,
    Step,
    Submitted,
)
from loop.store import OracleKey, Store
from loop.values import NEW, Candidate, Evaluation, Quantity, RoundReport

CAMPAIGN = "campaign"  # stage of the events that belong to no stage
RANK = "rank"  # who chose for a tier, where no acquisition did; else engine or shadow
SECOND_OPINION = "second_opinion"  # name of the tier that is another potential, no costlier method
CREATED, SETTINGS, DONE, STOPPED = "created", "settings", "done", "stopped"  # kinds of events
TIER = "rung"  # and that of what goes up to a tier: the former name, so that all ledgers read alike
NOT_JUDGED = "not judged"  # labelled in a round whose label stage is not done


R = TypeVar("R", bound=StageRecord)


@dataclass(frozen=True)
class Label:
    """A pick with its outcome."""

    candidate: Candidate
    pick: Pick
    evaluation: Evaluation  # on the newest hull of the campaign
    first: Evaluation  # as the oracle gave it
    novelty_relaxed: str = ""  # verdict on the relaxed crystal
    match_relaxed: str = ""  # what that is a copy of, where it is one
    tiers: dict[str, Evaluation] = field(default_factory=dict)  # of costlier oracles, by name of the tier
    prototype: str = ""  # of the relaxed crystal, see `loop.prototypes`; empty in ledgers that do not say it
    parent: str = ""  # fcc, bcc or hcp where the crystal is an ordering of that lattice

    @property
    def verdict(self) -> str:
        """Novelty as proposed *and* relaxed: ``new`` only where both are; ``not judged`` between label and verdict.

        What was never relaxed is what was proposed.
        """
        if self.pick.novelty != NEW:
            return self.pick.novelty
        unjudged = not self.novelty_relaxed and self.evaluation.structure is not None
        return NOT_JUDGED if unjudged else self.novelty_relaxed or NEW

    def judged(self, relaxed: Novelty | None) -> Self:
        """The label with a verdict on its relaxed crystal; as it is where there is none."""
        return self if relaxed is None else replace(self, novelty_relaxed=relaxed.kind, match_relaxed=relaxed.match)

    @property
    def may_be_new(self) -> bool:
        """New as proposed, and not found to be known after relaxation: also where that was not judged yet."""
        return self.verdict in (NEW, NOT_JUDGED)

    @property
    def is_new(self) -> bool:
        """Neither known nor a copy, as proposed and after relaxation."""
        return self.verdict == NEW

    @property
    def match(self) -> str:
        """Id of the known or earlier crystal that this one is, as proposed or relaxed; empty for a new one."""
        return self.pick.match or self.match_relaxed

    def suspect(self, settings: CampaignSettings) -> str:
        """Why the energy is not to be trusted; empty where nothing speaks against it.

        Judged where the label was given: on the campaign's own hull the crystal itself is a phase, at 0.
        """
        usable = self.first.ok and is_suspect(self.first.value(settings.stability))
        return SUSPECT if usable else ""

    def is_stable(self, settings: CampaignSettings) -> bool:
        """Labelled, at or below the threshold, and not suspect. A failed label was paid for all the same."""
        within = self.evaluation.ok and self.evaluation.value(settings.stability) <= settings.threshold
        return within and not self.suspect(settings)

    def is_find(self, settings: CampaignSettings) -> bool:
        """Stable and new: what a campaign is run for, and all that its headlines count."""
        return self.is_new and self.is_stable(settings)


@dataclass
class TierHistory:
    """What a campaign sent up to one tier, and what came back."""

    key: OracleKey
    labels: dict[str, str] = field(default_factory=dict)  # candidate id -> id of the crystal that was measured
    evaluations: dict[str, Evaluation] = field(default_factory=dict)  # by candidate id
    rounds: dict[int, list[str]] = field(default_factory=dict)  # candidate ids that were chosen in a round
    arms: dict[str, str] = field(default_factory=dict)  # candidate id -> who chose it: engine, rank or shadow

    def apply(self, round: int, event: Submitted) -> None:
        """Take in one event.

        Raises:
            StoreError: the event is of another oracle or settings.
        """
        key = OracleKey(event.oracle, event.settings)
        if key != self.key:
            raise StoreError(
                f"Tier {event.tier!r} of this campaign holds labels of {self.key}, now {key}: labels of two "
                "oracles do not mix. Give the new ones another name, or start a new campaign."
            )
        self.labels |= event.labels
        if event.chosen:
            self.rounds[round] = list(event.labels)
            self.arms |= event.arms or dict.fromkeys(event.labels, RANK)


@dataclass
class History:
    """Fold over the events of one campaign."""

    name: str
    settings: CampaignSettings
    oracle: OracleKey
    about: dict[str, Any]
    done: dict[tuple[int, str], Step]  # by round and stage
    stopped: str
    candidates: dict[str, Candidate]
    evaluations: dict[str, Evaluation]
    paid: int
    tiers: dict[str, TierHistory] = field(default_factory=dict)  # costlier oracles, by name
    begun: float = 0.0  # time of the first event, seconds since the epoch
    latest: float = 0.0  # and of the last one when this history was read
    core_hours: float = 0.0  # that the oracles cost; read only where a stop rule asks for it

    @classmethod
    def load(cls, store: Store, name: str) -> Self:
        """Read a campaign.

        Raises:
            StoreError: the ledger has no campaign of this name, or contradicts itself.
        """
        events = store.events(name)
        created = next((event for event in events if event.kind == CREATED), None)
        if created is None:
            there = ", ".join(store.campaigns()) or "none"
            raise StoreError(f"The ledger {store.name} holds no campaign {name!r}; there are: {there}.")
        key = OracleKey(created.payload["oracle"], created.payload["oracle_settings"])
        history = cls(name, CampaignSettings.from_dict(created.payload["settings"]), key, {}, {}, "", {}, {}, 0)
        history.about = created.payload.get("about", {})
        history.begun, history.latest = events[0].time, events[-1].time
        for event in events:
            history.apply(event.round, event.stage, event.kind, event.payload)
        history.candidates = store.candidates(name)
        history.refresh(store)
        return history

    def apply(self, round: int, stage: str, kind: str, payload: dict[str, Any]) -> None:
        """Take in one event."""
        if kind == DONE:
            self.done[round, stage] = Step.from_dict(round, stage, payload)
        elif kind == SETTINGS:
            self.settings = CampaignSettings.from_dict(payload["settings"])
            self.stopped = ""
        elif kind == STOPPED:
            self.stopped = str(payload["reason"])
        elif kind == TIER:
            event = Submitted.from_dict(payload)
            key = OracleKey(event.oracle, event.settings)
            self.tiers.setdefault(event.tier, TierHistory(key)).apply(round, event)

    def refresh(self, store: Store) -> None:
        """Read the labels of all picks from the ledger."""
        missing = [pick.candidate_id for pick in self.picks() if pick.candidate_id not in self.evaluations]
        self.evaluations |= store.evaluations(missing, self.oracle)
        self.paid = store.paid(self.name, self.oracle)
        if self.settings.max_core_hours is not None:
            self.core_hours = sum(cost.core_hours for cost in store.costs(self.name))
        for tier in self.tiers.values():
            open_ids = {key: value for key, value in tier.labels.items() if key not in tier.evaluations}
            found = store.evaluations(list(open_ids.values()), tier.key)
            tier.evaluations |= {key: found[value] for key, value in open_ids.items() if value in found}

    # what happened ----------------------------------------------------------------------------------------------------

    @property
    def next_stage(self) -> tuple[int, str]:
        """First stage that is not done; its round may lie beyond the last of the settings."""
        round = 0
        while True:
            for stage in STAGES:
                if (round, stage) not in self.done:
                    return round, stage
            round += 1

    def records(self, kind: type[R]) -> dict[int, R]:
        """What one stage recorded, by round, the first round first."""
        found = {step.round: step.record for step in self.done.values() if isinstance(step.record, kind)}
        return dict(sorted(found.items()))

    def record(self, round: int, kind: type[R]) -> R:
        """What a stage of a round recorded, for example ``history.record(0, Proposed).funnel``.

        Raises:
            KeyError: it is not done.
        """
        return self.records(kind)[round]

    def picks(self, round: int | None = None) -> list[Pick]:
        """What was chosen for labelling, in order, in one round or in all."""
        chosen = self.records(Selected).items()
        return [pick for number, selected in chosen if round in (None, number) for pick in selected.picks]

    def labels(self, round: int | None = None, *, hull: dict[str, HullPoint] | None = None) -> list[Label]:
        """Picks that have their outcome, each judged on the newest hull that the campaign knows, or on the one given.

        Args:
            round: of these picks; None: of all.
            hull: energy above the hull and decomposition by candidate id, as a report keeps them.
        """
        newest = self._newest_hull() if hull is None else hull
        return [
            self._label(pick, first, newest.get(pick.candidate_id))
            for pick in self.picks(round)
            if (first := self.evaluations.get(pick.candidate_id)) is not None
        ]

    def _label(self, pick: Pick, first: Evaluation, judged: HullPoint | None) -> Label:
        key = pick.candidate_id
        if key not in self.candidates:
            raise StoreError(f"The ledger holds a label of {key} but not the crystal itself.")
        stage = self.records(Labelled).get(pick.round)
        relaxed = stage.novelty.get(key, Novelty()) if stage else Novelty()
        kind = stage.prototypes.get(key, Prototype()) if stage else Prototype()
        tiers = {name: tier.evaluations[key] for name, tier in self.tiers.items() if key in tier.evaluations}
        for name, higher in tiers.items():
            first = with_tier(first, name, higher)
        evaluation = _on_newest_hull(first, judged, self.settings.stability)
        return Label(
            self.candidates[key], pick, evaluation, first, relaxed.kind, relaxed.match, tiers, kind.name, kind.parent
        )

    def reports(self) -> list[RoundReport]:
        """Reports of the finished rounds, each as written then; `loop.report.summary.reports_now` judges today."""
        return [reported.report for reported in self.records(Reported).values()]

    def learning_rows(self) -> list[dict[str, Any]]:
        """One row per iteration of fine-tuning, with its round."""
        return [{"round": round, **row} for round, tuned in self.records(Finetuned).items() for row in tuned.rows]

    def seconds(self) -> float:
        """Working time recorded so far."""
        return float(sum(step.seconds for step in self.done.values()))

    def phases(self) -> dict[str, list[HullEntry]]:
        """Reference phases by chemical system, as the newest report kept them; earlier ledgers hold none."""
        newest = self._newest_report()
        kept = newest.phases if newest else {}
        return {system: [HullEntry(*phase) for phase in phases] for system, phases in kept.items()}

    def _newest_hull(self) -> dict[str, HullPoint]:
        newest = self._newest_report()
        return newest.hull if newest else {}

    def _newest_report(self) -> Reported | None:
        found = self.records(Reported)
        return found[max(found)] if found else None


def with_tier(evaluation: Evaluation, name: str, found: Evaluation) -> Evaluation:
    """An evaluation with the properties that a tier found, under the tier's name."""
    if not found.ok:
        return evaluation
    properties = {f"{name}_{key}": quantity for key, quantity in found.properties.items()}
    return replace(evaluation, properties={**evaluation.properties, **properties})


def _on_newest_hull(evaluation: Evaluation, judged: HullPoint | None, stability: str) -> Evaluation:
    if judged is None or stability not in evaluation.properties:
        return evaluation
    quantity = Quantity(judged.value, evaluation.properties[stability].unit, evaluation.properties[stability].std)
    return replace(evaluation.with_properties(**{stability: quantity}), decomposition=judged.decomposition)
