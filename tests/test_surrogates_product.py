"""A product of two properties: its moments, joint posterior and calibration against sampling and a known world."""

from __future__ import annotations

import numpy as np
import pytest

from loop.errors import CheckpointError, ConfigError
from loop.values import OK, Candidate, Evaluation, Quantity
from surrogates.acquisition import AcquisitionConfig, Committee, JointSurrogate, PoolAcquisition
from surrogates.features import FeatureExtractor
from surrogates.product import Moments, ProductSurrogate, log_opinion_pool
from surrogates.properties import GPConfig, Property
from surrogates.utility import Objective
from tests.fakes import ANIONS, CATIONS, rocksalt

FACTORS = (Property("epsilon", "1", "log", prior_mean=1.6, prior_std=0.6), Property("gap", "eV", prior_mean=3.0))
MERIT = Property("merit", "eV")


def crystals(n: int, seed: int):
    rng = np.random.default_rng(seed)
    pairs = [(str(rng.choice(CATIONS)), str(rng.choice(ANIONS))) for _ in range(n)]
    return [Candidate(rocksalt(*pair, float(rng.uniform(4, 7)))) for pair in pairs]


def truth(candidate, rng):
    """A gap that falls with the cell, and a constant that goes against it, with scatter that they share."""
    noise = rng.normal(0, 0.2)
    gap = 8.0 - candidate.structure.volume / len(candidate.structure) / 7 + noise
    return float(np.exp(1.5 + 0.05 * gap - noise)), float(gap)


def evaluations(candidates, seed: int = 0):
    rng = np.random.default_rng(seed)
    values = [truth(candidate, rng) for candidate in candidates]
    return [
        Evaluation(c.id, "t@1", "t", OK, {"epsilon": Quantity(e, "1"), "gap": Quantity(g, "eV")})
        for c, (e, g) in zip(candidates, values, strict=True)
    ], np.array([e * g for e, g in values])


@pytest.fixture(scope="module")
def fitted():
    extractor, labelled = FeatureExtractor(), crystals(80, 0)
    surrogate = ProductSurrogate(extractor, GPConfig(properties=FACTORS), MERIT)
    evaluated, _ = evaluations(labelled)
    metrics = surrogate.fit(labelled, evaluated, picked_at_random={c.id for c in labelled[:60]})
    return surrogate, metrics, extractor


def test_moments_are_those_of_samples():
    rng = np.random.default_rng(0)
    for correlation in (0.0, -0.6):
        draws = rng.multivariate_normal([3.0, 1.5], [[0.64, 0.8 * correlation], [0.8 * correlation, 1.0]], 400_000)
        moments = Moments((np.array([3.0]), np.array([1.5])), (np.array([0.8]), np.array([1.0])))
        mean, std = moments.product(correlation)
        assert mean[0] == pytest.approx(draws.prod(axis=1).mean(), abs=0.02)
        assert std[0] == pytest.approx(draws.prod(axis=1).std(), rel=0.01)


def test_two_posteriors_agree_on_the_surer_one_and_are_no_surer_together():
    mean, std = log_opinion_pool(
        (np.array([1.0, 1.0]), np.array([0.1, 1.0])), (np.array([3.0, 3.0]), np.array([10.0, 1.0]))
    )
    np.testing.assert_allclose(mean, [1.0002, 2.0], atol=1e-4)
    np.testing.assert_allclose(std, [np.sqrt(2) * 0.1, 1.0], rtol=1e-3)


def test_the_product_is_predicted_by_two_models(fitted):
    """Its mean lies between what the factors say and what the process of the product says."""
    surrogate, _, _ = fitted
    new = crystals(50, 21)
    mean, std = surrogate._processes.marginal(new)
    by_factors = surrogate._moments(mean, std).product(surrogate._correlation)[0]
    low, high = np.minimum(by_factors, mean[:, 2]), np.maximum(by_factors, mean[:, 2])
    found = surrogate.marginal(new)[0][:, 0]
    assert ((low - 1e-9 <= found) & (found <= high + 1e-9)).all()
    assert np.abs(found - by_factors).max() > 1e-3
    assert np.abs(found - mean[:, 2]).max() > 1e-3


