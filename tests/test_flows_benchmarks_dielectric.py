"""Arms of the dielectric benchmark: whom they ask, what it costs, what a killed run repeats; and a run in small."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from flows.benchmarks.dielectric import real
from flows.benchmarks.dielectric.arms import CLOSED, GP, GREEDY, PAPER, RANDOM, Arm, cost_of
from flows.benchmarks.dielectric.record import progress_of, summary, verified
from flows.benchmarks.dielectric.simulated import Cell, DielectricConfig, Hidden, run, simulate
from flows.benchmarks.dielectric.summary import at
from loop.errors import ConfigError, InputError
from loop.io.cif_writer import to_cif
from loop.values import OK, Candidate, Cost, Evaluation, Quantity
from oracles.dft.oracle import HULL
from surrogates.features import FeatureExtractor
from surrogates.two_steps import Costs, Factors
from tests.fakes import ANIONS, CATIONS, best_length, rocksalt

STRETCHES = (0.95, 0.97, 1.0, 1.03, 1.06)
PAIRS = [(cation, anion) for cation in CATIONS for anion in ANIONS]


def crystals():
    """Rock salts of every pair at a few volumes: the larger the cell, the smaller the gap."""
    made = []
    for cation, anion in PAIRS:
        for stretch in STRETCHES:
            structure = rocksalt(cation, anion)
            structure.scale_lattice((best_length(structure) * stretch) ** 3)
            made.append((f"{cation}{anion}", structure, stretch))
    return made


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    rows = []
    for place, (_, structure, stretch) in enumerate(crystals()):
        gap = 3 + 2 * np.sin(place // len(STRETCHES)) + 4 * (stretch - 1)
        rows.append({"cif": to_cif(structure), "band_gap": gap, "eps_electronic": 12 / gap + rng.normal(0, 0.2)})
    path = tmp_path_factory.mktemp("data") / "labels.csv"
    frame = pd.DataFrame(rows)
    frame["eps_electronic"] = frame["eps_electronic"].clip(1.1, 25)
    frame.to_csv(path, index=False)
    return path


def small(**changes):
    gp = replace(GP, maxiter=5)
    made = {"seeds": 2, "worlds": ("random",), "lesson": 60, "evaluations": 6, "rounds": 2, "potential": "none"}
    return DielectricConfig(**{**made, "gp": gp, **changes})


def pool_of(n):
    return [Candidate(structure) for _, structure, _ in crystals()[:n]]


def arm_of(name, gaps, logs, threshold=17.5, n=None):
    n = n or len(gaps)
    arm = Arm(name, pool_of(len(STRETCHES) * n)[:: len(STRETCHES)], threshold, Costs(1.0, 3.0), 0)
    arm.posterior = Factors(np.column_stack([gaps, logs]), np.tile([0.5, 0.2], (n, 1)))
    arm.merit = np.column_stack([np.array(gaps) * np.exp(logs), np.ones(n)])
    arm.plan()
    return arm


def test_the_closed_loop_begins_where_gain_per_cost_is_highest_and_leaves_what_a_gap_has_refuted():
    arm = arm_of(CLOSED, [4.0, 6.0, 5.0], [1.2, 1.2, 1.2])
    assert arm.next_step() == (1, "gap")
    arm.take(1, "gap", 1.0, None)  # far below what was predicted: no constant
    assert arm.next_step() == (2, "gap")
    arm.take(2, "gap", 6.5, None)  # above: worth more than the crystal that is left
    assert arm.next_step() == (2, "dielectric")
    arm.take(2, "dielectric", 6.5, 3.0)
    assert arm.merits() == {2: 19.5}
    assert arm.next_step() == (0, "gap")


def test_a_failed_gap_is_never_finished():
    arm = arm_of(CLOSED, [6.0, 5.0], [1.2, 1.2])
    arm.take(0, "gap", None, None)
    arm.take(1, "gap", float("nan"), None)
    assert arm.next_step() is None


def test_other_arms_measure_both_and_chance_does_not_look():
    paper = arm_of(PAPER, [3.0, 6.0, 5.0], [1.2, 1.2, 1.2])
    order = []
    while (step := paper.next_step()) is not None:
        order.append(step)
        paper.take(*step, 1.0, 1.0)
    assert order == [(1, "both"), (2, "both"), (0, "both")]
    by_chance = [arm_of(RANDOM, [3.0, 6.0, 5.0], [1.2] * 3)._order, arm_of(RANDOM, [6.0, 3.0, 5.0], [1.2] * 3)._order]
    assert by_chance[0] == by_chance[1]


def test_a_formula_is_begun_once_until_the_arm_has_learned():
    arm = Arm(GREEDY, pool_of(10), 17.5, Costs(), 0)
    arm.posterior = Factors(np.zeros((10, 2)), np.ones((10, 2)))
    arm.merit = np.column_stack([np.arange(10, 0, -1), np.ones(10)])
    arm.plan()
    asked = []
    for _ in range(3):
        row, kind = arm.next_step()
        asked.append(row)
        arm.take(row, kind, 1.0, 1.0)
    assert asked == [0, 5, 1]  # five volumes of one formula, then five of another


def test_worlds_share_no_formula_and_the_unseen_one_no_anion(table):
    hidden = Hidden.read(table)
    config = small(families=("F", "Cl"))
    known, pool = hidden.world("random", 0, config)
    names = [{hidden.candidates[row].formula for row in rows} for rows in (known, pool)]
    assert not names[0] & names[1]
    known, pool = hidden.world("unseen", 0, config)
    away = {e.symbol for row in pool for e in hidden.candidates[row].structure.composition} & {"F", "Cl"}
    assert len(away) == 1
    assert not any(away <= {e.symbol for e in hidden.candidates[row].structure.composition} for row in known)


def test_a_campaign_spends_its_budget_and_counts_what_it_found(table):
    hidden, config = Hidden.read(table), small()
    for name in (CLOSED, PAPER, RANDOM):
        found = simulate(hidden, FeatureExtractor(), config, Cell(name, "random", 0))
        assert found["cost"][-1] == pytest.approx(config.evaluations, abs=0.75)
        spent = sum(cost_of(step, config.costs) for step in found["step"])
        assert found["cost"][-1] == pytest.approx(spent / config.costs.both)
        done = {r for r, step in zip(found["row"], found["step"], strict=True) if step != "gap"}
        merits = hidden.merits[sorted(done)]
        assert found["above"][-1] == (merits > found["threshold"]).sum()
        assert found["best"][-1] == pytest.approx(max(merits, default=0.0))


def test_the_curve_is_read_at_what_was_spent():
    found = {"cost": [0.25, 0.5, 1.25], "best": [0.0, 0.0, 9.0]}
    assert at(found, "best", np.array([0.1, 1.0, 1.25, 3.0])).tolist() == [0.0, 0.0, 9.0, 9.0]


def test_a_run_in_small_goes_on_and_refuses_other_settings(table, tmp_path):
    record = run(table, tmp_path / "out", small(arms=(CLOSED, PAPER)))
    entry = record["results"]["random"][PAPER]
    assert entry["closed_minus_this_above_end"]["low"] <= entry["closed_minus_this_above_end"]["value"]
    assert (tmp_path / "out" / "curves.png").stat().st_size > 0
    curves = pd.read_csv(tmp_path / "out" / "curves.csv")
    assert set(curves["arm"]) == {CLOSED, PAPER}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").glob("random-*.json")}
    run(table, tmp_path / "out", small(arms=(CLOSED, PAPER, RANDOM)))
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    with pytest.raises(ConfigError, match="other evaluations"):
        run(table, tmp_path / "out", small(evaluations=8))


def test_settings_and_tables_that_make_no_sense(tmp_path):
    with pytest.raises(ConfigError, match="nobody"):
        DielectricConfig(arms=("nobody",))
    with pytest.raises(ConfigError, match="lesson"):
        DielectricConfig(lesson=3)
    (tmp_path / "t.csv").write_text("cif,band_gap\nx,1\n")
    with pytest.raises(InputError, match="eps_electronic"):
        Hidden.read(tmp_path / "t.csv")


# the run with DFT, its engine a fake --------------------------------------------------------------------------------


class FakeDft:
    """Gap and constant by the place in the pool; counts what it is asked."""

    def __init__(self, config):
        self.properties, self.resources, self.asked = config.properties, config.resources, asked_of

    def accepts(self, structure):
        return len(structure) <= 8

    def evaluate(self, candidates):
        self.asked.append((candidates[0].id, self.properties))
        place = ids[candidates[0].id]
        if place == 0:
            return [Evaluation(candidates[0].id, "dft@1", "x", "failed:scf-not-converged", message="no density")]
        values = {"band_gap": Quantity(1.0 + place, "eV")}
        if "dielectric" in self.properties:
            values["dielectric_electronic"] = Quantity(4.0, "1")
        return [Evaluation(candidates[0].id, "dft@1", "x", OK, values, cost=Cost(10.0 * len(self.properties)))]


asked_of: list = []
ids: dict = {}


def test_arms_share_what_was_paid_for_and_a_killed_run_goes_on(monkeypatch, tmp_path):
    pool = pool_of(24)
    asked_of.clear()
    ids.clear()
    ids.update({candidate.id: place for place, candidate in enumerate(pool)})
    monkeypatch.setattr(real, "DftOracle", FakeDft)
    lesson = real.Lesson(pool[:12], [real.labelled(c, 1.0 + i, 5.0 - 0.1 * i) for i, c in enumerate(pool[:12])])
    gp = replace(GP, maxiter=5)
    config = real.RealConfig(turns=2, share={CLOSED: 2.0, PAPER: 1.0, RANDOM: 1.0}, gp=gp)

    def lab():
        return real.Lab(config, pool, tmp_path / "calls.jsonl")

    first = lab()
    predictions = real.spend(first, FeatureExtractor(), lesson, 12.0)
    calls = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    spent = {name: sum(cost_of(c["step"], config.costs) for c in calls if c["arm"] == name) for name in config.share}
    assert spent[PAPER] == spent[RANDOM] == 8.0
    assert 16.0 <= spent[CLOSED] <= 19.0
    assert len(asked_of) == sum("paid_by" not in call for call in calls)
    assert predictions["turn"].unique().tolist() == [0, 1]
    # killed in the middle: the same calls come again
    lines = (tmp_path / "calls.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "calls.jsonl").write_text("".join(lines[: len(lines) // 2]))
    real.spend(lab(), FeatureExtractor(), lesson, 12.0)
    again = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert [(c["arm"], c["id"], c["step"]) for c in again] == [(c["arm"], c["id"], c["step"]) for c in calls]
    # the loop may end before the others, which then ask what they would have asked
    (tmp_path / "calls.jsonl").unlink()
    config = replace(config, learning_turns=1)
    real.spend(lab(), FeatureExtractor(), lesson, 12.0)
    fewer = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    expected = [c for c in calls if (c["arm"], c["turn"]) != (CLOSED, 1)]
    assert [(c["arm"], c["turn"], c["id"], c["step"]) for c in fewer] == [
        (c["arm"], c["turn"], c["id"], c["step"]) for c in expected
    ]
    # without the loop, too: what the tables make expect is the same
    (tmp_path / "calls.jsonl").unlink()
    config = replace(config, share={RANDOM: 1.0})
    said = real.spend(lab(), FeatureExtractor(), lesson, 12.0)
    only = [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]
    assert [(c["id"], c["turn"]) for c in only] == [(c["id"], c["turn"]) for c in calls if c["arm"] == RANDOM]
    assert said.equals(predictions[predictions["turn"] == 0])
    assert len(verified(only, pd.DataFrame({"id": [], "e_above_hull": []}), said)) == len({c["id"] for c in only})


def test_a_constant_after_a_gap_is_one_more_call_and_a_failure_is_not_asked_again(monkeypatch, tmp_path):
    pool = pool_of(8)
    asked_of.clear()
    ids.clear()
    ids.update({candidate.id: place for place, candidate in enumerate(pool)})
    monkeypatch.setattr(real, "DftOracle", FakeDft)
    lab = real.Lab(real.RealConfig(), pool, tmp_path / "calls.jsonl")
    kept = {(oracle.resources.keep, oracle.resources.scratch) for oracle in lab.oracles.values()}
    assert kept == {(True, str((tmp_path / "work" / "dft").resolve()))}  # of this run alone
    gap, both, again = (lab.measure(*what) for what in ((CLOSED, 0, 1, "gap"), (CLOSED, 0, 1, "dielectric"),
                                                         (PAPER, 0, 1, "both")))  # fmt: skip
    assert (gap["seconds"], both["seconds"], again["seconds"]) == (10.0, 20.0, 0.0)
    assert again["paid_by"] == CLOSED
    assert again["dielectric_electronic"] == 4.0
    assert lab.measure(CLOSED, 0, 0, "gap")["status"] == "failed:scf-not-converged"
    assert lab.measure(RANDOM, 0, 0, "both")["paid_by"] == CLOSED
    assert len(asked_of) == 3


def test_crystals_go_by_the_ids_of_what_was_read():
    """A file rounds coordinates, so the id that stands in it is that of a slightly different crystal."""
    table, pool = real.as_read(
        pd.DataFrame({"id": ["as-drawn"], "structure": [rocksalt("Na", "Cl", 5.6)], "e_above_hull": [0.02]})
    )
    assert table["id"].tolist() == [pool[0].id]
    calls = [{"arm": CLOSED, "id": pool[0].id, "formula": "NaCl", "status": OK, "step": "gap", "seconds": 1.0}]
    predictions = pd.DataFrame({"id": [], "merit": [], "std": [], "turn": []})
    assert verified(calls, table, predictions)["e_above_hull"].tolist() == [0.02]


def test_a_run_from_before_there_was_a_hull_resumes(tmp_path):
    real._same_settings(tmp_path, real.RealConfig())
    path = tmp_path / "settings.json"
    before = {k: v for k, v in json.loads(path.read_text()).items() if k.removeprefix("dft.") not in HULL}
    assert "dft.preset" in before
    path.write_text(json.dumps(before))
    real._same_settings(tmp_path, real.RealConfig())
    with pytest.raises(ConfigError, match=r"dft\.min_gap"):
        real._same_settings(tmp_path, real.RealConfig(dft=replace(real.RealConfig().dft, min_gap=0.7)))


def test_the_table_of_verified_crystals_and_the_summary():
    config = SimpleNamespace(costs=Costs(1.0, 3.0), dft=SimpleNamespace(min_gap=0.1))
    calls = [
        {"arm": CLOSED, "turn": 0, "id": "a", "formula": "LiF", "step": "gap", "status": OK, "band_gap": 8.0,
         "seconds": 5.0},
        {"arm": CLOSED, "turn": 0, "id": "a", "formula": "LiF", "step": "dielectric", "status": OK, "band_gap": 8.0,
         "dielectric_electronic": 2.5, "seconds": 20.0},
        {"arm": PAPER, "turn": 0, "id": "a", "formula": "LiF", "step": "both", "status": OK, "band_gap": 8.0,
         "dielectric_electronic": 2.5, "seconds": 0.0, "paid_by": CLOSED},
        {"arm": PAPER, "turn": 0, "id": "b", "formula": "NaCu", "step": "both", "status": OK, "band_gap": 0.0,
         "message": "the gap is below 0.1 eV", "seconds": 7.0},
    ]  # fmt: skip
    predictions = pd.DataFrame({"id": ["a", "b"], "merit": [18.0, 9.0], "std": [2.0, 2.0], "turn": [0, 0]})
    table = pd.DataFrame({"id": ["a", "b"], "e_above_hull": [0.0, 0.05]})
    found = verified(calls, table, predictions)
    assert found["merit"].iloc[0] == 20.0
    assert found["arms"].tolist() == [f"{CLOSED} {PAPER}", PAPER]
    assert np.isnan(found["merit"].iloc[1])
    told = summary(calls, CLOSED, config, 17.5)
    assert (told["best_merit"], told["above_threshold"], told["evaluations"], told["seconds"]) == (20.0, 1, 1.0, 25.0)
    assert summary(calls, PAPER, config, 17.5)["seconds"] == 5.0 + 20.0 + 7.0  # what it would have paid itself
    assert summary(calls, PAPER, config, 17.5)["metals"] == 1
    steps = progress_of(calls, PAPER, config, 17.5)
    assert steps["best"].tolist() == [20.0, 20.0]


def test_the_verb_gives_its_interpreter_and_keeps_the_usual_settings(monkeypatch, table, tmp_path):
    from typer.testing import CliRunner

    from flows.cli.benchmarks import app

    told = []
    monkeypatch.setattr(real, "run", lambda data, output, config, report: told.append(config) or {"results": {}})
    asked = ["dielectric-dft", "-o", str(tmp_path), "--data", str(table), "--python", "other", "--cores", "1"]
    result = CliRunner().invoke(app, [*asked, "--set", "dft.settings.scf_eigenstates=1e-6", "--set", "turns=2"])
    assert result.exit_code == 0, result.output
    (config,) = told
    assert (config.dft.preset, config.dft.max_atoms, config.dft.numbers.scf_eigenstates) == ("test", 6, 1e-6)
    assert (config.dft.resources.python, config.dft.resources.cores, config.turns) == ("other", 1, 2)


def test_only_what_can_be_ionic_goes_to_dft():
    salt, alloy, anions = Candidate(rocksalt("Na", "Cl")), Candidate(rocksalt("Na", "Mg")), real.RealConfig().anions
    assert [real.is_ionic(one, anions) for one in (salt, alloy)] == [True, False]
    assert real.is_ionic(alloy, ())
