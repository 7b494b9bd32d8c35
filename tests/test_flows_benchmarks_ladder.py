"""The benchmark of steps between fidelities, on worlds whose answer is known."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from flows.benchmarks.pool.ladder import OURS, RANDOM, RANK, TASKS, LadderConfig, World, load, run, simulate
from loop.errors import ConfigError, InputError
from loop.io.cif_writer import to_cif
from loop.values import Candidate
from tests.fakes import best_length, rocksalt

CONFIG = LadderConfig(seeds=2, crystals=60, pool=60, initial=4, batch=4, budget=16, potential="ase.calculators.emt:EMT")
PAIRS = [(cation, anion) for cation in ("Mg", "Ca", "Sr", "Ba") for anion in ("O", "S", "Se")]


def crystals(n):
    """Rock salts with bonds about as long as they should be."""
    rng = np.random.default_rng(0)
    made = [rocksalt(*PAIRS[i % len(PAIRS)]) for i in range(n)]
    return [rocksalt(*PAIRS[i % len(PAIRS)], best_length(c) * rng.uniform(1.0, 1.1)) for i, c in enumerate(made)]


@pytest.fixture(scope="module")
def world():
    """The cheap value is 4 times too high for half of the crystals, which a feature tells."""
    rng = np.random.default_rng(1)
    wrong = np.arange(60) % 2
    high = np.exp(rng.normal(1.6, 0.5, 60))
    low = high * 4.0**wrong
    return World([Candidate(c) for c in crystals(60)], low, high, np.ones(60)), wrong[:, None].astype(float)


def campaign(world, strategy):
    part, features = world
    groups = {"kind": np.array([0])}
    return simulate(part, features, groups, TASKS["dielectric_electronic"], strategy, 0, CONFIG)


def test_the_step_is_learned_where_rank_is_misled(world):
    found = {name: campaign(world, name) for name in (RANDOM, RANK, OURS)}
    assert found[OURS]["found"] == 1.0
    assert found[OURS]["area"] > found[RANK]["area"] + 0.1
    assert all(each["measured"] == 16 for each in found.values())  # all spend the same
    assert found[OURS]["best"] == pytest.approx(world[0].high.max())


def test_dear_crystals_use_the_budget_up(world):
    part, features = world
    dear = World(part.candidates, part.low, part.high, np.full(60, 4.0))
    found = simulate(dear, features, {"kind": np.array([0])}, TASKS["dielectric_electronic"], RANK, 0, CONFIG)
    assert found["measured"] == 4


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(2)
    made = crystals(60)
    gap = rng.uniform(0.5, 6, 60)
    frame = pd.DataFrame({"cif": [to_cif(c) for c in made], "band_gap": gap})
    frame["eps_electronic"] = np.sqrt(95 / gap) * np.exp(rng.normal(0, 0.1, 60))
    frame["eps_total"] = frame["eps_electronic"] * rng.uniform(1, 4, 60)
    frame.loc[0, "band_gap"] = 0.0  # a metal
    path = tmp_path_factory.mktemp("ladder") / "table.csv"
    frame.to_csv(path, index=False)
    return path


def test_from_a_table_to_a_record(table, tmp_path):
    tasks = ("dielectric_total", "dielectric_electronic")
    record = run(table, tmp_path, LadderConfig(**{**CONFIG.__dict__, "tasks": tasks, "crystals": 59, "pool": 40}))
    rows = pd.read_csv(tmp_path / "campaigns.csv")
    assert len(rows) == 2 * 2 * 3
    assert json.loads((tmp_path / "record.json").read_text())["results"] == record["results"]
    for name in tasks:
        told, here = record["results"][name], rows[rows.task == name]
        mean = here[here.strategy == OURS].area.mean() - here[here.strategy == RANK].area.mean()
        assert told["ours - rank"]["mean"] == pytest.approx(mean, abs=1e-4)
        assert told["ours - rank"]["low"] <= told["ours - rank"]["mean"] <= told["ours - rank"]["high"]


def test_crystals_are_those_with_both_values(table):
    world = load(table, "dielectric_electronic", CONFIG)
    assert len(world.low) == 59
    assert world.cost.mean() == pytest.approx(1.0)
    assert np.abs(np.log(world.low / world.high)).max() < 0.5  # Moss's rule with noise


def test_refusals(table):
    with pytest.raises(InputError, match="log10_k_vrh"):
        load(table, "bulk_modulus", CONFIG)
    with pytest.raises(ConfigError, match="unknown tasks: colour"):
        LadderConfig(tasks=("colour",))
