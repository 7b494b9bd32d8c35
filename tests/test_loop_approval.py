"""Asking a person before an expensive tier: by file, by command, by default."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from datetime import timedelta

import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from loop import approval
from loop.approval import ApprovalRule
from loop.campaign import Campaign
from loop.errors import ConfigError, InputError
from loop.history import History
from loop.settings import CampaignSettings
from loop.store import Store
from loop.tiers import Tier
from loop.values import Evaluation, Quantity
from tests.fakes import FakeOracle, fake_components

SETTINGS = CampaignSettings(name="asks", rounds=1, pool=24, budget=6)


class Dear(FakeOracle):
    """The tier above."""

    name, settings_hash = "dear@1", "d"

    def _evaluate(self, candidate):
        self.evaluated.append(candidate.id)
        return Evaluation(candidate.id, self.name, self.settings_hash, "ok", {"gap": Quantity(1.0, "eV")})


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(approval, "LOOK_SECONDS", 0.05)


def run(folder, rule, dear=None):
    dear = dear or Dear()
    parts = replace(fake_components(), tiers=(Tier("dft", dear, 2, approval=rule),))
    with Store(folder / "campaign.db") as store, Campaign(SETTINGS, parts, store, folder) as campaign:
        campaign.run()
    return dear


def later(act):
    """Do something once a question is there, for each of the two rounds."""

    def work():
        for _ in range(2):
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not act():
                time.sleep(0.05)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("options", "calls"), [(["--budget", "1"], 2), ([], 4), (["--reject"], 0), (["--budget", "3"], 6)]
)
def test_a_command_decides(tmp_path, options, calls):
    thread = later(lambda: CliRunner().invoke(app, ["approve", str(tmp_path), *options]).exit_code == 0)
    dear = run(tmp_path, ApprovalRule(hours=1))
    thread.join()
    assert len(dear.evaluated) == calls
    with Store(tmp_path / "campaign.db") as store:
        events = [event.payload for event in store.events("asks") if event.kind == "approval"]
        assert len(History.load(store, "asks").reports()) == 2
    assert {(event["tier"], event["by"]) for event in events} == {("dft", "a person")}
    said = yaml.safe_load((tmp_path / "approvals" / "round_000_dft.yaml").read_text())
    assert {"E above hull (eV/atom)", "formula", "candidate"} <= {key for row in said["candidates"] for key in row}


@pytest.mark.parametrize(("otherwise", "calls"), [("reject", 0), ("approve", 4)])
def test_the_deadline_decides_by_default(tmp_path, otherwise, calls):
    dear = run(tmp_path, ApprovalRule(hours=0.1 / 3600, otherwise=otherwise))
    assert len(dear.evaluated) == calls


def test_a_hand_written_answer_counts_and_nonsense_does_not(tmp_path):
    rows = [{"formula": "NaCl"}, {"formula": "MgO"}]
    path = tmp_path / "approvals" / "round_001_dft.yaml"
    question = approval.ask(path, "c", 1, "dft", ApprovalRule(), rows)
    assert approval.answered(question) is None
    text = path.read_text()
    for nonsense in ("decision: maybe", "decision: [", "decision: approve\nbudget: -1", "decision: approve\nbudget: x"):
        path.write_text(f"{nonsense}\n")
        assert approval.answered(question) is None
    path.write_text(text.replace("decision: null", "decision: approve").replace("budget: 2", "budget: 1"))
    assert approval.answered(question) == approval.Answer("approve", 1, "a person")
    assert approval.answered(replace(question, deadline=question.deadline - timedelta(days=9))).crystals == 1


def test_a_question_is_asked_once_with_one_deadline(tmp_path):
    path = tmp_path / "approvals" / "q.yaml"
    first = approval.ask(path, "c", 1, "dft", ApprovalRule(hours=2), [{"formula": "NaCl"}])
    assert approval.ask(path, "c", 1, "dft", ApprovalRule(hours=9), [{"formula": "NaCl"}]) == first


def test_an_answer_is_about_the_crystals_that_were_shown(tmp_path):
    """A former version asked about copper, too; what goes up now is another list, or nothing."""
    path = tmp_path / "approvals" / "q.yaml"
    former = approval.ask(path, "c", 1, "dft", ApprovalRule(), [{"candidate": "cu"}, {"candidate": "mgo"}])
    approval.answer(former, "approve")
    again = approval.ask(path, "c", 1, "dft", ApprovalRule(), [{"candidate": "mgo"}])
    assert [row["candidate"] for row in again.candidates] == ["mgo"]
    assert approval.answered(again) is None
    approval.withdraw(path)
    assert approval.open_questions(tmp_path) == []
    approval.answer(approval.ask(path, "c", 1, "dft", ApprovalRule(), []), "reject")
    approval.withdraw(path)  # what a person said stays
    assert path.exists()


def test_refusals(tmp_path):
    with pytest.raises(ConfigError, match="hours above 0"):
        ApprovalRule(hours=0)
    done = CliRunner().invoke(app, ["approve", str(tmp_path)])
    assert done.exit_code == 1
    assert "no campaign waits for an answer here" in done.stderr
    question = approval.ask(tmp_path / "approvals" / "q.yaml", "c", 1, "dft", ApprovalRule(), [])
    with pytest.raises(InputError, match="expected approve or reject"):
        approval.answer(question, "perhaps")
    question.path.write_text("no question")
    with pytest.raises(InputError, match="key: value"):
        approval.read_question(question.path)
