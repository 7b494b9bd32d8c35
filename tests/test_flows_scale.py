"""Labels on the workers of a Dask cluster: on this machine, and as jobs of a real Slurm (``-m server``)."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import psutil
import pytest

pytest.importorskip("distributed")

from flows import scale
from flows.benchmarks.operate.speed import ScaleBenchmark, run_scale
from flows.config import CampaignConfig, check_same
from flows.dask_oracle import DaskOracle
from flows.scale import Scale
from loop.campaign import Campaign
from loop.errors import ConfigError
from loop.settings import CampaignSettings
from loop.store import Store
from loop.tiers import key_of
from loop.values import Candidate, Evaluation
from tests.fakes import ANIONS, CATIONS, FakeOracle, fake_components, rocksalt

ROOT = Path(__file__).parents[1]
FORMULAS = {f"{cation}{anion}" for cation in CATIONS for anion in ANIONS}


class LoggedOracle(FakeOracle):
    """Writes a line per label into a file: what was computed, by whom. Sleeps; a marked crystal kills its worker."""

    def __init__(self, log: Path, seconds: float = 0.0, kill: str = "", deaths: int = 1) -> None:
        super().__init__()
        self._log, self._seconds, self._kill, self._deaths = log, seconds, kill, deaths

    def _evaluate(self, candidate: Candidate) -> Evaluation:
        time.sleep(self._seconds)
        if self._kill and candidate.formula == self._kill:
            before = self._log.read_text().count("killed") if self._log.exists() else 0
            if before < self._deaths:
                self._write(f"killed {candidate.id}")
                os.kill(os.getpid(), signal.SIGKILL)
        self._write(f"label {candidate.id} {os.getpid()} {os.environ.get('OMP_NUM_THREADS')}")
        return super()._evaluate(candidate)

    def _write(self, line: str) -> None:
        with self._log.open("a") as file:
            file.write(f"{line}\n")


def lines(log: Path, word: str = "label") -> list[list[str]]:
    return [line.split()[1:] for line in log.read_text().splitlines() if line.startswith(word)]


@pytest.fixture(autouse=True, scope="module")
def _tests_importable():
    """Workers import this module to make the oracle."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        yield


