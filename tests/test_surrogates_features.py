"""Features against numbers that are not ours, and the cache."""

import pickle

import numpy as np
import pytest
from pymatgen.core import Element, Lattice, Structure

from loop.errors import InputError
from loop.values import Candidate
from surrogates.blocks import UNRELAXED_HULL, CompositionBlock, GeometryBlock, PotentialBlock, SymmetryBlock
from surrogates.elements import PROPERTIES, element_table
from surrogates.features import FeatureExtractor, add_to_cache, default_blocks
from tests import crystals
from tests.fakes import rocksalt


def row(block, structure):
    return dict(zip(block.columns, block.compute([structure])[0], strict=True))


def test_element_table_is_complete_and_has_textbook_valences():
    table = element_table()
    assert np.isfinite(table[1:]).all()
    start = PROPERTIES.index("valence_s")
    assert table[Element("Fe").Z, start:].tolist() == [2, 0, 6, 0, 4]
    assert table[Element("Pb").Z, start:].tolist() == [2, 2, 10, 14, 4]


def test_composition_statistics_of_quartz_composition():
    structure = Structure(Lattice.cubic(5), ["Si", "O", "O"], [[0, 0, 0], [0.3, 0, 0], [0, 0.3, 0]])
    found = row(CompositionBlock(), structure)
    x = np.array([Element("Si").X, Element("O").X, Element("O").X])
    assert found["composition:X_mean"] == pytest.approx(x.mean())
    assert found["composition:X_std"] == pytest.approx(x.std())
    assert found["composition:Z_range"] == 6
    assert found["composition:n_elements"] == 2
    assert found["composition:norm_2"] == pytest.approx(np.sqrt(1 / 9 + 4 / 9))
    pauling = 1 - np.exp(-((x[1] - x[0]) ** 2) / 4)
    assert found["composition:ionicity_max"] == pytest.approx(pauling)
    assert found["composition:ionicity_mean"] == pytest.approx(2 * (1 / 3) * (2 / 3) * pauling)


@pytest.mark.parametrize(
    ("make", "number", "order", "lattice", "coordinates", "atoms"),
    [  # International Tables: order of the point group, free lattice parameters, free coordinates of the occupied sites
        (crystals.nacl, 225, 48, 1, 0, 2),
        (crystals.spinel, 227, 48, 1, 1, 14),
        (crystals.rutile, 136, 16, 2, 1, 6),
        (crystals.wurtzite, 186, 12, 2, 2, 4),
        (crystals.zirconia, 14, 4, 4, 9, 12),
        (crystals.orthorhombic_perovskite, 62, 8, 3, 7, 20),
    ],
)
def test_symmetry_of_textbook_crystals(make, number, order, lattice, coordinates, atoms):
    for structure in (make(), make().get_primitive_structure()):
        found = row(SymmetryBlock(), structure)
        assert found["symmetry:space_group"] == number
        assert np.exp(found["symmetry:log_operations"]) == pytest.approx(order)
        assert found["symmetry:lattice_dof"] == lattice
        assert found["symmetry:coordinate_dof"] == coordinates
        assert np.exp(found["symmetry:log_atoms_primitive"]) == pytest.approx(atoms)


def test_symmetry_is_blind_to_the_cell_and_to_strain_that_keeps_it():
    block = SymmetryBlock()
    plain = block.compute([crystals.nacl()])
    long = crystals.nacl().get_primitive_structure()
    long.make_supercell([1, 1, 3])
    swollen = crystals.nacl().copy()
    swollen.scale_lattice(swollen.volume * 1.3)
    np.testing.assert_allclose(block.compute([long]), plain)
    np.testing.assert_allclose(block.compute([swollen]), plain)


def test_geometry_of_rock_salt():
    found = row(GeometryBlock(), rocksalt(a=5.64))
    assert found["contacts:nearest_min"] == pytest.approx(2.82)
    assert found["contacts:nearest_std"] == pytest.approx(0, abs=1e-9)
    assert np.exp(found["density:log_volume_per_atom"]) == pytest.approx(5.64**3 / 8)
    assert np.exp(found["density:log_density"]) == pytest.approx(2.16, abs=0.02)
    assert 6 <= found["contacts:coordination_mean"] < 7  # six neighbours and little of the next shell
    assert found["contacts:unlike_share"] > 0.85


def test_names_are_unique_and_grouped():
    extractor = FeatureExtractor()
    assert len(set(extractor.names)) == len(extractor.names)
    assert list(extractor.groups) == ["composition", "elements", "electronic", "symmetry", "density", "contacts"]
    columns = np.concatenate(list(extractor.groups.values()))
    assert sorted(columns.tolist()) == list(range(len(extractor.names)))


def test_potential_block_takes_energies_descriptors_and_hull():
    def describe(structures):
        return np.array([-1.0, -2.0]), np.arange(6.0).reshape(2, 3)

    block = PotentialBlock(describe, "key", lambda structures, energies: energies + 5, size=3)
    X = block.compute([rocksalt(), rocksalt("K")])
    assert block.columns[0] == UNRELAXED_HULL
    assert X.tolist() == [[4, -1, 0, 1, 2], [3, -2, 3, 4, 5]]


