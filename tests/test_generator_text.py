"""Tokens in files: exact as JSON, symmetric as CIF."""

import json

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.io.cif import CifParser

from generator.model import ModelConfig
from generator.sample import sample
from generator.text import describe, from_json, to_json, to_symmetrised_cif
from generator.tokens import CrystalBatch, TokenError, detokenize
from tests.test_generator_likelihood import SMALL, random_model

GROUPS = [2, 14, 62, 139, 166, 194, 216, 225, 227]


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    return sample(random_model(ModelConfig(**SMALL), scale=0.5), rng.choice(GROUPS, 60), rng).batch


def test_json_keeps_every_bit(batch):
    slots = batch.W.shape[1]
    read = CrystalBatch.concatenate([from_json(to_json(batch, i), slots) for i in range(len(batch))])
    for name in ("G", "W", "A", "XYZ", "L"):
        np.testing.assert_array_equal(getattr(read, name), getattr(batch, name))


@pytest.mark.parametrize(
    "change",
    [{"g": 231}, {"w": "?"}, {"w": ""}, {"a": [0]}, {"l": [1, 2, 3]}, {"x": [[0, 0, float("nan")]]}, {"w": "z"}],
)
def test_json_refuses(change):
    good = {"g": 225, "w": "a", "a": [11], "x": [[0, 0, 0]], "l": [3.5, 3.5, 3.5, 1.57, 1.57, 1.57]}
    assert len(from_json(json.dumps(good), 21)) == 1
    with pytest.raises(TokenError, match="as `generate` writes them"):
        from_json(json.dumps(good | change), 21)
    with pytest.raises(TokenError, match="at most 1"):
        from_json(json.dumps(good | {"w": "aa", "a": [11, 11], "x": [[0, 0, 0]] * 2}), 2)
    with pytest.raises(TokenError, match="as `generate` writes them"):
        from_json("{", 21)


def test_symmetrised_cif_is_read_by_pymatgen_as_the_same_crystal(batch):
    written = 0
    for i in range(len(batch)):
        structure, text = detokenize(batch, i), to_symmetrised_cif(batch, i)
        if structure is None or text is None or len(structure) > 60:
            continue
        assert f"_symmetry_Int_Tables_number   {batch.G[i]}\n" in text
        read = CifParser.from_str(text).parse_structures(primitive=False)[0]
        assert read.composition == structure.composition
        np.testing.assert_allclose(read.lattice.parameters, structure.lattice.parameters, atol=1e-6)
        mapped = StructureMatcher(primitive_cell=False, scale=False, ltol=1e-3, stol=1e-3, angle_tol=0.1)
        if len(structure) < 24:
            assert mapped.fit(read, structure)
        written += 1
    assert written > 20


def test_no_cif_where_images_would_merge():
    x = np.zeros((1, 3, 3))
    x[0, 0] = (0.2, 0.2 + 1e-5, 0.3)  # the general position of 99, almost on its mirror plane
    near = CrystalBatch(
        np.array([99], np.int16),
        np.array([[7, 0, 0]], np.int8),
        np.array([[11, 0, 0]], np.int8),
        x,
        np.array([[2.5, 2.5, 2.5, np.pi / 2, np.pi / 2, np.pi / 2]]),
    )
    assert to_symmetrised_cif(near) is None
    x[0, 0] = (0.2, 0.3, 0.3)
    assert to_symmetrised_cif(near) is not None


def test_atoms_are_counted_in_the_primitive_cell(batch):
    columns = describe(batch)
    for i in range(0, len(batch), 7):
        structure = detokenize(batch, i)
        if structure is None:
            continue
        assert columns["n_atoms_conventional"][i] == len(structure)
        assert columns["n_atoms"][i] >= len(structure.get_primitive_structure(tolerance=1e-3))
        if batch.G[i] in (216, 225, 227):
            assert columns["n_atoms"][i] * 4 == len(structure)
