"""The Gaussian processes against scikit-learn's, and on awkward labels."""

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from loop.contracts import Surrogate
from loop.errors import CheckpointError, ConfigError
from loop.values import OK, Candidate, Evaluation, Quantity, failed
from surrogates.acquisition import JointSurrogate
from surrogates.calibration import conformal_factor
from surrogates.exact import ExactGP
from surrogates.features import FeatureExtractor, default_blocks
from surrogates.gp import GPSurrogate
from surrogates.properties import E_ABOVE_HULL, GPConfig, Property
from surrogates.scaling import InputScaler
from surrogates.sparse import SparseGP
from tests.fakes import ANIONS, CATIONS, bulk_modulus, e_above_hull, rocksalt


@pytest.fixture(scope="module")
def extractor():
    return FeatureExtractor()


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(0)
    return [
        Candidate(rocksalt(str(rng.choice(CATIONS)), str(rng.choice(ANIONS)), rng.uniform(5, 7))) for _ in range(60)
    ]


def label(candidate, **values):
    known = {"e_above_hull": e_above_hull(candidate.structure), "bulk_modulus": bulk_modulus(candidate.structure)}
    units = {"e_above_hull": "eV/atom", "bulk_modulus": "GPa"}
    properties = {name: Quantity(value, units[name]) for name, value in (known | values).items()}
    return Evaluation(candidate.id, "world@1", "s", OK, properties)


def with_hyperparameters(gp, group_lengths, outputscale, noise):
    raw = gp._parts
    state = gp.hyperparameters()
    state["covariance.base_kernel.log_lengthscale"] = np.log(group_lengths)
    for module, value in (("covariance", outputscale), ("likelihood.noise_covar", noise)):
        name = "outputscale" if module == "covariance" else "noise"
        constraint = getattr(raw.get_submodule(module), f"raw_{name}_constraint")
        shape = state[f"{module}.raw_{name}"].shape
        import torch

        state[f"{module}.raw_{name}"] = constraint.inverse_transform(torch.tensor(value)).numpy().reshape(shape)
    gp.load(state)
    return gp


def data(n, seed):
    rng = np.random.default_rng(seed)
    Z = rng.normal(size=(n, 5))
    return Z, np.sin(Z[:, 0]) + 0.3 * Z[:, 3] ** 2 + 0.05 * rng.normal(size=n)


def reference(gp, Z, t, lengths, outputscale, noise):
    """scikit-learn with the same kernel on the same standardised labels."""
    kernel = ConstantKernel(outputscale, "fixed") * Matern(lengths, "fixed", nu=1.5)
    process = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    return process.fit(Z, (t - gp.centre) / gp.scale)


def test_posterior_equals_that_of_scikit_learn():
    Z, t = data(40, 0)
    new, _ = data(25, 1)
    gp = ExactGP(Z, t, np.array([0, 0, 1, 1, 1]), np.zeros(40), (0.0, 1.0))
    with_hyperparameters(gp, [0.7, 2.5], 1.7, 0.03)
    process = reference(gp, Z, t, [0.7, 0.7, 2.5, 2.5, 2.5], 1.7, 0.03)
    mean, covariance = process.predict(new, return_cov=True)
    found, std = gp.predict(new, np.zeros(25))
    np.testing.assert_allclose(found, mean * gp.scale + gp.centre, atol=1e-8)
    np.testing.assert_allclose(std, np.sqrt(np.diag(covariance) + 0.03) * gp.scale, atol=1e-8)
    joint_mean, joint = gp.joint(new, np.zeros(25))
    np.testing.assert_allclose(joint_mean, found, atol=1e-10)
    np.testing.assert_allclose(joint, (covariance + 0.03 * np.eye(25)) * gp.scale**2, atol=1e-8)


def test_leave_out_equals_fitting_without_the_block():
    Z, t = data(30, 2)
    blocks = np.arange(30) // 3
    gp = with_hyperparameters(ExactGP(Z, t, np.zeros(5), np.zeros(30), (0.0, 1.0)), [1.5], 1.2, 0.05)
    mean, std = gp.leave_one_block_out(blocks)
    out = blocks == 4
    process = reference(gp, Z[~out], t[~out], 1.5, 1.2, 0.05)
    expected, covariance = process.predict(Z[out], return_cov=True)
    np.testing.assert_allclose(mean[out], expected * gp.scale + gp.centre, atol=1e-8)
    np.testing.assert_allclose(std[out], np.sqrt(np.diag(covariance) + 0.05) * gp.scale, atol=1e-8)


