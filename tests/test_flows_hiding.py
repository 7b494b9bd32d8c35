"""Planted keys and passwords: in nothing that a campaign writes, prints or logs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import build, cli, configfile, plain
from flows.cli import app
from flows.config import CampaignConfig
from flows.hiding import hidden
from loop.settings import CampaignSettings
from tests.fakes import fake_components

KEY, PASSWORD = "planted-key-84c1f", "planted-pass-5d20e"


@pytest.fixture(autouse=True)
def _planted(monkeypatch, tmp_path):
    monkeypatch.setenv("MP_API_KEY", KEY)
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    monkeypatch.setenv("DISCOVERY_LOOP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


def holding(folder: Path, *secrets: str) -> list[str]:
    """Files in which a secret stands, in any of its bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


class Components:
    """Context manager in place of `build.components`."""

    def __init__(self, *_):
        pass

    def __enter__(self):
        return fake_components()

    def __exit__(self, *_):
        pass


def test_a_campaign_writes_no_secret(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "components", Components)
    # SQLite's URLs take parameters that it ignores: so the whole campaign runs with a password in its ledger's URL
    store = f"sqlite:///{tmp_path}/ledger.db?cached_statements=${{DB_PASSWORD}}"
    monkeypatch.setenv("DB_PASSWORD", "128128128")
    configfile.dump(
        CampaignConfig(campaign=CampaignSettings(name="c", rounds=1, pool=12, budget=4), store=store),
        tmp_path / "c.yaml",
    )
    done = CliRunner().invoke(app, ["run", "c.yaml", "--results", "r", "--json"])
    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "r" / "report.html").exists()
    assert holding(tmp_path, KEY, "128128128") == []
    for text in (done.stdout, done.stderr):
        assert KEY not in text
        assert "128128128" not in text
    exported = CliRunner().invoke(app, ["export", "r", "-o", "all.zip"])
    assert exported.exit_code == 0
    assert holding(tmp_path, KEY, "128128128") == []


def test_an_unreachable_database_tells_no_password(tmp_path, monkeypatch):
    pytest.importorskip("psycopg")
    monkeypatch.setattr(build, "components", Components)
    store = "postgresql+psycopg://me:${DB_PASSWORD}@127.0.0.1:1/x"
    configfile.dump(CampaignConfig(campaign=CampaignSettings(name="c"), store=store), tmp_path / "c.yaml")
    done = CliRunner().invoke(app, ["run", "c.yaml", "--results", "r"])
    assert done.exit_code == 1
    assert PASSWORD not in done.stdout + done.stderr
    assert holding(tmp_path, PASSWORD) == []


def test_a_password_in_the_file_is_refused_and_not_repeated(tmp_path):
    store = f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:1/x"
    configfile.dump(CampaignConfig(campaign=CampaignSettings(name="c"), store=store), tmp_path / "c.yaml")
    done = CliRunner().invoke(app, ["run", "c.yaml", "--results", "r"])
    assert done.exit_code == 1
    assert "${DB_PASSWORD}" in done.stderr
    assert PASSWORD not in done.stderr
    assert not (tmp_path / "r").exists()


def test_the_log_of_an_unexpected_error_holds_none(tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError(f"no answer from https://api.example.org?key={KEY}")

    monkeypatch.setattr(plain, "run_campaign", broken)
    monkeypatch.setattr(cli.sys, "argv", ["discovery-loop", "--set", f"store=postgresql://me:{PASSWORD}@host/x"])
    done = CliRunner().invoke(app, ["run", "smoke"])
    assert done.exit_code == 1
    logs = list((tmp_path / "home").glob("error-*.log"))
    assert logs
    assert "***" in logs[0].read_text()
    assert holding(tmp_path, KEY, PASSWORD) == []
    assert KEY not in done.stderr


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql+psycopg://me:hunter2@host/x", "postgresql+psycopg://me:***@host/x"),
        ("two: a://u:p@h b://v:q@w", "two: a://u:***@h b://v:***@w"),
        ("http://127.0.0.1:4200/api and a@b", "http://127.0.0.1:4200/api and a@b"),
        (f"key={KEY}", "key=***"),
    ],
)
def test_hidden(text, shown):
    assert hidden(text) == shown
