from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from typer.testing import CliRunner

from flows.cli import app
from loop.io.crystals import read_crystals, write_crystals
from oracles.potentials.loading import load_potential
from oracles.references.crystals import load_reference_crystals
from oracles.references.table import write_references

FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
METALS = ["Al", "Ni", "Cu", "Pd", "Ag", "Pt", "Au"]
EMT = "ase.calculators.emt:EMT"  # analytic, for a few metals: no weights to load


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fcc(element: str, length: float) -> Structure:
    return Structure(Lattice.cubic(length), [element] * 4, FCC)


@pytest.fixture
def metals(tmp_path):
    """Copper, gold, an alloy, an element that EMT does not know, and a row that is no crystal."""
    alloy = Structure(Lattice.cubic(3.8), ["Cu", "Cu", "Cu", "Au"], FCC[::-1])
    crystals = [fcc("Cu", 3.7), fcc("Au", 4.0), alloy, fcc("Xe", 6.0)]
    path = tmp_path / "in.csv"
    write_crystals(path, ["cu", "au", "cu3au", "xe"], crystals, {"note": list("abcd")})
    with path.open("a") as file:
        file.write("broken,e,not a cif\n")
    return path


def test_relax_keeps_ids_columns_and_failures(metals, tmp_path):
    from ase.build import bulk
    from ase.calculators import emt

    done = run(
        "relax", "--input", metals, "--output", tmp_path / "out.csv", "--potential", EMT, "--fmax", 0.01, "--json"
    )
    assert done.exit_code == 0, done.stderr
    frame = pd.read_csv(tmp_path / "out.csv", keep_default_na=False, na_values=[""])
    assert frame["id"].tolist() == ["cu", "au", "cu3au", "xe", "broken"]
    assert frame["note"].tolist() == list("abcde")
    assert frame["status"].tolist() == ["ok", "ok", "ok", "failed:unsupported-element", "failed:unreadable"]
    assert {"energy", "energy_type", "steps", "max_force", "max_stress", "seconds"} <= set(frame)
    atoms = bulk("Cu", "fcc", a=3.59)
    atoms.calc = emt.EMT()
    assert frame["energy"][0] == pytest.approx(atoms.get_potential_energy(), abs=2e-3)
    relaxed = read_crystals(tmp_path / "out.csv").structures
    assert (4 * relaxed[0].volume / len(relaxed[0])) ** (1 / 3) == pytest.approx(3.59, abs=0.01)
    assert relaxed[3] is None
    assert json.loads(done.stdout)["statuses"]["failed:unreadable"] == 1


def test_hull_of_a_table_built_from_files(metals, tmp_path):
    table = tmp_path / "references.csv"
    known = tmp_path / "known.csv"
    write_crystals(known, ["cu", "au"], [fcc("Cu", 3.61), fcc("Au", 4.08)])
    built = run("hull", "build", known, "--output", table, "--potential", EMT, "--json")
    assert built.exit_code == 0, built.stderr
    assert json.loads(built.stdout)["phases"] == 2
    assert "au" in set(pd.read_csv(table)["id"])  # EMT's copper is lowest in a hexagonal prototype
    base = ["--input", metals, "--potential", EMT, "--reference", table, "--json"]
    done = run("hull", *base, "--output", tmp_path / "h.csv")
    assert done.exit_code == 0, done.stderr
    frame = pd.read_csv(tmp_path / "h.csv")
    assert frame["id"].tolist() == ["cu", "au", "cu3au", "xe", "broken"]
    assert (frame["e_above_hull"][:2] > 0).all()  # strained, so above their own references
    assert json.loads(frame["decomposition"][2]) == pytest.approx({"Cu": 0.75, "Au": 0.25})
    relaxed = run("hull", *base, "--relax", "--output", tmp_path / "r.csv")
    assert relaxed.exit_code == 0, relaxed.stderr
    after = pd.read_csv(tmp_path / "r.csv")
    assert (after["e_above_hull"][:3] < frame["e_above_hull"][:3]).all()


def test_hull_refuses_energies_of_another_type(metals, tmp_path):
    done = run("hull", "--input", metals, "--output", tmp_path / "h.csv", "--potential", EMT)
    assert done.exit_code == 1
    assert "EMT" in done.stderr
    assert "CHGNet" in done.stderr
    assert "Traceback" not in done.stderr


def test_hull_wants_input_and_output(metals):
    done = run("hull", "--input", metals)
    assert done.exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["relax", "--input", "nowhere.csv", "--output", "OUT"], "there is no such file"),
        (["relax", "--input", "IN", "--output", "OUT.docx"], "expected a name ending in"),
        (["relax", "--input", "IN", "--output", "/proc/none/out.csv"], "cannot be made"),
        (["relax", "--input", "IN", "--output", "OUT", "--potential", "magic"], "no potential 'magic'"),
        (["relax", "--input", "IN", "--output", "OUT", "--fmax", "-1"], "fmax of a relaxation must be positive"),
        (["hull", "--input", "IN", "--output", "OUT", "--reference", "nowhere.csv"], "reference phases in"),
    ],
)
def test_one_clear_message(metals, tmp_path, arguments, message):
    paths = {"IN": str(metals), "OUT": str(tmp_path / "out.csv"), "OUT.docx": str(tmp_path / "out.docx")}
    done = run(*[paths.get(argument, argument) for argument in arguments])
    assert done.exit_code == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_input_without_one_crystal_is_an_error(tmp_path):
    (tmp_path / "bad.csv").write_text("id,cif\n1,nonsense\n")
    done = run("relax", "--input", tmp_path / "bad.csv", "--output", tmp_path / "o.csv", "--potential", EMT)
    assert done.exit_code == 1
    assert "none of 1 entries can be read" in done.stderr


