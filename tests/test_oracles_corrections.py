"""MP2020 corrections against the published values, and only where they belong."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from pymatgen.core import Composition, Lattice, Structure
from typer.testing import CliRunner

from flows.cli import app
from loop.errors import ConfigError, InputError
from loop.io.crystals import write_crystals
from loop.values import EnergyType
from oracles.potentials.calculator import to_structure
from oracles.potentials.conformance import conformance
from oracles.potentials.corrections import CorrectedPotential, mp2020, run_parameters
from oracles.potentials.loading import load_potential
from oracles.references.given_energies import Given, references_from
from oracles.references.table import load_references
from tests.crystals import nacl, perovskite, rutile

PBE = EnergyType("X", "PBE(+U)", "none", "0" * 64)


@pytest.mark.parametrize(
    ("formula", "correction"),  # eV a cell; pymatgen with the run type stated
    [("SrTiO3", -2.061), ("Na4Cl4", -2.456), ("Mn2O4", -6.084), ("Si2", 0.0), ("Fe2", 0.0), ("O8", 0.0)],
)
def test_published_values(formula, correction):
    assert mp2020(Composition(formula)) == pytest.approx(correction, abs=1e-3)


def test_structures_give_the_same_and_tell_peroxides():
    assert mp2020(perovskite()) == pytest.approx(-2.061, abs=1e-3)
    assert mp2020(nacl()) == pytest.approx(-2.456, abs=1e-3)
    peroxide = Structure(Lattice.cubic(6), ["Ba", "O", "O"], [[0, 0, 0], [0.5, 0.5, 0.38], [0.5, 0.5, 0.62]])
    apart = Structure(Lattice.cubic(6), ["Ba", "O", "O"], [[0, 0, 0], [0.5, 0.5, 0.0], [0.5, 0.0, 0.5]])
    assert mp2020(peroxide) == pytest.approx(2 * -0.465, abs=1e-3)
    assert mp2020(apart) == pytest.approx(2 * -0.687, abs=1e-3)


def test_a_hubbard_u_is_for_oxides_and_fluorides():
    assert run_parameters(Composition("Fe2O3"))["run_type"] == "GGA+U"
    assert run_parameters(Composition("CoF2"))["hubbards"]["Co"] == pytest.approx(3.32)
    assert run_parameters(Composition("MnS"))["run_type"] == "GGA"
    assert run_parameters(Composition("TiO2"))["hubbards"] == {}


def pretender():
    """EMT as if it had learned uncorrected PBE(+U) energies."""
    plain = load_potential("ase.calculators.emt:EMT")
    plain.about = dataclasses.replace(plain.about, energy_type=PBE)
    return plain


def oxide() -> Structure:
    return Structure(Lattice.cubic(4.3), ["Cu", "O"], [[0, 0, 0], [0.5, 0.5, 0.45]])


def test_a_corrected_potential_differs_by_the_correction_alone():
    plain, corrected = pretender(), CorrectedPotential(pretender())
    assert corrected.energy_type == dataclasses.replace(PBE, corrections="MP2020")
    one, other = (p.single_points([oxide(), to_structure(bulk("Cu"))]) for p in (plain, corrected))
    assert other[0].energy - one[0].energy == pytest.approx(mp2020(oxide()) / 2)
    assert other[1].energy == one[1].energy
    np.testing.assert_array_equal(one[0].forces, other[0].forces)
    assert [finding for finding in conformance(corrected, [oxide()]) if not finding.passed] == []


def test_a_corrected_potential_computes_where_the_plain_one_does():
    class Elsewhere(type(pretender())):
        """In two processes, which have worked for 7 s."""

        in_processes, lanes = True, 2

        def processor_seconds(self):
            return 7.0

    plain = pretender()
    plain.__class__ = Elsewhere
    corrected = CorrectedPotential(plain)
    assert (corrected.in_processes, corrected.lanes, corrected.processor_seconds()) == (True, 2, 7.0)


@pytest.mark.parametrize("name", ["chgnet+mp2020", "chgnet:r2scan+mp2020", "ase.calculators.emt:EMT+mp2020"])
def test_where_they_do_not_belong_they_are_refused(name):
    with pytest.raises(ConfigError, match="MP2020 corrections belong to uncorrected"):
        load_potential(name, device="cpu")


@pytest.fixture
def table(tmp_path):
    """Uncorrected energies, made up, of an oxide and its elements."""
    oxygen = Structure(Lattice.cubic(5), ["O", "O"], [[0, 0, 0], [0.24, 0, 0]])
    crystals = [rutile(), Structure(Lattice.cubic(3), ["Ti"], [[0, 0, 0]]), oxygen]
    write_crystals(tmp_path / "dft.csv", ["a", "b", "c"], crystals, {"energy_per_atom": [-8.0, -7.0, -5.0]})
    return tmp_path / "dft.csv"


def test_a_hull_of_given_energies_is_typed(table, tmp_path):
    built = references_from([table], tmp_path / "out.csv", Given(correct=True))
    assert built.energy_type.corrections == "MP2020"
    place = built.hull().e_above_hull("TiO2", -8.0, built.energy_type)
    assert place.e_above_hull == pytest.approx(0.687 * 2 / 3, abs=1e-4)  # the uncorrected energy on the corrected hull
    plain = references_from([table], tmp_path / "plain.csv")
    assert plain.hull().e_above_hull("TiO2", -8.0, plain.energy_type).e_above_hull == pytest.approx(0, abs=1e-9)
    for element in ("Ti", "O"):
        energy = dict(zip(built.formulas, built.energies, strict=True))["O2" if element == "O" else element]
        assert built.hull().e_above_hull(element, energy, built.energy_type).e_above_hull == pytest.approx(0, abs=1e-9)


def test_a_hull_without_an_element_or_a_column_is_refused(table, tmp_path):
    frame = pd.read_csv(table)
    frame[frame["id"] != "b"].to_csv(tmp_path / "less.csv", index=False)
    with pytest.raises(InputError, match="there is none of Ti"):
        references_from([tmp_path / "less.csv"], tmp_path / "out.csv")
    with pytest.raises(InputError, match="expected a column 'total'"):
        references_from([table], tmp_path / "out.csv", Given(column="total"))


def test_from_the_command_line(table, tmp_path):
    arguments = ["hull", "build", str(table), "-o", str(tmp_path / "t.csv"), "--energies", "energy_per_atom"]
    done = CliRunner().invoke(app, [*arguments, "--correct", "--json"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["phases"] == 3
    assert load_references(tmp_path / "t.csv").energy_type.method == "DFT"
    twice = CliRunner().invoke(app, [*arguments, "--correct", "--corrections", "MP2020"])
    assert twice.exit_code == 1
    assert "take the energies as they are" in twice.stderr


def test_every_element_of_the_shipped_table_is_on_its_hull():
    references = load_references()
    hull, found = references.hull(), dict(zip(references.formulas, references.energies, strict=True))
    elements = {f: e for f, e in found.items() if len(Composition(f).elements) == 1}
    assert {Composition(f).elements[0].symbol for f in elements} == hull.elements
    assert len(elements) >= 80
    for formula, energy in elements.items():
        place = hull.e_above_hull(formula, energy, references.energy_type)
        assert abs(place.e_above_hull) < 1e-9, formula
        assert list(place.decomposition.values()) == pytest.approx([1.0])
