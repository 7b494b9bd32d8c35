"""What stages record, and ledgers that were written before the records had types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.narrative import told
from loop.errors import StoreError
from loop.history import DONE, History
from loop.settings import STAGES, CampaignSettings
from loop.stages import (
    RECORDS,
    Finetuned,
    Funnel,
    Labelled,
    Novelty,
    Proposed,
    Reported,
    Retrained,
    Selected,
    Step,
    timed,
)
from loop.store import Store
from loop.values import RoundReport

EVENTS = json.loads((Path(__file__).parent / "ledgers" / "smoke.json").read_text())  # of the smoke preset, at b5cd0c9
STAGE_EVENTS = [event for event in EVENTS if event["kind"] == DONE]


def early(payload):
    """A payload as the first version wrote it: `valid` for `accepted`, and nothing that was added since."""
    added = ("guards", "matches", "prototypes", "rungs", "objective")
    payload = json.loads(json.dumps({key: value for key, value in payload.items() if key not in added}))
    for funnel in (payload.get("funnel"), payload.get("report", {}).get("funnel")):
        if funnel:
            funnel["valid"] = funnel.pop("accepted")
    for pick in payload.get("picks", ()):
        del pick["match"]
    return payload


def history_of(folder, change=lambda payload: payload):
    with Store(folder / "old.db") as store:
        for event in EVENTS:
            payload = change(event["payload"]) if event["kind"] == DONE else event["payload"]
            store.append("smoke", event["round"], event["stage"], event["kind"], payload)
        return History.load(store, "smoke")


@pytest.mark.parametrize("event", STAGE_EVENTS, ids=lambda event: f"{event['round']}-{event['stage']}")
def test_a_payload_of_before_is_read_and_written_to_the_letter(event):
    step = Step.from_dict(event["round"], event["stage"], event["payload"])
    assert type(step.record) is RECORDS[event["stage"]]
    written = json.loads(json.dumps(step.to_dict()))
    assert {key: written.pop(key) for key in event["payload"]} == event["payload"]
    assert not any(written.values())  # what was added since says nothing of such a ledger
    assert told(step.record)


@pytest.mark.parametrize("change", [dict, early])
def test_a_ledger_of_before_opens(tmp_path, change):
    history = history_of(tmp_path, change)
    assert sorted(history.done) == [(round, stage) for round in range(3) for stage in sorted(STAGES)]
    assert [proposed.funnel.accepted for proposed in history.records(Proposed).values()] == [13, 26, 30]
    assert history.record(0, Proposed).funnel == Funnel(32, 32, 13, 13, 5, 5)
    assert [len(history.picks(round)) for round in range(3)] == [5, 4, 4]
    assert [pick.round for pick in history.picks()] == [0] * 5 + [1] * 4 + [2] * 4
    assert [labelled.paid for labelled in history.records(Labelled).values()] == [5, 4, 4]
    assert history.record(0, Labelled).novelty["a16b3e7f70444ab4"] == Novelty("new", "")
    assert history.record(0, Selected).random
    assert not history.record(1, Selected).random
    assert [retrained.labels for retrained in history.records(Retrained).values()] == [5, 9, 12]
    assert [report.funnel["accepted"] for report in history.reports()] == [13, 26, 30]
    assert history.record(2, Reported).hull["a16b3e7f70444ab4"].value == pytest.approx(0.6482, abs=1e-4)
    assert len(history.learning_rows()) == 6
    assert history.seconds() > 30
    with pytest.raises(KeyError):
        history.record(3, Proposed)


@pytest.mark.parametrize("payload", [{}, {"funnel": {"asked": 3}}, {"funnel": {"asked": "many"}}])
def test_a_damaged_record_is_one_clear_message(payload):
    with pytest.raises(StoreError, match=r"record of stage 'propose' of round 4 cannot be read"):
        Step.from_dict(4, "propose", payload)


def test_a_report_counts_its_own_seconds():
    report = RoundReport(0, {}, {}, {"label": 2.0})
    assert timed(Reported(report), 3.0).report.seconds == {"label": 2.0, "report": 3.0}
    assert timed(Finetuned(), 3.0) == Finetuned()
    assert report.seconds == {"label": 2.0}  # what is frozen stays


def test_every_stage_has_a_record():
    assert tuple(RECORDS) == STAGES
    assert CampaignSettings().seed_for(0, Labelled.stage) != CampaignSettings().seed_for(0, Selected.stage)
