"""The likelihood is that of what the sampler draws: sums, integrals, sampler against likelihood, importance weights."""

import numpy as np
import pytest
import torch

from generator.constraints.conditions import Sampling
from generator.distributions import Categorical, LatticeMixture, VonMisesMixture, keep_top_p
from generator.likelihood import (
    element_distribution,
    first_letter_distribution,
    letter_distribution,
    log_prob,
    masks,
)
from generator.model import CrystalFormer, ModelConfig
from generator.representation.sequence import Crystals
from generator.representation.wyckoff import tables
from generator.sample import draw_space_groups, sample

SMALL = {"layers": 2, "heads": 2, "head_size": 8, "width": 16, "embedding": 8, "first_letter_hidden": 16}
LAYOUTS = {
    "free": ModelConfig(**SMALL, dropout=0.0),
    "published": ModelConfig.published(**SMALL, dropout=0.0),
    "published, heads wider than the network": ModelConfig.published(**(SMALL | {"head_size": 32}), dropout=0.0),
}
SAMPLINGS = {"plain": Sampling(), "masked": Sampling(0.7, 0.8, (3, 8, 11, 17, 22, 38))}


def random_model(config: ModelConfig, seed: int = 0, scale: float = 0.3) -> CrystalFormer:
    """All weights random, so that nothing is hidden behind a layer that starts at zero."""
    generator = torch.Generator().manual_seed(seed)
    model = CrystalFormer(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale)
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_sampled_equals_recomputed(layout, sampling):
    model = random_model(LAYOUTS[layout])
    rng = np.random.default_rng(1)
    drawn = sample(model, rng.integers(1, 231, 80), rng, SAMPLINGS[sampling])
    again = log_prob(model, Crystals.from_batch(drawn.batch, model.head.weight), SAMPLINGS[sampling])
    for term in ("g", "w", "a", "xyz", "l"):
        torch.testing.assert_close(getattr(drawn.logp, term), getattr(again, term), rtol=0, atol=1e-9)
    assert again.xyz.abs().max() > 1  # there are coordinates to agree on


@pytest.mark.parametrize("layout", LAYOUTS)
def test_single_precision_agrees_to_1e_5(layout):
    model = random_model(LAYOUTS[layout], scale=0.2).float()
    rng = np.random.default_rng(2)
    drawn = sample(model, rng.integers(1, 231, 40), rng)
    again = log_prob(model, Crystals.from_batch(drawn.batch, model.head.weight))
    per_site = drawn.batch.num_sites.clip(1)
    difference = (drawn.logp.total - again.total).abs().detach().numpy()
    assert (difference / per_site).max() < 1e-5


def test_sampled_crystals_obey_symmetry():
    """Letters never go back, fixed points are used once, coordinates satisfy op0(x) = x, cells have the metric."""
    model = random_model(LAYOUTS["free"])
    rng = np.random.default_rng(3)
    batch = sample(model, rng.integers(1, 231, 200), rng).batch
    table = tables()
    for g, w, xyz in zip(batch.G, batch.W.astype(int), batch.XYZ, strict=True):
        real = w[w > 0]
        assert 1 <= len(real) <= 20
        assert (np.diff(real) >= 0).all()
        assert real.max() <= table.n_letters[g]
        fixed = real[table.dof0[g, real]]
        assert len(set(fixed)) == len(fixed)
        op0 = table.op0[g, real]
        moved = np.einsum("sij,sj->si", op0[:, :, :3], xyz[: len(real)]) + op0[:, :, 3]
        assert np.abs((moved - xyz[: len(real)] + 0.5) % 1.0 - 0.5).max() < 1e-6


