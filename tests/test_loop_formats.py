"""Every format in and out, and the files that went wrong: encodings, packing, cells, frames, folders."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.entries.computed_entries import ComputedStructureEntry

from loop.errors import InputError
from loop.io.crystal_writers import file_names
from loop.io.crystals import read_crystals, read_frame, write_crystals
from loop.io.extxyz import read_extxyz, split_frames, to_extxyz
from loop.io.optimade import to_json_lines
from tests import crystals

CASES = Path(__file__).parent / "cases"
MATCHER = StructureMatcher(ltol=1e-4, stol=1e-4, angle_tol=1e-2, scale=False)
OUTPUTS = ["t.csv", "t.csv.gz", "t.extxyz", "t.extxyz.gz", "t.json", "t.json.gz", "t.db", "t.poscar", "folder", "t.cif"]


def formulas(path: Path) -> list[str | None]:
    """Formulas of the cell by row, None where a row cannot be read."""
    found = read_crystals(path).structures
    return [None if structure is None else structure.formula.replace(" ", "") for structure in found]


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("17_bom_crlf/mgo.cif", ["Mg4O4"]),
        ("17_bom_crlf/row.csv", ["Mg4O4"]),
        ("19_utf16/mgo.cif", ["Mg4O4"]),
        ("41_csv_semicolon_bom/bom.csv", ["Fe2"]),
        ("41_csv_semicolon_bom/bomcif.csv", ["Fe2"]),
        ("41_csv_semicolon_bom/semi.csv", ["Fe2"]),
        ("43_csv_crlf_quotes/rows.csv", ["Fe2", "W2"]),
        ("44_csv_duplicate_ids/rows.csv", ["Fe2", "W2", "Fe2", "Ta2"]),
        ("45_crystalformer_dict/json.csv", ["Mg1O1"]),
        ("45_crystalformer_dict/output_221_struct.csv", ["Mg1O1"]),
        ("46_csv_column_names/index.csv", ["Fe2"]),
        ("50_extxyz_odd_frames/all.extxyz", ["Fe2", "Fe2", *[None] * 5, "Fe2", "Fe2", "Fe2"]),
        ("51_extxyz_crlf_nel/bom.extxyz", ["Fe2"]),
        ("51_extxyz_crlf_nel/crlf.extxyz", ["Fe2", "Fe2"]),
        ("51_extxyz_crlf_nel/ls.extxyz", ["Fe2", "Fe2"]),
        ("51_extxyz_crlf_nel/nel.extxyz", ["Fe2", "Fe2"]),
        ("51_extxyz_crlf_nel/wrongcount.extxyz", [None, "Fe2"]),
        ("80_other_formats/si.cif.gz", ["Si2"]),
        ("80_other_formats/m.extxyz.gz", ["Mg1O1"]),
        ("80_other_formats/POSCAR", ["Mg1O1"]),
        ("80_other_formats/x.vasp", ["Mg1O1"]),
        ("80_other_formats/s.json", ["Fe1"]),
        ("80_other_formats/mixed dir", ["Si2", "Si2", None]),  # neither ._a.cif nor .hidden.cif
        ("87_long_line_and_stop/x.cif", ["Mg4O4"]),
        ("89_global_block_then_crystal/before.cif", ["Mg4O4"]),
        ("89_global_block_then_crystal/p1.cif", ["Fe2"]),
        ("89_global_block_then_crystal/sym.cif", ["Mg4O4"]),
    ],
)
def test_what_a_file_holds(source, expected):
    assert formulas(CASES / source) == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("23_several_blocks/two.csv", "expected one crystal, found 2"),
        ("46_csv_column_names/rows.csv", "found ID, CIF"),
        ("47_csv_cut_off/cut.csv", "EOF inside string"),
        ("47_csv_cut_off/cut.csv.gz", "cut off or damaged"),
        ("47_csv_cut_off/notgz.csv.gz", "its content is not packed so"),
        ("47_csv_cut_off/lfs.csv.gz", "Git LFS pointer"),
        ("47_csv_cut_off/empty.csv", "No columns"),
        ("47_csv_cut_off/header.csv", "none of 0 entries"),
        ("51_extxyz_crlf_nel/short.extxyz", "none of 1 entries"),
        ("79_git_lfs_pointer/table.csv.gz", "Git LFS pointer"),
        ("80_other_formats/s.zip", "is a zip archive: unpack it"),
    ],
)
def test_what_is_wrong_with_a_file(source, message):
    with pytest.raises(InputError, match=message):
        read_crystals(CASES / source)


def test_frames_are_refused_with_reasons():
    table = read_crystals(CASES / "50_extxyz_odd_frames" / "all.extxyz")
    reasons = [failure.reason for failure in table.failures]
    assert [row.row for row in table.failures] == [2, 3, 4, 5, 6]
    for part, reason in zip(["periodic", "periodic", "Lattice", "could not convert", "'D'"], reasons, strict=True):
        assert part in reason
    counted = read_crystals(CASES / "51_extxyz_crlf_nel" / "wrongcount.extxyz").failures[0].reason
    assert counted == "expected 3 atoms, as the frame's first line says, found 2"
    few = '1\nLattice="3 0 0 0 3 0 0 0 3" Properties=species:S:1:pos:R:3\nFe 0 0 0\nFe 1 1 1\n'
    assert [problem for _, problem in split_frames(few + few)] == [
        "expected 1 atoms, as the frame's first line says, found 2"
    ] * 2


def test_what_a_folder_leaves_out_is_told():
    folder = CASES / "80_other_formats"
    table = read_crystals(folder)
    assert set(table.left_out) == {"expected.txt", "s.zip"}
    assert sorted(table.ids) == sorted(["42", "POSCAR", "s", "si", "x"])


def written_back(source: Path, output: Path) -> list[dict[str, str]]:
    """Rows of a CSV after reading and writing, every cell as text."""
    table = read_crystals(source)
    write_crystals(output, table.ids, table.structures, table.frame, table.texts)
    return list(csv.DictReader(io.StringIO(output.read_text(), newline="")))


def test_cells_come_back_character_for_character(tmp_path):
    source = CASES / "40_csv_text_columns" / "rows.csv"
    assert written_back(source, tmp_path / "t.csv") == list(csv.DictReader(io.StringIO(source.read_text(), newline="")))
    odd = ["1e5", "-0", "1.50", "+1", "1_000", "inf", "-nan", " 7", "true", "1.0", "0x1F", "1E-3", "1e-07", "½", "T"]
    rows = [{"id": "a", "cif": read_crystals(source).texts[0], **{f"c{n}": text for n, text in enumerate(odd)}}]
    pd.DataFrame(rows).to_csv(tmp_path / "odd.csv", index=False)
    assert written_back(tmp_path / "odd.csv", tmp_path / "back.csv") == rows
    gaps = {"n": ["1", "", "3"], "x": ["1.5", "", "2"], "flag": ["True", "", "False"], "none": ["", "", ""]}
    frame = pd.DataFrame({"id": list("abc"), **gaps, "cif": [rows[0]["cif"]] * 3})
    frame.to_csv(tmp_path / "gaps.csv", index=False)
    assert written_back(tmp_path / "gaps.csv", tmp_path / "back.csv") == frame.to_dict("records")


@pytest.mark.parametrize("between", ["t.extxyz", "t.db", "t.json", "folder", "t.poscar"])
def test_cells_survive_other_formats(tmp_path, between):
    """From a CSV into another format and back: texts that look like numbers stay what they are."""
    structure = crystals.nacl()
    cells = {"id": "1234e56789012345", "formula": "NaN", "code": "00123", "big": "3e400", "flag": "True", "n": "225"}
    cells |= {"x": "0.30000000000000004", "said": 'a "quoted" \\ line,\nand [1, 2] = {3}\u2028é', "long": "9" * 25}
    cells |= {"empty": "", "pbc": "T T T", "stress (GPa)": "1.5", "T": "T", "none": "None", "list": "1 2 3"}
    write_crystals(tmp_path / "a.csv", ["x"], [structure], {key: [value] for key, value in cells.items()})
    table = read_crystals(tmp_path / "a.csv")
    write_crystals(tmp_path / between, table.ids, table.structures, table.frame)
    again = read_crystals(tmp_path / between)
    assert again.ids == ["1234e56789012345"]
    write_crystals(tmp_path / "b.csv", again.ids, again.structures, again.frame)
    found = next(csv.DictReader(io.StringIO((tmp_path / "b.csv").read_text(), newline="")))
    found.pop("cif")
    found["pbc"] = found.pop("input_pbc", found.get("pbc"))  # the geometry's own name in extxyz
    assert {key: found.get(key, "") for key in cells} == cells


@pytest.mark.parametrize("name", OUTPUTS)
def test_every_output_is_an_input(tmp_path, name):
    made = [crystals.nacl(), crystals.rutile(), crystals.triclinic(), crystals.wurtzite()]
    ids = ["007", "a/b", "x" * 300, "日本"]
    columns = {"material_id": ids, "note": ["a", "", "b c", "NaN"], "value": [1.5, 2, -3e-9, float("nan")]}
    path = tmp_path / name
    assert write_crystals(path, ids, made, columns) == 4
    assert [p.name for p in tmp_path.iterdir()] == [name]  # no temporary is left
    table = read_crystals(path)
    assert table.failures == []
    assert len(table) == 4
    for before, after in zip(made, sorted_like(table, ids, name), strict=True):
        assert MATCHER.fit(before, after)
    if name != "t.cif":  # whose blocks have names of one word, and no columns
        frame = table.frame.set_index(pd.Index(table.ids)).loc[ids]
        assert frame["note"].fillna("").tolist() == ["a", "", "b c", "NaN"]
        assert frame["value"].tolist()[:3] == [1.5, 2, -3e-9]


def sorted_like(table, ids, name):
    """Structures in the order of the ids; a folder is read by file names."""
    if name == "t.cif":
        return table.structures
    return [table.structures[table.ids.index(identifier)] for identifier in ids]


def test_rows_without_a_crystal_stay_where_there_is_a_place_for_them(tmp_path):
    for name in ("t.csv", "t.json", "folder"):
        write_crystals(tmp_path / name, ["a", "b"], [crystals.nacl(), None], {"status": ["ok", "failed"]})
    for name in ("t.csv", "t.json"):
        table = read_crystals(tmp_path / name)
        assert table.ids == ["a", "b"]
        assert table.frame["status"].tolist() == ["ok", "failed"]
        assert [structure is None for structure in table.structures] == [False, True]
    assert pd.read_csv(tmp_path / "folder" / "crystals.csv")["status"].tolist() == ["ok", "failed"]


def test_formats_that_others_write(tmp_path):
    salt, metal = crystals.nacl(), bulk("Cu")
    metal.info["material_id"] = "mp-30"
    metal.calc = SinglePointCalculator(metal, energy=-3.7, free_energy=-3.8)
    ase.io.write(tmp_path / "a.traj", [metal, bulk("Fe")])
    ase.io.write(tmp_path / "b.xsf", metal)
    ase.io.write(tmp_path / "c.json", [metal])
    with connect(tmp_path / "d.db") as database:
        database.write(metal, key_value_pairs={"gap": 0.5, "label": "x"})
    salt.to(filename=str(tmp_path / "e.json"))
    (tmp_path / "f.json").write_text(json.dumps({"mp-1": salt.as_dict(), "mp-2": salt.as_dict()}))
    entry = ComputedStructureEntry(salt, -27.0, entry_id="mp-22862").as_dict()
    (tmp_path / "g.json").write_text(json.dumps([entry]))
    (tmp_path / "h.jsonl").write_text(to_json_lines([("opt", salt, {"band_gap": 5.0})]))
    salt.to(filename=str(tmp_path / "i.vasp"), fmt="poscar")
    found = {path.name: read_crystals(path) for path in sorted(tmp_path.iterdir())}
    assert {name: table.ids for name, table in found.items()} == {
        "a.traj": ["mp-30", "1"], "b.xsf": ["b"], "c.json": ["0"], "d.db": ["0"], "e.json": ["e"],
        "f.json": ["mp-1", "mp-2"], "g.json": ["mp-22862"], "h.jsonl": ["opt"], "i.vasp": ["i"],
    }  # fmt: skip
    assert found["a.traj"].frame["energy"][0] == -3.7
    assert found["d.db"].frame.loc[0, ["gap", "label", "energy"]].tolist() == [0.5, "x", -3.7]
    assert found["g.json"].frame["energy"][0] == -27.0
    assert found["h.jsonl"].frame["band_gap"][0] == 5.0
    assert {s.composition.reduced_formula for table in found.values() for s in table.structures} == {"Cu", "Fe", "NaCl"}
    assert len(read_crystals(tmp_path)) == 11


def test_no_class_that_a_file_names_is_looked_up(tmp_path):
    data = crystals.nacl().as_dict()
    data["sites"][0]["properties"] = {"x": {"@module": "subprocess", "@class": "Popen", "args": ["touch", "ran"]}}
    data["lattice"]["@module"], data["lattice"]["@class"] = "os", "_Environ"
    (tmp_path / "a.json").write_text(json.dumps(data))
    assert formulas(tmp_path / "a.json") == ["Na4Cl4"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["sites"][0]["species"][0].update(occu=0.5), "disordered"),
        (lambda d: d["sites"][0]["species"][0].update(element="Vac"), "found Vac"),
        (lambda d: d["sites"][0]["species"][0].update(element="D"), "the isotope D"),
        (lambda d: d["lattice"].update(pbc=[True, True, False]), "not periodic"),
        (lambda d: d["lattice"].update(matrix=[[1, 0, 0], [2, 0, 0], [0, 0, 1]]), "a flat one"),
        (lambda d: d["sites"][0].update(abc=[0, 0, float("nan")]), "finite coordinates"),
        (lambda d: d.update(sites=[]), "found none"),
        (lambda d: d.pop("sites"), "found none"),
    ],
)
def test_dicts_that_are_no_crystals(tmp_path, change, message):
    data = crystals.nacl().as_dict()
    change(data)
    (tmp_path / "a.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=message):
        read_crystals(tmp_path / "a.json")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_any_encoding_in_any_packing(tmp_path, encoding, pack):
    for name in ("a.cif", "a.csv", "a.extxyz", "POSCAR"):
        text = plain_text(name).replace("\n", "\r\n") if name != "a.csv" else plain_text(name)
        (tmp_path / name).write_bytes(pack(text.encode(encoding)))
        assert formulas(tmp_path / name) == ["Fe2"], name


def plain_text(name: str) -> str:
    cell = "\n".join(f"_cell_length_{axis} 2.87" for axis in "abc") + "\n"
    cell += "\n".join(f"_cell_angle_{angle} 90" for angle in ("alpha", "beta", "gamma")) + "\n"
    cif = f"data_Fe # é\n_symmetry_space_group_name_H-M 'P 1'\n{cell}loop_\n"
    cif += "".join(f"_atom_site_{tag}\n" for tag in ("label", "type_symbol", "fract_x", "fract_y", "fract_z"))
    cif += "Fe1 Fe 0 0 0\nFe2 Fe 0.5 0.5 0.5\n"
    lattice = "2.87 0 0 0 2.87 0 0 0 2.87"
    return {
        "a.cif": cif,
        "a.csv": f'id,name,cif\na,é,"{cif}"\n',
        "a.extxyz": f'2\nLattice="{lattice}" name=é\nFe 0 0 0\nFe 1.435 1.435 1.435\n',
        "POSCAR": "é\n2.87\n1 0 0\n0 1 0\n0 0 1\nFe\n2\nDirect\n0 0 0\n0.5 0.5 0.5\n",
    }[name]


def test_values_of_extxyz(tmp_path):
    fe = read_crystals(CASES / "49_extxyz_total_energy" / "fe.extxyz")
    mgo = read_crystals(CASES / "49_extxyz_total_energy" / "mgo.extxyz")
    assert (fe.ids, mgo.ids) == (["007"], ["42"])
    assert mgo.frame.loc[0].to_dict() == {"id": "42", "spacegroup": 225, "checked": True, "energy": -11.9}
    assert fe.frame.loc[0, ["energy", "free_energy", "magmom"]].tolist() == [-16.6, -16.7, 4.2]
    write_crystals(tmp_path / "t.extxyz", mgo.ids, mgo.structures, mgo.frame)
    back = ase.io.read(tmp_path / "t.extxyz")
    assert back.info == {"id": "42", "spacegroup": 225, "checked": True}
    assert back.get_potential_energy() == -11.9


def test_our_energies_in_extxyz_are_those_of_the_cell():
    values = {"id": "a", "energy": -6.314, "energy_type": "CHGNet", "message": "", "gap": None, "x": float("nan")}
    text = to_extxyz(crystals.nacl(), values | {"n": np.int64(3), "b": np.bool_(True), "f": np.float64(0.1)})
    atoms = ase.io.read(io.StringIO(text), format="extxyz")
    assert atoms.get_potential_energy() == pytest.approx(-6.314 * 8)
    assert atoms.info == {"id": "a", "energy_per_atom": -6.314, "energy_type": "CHGNet", "n": 3, "b": True, "f": 0.1}
    assert atoms.pbc.all()
    _, read = read_extxyz(text)
    assert read == {"id": "a", "energy": -6.314, "energy_type": "CHGNet", "n": 3, "b": True, "f": 0.1}


def test_names_of_files_are_cut_and_told_apart():
    ids = ["m" * 300, "m" * 301, "é" * 150, "A", "a", "..", "x" * 200]
    names = file_names(ids)
    assert len({name.casefold() for name in names}) == len(ids)
    assert all(len(name.encode()) <= 210 for name in names)
    assert names[-1] == "x" * 200  # what fits is kept
    table = read_crystals(CASES / "63_long_odd_ids" / "in.csv")
    assert len(file_names(table.ids)) == 6


def test_a_failed_folder_leaves_nothing(tmp_path):
    bad = Structure(np.eye(3) * 4, [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    with pytest.raises(AttributeError):
        write_crystals(tmp_path / "out", ["a", "b"], [crystals.nacl(), bad])
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_read_frame(tmp_path):
    write_crystals(tmp_path / "t.csv", list("ab"), [crystals.nacl()] * 2, {"n": [3, 4], "x": ["", "0.5"], "s": [*"1u"]})
    frame, ids = read_frame(tmp_path / "t.csv")
    assert ids == ["a", "b"]
    assert frame["n"].tolist() == [3, 4]
    assert frame["n"].dtype == np.int64
    assert np.isnan(frame["x"][0])
    assert frame["s"].tolist() == ["1", "u"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("94_poscar_counts/truncated.vasp", r"expected 8 positions \(Mg O: 4 4\), found 5"),
        ("94_poscar_counts/two_names.vasp", "expected a number for each of Mg O, found 1 1 1"),
        ("94_poscar_counts/three_names.vasp", "expected a number for each of Mg O H, found 4 4"),
        ("95_csv_headers/twice.csv", "expected each column once .*, found cif more than once"),
        ("95_csv_headers/shifted.csv", "expected no more cells in a row .* than in its header"),
        ("95_csv_headers/escaped.csv", r"its line breaks are written as \\n"),
        ("96_cif_decimal_comma/x.cif", "expected numbers for the cell, _cell_length_a is '4,21'"),
        ("96_cif_decimal_comma/open.cif", r"expected numbers for the cell, _cell_length_a is '4\.21\(3'"),
    ],
)
def test_what_contradicts_itself_is_refused_in_our_words(name, message):
    with pytest.raises(InputError, match=message):
        read_crystals(CASES / name)


def test_a_comma_at_the_end_of_header_and_rows_is_no_harm():
    table = read_crystals(CASES / "95_csv_headers" / "trailing.csv")
    assert [structure.formula for structure in table.structures] == ["Fe2"]


def test_frames_that_ase_cannot_read_say_what_is_wrong_with_them():
    with pytest.raises(InputError, match="expected 7 columns as Properties says, found 3 for atom 2"):
        read_crystals(CASES / "51_extxyz_crlf_nel" / "short.extxyz")
    reasons = {failure.reason for failure in read_crystals(CASES / "50_extxyz_odd_frames" / "all.extxyz").failures}
    assert "expected nine numbers as Lattice, found 8" in reasons
