"""Phonons against ASE's own, and a crystal that is not at a minimum."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.phonons import Phonons as AsePhonons
from ase.units import _e, _hplanck
from pymatgen.core import Lattice, Structure

from loop.errors import ConfigError
from oracles.potentials.calculator import to_structure
from oracles.potentials.loading import load_potential
from oracles.properties.phonons import PhononConfig, phonons, supercell_of
from oracles.relax import RelaxConfig, relax

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def emt():
    return load_potential("ase.calculators.emt:EMT")


def relaxed(structure: Structure, potential) -> Structure:
    outcome = relax([structure], potential, RelaxConfig(fmax=1e-4, smax=1e-3, max_steps=500))[0]
    assert outcome.ok
    return outcome.structure


def test_frequencies_are_those_of_ase(emt, tmp_path):
    alloy = relaxed(Structure(Lattice.tetragonal(2.8, 3.7), ["Cu", "Au"], [[0, 0, 0], [0.5, 0.5, 0.5]]), emt)
    found = phonons(alloy, emt, PhononConfig(min_length=7.0, displacement=0.01))
    assert found.status == "ok", found.message
    assert found.stable
    assert found.acoustic < 0.02
    expected = AsePhonons(alloy.to_ase_atoms(), EMT(), supercell=found.supercell, delta=0.01, name=str(tmp_path / "ph"))
    expected.run()
    expected.read(acoustic=True)
    terahertz = expected.band_structure([[0, 0, 0], found.at], verbose=False) * _e / _hplanck * 1e-12
    assert found.lowest == pytest.approx(terahertz[1].min(), abs=0.03)
    assert found.lowest_gamma == pytest.approx(np.sort(terahertz[0])[3], abs=0.03)


def test_gamma_alone(emt):
    alloy = relaxed(Structure(Lattice.tetragonal(2.8, 3.7), ["Cu", "Au"], [[0, 0, 0], [0.5, 0.5, 0.5]]), emt)
    found = phonons(alloy, emt, PhononConfig(min_length=0))
    assert (found.supercell, found.at) == ((1, 1, 1), (0, 0, 0))
    assert found.lowest == found.lowest_gamma > 0
    whole = phonons(alloy, emt, PhononConfig(min_length=7.0))
    assert found.lowest_gamma == pytest.approx(whole.lowest_gamma, abs=0.05)


def test_a_saddle_point_has_imaginary_frequencies(emt):
    simple = relaxed(Structure(Lattice.cubic(2.4), ["Cu"], [[0, 0, 0]]), emt)
    found = phonons(simple, emt, PhononConfig(min_length=4.5))
    assert found.status == "ok"
    assert found.lowest < -1
    assert not found.stable
    assert found.quantities()["dynamically_stable"].value == 0
    stable = phonons(relaxed(to_structure(bulk("Cu")), emt), emt, PhononConfig(min_length=4.5))
    assert stable.stable


def test_one_atom_and_gamma_alone_say_nothing(emt):
    found = phonons(to_structure(bulk("Cu")), emt, PhononConfig(min_length=0))
    assert found.status == "failed:phonons"
    assert "larger supercell" in found.message
    assert not found.stable


def test_supercells_are_as_long_as_asked_and_no_larger_than_allowed():
    slab = Structure(Lattice.orthorhombic(2.5, 4.0, 20.0), ["Cu"], [[0, 0, 0]])
    assert supercell_of(slab, PhononConfig(min_length=8)) == (4, 2, 1)
    assert np.prod(supercell_of(slab, PhononConfig(min_length=40, max_atoms=50))) <= 50
    pair = Structure(Lattice.cubic(4), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    assert sorted(supercell_of(pair, PhononConfig(min_length=20, max_atoms=50))) == [2, 3, 3]  # 36 atoms instead of 250
    skewed = Structure(Lattice.from_parameters(4, 4, 4, 60, 60, 60), ["Cu"], [[0, 0, 0]])
    assert supercell_of(skewed, PhononConfig(min_length=6)) == (2, 2, 2)  # planes are 3.27 A apart


def test_a_failure_has_a_name(emt):
    found = phonons(Structure(Lattice.cubic(3.2), ["W"], [[0, 0, 0]]), emt)
    assert found.status == "failed:phonons"
    assert "unsupported-element" in found.message
    assert found.quantities() == {}


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"displacement of 0.001 to 0.1 A, .* got 0 A, 200 and 0.3 THz"):
        PhononConfig(displacement=0)
