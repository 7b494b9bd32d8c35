"""The Prefect flow on the fakes, against a real (temporary) Prefect server."""

from __future__ import annotations

import contextvars
import csv
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

pytest.importorskip("prefect")

from flows import build, outcome
from flows.config import CampaignConfig
from loop import approval
from loop.approval import ApprovalRule
from loop.settings import CampaignSettings
from loop.store import Store
from loop.tiers import Tier
from tests.fakes import FakeGenerator, FakeOracle, fake_components


@pytest.fixture(scope="module")
def prefect_server():
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with (
        prefect_test_harness(server_startup_timeout=120),
        temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
    ):
        yield


@pytest.fixture
def fakes(monkeypatch):
    """Let the flow build its campaign from fakes, without the report's figures; returns the oracle."""
    oracle = FakeOracle()
    monkeypatch.setattr(outcome, "write_report", lambda _, directory: directory / "report.html")

    @contextmanager
    def parts(*_):
        yield fake_components(FakeGenerator(), oracle)

    monkeypatch.setattr(build, "components", parts)
    return oracle


def write_config(path, **settings):
    from flows import configfile

    configfile.dump(CampaignConfig(campaign=CampaignSettings(**settings)), path)
    return str(path)


@pytest.mark.usefixtures("prefect_server")
def test_flow_gives_the_plain_campaign(tmp_path, fakes, monkeypatch):
    from prefect.client.orchestration import get_client

    from flows.discovery import discovery_loop

    config = write_config(tmp_path / "c.yaml", name="Two Rounds", rounds=2, pool=12, budget=5, chunk=2)
    summary = discovery_loop(config, str(tmp_path / "flow"))
    assert summary["rounds_done"] == 2
    assert summary["oracle_calls"] == len(fakes.evaluated) == len(set(fakes.evaluated)) == 15

    from flows.config import read_config

    with build.open_campaign(read_config(config), tmp_path / "plain") as campaign:
        campaign.run()
    flow_rows, plain_rows = ((tmp_path / name / "ranked.csv").read_text() for name in ("flow", "plain"))
    assert flow_rows == plain_rows

    with get_client(sync_client=True) as client:
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts(sort="CREATED_DESC", limit=200)}
        names = sorted(run.name for run in client.read_task_runs())
    kinds = ("ranked", "progress", "report", "best", "figures", "cost")
    assert {f"two-rounds-{kind}" for kind in kinds} <= set(artifacts)
    assert artifacts["two-rounds-progress"].data == 100
    assert artifacts["two-rounds-progress"].description == "finished: all rounds are done"
    assert artifacts["two-rounds-figures"].data.count("](data:image/svg+xml;base64,") >= 4
    (first, *_, everything) = json.loads(artifacts["two-rounds-cost"].data)
    assert {"s per label", "core-hours left", "hours left"} <= set(first) == set(everything)  # else they are not shown
    assert everything["hours"] > 0
    assert "round 1: finetune" in names
    assert "round 2: label piece 1" in names


@pytest.mark.usefixtures("prefect_server")
def test_a_second_run_labels_nothing_again(tmp_path, fakes):
    from flows.discovery import discovery_loop

    config = write_config(tmp_path / "c.yaml", name="again", rounds=1, pool=12, budget=4)
    first = discovery_loop(config, str(tmp_path / "r"))
    assert discovery_loop(config, str(tmp_path / "r")) == first
    assert len(fakes.evaluated) == 8
    longer = discovery_loop(config, str(tmp_path / "r"), rounds=2)
    assert longer["rounds_done"] == 2
    assert len(fakes.evaluated) == 12


@pytest.mark.usefixtures("prefect_server")
def test_a_failed_artifact_does_not_end_the_campaign(tmp_path, fakes, monkeypatch):
    from flows.artifacts import Watcher
    from flows.discovery import discovery_loop

    def away(*_):
        raise ConnectionError("server away")

    for name in ("_show_ranked", "_show_progress", "_show_report", "_show_best", "_show_figures", "_show_costs"):
        monkeypatch.setattr(Watcher, name, away)
    config = write_config(tmp_path / "c.yaml", name="away", rounds=1, pool=12, budget=4)
    assert discovery_loop(config, str(tmp_path / "r"))["rounds_done"] == 1


@pytest.mark.usefixtures("prefect_server")
def test_a_bad_configuration_fails_the_run_with_its_message(tmp_path):
    from flows.discovery import discovery_loop

    state = discovery_loop("smoke", str(tmp_path / "r"), overrides={"campaign.round": 2}, return_state=True)
    assert state.is_failed()
    assert "did you mean 'rounds'" in state.message


@pytest.mark.usefixtures("prefect_server")
def test_a_run_looks_for_the_goal_of_its_form(tmp_path, fakes):
    from flows.discovery import discovery_loop

    config = write_config(tmp_path / "c.yaml", name="soft", rounds=1, pool=24, budget=8)
    summary = discovery_loop(config, str(tmp_path / "r"), goal={"minimise": "bulk_modulus", "stable": 0.3})
    assert summary["goal"].startswith("minimise bulk modulus (GPa)")
    rows = list(csv.DictReader((tmp_path / "r" / "ranked.csv").read_text().splitlines()))
    found = [float(row["bulk_modulus"]) for row in rows if row["group"] == "find"]
    assert found == sorted(found)
    assert len(set(found)) > 1
    assert all(float(row["e_above_hull"]) <= 0.3 for row in rows if row["group"] == "find")


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({"maximise": "gold"}, "goal.maximise"),
        ({"value": 1.0}, "goal: Value error, value is of no use without target"),
        ({"maximise": "shear_modulus"}, "goal.maximise 'shear_modulus': nothing measures it"),
    ],
)
def test_a_goal_that_makes_no_sense_fails_the_run_by_its_key(tmp_path, fakes, goal, said):
    from flows.discovery import discovery_loop

    state = discovery_loop("smoke", str(tmp_path / "r"), goal=goal, return_state=True)
    assert state.is_failed()
    assert said in state.message
    assert not (tmp_path / "r").exists()
    assert fakes.evaluated == []


