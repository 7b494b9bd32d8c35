"""A random forest beside a process: against scikit-learn, against counting by hand, and where each must win."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestRegressor

from surrogates.exact import ExactGP
from surrogates.forest import COLUMNS, FLOOR, TREES, Forest, StackedModel
from surrogates.posterior import log_opinion_pool, log_score

WIDTH = 12  # columns, of one group: as in the table of features few of them matter, and the process cannot tell which


def inputs(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, WIDTH))


def step(Z: np.ndarray) -> np.ndarray:
    """Two kinds of crystals: what trees are made for."""
    return np.where(Z[:, 0] > 0.2, 2.0, 0.0)


def seconded(Z: np.ndarray, t: np.ndarray, offset: np.ndarray | None = None) -> tuple[ExactGP, StackedModel]:
    offset, blocks = np.zeros(len(t)) if offset is None else offset, np.arange(len(t))
    gp = ExactGP(Z, t, np.zeros(WIDTH), offset, (0.0, 1.0))
    gp.fit(np.arange(len(t)), 50)
    return gp, StackedModel(gp, Z, t, offset, blocks=blocks, held_out=gp.leave_one_block_out(blocks), seed=0)


def test_log_score_is_the_normal_log_density_without_its_constant():
    from scipy.stats import norm

    t, mean, std = np.array([1.0, -2.0]), np.array([0.5, 0.0]), np.array([0.3, 2.0])
    expected = norm.logpdf(t, mean, std).sum() + 2 * 0.5 * np.log(2 * np.pi)
    assert log_score(t, (mean, std)) == pytest.approx(expected)


def test_a_weight_of_one_side_leaves_that_side_alone():
    first, second = (np.array([1.0]), np.array([0.5])), (np.array([3.0]), np.array([2.0]))
    assert log_opinion_pool(first, second, 0.0) == first
    assert log_opinion_pool(first, second, 1.0) == second


def test_mean_is_that_of_scikit_learn_and_the_variance_is_between_its_trees_and_noise():
    Z, new = inputs(60), inputs(20, 1)
    t = step(Z) + 0.1 * Z[:, 2]
    forest = Forest(Z, t, np.arange(60), 1.0, seed=3)
    theirs = RandomForestRegressor(TREES, max_features=COLUMNS, random_state=3).fit(Z, t)
    mean, std = forest.predict(new)
    np.testing.assert_allclose(mean, theirs.predict(new), rtol=1e-6)
    between = np.var([tree.predict(new) for tree in theirs.estimators_], axis=0)
    noise = std**2 - between
    np.testing.assert_allclose(noise, noise[0], rtol=1e-6)
    assert noise[0] > 0


def test_left_out_labels_are_predicted_by_trees_that_saw_none_of_their_block():
    Z = inputs(30)
    t, blocks = step(Z) + Z[:, 1], np.arange(30) // 2
    forest = Forest(Z, t, blocks, 1.0, seed=0)
    theirs = RandomForestRegressor(TREES, max_features=COLUMNS, random_state=0).fit(Z, t)
    pairs = zip(theirs.estimators_, theirs.estimators_samples_, strict=True)
    blind = [tree for tree, drawn in pairs if 14 not in drawn and 15 not in drawn]
    assert 0 < len(blind) < TREES
    for row in (14, 15):
        expected = np.mean([tree.predict(Z[[row]]) for tree in blind])
        assert forest.held_out[0][row] == pytest.approx(expected, rel=1e-6)


def test_labels_that_every_tree_has_seen_are_left_out_by_the_mean_of_all():
    Z, t = inputs(30), np.random.default_rng(2).normal(size=30)
    mean, std = Forest(Z, t, np.zeros(30), 1.0, seed=0).held_out
    np.testing.assert_allclose(mean, t.mean())
    np.testing.assert_allclose(std, np.sqrt(t.var() + FLOOR**2), rtol=1e-9)


def test_constant_labels_leave_a_deviation_above_zero():
    mean, std = Forest(inputs(20), np.full(20, 3.0), np.arange(20), 0.5, seed=0).predict(inputs(5, 1))
    np.testing.assert_allclose(mean, 3.0)
    np.testing.assert_allclose(std, 0.005)


def test_kinds_are_the_forest_s_and_slopes_the_process_s():
    Z, new = inputs(150), inputs(400, 1)
    by_kind, by_slope = (seconded(Z, label(Z)) for label in (step, lambda Z: Z.sum(axis=1)))
    assert by_kind[1].weight > 0.5 > by_slope[1].weight
    offset = np.zeros(len(new))
    alone, together = (np.abs(one.predict(new, offset)[0] - step(new)).mean() for one in by_kind)
    assert together < 0.9 * alone


def test_joint_posterior_has_the_marginal_ones_on_its_diagonal_and_the_correlations_of_the_process():
    Z, new = inputs(60), inputs(15, 1)
    offset = np.linspace(0, 5, 60)
    gp, both = seconded(Z, step(Z) + offset, offset)
    known = np.linspace(-3, 3, 15)
    mean, covariance = both.joint(new, known)
    marginal, std = both.predict(new, known)
    np.testing.assert_allclose(mean, marginal, rtol=1e-9)
    np.testing.assert_allclose(np.sqrt(np.diagonal(covariance)), std, rtol=1e-6)
    theirs, spread = Forest(Z, step(Z) + offset - offset, np.arange(60), gp.scale, seed=0).predict(new)
    np.testing.assert_allclose(
        marginal, log_opinion_pool(gp.predict(new, known), (theirs + known, spread), both.weight)[0]
    )
    own = gp.joint(new, known)[1]
    np.testing.assert_allclose(_correlations(covariance), _correlations(own), rtol=1e-9)


def _correlations(covariance: np.ndarray) -> np.ndarray:
    std = np.sqrt(np.diagonal(covariance))
    return covariance / np.outer(std, std)
