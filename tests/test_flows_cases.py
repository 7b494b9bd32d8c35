"""Cases of tests/cases through the command line, with the shipped weights.

Which test covers which case: the folder's name, or "Case N", stands in it; the last test here looks for cases without.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from typer.testing import CliRunner

from flows.cli import app
from loop.hull import Hull, HullEntry
from loop.io.crystals import read_crystals
from loop.values import EnergyType

CASES = Path(__file__).parent / "cases"
NAMED = re.compile("ok|not-converged|timeout|failed:[a-z-]+")


def verb(*arguments: object) -> pd.DataFrame:
    """The table that a verb writes; arguments end with it."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    return pd.read_csv(str(arguments[-1]), keep_default_na=False, na_values=[""])


def test_own_columns_stay_under_another_name(tmp_path):
    """Case 48."""
    done = verb("hull", "-i", CASES / "48_own_columns_overwritten" / "rows.csv", "-o", tmp_path / "h.csv")
    assert done["input_e_above_hull"].tolist() == [0.123, 0.5]
    assert done["input_energy"].tolist() == [-8.31, -9]
    assert done["input_status"].tolist() == ["measured", "theory"]
    assert done["status"].tolist() == ["ok", "ok"]
    assert done["energy"].between(-13.5, -8).all()


def test_company_in_a_batch_changes_nothing(tmp_path):
    """Case 74: silicon alone, and among crystals of which two cannot be computed."""
    folder = CASES / "74_relax_batch_order"
    alone = verb("relax", "-i", folder / "a.csv", "-o", tmp_path / "a.csv").set_index("material_id")
    among = verb("relax", "-i", folder / "b.csv", "-o", tmp_path / "b.csv").set_index("material_id")
    assert among.index.tolist() == read_crystals(folder / "b.csv").ids
    assert among.loc["bad", "status"].startswith("failed:")
    assert (alone.loc["si", "status"], alone.loc["si", "steps"]) == ("ok", among.loc["si", "steps"])
    assert among.loc["si", "energy"] == pytest.approx(alone.loc["si", "energy"], abs=1e-4)


def test_no_steps_are_one_point(tmp_path):
    """Case 74."""
    given = CASES / "74_relax_batch_order" / "a.csv"
    point = verb("relax", "--max-steps", 0, "-i", given, "-o", tmp_path / "r.csv").iloc[0]
    single = verb("hull", "-i", given, "-o", tmp_path / "h.csv").iloc[0]
    assert (point["status"], point["steps"]) == ("not-converged", 0)
    assert point["energy"] == pytest.approx(single["energy"], abs=1e-4)


def test_crystals_that_fall_apart_end_with_a_name(tmp_path):
    """Case 75: crowded, sparse, skew."""
    began = time.process_time()
    done = verb("relax", "-i", CASES / "75_relax_explodes" / "x.csv", "-o", tmp_path / "r.csv")
    assert time.process_time() - began < 200
    assert len(done) == len(read_crystals(CASES / "75_relax_explodes" / "x.csv"))
    assert all(NAMED.fullmatch(status) for status in done["status"])
    assert np.isfinite(done.loc[done["status"] == "ok", "energy"]).all()
    failed = done[done["status"].str.startswith("failed")]
    assert all(len(str(message)) > 10 for message in failed["message"])


def test_five_cells_of_one_crystal_are_one(tmp_path):
    """Case 82: likelihood, distance from the hull, uniqueness."""
    given = CASES / "82_cell_choice" / "in.csv"
    likelihood = verb("likelihood", "-i", given, "-o", tmp_path / "l.csv")
    assert len(likelihood) == 5
    assert set(likelihood["status"]) == {"ok"}
    assert np.ptp(likelihood["logp"]) < 1e-3
    hull = verb("hull", "-i", given, "-o", tmp_path / "h.csv")
    assert np.ptp(hull["e_above_hull"]) < 1e-4
    run = ["evaluate-generator", "--input", given, "--reference", given, "--output", tmp_path / "e", "--relax", 0]
    done = CliRunner().invoke(app, [str(argument) for argument in run])
    assert done.exit_code == 0, done.stderr
    record = json.loads((tmp_path / "e" / "record.json").read_text())["results"]
    assert (record["samples"], record["unique"]["count"]) == (5, 1)


def test_rattled_supercells_take_seconds(tmp_path):
    """Case 84: their symmetry lies near the tolerance of the search."""
    given, began = CASES / "84_rattled_supercells" / "in.csv", time.process_time()
    n = len(read_crystals(given))
    for name in ("likelihood", "hull"):
        done = verb(name, "-i", given, "-o", tmp_path / f"{name}.csv")
        assert len(done) == n
        assert all(NAMED.fullmatch(status) for status in done["status"])
    verb("relax", "--max-steps", 2, "-i", given, "-o", tmp_path / "relax.csv")
    assert time.process_time() - began < 10 * n


@pytest.mark.parametrize("seed", range(66))
def test_hulls_are_those_of_pymatgen(seed):
    """Case 93: 60 sets at random; 6 with phases on the tie lines, equal energies and equal compositions."""
    rng, kind = np.random.default_rng(seed), EnergyType("t", "", "none")
    names = ["Li", "O", "Fe"]
    formulas = [*names, *("Li2O", "FeO", "Fe2O3", "LiFeO2", "Li3Fe", "LiO2", "Li2O2", "FeLi2")]
    energies = rng.normal(-1, 1, len(formulas)) if seed < 60 else np.full(len(formulas), float(seed - 62))
    entries = [HullEntry(*pair) for pair in zip(formulas, energies.tolist(), strict=True)]
    if seed >= 62:
        entries += [HullEntry("Li2O", entries[3].energy), HullEntry("Li4O2", entries[3].energy + 1e-12)]
    pairs = [(Composition(entry.formula), entry.energy) for entry in entries]
    diagram = PhaseDiagram([PDEntry(composition, energy * composition.num_atoms) for composition, energy in pairs])
    hull = Hull(entries, kind)
    for composition in ("LiFeO3", "Li", "Fe3O4", "LiFe", "Li7FeO9", "Li2O"):
        found = hull.e_above_hull(composition, 0.0, kind).e_above_hull
        assert found == pytest.approx(-diagram.get_hull_energy_per_atom(Composition(composition)), abs=1e-8)


def test_every_case_has_a_test():
    texts = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    cases = sorted(path.name for path in CASES.iterdir() if path.is_dir())
    assert len(cases) >= 79
    missing = [name for name in cases if name not in texts and not re.search(rf"[Cc]ase {name.split('_')[0]}\b", texts)]
    assert missing == []
