"""Corners of hulls: elements are the lowest of their prototypes, and nothing is dropped from a table unsaid."""

import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from ase.build import bulk
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from typer.testing import CliRunner

from flows.cli import app
from flows.corners import examine
from loop.errors import EnergyTypeError, InputError
from oracles.potentials.calculator import to_structure
from oracles.potentials.loading import load_potential
from oracles.references import element_prototypes
from oracles.references.competing import relax_competing
from oracles.references.element_prototypes import MOLECULES, lowest_prototypes, prototypes
from oracles.references.table import DEFAULT, load_references, lowest_known, too_high, write_references
from oracles.relax import relax

torch.set_num_threads(1)
CASES = Path(__file__).parent / "cases"
EMT = "ase.calculators.emt:EMT"
# E_hull (eV/atom) of the crystals of case 57 as they stand: CHGNet's energies of these very cells, less its energies of
# N2 and H2 crystals with the bond lengths of the molecules (-8.341 and -3.348 eV/atom) and of the metals
ABOVE = {"AuH": 0.42, "AgH": 0.30, "Cu3N": 0.24}
UNSTABLE = ["Cu3N", "Na3N", "PdN", "AgN", "AuN", "NaN_rs", "CuH", "AgH", "AuH"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def chgnet():
    return load_potential("chgnet", device="cpu")


@pytest.fixture(scope="module")
def shipped():
    return load_references()


def test_prototypes_are_those_of_pymatgen():
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY

    expected = [entry for entry in AFLOW_PROTOTYPE_LIBRARY if len(entry["snl"].structure.composition) == 1]
    library = element_prototypes._library()
    assert len(library) == len(expected) > 50
    for entry, (name, crystal) in zip(expected, library.items(), strict=True):
        assert name.startswith(entry["tags"]["aflow"] + ":")
        assert crystal == entry["snl"].structure.get_primitive_structure()


@pytest.mark.parametrize("relaxed", [False, True])
def test_nitrides_and_hydrides_of_noble_metals_are_unstable_and_the_gases_are_stable(tmp_path, relaxed):
    output, how = tmp_path / "out.csv", ["--relax"] if relaxed else []
    done = run("hull", "-i", CASES / "57_gas_references" / "x.csv", "-o", output, *how)
    assert done.exit_code == 0, done.stderr
    found = pd.read_csv(output, keep_default_na=False, na_values=[""]).set_index("material_id")["e_above_hull"]
    assert abs(found["N2"]) <= 0.02
    assert abs(found["H2"]) <= 0.02
    assert (found[UNSTABLE] > 0.05).all(), found[UNSTABLE]
    for name, value in ABOVE.items():
        assert found[name] == pytest.approx(value, abs=0.02 if not relaxed else 0.05), name


def test_no_shipped_corner_lies_above_its_lowest_prototype(shipped):
    stored = lowest_known(shipped)
    assert stored.keys() == shipped.hull().elements
    assert too_high(shipped.elements(), stored) == {}


def test_corners_that_were_wrong_hold_against_prototypes_computed_again(shipped, chgnet):
    """Those that lay 0.05 to 5 eV/atom too high once; with the simplest prototypes of each."""
    found = examine(shipped, chgnet, ["H", "N", "Yb", "Cr", "Ne"], largest=2)
    assert found.checked == 5
    assert found.too_high == {}
    assert {"prototype:A_cF4_225_a:Cu", "prototype:A_cI2_229_a:W"} <= set(
        found.tried.loc[found.tried["element"] == "Yb", "prototype"]
    )


def test_a_corner_that_is_too_high_is_refused_when_it_is_loaded(tmp_path, shipped):
    """The table that was shipped once: N2 5.2 and H2 2.2 eV/atom too high; its JSON names no prototypes."""
    table = pd.DataFrame({"formula": shipped.formulas, "energy_per_atom": shipped.energies, "id": shipped.ids})
    table.loc[table["formula"] == "N2", "energy_per_atom"] = -3.14401
    table.loc[table["formula"] == "H2", "energy_per_atom"] = -1.13916
    table.to_csv(tmp_path / "old.csv", index=False)
    kind = {"energy_type": asdict(shipped.energy_type)}
    (tmp_path / "old.json").write_text(json.dumps(kind))
    with pytest.raises(InputError, match=r"H by 2\.\d+, N by 5\.\d+.*hull build"):
        load_references(tmp_path / "old.csv")


def test_a_table_of_a_potential_that_is_not_shipped_brings_its_own_prototypes(tmp_path):
    rows = pd.DataFrame({"formula": ["Cu"], "energy_per_atom": [1.0], "id": ["a"], "held_out": [0]})
    emt = load_potential(EMT)
    assert len(write_references(tmp_path / "unknown.csv", rows, emt)) == 1  # nothing is known of its prototypes
    with pytest.raises(InputError, match="Cu by 1\\.0"):
        write_references(tmp_path / "known.csv", rows, emt, corners={"Cu": {"name": "fcc", "energy": -0.007}})


def test_hull_check_computes_prototypes_and_names_what_is_too_high(tmp_path):
    rows = pd.DataFrame({"formula": ["Cu", "Al"], "energy_per_atom": [0.5, -0.5], "id": ["a", "b"], "held_out": [0, 0]})
    write_references(tmp_path / "t.csv", rows, load_potential(EMT))
    arguments = ["hull", "check", "--reference", tmp_path / "t.csv", "--potential", EMT, "--json"]
    wrong = run(*arguments, "--elements", "Cu", "-o", tmp_path / "tried.csv")
    assert wrong.exit_code == 1
    assert re.search(r"Cu by 0\.5", wrong.stderr)
    tried = pd.read_csv(tmp_path / "tried.csv")
    assert {"ase:Cu", "prototype:A_cF4_225_a:Cu", "prototype:A_cI2_229_a:W"} <= set(tried["prototype"])
    assert run(*arguments, "--elements", "Al").exit_code == 0
    absent = run(*arguments, "--elements", "Ni")
    assert absent.exit_code == 1
    assert "Ni" in absent.stderr


def test_a_table_is_checked_with_its_own_potential_only(shipped):
    with pytest.raises(EnergyTypeError, match="potential that made it"):
        examine(shipped, load_potential(EMT), ["Cu"])


@pytest.mark.parametrize("element", sorted(MOLECULES))
def test_molecular_crystals_have_the_bonds_and_density_of_the_molecules(element):
    bond, volume = MOLECULES[element]
    molecular = [each for each in prototypes(element) if each.name.startswith("molecules:")]
    assert len(molecular) == 12
    for each in molecular:
        structure = each.structure
        looser = 1.4 if each.name.endswith("@1.4") else 1.0
        assert structure.volume / len(structure) == pytest.approx(looser * volume / 2)
        for site in structure:
            near = sorted(other.nn_distance for other in structure.get_neighbors(site, 6.0))
            assert near[0] == pytest.approx(bond, abs=1e-6)
            assert near[1] > 1.15 * bond  # one partner each


def test_the_lowest_prototype_of_a_metal_is_its_crystal():
    potential = load_potential(EMT)
    found = lowest_prototypes(["Cu", "Xe"], potential, {"Cu": {"mine": to_structure(bulk("Cu"))}}, largest=2)
    assert set(found) == {"Cu"}  # EMT does not know xenon
    corner = found["Cu"]
    assert corner.space_group in (194, 225)
    assert corner.energy == pytest.approx(min(corner.tried.values()), abs=1e-3)
    assert corner.energy <= corner.unrelaxed + 1e-6
    alone = relax([to_structure(bulk("Cu"))], potential)[0].energy
    assert corner.energy <= alone + 1e-3
    assert corner.tried["prototype:A_cI2_229_a:W"] > corner.energy + 0.005  # bcc


def test_the_shipped_hull_is_pymatgens(shipped):
    hull, table = shipped.hull(), dict(zip(shipped.formulas, shipped.energies.tolist(), strict=True))
    for system in (("Cu", "N"), ("Ag", "H"), ("Al", "H", "N"), ("Li", "O", "P", "Fe")):
        inside = [formula for formula in table if set(Composition(formula).chemical_system_set) <= set(system)]
        entries = [PDEntry(formula, table[formula] * Composition(formula).num_atoms) for formula in inside]
        diagram = PhaseDiagram(entries)
        for formula, entry in zip(inside, entries, strict=True):
            place = hull.e_above_hull(formula, table[formula], shipped.energy_type)
            assert place.e_above_hull == pytest.approx(diagram.get_e_above_hull(entry), abs=1e-8), formula


def test_a_known_crystal_lies_on_its_own_phase(shipped, chgnet):
    """References and candidates are relaxed alike: found again from another start it lies within 1 meV/atom."""
    published = {"MgO": bulk("MgO", "rocksalt", a=4.21), "LiF": bulk("LiF", "rocksalt", a=4.03)}
    published |= {"NaCl": bulk("NaCl", "rocksalt", a=5.64), "GaAs": bulk("GaAs", "zincblende", a=5.65)}
    assert not shipped.not_relaxed & published.keys()
    others = [to_structure(atoms) for atoms in published.values()]
    for structure in others:
        structure.scale_lattice(structure.volume * 1.04)
    hull = shipped.hull()
    for formula, found in zip(published, relax(others, chgnet), strict=True):
        assert found.ok
        place = hull.e_above_hull(formula, found.energy, shipped.energy_type)
        assert place.e_above_hull == pytest.approx(0, abs=1e-3), formula


def alloys(folder):
    """A table of EMT's: the elements, and two alloys as they stand, one of which is far from its minimum."""
    potential = load_potential(EMT)
    gold, copper = to_structure(bulk("Au", cubic=True)), to_structure(bulk("Cu", cubic=True))
    one, two = copper.copy(), copper.copy()
    one.replace(0, "Au")
    for site in (0, 1):
        two.replace(site, "Au")
    one, two = (found.structure.copy() for found in relax([one, two], potential))
    for strained in (one, two):
        strained.scale_lattice(strained.volume * 1.01)
    crystals = {"au": gold, "cu": copper, "cu3au": one, "cuau": two}
    energies = [*(r.energy for r in relax([gold, copper], potential)), *potential.energies([one, two])]
    rows = pd.DataFrame(
        {
            "formula": [s.composition.reduced_formula for s in crystals.values()],
            "energy_per_atom": energies,
            "id": list(crystals),
            "held_out": 0,
            "relaxed": [1, 1, 0, 0],
        }
    )
    return crystals, write_references(folder / "t.csv", rows, potential), potential


def test_the_phases_that_decide_a_distance_are_relaxed_when_needed(tmp_path):
    crystals, table, potential = alloys(tmp_path)
    assert table.not_relaxed == {"Cu3Au", "CuAu"}
    wanted = Composition("Cu7Au5")  # between the two
    before = table.hull().e_above_hull(wanted, 0.0, table.energy_type)
    after = relax_competing([wanted], table, crystals.get, potential)
    deciding = after.hull().e_above_hull(wanted, 0.0, table.energy_type)
    assert not deciding.decomposition.keys() & after.not_relaxed
    assert deciding.e_above_hull > before.e_above_hull  # the hull came down
    mine = dict(zip(after.formulas, after.energies.tolist(), strict=True))
    done = {"Cu3Au", "CuAu"} - after.not_relaxed
    for formula in done:
        crystal = crystals[formula.lower()]
        assert mine[formula] == pytest.approx(relax([crystal], potential)[0].energy, abs=1e-9)
    assert done
    assert table.not_relaxed == {"Cu3Au", "CuAu"}  # the table itself stays


def test_a_competing_phase_without_a_crystal_is_told(tmp_path):
    _, table, potential = alloys(tmp_path)
    after = relax_competing(["Cu7Au5"], table, {}.get, potential)
    decomposition = after.hull().e_above_hull("Cu7Au5", 0.0, table.energy_type).decomposition
    assert after.not_relaxed == table.not_relaxed
    assert after.unrelaxed_among(decomposition).startswith("competing phases not relaxed: Cu")


# ---- tables of given energies: rows that cannot be used


@pytest.fixture
def given(tmp_path):
    def build(case: str, source: str):
        arguments = ["--output", tmp_path / "t.csv", "--energies", "energy_per_atom", "--json"]
        return run("hull", "build", CASES / case / source, *arguments)

    return build


def test_a_good_table_of_given_energies_loses_nothing(given, tmp_path):
    done = given("52_hull_build_dropped_rows", "good.csv")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["phases"] == 5
    assert json.loads(done.stdout)["left_out"] == {}
    assert "NaN" in load_references(tmp_path / "t.csv").formulas


def test_an_energy_that_is_no_number_is_an_error_with_row_and_value(given):
    done = given("52_hull_build_dropped_rows", "bad.csv")
    assert done.exit_code == 1
    assert re.search(r"'-5,60' for c-nan in row 3", " ".join(done.stderr.split()))


def test_crystals_that_cannot_be_read_and_empty_energies_are_counted_and_named(tmp_path):
    frame = pd.read_csv(CASES / "52_hull_build_dropped_rows" / "bad.csv", dtype=str)
    frame.loc[frame["material_id"] == "c-nan", "energy_per_atom"] = ""
    frame.to_csv(tmp_path / "in.csv", index=False)
    done = run(
        "hull", "build", tmp_path / "in.csv", "--output", tmp_path / "t.csv", "--energies", "energy_per_atom", "--json"
    )
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["left_out"] == {"no energy": 1, "unreadable CIF": 1}
    assert "left out 2 rows" in done.stderr
    assert "c-nan" in done.stderr
    assert "c-nacl" in done.stderr
    assert load_references(tmp_path / "t.csv").provenance["dropped_ids"] == ["c-nan", "c-nacl"]


def test_an_element_without_an_energy_is_named(given):
    done = given("53_hull_missing_element", "known.csv")
    assert done.exit_code == 1
    assert "there is none of Cl" in " ".join(done.stderr.split())


def test_phases_with_one_id_all_count(given, tmp_path):
    done = given("54_hull_same_ids", "known.csv")
    assert done.exit_code == 0, done.stderr
    table = load_references(tmp_path / "t.csv")
    hull, energies = table.hull(), dict(zip(table.formulas, table.energies.tolist(), strict=True))
    assert len(table) == 3
    for formula in table.formulas:
        assert hull.e_above_hull(formula, energies[formula], table.energy_type).e_above_hull == pytest.approx(0)


@pytest.mark.parametrize("case", ["55_elements_without_reference/odd.csv", "56_isolated_atoms/x.csv"])
def test_elements_without_reference_and_lonely_atoms_are_named_never_guessed(tmp_path, case, chgnet):
    done = run("hull", "-i", CASES / case, "-o", tmp_path / "out.csv")
    assert done.exit_code == 0, done.stderr
    frame = pd.read_csv(tmp_path / "out.csv", keep_default_na=False, na_values=[""]).set_index("material_id")
    for name, row in frame.iterrows():
        if row["status"] == "ok":
            assert np.isfinite(row["e_above_hull"])
            continue
        assert row["status"].startswith("failed:"), name
        assert np.isnan(row["e_above_hull"])
        assert row["message"]
        if case.startswith("55"):
            assert name.removesuffix("O") in row["message"]
    assert frame["status"].eq("ok").any()


def test_the_shipped_tables_files_belong_together(tmp_path):
    for path in (DEFAULT, DEFAULT.with_name("chgnet_references.json")):
        shutil.copy(path, tmp_path / path.name)
    again = load_references(tmp_path / DEFAULT.name)
    meta = again.provenance
    assert meta["rows"] == len(again)
    assert meta["relaxed"] == len(again) - len(again.not_relaxed)