def test_errors_that_go_together_are_noticed_and_intervals_cover(fitted):
    surrogate, metrics, _ = fitted
    assert metrics["merit/correlation"] < -0.35
    assert metrics["merit/labels"] == 80
    new = crystals(300, 5)
    mean, std = (part[:, 0] for part in surrogate.marginal(new))
    _, values = evaluations(new, 7)
    assert np.corrcoef(mean, values)[0, 1] > 0.8
    assert 0.84 <= (np.abs(values - mean) <= 1.645 * std).mean() <= 0.98


def test_joint_posterior_has_the_marginals_and_is_one(fitted):
    surrogate, _, _ = fitted
    new = crystals(40, 9)
    mean, std = surrogate.marginal(new)
    joint = surrogate.joint(new)
    np.testing.assert_allclose(joint.mean, mean)
    np.testing.assert_allclose(np.sqrt(np.diagonal(joint.covariance[0])), std[:, 0])
    assert np.linalg.eigvalsh(joint.covariance[0]).min() > -1e-8
    assert joint.properties == (MERIT,)


def test_the_sides_are_what_is_averaged_and_choose_by_themselves(fitted):
    surrogate, _, _ = fitted
    new = crystals(60, 13)
    first, second = surrogate.members
    assert isinstance(surrogate, Committee)
    assert isinstance(first, JointSurrogate)
    posteriors = [tuple(part[:, 0] for part in member.marginal(new)) for member in (first, second)]
    mean, std = log_opinion_pool(*posteriors)
    np.testing.assert_allclose(surrogate.marginal(new)[0][:, 0], mean)
    np.testing.assert_allclose(surrogate.marginal(new)[1][:, 0], std * surrogate._width)
    direct, direct_std = surrogate._processes.marginal(new)
    np.testing.assert_allclose(posteriors[1], (direct[:, 2], direct_std[:, 2]))
    for member, posterior in zip((first, second), posteriors, strict=True):
        joint = member.joint(new)
        np.testing.assert_allclose(joint.mean[:, 0], posterior[0])
        np.testing.assert_allclose(np.sqrt(np.diagonal(joint.covariance[0])), posterior[1])
        assert np.linalg.eigvalsh(joint.covariance[0]).min() > -1e-8
    chosen = PoolAcquisition(AcquisitionConfig("greedy", (Objective("merit"),), ())).select(new, surrogate, 10, seed=0)
    assert set(chosen[:5]) == set(np.argsort(-posteriors[0][0])[:5].tolist())
    others = np.setdiff1d(np.arange(60), chosen[:5])
    assert set(chosen[5:]) == set(others[np.argsort(-posteriors[1][0][others])[:5]].tolist())


def test_a_missing_factor_is_no_label_and_saving_restores(fitted, tmp_path):
    surrogate, _, extractor = fitted
    new = crystals(5, 11)
    surrogate.save(tmp_path)
    other = ProductSurrogate(extractor, GPConfig(properties=FACTORS), MERIT)
    other.load(tmp_path)
    np.testing.assert_allclose(other.predict(new).std, surrogate.predict(new).std)
    (tmp_path / "product.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"product\.json"):
        other.load(tmp_path)
    half = Evaluation(new[0].id, "t@1", "t", OK, {"epsilon": Quantity(4.0, "1")})
    few = ProductSurrogate(extractor, GPConfig(properties=FACTORS), MERIT)
    assert few.fit(new, [half])["merit/labels"] == 0
    assert np.isnan(few.labels).all()
    assert np.isfinite(few.predict(new).std).all()


def test_other_than_two_plain_factors_are_refused():
    with pytest.raises(ConfigError, match="product of two predicted"):
        ProductSurrogate(FeatureExtractor(), GPConfig(properties=FACTORS[:1]), MERIT)
