"""A campaign as its ledger tells it: a read-only fold over events, candidates and evaluations.

`Campaign` adds to it; reports, exports and status need nothing else, no generator and no oracle.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

from loop.errors import StoreError
from loop.hull import HullEntry
from loop.rungs import RUNG, RungHistory, with_rung
from loop.settings import STAGES, CampaignSettings
from loop.stability import SUSPECT, is_suspect
from loop.store import OracleKey, Store
from loop.values import NEW, Candidate, Evaluation, Quantity, RoundReport

CAMPAIGN = "campaign"  # stage of the events that belong to no stage
CREATED, SETTINGS, DONE, STOPPED = "created", "settings", "done", "stopped"
NOT_JUDGED = "not judged"  # labelled in a round whose label stage is not done


@dataclass(frozen=True)
class Pick:
    """A candidate chosen for labelling, with what was believed of it before the label."""

    candidate_id: str
    round: int
    arm: str  # baseline, engine or shadow
    novelty: str = NEW
    match: str = ""  # of the crystal as proposed: id of the known crystal that it is
    screen: float | None = None  # energy above the hull of the unrelaxed crystal, eV/atom
    mean: dict[str, float] = field(default_factory=dict)  # prediction, by property
    std: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form, without the round."""
        names = ("candidate_id", "arm", "novelty", "match", "screen", "mean", "std")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Label:
    """A pick with its outcome."""

    candidate: Candidate
    pick: Pick
    evaluation: Evaluation  # on the newest hull of the campaign
    first: Evaluation  # as the oracle gave it
    novelty_relaxed: str = ""  # verdict on the relaxed crystal
    match_relaxed: str = ""  # what that is a copy of, where it is one
    rungs: dict[str, Evaluation] = field(default_factory=dict)  # of dearer oracles, by name of the rung
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
class History:
    """Fold over the events of one campaign."""

    name: str
    settings: CampaignSettings
    oracle: OracleKey
    about: dict[str, Any]
    done: dict[tuple[int, str], dict[str, Any]]  # (round, stage) -> payload
    stopped: str
    candidates: dict[str, Candidate]
    evaluations: dict[str, Evaluation]
    paid: int
    rungs: dict[str, RungHistory] = field(default_factory=dict)  # dearer oracles, by name
    begun: float = 0.0  # time of the first event, seconds since the epoch
    latest: float = 0.0  # and of the last one when this history was read

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
            self.done[round, stage] = _upgraded(payload)
        elif kind == SETTINGS:
            self.settings = CampaignSettings.from_dict(payload["settings"])
            self.stopped = ""
        elif kind == STOPPED:
            self.stopped = str(payload["reason"])
        elif kind == RUNG:
            key = OracleKey(payload["oracle"], payload["settings"])
            self.rungs.setdefault(payload["rung"], RungHistory(key)).apply(round, payload)

    def refresh(self, store: Store) -> None:
        """Read the labels of all picks from the ledger."""
        missing = [pick.candidate_id for pick in self.picks() if pick.candidate_id not in self.evaluations]
        self.evaluations |= store.evaluations(missing, self.oracle)
        self.paid = store.paid(self.name, self.oracle)
        for rung in self.rungs.values():
            open_ids = {key: value for key, value in rung.labels.items() if key not in rung.evaluations}
            found = store.evaluations(list(open_ids.values()), rung.key)
            rung.evaluations |= {key: found[value] for key, value in open_ids.items() if value in found}

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

    def picks(self, round: int | None = None) -> list[Pick]:
        """What was chosen for labelling, in order, in one round or in all."""
        found = []
        for (number, stage), payload in sorted(self.done.items()):
            if stage == "select" and round in (None, number):
                found += [Pick(round=number, **pick) for pick in payload["picks"]]
        return found

    def labels(self, round: int | None = None, *, hull: dict[str, Any] | None = None) -> list[Label]:
        """Picks that have their outcome, each judged on the newest hull that the campaign knows, or on the one given.

        Args:
            round: of these picks; None: of all.
            hull: energy above the hull and decomposition by candidate id, as a report keeps them.
        """
        newest = self._newest_hull() if hull is None else hull
        found = []
        for pick in self.picks(round):
            first = self.evaluations.get(pick.candidate_id)
            if first is None:
                continue
            if pick.candidate_id not in self.candidates:
                raise StoreError(f"The ledger holds a label of {pick.candidate_id} but not the crystal itself.")
            key = pick.candidate_id
            stage = self.done.get((pick.round, "label"), {})
            relaxed = stage.get("novelty", {}).get(key, ("", ""))
            kind = stage.get("prototypes", {}).get(key, ("", ""))
            rungs = {name: rung.evaluations[key] for name, rung in self.rungs.items() if key in rung.evaluations}
            for name, higher in rungs.items():
                first = with_rung(first, name, higher)
            evaluation = _on_newest_hull(first, newest.get(key), self.settings.stability)
            found.append(
                Label(self.candidates[key], pick, evaluation, first, relaxed[0], relaxed[1], rungs, kind[0], kind[1])
            )
        return found

    def reports(self) -> list[RoundReport]:
        """Reports of the finished rounds."""
        payloads = [payload for (_, stage), payload in sorted(self.done.items()) if stage == "report"]
        return [RoundReport.from_dict(payload["report"]) for payload in payloads]

    def learning_rows(self) -> list[dict[str, Any]]:
        """One row an iteration of fine-tuning, with its round."""
        stages = sorted((key, payload) for key, payload in self.done.items() if key[1] == "finetune")
        return [{"round": round, **row} for (round, _), payload in stages for row in payload.get("rows", [])]

    def seconds(self) -> float:
        """Working time recorded so far."""
        return float(sum(payload.get("seconds", 0.0) for payload in self.done.values()))

    def phases(self) -> dict[str, list[HullEntry]]:
        """Reference phases by chemical system, as the newest report kept them; earlier ledgers hold none."""
        kept = self._newest("phases")
        return {system: [HullEntry(*entry) for entry in entries] for system, entries in kept.items()}

    def _newest_hull(self) -> dict[str, Any]:
        return self._newest("hull")

    def _newest(self, key: str) -> dict[str, Any]:
        """What the newest report that has it keeps under a key."""
        rounds = [number for (number, stage), payload in self.done.items() if stage == "report" and key in payload]
        return self.done[max(rounds), "report"][key] if rounds else {}


def _upgraded(payload: dict[str, Any]) -> dict[str, Any]:
    """Counts of earlier ledgers under their present name: what passes the campaign's rules is `accepted`."""
    for funnel in (payload.get("funnel"), payload.get("report", {}).get("funnel")):
        if funnel and "valid" in funnel:
            funnel["accepted"] = funnel.pop("valid")
    return payload


def _on_newest_hull(evaluation: Evaluation, judged: dict[str, Any] | None, stability: str) -> Evaluation:
    if judged is None or stability not in evaluation.properties:
        return evaluation
    quantity = Quantity(judged["value"], evaluation.properties[stability].unit, evaluation.properties[stability].std)
    return replace(evaluation.with_properties(**{stability: quantity}), decomposition=judged["decomposition"])
