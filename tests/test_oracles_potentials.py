"""One conformance suite for all potentials, and what each of them refuses."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.spacegroup import crystal as crystal_of
from pymatgen.core import Lattice, Structure
from scipy.spatial.transform import Rotation

from loop.errors import ConfigError, UnsupportedElementError
from oracles.potentials.calculator import to_structure
from oracles.potentials.loading import load_potential
from oracles.symmetry import find_group, primitive

torch.set_num_threads(1)


def tiny_mace(path, seed=0):
    """A randomly initialised MACE for copper, oxygen and aluminium, saved as mace-torch saves its models."""
    from mace import modules  # before e3nn, which needs what mace sets up
    from e3nn import o3  # isort: skip

    torch.manual_seed(seed)
    blocks = modules.interaction_classes
    model = modules.ScaleShiftMACE(
        r_max=4.0, num_bessel=4, num_polynomial_cutoff=5, max_ell=2, num_interactions=2, num_elements=3,
        interaction_cls=blocks["RealAgnosticResidualInteractionBlock"],
        interaction_cls_first=blocks["RealAgnosticResidualInteractionBlock"],
        hidden_irreps=o3.Irreps("8x0e + 8x1o"), MLP_irreps=o3.Irreps("8x0e"), gate=torch.nn.functional.silu,
        atomic_energies=np.array([-1.0, -2.0, -3.0]), avg_num_neighbors=12, atomic_numbers=[8, 13, 29], correlation=2,
        atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip
    torch.save(model, path)
    return path


@pytest.fixture(scope="module")
def potentials(tmp_path_factory):
    path = tiny_mace(tmp_path_factory.mktemp("mace") / "tiny.model")
    return {
        "chgnet": load_potential("chgnet", device="cpu", dtype="float64"),
        "emt": load_potential("ase.calculators.emt:EMT"),
        "mace": load_potential(f"mace:{path}", device="cpu", trust=True),
    }


ALL = pytest.mark.parametrize("name", ["chgnet", "emt", "mace"])


def crystal(seed=0, amount=0.15) -> Structure:
    """A shaken cell of copper, aluminium and oxygen."""
    structure = Structure(
        Lattice.from_parameters(3.8, 4.1, 4.4, 85, 95, 100),
        ["Cu", "Cu", "Al", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )
    structure.perturb(amount, seed=seed)
    return structure


@ALL
def test_a_batch_is_its_members(potentials, name):
    crystals = [crystal(seed) for seed in range(3)] + [crystal(3) * (2, 1, 1), to_structure(bulk("Cu"))]
    together = potentials[name].single_points(crystals)
    for structure, one in zip(crystals, together, strict=True):
        alone = potentials[name].single_points([structure], batch_size=1)[0]
        assert one.energy == pytest.approx(alone.energy, abs=1e-8)
        np.testing.assert_allclose(one.forces, alone.forces, atol=1e-7)
        np.testing.assert_allclose(one.stress, alone.stress, atol=1e-7)


@ALL
def test_forces_are_the_negative_gradient(potentials, name):
    structure, step = crystal(), 1e-4
    forces = potentials[name].single_points([structure])[0].forces
    for atom, axis in [(0, 0), (1, 2), (2, 1), (3, 0)]:
        energies = []
        for sign in (1, -1):
            moved = structure.cart_coords.copy()
            moved[atom, axis] += sign * step
            shifted = Structure(structure.lattice, structure.species, moved, coords_are_cartesian=True)
            energies.append(potentials[name].single_points([shifted], gradients=False)[0].energy * len(structure))
        assert forces[atom, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), abs=2e-5)


@ALL
def test_stress_is_the_gradient_with_strain(potentials, name):
    structure, step = crystal(), 1e-5
    stress = potentials[name].single_points([structure])[0].stress
    for i, j in [(0, 0), (1, 1), (0, 2), (1, 2)]:
        energies = []
        for sign in (1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * step / 2
            strain[j, i] += sign * step / 2
            strained = Structure(
                structure.lattice.matrix @ (np.eye(3) + strain), structure.species, structure.frac_coords
            )
            energies.append(potentials[name].single_points([strained], gradients=False)[0].energy * len(structure))
        slope = (energies[0] - energies[1]) / (2 * step) / structure.volume
        assert stress[i, j] == pytest.approx(slope, abs=2e-6)


@ALL
def test_translation_rotation_and_supercell_change_nothing(potentials, name):
    structure = crystal()
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    moved = Structure(structure.lattice, structure.species, structure.frac_coords + np.array([0.37, -1.21, 2.66]))
    turned = Structure(structure.lattice.matrix @ turn.T, structure.species, structure.frac_coords)
    reference, *others = potentials[name].single_points([structure, moved, turned, structure * (1, 2, 1)])
    for other in others:
        assert other.energy == pytest.approx(reference.energy, abs=1e-7)
        if reference.features is not None:
            np.testing.assert_allclose(other.features, reference.features, atol=1e-7)
    np.testing.assert_allclose(others[0].forces, reference.forces, atol=1e-6)
    np.testing.assert_allclose(others[1].forces, reference.forces @ turn.T, atol=1e-6)
    np.testing.assert_allclose(others[1].stress, turn @ reference.stress @ turn.T, atol=1e-6)
    np.testing.assert_allclose(others[2].stress, reference.stress, atol=1e-6)


@ALL
def test_energies_do_not_depend_on_the_cell(potentials, name):
    cell = to_structure(bulk("Cu", cubic=True))
    energies = potentials[name].energies([cell, cell * (2, 1, 1), cell.get_primitive_structure()])
    assert np.ptp(energies) < 1e-6
    assert energies[0] == pytest.approx(potentials[name].single_points([cell])[0].energy, abs=1e-6)


@ALL
def test_the_input_is_not_changed(potentials, name):
    structure = crystal()
    before = structure.copy()
    potentials[name].single_points([structure])
    potentials[name].energies([structure])
    assert structure == before


@ALL
def test_an_unknown_element_is_a_clear_error(potentials, name):
    alien = Structure(Lattice.cubic(4), ["Cu", "Rn"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    points = potentials[name].single_points([crystal(), alien])
    assert points[0].ok
    assert points[1].status == "failed:unsupported-element"
    assert "Rn" in points[1].message
    assert np.isnan(potentials[name].energies([alien])).all()
    with pytest.raises(UnsupportedElementError, match="Rn"):
        potentials[name].require(alien)


@ALL
def test_its_calculator_agrees(potentials, name):
    structure = crystal()
    atoms = structure.to_ase_atoms()
    atoms.calc = potentials[name].calculator()
    point = potentials[name].single_points([structure])[0]
    assert atoms.get_potential_energy() == pytest.approx(point.energy * len(structure), abs=1e-6)
    np.testing.assert_allclose(atoms.get_forces(), point.forces, atol=1e-6)
    np.testing.assert_allclose(atoms.get_stress(voigt=False), point.stress, atol=1e-6)


@ALL
def test_provenance_is_stated(potentials, name):
    about = potentials[name].about
    assert len(about.energy_type.checksum) == 64
    assert "doi" in about.citation or "arXiv" in about.citation
    assert about.licence
    assert (about.device, about.dtype) == ("cpu", "float64")


def absurd() -> dict[str, Structure]:
    return {
        "failed:overlap": Structure(Lattice.cubic(4), ["Cu", "Cu"], [[0, 0, 0], [0.02, 0, 0]]),
        "failed:volume": Structure(Lattice.cubic(0.5), ["Cu"], [[0, 0, 0]]),
        "failed:not-finite": Structure(Lattice.cubic(4), ["Cu"], [[np.nan, 0, 0]]),
        "failed:disordered": Structure(Lattice.cubic(4), [{"Cu": 0.5, "Al": 0.5}], [[0, 0, 0]]),
        "failed:size": to_structure(bulk("Cu", cubic=True)) * (6, 6, 6),
        "failed:isolated-atoms": Structure(Lattice.cubic(9), ["Cu"], [[0, 0, 0]]),
    }


@pytest.mark.parametrize("status", absurd())
def test_absurd_crystals_have_a_status_and_harm_no_other(potentials, status):
    points = potentials["chgnet"].single_points([absurd()[status], crystal()])
    assert points[0].status == status
    assert points[0].message
    assert np.isnan(points[0].energy)
    assert points[1].ok
    energies, descriptors = potentials["chgnet"].energies_and_descriptors([absurd()[status], crystal()])
    assert np.isnan(energies[0])
    assert np.isnan(descriptors[0]).all()
    assert np.isfinite(energies[1])


@pytest.mark.parametrize(("name", "width"), [("chgnet", 64), ("mace", 16), ("emt", 0)])
def test_descriptors_have_their_width_where_every_crystal_is_refused(potentials, name, width):
    refused = Structure(np.eye(3) * 7.5, ["Xe"], [[0, 0, 0]])
    energies, descriptors = potentials[name].energies_and_descriptors([refused])
    assert np.isnan(energies).all()
    assert descriptors.shape == (1, potentials[name].width) == (1, width)
    assert np.isnan(descriptors).all()


def symmetric_crystals() -> list[Structure]:
    perovskite = [(0.04, 0.25, 0.99), (0, 0, 0.5), (0.48, 0.25, 0.07), (0.29, 0.04, 0.71)]
    cells = [
        crystal_of("Si", [(0, 0, 0)], spacegroup=227, cellpar=[5.43] * 3 + [90] * 3),
        crystal_of(["Mg", "O"], [(0, 0, 0), (0.5, 0.5, 0.5)], spacegroup=225, cellpar=[4.3] * 3 + [90] * 3),
        crystal_of(
            ["Zn", "O"],
            [(1 / 3, 2 / 3, 0), (1 / 3, 2 / 3, 0.375)],
            spacegroup=186,
            cellpar=[3.25, 3.25, 5.2, 90, 90, 120],
        ),
        crystal_of(["Ti", "O"], [(0, 0, 0), (0.31, 0.31, 0)], spacegroup=136, cellpar=[4.6, 4.6, 2.96, 90, 90, 90]),
        crystal_of(["Ca", "Ti", "O", "O"], perovskite, spacegroup=62, cellpar=[5.4, 7.6, 5.3, 90, 90, 90]),
        crystal_of("Bi", [(0, 0, 0.2339)], spacegroup=166, cellpar=[4.55, 4.55, 11.86, 90, 90, 120]),
        crystal_of(["Fe", "Si"], [(0.137,) * 3, (0.842,) * 3], spacegroup=198, cellpar=[4.49] * 3 + [90] * 3),
    ]
    return [to_structure(atoms) for atoms in cells]


@pytest.mark.parametrize("index", range(7))
def test_symmetry_makes_chgnet_faster_and_not_different(potentials, index):
    structure = primitive(symmetric_crystals()[index], 1e-4)
    group = find_group(structure, 1e-4)
    assert len(group) >= 8
    plain = potentials["chgnet"].single_points([structure])[0]
    reduced = potentials["chgnet"].single_points([structure], groups=[group])[0]
    assert reduced.energy == pytest.approx(plain.energy, abs=1e-9)
    np.testing.assert_allclose(reduced.forces, plain.forces, atol=1e-7)
    np.testing.assert_allclose(reduced.stress, plain.stress, atol=1e-8)
    np.testing.assert_allclose(reduced.features, plain.features, atol=1e-9)


def test_chgnet_is_chgnet(potentials):
    """Energy, forces, stress and features are those of the package's own forward pass."""
    from chgnet.model.model import CHGNet

    model = CHGNet.load(use_device="cpu", verbose=False)
    single = load_potential("chgnet", device="cpu")
    for structure in [crystal(), *symmetric_crystals()[2:5]]:
        expected = model.predict_structure(structure, task="efs", return_crystal_feas=True)
        point = single.single_points([structure])[0]
        assert point.energy == pytest.approx(float(expected["e"]), abs=1e-5)
        np.testing.assert_allclose(point.forces, expected["f"], atol=5e-4)
        np.testing.assert_allclose(point.stress * 160.21766208, expected["s"], atol=5e-3)
        np.testing.assert_allclose(point.features, expected["crystal_fea"] / len(structure), atol=2e-5)


