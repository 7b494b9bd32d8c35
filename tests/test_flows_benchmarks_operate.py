"""Benchmarks of operation at toy size: kills really happen and are judged; labels spread and are counted."""

from __future__ import annotations

import numpy as np
import pytest

from flows.benchmarks.operate.growth import GrowthBenchmark, growth
from flows.benchmarks.operate.growth import run as grow
from flows.benchmarks.operate.kills import LABELS, SLURM, Outcome, ResumeBenchmark, Scenario, summary
from flows.benchmarks.operate.resume import PLACES, drawn, in_turns, run
from flows.benchmarks.operate.speed import OverheadBenchmark, ScaleBenchmark, campaign, run_overhead, without_cost
from flows.benchmarks.operate.world import SleepingOracle, World, calls, components, perovskite
from loop.errors import ConfigError
from loop.settings import STAGES, CampaignSettings
from loop.values import OK, Candidate, Evaluation, Quantity
from tests.fakes import rocksalt


def test_killed_campaigns_end_in_the_same_list(tmp_path):
    record = run(tmp_path, ResumeBenchmark(kills=3, prefect=False, labels=("here",)))
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
    assert {item.labels for item in found} == set(LABELS)
    assert {item.labels for item in ResumeBenchmark(labels=(SLURM,)).scenarios} == {SLURM}


def test_overhead_is_what_the_labels_do_not_take(tmp_path):
    record = run_overhead(tmp_path, OverheadBenchmark(labels=4, seconds=0.1, prefect=False))
    (row,) = record["results"]["rows"]
    assert row["ideal_s"] == 0.4
    assert row["overhead"] > 0


def test_perovskites_are_as_many_as_are_labelled(tmp_path):
    """There are 48 rocksalt pairs: a thousand labels asked of them were 48."""
    settings = CampaignSettings(name="many", rounds=0, pool=160, budget=80)
    made = components(SleepingOracle(tmp_path / "calls", 0.0), draw=perovskite)
    ranked, took = campaign(settings, tmp_path, made)
    assert len(calls(tmp_path / "calls")) == len(set(calls(tmp_path / "calls"))) == len(ranked.splitlines()) - 1 == 80
    assert took["label_stage_s"] > 0
    assert (took["labels"], took["statuses"]) == (80, {"ok": 80})


def test_lists_are_compared_without_what_labels_cost():
    first, second = "id,cost_seconds,volume\na,1.5,3.0\n", "id,cost_seconds,volume\na,2.5,3.0\n"
    assert without_cost(first) == without_cost(second) != without_cost(second.replace("3.0", "3.1"))


def test_there_is_no_third_oracle():
    with pytest.raises(ConfigError, match="oracle: expected sleeping or chgnet, got 'mace'"):
        ScaleBenchmark(oracle="mace")


def test_what_was_not_measured_is_left_out_of_the_fit():
    """A relaxation may leave a crystal without bulk modulus."""
    candidates = [Candidate(rocksalt("Na", "Cl")), Candidate(rocksalt("Mg", "O", 4.2))]
    modulus = {"bulk_modulus": Quantity(28.0, "GPa")}  # the sum of atomic numbers of Na and Cl
    measured = [{"e_above_hull": Quantity(0.1, "eV/atom")} | more for more in (modulus, {})]
    world = World(0.0)
    world.fit(candidates, [Evaluation(c.id, "o@1", "0", OK, m) for c, m in zip(candidates, measured, strict=True)])
    assert world.slopes[1] == pytest.approx(1.0)
    assert np.isfinite(world.slopes).all()


def test_kills_are_drawn_in_the_order_of_a_campaign():
    rng = np.random.default_rng(0)
    places = [PLACES.index(place) for place in drawn(Scenario("sqlite", "plain", "here", "engine"), rng)]
    assert places == sorted(places)
    assert {stage for _, stage in drawn(Scenario("sqlite", "plain", "processes", "worker"), rng)} == {"label"}
    everywhere = {place for _ in range(200) for place in drawn(Scenario("sqlite", "plain", "dask", "worker"), rng)}
    assert everywhere == set(PLACES)


def test_each_scenario_has_its_turn():
    scenarios = ResumeBenchmark(database="postgresql://x").scenarios
    assert set(in_turns(scenarios)) == set(scenarios)


def test_a_long_campaign_is_measured_stage_by_stage(tmp_path):
    record = grow(tmp_path, GrowthBenchmark(rounds=3, pool=12, budget=3))
    results = record["results"]
    assert (results["proposed"], results["labels"], len(results["rows"])) == (48, 12, 4 * 6)
    assert 12 <= results["candidates"] <= 48
    assert set(results["stages"]) == set(STAGES)
    assert results["rounds_later_to_earlier"] == 3.0
    assert results["stages"]["label"]["cpu_s"] >= results["stages"]["label"]["last_round_cpu_s"] > 0
    assert results["writing_results"]["cpu_s"] > 0


@pytest.mark.slow
def test_a_campaign_of_the_shipped_parts_is_measured_too_and_ends_in_time(tmp_path):
    record = grow(tmp_path, GrowthBenchmark(rounds=3, pool=24, budget=2, minutes=0.0, real=True))
    results = record["results"]
    assert (results["rounds"], results["proposed"], results["labels"]) == (1, 48, 4)
    assert 4 <= results["candidates"] < 48
    assert results["stages"]["retrain"]["cpu_s"] > 0


def test_growth_compares_the_last_rounds_with_the_first_after_the_baseline():
    rows = [{"round": n, "cpu_s": 100.0 if n == 0 else float(n), "wall_s": 0.0, "peak_gib": None} for n in range(10)]
    assert growth(rows)["later_to_earlier"] == 4.0  # (7 + 8 + 9) / (1 + 2 + 3)
    assert growth(rows)["peak_gib"] is None