def test_nothing_but_bad_rows_is_an_error_that_says_why(tmp_path):
    write_crystals(tmp_path / "in.csv", ["xe"], [fcc("Xe", 6.0)])
    done = run("relax", "--input", tmp_path / "in.csv", "--output", tmp_path / "out.csv", "--potential", EMT)
    assert done.exit_code == 1
    assert "none of 1 crystals could be evaluated; the first: the potential does not know Xe" in done.stderr
    assert pd.read_csv(tmp_path / "out.csv")["status"].tolist() == ["failed:unsupported-element"]


def test_energies_far_below_the_hull_are_flagged_in_the_table(metals, tmp_path):
    rows = {"formula": METALS, "energy_per_atom": [1.0 if name == "Cu" else 0.0 for name in METALS], "id": METALS}
    write_references(tmp_path / "r.csv", pd.DataFrame(rows | {"held_out": 0}), load_potential(EMT))
    options = ["--input", metals, "--potential", EMT, "--reference", tmp_path / "r.csv"]
    for extra in ([], ["--relax"]):
        done = run("hull", *options, *extra, "--output", tmp_path / "h.csv", "--json")
        assert done.exit_code == 0, done.stderr
        frame = pd.read_csv(tmp_path / "h.csv", keep_default_na=False, na_values=[""]).set_index("id")
        assert frame["suspect"][:4].tolist() == [True, False, True, False]
        flag = "far below the hull: an error of the potential more often than a find"
        assert frame.loc["cu", "message"].startswith(flag)
        assert json.loads(done.stdout)["suspect"] == 2


def conventional(n: int) -> list[Structure]:
    """Published alloys in conventional cells that are centred, every second one doubled, their atoms in any order."""
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    table, rng = load_reference_crystals(), np.random.default_rng(1)
    names = [name for name in table.in_system(METALS) if table.n_atoms(name) < 9]
    found = []
    for name in rng.permutation(names):
        cell = SpacegroupAnalyzer(table.structure(name), 0.01).get_conventional_standard_structure()
        if len(cell) > table.n_atoms(name):
            cell = cell * (1, 1, 1 + len(found) % 2)
            order = rng.permutation(len(cell))
            found.append(Structure(cell.lattice, [cell.species[i] for i in order], cell.frac_coords[order]))
    return found[:n]


OUTPUTS = ("out.csv", "out.extxyz", "out.cif", "cifs", "out.json", "out.db", "out.poscar")


@pytest.mark.parametrize(("verb", "names"), [("relax", OUTPUTS), ("hull", ("out.csv", "out.cif"))])
def test_relaxed_crystals_keep_their_cells_and_the_order_of_their_atoms(verb, names, tmp_path):
    """None comes back primitive, sorted or standardised, in no format; a POSCAR groups the elements."""
    given = conventional(12)
    assert len(given) == 12
    write_crystals(tmp_path / "in.csv", [f"c{i:02d}" for i in range(len(given))], given)
    options = ["--input", tmp_path / "in.csv", "--potential", EMT]
    if verb == "hull":
        rows = {"formula": METALS, "energy_per_atom": 0.0, "id": METALS, "held_out": 0}
        write_references(tmp_path / "r.csv", pd.DataFrame(rows), load_potential(EMT))
        options += ["--relax", "--reference", tmp_path / "r.csv"]
    for name in names:
        done = run(verb, *options, "--output", tmp_path / name)
        assert done.exit_code == 0, done.stderr
        read = [] if name == "out.json" else ase_read(tmp_path / name)
        for structures in filter(None, (read, read_crystals(tmp_path / name).structures)):
            for before, after in zip(given, structures, strict=True):
                expected = before.get_sorted_structure() if "poscar" in name else before
                assert after.species == expected.species, name
                moved = after.frac_coords - expected.frac_coords
                moved = (moved - np.rint(moved)) @ before.lattice.matrix
                assert np.linalg.norm(moved, axis=1).max() < 0.5, name
                assert after.lattice.parameters == pytest.approx(before.lattice.parameters, rel=0.1), name


def ase_read(place) -> list[Structure]:
    """What ASE reads of an output."""
    import io

    from ase.io import read

    if place.is_dir():
        atoms = [read(path) for path in sorted(place.iterdir()) if path.suffix in (".cif", ".vasp")]
    elif place.suffix == ".csv":
        atoms = [read(io.StringIO(text), format="cif") for text in pd.read_csv(place)["cif"]]
    else:
        atoms = read(place, index=":")
    return [AseAtomsAdaptor.get_structure(one) for one in atoms]
