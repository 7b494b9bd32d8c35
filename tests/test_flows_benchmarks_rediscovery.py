"""Crystals that nobody here trained on, found again: what counts, and what a rate of them is."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from flows.benchmarks.generator.rediscovery import BASE, TUNED, Hidden, RediscoveryConfig, run, summary
from loop.errors import ConfigError, InputError
from loop.fingerprint import fingerprint
from loop.known import KnownCrystals
from loop.novelty import NoveltyIndex
from loop.values import KNOWN, NEW


def rock_salt(one: str, other: str, a: float) -> Structure:
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), [one, other], [[0, 0, 0], [0.5, 0.5, 0.5]])


NACL = "mp-22862"  # of the test split: no one here trained on it, and the package has no crystal of it


@pytest.fixture(scope="module")
def hidden():
    return Hidden({NACL: rock_salt("Na", "Cl", 5.69)}, KnownCrystals.shipped())


def test_a_hidden_crystal_counts_as_new_and_is_found_again(hidden):
    forms = [
        rock_salt("Na", "Cl", 5.5).get_primitive_structure(),
        rock_salt("Mg", "O", 4.2),
        rock_salt("Na", "Cl", 5.7),
    ]
    assert NoveltyIndex(KnownCrystals.shipped()).judge(forms[:1], ["x"])[0].match == NACL
    judged = hidden.judge(forms)
    assert judged["new"].tolist() == [True, False, False]  # MgO is known, the third equals the first
    assert judged["found"].tolist() == [NACL, "", ""]
    assert hidden.fingerprints == 1


def test_another_crystal_of_the_same_formula_is_new_and_finds_nothing(hidden):
    zincblende = Structure.from_spacegroup("F-43m", Lattice.cubic(6.4), ["Na", "Cl"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    judged = hidden.judge([zincblende])
    assert judged["new"].tolist() == [True]
    assert judged["found"].tolist() == [""]


def test_rows_of_the_table_of_known_crystals_can_be_left_out():
    shipped = KnownCrystals.shipped()
    kept = np.arange(len(shipped)) % 3 != 0
    part = shipped.where(kept)
    rows = np.flatnonzero(kept)
    assert len(part) == len(rows)
    for new, old in [(k, int(rows[k])) for k in (0, 1, 5000, len(rows) - 1)]:
        assert part.id(new) == shipped.id(old)
        assert part.symmetries(new) == shipped.symmetries(old)
        assert part.in_training(new) == shipped.in_training(old)
    twofold = [k for k in range(2000) if len(part.symmetries(k)) == 2]
    assert twofold
    assert all(part.symmetries(k) == shipped.symmetries(int(rows[k])) for k in twofold)
    crystal = rock_salt("Na", "Cl", 5.69)
    without = shipped.where(np.array([shipped.id(row) != NACL for row in range(len(shipped))]))
    kinds = [NoveltyIndex(table).judge([crystal], ["x"])[0].kind for table in (shipped, without)]
    assert kinds == [KNOWN, NEW]
    assert len(without.distances(fingerprint(crystal), without.of_formula(fingerprint(crystal).formula))) == 2


def test_rates_and_their_ratio():
    rows = [("base", True, "")] * 96 + [("base", True, "mp-1")] * 4 + [("base", False, "")] * 50
    rows += [("tuned", True, "")] * 92 + [("tuned", True, "mp-1")] * 2 + [("tuned", True, "mp-2")] * 6
    samples = pd.DataFrame(rows, columns=["arm", "new", "found"]).assign(chemistry="oxides")
    told = summary(samples)
    assert told["oxides"] == told["all"]
    assert told["all"][BASE]["new"] == 100
    assert told["all"][BASE]["crystals"] == 150
    assert told["all"][TUNED]["different"] == 2
    assert told["all"][BASE]["per_1000_new"] == 40
    assert told["all"][BASE]["per_1000_new_95"] == pytest.approx([15.66, 98.37], abs=0.01)  # Wilson, by hand
    assert told["all"]["ratio"] == 2
    assert told["all"]["ratio_95"][0] < 1 < 2 < told["all"]["ratio_95"][1]


def test_a_run_compares_checkpoints_and_resumes(tmp_path):
    data = tmp_path / "crystals.csv"
    cif = rock_salt("Na", "Cl", 5.69).to(fmt="cif")
    pd.DataFrame({"material_id": [NACL, "mp-2"], "split": ["test", "train"], "cif": [cif, cif]}).to_csv(
        data, index=False
    )
    config = RediscoveryConfig(tuned=("shipped",), samples=24)
    record = run(data, tmp_path / "r", config)
    told = record["results"]["all"]
    assert told[BASE] == told[TUNED]  # the same weights and seed
    assert 0 < told[BASE]["new"] <= told[BASE]["crystals"] <= 24
    assert record["data"]["hidden"] == 1
    assert "shipped" not in json.dumps(record["settings"])
    part = next((tmp_path / "r" / "parts").iterdir())
    part.write_text("new,found,chemistry,formula\nTrue,mp-1,oxides,X\n")
    assert run(data, tmp_path / "r", config)["results"]["all"][BASE]["found_again"] == 1  # read, not drawn again


def test_tables_without_a_split_are_refused(tmp_path):
    data = tmp_path / "crystals.csv"
    cif = rock_salt("Na", "Cl", 5.69).to(fmt="cif")
    pd.DataFrame({"material_id": ["a"], "cif": [cif]}).to_csv(data, index=False)
    with pytest.raises(InputError, match="no column split"):
        run(data, tmp_path / "r", RediscoveryConfig())
    pd.DataFrame({"material_id": ["a"], "split": ["train"], "cif": [cif]}).to_csv(data, index=False)
    with pytest.raises(InputError, match="no readable crystal whose split is 'test'"):
        run(data, tmp_path / "r", RediscoveryConfig())
    with pytest.raises(ConfigError, match="at least 1"):
        RediscoveryConfig(samples=0)


def test_a_hidden_crystal_of_an_element_is_found_again():
    """It is a textbook crystal, which an index as shipped takes for known."""
    arsenic_like = Structure.from_spacegroup("R-3m", Lattice.hexagonal(4.546, 11.862), ["Bi"], [[0, 0, 0.234]])
    judged = Hidden({"mp-23152": arsenic_like}, KnownCrystals.shipped()).judge([arsenic_like])
    assert judged.iloc[0].tolist() == [True, "mp-23152"]