def test_fit_finds_the_group_that_matters():
    rng = np.random.default_rng(3)
    Z = rng.normal(size=(80, 2))
    gp = ExactGP(Z, np.sin(2 * Z[:, 1]), np.array([0, 1]), np.zeros(80), (0.0, 1.0))
    assert gp.fit(np.arange(80), 75)
    lengths = np.exp(gp.hyperparameters()["covariance.base_kernel.log_lengthscale"])
    assert lengths[0] > 3 * lengths[1]
    new = rng.normal(size=(200, 2))
    assert np.abs(gp.predict(new, np.zeros(200))[0] - np.sin(2 * new[:, 1])).mean() < 0.1


def test_learns_the_world_and_conforms(extractor, world):
    surrogate = GPSurrogate(extractor)
    assert isinstance(surrogate, Surrogate)
    assert isinstance(surrogate, JointSurrogate)
    surrogate.adapt(world)
    metrics = surrogate.fit(world[:40], [label(candidate) for candidate in world[:40]])
    assert metrics["bulk_modulus/labels"] == 40
    unseen = surrogate.evaluate(world[40:], [label(candidate) for candidate in world[40:]])
    assert unseen["bulk_modulus/spearman"] > 0.9
    assert unseen["e_above_hull/spearman"] > 0.7
    prediction = surrogate.predict(world[40:])
    assert prediction.names == ("e_above_hull", "bulk_modulus")
    assert prediction.units == ("eV/atom", "GPa")
    assert (prediction.std > 0).all()


def test_a_fit_depends_on_its_labels_alone(extractor, world):
    labels = [label(candidate) for candidate in world[:20]]
    straight, detour = GPSurrogate(extractor), GPSurrogate(extractor)
    straight.fit(world[:20], labels)
    detour.fit(world[:9], labels[:9])
    detour.fit(world[:20], labels)
    np.testing.assert_array_equal(straight.predict(world).mean, detour.predict(world).mean)


def test_new_labels_are_predicted_before_they_are_learned(extractor, world):
    surrogate = GPSurrogate(extractor)
    surrogate.fit(world[:20], [label(candidate) for candidate in world[:20]])
    before = surrogate.evaluate(world[20:30], [label(candidate) for candidate in world[20:30]])
    metrics = surrogate.fit(world[:30], [label(candidate) for candidate in world[:30]])
    assert metrics["bulk_modulus/new_n"] == 10
    assert metrics["bulk_modulus/new_mae"] == before["bulk_modulus/mae"]


def test_without_labels_the_prior_is_predicted_wide(extractor, world):
    surrogate = GPSurrogate(extractor)
    for fit in (False, True):
        if fit:
            assert surrogate.fit([], [])["bulk_modulus/labels"] == 0
        prediction = surrogate.predict(world)
        mean, std = prediction.column("bulk_modulus")
        assert ((mean > 50) & (mean < 200)).all()
        assert (std > 40).all()
    assert np.isinf(surrogate.distance(world)).all()


def test_residual_learning_starts_from_the_unrelaxed_hull_distance(world):
    def describe(structures):
        return np.zeros(len(structures)), np.zeros((len(structures), 1))

    def hull(structures, energies):
        return np.array([e_above_hull(structure) for structure in structures])

    extractor = FeatureExtractor(default_blocks(describe, hull, key="world", size=1))
    mean, _ = GPSurrogate(extractor).predict(world).column("e_above_hull")
    truth = np.array([e_above_hull(candidate.structure) for candidate in world])
    assert np.corrcoef(mean, truth)[0, 1] > 0.9


