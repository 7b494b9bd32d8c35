"""Tables of reference phases: which crystals, resumed builds, refusals, and the table that ships."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from ase.build import bulk
from pymatgen.core import Composition, Lattice, Structure

from loop.errors import InputError
from loop.io.cif_writer import to_cif
from oracles.potentials.calculator import to_structure
from oracles.potentials.loading import load_potential
from oracles.references.energies import BuildConfig, build_references
from oracles.references.table import DEFAULT, _load, load_references
from oracles.relax import relax

torch.set_num_threads(1)
QUICK = BuildConfig(largest_prototype=0, relax_within=10.0)


@pytest.fixture(scope="module")
def emt():
    return load_potential("ase.calculators.emt:EMT")


def source(folder) -> pd.DataFrame:
    """Two elements, an alloy in two forms, one in the test split, one that EMT does not know, one unreadable."""
    copper, aluminium = to_structure(bulk("Cu", cubic=True)), to_structure(bulk("Al", cubic=True))
    alloy = copper.copy()
    alloy.replace(0, "Al")
    layered = Structure(Lattice.tetragonal(2.6, 3.7), ["Cu", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    rows = [
        ("a", "Cu", copper, 0.0, "train"),
        ("b", "Al", aluminium, 0.0, "train"),
        ("c", "AlCu3", alloy, 0.02, "val"),
        ("d", "AlCu3", alloy.copy().apply_strain(0.05), 0.0, "val"),
        ("e", "AlCu", layered, 0.1, "test"),
        ("f", "MgO", to_structure(bulk("MgO", "rocksalt", a=4.2)), 0.0, "train"),
    ]
    frame = pd.DataFrame(
        [(i, f, len(s), e, split, to_cif(s)) for i, f, s, e, split in rows],
        columns=["material_id", "pretty_formula", "n_atoms", "e_above_hull", "split", "cif"],
    )
    frame.loc[len(frame)] = ["g", "CuAl9", 10, 0.0, "train", "not a cif"]
    frame.to_csv(folder / "crystals.csv", index=False)
    return frame


def test_a_table_holds_the_potentials_energies(tmp_path, emt):
    frame = source(tmp_path)
    built = build_references([tmp_path / "crystals.csv"], tmp_path / "table.csv.gz", emt, QUICK)
    table = dict(zip(built.formulas, built.energies, strict=True))
    copper, loose = (Structure.from_str(frame["cif"][row], fmt="cif") for row in (0, 3))
    assert table["Cu"] == pytest.approx(relax([copper], emt)[0].energy, abs=1e-3)
    assert table["AlCu3"] == pytest.approx(relax([loose], emt)[0].energy, abs=1e-3)  # both forms end as one
    as_they_stand = dict(zip(built.formulas, built.unrelaxed, strict=True))
    compact = Structure.from_str(frame["cif"][2], fmt="cif")
    assert as_they_stand["AlCu3"] == pytest.approx(min(emt.energies([compact, loose])), abs=2e-5)
    assert "AlCu3" not in built.not_relaxed
    assert {"Cu", "Al", "AlCu3", "AlCu"} <= set(table)
    assert "MgO" not in table
    assert set(built.provenance["corners"]) == {"Al", "Cu"}
    assert built.energy_type == emt.energy_type
    assert [f for f, out in zip(built.formulas, built.held_out, strict=True) if out] == ["AlCu"]
    assert built.provenance["dropped"] == {"failed:unsupported-element": 1, "unreadable CIF": 1}
    assert built.provenance["dropped_ids"] == ["f", "g"]
    loaded = load_references(tmp_path / "table.csv.gz")
    assert loaded.checksum == built.checksum
    assert loaded.hull().e_above_hull("AlCu", 0.0, emt.energy_type).n_entries == 4
    assert loaded.hull(with_held_out=False).e_above_hull("AlCu", 0.0, emt.energy_type).n_entries == 3


def test_a_killed_build_goes_on_and_gives_the_same_table(tmp_path, emt):
    source(tmp_path)
    config = replace(QUICK, chunk=2)
    whole = build_references([tmp_path / "crystals.csv"], tmp_path / "whole.csv", emt, config)

    def kill(stage, done, total, info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_references([tmp_path / "crystals.csv"], tmp_path / "cut.csv", emt, config, kill)
    assert len(list((tmp_path / "cut.csv.parts").glob("chunk_*.csv"))) == 1
    seen = []
    cut = build_references(
        [tmp_path / "crystals.csv"], tmp_path / "cut.csv", emt, config, lambda *a: seen.append(a[:2])
    )
    assert seen[0] == ("evaluate", 4)
    assert cut.checksum == whole.checksum
    assert not (tmp_path / "cut.csv.parts").exists()


def test_crystals_with_one_id_are_all_evaluated_by_a_killed_build(tmp_path, emt):
    frame = source(tmp_path)
    frame.assign(material_id="same").to_csv(tmp_path / "crystals.csv", index=False)

    def kill(stage, done, total, info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_references([tmp_path / "crystals.csv"], tmp_path / "t.csv", emt, replace(QUICK, chunk=2), kill)
    built = build_references([tmp_path / "crystals.csv"], tmp_path / "t.csv", emt, replace(QUICK, chunk=2))
    assert {"AlCu3", "AlCu"} <= set(built.formulas)


def test_a_row_that_is_called_otherwise_is_left_out(tmp_path, emt):
    frame = source(tmp_path)
    frame.loc[4, "pretty_formula"] = "AlCu2"
    frame.to_csv(tmp_path / "crystals.csv", index=False)
    built = build_references([tmp_path / "crystals.csv"], tmp_path / "t.csv", emt, QUICK)
    assert "AlCu" not in built.formulas
    assert built.provenance["dropped"]["another formula than the row says"] == 1


def test_phases_far_above_the_hull_and_large_cells_are_not_relaxed_and_said_so(tmp_path, emt):
    source(tmp_path)
    near = build_references([tmp_path / "crystals.csv"], tmp_path / "a.csv", emt, replace(QUICK, relax_within=-1.0))
    assert near.not_relaxed == {"AlCu3", "AlCu"}
    small = build_references([tmp_path / "crystals.csv"], tmp_path / "b.csv", emt, replace(QUICK, relax_atoms=2))
    assert small.not_relaxed == {"AlCu3"}
    assert small.unrelaxed_among({"AlCu3": 1.0}) == "competing phases not relaxed: AlCu3"
    assert small.unrelaxed_among({"AlCu": 1.0}) == ""


def test_parts_of_another_build_are_refused(tmp_path, emt):
    source(tmp_path)

    def kill(stage, done, total, info):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_references([tmp_path / "crystals.csv"], tmp_path / "table.csv", emt, QUICK, kill)
    frame = pd.read_csv(tmp_path / "crystals.csv")
    frame.iloc[:3].to_csv(tmp_path / "crystals.csv", index=False)
    with pytest.raises(InputError, match="another build"):
        build_references([tmp_path / "crystals.csv"], tmp_path / "table.csv", emt, QUICK)


def test_splits_can_be_chosen(tmp_path, emt):
    source(tmp_path)
    built = build_references([tmp_path / "crystals.csv"], tmp_path / "t.csv", emt, replace(QUICK, splits=("train",)))
    assert "AlCu3" not in built.formulas


@pytest.mark.parametrize("damage", ["missing", "no json", "bad json", "no column", "nan"])
def test_a_damaged_table_is_refused(tmp_path, damage):
    path, meta = tmp_path / "t.csv", tmp_path / "t.json"
    kind = {"method": "m", "functional": "f", "corrections": "c", "checksum": "s"}
    if damage != "missing":
        energy = "nan" if damage == "nan" else "-1.0"
        path.write_text(
            "formula,energy,id\nCu,-1,a\n" if damage == "no column" else f"formula,energy_per_atom,id\nCu,{energy},a\n"
        )
    if damage != "no json":
        meta.write_text("{" if damage == "bad json" else json.dumps({"energy_type": kind}))
    with pytest.raises(InputError, match="expected"):
        load_references(path)


def test_no_crystals_is_an_error(tmp_path, emt):
    source(tmp_path).iloc[:0].to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(InputError, match="found none"):
        build_references([tmp_path / "none.csv"], tmp_path / "t.csv", emt, QUICK)


@pytest.fixture(scope="module")
def shipped():
    return load_references()


def test_the_shipped_table_belongs_to_the_shipped_potential(shipped):
    potential = load_potential("chgnet", device="cpu")
    assert shipped.energy_type == potential.energy_type
    assert shipped.hull().elements == potential.elements
    assert len(shipped) > 70000
    assert "Materials Project" in shipped.provenance["attribution"]


def test_stable_phases_of_the_shipped_table_are_at_zero(shipped):
    hull = shipped.hull()
    table = dict(zip(shipped.formulas, shipped.energies, strict=True))
    for formula in ["Cu", "NaCl", "MgO", "Al2O3", "SiC", "TiN", "LiF", "GaAs", "NaN", "Pm", "Xe"]:
        found = hull.e_above_hull(formula, table[Composition(formula).reduced_formula], shipped.energy_type)
        assert found.status == "ok"
        assert found.e_above_hull >= -1e-9
        if found.e_above_hull < 1e-9:
            assert set(found.decomposition) == {Composition(formula).reduced_formula}
    for formula in ["NaCl", "MgO", "LiF", "Cu"]:
        assert hull.e_above_hull(formula, table[formula], shipped.energy_type).e_above_hull == pytest.approx(
            0, abs=1e-9
        )


def test_formation_energies_of_the_shipped_table_are_those_of_experiment(shipped):
    """At 298 K (CRC Handbook, kJ/mol): the corrected energies of the Materials Project are fitted to such values."""
    table = dict(zip(shipped.formulas, shipped.energies, strict=True))
    for formula, measured in {"MgO": -601.6, "NaCl": -411.2, "Al2O3": -1675.7, "TiO2": -944.0, "ZnS": -206.0}.items():
        composition = Composition(formula)
        elements = {e.symbol: Composition(e.symbol).reduced_formula for e in composition}
        energy = table[formula] * composition.num_atoms - sum(
            table[elements[e.symbol]] * n for e, n in composition.items()
        )
        assert energy == pytest.approx(measured / 96.485, rel=0.1), formula


def test_a_table_that_is_a_pointer_of_git_lfs_is_named_so():
    """Case 79."""
    with pytest.raises(InputError, match=r"table\.csv\.gz: it is a Git LFS pointer"):
        load_references(Path(__file__).parent / "cases" / "79_git_lfs_pointer" / "table.csv.gz")


def test_a_compound_has_one_name_however_a_table_of_ones_own_writes_it(tmp_path, emt):
    """As pymatgen reduces formulas: ``Se2Zn2`` and ``SeZn`` are ZnSe, ``N`` is N2."""
    table = {"formula": ["SeZn", "Zn", "Se", "Se2Zn2", "N"], "energy_per_atom": [-3.0, -1.0, -2.0, -3.1, -8.0]}
    pd.DataFrame(table | {"id": list("abcde"), "relaxed": [1, 1, 1, 0, 1]}).to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "own.json").write_text(json.dumps({"energy_type": asdict(emt.energy_type)}))
    own = load_references(tmp_path / "own.csv")
    assert own.formulas == ("ZnSe", "Zn", "Se", "ZnSe", "N2")
    assert own.not_relaxed == {"ZnSe"}  # its lowest row
    assert own.hull().e_above_hull("ZnSe", -3.0, emt.energy_type).e_above_hull == pytest.approx(0.1)


def test_what_is_no_formula_is_refused_by_name(tmp_path, emt):
    pd.DataFrame({"formula": ["Zn", "what?"], "energy_per_atom": [0.0, 0.0], "id": ["a", "b"]}).to_csv(
        tmp_path / "own.csv", index=False
    )
    (tmp_path / "own.json").write_text(json.dumps({"energy_type": asdict(emt.energy_type)}))
    with pytest.raises(InputError, match=r"what\?"):
        load_references(tmp_path / "own.csv")


def test_tables_load_where_the_package_is_reached_by_a_link(tmp_path, emt, monkeypatch):
    (tmp_path / "data").symlink_to(DEFAULT.parent)
    monkeypatch.setattr("oracles.references.table.DEFAULT", tmp_path / "data" / DEFAULT.name)
    pd.DataFrame({"formula": ["SeZn"], "energy_per_atom": [0.0], "id": ["a"]}).to_csv(tmp_path / "own.csv", index=False)
    (tmp_path / "own.json").write_text(json.dumps({"energy_type": asdict(emt.energy_type)}))
    _load.cache_clear()
    assert load_references(tmp_path / "own.csv").formulas == ("ZnSe",)
