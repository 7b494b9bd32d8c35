"""Tables of reference phases from energies that were computed elsewhere."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from pymatgen.core import Composition

from flows.config import read_config
from loop.errors import EnergyTypeError
from loop.values import EnergyType
from oracles.potentials.sevennet import ENERGIES
from oracles.references import fill as fill_references
from oracles.references.crystals import load_reference_crystals
from oracles.references.fill import corrections_of, filled, write
from oracles.references.hull_on_demand import demand_hull
from oracles.references.phase_estimates import Estimates
from oracles.references.table import is_element, shipped_for, shipped_tables
from oracles.relax import RelaxConfig
from tests.crystals import nacl, wurtzite

KIND = EnergyType("potential", "PBE(+U)", "MP2020", "a" * 64)
RAW = pd.DataFrame(
    {
        "material_id": ["mp-1", "mp-2", "mp-3", "mp-4", "mp-5"],
        "pretty_formula": ["NaCl", "ZnO", "Na", "ClNa", "Po"],
        "energy_per_atom": [-3.0, -4.0, -1.0, -3.1, -2.0],
    }
)
CORNERS = [
    {"element": "Na", "name": "ase:Na", "energy": -1.02},
    {"element": "Cl", "name": "molecules:A_oC8_64_f", "energy": -1.8},
]


def test_rows_are_the_lowest_corrected_and_elements_relaxed():
    table = filled(RAW, {"mp-1": -0.3, "mp-2": -0.3435, "mp-3": 0.0, "mp-4": -0.3}, CORNERS).set_index("formula")
    assert list(table.index) == ["Cl2", "Na", "NaCl", "ZnO"]  # Po has no correction
    assert table.energy_per_atom.to_dict() == pytest.approx({"Cl2": -1.8, "Na": -1.02, "NaCl": -3.4, "ZnO": -4.3435})
    assert table.id.to_dict()["NaCl"] == "mp-4"
    assert table.relaxed.to_dict() == {"Cl2": 1, "Na": 1, "NaCl": 0, "ZnO": 0}
    assert table.unrelaxed.to_dict() == pytest.approx({"Cl2": -1.8, "Na": -1.0, "NaCl": -3.4, "ZnO": -4.3435})


def test_a_table_comes_back_and_settles_its_corners(tmp_path):
    table = filled(RAW, dict.fromkeys(RAW.material_id, 0.0), CORNERS)
    references = write(tmp_path / "t_references.csv.gz", table, KIND, CORNERS, sources={"a": "b"})
    assert references.energy_type == KIND
    assert references.provenance["sources"] == {"a": "b"}
    corners = Estimates([references], KIND).corners(["Na", "Cl", "Zn"])
    assert {(entry.formula, entry.energy, entry.id) for entry in corners} == {
        ("Na", -1.02, "ase:Na"),
        ("Cl", -1.8, "molecules:A_oC8_64_f"),
    }


def test_a_corner_that_did_not_move_is_the_relaxed_one():
    same = [{"element": "Na", "name": "mp-3", "energy": -0.99999}]
    row = filled(RAW, dict.fromkeys(RAW.material_id, 0.0), same).set_index("formula").loc["Na"]
    assert (row.id, row.relaxed) == ("mp-3", 1)


def test_a_corner_above_a_published_crystal_settles_nothing(tmp_path):
    high = [{"element": "Na", "name": "ase:Na", "energy": -0.9}]
    table = filled(RAW, dict.fromkeys(RAW.material_id, 0.0), high)
    assert table.set_index("formula").loc["Na", ["energy_per_atom", "id", "relaxed"]].tolist() == [-1.0, "mp-3", 0]
    references = write(tmp_path / "t_references.csv.gz", table, KIND, high)
    assert Estimates([references], KIND).corners(["Na"]) == []


def test_corrections_are_of_the_published_cells(tmp_path):
    rows = [("mp-1", nacl().to(fmt="cif")), ("mp-2", wurtzite().to(fmt="cif")), ("mp-9", "no cif")]
    path = tmp_path / "crystals.csv"
    pd.DataFrame(rows, columns=["material_id", "cif"]).to_csv(path, index=False)
    found = corrections_of([path], {"mp-1", "mp-2"})
    assert found == pytest.approx({"mp-1": -0.614 / 2, "mp-2": -0.687 / 2})


def test_from_files_to_a_table(tmp_path, monkeypatch):
    crystals = tmp_path / "crystals.csv"
    rows = [("mp-1", nacl().to(fmt="cif")), ("mp-2", wurtzite().to(fmt="cif"))]
    pd.DataFrame(rows, columns=["material_id", "cif"]).to_csv(crystals, index=False)
    RAW.to_csv(tmp_path / "raw.csv", index=False)
    (tmp_path / "corners.jsonl").write_text("".join(json.dumps(corner) + "\n" for corner in CORNERS))
    output = tmp_path / "t_references.csv.gz"
    arguments = ["x", "raw.csv", "crystals.csv", "--corners", "corners.jsonl", "--output", str(output)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", arguments)
    assert fill_references.main() == 0
    frame = pd.read_csv(output)
    assert frame.set_index("formula").energy_per_atom["NaCl"] == pytest.approx(-3.307)
    assert set(frame.formula) == {"NaCl", "ZnO", "Na", "Cl2"}


def test_the_shipped_table_of_sevennet_is_whole():
    table = next(table for table in shipped_tables() if table.energy_type == ENERGIES)
    with pytest.raises(EnergyTypeError, match="No complete"):  # it lacks the larger cells, so it only proposes
        shipped_for(ENERGIES)
    energies = dict(zip(table.formulas, table.energies.tolist(), strict=True))
    elements = {symbol for formula in table.formulas if (symbol := is_element(formula))}
    needed = {element.symbol for formula in table.formulas for element in Composition(formula).elements}
    assert needed <= elements
    for symbol, corner in table.provenance["corners"].items():
        assert energies[Composition(symbol).reduced_formula] == pytest.approx(corner["energy"], abs=1e-5)
    published = load_reference_crystals()
    corners = table.elements()
    for formula in ("TiO2", "Li3N", "Fe2O3", "LiF", "Na2S", "Al3Ni"):  # oxide, nitride, U, halide, sulfide, alloy
        composition = Composition(formula)
        mixture = sum(composition.get_atomic_fraction(e) * corners[e.symbol] for e in composition.elements)
        known = published.known(table.ids[table.formulas.index(formula)])
        assert known.release == "later"  # with the corrections of 2020
        assert energies[formula] - mixture == pytest.approx(known.formation_energy, abs=0.06)


def test_the_quickstarts_hulls_need_no_computing(tmp_path):
    """The shipped table holds every phase on a hull of its elements relaxed: whatever is asked, none is computed."""

    def refuse(*_):
        raise AssertionError("a phase has to be computed")

    about = SimpleNamespace(dtype="float32")
    potential = SimpleNamespace(
        energy_type=ENERGIES, name="sevennet", about=about, elements=set(), energies=refuse, single_points=refuse
    )
    hull = demand_hull(potential, RelaxConfig(), ledger=str(tmp_path / "phases.db"))
    elements = read_config("quickstart").generator.proposals.sampling.elements
    hull.settle(elements, 3)
    assert not hull.computed
    found = hull.e_above_hull("TiN", -9.0, ENERGIES)
    assert found.decomposition == {"TiN": 1.0}
    with pytest.raises(AssertionError, match="has to be computed"):
        hull.e_above_hull("MgAl2O4", -6.0, ENERGIES)
