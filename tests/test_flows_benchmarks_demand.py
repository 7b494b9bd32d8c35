"""The hull on demand against the complete one, with the shipped energies as answers."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pytest

from flows.benchmarks.oracles.demand import (
    ALL,
    JUDGE,
    OTHER,
    OWN,
    POINTS,
    Answers,
    Compounds,
    DemandConfig,
    compare,
    run,
)
from loop.errors import ConfigError, InputError
from loop.hull import Hull, HullEntry, symbols_of
from loop.values import EnergyType
from oracles.references.crystals import Known, load_reference_crystals
from oracles.references.hull_on_demand import DemandHull
from oracles.references.phase_estimates import Estimates
from oracles.references.table import References, is_element, shipped_tables

FORMULAS = ["MgO2", "Al3Ni", "Na2Cl", "CaMgSi", "TiN2"]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "crystals.csv"
    splits = ["test"] * len(FORMULAS) + ["train"]
    pd.DataFrame({"pretty_formula": [*FORMULAS, "LiF"], "split": splits}).to_csv(path, index=False)
    return path


@pytest.fixture
def folder(tmp_path):
    """Where an earlier run left energies of the polymorphs: as far above the table's crystal as published."""
    crystals, own = load_reference_crystals(), next(t for t in shipped_tables() if t.energy_type.method == JUDGE)
    lowest = dict(zip(own.formulas, zip(own.ids, own.energies_of(relaxed=False).tolist(), strict=True), strict=True))
    rows = {}
    for formula in FORMULAS:
        for id in crystals.in_system(symbols_of(formula)):
            known = crystals.known(id)
            if id in own.ids or is_element(known.formula):
                continue
            base, energy = lowest.get(known.formula, (None, 0.0))
            above = 0.0 if base is None else known.e_above_hull - crystals.known(base).e_above_hull
            rows[id] = energy + (0.05 if not above > 0 else above)
    table = pd.DataFrame(sorted(rows.items()), columns=["id", "energy"])
    (tmp_path / "r").mkdir()
    table.to_csv(tmp_path / "r" / POINTS, index=False)
    return tmp_path / "r", rows


def test_each_way_of_proposing_gives_the_complete_hull(data, folder, tmp_path):
    output, polymorphs = folder
    record = run(data, output, DemandConfig())
    for told in record["results"].values():
        assert told["crystals"] == told["judged"] == told["equal"] == len(FORMULAS)
        assert told["largest_difference"] < 1e-6
        assert told["decide"] <= told["relaxed"] <= told["looked_at"] <= told["phases"]
    whole, own, other = (record["results"][name] for name in (ALL, OWN, OTHER))
    assert whole["phases"] > own["phases"]
    assert whole["phases"] <= own["phases"] + len(polymorphs)
    assert whole["looked_at"] < 0.5 * whole["phases"]
    assert own["phases"] == other["phases"] > 30
    assert own["looked_at"] == own["relaxed"] < 0.7 * own["phases"]
    assert other["looked_at"] >= own["decide"]
    table = pd.read_csv(tmp_path / "r" / "table.csv")
    assert set(table.formula) == set(FORMULAS)
    assert json.loads((tmp_path / "r" / "record.json").read_text())["results"] == record["results"]


class Published:
    """Two compounds of magnesium and oxygen."""

    checksum = "two"

    def known(self, id):
        return Known(id, id, 1, 0.0, "", -1.0, "", "")

    def __contains__(self, id):
        return id in ("MgO", "Mg3O")


@pytest.mark.parametrize(("margin", "equal"), [(0.03, 0), (0.35, 1)])
def test_a_phase_that_relaxes_by_more_than_its_margin_is_missed_and_told(margin, equal):
    """The comparison can fail: Mg3O looks 0.1 above the hull, and lies 0.2 below it once it is relaxed."""
    kind = EnergyType("test", "none", "none")
    corners = {symbol: {"name": symbol, "energy": 0.0} for symbol in ("Mg", "O")}
    points = np.array([-1.0, -0.4])
    table = References(("MgO", "Mg3O"), points, ("MgO", "Mg3O"), points > 0, kind, "", {"corners": corners})
    source, relaxing = Compounds(table.ids, Published()), {"MgO": -1.0, "Mg3O": -0.7}
    answers = Answers(table, dict(zip(table.ids, points, strict=True)), relaxing)
    entries = [HullEntry(id, energy, id) for id, energy in relaxing.items()]
    complete = Hull([*entries, HullEntry("Mg", 0.0, "Mg"), HullEntry("O", 0.0, "O")], kind)
    told, _ = compare(DemandHull(answers, source, Estimates([table], kind, own_margin=margin)), complete, ["Mg3O"])
    assert told["equal"] == equal
    assert told["largest_difference"] == pytest.approx(0.0 if equal else 0.2)


def test_margins_are_checked():
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


@pytest.mark.parametrize(
    ("content", "said"), [(b"id,height\nmp-1,1.0\n", "columns id and energy"), (b"id,energy\nmp-1,low\n", "low")]
)
def test_a_broken_file_of_energies_is_refused(data, folder, content, said):
    output, _ = folder
    packed = gzip.compress(content)
    (output / POINTS).write_bytes(packed)
    with pytest.raises(InputError, match=said):
        run(data, output, DemandConfig())
    (output / POINTS).write_bytes(packed[:-4])
    with pytest.raises(InputError, match="cut off"):
        run(data, output, DemandConfig())
