"""CIFs as this program writes them: read as the crystal that is held, by whoever reads them."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from loop.errors import ImplausibleError
from loop.io.cif_writer import to_cif, to_symmetrised_cif
from loop.moyo import find_symmetry
from tests import crystals
from tests.readers import READERS, same_atoms, same_crystal

CELLS = {
    "as it is": lambda s: s.copy(),
    "primitive": lambda s: s.get_primitive_structure(),
    "doubled": lambda s: s * (2, 1, 1),
    "skew": lambda s: s * [[1, 1, 0], [0, 1, 0], [-1, 0, 1]],
    "left-handed": lambda s: Structure(Lattice(-s.lattice.matrix), s.species, -s.frac_coords),
}


def stated(text: str, item: str) -> str:
    return next(line.split(maxsplit=1)[1].strip(" '\"") for line in text.splitlines() if line.startswith(item))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("make", crystals.SYSTEMS.values(), ids=crystals.SYSTEMS)
def test_every_reader_sees_the_crystal_with_its_symmetry(make, cell):
    held = CELLS[cell](make())
    text = to_symmetrised_cif(held)
    assert stated(text, "_symmetry_Int_Tables_number") == str(find_symmetry(held, 0.01).number)
    read = {name: reader(text) for name, reader in READERS.items()}
    assert all(same_atoms(read["gemmi"], other) for other in read.values())
    assert same_crystal(held, read["gemmi"])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("make", crystals.SYSTEMS.values(), ids=crystals.SYSTEMS)
def test_every_reader_sees_the_cell_that_is_held(make, cell):
    held = CELLS[cell](make())
    text = to_cif(held)
    for reader in READERS.values():
        assert same_atoms(reader(text), Structure(held.lattice, held.species, held.frac_coords), 1e-6) or (
            cell == "left-handed" and same_crystal(reader(text), held)
        )


def molybdenum_boride(noise: float = 0.0) -> Structure:
    """CrB type, Cmcm, primitive cell; found as rank 2 of a campaign whose CIF read as 4, 8 and 14 atoms."""
    conventional = Structure.from_spacegroup(
        "Cmcm", Lattice.orthorhombic(3.16, 8.61, 3.08), ["Mo", "B"], [[0, 0.146, 0.25], [0, 0.436, 0.25]]
    )
    return conventional.get_primitive_structure().perturb(noise)


@pytest.mark.parametrize("noise", [0.0, 1e-4, 1e-3])
def test_a_centred_crystal_in_its_primitive_cell(noise):
    held = molybdenum_boride(noise)
    text = to_symmetrised_cif(held)
    assert stated(text, "_symmetry_space_group_name_H-M") == "C m c m"
    assert [len(reader(text)) for reader in READERS.values()] == [8] * 4
    assert same_crystal(held, READERS["ase"](text))


def test_it_says_what_it_holds():
    plain, symmetrised = (write(crystals.spinel().get_primitive_structure()) for write in (to_cif, to_symmetrised_cif))
    for text, z, volume in ((plain, "2", 8.08**3 / 4), (symmetrised, "8", 8.08**3)):
        assert stated(text, "_chemical_formula_sum") == "Al2 Mg O4"
        assert stated(text, "_cell_formula_units_Z") == z
        assert float(stated(text, "_cell_volume")) == pytest.approx(volume, abs=1e-4)
    assert stated(symmetrised, "_symmetry_space_group_name_H-M") == "F d -3 m:2"
    assert symmetrised.count("'", symmetrised.index("as_xyz"), symmetrised.index("_atom_site")) == 2 * 192
    assert sum(line.startswith("  ") and "'" not in line for line in symmetrised.splitlines()) == 3
    acetylene = Structure(Lattice.cubic(6), ["H", "C", "C", "H"], [[0, 0, z] for z in (0.1, 0.27, 0.47, 0.64)])
    assert stated(to_cif(acetylene), "_chemical_formula_sum") == "C H"
    assert stated(to_cif(acetylene), "_cell_formula_units_Z") == "2"


def test_a_symmetry_that_would_move_atoms_is_not_written():
    held = crystals.perovskite().copy()
    held.translate_sites([4], [0, 0, 0.02 / 3.905])  # an oxygen, by 0.02 A
    text = to_symmetrised_cif(held)
    assert stated(text, "_symmetry_Int_Tables_number") == "99"
    assert same_crystal(held, READERS["gemmi"](text))


@pytest.mark.parametrize("apart", [0.3, 0.02])
def test_atoms_that_a_reader_would_merge_are_written_one_by_one(apart):
    """gemmi takes images of a site within 0.4 A for one atom."""
    held = Structure(Lattice.orthorhombic(4, 5, 6), ["Na", "Na"], [[0.2, 0.3, 0], [0.2, 0.3, apart / 6]])
    text = to_symmetrised_cif(held)
    assert [len(reader(text)) for name, reader in READERS.items() if name != "ourselves"] == [2] * 3
    with pytest.raises(ImplausibleError, match="overlap"):
        READERS["ourselves"](text)
    assert stated(text, "_symmetry_Int_Tables_number") == "1"


def test_a_left_handed_cell_does_not_turn_quartz_into_its_mirror_image():
    sites = [[0.4697, 0, 0], [0.4133, 0.2672, 0.1188]]
    right = Structure.from_spacegroup("P3_221", Lattice.hexagonal(4.916, 5.4054), ["Si", "O"], sites)
    held = CELLS["left-handed"](right)
    assert np.linalg.det(held.lattice.matrix) < 0
    for text in (to_cif(held), to_symmetrised_cif(held)):
        assert [find_symmetry(reader(text), 0.01).number for reader in READERS.values()] == [154] * 4


def test_oxidation_states_are_left_out():
    structure = crystals.nacl().copy()
    structure.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    assert to_symmetrised_cif(structure) == to_symmetrised_cif(crystals.nacl())
