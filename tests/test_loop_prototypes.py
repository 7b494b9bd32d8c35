"""Prototypes and parent lattices of textbook crystals."""

import pytest
from pymatgen.core import Lattice, Structure

from loop.prototypes import family, parent_lattice, prototype, prototype_counts

THIRD = [1 / 3, 2 / 3, 0.25]
CUBIC = Lattice.cubic(5.9)
CASES = {  # space group, lattice, elements, sites; prototype; parent lattice
    "rock salt": (225, CUBIC, ["Na", "Cl"], [[0, 0, 0], [0.5] * 3], "AB_cF8_225_a_b", ""),
    "zinc blende": (216, CUBIC, ["Zn", "S"], [[0, 0, 0], [0.25] * 3], "AB_cF8_216_a_c", ""),
    "fluorite": (225, CUBIC, ["Ca", "F"], [[0, 0, 0], [0.25] * 3], "AB2_cF12_225_a_c", ""),
    "B2": (221, Lattice.cubic(2.9), ["Ni", "Al"], [[0, 0, 0], [0.5] * 3], "AB_cP2_221_a_b", "bcc"),
    "Heusler": (225, CUBIC, ["Cu", "Mn", "Al"], [[0.25] * 3, [0, 0, 0], [0.5] * 3], "ABC2_cF16_225_a_b_c", "bcc"),
    "half-Heusler": (216, CUBIC, ["Ti", "Ni", "Sn"], [[0, 0, 0], [0.25] * 3, [0.5] * 3], "ABC_cF12_216_a_b_c", ""),
    "L1_2": (221, Lattice.cubic(3.75), ["Au", "Cu"], [[0, 0, 0], [0.5, 0.5, 0]], "AB3_cP4_221_a_c", "fcc"),
    "L1_0": (123, Lattice.tetragonal(2.8, 3.67), ["Cu", "Au"], [[0, 0, 0], [0.5] * 3], "AB_tP2_123_a_d", "fcc"),
    "DO_19": (194, Lattice.hexagonal(5.28, 4.24), ["Sn", "Ni"], [THIRD, [0.8454, 0.6908, 0.25]],
              "AB3_hP8_194_c_h", "hcp"),
    "ordered hcp": (187, Lattice.hexagonal(2.72, 4.3), ["Os", "Ru"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]],
                    "AB_hP2_187_a_d", "hcp"),
    "WC": (187, Lattice.hexagonal(2.9, 2.84), ["W", "C"], [[0, 0, 0], [1 / 3, 2 / 3, 0.5]], "AB_hP2_187_a_d", ""),
    "perovskite": (221, Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]],
                   "ABC3_cP5_221_a_b_c", ""),
}  # fmt: skip


def made(name):
    number, lattice, elements, sites, *_ = CASES[name]
    return Structure.from_spacegroup(number, lattice, elements, sites)


@pytest.mark.parametrize("name", CASES)
def test_the_label_is_that_of_the_prototype_and_the_lattice_is_seen(name):
    crystal = made(name)
    *_, label, parent = CASES[name]
    moved = crystal.get_primitive_structure()
    moved.translate_sites(range(len(moved)), [0.5, 0.5, 0.5])
    for form in (crystal, moved):
        assert prototype(form) == label
        assert parent_lattice(form) == parent


def test_the_label_does_not_know_the_elements_and_the_lattice_forgives_relaxation():
    crystal = made("Heusler")
    other = crystal.copy()
    other.replace_species({"Cu": "Al", "Mn": "Fe", "Al": "Ti"})
    assert prototype(other) == prototype(crystal)
    crystal.perturb(0.1, seed=1)
    assert parent_lattice(crystal) == "bcc"


def test_an_element_is_no_decoration_and_nothing_is_no_prototype():
    assert parent_lattice(Structure.from_spacegroup(225, Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])) == ""
    assert prototype(Structure(Lattice([[3, 0, 0], [3, 1e-4, 0], [0, 0, 3]]), ["Cu"], [[0, 0, 0]])) == ""


def test_families_and_counts():
    assert family("ABC2_cF16_225_a_b_c", "bcc") == family("AB_cP2_221_a_b", "bcc") == "bcc"
    assert family("AB_cF8_225_a_b", "") == "AB in 225"
    assert prototype_counts(["a", "b", "a", ""]) == [2, 1, 2, 0]
