"""Robustness, relaxation: small runs, and that what must be found is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flows.benchmarks.oracles import robustness
from flows.benchmarks.oracles.damage import DAMAGES, damaged
from flows.benchmarks.oracles.relaxation import RelaxationBenchmark
from flows.benchmarks.oracles.relaxation import run as compare_relaxations
from flows.benchmarks.oracles.relaxation_summary import compare
from flows.benchmarks.oracles.robustness import CRASH, ESCAPED, HANG, Judge, RobustnessBenchmark, Worker, unnamed
from loop.errors import InputError
from loop.moyo import find_symmetry, safe_tolerance


@pytest.fixture(scope="module")
def judge():
    return Judge(RobustnessBenchmark(max_steps=2))


@pytest.mark.filterwarnings("ignore:overflow encountered")  # of lengths of 1e300 A, which are among the damages
def test_a_sample_of_damaged_inputs_has_named_outcomes(judge):
    rows = [row for start in range(0, 125, 25) for row in judge(list(range(start, start + 25)))]
    assert [row for row in rows if row["status"] == ESCAPED or unnamed(row)] == []
    statuses = Counter(row["status"] for row in rows)
    assert {"ok", "failed:unreadable", "failed:volume", "failed:unsupported-element"} <= set(statuses)
    assert len({row["damage"] for row in rows}) > len(DAMAGES) - 4


def test_the_same_seed_gives_the_same_damage():
    one, other = damaged(7), damaged(7)
    assert one[0] == other[0]
    assert str(one[1]) == str(other[1])


def test_what_escapes_or_has_no_name_is_counted(judge, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("bug")

    with monkeypatch.context() as patched:
        patched.setattr(judge.potential, "single_points", broken)
        assert {row["status"] for row in judge([1, 2, 3, 4])} <= {ESCAPED, "failed:unreadable"}
    assert unnamed({"status": "", "message": ""})
    assert unnamed({"status": "failed:overlap", "message": ""})
    assert not unnamed({"status": "failed:overlap", "message": "too close"})


class Deadly:
    """Stands for a judge: dies of one input, never answers to another."""

    def __init__(self, config):
        pass

    def __call__(self, seeds):
        if 3 in seeds:
            os.kill(os.getpid(), 9)
        if 5 in seeds:
            time.sleep(1000)
        return [{"seed": seed, "status": "ok"} for seed in seeds]


def serve_deadly(connection, config):
    robustness.Judge = Deadly
    robustness._serve(connection, config)


@pytest.mark.filterwarnings("ignore:resource_tracker")  # of multiprocessing, about the process that is killed here
def test_crashes_and_hangs_are_found_and_the_rest_continues(monkeypatch):
    monkeypatch.setattr(robustness, "_serve_process", serve_deadly)
    worker = Worker(RobustnessBenchmark(silence=5.0))
    rows = worker.put([1, 2, 3, 4]) + worker.put([5])
    worker.close()
    assert {row["seed"]: row["status"] for row in rows} == {1: "ok", 2: "ok", 3: CRASH, 4: "ok", 5: HANG}


def test_a_panic_of_the_symmetry_finder_is_no_symmetry(monkeypatch):
    import moyopy

    class Panic(BaseException):
        pass

    def panic(*_, **__):
        raise Panic

    crystal = Structure(Lattice.cubic(4), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert find_symmetry(crystal, 0.01).number == 221
    monkeypatch.setattr(moyopy, "MoyoDataset", panic)
    assert find_symmetry(crystal, 0.01) is None


@pytest.mark.parametrize(
    "structure",
    [
        Structure(Lattice([[1, 0, 0], [2, 0, 0], [0, 0, 3]]), ["Cu"], [[0, 0, 0]]),
        Structure(Lattice.cubic(4), ["Cu"], [[np.nan, 0, 0]]),
        Structure(Lattice.cubic(4), ["Cu"], [[1e12, 0, 0]]),
        Structure(Lattice.cubic(1e10), ["Cu"], [[0, 0, 0]]),
        Structure(Lattice.cubic(4), [], []),
    ],
    ids=["flat", "nan", "far", "huge", "empty"],
)
def test_what_is_no_crystal_has_no_symmetry(structure):
    assert find_symmetry(structure, 0.01) is None


ENDLESS = [[0.562, -10.044, 1.089], [-0.399, 1.065, 0.836], [-246.295, 3.788, -146.932]]  # A, at 0.1 A
SEARCH = """
import sys, numpy as np
from pymatgen.core import Structure
from loop.moyo import find_symmetry, safe_tolerance
times = [int(word) for word in sys.argv[1:]]
found = find_symmetry(Structure({cell}, ["Cu"], [[0, 0, 0]]) * times, 0.1)
print(found.number, len(found.prim_std_cell.numbers))
"""


@pytest.mark.parametrize("times", [(1, 1, 1), (2, 2, 1)], ids=["primitive", "supercell"])
def test_the_symmetry_finder_comes_back_from_thin_cells(times):
    command = [sys.executable, "-c", SEARCH.format(cell=ENDLESS), *map(str, times)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert answer.stdout.split() == ["2", "1"]


def test_the_tolerance_of_known_crystals_stays_and_that_of_thin_ones_shrinks():
    beryllium = Structure(Lattice.hexagonal(2.29, 3.58), ["Be", "Be"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])
    peroxide = Structure(Lattice.cubic(4), ["Na", "O", "O"], [[0, 0, 0], [0.5, 0.5, 0.4], [0.5, 0.5, 0.6]])
    assert [safe_tolerance(crystal, 0.1) for crystal in (beryllium, beryllium * (2, 2, 2), peroxide)] == [0.1] * 3
    metres = Structure(Lattice.cubic(5e-10), ["Cu", "Cu"], [[0, 0, 0], [0.5, 0.5, 0.5]])  # taken for Angstrom
    assert safe_tolerance(metres, 0.1) == pytest.approx(0.05 * 5e-10 * 0.75**0.5)
    assert safe_tolerance(Structure(Lattice.orthorhombic(1e-4, 50, 50), ["Cu"], [[0, 0, 0]]), 0.1) == 0
    thin = Structure(Lattice.tetragonal(1.2, 40), ["Cu"], [[0, 0, 0]])
    assert [safe_tolerance(crystal, 0.1) for crystal in (thin, thin * (3, 1, 1))] == pytest.approx([0.06, 0.06])


def test_relaxations_are_compared_and_a_cut_off_run_goes_on(tmp_path):
    config = RelaxationBenchmark(n=3, chunk=2, max_steps=3, optimizers=("LBFGS", "BFGS"))
    begun = compare_relaxations(tmp_path, RelaxationBenchmark(n=3, chunk=2, max_steps=3, minutes=0))
    assert begun["results"] == {}
    compare_relaxations(tmp_path, config)
    rows = (tmp_path / "rows.jsonl").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(rows[:5]) + '\n{"torn')  # within a chunk of the baseline
    record = compare_relaxations(tmp_path, config)
    assert (tmp_path / "rows.jsonl").read_text().splitlines()[:5] == rows[:5]
    assert record["results"]["batched"]["crystals"] == record["results"]["ase-LBFGS"]["crystals"] == 3
    ratio = record["results"]["ase-LBFGS"]["cpu_seconds"] / record["results"]["batched"]["cpu_seconds"]
    assert record["results"]["batched against ase-LBFGS"]["speedup_cpu"] == pytest.approx(ratio)
    itself = record["results"]["ase-LBFGS against ase-BFGS"]  # what nobody can be expected to exceed
    assert (itself["crystals"], sum(itself["ends"].values())) == (3, 3)
    assert json.loads((tmp_path / "record.json").read_text())["protocol"]
    with pytest.raises(InputError, match="other settings"):
        compare_relaxations(tmp_path, RelaxationBenchmark(n=3, chunk=2, max_steps=4))


def test_ends_are_told_apart():
    cell = Structure(Lattice.cubic(4), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]).as_dict()
    other = Structure(Lattice.cubic(4), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0, 0]]).as_dict()
    row = {"status": "ok", "energy": -3.0, "structure": cell}
    assert compare(row, row | {"energy": -3.001}) == "same"
    assert compare(row, row | {"energy": -3.1}) == "same crystal by StructureMatcher, higher here"
    assert compare(row, row | {"energy": -2.9, "structure": other}) == "lower here"
    assert compare(row, row | {"structure": other}) == "same energy, other crystal by StructureMatcher"
    lost = {"status": "failed:volume-collapse", "energy": float("nan"), "structure": None}
    assert (compare(row, lost), compare(lost, row), compare(lost, lost)) == ("only here", "only there", "same failure")
