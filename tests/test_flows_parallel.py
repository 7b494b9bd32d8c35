from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from functools import partial
from pathlib import Path

import psutil
import pytest
from pymatgen.core import Lattice, Structure

from flows.parallel import ParallelOracle
from loop.values import Candidate, Cost, Evaluation, Quantity


class Sums:
    """An oracle whose answer is the number of the first atom; carbon kills its process."""

    name = "sums@1"
    settings_hash = "s"

    def evaluate(self, candidates):
        return [self._one(candidate) for candidate in candidates]

    def _one(self, candidate):
        number = candidate.structure[0].specie.Z
        if number == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        value = {"number": Quantity(float(number), ""), "pid": Quantity(float(os.getpid()), "")}
        return Evaluation(candidate.id, self.name, self.settings_hash, "ok", value, cost=Cost(0.0))


def crystals(*elements: str) -> list[Candidate]:
    return [Candidate(Structure(Lattice.cubic(3 + 0.1 * i), [e], [[0, 0, 0]])) for i, e in enumerate(elements)]


@pytest.fixture(scope="module")
def oracle():
    oracle = ParallelOracle(Sums, 2)
    yield oracle
    oracle.close()


def test_same_order_in_other_processes(oracle):
    candidates = crystals("He", "Li", "Be", "B", "N", "O")
    evaluations = oracle.evaluate(candidates)
    assert [e.value("number") for e in evaluations] == [2, 3, 4, 5, 7, 8]
    assert [e.candidate_id for e in evaluations] == [c.id for c in candidates]
    assert os.getpid() not in {e.value("pid") for e in evaluations}
    assert (oracle.name, oracle.settings_hash) == ("sums@1", "s")


def test_a_dead_worker_costs_one_label_only(oracle):
    evaluations = oracle.evaluate(crystals("He", "C", "Be"))
    assert [e.status for e in evaluations] == ["ok", "failed:crashed", "ok"]
    assert oracle.evaluate(crystals("He"))[0].ok


class Shot(Sums):
    """Its process is ended at the first labels, as by somebody outside; how many there were stands in a file."""

    def __init__(self, log: Path, deaths: int) -> None:
        self._log, self._deaths = log, deaths

    def _one(self, candidate):
        with self._log.open("a") as file:
            file.write("x")
        if self._log.stat().st_size <= self._deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        return super()._one(candidate)


@pytest.mark.parametrize(("deaths", "status"), [(2, "ok"), (3, "failed:crashed")])
def test_a_crystal_is_given_up_when_it_dies_alone_twice(tmp_path, deaths, status):
    """Two kills from outside, in company and alone, gave up a crystal that nothing was wrong with."""
    oracle = ParallelOracle(partial(Shot, tmp_path / "log", deaths), 1, Sums())
    try:
        assert [found.status for found in oracle.evaluate(crystals("He"))] == [status]
    finally:
        oracle.close()
    assert (tmp_path / "log").stat().st_size == 3


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    code = f"""
        import sys, time; sys.path.insert(0, {str(Path.cwd())!r})
        from tests.test_flows_parallel import Sums, crystals
        from flows.parallel import ParallelOracle
        if __name__ == "__main__":
            oracle = ParallelOracle(Sums, 2)
            oracle.evaluate(crystals("He", "Li"))
            print("ready", flush=True)
            time.sleep(60)
    """
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(code))
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "ready\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) >= 2
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=10)
    for process in alive:
        process.kill()
    assert not alive


def workers_of_this_process() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_interrupt_ends_the_workers(monkeypatch, oracle):
    def interrupted(_):
        raise KeyboardInterrupt

    oracle.evaluate(crystals("He"))
    assert workers_of_this_process()
    monkeypatch.setattr("flows.parallel.as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        oracle.evaluate(crystals("He"))
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and workers_of_this_process():
        time.sleep(0.1)
    assert not workers_of_this_process()