def test_a_crystal_on_which_a_block_fails_keeps_its_other_columns():
    def describe(structures):
        if any("Cs" in structure.symbol_set for structure in structures):
            raise RuntimeError("this potential does not know Cs")
        return np.zeros(len(structures)), np.ones((len(structures), 2))

    extractor = FeatureExtractor(default_blocks(describe, key="k", size=2))
    X = extractor([Candidate(rocksalt("Na")), Candidate(rocksalt("Cs")), Candidate(rocksalt("K"))])
    potential = extractor.groups["potential"]
    assert np.isnan(X[1, potential]).all()
    assert np.isfinite(np.delete(X, potential, axis=1)).all()
    assert np.isfinite(X[[0, 2]]).all()
    assert extractor.failures == 1


def test_elements_beyond_the_tables_have_no_features_of_their_own():
    strange = rocksalt("Rf", "O", 4.6)
    extractor = FeatureExtractor()
    X = extractor([Candidate(rocksalt()), Candidate(strange)])
    assert np.isfinite(X[0]).all()
    missing = {group: bool(np.isnan(X[1, columns]).all()) for group, columns in extractor.groups.items()}
    unknown = ("composition", "elements", "electronic", "density", "contacts")
    assert missing == dict.fromkeys(unknown, True) | {"symmetry": False}
    assert extractor.failures == 4  # blocks


def test_a_panic_of_the_symmetry_finder_costs_one_block_of_one_crystal(monkeypatch):
    import moyopy

    class Panic(BaseException):
        pass

    def panic(*_, **__):
        raise Panic

    monkeypatch.setattr(moyopy, "MoyoDataset", panic)
    extractor = FeatureExtractor((SymmetryBlock(), GeometryBlock()))
    row = extractor([Candidate(rocksalt("Na"))])[0]
    assert extractor.failures == 1
    assert np.isnan(row[: len(SymmetryBlock().columns)]).all()
    assert np.isfinite(row[len(SymmetryBlock().columns) :]).all()


def test_cache_serves_another_process_without_computing(tmp_path):
    calls = []

    def describe(structures):
        calls.append(len(structures))
        return np.zeros(len(structures)), np.ones((len(structures), 2))

    blocks = default_blocks(describe, key="k", size=2)
    pool = [Candidate(rocksalt("Na", a=a)) for a in (5.4, 5.5, 5.6)]
    first = FeatureExtractor(blocks, tmp_path)
    X = first([pool[0], pool[1], pool[0]])
    np.testing.assert_array_equal(X[0], X[2])
    again = FeatureExtractor(blocks, tmp_path)
    np.testing.assert_array_equal(again(pool)[:2], X[:2])
    assert calls == [2, 1]
    assert len(FeatureExtractor(default_blocks(describe, key="other", size=2), tmp_path)) == 0


def test_a_damaged_cache_is_named(tmp_path):
    extractor = FeatureExtractor(cache=tmp_path)
    extractor([Candidate(rocksalt())])
    (part,) = tmp_path.glob("*/part-*.npz")
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(InputError, match=part.name):
        FeatureExtractor(cache=tmp_path)


def test_blocks_of_a_wrong_shape_are_refused():
    block = PotentialBlock(lambda structures: (np.zeros(1), np.ones((1, 3))), "k", size=2)
    with pytest.raises(ValueError, match="PotentialBlock must give shape"):
        FeatureExtractor([block])([Candidate(rocksalt())])


def test_a_detached_extractor_answers_from_memory_alone():
    known, strange = Candidate(rocksalt()), Candidate(rocksalt("K"))
    extractor = FeatureExtractor()
    rows = extractor([known])
    copy = pickle.loads(pickle.dumps(extractor.detached()))  # as it goes to a worker process
    np.testing.assert_array_equal(copy([known]), rows)
    assert copy.key == extractor.key
    assert copy.groups.keys() == extractor.groups.keys()
    with pytest.raises(ValueError, match=f"no features of 1 crystals, such as {strange.id}"):
        copy([strange])


def test_features_from_elsewhere_enter_the_cache(tmp_path):
    extractor = FeatureExtractor()
    candidate = Candidate(rocksalt())
    rows = np.arange(len(extractor.names), dtype=float)[None]
    add_to_cache(tmp_path, extractor, [candidate.id], rows)
    np.testing.assert_array_equal(FeatureExtractor(cache=tmp_path)([candidate]), rows)
    with pytest.raises(ValueError, match="expected rows of shape"):
        add_to_cache(tmp_path, extractor, [candidate.id], rows[:, 1:])


def test_progress_begins_anew_with_each_call(monkeypatch):
    monkeypatch.setattr("surrogates.features.CHUNK", 2)
    extractor, seen = FeatureExtractor((SymmetryBlock(),)), []
    crystals = [Candidate(rocksalt(a=4.0 + 0.1 * i)) for i in range(5)]
    extractor(crystals[:3], lambda *call: seen.append(call[:3]))
    extractor(crystals, lambda *call: seen.append(call[:3]))
    assert seen == [("features", n, 3) for n in (0, 2, 3)] + [("features", n, 2) for n in (0, 2)]