def test_nan_infinite_failed_and_impossible_labels_are_left_out_and_counted(extractor, world):
    labels = [label(candidate) for candidate in world[:12]]
    labels[0] = label(world[0], bulk_modulus=float("nan"))
    labels[1] = label(world[1], bulk_modulus=float("inf"))
    labels[2] = label(world[2], bulk_modulus=-3.0)
    labels[3] = Evaluation(world[3].id, "world@1", "s", failed("exploded"))
    surrogate = GPSurrogate(extractor)
    metrics = surrogate.fit(world[:12], labels)
    assert metrics["bulk_modulus/labels"] == 8
    assert metrics["bulk_modulus/unusable"] == 3
    assert metrics["e_above_hull/labels"] == 11
    assert np.isfinite(surrogate.predict(world).mean).all()


def test_constant_labels_predict_the_constant(extractor, world):
    stds = []
    for n in (10, 40):
        surrogate = GPSurrogate(extractor)
        surrogate.fit(world[:n], [label(candidate, bulk_modulus=120.0) for candidate in world[:n]])
        mean, std = surrogate.predict(world[45:]).column("bulk_modulus")
        np.testing.assert_allclose(mean, 120.0, rtol=0.15)
        assert (std > 0).all()
        stds.append(std.mean())
    assert stds[1] < stds[0]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_labels(extractor, world, n):
    surrogate = GPSurrogate(extractor)
    surrogate.adapt(world)
    surrogate.fit(world[:n], [label(candidate) for candidate in world[:n]])
    mean, std = surrogate.predict(world).column("bulk_modulus")
    assert np.isfinite(mean).all()
    assert (std[n:] > 5).all()
    truth = bulk_modulus(world[0].structure)
    assert abs(np.log(mean[0] / truth)) < abs(4.35 - np.log(truth)) + 0.1


def test_duplicate_labels_and_duplicate_rows(extractor, world):
    plain, twice = GPSurrogate(extractor), GPSurrogate(extractor)
    chosen = world[:15]
    plain.fit(chosen, [label(candidate) for candidate in chosen])
    twice.fit([*chosen, *chosen], [label(candidate) for candidate in [*chosen, *chosen]])
    np.testing.assert_allclose(plain.predict(world).mean, twice.predict(world).mean)
    one = label(world[0], bulk_modulus=100.0), label(world[0], bulk_modulus=140.0)
    twice.fit(world[:1], list(one))
    assert twice.labels[0, 1] == 120.0
    Z = np.ones((6, 2))  # different crystals, one feature row
    gp = ExactGP(Z, np.array([1.0, 2, 1, 2, 1, 2]), np.zeros(2), np.zeros(6), (0.0, 1.0))
    assert gp.fit(np.arange(6), 20)
    assert gp.predict(Z[:1], np.zeros(1))[0] == pytest.approx(1.5, abs=0.1)


def test_constant_and_missing_columns():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 4))
    X[:, 1] = 0.0
    X[:10, 3] = np.nan
    groups = {"a": np.array([0, 1]), "b": np.array([2, 3])}
    scaler = InputScaler.fit(X, groups)
    Z = scaler(X, groups)
    assert scaler.columns.tolist() == [0, 2, 3, -2]  # no column 1; a flag for what group b lacks
    assert scaler.group.tolist() == [0, 1, 1, 1]
    assert (Z[:10, 2] == 0).all()
    assert Z[:, 3].tolist() == [0.5] * 10 + [0.0] * 40
    assert Z[:, 0].var() == pytest.approx(1)
    assert (Z[:, 1].var() + Z[10:, 2].var()) == pytest.approx(1)


def test_back_transformed_moments_are_log_normal():
    prop = Property("k", "GPa", "log")
    mean, std = prop.moments(np.array([4.0, 5.0]), np.array([0.3, 0.8]))
    expected = np.exp(np.array([4 + 0.3**2 / 2, 5 + 0.8**2 / 2]))
    np.testing.assert_allclose(mean, expected, rtol=1e-8)
    np.testing.assert_allclose(std, expected * np.sqrt(np.expm1(np.array([0.3, 0.8]) ** 2)), rtol=1e-6)


def test_scales_invert_and_keep_order():
    values = np.array([-0.4, -0.01, 0.0, 0.02, 0.1, 0.7, 5.0])
    scaled = E_ABOVE_HULL.to_scale(values)
    assert (np.diff(scaled) > 0).all()
    np.testing.assert_allclose(E_ABOVE_HULL.from_scale(scaled), values, atol=1e-12)
    assert np.isnan(Property("k", "GPa", "log").to_scale(np.array([0.0]))[0])


