"""Known crystals packed and read back: every group, every centring, and the table that ships."""

from __future__ import annotations

import json
import time

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition, Element, Lattice, Structure
from typer.testing import CliRunner

from flows.cli import app
from flows.known_labels import read_known_labels
from loop.errors import InputError
from loop.io.cif import parse_cif
from loop.io.cif_writer import to_cif
from loop.io.crystals import read_crystals
from oracles.references.build import EXACT, build, pack
from oracles.references.crystals import DEFAULT, STEPS, expand, load_reference_crystals, operations, primitive_basis
from surrogates.properties import Property
from tests.crystals import SYSTEMS

CELLS = {2: (5, 6, 7, 81, 94, 103), 15: (5, 6, 7, 90, 101, 90), 74: (5, 6, 7, 90, 90, 90), 142: (5, 5, 7, 90, 90, 90),
         194: (5, 5, 7, 90, 90, 120), 230: (6, 6, 6, 90, 90, 90)}  # fmt: skip


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def as_given(structure: Structure, seed: int) -> Structure:
    """The same crystal, turned, moved, in a cell of other vectors and twice its size."""
    rng = np.random.default_rng(seed)
    moved = structure.copy()
    moved.translate_sites(list(range(len(moved))), rng.random(3))
    moved = moved * [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    turned, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turned[:, 0] *= np.sign(np.linalg.det(turned))
    return Structure(Lattice(moved.lattice.matrix @ turned), moved.species, moved.frac_coords)


def arrays(structure: Structure):
    return structure.lattice.matrix, np.array([site.specie.Z for site in structure]), structure.frac_coords


def unpacked(packed) -> Structure:
    cell = np.concatenate([packed.lengths, packed.angles]) * 1e-4
    return Structure(*expand(packed.group, cell, packed.elements, packed.multiplicities, packed.coordinates))


def strict(structure: Structure) -> StructureMatcher:
    size = (structure.volume / len(structure)) ** (1 / 3)
    return StructureMatcher(ltol=1e-3, stol=2e-3 / size, angle_tol=0.05, scale=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A table of nine crystals in odd cells, one of them twice, with what is published about them made up."""
    rows = [
        (f"mp-{number}", to_cif(as_given(make(), number)), "train", number / 100, "published", -1.0, "mp20")
        for number, make in enumerate(SYSTEMS.values(), start=1)
    ]
    rows.append(("mvc-10", to_cif(SYSTEMS["face-centred"]()), "val", np.nan, np.nan, -2.5, "mb"))
    rows.append(("mp-11", to_cif(SYSTEMS["cubic"]()), "test", 0.0, "published", -3.0, "mp20"))
    rows.append(("mp-12", "nonsense", "train", 0.0, "published", -3.0, "mp20"))
    columns = ["material_id", "cif", "split", "e_above_hull", "e_above_hull_source", "formation_energy_per_atom",
               "formation_energy_source"]  # fmt: skip
    path = tmp_path_factory.mktemp("source") / "table.csv.gz"
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def table(source):
    path = source.with_name("reference.npz")
    done = run("reference", "build", source, "--output", path, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["left_out"] == 1
    return path


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_crystal_comes_back_within_a_thousandth_of_an_angstrom(name):
    structure = as_given(SYSTEMS[name](), 3)
    packed = pack(arrays(structure))
    assert packed.error < EXACT
    assert packed.formula == structure.composition.reduced_formula
    back = unpacked(packed)
    assert strict(structure).fit(structure, back)
    assert packed.group == packed.space_group == structure.get_space_group_info()[1]
    assert 2 * len(back) <= len(structure)  # the primitive cell


def test_every_space_group_comes_back():
    rng = np.random.default_rng(0)
    for group in range(1, 231):
        cell = np.array(next(cell for last, cell in CELLS.items() if group <= last), dtype=float)
        size = len(operations(group)[0])
        cell[:3] *= (size * 4) ** (1 / 3)
        sites = np.round(rng.random((2, 3)) * STEPS)
        crystal = expand(group, cell, np.array([11, 17]), np.array([size, size]), sites)
        back = pack(crystal)
        assert back.error < EXACT, group
        assert sum(back.multiplicities) == len(crystal[1]), group
        whole = np.abs(np.linalg.det(primitive_basis(group, cell)))
        assert unpacked(back).volume == pytest.approx(whole, rel=1e-4)
        assert back.group == group


def test_a_distortion_below_the_tolerance_of_symmetry_is_kept():
    structure = SYSTEMS["cubic"]().copy()
    structure.translate_sites([1], [0, 0, 0.004 / 3.905])
    packed = pack(arrays(structure))
    assert packed.space_group == 221  # at 0.01 A
    assert packed.group == 99
    assert strict(structure).fit(structure, unpacked(packed))


def test_table_knows_what_is_published(table):
    crystals = load_reference_crystals(table)
    assert len(crystals) == 10
    assert "mp-11" not in crystals  # of the test split
    salt = crystals.known("mvc-10")
    assert (salt.formula, salt.space_group, salt.formation_energy, salt.release) == ("NaCl", 225, -2.5, "2018-19")
    assert np.isnan(salt.e_above_hull)
    assert salt.e_above_hull_source == ""
    assert crystals.known("mp-1").e_above_hull == 0.01
    assert crystals.of_formula("Cl2Na2") == ["mvc-10", "mp-2"]  # by formation energy: one has no energy above the hull
    assert set(crystals.lowest()) == set(crystals.ids) - {"mp-2"}
    assert crystals.in_system(["Ti", "O", "Sr", "Ca"]) == ["mp-7", "mp-1", "mp-6"]
    assert crystals.in_system(["Ti", "Ca"]) == []
    assert crystals.n_atoms("mp-3") == len(crystals.structure("mp-3")) == 14
    assert sorted(map(str, crystals.ids)) == sorted([f"mp-{n}" for n in range(1, 10)] + ["mvc-10"])


def test_rows_are_one_lowest_crystal_per_formula_as_a_file_would_give_them(table):
    crystals = load_reference_crystals(table)
    rows = crystals.rows()
    assert rows["material_id"].tolist() == crystals.lowest()
    assert "mp-2" not in rows["material_id"].tolist()  # NaCl again, and higher
    salt = rows.set_index("material_id").loc["mvc-10"]
    assert (salt["pretty_formula"], salt["n_atoms"], salt["formation_energy_per_atom"]) == ("NaCl", 2, -2.5)
    read = Structure(*parse_cif(salt["cif"]))
    assert strict(read).fit(read, SYSTEMS["face-centred"]())
    assert crystals.rows(["mp-3"])["pretty_formula"].tolist() == ["MgAl2O4"]


def test_the_shipped_table_opens_fast_and_holds_what_it_says():
    started = time.process_time()
    crystals = load_reference_crystals()
    assert "mp-149" in crystals
    assert time.process_time() - started < 2
    about = json.loads(DEFAULT.with_suffix(".json").read_text())
    assert len(crystals) == about["crystals"] > 90_000
    assert len(set(crystals.formulas)) == len(crystals.lowest()) == about["formulas"]
    assert DEFAULT.stat().st_size < 12_000_000
    assert "CC BY 4.0" in about["attribution"]
    assert about["splits"] == ["train", "val"]
    silicon = crystals.structure("mp-149")
    assert (silicon.formula, crystals.known("mp-149").space_group) == ("Si2", 227)
    assert silicon.volume / 2 == pytest.approx(20.4, rel=0.03)
    assert crystals.known("mp-149").e_above_hull == 0
    assert crystals.of_formula("TiO2")[0] in crystals.in_system({"Ti", "O"})
    rng = np.random.default_rng(0)
    for row in rng.choice(len(crystals), 200, replace=False).tolist():
        basis, numbers, positions = crystals.arrays_of(row)
        found = Composition({Element.from_Z(int(z)): int((numbers == z).sum()) for z in set(numbers.tolist())})
        assert found.reduced_formula == crystals.formulas[row]
        assert np.linalg.det(basis) / len(positions) > 2


def test_the_same_sources_give_the_same_bytes(source, table, tmp_path):
    build([source], tmp_path / "again.npz", workers=2)
    assert (tmp_path / "again.npz").read_bytes() == table.read_bytes()


def test_show_and_export(table, tmp_path):
    shown = run("reference", "show", "NaCl", "--table", table, "--output", tmp_path / "salt.extxyz")
    assert shown.exit_code == 0, shown.output
    assert "mvc-10" in shown.stdout
    assert "Fm-3m" in shown.stdout
    assert "CC BY 4.0" in shown.output
    assert read_crystals(tmp_path / "salt.extxyz").ids == ["mvc-10", "mp-2"]
    one = run("reference", "show", "mp-6", "--table", table, "--output", tmp_path / "rutile.cif", "--json")
    assert json.loads(one.stdout)["crystals"][0]["space_group"] == 136
    (rutile,) = read_crystals(tmp_path / "rutile.cif").structures
    assert strict(rutile).fit(rutile, SYSTEMS["tetragonal"]())
    done = run("reference", "export", "--chemical-system", "Ti-O-Sr", "--table", table, "--output", tmp_path / "s.csv")
    assert done.exit_code == 0, done.output
    written = read_crystals(tmp_path / "s.csv")
    assert dict(zip(written.ids, written.frame["e_above_hull"], strict=True)) == {"mp-1": 0.01, "mp-6": 0.06}


def test_a_table_of_formulas_or_ids_gets_its_crystals(table, tmp_path):
    path, out = tmp_path / "gaps.csv", tmp_path / "known.csv"
    path.write_text("formula,exp_band_gap (eV),note\nClNa,8.5,007\nNaBr,7.1,no\nTiO2,3.0,12e5\n")
    done = run("reference", "lookup", "--input", path, "--output", out, "--table", table, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["statuses"] == {"ok": 2, "failed:not-known": 1}
    assert "row 1: no known crystal is NaBr" in done.stderr
    read = read_crystals(out)
    assert read.frame["note"].tolist() == ["007", "no", "12e5"]
    assert [s and s.composition.reduced_formula for s in read.structures] == ["NaCl", None, "TiO2"]
    assert read.frame["material_id"].tolist()[::2] == ["mvc-10", "mp-6"]
    assert read.frame["message"][0] == "the lowest of 2 known crystals of this formula"
    assert len(read_known_labels(out, (Property("exp_band_gap", "eV"),)).candidates) == 2
    with pytest.raises(InputError, match="`discovery-loop reference lookup` puts the known crystals into it"):
        read_crystals(path)
    path.write_text("material_id;gap\nmp-2;8.5\nmp-999;1\n")
    assert run("reference", "lookup", "--input", path, "--output", out, "--table", table).exit_code == 0
    assert read_crystals(out).ids == ["mp-2", "mp-999"]
    known = load_reference_crystals(table).structure("mp-2")
    assert strict(known).fit(known, read_crystals(out).structures[0])


def test_an_id_and_a_formula_in_one_row_have_to_agree(table, tmp_path):
    path, out = tmp_path / "names.csv", tmp_path / "known.csv"
    path.write_text("material_id,formula\nmp-6,O2Ti\n,ClNa\nmp-6,NaCl\nmp-6,rutile\n,NaBr\n")
    assert run("reference", "lookup", "-i", path, "-o", out, "--table", table).exit_code == 0
    read = read_crystals(out)
    assert [s and s.composition.reduced_formula for s in read.structures] == ["TiO2", "NaCl", None, "TiO2", None]
    assert read.frame["material_id"].fillna("").tolist() == ["mp-6", "mvc-10", "mp-6", "mp-6", ""]
    assert read.frame["formula"].tolist() == ["O2Ti", "ClNa", "NaCl", "rutile", "NaBr"]
    assert read.frame["message"].tolist()[1:3] == [
        "mvc-10, by its formula; the lowest of 2 known crystals of this formula",
        "mp-6 is TiO2, but the row says NaCl",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("name,gap\nrutile,3.0\n", "expected a column material_id (as mp-149) or formula"),
        ("formula,gap\nNaBr,7.1\nXx,1\n", "none of its 2 rows names a known crystal in the column 'formula'"),
    ],
)
def test_a_table_that_names_no_known_crystal_is_refused(text, reason, table, tmp_path):
    (tmp_path / "names.csv").write_text(text)
    done = run("reference", "lookup", "-i", tmp_path / "names.csv", "-o", tmp_path / "x.csv", "--table", table)
    assert (done.exit_code, (tmp_path / "x.csv").exists()) == (1, False)
    assert reason in done.stderr


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["show", "NaX"], "NaX"),
        (["show", "NaBr"], "no reference crystal has the formula NaBr"),
        (["show", "NaBr"], "export --chemical-system Br-Na`"),
        (["show", "XyZ"], "expected a chemical formula, as LiFePO4, got 'XyZ'"),
        (["show", "mp-999"], "mp-999"),
        (["show", "NaCl", "--output", "both.odd"], "both.odd"),
        (["export", "--chemical-system", "Na-Xx", "--output", "x.csv"], "Xx"),
        (["export", "--chemical-system", "Cs-Hg", "--output", "x.csv"], "found none"),
        (["build", "nothing.csv", "--output", "x.npz"], "nothing.csv"),
        (["build", "nothing.csv", "--output", "x.zip"], "x.zip"),
    ],
)
def test_what_cannot_be_done_is_said(arguments, reason, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("reference", *arguments, *([] if arguments[0] == "build" else ["--table", table]))
    assert done.exit_code == 1, done.output
    assert reason in done.output
    assert "Traceback" not in done.output
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * 1000])
def test_a_damaged_table_is_refused(damage, table, tmp_path):
    (tmp_path / "bad.npz").write_bytes(damage(table.read_bytes()))
    with pytest.raises(InputError, match=r"bad\.npz"):
        load_reference_crystals(tmp_path / "bad.npz")


def test_ids_that_the_table_cannot_hold_are_refused(tmp_path):
    frame = pd.DataFrame({"material_id": ["abc"], "cif": [to_cif(SYSTEMS["cubic"]())]})
    frame.to_csv(tmp_path / "odd.csv", index=False)
    with pytest.raises(InputError, match="'abc'"):
        build([tmp_path / "odd.csv"], tmp_path / "odd.npz")