@pytest.fixture(scope="module")
def two(_tests_importable, tmp_path_factory):
    """Client of two workers."""
    with scale.connected(Scale(workers=2), tmp_path_factory.mktemp("cluster")) as client:
        yield client


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The ranked list of the campaign without a cluster."""
    return campaign_on(None, tmp_path_factory.mktemp("alone"), FakeOracle).read_text()


def campaign_on(client, folder: Path, build, *, written_by_workers: bool = True, **settings) -> Path:
    """Run a campaign of fakes whose labels come from the cluster; returns its ranked list."""
    chosen = CampaignSettings(**{"name": "scaled", "rounds": 2, "pool": 24, "budget": 6, "chunk": 2} | settings)
    with Store(folder / "campaign.db") as store:
        where = str(folder / "campaign.db") if written_by_workers else None
        oracle = build() if client is None else DaskOracle(build, key_of(build()), client, where)
        with Campaign(chosen, fake_components(oracle=oracle), store, folder) as campaign:
            campaign.run()
            assert campaign.history.paid == 18
    return folder / "ranked.csv"


def listening(processes: list[psutil.Process]) -> set[str]:
    return {
        item.laddr.ip
        for process in processes
        for item in process.net_connections()
        if item.status == psutil.CONN_LISTEN
    }


def test_nothing_listens_beyond_loopback(two):
    here = psutil.Process()
    two.wait_for_workers(2, timeout=60)
    assert listening([here, *here.children(recursive=True)]) == {"127.0.0.1"}


@pytest.mark.parametrize("written_by_workers", [True, False])
def test_two_workers_give_the_same_list(tmp_path, two, alone, written_by_workers):
    log = tmp_path / "log"
    build = partial(LoggedOracle, log, 0.02)
    ranked = campaign_on(two, tmp_path / "c", build, written_by_workers=written_by_workers)
    assert ranked.read_text() == alone
    assert len(lines(log)) == len({line[0] for line in lines(log)}) == 18
    assert len({line[1] for line in lines(log)}) == 2
    assert {line[2] for line in lines(log)} == {"1"}


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_as_many_workers_as_one_likes_give_the_same_list(tmp_path, alone, workers):
    log = tmp_path / "log"
    with scale.connected(Scale(workers=workers), tmp_path) as client:
        ranked = campaign_on(client, tmp_path / "c", partial(LoggedOracle, log, 0.2))
    assert ranked.read_text() == alone
    assert len({line[1] for line in lines(log)}) == workers


def test_a_worker_that_dies_costs_its_own_label_only(tmp_path, two, alone):
    log, victim = tmp_path / "log", alone.splitlines()[3]
    formula = next(cell for cell in victim.split(",") if cell in FORMULAS)
    ranked = campaign_on(two, tmp_path / "c", partial(LoggedOracle, log, 0.02, formula))
    assert ranked.read_text() == alone
    assert len(lines(log, "killed")) == 1
    assert len(lines(log)) == len({line[0] for line in lines(log)}) == 18


def test_a_crystal_that_kills_every_worker_is_given_up(tmp_path, two):
    log = tmp_path / "log"
    log.touch()
    candidates = [Candidate(rocksalt("Na", "Cl")), Candidate(rocksalt("Mg", "O", 4.2))]
    build = partial(LoggedOracle, log, 0.0, "NaCl", 99)
    with Store(tmp_path / "l.db") as store:
        oracle = DaskOracle(build, key_of(build()), two, str(tmp_path / "l.db"))
        store.add_candidates("c", candidates)
        store.claim([c.id for c in candidates], key_of(oracle))
        found = oracle.record(candidates, store)
        assert [e.status for e in found] == ["failed:crashed", "ok"]
        kept = store.evaluations([c.id for c in candidates], key_of(oracle))
        assert [kept[c.id].status for c in candidates] == ["failed:crashed", "ok"]


def test_a_finished_label_is_read_when_dask_asks_again(tmp_path, two):
    """What Dask does when a worker dies that holds a result: it runs the task again."""
    log, candidate = tmp_path / "log", Candidate(rocksalt())
    build = partial(LoggedOracle, log)
    with Store(tmp_path / "l.db") as store:
        oracle = DaskOracle(build, key_of(build()), two, str(tmp_path / "l.db"))
        store.add_candidates("c", [candidate])
        store.claim([candidate.id], key_of(oracle))
        first, again = oracle.record([candidate], store), oracle.record([candidate], store)
    assert [e.to_dict() for e in first] == [e.to_dict() for e in again]
    assert len(lines(log)) == 1


def test_a_worker_with_another_oracle_is_an_error(two):
    other = FakeOracle()
    other.settings_hash = "f" * 8
    with pytest.raises(ConfigError, match="install the same versions"):
        DaskOracle(FakeOracle, key_of(other), two).evaluate([Candidate(rocksalt())])


KILLED = """
    import sys; sys.path.insert(0, {root!r})
    from functools import partial
    from pathlib import Path
    from flows import scale
    from tests.test_flows_scale import LoggedOracle, campaign_on
    if __name__ == "__main__":
        folder = Path({folder!r})
        with scale.connected(scale.Scale(workers=2), folder) as client:
            campaign_on(client, folder, partial(LoggedOracle, Path({log!r}), 0.2))
"""


def test_a_killed_campaign_takes_its_workers_along_and_goes_on(tmp_path, two, alone):
    log, script = tmp_path / "log", tmp_path / "killed.py"
    script.write_text(textwrap.dedent(KILLED.format(root=str(ROOT), folder=str(tmp_path / "c"), log=str(log))))
    process = psutil.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (log.exists() and len(lines(log)) >= 8) and time.monotonic() < deadline:
        time.sleep(0.05)
    family = process.children(recursive=True)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    begun = len(lines(log))
    with Store(tmp_path / "c" / "campaign.db") as store:
        kept = store.paid("scaled")
    assert begun - kept <= 2  # what the two workers were at
    ranked = campaign_on(two, tmp_path / "c", partial(LoggedOracle, log, 0.0))
    assert ranked.read_text() == alone
    assert len(lines(log)) == begun + 18 - kept


def test_the_benchmark_counts_labels_and_compares_lists(tmp_path, two, monkeypatch):
    monkeypatch.setattr(scale, "connected", lambda *_: nullcontext(two))
    results = run_scale(tmp_path, ScaleBenchmark(labels=6, seconds=0.05, workers=(1, 2)))["results"]
    assert results["identical_lists"]
    assert [(row["labels"], row["calls"], row["statuses"]) for row in results["rows"]] == 2 * [(6, 6, {"ok": 6})]
    assert [row["ideal_s"] for row in results["rows"]] == [pytest.approx(0.3), pytest.approx(0.15)]
    for row in results["rows"]:
        assert row["share_of_ideal"] == pytest.approx(row["ideal_s"] / row["label_stage_s"])
        assert row["speed_up"] == pytest.approx(results["rows"][0]["label_stage_s"] / row["label_stage_s"])


@pytest.mark.slow
def test_the_benchmark_labels_by_a_potential_too(tmp_path, two, monkeypatch):
    monkeypatch.setattr(scale, "connected", lambda *_: nullcontext(two))
    results = run_scale(tmp_path, ScaleBenchmark(labels=4, workers=(1, 2), oracle="chgnet"))["results"]
    assert results["identical_lists"]
    for row in results["rows"]:
        assert row["labels"] == sum(row["statuses"].values()) == 4
        assert row["workers_cpu_s"] > 0.1
        assert "calls" not in row


def test_a_nanny_that_gave_up_is_replaced(tmp_path, monkeypatch):
    """What Dask's nanny does when its worker is killed while it starts: it closes, and nobody starts another."""
    monkeypatch.setattr(scale, "LOOK_SECONDS", 0.2)
    with scale.connected(Scale(workers=2), tmp_path) as client:
        gone = client.cluster.workers[0]
        client.sync(gone.close, reason="nanny-start-failed")
        deadline = time.monotonic() + 120
        while client.cluster.workers.get(0) in (None, gone) and time.monotonic() < deadline:
            time.sleep(0.1)
        client.wait_for_workers(2, timeout=120)
        assert client.cluster.workers[0] is not gone


