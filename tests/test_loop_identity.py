"""One crystal, one key: cells, origins, axes, noise; and what must stay apart."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from loop.identity import SHIFT, Identity
from tests.crystals import SYSTEMS, perovskite, rutile, wurtzite


def noisy(structure: Structure, amount: float, seed: int = 0) -> Structure:
    moved = structure.copy()
    moved.perturb(amount, seed=seed)
    return moved


def descriptions(structure: Structure) -> dict[str, Structure]:
    """The same crystal in other words."""
    turn = Rotation.from_rotvec([0.4, -0.9, 1.3]).as_matrix()
    order = np.random.default_rng(0).permutation(len(structure))
    shear = np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]])
    species = structure.species
    return {
        "supercell": structure * (2, 1, 1),
        "origin": Structure(structure.lattice, species, structure.frac_coords + np.array([0.31, -0.17, 0.58])),
        "axes": Structure(structure.lattice.matrix @ turn.T, species, structure.frac_coords),
        "order": Structure.from_sites([structure[i] for i in order]),
        "cell": Structure(shear @ structure.lattice.matrix, species, structure.frac_coords @ np.linalg.inv(shear)),
        "mirror": Structure(structure.lattice.matrix * [1, 1, -1], species, structure.frac_coords),
        "noise": noisy(structure, SHIFT / 10),
        "digits": Structure(np.round(structure.lattice.matrix, 4), species, np.round(structure.frac_coords, 4)),
    }


@pytest.mark.parametrize("system", SYSTEMS)
def test_other_words_are_the_same_crystal(system):
    identity = Identity.of(SYSTEMS[system]())
    for name, described in descriptions(SYSTEMS[system]()).items():
        assert Identity.of(described).equals(identity), name


def test_all_systems_differ_from_each_other():
    identities = [Identity.of(make()) for make in SYSTEMS.values()]
    for i, one in enumerate(identities):
        assert [one.equals(other) for other in identities] == [j == i for j in range(len(identities))]


def polymorphs() -> dict[str, tuple[Structure, Structure]]:
    """Pairs that a loose comparison would take for one."""
    ferroelectric = perovskite().copy()
    ferroelectric.translate_sites([1], [0, 0, 0.015], frac_coords=True)  # titanium by 0.06 A
    zincblende = Structure.from_spacegroup("F-43m", Lattice.cubic(4.6), ["Zn", "O"], [[0, 0, 0], [0.25, 0.25, 0.25]])
    swapped = rutile().copy()
    swapped.replace(0, "V")
    other = rutile().copy()
    other.replace(1, "V")
    longer = Structure(perovskite().lattice.matrix * 1.01, perovskite().species, perovskite().frac_coords)
    tilted = Structure(Lattice.tetragonal(3.905, 3.96), perovskite().species, perovskite().frac_coords)
    return {
        "ferroelectric": (perovskite(), ferroelectric),
        "wurtzite and zincblende": (wurtzite(), zincblende),
        "one per cent longer": (perovskite(), longer),
        "tetragonal": (perovskite(), tilted),
        "another metal": (rutile(), swapped),
    }


@pytest.mark.parametrize("name", polymorphs())
def test_neighbours_stay_apart(name):
    one, other = (Identity.of(structure) for structure in polymorphs()[name])
    assert not one.equals(other)
    assert not other.equals(one)


def test_equivalent_decorations_are_one_crystal():
    one, other = rutile().copy(), rutile().copy()
    one.replace(0, "V")
    other.replace(1, "V")
    assert Identity.of(one).equals(Identity.of(other))


def test_it_survives_json():
    identity = Identity.of(wurtzite())
    assert Identity.from_json(identity.to_json()).equals(identity)


@pytest.mark.parametrize(
    "structure",
    [
        Structure(Lattice.cubic(4), ["Cu"], [[np.nan, 0, 0]]),
        Structure(Lattice.cubic(4), [{"Cu": 0.5, "Al": 0.5}], [[0, 0, 0]]),
        Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0, 0, 0]]),
    ],
    ids=["nan", "disordered", "overlap"],
)
def test_what_is_no_crystal_is_equal_to_none(structure):
    assert Identity.of(structure) is None