@pytest.mark.parametrize("group", [47, 62, 225])
def test_letters_sum_to_one(group):
    """Every reachable pair of choices for the first two letters, enumerated (would catch double counting)."""
    rng = np.random.default_rng(4)
    g = torch.tensor([group])
    first = first_letter_distribution(torch.as_tensor(rng.normal(size=(1, 28))), g, Sampling(0.8, 0.9))
    assert first.logp.exp().sum().item() == pytest.approx(1, abs=1e-12)
    raw = torch.as_tensor(rng.normal(size=(1, 28)))
    total = 0.0
    for w in range(1, int(tables().n_letters[group]) + 1):
        after = letter_distribution(raw, g, torch.tensor([w]), torch.tensor([False]), Sampling())
        total += first.logp[0, w].exp().item() * after.logp.exp().sum().item()
        allowed = set(np.flatnonzero(np.isfinite(after.logp[0].numpy())))
        lowest = w + 1 if tables().dof[group, w] == 0 else w
        assert allowed == {0, *range(lowest, int(tables().n_letters[group]) + 1)}
    assert total == pytest.approx(1, abs=1e-12)


def test_published_mask_example():
    """Group 225 after letter 3 (no freedom): {0, 4..12}; after letter 5: {0, 5..12}; after the pad: {0}."""
    following = masks(torch.device("cpu"), torch.float64).next_letter[225]
    assert set(following[3].nonzero()[:, 0].tolist()) == {0, *range(4, 13)}
    assert set(following[5].nonzero()[:, 0].tolist()) == {0, *range(5, 13)}
    assert set(following[0].nonzero()[:, 0].tolist()) == {0}


def test_only_the_stop_letter_is_left_in_the_last_slot():
    raw = torch.zeros(2, 28, dtype=torch.float64)
    last = torch.tensor([True, False])
    logp = letter_distribution(raw, torch.tensor([2, 2]), torch.tensor([9, 9]), last, Sampling()).logp
    assert logp[0, 0] == 0
    assert torch.isfinite(logp[0]).sum() == 1
    assert torch.isfinite(logp[1]).sum() == 2  # letter i has freedom and may repeat, or stop


def test_elements_allowed():
    logp = element_distribution(torch.zeros(1, 119, dtype=torch.float64), Sampling(elements=(8, 22))).logp
    assert set(torch.isfinite(logp[0]).nonzero()[:, 0].tolist()) == {8, 22}
    everything = element_distribution(torch.zeros(1, 119, dtype=torch.float64), Sampling()).logp
    assert not torch.isfinite(everything[0, 0])
    assert everything[0, 1].item() == pytest.approx(-np.log(118))


def test_top_p_keeps_the_smallest_set():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.isfinite(keep_top_p(logits, 0.79)).sum() == 2
    assert torch.isfinite(keep_top_p(logits, 0.81)).sum() == 3
    assert torch.isfinite(keep_top_p(logits, 0.01)).sum() == 1


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_coordinates_integrate_to_one(temperature):
    raw = torch.as_tensor(np.random.default_rng(5).normal(size=(3, 48)) * 2)
    mixture = VonMisesMixture.of(raw, ModelConfig(), Sampling(temperature))
    x = torch.linspace(0, 1, 20001, dtype=torch.float64)[:-1]
    for row in range(3):
        one = VonMisesMixture(
            *(p[row : row + 1].expand(len(x), -1) for p in (mixture.logw, mixture.loc, mixture.kappa))
        )
        assert one.log_prob(x).exp().mean().item() * 2 * np.pi == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(
    ("angle", "loc", "kappa", "expected"),
    [
        (0, 0, 0, -1.8378771),
        (0, 0, 1, -1.0737914),
        (1, 0.5, 2, -0.9067055),
        (3, -3, 50, -0.9569382),
        (0.1, 0, 500, -0.3098021),
    ],
)
def test_von_mises_density(angle, loc, kappa, expected):
    """Reference figures of the published implementation."""
    one = torch.ones(1, 1, dtype=torch.float64)
    mixture = VonMisesMixture(0 * one, loc * one, kappa * one)
    x = torch.tensor([angle / (2 * np.pi) + 0.5], dtype=torch.float64)
    assert mixture.log_prob(x).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("logarithmic", [True, False])
