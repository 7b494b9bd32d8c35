"""Potentials in worker processes: messages, deaths, other environments. EMT stands for any ASE calculator."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from ase.build import bulk

from loop.errors import ConfigError, PotentialError
from oracles.potentials import overlay
from oracles.potentials import remote as remote_potential
from oracles.potentials import worker as potential_worker
from oracles.potentials.calculator import to_structure
from oracles.potentials.conformance import conformance
from oracles.potentials.loading import load_potential
from oracles.potentials.remote import _chunks
from oracles.relax import relax

EMT = "ase.calculators.emt:EMT"
CALCULATORS = """
    import os, time
    from ase.calculators.emt import EMT

    class Fragile(EMT):
        "Ends its process at gold, sleeps at silver, raises at platinum, says which threads it may use."
        def calculate(self, atoms=None, properties=("energy",), changes=()):
            symbols = set(self.atoms or atoms.symbols) if atoms is None else set(atoms.symbols)
            if "Au" in symbols:
                os._exit(7)
            if "Ag" in symbols:
                time.sleep(60)
            if "Pt" in symbols:
                raise ValueError("no platinum here")
            print("calculators may print")
            super().calculate(atoms, list(properties), list(changes) or ["positions"])

    class Threads(EMT):
        def calculate(self, atoms=None, properties=("energy",), changes=()):
            super().calculate(atoms, list(properties), list(changes) or ["positions"])
            self.results["energy"] = float(os.environ["OMP_NUM_THREADS"])

    class Busy(EMT):
        "Computes for 0.25 s."
        def calculate(self, atoms=None, properties=("energy",), changes=()):
            began = time.thread_time()
            while time.thread_time() - began < 0.25:
                pass
            super().calculate(atoms, list(properties), list(changes) or ["positions"])

    class NoStress(EMT):
        implemented_properties = ["energy", "forces"]

    class Broken(EMT):
        def __init__(self):
            raise RuntimeError("it needs a licence")
