"""Reading and writing crystals: every format, and every way in which a file can be broken."""

import gzip

import pandas as pd
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.io.cif import CifWriter

from loop.errors import InputError
from loop.io.cells import number_of
from loop.io.cif import cif_blocks, parse_cif
from loop.io.cif_writer import to_cif
from loop.io.crystals import read_crystals, write_crystals
from tests import crystals

MATCHER = StructureMatcher(ltol=1e-4, stol=1e-4, angle_tol=1e-2, scale=False)
NAMES = ["nacl", "rutile", "triclinic"]


@pytest.fixture
def three():
    return [getattr(crystals, name)() for name in NAMES]


@pytest.mark.parametrize("suffix", ["table.csv", "table.csv.gz", "frames.extxyz", "folder"])
def test_write_then_read(tmp_path, three, suffix):
    path = tmp_path / suffix
    assert write_crystals(path, NAMES, three, {"energy": [-1.0, -2.0, -3.0]}) == 3
    table = read_crystals(path)
    assert table.ids == NAMES
    assert table.failures == []
    for before, after in zip(three, table.structures, strict=True):
        assert MATCHER.fit(before, after)
        assert before.composition == after.composition
    if suffix != "folder":
        assert table.frame["energy"].tolist() == [-1.0, -2.0, -3.0]
    assert [p.name for p in tmp_path.iterdir()] == [suffix]  # no temporary is left


def test_same_crystals_same_bytes(tmp_path, three):
    path = tmp_path / "a.csv.gz"
    write_crystals(path, NAMES, three)
    assert path.read_bytes()[4:8] == bytes(4)  # no time stamp in the gzip header


def test_broken_rows_are_listed_and_the_rest_goes_on(tmp_path, three):
    disordered = Structure(three[0].lattice, [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]])
    texts = [to_cif(three[0]), "data_x\n_cell_length_a oops", "", str(CifWriter(disordered)), to_cif(three[1])]
    path = tmp_path / "mixed.csv"
    pd.DataFrame({"material_id": list("abcde"), "pretty_formula": ["NaN"] * 5, "cif": texts}).to_csv(path, index=False)
    table = read_crystals(path)
    assert table.ids == list("abcde")
    assert [s is not None for s in table.structures] == [True, False, False, False, True]
    assert [(f.row, f.id) for f in table.failures] == [(1, "b"), (2, "c"), (3, "d")]
    assert table.failures[1].reason == "no CIF in this row"
    assert "disordered" in table.failures[2].reason
    assert table.frame["pretty_formula"].tolist() == ["NaN"] * 5  # sodium mononitride is no missing value
    assert [i for i, _ in table.readable()] == ["a", "e"]


def test_ids(tmp_path, three):
    texts = [to_cif(s) for s in three]
    path = tmp_path / "t.csv"
    pd.DataFrame({"cif": texts}).to_csv(path, index=False)
    assert read_crystals(path).ids == ["0", "1", "2"]
    pd.DataFrame({"id": ["007", None, "8"], "cif": texts}).to_csv(path, index=False)
    assert read_crystals(path).ids == ["007", "1", "8"]


def test_file_names_stay_in_the_folder(tmp_path, three):
    write_crystals(tmp_path / "out", ["../../evil", "a/b", "a:b"], three)
    assert sorted(p.name for p in (tmp_path / "out").glob("*.cif")) == ["_.._evil.cif", "a_b-2.cif", "a_b.cif"]


def test_rows_without_a_crystal_are_kept_in_a_csv(tmp_path, three):
    assert write_crystals(tmp_path / "t.csv", ["a", "b"], [three[0], None]) == 1
    table = read_crystals(tmp_path / "t.csv")
    assert [s is None for s in table.structures] == [False, True]
    assert write_crystals(tmp_path / "t.extxyz", ["a", "b"], [three[0], None]) == 1


def test_single_cif_with_symmetry_and_with_several_blocks(tmp_path, three):
    path = tmp_path / "one.cif"
    path.write_text(str(CifWriter(three[1], symprec=0.01)))
    assert "P4_2/mnm" in path.read_text()
    table = read_crystals(path)
    assert table.ids == ["one"]
    assert MATCHER.fit(table.structures[0], three[1])
    path.write_text("\n".join(to_cif(s) for s in three))
    table = read_crystals(path)
    assert len(table) == 3
    assert [s.composition for s in table.structures] == [s.composition for s in three]
    assert [name for name, _ in cif_blocks(path.read_text())] == ["NaCl", "TiO2", "Li2FeO2"]
    assert table.ids == ["one/NaCl", "one/TiO2", "one/Li2FeO2"]


