"""The generator's benchmarks: they measure what they say, on networks and data small enough for a test."""

import json
from itertools import count

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.benchmarks.clock import timed
from flows.benchmarks.generator import conditions, learning, preparation, sampling, training
from flows.cli import app
from generator.pretrain import CLOCKS
from tests.test_generator_likelihood import SMALL, random_model

TINY = {"layers": 1, "heads": 4, "head_size": 16, "width": 16, "embedding": 8}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    """Crystals of a random network as a file of tokens."""
    from generator.data import Prepared
    from generator.model import ModelConfig
    from generator.sample import sample

    rng = np.random.default_rng(0)
    batch = sample(random_model(ModelConfig(**SMALL), scale=0.5), rng.choice([62, 194, 225], 1000), rng).batch
    path = tmp_path_factory.mktemp("tokens") / "tokens.npz"
    rows = np.arange(len(batch))
    Prepared(batch, rows, rows.astype(str), ()).save(path)
    return path


def test_sampling_counts_crystals_and_can_fill_all_slots(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "SIZES", {"published": TINY, "small": TINY})
    record = sampling.run(tmp_path, batch=8, repetitions=1)
    row = record["results"]["published"]
    assert row["full_sites"] == 20
    assert 1 <= row["mean_sites"] < 20
    assert row["crystals_per_second"] == pytest.approx(8 / row["sampled"]["cpu_seconds"])
    assert row["crystals_per_second_full"] < row["crystals_per_second"]
    assert row["ratio"] == pytest.approx(2 * row["crystals_per_second"] / 0.117)
    assert json.loads((tmp_path / "record.json").read_text())["original"].startswith("CrystalFormer v0.4.2")


def test_full_crystals_leave_the_network_as_it_was():
    import torch

    from generator.model import CrystalFormer, ModelConfig

    model = CrystalFormer(ModelConfig.published(**TINY)).eval()
    before = model.head.bias.clone()
    assert sampling.draw_full(model, np.array([1, 225, 62]), np.random.default_rng(0)) == 20
    assert torch.equal(model.head.bias, before)


def test_training_times_both_layouts(tmp_path, tokens, monkeypatch):
    monkeypatch.setattr(training, "SIZES", {"small": TINY})
    monkeypatch.setattr(training, "BATCH", 20)
    record = training.run(tmp_path, tokens, steps=3)
    row = record["results"]["small"]
    assert row["steps"] == 3
    for layout in ("published", "own"):
        assert row[layout]["ratio_cpu"] == pytest.approx(1.16 / row[layout]["cpu_seconds"])
    assert record["crystals"]["number"] == 1000


def test_learning_goes_on_where_it_was_cut_off(tmp_path, tokens, monkeypatch):
    ticks = count()  # each look at the clock is a fiftieth of a second, so that a slow machine trains as long
    monkeypatch.setitem(CLOCKS, "cpu", lambda: next(ticks) / 50)
    monkeypatch.setattr(learning, "SMALL", TINY)
    config = learning.LearningConfig(crystals=300, held_out=100, choice=50, seconds=1.0, validate_every=3)
    record = learning.run(tokens, tokens, tmp_path, config)
    results = record["results"]
    frame = pd.read_csv(tmp_path / "curve.csv")
    assert frame["step"].is_monotonic_increasing
    assert frame["nll"].iloc[-1] < frame["nll"].iloc[0]
    assert results["last"]["published_definition"]["nll"] == pytest.approx(frame["nll"].iloc[-1])
    best = frame["nll"][frame["choice"].argmin()]
    assert results["nats_below_the_original"] == pytest.approx(27.53 - best)
    again = learning.run(tokens, tokens, tmp_path, config)  # nothing is left to do
    assert again["results"]["last"] == results["last"]
    curve = learning.Curve(tmp_path / "curve.csv")
    row = frame.iloc[0].to_dict()
    held_out = {name: dict.fromkeys(learning.TERMS, 1.0) for name in learning.DEFINITIONS}
    curve.add(row | {"nll": 2.0}, held_out)  # a step that is done once more
    assert len(curve.frame()) == 1


def test_preparation_finds_every_planted_row(tmp_path):
    record = preparation.run(tmp_path, n=220, broken=10)
    results = record["results"]
    assert results["failures"] == {"unreadable": 5, "disordered": 5}
    assert results["all_planted_found"]
    assert results["crystals"] == 210
    assert 0 < results["cpu_seconds"] < 60
    assert len(pd.read_csv(tmp_path / "failures.csv")) == 10


def test_conditions_are_counted_on_the_crystals(tmp_path, monkeypatch):
    record = conditions.run(tmp_path, n=12, cases=("formula", "n_atoms", "require", "sites"))
    assert record["all_comply"]
    wrong = conditions.Case({"exclude": ("O",)}, conditions.CASES["require"].keeps)
    monkeypatch.setitem(conditions.CASES, "require", wrong)
    again = conditions.run(tmp_path, n=12, cases=("require",))
    assert again["results"]["require"]["complying"] == 0
    assert not again["all_comply"]


def test_verbs_are_there():
    done = CliRunner().invoke(app, ["benchmark", "--help"])
    for name in ("sampling", "training", "learning", "preparation", "conditions"):
        assert name in done.stdout


def test_times_are_taken_in_turns():
    calls = []
    times = timed({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2)
    assert calls == ["a", "b"] * 3  # the first turn is a warm-up
    assert len(times["a"].wall) == 2
