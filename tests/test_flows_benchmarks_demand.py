"""The hull on demand against the complete one, with the shipped energies as answers."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from flows.benchmarks.oracles.demand import OTHER, OWN, DemandConfig, run
from loop.errors import ConfigError, InputError

FORMULAS = ["MgO2", "Al3Ni", "Na2Cl", "CaMgSi", "TiN2"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "crystals.csv"
    splits = ["test"] * len(FORMULAS) + ["train"]
    pd.DataFrame({"pretty_formula": [*FORMULAS, "LiF"], "split": splits}).to_csv(path, index=False)
    return path


def test_both_ways_of_proposing_give_the_complete_hull(data, tmp_path):
    record = run(data, tmp_path / "r", DemandConfig())
    for told in record["results"].values():
        assert told["crystals"] == told["judged"] == told["equal"] == len(FORMULAS)
        assert told["largest_difference"] < 1e-6
        assert told["decide"] <= told["relaxed"] <= told["looked_at"] <= told["phases"]
    own, other = record["results"][OWN], record["results"][OTHER]
    assert own["phases"] == other["phases"] > 30
    assert own["looked_at"] == own["relaxed"] < 0.7 * own["phases"]
    assert other["looked_at"] > own["looked_at"]  # what another potential says needs a wider margin
    table = pd.read_csv(tmp_path / "r" / "table.csv")
    assert set(table.formula) == set(FORMULAS)
    assert json.loads((tmp_path / "r" / "record.json").read_text())["results"] == record["results"]


def test_phases_that_relax_by_more_than_their_margin_are_missed(data, tmp_path):
    """The comparison can fail: with no margin at all, what another potential proposes is not the hull."""
    record = run(data, tmp_path / "r", DemandConfig(other_margin=0.0))
    assert record["results"][OTHER]["relaxed"] < record["results"][OWN]["relaxed"] + 5
    with pytest.raises(ConfigError, match="margins of at least 0"):
        DemandConfig(own_margin=-0.1)


def test_a_table_without_a_test_split_is_refused(tmp_path):
    path = tmp_path / "crystals.csv"
    pd.DataFrame({"pretty_formula": ["LiF"], "split": ["train"]}).to_csv(path, index=False)
    with pytest.raises(InputError, match="rows of the test split"):
        run(path, tmp_path / "r", DemandConfig())
    pd.DataFrame({"formula": ["LiF"]}).to_csv(path, index=False)
    with pytest.raises(InputError, match="pretty_formula"):
        run(path, tmp_path / "r", DemandConfig())
