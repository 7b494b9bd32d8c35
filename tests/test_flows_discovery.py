"""The Prefect flow on the fakes, against a real (temporary) Prefect server."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

pytest.importorskip("prefect")

from flows import build, outcome
from flows.config import CampaignConfig
from loop.settings import CampaignSettings
from loop.store import Store
from tests.fakes import FakeGenerator, FakeOracle, fake_parts


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
        yield fake_parts(FakeGenerator(), oracle)

    monkeypatch.setattr(build, "parts", parts)
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
        artifacts = {artifact.key: artifact for artifact in client.read_artifacts()}
        names = sorted(run.name for run in client.read_task_runs())
    assert {"two-rounds-ranked", "two-rounds-progress", "two-rounds-report"} <= set(artifacts)
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

    for name in ("_show_ranked", "_show_progress", "_show_report"):
        monkeypatch.setattr(Watcher, name, away)
    config = write_config(tmp_path / "c.yaml", name="away", rounds=1, pool=12, budget=4)
    assert discovery_loop(config, str(tmp_path / "r"))["rounds_done"] == 1


@pytest.mark.usefixtures("prefect_server")
def test_a_bad_configuration_fails_the_run_with_its_message(tmp_path):
    from flows.discovery import discovery_loop

    state = discovery_loop("smoke", str(tmp_path / "r"), overrides={"campaign.round": 2}, return_state=True)
    assert state.is_failed()
    assert "did you mean 'rounds'" in state.message


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