"""


@pytest.fixture
def calculators(tmp_path, monkeypatch):
    (tmp_path / "frail.py").write_text(textwrap.dedent(CALCULATORS))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def metals(*symbols):
    return [to_structure(bulk(symbol, cubic=True)) for symbol in symbols]


def test_messages_arrive_as_they_were_sent():
    stream = io.BytesIO()
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.zeros((0, 3)), "c": np.array([True])}
    potential_worker.send(stream, {"x": [1, "zwei"]}, arrays)
    stream.seek(0)
    message, found = potential_worker.receive(stream)
    assert message == {"x": [1, "zwei"]}
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in arrays.items()}
    torn = io.BytesIO(stream.getvalue()[:-5])
    with pytest.raises(EOFError):
        potential_worker.receive(torn)


def test_nothing_is_unpickled_from_a_pipe():
    stream = io.BytesIO()
    with pytest.raises(ValueError, match="pickle"):
        potential_worker.send(stream, {}, {"a": np.array([object()])})


def test_a_remote_calculator_conforms_and_equals_the_local_one():
    remote, local = load_potential(EMT, environment=sys.executable, workers=2), load_potential(EMT)
    findings = conformance(remote)
    assert all(finding.passed for finding in findings), [f.text for f in findings if not f.passed]
    crystals = metals("Cu", "Al", "Ni", "Pd")
    for crystal in crystals:
        crystal.perturb(0.1, seed=1)
    for one, other in zip(relax(crystals, remote), relax(crystals, local), strict=True):
        assert one.ok
        assert one.steps == other.steps
        assert one.energy == pytest.approx(other.energy, abs=1e-9)
    remote.close()


def test_a_crystal_that_kills_its_worker_takes_no_other_along(calculators):
    potential = load_potential("frail:Fragile", environment=sys.executable, workers=2)
    points = potential.single_points(metals("Cu", "Au", "Ni", "Al", "Pt", "Pd"))
    assert [point.status for point in points] == ["ok", "failed:crashed", "ok", "ok", "failed:error", "ok"]
    assert "died" in points[1].message
    assert "no platinum here" in points[4].message
    plain = load_potential(EMT).single_points(metals("Cu", "Ni"))
    assert points[0].energy == pytest.approx(plain[0].energy, abs=1e-12)
    assert points[2].energy == pytest.approx(plain[1].energy, abs=1e-12)
    potential.close()


def test_a_worker_killed_in_the_middle_costs_nothing():
    potential = load_potential(EMT, environment=sys.executable, workers=2)
    crystals = [crystal * (3, 3, 2) for crystal in metals(*["Cu", "Al", "Ni", "Pd", "Ag", "Pt"] * 4)]
    expected = potential.single_points(crystals)
    mine = psutil.Process()
    killed: list[int] = []

    def kill():
        for worker in mine.children():
            if "worker.py" not in " ".join(worker.cmdline()):  # children of other tests: joblib's tracker of resources
                continue
            killed.append(worker.pid)
            worker.send_signal(signal.SIGKILL)  # once: a crystal whose worker dies a second time is given up, by rule

    killer = threading.Timer(0.2, kill)
    killer.start()
    points = potential.single_points(crystals)
    killer.join()
    assert len(killed) >= 2
    assert all(point.ok for point in points), [point.message for point in points]
    assert np.allclose([point.energy for point in points], [point.energy for point in expected], atol=1e-12)
    potential.close()


def test_no_more_workers_start_than_there_is_work_for():
    def workers():
        return sum("worker.py" in " ".join(child.cmdline()) for child in psutil.Process().children())

    before = workers()
    potential = load_potential(EMT, environment=sys.executable, workers=4)
    for crystal in metals("Cu", "Al", "Ni", "Pd", "Ag"):
        assert potential.single_points([crystal])[0].ok
    assert workers() - before == 2
    assert all(point.ok for point in potential.single_points(metals(*["Cu", "Al", "Ni", "Pd"] * 4)))
    assert workers() - before == 4
    potential.close()
    assert workers() == before
    assert potential.single_points(metals("Cu"))[0].ok
    potential.close()


def test_processor_time_of_workers_is_known_to_the_thread_that_asks(calculators):
    potential = load_potential("frail:Busy", environment=sys.executable)
    potential.single_points(metals("Cu"))  # imports
    began, clock = potential.processor_seconds(), time.perf_counter()
    potential.single_points(metals("Cu", "Al"))
    spent, passed = potential.processor_seconds() - began, time.perf_counter() - clock
    assert 0.4 <= spent <= passed
    with ThreadPoolExecutor(1) as pool:  # another thread's labels are not this one's
        assert pool.submit(potential.processor_seconds).result() < 0.4
    potential.close()


def test_a_worker_that_hangs_is_ended(calculators, monkeypatch):
    potential = load_potential("frail:Fragile", environment=sys.executable)
    object.__setattr__(potential._place, "time_limit", 1.5)
    points = potential.single_points(metals("Ag", "Cu"))
    assert [point.status for point in points] == ["failed:crashed", "ok"]
    assert "within 1.5 s" in points[0].message
    potential.close()


def test_threads_of_a_worker_are_bounded(calculators, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    potential = load_potential("frail:Threads", environment=sys.executable)
    assert potential.single_points(metals("Cu"), gradients=False)[0].energy * 4 == 1.0
    potential.close()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("frail:NoStress", "it gives no stress"),
        ("frail:Broken", "it needs a licence"),
        ("nowhere_to_be_found:Calculator", "No module named"),
    ],
)
def test_what_cannot_be_loaded_is_said_at_once(calculators, name, said):
    with pytest.raises(PotentialError, match=said):
        load_potential(name, environment=sys.executable)


def test_environments_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(PotentialError, match="cannot be started"):
        load_potential(EMT, environment=str(tmp_path / "python"))
    monkeypatch.setenv(overlay.VARIABLE, str(tmp_path))
    with pytest.raises(ConfigError, match="potential install mine"):
        load_potential(EMT, environment="mine")
    with pytest.raises(ConfigError, match="potential install sevennet"):
        load_potential("sevennet")
    with pytest.raises(ConfigError, match="module:Class"):
        load_potential("chgnet", environment=sys.executable)
    with pytest.raises(ConfigError, match="JSON"):
        load_potential(EMT, environment=sys.executable, options={"x": object()})


def test_workers_leave_with_a_parent_that_is_killed(tmp_path):
    code = f"""
        import time
        from oracles.potentials.loading import load_potential
        potential = load_potential({EMT!r}, environment={sys.executable!r})
        worker = potential._idle.get()
        print(worker.pid, flush=True)
        time.sleep(60)
    """
    root = str(remote_potential.Path(remote_potential.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": root}
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True, env=environment
    )
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    worker.wait(timeout=20)  # raises where it stays


def test_chunks_hold_every_crystal_once_and_are_about_equal():
    sizes = [1, 30, 4, 4, 9, 12, 2, 2, 30, 8]
    chunks = _chunks(sizes, 2)
    assert sorted(index for piece in chunks for index in piece) == list(range(10))
    loads = [sum(sizes[index] for index in piece) for piece in chunks]
    assert max(loads) == 30
    assert _chunks(sizes, 1) == [list(range(10))]


def test_overlays_of_ones_own(tmp_path, monkeypatch):
    """A folder in front of the environment's packages, for the worker alone."""
    monkeypatch.setenv(overlay.VARIABLE, str(tmp_path))
    mine = overlay.Overlay("mine", ("nothing==1",))
    assert overlay.problem(mine) == "not installed"
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "frail.py").write_text(textwrap.dedent(CALCULATORS))
    (folder / overlay.STAMP).write_text('{"packages": ["nothing==1"]}')
    assert overlay.installed() == ["mine"]
    potential = load_potential("frail:Fragile", environment="mine")
    assert potential.single_points(metals("Cu"))[0].ok
    assert "frail" not in sys.modules
    potential.close()


def test_an_overlay_whose_checkpoint_was_changed_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv(overlay.VARIABLE, str(tmp_path))
    checkpoint = tmp_path / "sevennet" / overlay.L3I5
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"not the weights")
    stamp = tmp_path / "sevennet" / overlay.STAMP
    stamp.write_text(overlay.json.dumps(overlay._stamp(overlay.SEVENNET)))
    with pytest.raises(ConfigError, match="sha256"):
        load_potential("sevennet")


def test_pip_that_fails_leaves_no_half_overlay(tmp_path, monkeypatch):
    monkeypatch.setenv(overlay.VARIABLE, str(tmp_path))
    wanted = overlay.Overlay("wanted", ("./no-such-package-here==1",))
    with pytest.raises(PotentialError, match="wanted"):
        overlay.install(wanted)
    assert not list(tmp_path.iterdir())


def test_names_of_overlays_are_plain():
    with pytest.raises(ConfigError, match="lower case"):
        overlay.resolve("../up", ["a==1"])
    with pytest.raises(ConfigError, match="got b, c"):
        overlay.resolve("mine", ["a==1", "b", "c>=2"])
    with pytest.raises(ConfigError, match="expected one of sevennet"):
        overlay.resolve("unknown")