def test_cell_density_integrates_to_one(logarithmic):
    """By importance sampling in two independent parameters (a tetragonal cell): D2's product of mixtures fails this."""
    rng = np.random.default_rng(6)
    config = ModelConfig(lattice_components=3, log_lattice=logarithmic)
    raw = torch.as_tensor(rng.normal(size=(1, 39)))
    raw[:, 3:21] = 1.0 + raw[:, 3:21] * (0.5 if logarithmic else 0.1)
    raw[:, 21:] = -1.0 if logarithmic else -2.0
    mixture = LatticeMixture.of(raw, config, Sampling())
    grid = torch.linspace(0.0 if logarithmic else 0.2, 8.0 if logarithmic else 2.2, 401, dtype=torch.float64)
    if logarithmic:
        grid = torch.linspace(-2.0, 4.0, 401, dtype=torch.float64).exp()
    a, c = torch.meshgrid(grid, grid, indexing="ij")
    cell = torch.full((a.numel(), 6), np.pi / 2, dtype=torch.float64)
    cell[:, 0], cell[:, 1], cell[:, 2] = a.flatten(), a.flatten(), c.flatten()
    independent = torch.tensor([True, False, True, False, False, False])
    many = LatticeMixture(
        *(p.expand(len(cell), *p.shape[1:]) for p in (mixture.logw, mixture.mean, mixture.sigma)), logarithmic
    )
    density = many.log_prob(cell, independent.expand(len(cell), 6)).exp().reshape(a.shape)
    axis = grid.log() if logarithmic else grid
    assert torch.trapezoid(torch.trapezoid(density, axis), axis).item() == pytest.approx(1, abs=2e-3)


def test_joint_cell_differs_from_the_published_product():
    """Two components (3, 5) and (5, 3): the product scores the cell (3, 3), which is never drawn, like (3, 5)."""
    mean = torch.zeros(1, 2, 6, dtype=torch.float64)
    mean[0, 0, :2], mean[0, 1, :2] = torch.tensor([3.0, 5.0]), torch.tensor([5.0, 3.0])
    sigma = torch.full((1, 2, 6), 0.1, dtype=torch.float64)
    mixture = LatticeMixture(torch.full((1, 2), np.log(0.5), dtype=torch.float64), mean, sigma, False)
    two = torch.tensor([[True, True, False, False, False, False]])
    wrong = torch.tensor([[3.0, 3.0, 0, 0, 0, 0]], dtype=torch.float64)
    right = torch.tensor([[3.0, 5.0, 0, 0, 0, 0]], dtype=torch.float64)
    assert mixture.log_prob_published(wrong, two).item() == pytest.approx(1.381, abs=1e-3)
    assert mixture.log_prob_published(right, two).item() == pytest.approx(1.381, abs=1e-3)
    assert mixture.log_prob(wrong, two).item() == pytest.approx(-197, abs=1)
    assert mixture.log_prob(right, two).item() == pytest.approx(2.07, abs=1e-2)


def test_samples_follow_their_density():
    """Draws of each distribution against its own density: frequencies and mean log-probability."""
    rng = np.random.default_rng(7)
    n = 40000
    raw = torch.as_tensor(rng.normal(size=(1, 5))).expand(n, -1)
    categorical = Categorical.of(raw, None, Sampling(0.7, 0.95))
    counts = np.bincount(categorical.sample(rng).numpy(), minlength=5) / n
    np.testing.assert_allclose(counts, categorical.logp[0].exp().numpy(), atol=0.01)
    raw = torch.as_tensor(rng.normal(size=(1, 12))).expand(n, -1)
    mixture = VonMisesMixture.of(raw, ModelConfig(coordinate_components=4), Sampling(0.8))
    x = mixture.sample(rng).numpy()
    counts, edges = np.histogram(x, bins=20, range=(0, 1), density=True)
    centres = torch.as_tensor((edges[1:] + edges[:-1]) / 2)
    one = VonMisesMixture(*(p[:20] for p in (mixture.logw, mixture.loc, mixture.kappa)))
    np.testing.assert_allclose(counts, one.log_prob(centres).exp().numpy() * 2 * np.pi, atol=0.12)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_importance_weights_average_to_one(layout):
    """E_q[p / q] = 1 for two policies. D1 (densities of coordinates never drawn) and D2 break this."""
    q = random_model(LAYOUTS[layout], seed=1, scale=0.15)
    p = random_model(LAYOUTS[layout], seed=1, scale=0.15)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in p.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.04)
    rng = np.random.default_rng(8)
    groups = rng.choice([8, 62, 99, 160, 167, 221], 2000)
    sampling = Sampling(0.9, 1.0)
    drawn = sample(q, groups, rng, sampling)
    with torch.no_grad():
        ratio = log_prob(p, Crystals.from_batch(drawn.batch, p.head.weight), sampling).total - drawn.logp.total
    weights = ratio.exp().numpy()
    error = weights.std() / np.sqrt(len(weights))
    assert error < 0.02  # the test has power
    assert weights.std() > 0.1  # the policies differ
    assert weights.mean() == pytest.approx(1, abs=4 * error)


