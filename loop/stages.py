"""What each stage of a round records: frozen values, with the JSON form in which the ledger keeps them.

A record is what later stages, reports, Prefect and exports read; nothing else of a stage is kept. Fields that were
added later have a default, so that ledgers of earlier versions open.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any, ClassVar, NamedTuple, Self

from loop.errors import StoreError
from loop.values import NEW, RoundReport


@dataclass(frozen=True)
class Funnel:
    """How many crystals are left, from what was asked of the generator down to the pool."""

    asked: int
    sampled: int  # fewer where a sample is no crystal
    accepted: int  # by the validity rules
    unique: int
    new: int  # in no reference, and not labelled before
    pool: int  # what is selected from: the new ones, and known ones where the settings allow them


class Novelty(NamedTuple):
    """Verdict on a relaxed crystal, and the id of the crystal that it matches (empty for a new one)."""

    kind: str = ""
    match: str = ""


class Prototype(NamedTuple):
    """Prototype of a relaxed crystal, see `loop.prototypes`; parent: fcc, bcc, hcp, or empty."""

    name: str = ""
    parent: str = ""


@dataclass(frozen=True)
class HullPoint:
    """A crystal on the hull that holds all of a campaign's finds."""

    value: float  # of the campaign's stability property, eV/atom
    decomposition: dict[str, float]  # phase -> fraction of atoms


class KnownPhase(NamedTuple):
    """A reference phase, kept for the phase diagrams of a report."""

    formula: str
    energy: float  # eV/atom
    id: str


@dataclass(frozen=True)
class Pick:
    """A candidate chosen for labelling, with what was predicted of it before the label."""

    candidate_id: str
    round: int
    arm: str  # baseline, engine or shadow
    novelty: str = NEW
    match: str = ""  # of the crystal as proposed: id of the known crystal that it is
    screen: float | None = None  # energy above the hull of the unrelaxed crystal, eV/atom
    mean: dict[str, float] = field(default_factory=dict)  # prediction, by property
    std: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finetuned:
    """The policy of the round is saved; in round 0 it is the untuned generator, and there are no rows."""

    stage: ClassVar[str] = "finetune"
    rows: tuple[dict[str, Any], ...] = ()  # metrics of each iteration, see docs/rl.md
    guards: dict[str, int] = field(default_factory=dict)  # how often each guard of the reward was triggered


@dataclass(frozen=True)
class Proposed:
    """The pool is saved; verdicts and matches follow its order."""

    stage: ClassVar[str] = "propose"
    funnel: Funnel
    invalid: dict[str, int] = field(default_factory=dict)  # how many broke each validity rule
    verdicts: tuple[str, ...] = ()  # new or known, of each crystal of the pool
    matches: tuple[str, ...] = ()  # ids of the known crystals that they are
    replayed: int = 0  # known crystals that the shipped generator was trained on
    known: tuple[str, ...] = ()  # ids of known crystals that were proposed, at most 50
    elements: dict[str, int] = field(default_factory=dict)  # how many valid crystals hold each element


@dataclass(frozen=True)
class Selected:
    """What is labelled, and what was predicted of the whole pool: the labels are the test of that."""

    stage: ClassVar[str] = "select"
    picks: tuple[Pick, ...]
    pool_mean: dict[str, list[float]] = field(default_factory=dict)  # predictions for the pool, by property
    pool_screen: tuple[float, ...] = ()  # energies above the hull of the unrelaxed pool, eV/atom, where there are any
    random: bool = False  # no surrogate was trained: the engine's picks are random, too


@dataclass(frozen=True)
class Labelled:
    """All picks have an outcome, and their relaxed crystals are judged."""

    stage: ClassVar[str] = "label"
    statuses: dict[str, int]
    paid: int  # oracle calls of this campaign; labels of another one that shares the ledger are free
    novelty: dict[str, Novelty] = field(default_factory=dict)  # by candidate id
    prototypes: dict[str, Prototype] = field(default_factory=dict)  # by candidate id
    tiers: dict[str, int] = field(default_factory=dict)  # how many went on to each costlier oracle