def test_descriptors_have_one_width(potentials):
    assert potentials["chgnet"].descriptors([crystal(), crystal(1)]).shape == (2, 64)
    assert potentials["mace"].descriptors([crystal()]).shape == (1, 16)
    assert potentials["emt"].descriptors([crystal()]).shape == (1, 0)


def test_a_mace_file_is_refused_unless_trusted(tmp_path):
    path = tiny_mace(tmp_path / "tiny.model")
    with pytest.raises(ConfigError, match="trust"):
        load_potential(str(path))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("gnome", "There is no potential 'gnome'"),
        ("chgnet:9", "There is no CHGNet '9'"),
        ("mace:huge", "There is no MACE model 'huge'"),
        ("no.such.module:Calc", "cannot be made"),
        ("ase.calculators.emt:NoSuch", "cannot be made"),
    ],
)
def test_unknown_names_are_refused(name, match):
    with pytest.raises(ConfigError, match=match):
        load_potential(name)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    path = tmp_path / "x.model"
    path.write_bytes(b"not a model")
    with pytest.raises(ConfigError, match="expected a MACE model"):
        load_potential(str(path), trust=True)


def test_dtype_is_checked():
    with pytest.raises(ConfigError, match="float32 or float64"):
        load_potential(dtype="float16")


def test_a_device_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ConfigError, match="CUDA"):
        load_potential(device="cuda")


def test_what_is_packed_too_densely_for_memory_is_refused(potentials):
    """Diamond crushed to 2.2 A^3/atom: 447,120 angles in 216 atoms would take 5 GB; eight atoms are computed."""
    crushed = Structure.from_spacegroup(227, Lattice.cubic(2.6), ["C"], [[0, 0, 0]])
    one, many = potentials["chgnet"].single_points([crushed, crushed * (3, 3, 3)], gradients=False)
    assert one.ok
    assert many.status == "failed:error"
    assert "packed too densely" in many.message