def test_future_does_not_leak():
    """Changing the element of site 2 leaves all predictions before it as they were."""
    model = random_model(LAYOUTS["published"])
    g = torch.tensor([1])
    w = torch.zeros(1, 21, dtype=torch.long)
    w[0, :3] = 1
    a = torch.zeros_like(w)
    a[0, :3] = torch.tensor([3, 8, 11])
    xyz = torch.rand(1, 21, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cell = torch.ones(1, 6, dtype=torch.float64)
    other = a.clone()
    other[0, 1] = 9
    from generator.representation.sequence import build_sequence

    one, two = (model(build_sequence(Crystals(g, w, el, xyz, cell), None)) for el in (a, other))
    changed = (one - two).abs().amax(-1)[0] > 1e-12
    assert not changed[:6].any()
    assert changed[6:].all()


def test_space_groups_follow_the_prior():
    model = random_model(LAYOUTS["free"])
    with torch.no_grad():
        model.space_group_logits.fill_(-50.0)
        model.space_group_logits[[1, 224]] = torch.tensor([0.0, np.log(3.0)], dtype=torch.float64)
    rng = np.random.default_rng(0)
    drawn = draw_space_groups(model, 4000, rng)
    assert set(drawn) == {2, 225}
    assert (drawn == 225).mean() == pytest.approx(0.75, abs=0.03)
    assert set(draw_space_groups(model, 50, rng, [2])) == {2}
    assert set(draw_space_groups(model, 50, rng, [7, 8])) <= {7, 8}


def test_same_seed_same_crystals():
    model = random_model(LAYOUTS["free"])
    batches = [sample(model, np.full(20, 62), np.random.default_rng(seed)).batch for seed in (5, 5, 6)]
    np.testing.assert_array_equal(batches[0].XYZ, batches[1].XYZ)
    assert (batches[0].XYZ != batches[2].XYZ).any()


def test_published_needs_the_published_layout():
    model = random_model(LAYOUTS["free"])
    rng = np.random.default_rng(0)
    crystals = Crystals.from_batch(sample(model, np.array([62]), rng).batch, model.head.weight)
    with pytest.raises(ValueError, match="published layout"):
        log_prob(model, crystals, definition="published")


@pytest.mark.parametrize(
    ("config", "expected"), [({}, 4_833_575), ({"layers": 4, "heads": 4, "head_size": 32}, 321_831)]
)
def test_published_parameter_counts(config, expected):
    model = CrystalFormer(ModelConfig.published(**config))
    assert sum(p.numel() for p in model.parameters()) == expected


def test_the_free_layout_is_shorter():
    from generator.representation.sequence import build_sequence

    model = random_model(LAYOUTS["free"])
    rng = np.random.default_rng(0)
    crystals = Crystals.from_batch(sample(model, np.full(30, 225), rng).batch, model.head.weight)
    lengths = [build_sequence(crystals, free).present.sum().item() for free in (model.free, None)]
    assert lengths[0] < lengths[1]