def test_a_scheduler_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "CONNECT_SECONDS", 1.0)
    with (
        pytest.raises(ConfigError, match=r"no scheduler answers at tcp://127\.0\.0\.1:1"),
        scale.connected(Scale(dask="tcp://127.0.0.1:1"), tmp_path),
    ):
        pass
    assert "expected local, slurm or an address" in "".join(scale.problems(Scale(dask="somewhere")))


def test_an_address_is_used_as_it_is(tmp_path):
    from distributed import LocalCluster

    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        scale.connected(Scale(dask=cluster.scheduler_address), tmp_path) as client,
    ):
        found = DaskOracle(FakeOracle, key_of(FakeOracle()), client).evaluate([Candidate(rocksalt())])
        assert found[0].ok


def test_gpus_are_dealt_out(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    asked = Scale(workers=3, gpus=1, cores=4)
    assert [scale.environment(asked, n)["CUDA_VISIBLE_DEVICES"] for n in range(3)] == ["3", "5", "3"]
    assert scale.environment(asked, 0)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="this machine shows 0"):
        scale.environment(asked, 0)


def test_what_scale_says_may_change_between_runs(tmp_path):
    from flows import configfile

    configfile.dump(CampaignConfig(campaign=CampaignSettings(name="x")), tmp_path / "config.yaml")
    check_same(CampaignConfig(campaign=CampaignSettings(name="x"), scale=Scale(workers=7)), tmp_path)


def slurm_answers() -> bool:
    """Whether this machine is part of a Slurm cluster that takes jobs."""
    if shutil.which("sbatch") is None:
        return False
    return subprocess.run(["sinfo", "-h"], capture_output=True).stdout.strip() != b""


def test_keys_of_jobs_go_with_the_cluster(tmp_path, monkeypatch):
    """dask-jobqueue held the files open until the garbage collector came. No job is submitted here."""
    from dask_jobqueue import SLURMCluster

    monkeypatch.setattr(SLURMCluster, "adapt", lambda *_, **__: None)
    keys = tmp_path / scale.CERTIFICATES
    with scale.connected(Scale(dask="slurm", interface="lo"), tmp_path) as client:
        cluster = client.cluster
        assert len(list(keys.iterdir())) == 3
    assert not list(keys.iterdir())
    assert cluster.status.name == "closed"  # and not collected yet


@pytest.mark.server
@pytest.mark.skipif(not slurm_answers(), reason="no Slurm takes jobs here")
def test_two_jobs_of_slurm_of_which_one_is_killed(tmp_path, alone):
    """The ledger is an SQLite file: the campaign's own process writes the labels as they come."""
    log = tmp_path / "log"
    asked = Scale(dask="slurm", workers=2, memory="1GB", walltime="00:20:00", interface="lo")
    with scale.connected(asked, tmp_path) as client:
        client.wait_for_workers(2, timeout=240)
        jobs = subprocess.run(["squeue", "-h", "-n", "discovery-loop", "-o", "%i"], capture_output=True, text=True)
        assert len(jobs.stdout.split()) == 2
        victim = jobs.stdout.split()[0]
        threading.Timer(1.0, subprocess.run, (["scancel", "--signal=KILL", "--full", victim],)).start()
        ranked = campaign_on(client, tmp_path / "c", partial(LoggedOracle, log, 0.3), written_by_workers=False)
        assert ranked.read_text() == alone
        assert len({line[0] for line in lines(log)}) == 18
        assert len(lines(log)) <= 18 + 1  # the label that the killed job was at
        client.wait_for_workers(2, timeout=240)  # the job is replaced
    assert (tmp_path / scale.CERTIFICATES).stat().st_mode & 0o777 == 0o700  # keys are for this user alone
    deadline = time.monotonic() + 60
    while subprocess.run(["squeue", "-h", "-n", "discovery-loop"], capture_output=True).stdout:
        assert time.monotonic() < deadline
        time.sleep(1)
