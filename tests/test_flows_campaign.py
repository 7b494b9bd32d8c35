"""Campaigns from the command line: on the fakes, and once through the real rooms with a kill in the middle."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from itertools import product

import pandas as pd
import pytest
import yaml
from typer.testing import CliRunner

from flows import build, configfile, outcome, plain
from flows.cli import app
from flows.config import CampaignConfig
from loop.io.crystals import read_crystals
from loop.settings import CampaignSettings
from loop.store import OracleKey, Store
from loop.values import OK, Candidate, Cost, Evaluation
from tests.fakes import ANIONS, CATIONS, FakeGenerator, FakeOracle, fake_components, rocksalt


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def write_config(path, **settings):
    defaults = {"name": "fake", "rounds": 2, "pool": 12, "budget": 4, "chunk": 2}
    configfile.dump(CampaignConfig(campaign=CampaignSettings(**{**defaults, **settings})), path)
    return path


def leave_figures_out(monkeypatch):
    """Write no report: its figures take seconds, and some tests have them."""
    for module in (plain, outcome):
        monkeypatch.setattr(module, "write_report", lambda _, directory: directory / "report.html")


@pytest.fixture
def quick_report(monkeypatch):
    leave_figures_out(monkeypatch)


@pytest.fixture
def fakes(monkeypatch):
    """Campaigns are built from fakes; set `oracle` in it to another one."""
    chosen = {"oracle": FakeOracle()}

    @contextmanager
    def parts(*_):
        yield fake_components(FakeGenerator(), chosen["oracle"])

    monkeypatch.setattr(build, "components", parts)
    return chosen


def test_run_status_report_export(tmp_path, fakes):
    config, results = write_config(tmp_path / "c.yaml", rounds=1), tmp_path / "r"
    with pytest.MonkeyPatch.context() as patched:
        leave_figures_out(patched)
        done = run("run", config, "--results", results, "--json")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert (summary["rounds_done"], summary["rounds_planned"]) == (1, 1)
    assert summary["oracle_calls"] == len(fakes["oracle"].evaluated) == 8
    assert "round 1/1 report" in done.stderr
    for name in ("ranked.csv", "ranked.json", "record.json", "config.yaml", "campaign.db", "cifs"):
        assert (results / name).exists(), name
    record = json.loads((results / "record.json").read_text())
    assert record["made_with"]["versions"]["torch"]
    assert {"file", "sha256", "bytes"} <= set(record["files"][0])
    status = json.loads(run("status", results, "--json").stdout)
    assert status["state"] == "finished"
    assert run("report", results).exit_code == 0
    assert (results / "report.html").stat().st_size > 100_000
    for format in ("csv", "json", "cif", "poscar", "extxyz", "ase-db", "optimade", "zip"):
        made = run("export", results, "--format", format, "--output", tmp_path / f"out-{format}")
        assert made.exit_code == 0, made.stderr
        assert (tmp_path / f"out-{format}").exists()
    assert run("export", results, "--format", "docx", "--output", tmp_path / "x").exit_code == 2
    for name, format in {"x.cif": "cif", "folder": "cif", "x.csv": "csv", "x.vasp": "poscar", "x.db": "ase-db"}.items():
        made = run("export", results, "--output", tmp_path / name, "--json")
        assert json.loads(made.stdout)["format"] == format
        assert len(read_crystals(tmp_path / name).readable()) == json.loads(made.stdout)["rows"]
    refused = run("export", results, "--output", tmp_path / "x.xlsx")
    assert refused.exit_code == 1
    assert "expected a name ending in .csv, .json" in refused.stderr
    assert not (tmp_path / "x.xlsx").exists()
    written = json.loads(run("report", results, "--json").stdout)
    assert written == {"report": str(results / "report.html")}


@pytest.mark.usefixtures("quick_report")
def test_interrupt_then_resume_pays_for_nothing_twice(tmp_path, fakes):
    config, whole, results = write_config(tmp_path / "c.yaml"), tmp_path / "whole", tmp_path / "cut"
    assert run("run", config, "--results", whole, "--quiet").exit_code == 0
    first = fakes["oracle"] = FakeOracle(fail_at=7)
    cut = run("run", config, "--results", results)
    assert cut.exit_code == 130
    assert "discovery-loop resume" in cut.stderr
    status = json.loads(run("status", results, "--json").stdout)
    assert status["state"].startswith("round 1 of 2, label")
    assert status["labels_pending"] > 0
    halfway = [status[name] for name in ("stable_new", "stable_not_judged", "stable_known")]
    assert status["stable"] == sum(halfway)
    assert status["stable_not_judged"] > 0  # no find yet, and not known either
    told = run("status", results).stdout
    assert "compared with the known ones when the round's labels are in" in told
    second = fakes["oracle"] = FakeOracle()
    assert run("resume", results).exit_code == 0
    kept = set(first.evaluated[:6])  # the chunk of two that was under way is lost
    assert not kept & set(second.evaluated)
    assert (results / "ranked.csv").read_text() == (whole / "ranked.csv").read_text()


@pytest.mark.usefixtures("quick_report", "fakes")
def test_where_nothing_is_stable_the_nearest_to_the_hull_are_shown(tmp_path):
    config = write_config(tmp_path / "c.yaml", rounds=1, threshold=-0.4)
    told = run("run", config, "--results", tmp_path / "r")
    assert told.exit_code == 0, told.stderr
    assert "nothing is stable and new yet; the nearest to the hull:" in told.stdout
    nearest = json.loads(run("status", tmp_path / "r", "--json").stdout)["nearest"]
    rows = pd.read_csv(tmp_path / "r" / "ranked.csv").query("status == 'ok'")
    assert [row["e_above_hull"] for row in nearest] == pytest.approx(sorted(rows["e_above_hull"])[:5])


@pytest.mark.usefixtures("quick_report", "fakes")
def test_a_folder_keeps_its_campaign(tmp_path):
    config, results = write_config(tmp_path / "c.yaml", rounds=1), tmp_path / "r"
    assert run("run", config, "--results", results).exit_code == 0
    other = run("run", config, "--results", results, "--set", "campaign.seed=5")
    assert other.exit_code == 1
    assert "campaign.seed was 0, now 5" in other.stderr
    longer = run("run", config, "--results", results, "--set", "campaign.rounds=2", "--json")
    assert longer.exit_code == 0, longer.stderr
    assert json.loads(longer.stdout)["rounds_done"] == 2
    assert yaml.safe_load((results / "config.yaml").read_text())["campaign"]["rounds"] == 2


def test_dead_oracle_tells_where_the_traceback_is(tmp_path, fakes, monkeypatch):
    class Broken(FakeOracle):
        def evaluate(self, candidates):
            raise RuntimeError("wires crossed")

    monkeypatch.setenv("DISCOVERY_LOOP_HOME", str(tmp_path / "home"))
    fakes["oracle"] = Broken()
    done = run("run", write_config(tmp_path / "c.yaml"), "--results", tmp_path / "r")
    assert done.exit_code == 1
    assert "unexpected RuntimeError: wires crossed" in done.stderr
    assert "Traceback" not in done.stderr
    (log,) = (tmp_path / "home").glob("error-*.log")
    assert "wires crossed" in log.read_text()
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nowhere.yaml"], "no such file, and no preset"),
        (["validate", "smoke", "--set", "campaign.round=3"], "did you mean 'rounds'"),
        (
            ["validate", "smoke", "--set", "oracle.mlip.relax.fmax=soft"],
            "oracle.mlip.relax.fmax: expected a valid number",
        ),
        (["validate", "smoke", "--set", "campaign.shadow_share=2"], "shadow_share must be at least 0"),
        (["validate", "smoke", "--set", "selection.strategy=magic"], "expected one of random"),
        (["resume", "nowhere"], "holds no campaign"),
        (["status", "nowhere"], "holds no campaign"),
        (["export", "nowhere", "--output", "x"], "holds no campaign"),
        (["init", "x", "--preset", "none"], "there is no preset 'none'"),
        (["run", "smoke", "--results", "/proc/none/r"], "cannot be made"),
    ],
)
def test_one_clear_message(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run(*arguments)
    assert done.exit_code == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_checkpoint_and_secret(tmp_path):
    done = run("run", "smoke", "--results", tmp_path / "r", "--set", f"generator.checkpoint={tmp_path / 'no'}")
    assert done.exit_code == 1
    assert "no checkpoint in" in done.stderr
    secret = run("run", "smoke", "--results", tmp_path / "r", "--set", "store=postgresql://u:${NOT_SET_PW}@h/d")
    assert secret.exit_code == 1
    assert "NOT_SET_PW, which is not set" in secret.stderr


def test_an_element_that_the_potential_does_not_know_is_refused_before_any_work(tmp_path):
    setting = "generator.proposals.sampling.elements=[Po,O]"  # CHGNet has no polonium
    done = run("run", "smoke", "--set", setting, "--results", tmp_path / "r")
    assert done.exit_code == 1
    assert "asks for Po, which the potential CHGNet-0.3.0 does not know" in done.stderr


def test_usage_errors_are_2():
    assert run("run").exit_code == 2
    assert run("nonsense").exit_code == 2
    assert run("export", "x").exit_code == 2


def test_init_writes_a_valid_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("init", "mine", "--preset", "quickstart").exit_code == 0
    assert "# " in (tmp_path / "mine.yaml").read_text()
    assert json.loads(run("validate", "mine.yaml", "--json").stdout)["campaign"] == "mine"
    again = run("init", "mine")
    assert again.exit_code == 1
    assert "replace it with --force" in again.stderr
    assert run("init", "other.yaml").exit_code == 0  # and not other.yaml.yaml
    assert json.loads(run("validate", "other.yaml", "--json").stdout)["campaign"] == "other"


@pytest.mark.parametrize("preset", ["quickstart", "smoke", "single-gpu", "hpc"])
def test_presets_are_valid(preset):
    done = run("validate", preset, "--json", *(["--elsewhere"] if preset == "single-gpu" else []))
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["campaign"] == preset


def test_quickstart_is_what_it_promises():
    plan = json.loads(run("validate", "quickstart", "--json").stdout)
    assert plan["oracle_calls"] >= 24
    from flows.config import read_config

    settings = read_config("quickstart").campaign
    assert settings.rounds >= 3
    assert settings.shadow_share > 0


@pytest.mark.slow
def test_dry_run_estimates_without_a_trace(tmp_path):
    done = run("run", "smoke", "--results", tmp_path / "r", "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["oracle_calls"] == 14
    minutes = plan["minutes_estimated"]
    assert 0 < minutes["total"] < 60
    assert minutes["total"] == pytest.approx(sum(v for k, v in minutes.items() if k != "total"), abs=0.25)
    assert not (tmp_path / "r").exists()


def paid(folder, oracle: str, seconds: float, labels: int) -> None:
    """Labels in the ledger of a results folder, of as many crystals."""
    folder.mkdir(exist_ok=True)
    crystals = [Candidate(rocksalt(*pair)) for pair in list(product(CATIONS, ANIONS))[:labels]]
    key = OracleKey(oracle, "0" * 8)
    with Store(folder / "campaign.db") as store:
        store.add_candidates("earlier", crystals)
        store.append("earlier", 0, "propose", "begun", {})
        store.claim([c.id for c in crystals], key, campaign="earlier")
        store.finish([Evaluation(c.id, oracle, key.settings, OK, cost=Cost(seconds)) for c in crystals])


def test_what_labels_cost_is_read_from_the_ledger(tmp_path):
    from flows.config import read_config
    from flows.forecast import label_costs

    config = read_config("smoke")
    assert label_costs(config, tmp_path / "absent") == {}
    assert not (tmp_path / "absent").exists()
    paid(tmp_path / "r", "mlip-chgnet@1", 30.0, 6)
    paid(tmp_path / "r", "dft-gpaw@2", 600.0, 5)
    assert label_costs(config, tmp_path / "r") == {"mlip-chgnet@1": (6, 30.0), "dft-gpaw@2": (5, 600.0)}


def test_a_forecast_counts_what_is_left_of_a_campaign(tmp_path, fakes, quick_report):
    """Budget 4, pool 12, baseline as large; the third call is killed, and later three rounds of five are done."""
    from flows.config import read_config
    from flows.forecast import forecast, rest_of

    def told(**settings):
        config = read_config(write_config(tmp_path / "c.yaml", **settings))
        plan = forecast(config, rest_of(config, tmp_path / "r"))
        return plan["oracle_calls"], plan["crystals_proposed"], plan.get("done", "")[:33]

    assert told() == (12, 36, "")
    assert not (tmp_path / "r").exists()
    fakes["oracle"] = FakeOracle(fail_at=2)
    assert run("run", tmp_path / "c.yaml", "--results", tmp_path / "r").exit_code == 130
    assert told() == (10, 24, "0 of 3 rounds, the baseline round")  # chunks of two: two labels are held
    fakes["oracle"] = FakeOracle()
    assert run("resume", tmp_path / "r").exit_code == 0
    assert told(rounds=4) == (8, 24, "3 of 5 rounds, the baseline round")
    assert told(rounds=4, max_calls=15)[0] == 3
    assert told(rounds=4, max_calls=12)[:2] == (0, 0)


@pytest.mark.slow
def test_dry_run_takes_the_ledger_for_a_probe_where_it_holds_enough(tmp_path):
    paid(tmp_path / "r", "mlip-chgnet@1", 600.0, 5)
    done = run("run", "smoke", "--results", tmp_path / "r", "--set", "oracle.workers=1", "--dry-run", "--json")
    assert done.exit_code == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["seconds_per_label"], plan["seconds_per_label_from"]) == (600.0, "5 labels of the ledger")
    assert plan["minutes_estimated"]["label"] == 140.0  # 14 calls


def test_schema_describes_the_configuration():
    schema = json.loads(run("schema").stdout)
    assert set(schema["properties"]) == set(CampaignConfig.model_fields)


def test_version():
    assert run("--version").stdout.startswith("discovery-loop ")


TINY = ["--set", "campaign.pool=16", "--set", "campaign.budget=3", "--set", "campaign.baseline_budget=4"]
TINY += ["--set", "campaign.rounds=1", "--set", "campaign.chunk=1", "--set", "oracle.workers=1"]
TINY += ["--set", "generator.finetune.iterations=1", "--set", "generator.finetune.batch_size=8"]


def finished_labels(results) -> dict[str, float]:
    """Structure id to time of its label, from the ledger."""
    if not (results / "campaign.db").exists():
        return {}
    try:
        with closing(sqlite3.connect(results / "campaign.db", timeout=10)) as database:
            query = "SELECT structure_id, finished FROM evaluations WHERE value IS NOT NULL"
            return dict(database.execute(query).fetchall())
    except sqlite3.OperationalError:  # the table is not there yet
        return {}


def test_real_campaign_survives_kill_9(tmp_path):
    """Real generator, potential, surrogates and selection, killed while it labels, then resumed."""
    results = tmp_path / "r"
    command = [sys.executable, "-m", "flows.cli", "run", "smoke", "--results", str(results), *TINY]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while len(finished_labels(results)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read() if process.stderr else ""
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stderr.close()
    before = finished_labels(results)
    assert 2 <= len(before) < 7
    resumed = run("resume", results, "--json")
    assert resumed.exit_code == 0, resumed.stderr
    after = finished_labels(results)
    assert {key: after[key] for key in before} == before
    assert len(after) == json.loads(resumed.stdout)["oracle_calls"] == 7
    ranked = pd.read_csv(results / "ranked.csv")
    assert sorted(ranked["candidate_id"]) == sorted(after)
    assert set(ranked["arm"]) == {"baseline", "engine", "shadow"}
    assert (results / "report.html").stat().st_size > 100_000