@pytest.fixture
def asking(monkeypatch):
    """Let the flow build a campaign with a tier that asks first; returns that tier's oracle."""
    dear = FakeOracle()
    dear.name = "dear@1"
    monkeypatch.setattr(outcome, "write_report", lambda _, directory: directory / "report.html")
    monkeypatch.setattr(approval, "LOOK_SECONDS", 0.2)

    @contextmanager
    def parts(*_):
        yield replace(fake_components(), tiers=(Tier("dft", dear, 2, approval=ApprovalRule(hours=1)),))

    monkeypatch.setattr(build, "components", parts)
    return dear


def in_background(act):
    """Do something once it can be done, beside a flow."""

    def work():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not act():
            time.sleep(0.2)

    thread = threading.Thread(target=contextvars.copy_context().run, args=(work,), daemon=True)
    thread.start()
    return thread


@pytest.mark.usefixtures("prefect_server")
def test_a_form_decides(tmp_path, asking):
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter

    from flows.discovery import discovery_loop

    paused = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PAUSED"]}}})
    refused = []

    def resume():
        with get_client(sync_client=True) as client:
            runs = client.read_flow_runs(flow_run_filter=paused)
            if not runs:
                return False
            wrong = client.resume_flow_run(runs[0].id, run_input={"decision": "perhaps", "budget": 1})
            refused.append(str(wrong.status))
            client.resume_flow_run(runs[0].id, run_input={"decision": "approve", "budget": 1})
            return True

    config = write_config(tmp_path / "c.yaml", name="form", rounds=0, pool=24, budget=6)
    thread = in_background(resume)
    summary = discovery_loop(config, str(tmp_path / "r"))
    thread.join()
    assert summary["campaign"] == "form"
    assert "REJECT" in refused[0]
    assert len(asking.evaluated) == 1
    with Store(tmp_path / "r" / "campaign.db") as store:
        events = [event.payload for event in store.events("form") if event.kind == "approval"]
    assert events == [{"tier": "dft", "decision": "approve", "budget": 1, "by": "the form"}]


@pytest.mark.usefixtures("prefect_server")
def test_a_file_decides_while_the_form_is_shown(tmp_path, asking):
    from flows.discovery import discovery_loop

    config = write_config(tmp_path / "c.yaml", name="file", rounds=0, pool=24, budget=6)
    done = in_background(lambda: [approval.answer(q, "reject") for q in approval.open_questions(tmp_path / "r")])
    assert discovery_loop(config, str(tmp_path / "r"))["campaign"] == "file"
    done.join()
    assert asking.evaluated == []


class Heard(BaseHTTPRequestHandler):
    """Keeps what is posted."""

    messages: ClassVar[list[bytes]] = []

    def do_POST(self):
        self.messages.append(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.usefixtures("prefect_server")
def test_people_are_told_by_blocks_and_a_broken_one_is_no_harm(tmp_path, fakes, caplog):
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    from flows import configfile
    from flows.discovery import discovery_loop

    with ThreadingHTTPServer(("127.0.0.1", 0), Heard) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{httpd.server_port}/hook?key=s3cret"
        block = CustomWebhookNotificationBlock(
            name="hook", url=url, json_data={"title": "{{subject}}", "text": "{{body}}"}
        )
        block.save("hook", overwrite=True)
        path = tmp_path / "c.yaml"
        settings = CampaignSettings(name="told", rounds=0, pool=12, budget=4)
        blocks = ["custom-webhook/hook", "slack-webhook/absent"]
        configfile.dump(CampaignConfig(campaign=settings, notify=blocks), path)
        discovery_loop(str(path), str(tmp_path / "r"))
        httpd.shutdown()
    assert [b"told is done" in message for message in Heard.messages] == [True]
    assert "slack-webhook/absent could not be used" in caplog.text
    assert "s3cret" not in caplog.text


def test_keys_of_artifacts():
    from flows.artifacts import slug

    assert slug("My Campaign_2") == "my-campaign-2"
    assert slug("é") == "campaign"


def test_ledger_url_keeps_its_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("PW", "s3cret")
    config = CampaignConfig(store="sqlite:///${PW}.db", campaign=CampaignSettings(name="x"))
    assert config.ledger(tmp_path) == "sqlite:///s3cret.db"
    assert "s3cret" not in config.model_dump_json()
    assert Store(CampaignConfig().ledger(tmp_path)).name.endswith("campaign.db")


def test_the_form_of_a_question_shows_what_decides_first(tmp_path):
    from flows.approval_form import described
    from loop.approval import ApprovalRule, ask

    rows = [{"candidate": "5a34ab0e280e4bc8", "formula": "NaCl", "E above hull (eV/atom)": 0.01}]
    text = described(ask(tmp_path / "q.yaml", "mine", 1, "dft", ApprovalRule(), rows))
    assert "would send 1 crystal to dft" in text
    assert "| formula | E above hull (eV/atom) | candidate |" in text
