"""Elastic tensors against second derivatives of the energy, by ASE alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from loop.errors import ConfigError
from oracles.potentials.calculator import to_structure
from oracles.potentials.loading import load_potential
from oracles.properties.elastic import ElasticConfig, elastic_tensor, tight
from oracles.relax import RelaxConfig, relax

torch.set_num_threads(1)
SMALL = ElasticConfig(normal=(-0.005, 0.005), shear=(-0.005, 0.005))  # where all is linear


@pytest.fixture(scope="module")
def emt():
    return load_potential("ase.calculators.emt:EMT")


def relaxed(structure: Structure, potential) -> Structure:
    outcome = relax([structure], potential, RelaxConfig(fmax=1e-4, smax=1e-3, max_steps=500))[0]
    assert outcome.ok
    return outcome.structure


def curvature(structure: Structure, strain: np.ndarray) -> float:
    """Second derivative of the energy density with the size of a strain, GPa; atoms follow the cell."""
    energies, sizes = [], np.linspace(-0.01, 0.01, 9)
    for size in sizes:
        atoms = structure.to_ase_atoms()
        # Green-Lagrange strain E = size * strain: the deformation is the root of 1 + 2 E
        values, vectors = np.linalg.eigh(np.eye(3) + 2 * size * strain)
        atoms.set_cell(structure.lattice.matrix @ (vectors * np.sqrt(values)) @ vectors.T, scale_atoms=True)
        atoms.calc = EMT()
        energies.append(atoms.get_potential_energy())
    return 2 * np.polyfit(sizes, energies, 4)[2] / structure.volume * 160.21766


def test_a_cubic_tensor_is_the_curvature_of_the_energy(emt):
    copper = relaxed(to_structure(bulk("Cu")), emt)
    found = elastic_tensor(copper, emt, SMALL)
    assert found.status == "ok", found.message
    tensor = np.array(found.tensor)
    # the primitive cell's cubic axes are those of its face-centred vectors; the curvature along them needs these axes
    conventional = Structure.from_sites(sorted(copper.to_conventional()))
    along, shear = np.diag([1.0, 0, 0]), np.array([[0, 0.5, 0], [0.5, 0, 0], [0, 0, 0]])
    assert tensor[0, 0] == pytest.approx(curvature(conventional, along), rel=0.01)
    assert tensor[3, 3] == pytest.approx(curvature(conventional, shear), rel=0.01)
    bulk_modulus = curvature(conventional, np.eye(3) / 3)
    assert found.values["bulk_modulus_vrh"] == pytest.approx(bulk_modulus, rel=0.01)
    assert found.values["bulk_modulus_vrh"] == pytest.approx((tensor[0, 0] + 2 * tensor[0, 1]) / 3, rel=1e-4)
    assert found.stable
    c11, c12, c44 = tensor[0, 0], tensor[0, 1], tensor[3, 3]
    voigt = (c11 - c12 + 3 * c44) / 5
    reuss = 5 * (c11 - c12) * c44 / (4 * c44 + 3 * (c11 - c12))
    assert found.values["shear_modulus"] == pytest.approx((voigt + reuss) / 2, rel=1e-3)
    assert found.values["elastic_anisotropy"] == pytest.approx(5 * voigt / reuss - 5, rel=1e-2)
    np.testing.assert_allclose(tensor, tensor.T, atol=1e-6)


def test_the_choice_of_axes_does_not_matter(emt):
    from scipy.spatial.transform import Rotation

    hexagonal = relaxed(to_structure(bulk("Ni", "hcp", a=2.5, c=4.1)), emt)
    turn = Rotation.from_rotvec([0.4, 1.0, -0.6]).as_matrix()
    turned = Structure(hexagonal.lattice.matrix @ turn.T, hexagonal.species, hexagonal.frac_coords)
    one, other = (elastic_tensor(crystal, emt, SMALL) for crystal in (hexagonal, turned))
    np.testing.assert_allclose(one.tensor, other.tensor, rtol=0.01, atol=0.5)  # GPa; the rest is not linear
    tensor = np.array(one.tensor)
    assert tensor[0, 0] == pytest.approx(tensor[1, 1], rel=1e-3)
    assert tensor[5, 5] == pytest.approx((tensor[0, 0] - tensor[0, 1]) / 2, rel=1e-2)  # hexagonal symmetry


def test_atoms_that_give_way_soften_the_crystal(emt):
    cell = Structure(
        Lattice.orthorhombic(2.6, 3.7, 4.1), ["Cu", "Al", "Au"], [[0, 0, 0], [0.4, 0.5, 0.3], [0.1, 0.1, 0.6]]
    )
    cell = relaxed(cell, emt)
    two = ElasticConfig(normal=(-0.01, 0.01), shear=(-0.01, 0.01))
    free, clamped = (elastic_tensor(cell, emt, replace(two, relax_ions=ions)) for ions in (True, False))
    assert free.status == clamped.status == "ok"
    assert free.values["elastic_stability"] < clamped.values["elastic_stability"]


def test_an_unstable_crystal_is_known_by_its_tensor(emt):
    simple = Structure(Lattice.cubic(2.4), ["Cu"], [[0, 0, 0]])  # simple cubic: a saddle point of the energy
    found = elastic_tensor(relaxed(simple, emt), emt)
    assert found.status == "unstable"
    assert list(found.values) == ["elastic_stability"]
    assert found.values["elastic_stability"] < 0
    assert found.message.startswith("no moduli: the elastic tensor is not positive definite (lowest eigenvalue -")
    assert np.linalg.eigvalsh(found.tensor).min() < 0
    assert list(found.quantities()) == ["elastic_stability"]
    assert not found.stable


def test_a_failure_has_a_name(emt):
    unknown = Structure(Lattice.cubic(3.2), ["W"], [[0, 0, 0]])
    found = elastic_tensor(unknown, emt)
    assert found.status == "failed:elastic"
    assert "unsupported-element" in found.message
    assert not found.stable
    assert found.quantities() == {}


@pytest.mark.parametrize("strains", [(0.01,), (0.0, 0.01), (-0.2, 0.2)])
def test_strains_are_checked(strains):
    with pytest.raises(ConfigError, match="strains"):
        ElasticConfig(normal=strains)


def test_tight_never_loosens():
    assert tight(RelaxConfig(fmax=1e-3, smax=1e-3, max_steps=900)) == RelaxConfig(fmax=1e-3, smax=1e-3, max_steps=900)
    assert tight(RelaxConfig()).fmax < RelaxConfig().fmax