@dataclass(frozen=True)
class Retrained:
    """The surrogate's fit is saved, unless there was no usable label."""

    stage: ClassVar[str] = "retrain"
    metrics: dict[str, float]
    labels: int


@dataclass(frozen=True)
class Reported:
    """The round summed up, and all finds on the hull that holds them."""

    stage: ClassVar[str] = "report"
    report: RoundReport
    hull: dict[str, HullPoint] = field(default_factory=dict)  # by candidate id
    objective: str = "objective"  # heading with unit; earlier ledgers do not say it
    phases: dict[str, tuple[KnownPhase, ...]] = field(default_factory=dict)  # by chemical system such as Li-O


StageRecord = Finetuned | Proposed | Selected | Labelled | Retrained | Reported
RECORDS: dict[str, type[StageRecord]] = {
    kind.stage: kind for kind in (Finetuned, Proposed, Selected, Labelled, Retrained, Reported)
}


@dataclass(frozen=True)
class Step:
    """One stage of one round that is done: what a driver of a campaign gets."""

    round: int
    stage: str
    record: StageRecord
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Payload of the ledger's event, JSON-ready; the round stands beside it in the ledger."""
        payload = {**asdict(self.record), "seconds": self.seconds}
        for pick in payload.get("picks", ()):
            del pick["round"]
        return payload | ({"rungs": payload.pop("tiers")} if "tiers" in payload else {})

    @classmethod
    def from_dict(cls, round: int, stage: str, payload: dict[str, Any]) -> Self:
        """Inverse of `to_dict`, for payloads of this and of earlier versions.

        Raises:
            StoreError: the payload is no record of this stage.
        """
        from pydantic import ValidationError

        payload = _with_accepted(payload)
        payload = payload | ({"tiers": payload["rungs"]} if "rungs" in payload else {})
        if "picks" in payload:
            payload = payload | {"picks": [{**pick, "round": round} for pick in payload["picks"]]}
        try:
            record = _reader(stage).validate_python(payload)
        except (KeyError, ValidationError) as error:
            raise StoreError(
                f"The ledger's record of stage {stage!r} of round {round} cannot be read ({error}): it was written by "
                "a later version of discovery-loop, or changed by hand."
            ) from error
        return cls(round, stage, record, float(payload.get("seconds", 0.0)))


@dataclass(frozen=True)
class Submitted:
    """Who was sent to a costlier oracle, or came back from people: an event of its own, before the label stage ends."""

    tier: str
    oracle: str  # name@version
    settings: str  # hash of everything that changes the result
    labels: dict[str, str]  # candidate id -> id of the crystal that is measured
    chosen: bool = False  # the campaign picked those of a round
    arms: dict[str, str] = field(default_factory=dict)  # candidate id -> who picked it; none in earlier ledgers

    def to_dict(self) -> dict[str, Any]:
        """Payload of the ledger's event, whose keys are those of the first version: a tier was called a rung."""
        payload = asdict(self)
        return {"rung": payload.pop("tier"), **payload}

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(**{"tier" if key == "rung" else key: value for key, value in payload.items()})


def timed(record: StageRecord, seconds: float) -> StageRecord:
    """A record that knows how long its stage took: a report counts itself among the stages of its round."""
    if not isinstance(record, Reported):
        return record
    took = record.report.seconds | {record.stage: seconds}
    return replace(record, report=replace(record.report, seconds=took))


@cache
def _reader(stage: str) -> Any:
    from pydantic import TypeAdapter  # 0.1 s, only where a campaign is read

    return TypeAdapter(RECORDS[stage])


def _with_accepted(payload: dict[str, Any]) -> dict[str, Any]:
    """Counts of early ledgers under their present name: what passes the campaign's rules is `accepted`."""
    if "valid" in payload.get("funnel", {}):
        funnel = {"accepted" if key == "valid" else key: value for key, value in payload["funnel"].items()}
        return payload | {"funnel": funnel}
    if "valid" in payload.get("report", {}).get("funnel", {}):
        inner = _with_accepted(payload["report"])
        return payload | {"report": inner}
    return payload