def test_broken_frames_of_extxyz(tmp_path, three):
    path = tmp_path / "t.extxyz"
    write_crystals(path, NAMES, three)
    frames = path.read_text().splitlines()
    frames[3] = frames[3].replace("Na", "Qq")
    molecule = '1\nProperties=species:S:1:pos:R:3 pbc="F F F"\nH 0.0 0.0 0.0\n'
    path.write_text("\n".join(frames) + "\n" + molecule + "\nno number here\n")
    table = read_crystals(path)
    assert [s is None for s in table.structures] == [True, False, False, True, True]
    assert "periodic" in table.failures[1].reason


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.csv", None, "no such file"),
        ("t.csv", b"a,b\n1,2\n", "expected a column 'cif'"),
        ("t.csv", b"cif\nnonsense\n", "none of 1 entries can be read"),
        ("t.csv", b"", "cannot read it"),
        ("t.csv.gz", b"not gzipped", "its content is not packed so"),
        ("t.csv.gz", gzip.compress(b"cif\n" + b"x" * 5000, mtime=0)[:-12], "cut off or damaged"),
        ("t.csv", b"\xff\xfe\x00cif", "expected a column 'cif'"),
        ("t.cif", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a Git LFS pointer"),
        ("t.pkl", b"\x80\x04.", "is a pickle, which can run code"),
        ("t.zip", b"PK", "is a zip archive: unpack it"),
        ("t.vasp", b"x\n1\n3 0 0\n0 3 0\n0 0 3\n1\nDirect\n0 0 0\n", "a POSCAR of VASP 4 without them"),
        ("t.json", b"{}", "expected structures"),
        ("t.json", b'{"a": 1', "unreadable JSON"),
        ("t.db", b"no database", "as an ASE database"),
        ("t.traj", b"no trajectory", "unreadable"),
        ("t.doc", b"x", "expected a .csv"),
        ("t.cif", b"\x00\x01", "none of 1 entries"),
        ("t.extxyz", b"", "none of 0 entries"),
    ],
)
def test_bad_sources_give_one_clear_error(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_crystals(path)
    assert message in str(error.value)
    assert name in str(error.value)


def test_empty_folder_and_unknown_output(tmp_path, three):
    with pytest.raises(InputError, match=r"expected \.cif files"):
        read_crystals(tmp_path)
    with pytest.raises(InputError, match="expected a name ending"):
        write_crystals(tmp_path / "x.pdf", NAMES, three)


def test_oxidation_states_are_dropped():
    structure = crystals.nacl().copy()
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    _, numbers, _ = parse_cif(to_cif(structure))
    assert sorted(set(numbers.tolist())) == [11, 17]


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    """CIFs of an earlier run are replaced; a user's own files never are."""
    folder = tmp_path / "work"
    write_crystals(folder, ["a"], [crystals.nacl()])
    write_crystals(folder, ["b"], [crystals.nacl()])
    assert [path.name for path in folder.glob("*.cif")] == ["b.cif"]
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        write_crystals(folder, ["c"], [crystals.nacl()])
    assert {"b.cif", "thesis.txt"} <= {path.name for path in folder.iterdir()}
    (folder / "thesis.txt").unlink()
    (folder / "b.cif").write_text((folder / "b.cif").read_text() + "# my own remark")
    with pytest.raises(InputError, match=r"changed since \(b\.cif\)"):
        write_crystals(folder, ["c"], [crystals.nacl()])


@pytest.mark.parametrize("text", ["e214936795251711", "e5", ".e5", "+e3", ".", "", "-", "007", "3e400"])
def test_a_text_that_looks_like_half_a_number_stays_a_text(tmp_path, text):
    """An id of sixteen hexadecimal digits may be an e and fifteen figures."""
    assert number_of(text) == text
    write_crystals(tmp_path / "in.csv", ["x"], [crystals.nacl()], {"id": ["x"], "note": [text or "-"]})
    assert read_crystals(tmp_path / "in.csv").frame["note"].tolist() == [text or "-"]


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), (".5", 0.5), ("-1e-3", -0.001), ("2.", 2.0), ("12", 12)])
def test_numbers_are_numbers(text, value):
    assert number_of(text) == value
