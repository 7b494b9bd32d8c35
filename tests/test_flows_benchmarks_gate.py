"""The gate benchmark and the selection benchmark, small."""

import json

import numpy as np
import pytest

from flows.benchmarks.pool import selection
from flows.benchmarks.pool.gate import GateConfig, shortfall, summarise
from flows.benchmarks.pool.simulation import Campaign, Outcome
from flows.benchmarks.pool.tasks import Pool
from loop.errors import ConfigError
from tests.fakes import rocksalt


def test_shortfall_of_the_best_twenty():
    utilities = np.arange(1000.0)
    assert shortfall(utilities, range(1000)) == 0
    assert shortfall(utilities, range(980, 1000)) == 0
    assert shortfall(utilities, range(500)) == pytest.approx(500 / utilities[-20:].mean())
    assert shortfall(-utilities, range(20, 1000)) == pytest.approx((29.5 - 9.5) / 9.5)


def test_summary_cuts_at_shares_of_the_pool():
    utilities = np.arange(200.0)
    orders = [list(range(199, 159, -1)), list(range(40))]
    outcomes = [
        Outcome(Campaign(name, 0), [], [], order, [], 1.0)
        for name, order in zip(("greedy", "random"), orders, strict=True)
    ]
    rows = {(row["strategy"], row["share_of_calls"]): row for row in summarise("task", utilities, outcomes, (0.1, 0.2))}
    assert rows["greedy", 0.1]["calls"] == 20
    assert rows["greedy", 0.1]["shortfall"] == 0
    assert rows["random", 0.1]["shortfall"] > rows["random", 0.2]["shortfall"] > 0.8
    assert "band_gap_window" not in GateConfig().tasks
    pool = Pool("bulk_modulus", [None] * 200, utilities)
    assert GateConfig().of(pool).budget == 40
    with pytest.raises(ConfigError, match="at least 40 labels"):
        GateConfig(budget=30).of(pool)


def test_selection_chooses_from_cached_features_in_a_process_of_its_own(tmp_path, monkeypatch):
    config = selection.SelectionConfig(pool=150, batch=4, labels=20, draws=30, potential="none")
    apart = selection.in_process

    def in_process(work, *arguments):  # one process to start instead of two: only the choice is measured
        return apart(work, *arguments) if work is selection.choose else work(*arguments)

    monkeypatch.setattr(selection, "in_process", in_process)
    record = selection.run(tmp_path, config)
    assert record["results"]["chosen"] == 4
    assert record["results"]["pool"] == 130
    assert 0.1 < record["results"]["peak_gib"] < 4
    assert record["results"]["cpu_seconds"] <= record["results"]["wall_seconds"] * 2
    assert json.loads((tmp_path / "record.json").read_text())["settings"]["batch"] == 4
    first, second = selection.candidates(config, [rocksalt()], 2)
    assert first.id != second.id
    assert first.structure.volume != second.structure.volume
    with pytest.raises(ConfigError, match="larger than labels and batch"):
        selection.SelectionConfig(pool=10)
