"""Tokens in files: exact as JSON."""

import json

import numpy as np
import pytest

from generator.model import ModelConfig
from generator.representation.serialization import describe, from_json, to_json
from generator.representation.tokens import CrystalBatch, TokenError, detokenize
from generator.sample import sample
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
