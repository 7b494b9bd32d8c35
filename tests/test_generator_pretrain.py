"""Pretraining: it learns, resumes bit for bit, keeps the best model; bad checkpoints are refused."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from generator.checkpoint import load_checkpoint, save_checkpoint
from generator.model import ModelConfig
from generator.pretrain import STATE, PretrainConfig, Trainer, batches, learning_rate, pretrain, space_group_logits
from generator.sample import sample
from loop.errors import CheckpointError
from tests.test_generator_likelihood import SMALL, random_model

CONFIG = PretrainConfig(
    model=ModelConfig(**SMALL, dropout=0.1), epochs=3, batch_size=32, learning_rate=1e-2, warmup_steps=5
)


@pytest.fixture(scope="module")
def crystals():
    """Crystals drawn from a random network: a distribution that can be learned."""
    rng = np.random.default_rng(0)
    return sample(random_model(ModelConfig(**SMALL), scale=0.5), rng.choice([62, 194, 225], 360), rng).batch


def test_learns_and_resumes_bit_for_bit(crystals, tmp_path):
    train, val = crystals[:300], crystals[300:]
    whole = Trainer(CONFIG, train, val, tmp_path / "whole")
    last = whole.run()
    assert last["nll"] < whole.curve[0]["nll"] - 1.0
    checkpoint = load_checkpoint(tmp_path / "whole")
    assert checkpoint.provenance["validation"]["nll"] == min(row["nll"] for row in whole.curve)

    class KilledError(Exception):
        pass

    cut = Trainer(replace(CONFIG, checkpoint_seconds=0.0), train, val, tmp_path / "cut")  # saves after every update
    update = cut.update

    def killing(rows):
        if cut.step == 14:
            raise KilledError
        return update(rows)

    cut.update = killing
    with pytest.raises(KilledError):
        cut.run()
    pretrain(CONFIG, train, val, tmp_path / "cut", resume=True)
    one, two = (load_file(tmp_path / name / STATE) for name in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_resume_refuses(crystals, tmp_path):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        pretrain(CONFIG, crystals, crystals, tmp_path, resume=True)
    Trainer(CONFIG, crystals, crystals, tmp_path).save()
    with pytest.raises(CheckpointError, match="other settings of learning_rate"):
        pretrain(replace(CONFIG, learning_rate=1.0), crystals, crystals, tmp_path, resume=True)


def test_batches_cover_everything_once_and_hold_alike_lengths():
    lengths = np.random.default_rng(0).integers(1, 20, 1000)
    cuts = list(batches(lengths, 50, np.random.default_rng(1)))
    assert sorted(np.concatenate(cuts)) == list(range(1000))
    assert np.mean([np.ptp(lengths[c]) for c in cuts]) < 2


def test_learning_rate():
    assert learning_rate(CONFIG, 0, 100) == pytest.approx(0.002)
    assert learning_rate(CONFIG, 5, 105) == pytest.approx(0.01)
    assert learning_rate(CONFIG, 105, 105) == pytest.approx(0.01 * CONFIG.final_share)


def test_space_group_prior_is_the_frequency(crystals):
    p = space_group_logits(crystals, smoothing=1e-9).exp()
    for g in (62, 194, 225):
        share = np.bincount(crystals.G)[g] / len(crystals)
        assert p[g - 1].item() == pytest.approx(share, rel=1e-5)


def test_checkpoint_round_trip(tmp_path):
    model = random_model(ModelConfig.published(**SMALL)).float()
    digest = save_checkpoint(model, tmp_path, {"note": "x"})
    read = load_checkpoint(tmp_path)
    assert read.checksum == digest
    assert read.provenance == {"note": "x"}
    assert read.model.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(read.model.parameters(), model.parameters(), strict=True))


def test_bad_checkpoints(tmp_path):
    with pytest.raises(CheckpointError, match=r"expected model\.json and model\.safetensors"):
        load_checkpoint(tmp_path / "nowhere")
    save_checkpoint(random_model(ModelConfig(**SMALL)).float(), tmp_path)
    good = (tmp_path / "model.json").read_text()
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(json.loads(good) | {"format": "other"}))
    with pytest.raises(CheckpointError, match="expected format"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.json").write_text(good.replace('"width": 16', '"width": 32'))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.json").write_text(good)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-4] + b"abcd")
    with pytest.raises(CheckpointError, match="do not belong together"):
        load_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path)