def test_conformal_factor_mends_coverage():
    rng = np.random.default_rng(0)
    y = rng.normal(size=(2, 2000)) * 2.0
    factor = conformal_factor(y[0], np.zeros(2000), np.ones(2000))
    assert factor == pytest.approx(2.0, abs=0.1)
    assert np.mean(np.abs(y[1]) < 1.645 * factor) == pytest.approx(0.9, abs=0.02)
    assert conformal_factor(y[0, :10] * 0.01, np.zeros(10), np.ones(10)) == 1.0
    assert conformal_factor(y[0, :1], np.zeros(1), np.ones(1)) == 1.0


def test_large_label_sets_rest_on_inducing_crystals_and_use_every_label(extractor, world, tmp_path):
    surrogate = GPSurrogate(extractor, GPConfig(max_fit=10, max_labels=25, inducing=15, forest=False))
    metrics = surrogate.fit(world[:40], [label(candidate) for candidate in world[:40]])
    assert metrics["bulk_modulus/labels"] == 40
    assert isinstance(surrogate._models["bulk_modulus"].process, SparseGP)
    surrogate.save(tmp_path)
    again = GPSurrogate(extractor)
    again.load(tmp_path)
    np.testing.assert_allclose(again.predict(world).mean, surrogate.predict(world).mean, rtol=1e-9)


