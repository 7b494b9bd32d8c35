"""Prompts: exact likelihood given them, nothing without them, and a network that learns to heed them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from generator import prompt
from generator.checkpoint import load_checkpoint, save_checkpoint
from generator.constraints.conditions import Sampling
from generator.likelihood import log_prob, space_group_logp
from generator.model import ModelConfig
from generator.pretrain import PretrainConfig, Trainer
from generator.representation.sequence import Crystals
from generator.representation.tokens import CrystalBatch
from generator.sample import draw_space_groups, sample
from tests.test_generator_likelihood import SMALL, random_model

PROMPTED = ModelConfig(**SMALL, prompt=True)
CONDITIONS = {"system": Sampling(chemical_system="Sr-Ti-O"), "formula": Sampling(formula="MgAl2O4", max_atoms=28)}


@pytest.fixture(scope="module")
def model():
    return random_model(PROMPTED)


@pytest.mark.parametrize("name", CONDITIONS)
def test_what_the_sampler_draws_given_a_prompt_has_the_recomputed_likelihood(model, name):
    rng, sampling = np.random.default_rng(1), CONDITIONS[name]
    drawn = sample(model, draw_space_groups(model, 60, rng, sampling=sampling), rng, sampling)
    crystals = Crystals.from_batch(drawn.batch, model.head.weight)
    again, deaf = log_prob(model, crystals, sampling), log_prob(model, crystals, replace(sampling, prompt=False))
    for term in ("g", "w", "a", "xyz", "l"):
        torch.testing.assert_close(getattr(drawn.logp, term), getattr(again, term), rtol=0, atol=1e-9)
        assert (getattr(again, term) - getattr(deaf, term)).abs().max() > 1e-3  # the network was told


def test_without_a_prompt_the_network_is_the_one_that_takes_none(model):
    plain = random_model(ModelConfig(**SMALL))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("prompt.")})
    rng = np.random.default_rng(2)
    batch = sample(plain, rng.integers(1, 231, 60), rng).batch
    crystals = Crystals.from_batch(batch, model.head.weight)
    empty = replace(crystals, prompt=torch.zeros(60, prompt.SIZE))
    for given in (crystals, empty):
        torch.testing.assert_close(log_prob(model, given).joint, log_prob(plain, crystals).joint, rtol=0, atol=1e-12)


def test_group_probabilities_given_a_prompt_sum_to_one_on_the_possible_groups(model):
    told = space_group_logp(model, CONDITIONS["formula"]).exp()
    general = space_group_logp(model, replace(CONDITIONS["formula"], prompt=False)).exp()
    assert told.sum().item() == pytest.approx(1.0) == general.sum().item()
    assert torch.equal(told > 0, general > 0)
    assert (told - general).abs().max() > 1e-3


def test_prompts_say_what_is_in_a_crystal():
    # fluorite, group 225: Ca on a (4), F on c (8)
    G, W, A = torch.tensor([225]), torch.tensor([[1, 3, 0]]), torch.tensor([[20, 9, 0]])
    elements, shares, flags = prompt.of_sites(G, W, A, shares=True).split([prompt.ATOM_TYPES, prompt.ATOM_TYPES, 2], 1)
    assert elements[0].nonzero()[:, 0].tolist() == [9, 20]
    assert shares[0, [9, 20]].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert flags.tolist() == [[1.0, 1.0]]
    torch.testing.assert_close(prompt.of_conditions(Sampling(formula="CaF2")), prompt.of_sites(G, W, A, shares=True))
    asked = prompt.of_conditions(Sampling(chemical_system="Ca-F"))
    torch.testing.assert_close(asked, prompt.of_sites(G, W, A, shares=False))


@pytest.mark.parametrize("open", [Sampling(), Sampling(elements=("Ca", "F")), Sampling(require=("Ca",))])
def test_conditions_that_leave_the_elements_open_give_no_prompt(open):
    assert prompt.of_conditions(open) is None


def test_training_draws_every_kind_of_prompt():
    torch.manual_seed(0)
    many = 2000
    G, W, A = torch.full((many,), 225), torch.tensor([[1, 3, 0]] * many), torch.tensor([[20, 9, 0]] * many)
    flags = prompt.drawn(G, W, A)[:, -2:].mean(0)
    assert flags.tolist() == pytest.approx([1 - prompt.TOLD_NOTHING, prompt.TOLD_SHARES], abs=0.04)


def _fluorites(n):
    """AB2 in group 225 with sites a and c, of six elements."""
    rng = np.random.default_rng(0)
    W, A = np.zeros((n, 21), np.int8), np.zeros((n, 21), np.int8)
    W[:, :2], A[:, :2] = (1, 3), rng.choice([8, 9, 12, 17, 20, 38], (n, 2))
    XYZ, L = np.zeros((n, 21, 3)), np.tile([5.5, 5.5, 5.5, 90.0, 90.0, 90.0], (n, 1))
    XYZ[:, 1] = 0.25
    return CrystalBatch(np.full(n, 225, np.int16), W, A, XYZ, L)


def test_a_network_learns_to_heed_its_prompt_and_resumes(tmp_path):
    batch = _fluorites(420)
    train, val = batch[:360], batch[360:]
    config = PretrainConfig(model=PROMPTED, epochs=20, batch_size=32, learning_rate=1e-2, warmup_steps=5)
    last = Trainer(config, train, val, tmp_path / "whole").run()
    assert last["a"] > 3.0  # two of six elements: 2 ln 6 = 3.6 nats
    assert last["told"] < last["nll"] + last["g"] - 0.4  # an untrained prompt is worth 0; fully heeded 2.9
    assert load_checkpoint(tmp_path / "whole").model.config.prompt
    cut = Trainer(replace(config, epochs=1), train, val, tmp_path / "cut")
    cut.run()
    resumed = Trainer(config, train, val, tmp_path / "cut")
    resumed.resume()
    for ours, theirs in zip(resumed.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_an_older_checkpoint_is_given_prompts_that_say_nothing_yet(tmp_path):
    old = random_model(ModelConfig(**SMALL)).float()
    save_checkpoint(old, tmp_path / "old")
    assert not load_checkpoint(tmp_path / "old").model.config.prompt
    rng = np.random.default_rng(3)
    batch = sample(old, rng.integers(1, 231, 40), rng).batch
    config = PretrainConfig(model=replace(PROMPTED, dropout=0.0), init=str(tmp_path / "old"), epochs=1)
    trainer = Trainer(config, batch, batch, tmp_path / "new")
    start = trainer.validation()
    assert trainer.model.config.prompt
    assert start["told"] == pytest.approx(start["nll"] + start["g"], abs=1e-4)
