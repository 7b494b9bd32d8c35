"""The benchmark of two properties: hypervolumes against closed forms and botorch, retrieval, and a run in small."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated

from flows.benchmarks.rl.hull import JudgeConfig
from flows.benchmarks.rl.megnet_gaps import gap_of
from flows.benchmarks.rl.properties import TERMS, PropertiesConfig, reward_of, run
from flows.benchmarks.rl.properties_figure import table
from flows.benchmarks.rl.properties_front import (
    dominated_share,
    front_of,
    hypervolume,
    points_of,
    resampled,
    shares,
    summarise_fronts,
)
from flows.benchmarks.rl.properties_models import LearningConfig, OnePass, Tables, errors
from flows.benchmarks.rl.run import RecipeOverrides
from flows.benchmarks.rl.variants import REWARD, VARIANTS
from loop.errors import ConfigError, InputError
from loop.io.cif_writer import to_cif
from tests.fakes import ANIONS, CATIONS, best_length, rocksalt


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([], 0.0),
        ([(2.0, 3.0)], 6.0),
        ([(2.0, 3.0), (1.0, 1.0), (2.0, 3.0)], 6.0),  # dominated ones and copies add nothing
        ([(3.0, 1.0), (1.0, 2.0), (2.0, 1.5)], 3 * 1 + 2 * 0.5 + 1 * 0.5),
        ([(5.0, 0.0), (-1.0, 4.0)], 0.0),  # not beyond the reference in both
    ],
)
def test_hypervolume_of_staircases(points, area):
    assert hypervolume(np.array(points)) == pytest.approx(area)


def test_hypervolume_agrees_with_botorch():
    points = np.random.default_rng(0).normal(0.5, 1, (60, 2))
    reference = (0.2, -0.1)
    tensor = torch.as_tensor(points)
    theirs = Hypervolume(torch.tensor(reference, dtype=torch.float64)).compute(tensor[is_non_dominated(tensor)])
    assert hypervolume(points, reference) == pytest.approx(theirs)


def test_dominated_share():
    front = np.array([[1.0, 2.0], [2.0, 1.0]])
    assert dominated_share(front, np.array([[1.5, 2.5]])) == 0.5
    assert dominated_share(front, front) == 1.0
    assert np.isnan(dominated_share(front[:0], front))


def rows(points, known=(), **more):
    """Samples that all count and are new, but for the known ones."""
    n = len(points)
    flags = {name: [True] * n for name in ("structure_valid", "composition_valid", "accepted", "unique")}
    known = np.isin(np.arange(n), known)
    points = np.array(points, dtype=float)
    frame = {"sparse_hull": [False] * n, "formula": [f"X{k}" for k in range(n)], "e_above_hull": [0.05] * n, **flags}
    frame |= {"known": known, "replay": known, "new": ~known, "band_gap": points[:, 0], "ln_eps": points[:, 1]}
    return pd.DataFrame(frame | more)


def test_only_valid_crystals_near_the_hull_count():
    frame = rows([(1, 1)] * 6, e_above_hull=[0.1, 0.11, -0.6, np.nan, 0.0, 0.0], accepted=[True] * 5 + [False])
    np.testing.assert_array_equal(points_of(frame, "surrogate").sum(axis=1), [2, 0, 0, 0, 2, 0])
    unknown = rows([(1, 1), (np.nan, 1), (1, np.nan), (0.4, 1)])
    np.testing.assert_array_equal(points_of(unknown, "surrogate").sum(axis=1), [2, 0, 0, 0])


def test_front_is_sorted_and_holds_copies_once():
    points, members = front_of(rows([(3, 1), (1, 3), (1, 1), (3, 1), (0, 9)]), "surrogate")
    np.testing.assert_array_equal(points, [(1, 3), (3, 1)])
    assert members["formula"].tolist() == ["X1", "X0"]


def test_bootstrap_of_one_hit_in_n():
    """A draw of n from n samples misses the one that counts with probability (1 - 1/n)^n."""
    n = 20
    frame = rows([(2, 3)] + [(0, 0)] * (n - 1))
    drawn = resampled([frame, frame], "surrogate", new=False, draws=4000, seed=0)
    assert drawn.mean() == pytest.approx(6 * (1 - (1 - 1 / n) ** n), rel=0.03)
    assert set(np.round(drawn, 9)) == {0.0, 3.0, 6.0}


def test_gain_and_its_known_part():
    base = rows([(2, 1), (0, 0)])
    tuned = rows([(4, 1), (2, 2)], known=[0])
    found = summarise_fronts({"base": [base, base], "tuned": [tuned, tuned]}, draws=200)["surrogate"]
    entry = found["tuned"]
    assert found["base"]["hypervolume_seeds"] == [2.0, 2.0]
    assert entry["hypervolume"]["value"] == pytest.approx(6.0)
    assert entry["ratio"]["value"] == pytest.approx(3.0)
    assert entry["ratio"]["low"] < 3.0 <= entry["ratio"]["high"]
    assert entry["ratio_new"]["value"] == pytest.approx(2.0)  # what is new has an area of 4
    assert (entry["hypervolume_gain"], entry["hypervolume_gain_new"]) == pytest.approx((4.0, 2.0))
    assert (entry["dominated"], entry["dominates_back"]) == (1.0, 0.0)
    assert entry["mean_area"] == pytest.approx((4 + 4) / 2)
    assert entry["gain_by_known"] == pytest.approx(2.0 / 3.0)  # 4 of 8 are known; the base has 2, none of them known
    assert entry["front_known"]["value"] == 0.5
    assert entry["top50_known"]["value"] == 0.5
    assert found["base"]["gain_by_known"] is None


def test_shares_and_table():
    arms = {"base": [rows([(1, 1)] * 10, accepted=[True] * 4 + [False] * 6)], "tuned": [rows([(2, 1)] * 10, known=[0])]}
    found = shares(arms)
    assert found["base"]["counting"]["value"] == 0.4
    assert found["tuned"]["counting_ratio"]["value"] == pytest.approx(2.5)
    assert found["tuned"]["known_of_counting"]["value"] == 0.1
    lines = table({"shares": found, "fronts": summarise_fronts(arms, 20)}).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("surrogate,tuned,2.000,2.000,2.000,2.000,")


def test_one_pass_computes_each_crystal_once():
    asked = []

    def compute(structures):
        asked.extend(structures)
        return np.array([s.volume for s in structures]), np.array([[len(s), 0.0] for s in structures])

    one_pass = OnePass(compute)
    crystals = [rocksalt("Na"), rocksalt("K"), rocksalt("Na")]
    energies, descriptors = one_pass(crystals)
    np.testing.assert_allclose(energies, [s.volume for s in crystals])
    assert descriptors.shape == (3, 2)
    one_pass(crystals[::-1])
    assert len(asked) == 2
    one_pass.KEEP = 2
    one_pass([rocksalt("Li")])
    one_pass([rocksalt("Na")])  # forgotten
    assert len(asked) == 4


PAIRS = [(cation, anion) for cation in CATIONS for anion in ANIONS]


def published(path, **columns):
    """Rocksalt crystals, whose gap falls and whose constant rises with the size."""
    crystals = [rocksalt(*pair) for pair in PAIRS]
    crystals = [rocksalt(*pair, best_length(s)) for pair, s in zip(PAIRS, crystals, strict=True)]
    size = np.array([s.lattice.a for s in crystals])
    frame = {"cif": [to_cif(s) for s in crystals], "band_gap": 12 - size, "eps_electronic": size / 2}
    frame["split"] = np.where(np.arange(len(crystals)) % 2, "train", "test")
    table = pd.DataFrame(frame | columns)
    table.to_csv(path, index=False)
    return table


def test_labels_and_splits(tmp_path):
    eps = np.tile([2.0, 0.5, 50.0, np.nan], 12)
    gap = np.r_[0.05, np.full(47, 3.0)]
    path = tmp_path / "table.csv"
    published(path, band_gap=gap, eps_electronic=eps, split=["train"] * 40 + ["test"] * 8)
    tables = Tables.read(path)
    assert np.isfinite(tables.labels[:, 1]).sum() == 11  # in range, and no metal
    np.testing.assert_allclose(tables.labels[4], [3.0, np.log(2.0)])
    train = tables.draw(12, 0, train=True)
    assert len(train.candidates) == 9 + 12
    assert np.isfinite(train.labels).sum(axis=0).tolist() == [21, 9]
    answers = train.evaluations()
    assert sum("ln_eps" in answer.properties for answer in answers) == 9
    with pytest.raises(InputError, match="at least 20"):
        tables.draw(5, 0, train=False)
    pd.DataFrame({"cif": ["x"]}).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"lacks band_gap, eps_electronic, split"):
        Tables.read(path)


def test_errors():
    found = errors(np.array([1.0, 2.0, 3.0, np.nan]), np.array([1.5, 2.0, 2.5, 1.0]))
    assert found == {"n": 3, "mae": pytest.approx(1 / 3, abs=1e-4), "r2": pytest.approx(1 - 0.5 / 2)}


class Network:
    def predict_structure(self, structure, **_):
        if len(structure) > 2:
            raise RuntimeError("no graph")
        return -0.3 if structure.lattice.a < 4 else 1.25


def test_a_gap_is_not_negative_and_may_be_missing():
    cell = np.eye(3)
    crystals = [([11, 17], a * cell, [[0, 0, 0], [0.5, 0.5, 0.5]]) for a in (3.5, 5.0)]
    crystals.append(([11] * 3, 5 * cell, np.zeros((3, 3)) + np.arange(3)[:, None] / 3))
    assert [gap_of((Network(), None), crystal) for crystal in crystals] == [0.0, 1.25, None]


def test_variants_keep_the_terms_and_differ_in_novelty():
    for name in ("tuned", "no-novelty"):
        reward = reward_of(VARIANTS[name].settings(PropertiesConfig().recipe_config)[1])
        assert reward.terms == TERMS
        assert reward.known_factor == (1.0 if name == "no-novelty" else 0.0)
    assert reward_of(REWARD).kappa == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("tuned",)}, "the base"),
        ({"variants": ("base", "x")}, "no such variant"),
        ({"draws": 0}, "positive"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        PropertiesConfig(**changes)


def megnet(tmp_path):
    """An interpreter that answers 2 eV for every crystal; it gets script, model, input, output."""
    code = "import json, sys; json.dump([2.0 for _ in json.load(open(sys.argv[1]))], open(sys.argv[2], 'w'))"
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path}/runs\nexec {sys.executable} -c "{code}" "$3" "$4"\n')
    script.chmod(0o755)
    return JudgeConfig(model=tmp_path / "MEGNet", python=script)


def test_a_run_in_small_and_again(tmp_path):
    published(tmp_path / "table.csv")
    config = PropertiesConfig(
        variants=("base", "tuned"),
        seeds=1,
        samples=20,
        draws=20,
        judge=megnet(tmp_path),
        learning=LearningConfig(gaps=4, held_out=4, forest_gaps=4, trees=5),
        recipe=RecipeOverrides(iterations=1, batch_size=12, minibatch_size=12),
    )
    record = run(tmp_path / "table.csv", tmp_path / "out", config)
    assert set(record["results"]["fronts"]) == {"surrogate", "forest", "megnet"}
    assert record["predictors"]["band_gap"]["labels"] == 24
    assert record["predictors"]["ln_eps"]["r2"] > 0.8  # a smooth function of the cell
    assert record["predictors"]["forest_ln_eps"]["n"] == 24
    assert [told["evaluations"] for told in record["runs"]] == [0, 12]
    assert record["results"]["shares"]["tuned"]["samples"] == 20
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"record.json", "table.csv", "fronts.png", "curves.png"} <= written
    assert str(tmp_path) not in (tmp_path / "out" / "record.json").read_text()
    assert "megnet_gaps.py" in (tmp_path / "runs").read_text()
    made = [*(tmp_path / "out" / "cells").iterdir(), tmp_path / "out" / "work" / "held_out.json"]
    before = [path.stat().st_mtime_ns for path in made]
    again = run(tmp_path / "table.csv", tmp_path / "out", replace(config, variants=("base",), judge=JudgeConfig()))
    assert [path.stat().st_mtime_ns for path in made] == before
    areas = [told["results"]["fronts"]["forest"]["base"]["hypervolume"]["value"] for told in (again, record)]
    assert areas[0] == pytest.approx(areas[1], rel=1e-6)
    assert set(again["results"]["fronts"]) == {"surrogate", "forest"}
    with pytest.raises(ConfigError, match="other settings of samples"):
        run(tmp_path / "table.csv", tmp_path / "out", PropertiesConfig(samples=25, learning=config.learning))
