"""Benchmarks of operation at toy size: kills really happen and are judged; labels spread and are counted."""

from __future__ import annotations

from flows.benchmarks.operate.resume import Outcome, ResumeBenchmark, Scenario, run, summary
from flows.benchmarks.operate.speed import OverheadBenchmark, run_overhead


def test_killed_campaigns_end_in_the_same_list(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.benchmarks.operate.resume.LABELS", ("here",))
    record = run(tmp_path, ResumeBenchmark(kills=3, prefect=False))
    results = record["results"]
    assert results["kills"] >= 3
    assert results["campaigns_with_the_same_list"] == results["campaigns"] >= 1
    assert results["labels"] == 15 * results["campaigns"]
    assert (results["labels_paid_twice"], results["labels_lost"]) == (0, 0)
    assert len((tmp_path / "kills.csv").read_text().splitlines()) == results["kills"] + 1


def test_what_goes_wrong_is_counted():
    bad = Outcome(Scenario("sqlite", "plain", "here", "engine"), calls=20, labels=15, paid_twice=2, lost=1)
    results = summary([bad], ResumeBenchmark(), 1.0)["results"]
    assert (results["labels_paid_twice"], results["labels_lost"], results["calls_cut_off"]) == (2, 1, 5)
    assert results["campaigns_with_the_same_list"] == 0


def test_scenarios_leave_out_what_cannot_be_killed():
    found = ResumeBenchmark(database="postgresql://x").scenarios
    assert Scenario("sqlite", "plain", "here", "ledger") not in found
    assert Scenario("sqlite", "prefect", "here", "worker") not in found
    assert Scenario("postgresql", "prefect", "dask", "worker") in found


def test_overhead_is_what_the_labels_do_not_take(tmp_path):
    record = run_overhead(tmp_path, OverheadBenchmark(labels=4, seconds=0.1, prefect=False))
    (row,) = record["results"]["rows"]
    assert row["ideal_s"] == 0.4
    assert row["overhead"] > 0