def test_sparse_process_on_all_labels_is_the_exact_one():
    Z, t = data(40, 0)
    new, _ = data(25, 1)
    given = (Z, t, np.array([0, 0, 1, 1, 1]), np.zeros(40), (0.0, 1.0))
    exact = with_hyperparameters(ExactGP(*given), [0.7, 2.5], 1.7, 0.03)
    sparse = with_hyperparameters(SparseGP(*given, inducing=np.arange(40)), [0.7, 2.5], 1.7, 0.03)
    for ours, theirs in zip(sparse.predict(new, np.zeros(25)), exact.predict(new, np.zeros(25)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    for ours, theirs in zip(sparse.joint(new, np.zeros(25)), exact.joint(new, np.zeros(25)), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-4)
    for ours, theirs in zip(
        sparse.leave_one_block_out(np.arange(40) // 3), exact.leave_one_block_out(np.arange(40) // 3), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


def test_sparse_process_learns_from_labels_beyond_its_inducing_points():
    def truth(Z):
        return np.sin(1.5 * Z[:, 0]) + 0.3 * Z[:, 3] ** 2

    rng = np.random.default_rng(3)
    Z, new = rng.normal(size=(1200, 5)), rng.normal(size=(300, 5))
    t = truth(Z) + 0.1 * rng.normal(size=1200)
    group, few = np.zeros(5), np.arange(200)
    subset = with_hyperparameters(ExactGP(Z[few], t[few], group, np.zeros(200), (0.0, 1.0)), [2.5], 1.5, 0.02)
    sparse = with_hyperparameters(SparseGP(Z, t, group, np.zeros(1200), (0.0, 1.0), inducing=few), [2.5], 1.5, 0.02)
    errors = [float(np.abs(gp.predict(new, np.zeros(300))[0] - truth(new)).mean()) for gp in (subset, sparse)]
    assert errors[1] < 0.85 * errors[0]


def test_sparse_process_is_no_surer_of_its_inducing_points_than_its_errors_allow():
    """Left-out residuals over their standard deviations are of one size, whichever label is left out."""
    rng = np.random.default_rng(0)
    turns, phases, sizes = rng.normal(size=(8, 40)), rng.uniform(0, 6, 40), rng.normal(size=40) / 3
    Z = rng.normal(size=(500, 8))
    t = np.sin(0.35 * Z @ turns + phases) @ sizes
    given, few = (Z, t, np.zeros(8), np.zeros(500), (0.0, 1.0)), np.arange(150)
    for gp in (ExactGP(*given), SparseGP(*given, inducing=few)):
        mean, std = with_hyperparameters(gp, [3.0], 1.5, 0.001).leave_one_block_out(np.arange(500))
        score = np.abs(t - mean) / std
        assert 0.7 < score[few].mean() / score[150:].mean() < 1.4


def test_fit_on_tabulated_distances_is_the_fit_on_the_kernel():
    import torch

    Z, t = data(30, 5)
    gp = ExactGP(Z, t, np.array([0, 0, 1, 1, 1]), np.zeros(30), (0.0, 1.0))
    kernel = gp._parts["covariance"].base_kernel
    with torch.no_grad():
        kernel.log_lengthscale.copy_(torch.tensor([0.3, 1.2]))
    plain = kernel(gp._x).to_dense()
    kernel.tabulate(gp._x)
    torch.testing.assert_close(kernel(gp._x).to_dense(), plain)


def test_calibration_rests_on_the_labels_that_chance_picked(extractor, world):
    """Labels that were chosen are flattering here: they lie on the trend, those that chance picked scatter."""
    rng = np.random.default_rng(1)
    drawn = {candidate.id for candidate in world[:20]}
    labels = [
        label(c, bulk_modulus=bulk_modulus(c.structure) * float(np.exp(0.5 * rng.normal())) if c.id in drawn else 30.0)
        for c in world
    ]
    factors = []
    for ids in (frozenset(), drawn):
        surrogate = GPSurrogate(extractor)
        factors.append(surrogate.fit(world, labels, picked_at_random=ids)["bulk_modulus/factor"])
    assert factors[1] > 1.2 * factors[0]


def test_distance_flags_what_is_unlike_the_labels(extractor, world):
    surrogate = GPSurrogate(extractor)
    surrogate.fit(world[:40], [label(candidate) for candidate in world[:40]])
    strange = Candidate(rocksalt("U", "As", 4.0))
    assert surrogate.distance([strange])[0] > 1
    np.testing.assert_allclose(surrogate.distance(world[:5]), 0, atol=1e-6)


def test_probability_of_stability_is_the_share_of_draws_from_the_posterior(extractor, world):
    surrogate = GPSurrogate(extractor)
    surrogate.fit(world[:30], [label(candidate) for candidate in world[:30]])
    found = surrogate.probability(world[30:], "e_above_hull", at_most=0.1)
    mean, std = surrogate.marginal(world[30:])
    draws = mean[:, 0] + std[:, 0] * np.random.default_rng(0).normal(size=(20_000, 30))
    np.testing.assert_allclose(found, (E_ABOVE_HULL.from_scale(draws) <= 0.1).mean(axis=0), atol=0.015)
    stable = np.array([e_above_hull(candidate.structure) <= 0.1 for candidate in world[30:]])
    assert found[stable].mean() > found[~stable].mean() + 0.3
    with pytest.raises(ConfigError, match="no surrogate predicts 'colour'"):
        surrogate.probability(world, "colour", at_most=1.0)


def test_save_and_load(extractor, world, tmp_path):
    surrogate = GPSurrogate(extractor)
    surrogate.adapt(world)
    surrogate.fit(world[:20], [label(candidate) for candidate in world[:20]])
    surrogate.save(tmp_path)
    loaded = GPSurrogate(extractor)
    loaded.load(tmp_path)
    for name in ("mean", "std"):
        np.testing.assert_allclose(
            getattr(loaded.predict(world), name), getattr(surrogate.predict(world), name), rtol=1e-10
        )
    labels = [label(candidate) for candidate in world[:25]]
    ours, theirs = surrogate.fit(world[:25], labels), loaded.fit(world[:25], labels)
    assert ours["bulk_modulus/new_mae"] == pytest.approx(theirs["bulk_modulus/new_mae"])


def test_a_checkpoint_of_other_features_or_a_damaged_one_is_refused(extractor, world, tmp_path):
    surrogate = GPSurrogate(extractor)
    with pytest.raises(CheckpointError, match="cannot read"):
        surrogate.load(tmp_path / "nothing")
    surrogate.save(tmp_path)
    other = FeatureExtractor(extractor.blocks[:2])
    with pytest.raises(CheckpointError, match="another"):
        GPSurrogate(other).load(tmp_path)
    (tmp_path / "surrogate.npz").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(CheckpointError, match="cannot read"):
        surrogate.load(tmp_path)
