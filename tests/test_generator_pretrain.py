"""Pretraining: it learns, resumes bit for bit, keeps the best model; bad checkpoints are refused."""

import json
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from generator.checkpoint import load_checkpoint, save_checkpoint
from generator.model import ModelConfig
from generator.pretrain import CLOCKS, STATE, PretrainConfig, Trainer, mean_nll, pretrain, space_group_logits
from generator.representation.sequence import Crystals
from generator.sample import sample
from generator.schedule import batches, learning_rate
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


def test_the_mean_of_the_weights_is_what_is_kept(crystals, tmp_path):
    """Against the mean written out; and a resumed run goes on with it."""
    train, val, config = crystals[:96], crystals[96:128], replace(CONFIG, averaging=0.6, epochs=2)
    trainer = Trainer(config, train, val, tmp_path / "whole")
    update, name = trainer.update, "head.weight"
    passed = []

    def watched(rows):
        loss = update(rows)
        passed.append(trainer.model.state_dict()[name].clone())
        return loss

    trainer.update = watched
    trainer.run()
    mean = passed[0]
    for weights in passed[1:]:
        mean = 0.6 * mean + 0.4 * weights
    assert len(passed) == 6
    torch.testing.assert_close(trainer.judged.state_dict()[name], mean)
    assert not torch.allclose(trainer.model.state_dict()[name], mean, atol=1e-4)
    kept = load_checkpoint(tmp_path / "whole")
    assert mean_nll(kept.model, trainer.val_set)["nll"] == pytest.approx(kept.provenance["validation"]["nll"], abs=1e-5)
    Trainer(replace(config, epochs=1), train, val, tmp_path / "cut").run()
    resumed = Trainer(config, train, val, tmp_path / "cut")
    resumed.resume()
    resumed.run()
    one, two = (load_file(tmp_path / folder / STATE) for folder in ("whole", "cut"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)
    with pytest.raises(ValueError, match="averaging must be"):
        replace(config, averaging=1.0)


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


def test_starts_from_given_weights_with_its_own_space_groups(crystals, tmp_path):
    base = Trainer(CONFIG, crystals[:300], crystals[300:], tmp_path / "base")
    base.run()
    other = crystals[crystals.G == 225]
    config = replace(CONFIG, init=str(tmp_path / "base"), model=ModelConfig(layers=9, dropout=0.0), epochs=1)
    tuned = Trainer(config, other, other, tmp_path / "tuned")
    assert tuned.model.config == replace(CONFIG.model, dropout=0.0)  # the network is that of the checkpoint
    saved = load_checkpoint(tmp_path / "base")
    for name, value in tuned.model.named_parameters():
        torch.testing.assert_close(value, saved.model.get_parameter(name), rtol=0, atol=0)
    assert tuned.model.space_group_logits.argmax() == 224
    fresh = Trainer(replace(config, init=None, model=tuned.model.config), other, other, tmp_path / "fresh")
    start, untrained = (mean_nll(t.model, t.val_set)["nll"] for t in (tuned, fresh))
    assert start < untrained - 5
    assert tuned.run()["nll"] < start
    assert load_checkpoint(tmp_path / "tuned").provenance["init_sha256"] == saved.checksum
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Trainer(replace(CONFIG, init=str(tmp_path / "nowhere")), other, other, tmp_path / "x")


def test_a_deepened_network_begins_as_the_one_it_came_from(crystals, tmp_path):
    base = Trainer(replace(CONFIG, epochs=1), crystals[:300], crystals[300:], tmp_path / "base")
    base.run()
    layers = CONFIG.model.layers + 2
    config = replace(CONFIG, init=str(tmp_path / "base"), deepen_to=layers)
    deep = Trainer(config, crystals[:300], crystals[300:], tmp_path / "deep")
    assert deep.model.config.layers == len(deep.model.blocks) == layers
    assert mean_nll(deep.model, deep.val_set) == pytest.approx(mean_nll(base.model, base.val_set), abs=1e-5)
    assert deep.run()["nll"] < base.curve[-1]["nll"]
    assert load_checkpoint(tmp_path / "deep").model.config.layers == layers
    with pytest.raises(ValueError, match="deepen_to needs init"):
        PretrainConfig(deepen_to=8)


def test_trains_the_published_definition_until_the_clock_says_so(crystals, tmp_path, monkeypatch):
    ticks = count()  # each look at the clock is a fiftieth of a second
    monkeypatch.setitem(CLOCKS, "cpu", lambda: next(ticks) / 50)
    config = replace(
        CONFIG,
        model=ModelConfig.published(**SMALL),
        definition="published",
        epochs=10_000,
        max_seconds=1.0,
        clock="cpu",
        anneal="seconds",
        validate_every=1000,
    )
    trainer = Trainer(config, crystals[:300], crystals[300:], tmp_path)
    last = trainer.run()
    assert 1.0 < trainer.seconds < 1.1
    assert len(trainer.curve) == 1
    assert trainer.rate < 0.05 * config.learning_rate  # the cosine has come to its end
    terms = mean_nll(trainer.model, trainer.val_set, definition="published")
    assert last["nll"] == pytest.approx(terms["nll"])
    assert abs(terms["nll"] - mean_nll(trainer.model, trainer.val_set)["nll"]) > 1e-3
    with pytest.raises(ValueError, match="max_seconds"):
        replace(config, max_seconds=None)


def test_resumes_a_run_from_before_a_setting_existed(crystals, tmp_path):
    trainer = Trainer(CONFIG, crystals, crystals, tmp_path)
    trainer.save()
    with safe_open(tmp_path / STATE, framework="pt") as file:
        text = json.loads(file.metadata()["state"])
    tensors = load_file(tmp_path / STATE)
    for name in ("definition", "init", "devices", "precision", "clock", "anneal", "accelerator", "validate_every"):
        del text["config"][name]
    save_file(tensors, tmp_path / STATE, metadata={"state": json.dumps(text)})
    Trainer(CONFIG, crystals, crystals, tmp_path).resume()
    with pytest.raises(CheckpointError, match="other settings of definition"):
        Trainer(replace(CONFIG, definition="published"), crystals, crystals, tmp_path).resume()


def test_bfloat16_keeps_coordinates_and_probabilities(crystals):
    model = random_model(ModelConfig(**SMALL), scale=0.3)
    reference = mean_nll(model, Crystals.from_batch(crystals[:60], model.head.weight))["nll"]
    half = model.to(torch.bfloat16)
    drawn = sample(half, crystals.G[:60], np.random.default_rng(0))
    fractions = drawn.batch.XYZ[drawn.batch.XYZ > 0]
    assert np.abs(fractions * 256 - np.round(fractions * 256)).max() > 0.1  # eight bits would give multiples of 1/256
    assert drawn.logp.total.dtype == torch.float32
    again = mean_nll(half, Crystals.from_batch(crystals[:60], half.head.weight))["nll"]
    assert again == pytest.approx(reference, rel=0.02)


def test_autocast_trains(crystals, tmp_path):
    trainer = Trainer(replace(CONFIG, precision="bf16-mixed", epochs=2), crystals[:300], crystals[300:], tmp_path)
    last = trainer.run()
    assert last["nll"] < trainer.curve[0]["nll"]
    assert trainer.model.head.weight.dtype == torch.float32


def test_refuses_devices_that_are_not_there(crystals, tmp_path):
    with pytest.raises(CheckpointError, match="cannot train with accelerator cuda"):
        pretrain(replace(CONFIG, accelerator="cuda"), crystals, crystals, tmp_path)


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one(crystals, tmp_path):
    config = replace(CONFIG, model=ModelConfig(**SMALL, dropout=0.0), epochs=2)
    train, val = crystals[:301], crystals[301:]  # an odd number: the last batch is shared unevenly
    one = pretrain(config, train, val, tmp_path / "one")
    two = pretrain(replace(config, devices=2), train, val, tmp_path / "two")
    assert two["nll"] == pytest.approx(one["nll"], abs=2e-3)
    assert two["train"] == pytest.approx(one["train"], abs=2e-2)


def test_a_checkpoint_is_found_in_the_folder_of_a_finetuning_or_a_campaign(crystals, tmp_path):
    first, second = (random_model(ModelConfig(**SMALL), seed=seed).float() for seed in (0, 1))
    for folder in ("tuned/checkpoint", "campaign/generator/round_001", "campaign/generator/round_002"):
        save_checkpoint(second if folder.endswith("2") else first, tmp_path / folder)
    assert load_checkpoint(tmp_path / "tuned").checksum == load_checkpoint(tmp_path / "tuned/checkpoint").checksum
    newest = load_checkpoint(tmp_path / "campaign/generator/round_002").checksum
    assert load_checkpoint(tmp_path / "campaign").checksum == newest != load_checkpoint(tmp_path / "tuned").checksum
