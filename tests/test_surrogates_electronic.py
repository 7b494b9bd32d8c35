"""Ions and levels of formulas against chemistry and the tables of NIST."""

import numpy as np
import pytest
from pymatgen.core import Composition, Element

from surrogates.electronic import ElectronicBlock, frontier_levels, oxidation_states
from tests import crystals
from tests.fakes import rocksalt


def amounts(formula):
    return {element.Z: amount for element, amount in Composition(formula).items()}


def row(structure):
    block = ElectronicBlock()
    return dict(zip((name.split(":")[1] for name in block.columns), block.compute([structure])[0], strict=True))


@pytest.mark.parametrize(
    ("formula", "states"),
    [
        ("NaCl", {"Na": 1, "Cl": -1}),
        ("TiO2", {"Ti": 4, "O": -2}),
        ("SrTiO3", {"Sr": 2, "Ti": 4, "O": -2}),
        ("MgAl2O4", {"Mg": 2, "Al": 3, "O": -2}),
        ("GaAs", {"Ga": 3, "As": -3}),
        ("LiFePO4", {"Li": 1, "Fe": 2, "P": 5, "O": -2}),
        ("FeS", {"Fe": 2, "S": -2}),
    ],
)
def test_textbook_oxidation_states(formula, states):
    given = amounts(formula)
    assert oxidation_states(given).tolist() == [states[Element.from_Z(z).symbol] for z in given]


def test_balanced_states_agree_with_pymatgen():
    for formula in ("CsPbI3", "CaTiO3", "ZnS", "BaSO4", "KNbO3", "Al2O3", "CdTe", "LiCoO2"):
        given = amounts(formula)
        guesses = Composition(formula).oxi_state_guesses(all_oxi_states=False)
        mine = dict(zip((Element.from_Z(z).symbol for z in given), oxidation_states(given), strict=True))
        assert any(all(guess[symbol] == state for symbol, state in mine.items()) for guess in guesses), formula


def test_many_elements_cost_little():
    high_entropy = amounts("FeCoNiCrMnCuMoWVTiSNPAs")
    assert np.isfinite(oxidation_states(high_entropy)).all()


def test_levels_fill_to_a_closed_shell_in_rock_salt():
    """Na gives its 3s electron to Cl 3p: NIST's levels, -0.320380 and -0.103415 Hartree (LDA)."""
    homo, lumo = frontier_levels(amounts("NaCl"))
    assert homo == pytest.approx(-0.320380 * 27.211386, abs=1e-3)
    assert lumo == pytest.approx(-0.103415 * 27.211386, abs=1e-3)
    assert frontier_levels(amounts("Na"))[0] == frontier_levels(amounts("Na"))[1]
    assert np.isnan(frontier_levels(amounts("NpO2"))).all()  # NIST ends at uranium


def test_columns_of_known_crystals():
    salt, rutile = row(crystals.nacl()), row(crystals.rutile())
    assert salt["imbalance"] == 0
    assert salt["charge_mean"] == 1
    assert salt["charge_transfer"] == pytest.approx(-salt["level_gap"])
    assert salt["odd"] == 0
    assert rutile["oxidation_max"] == 4
    assert rutile["open_d"] == rutile["full_d"] == 0  # d0
    assert row(rocksalt("Zn", "S"))["full_d"] == 0.5
    assert row(rocksalt("Fe", "O"))["open_d"] == 0.5
    assert row(rocksalt("V", "O"))["odd"] == 1
    assert row(rocksalt("Zr", "N"))["imbalance"] == pytest.approx(0.5)


def test_a_supercell_changes_nothing():
    doubled = crystals.rutile().copy()
    doubled.make_supercell([1, 1, 2])
    assert row(doubled) == row(crystals.rutile())
