"""Selection against closed forms, BoTorch's analytic functions, and worlds whose best is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from botorch.acquisition.analytic import LogExpectedImprovement, UpperConfidenceBound
from botorch.utils.testing import MockModel, MockPosterior

from loop.contracts import Acquisition
from loop.errors import ConfigError
from loop.values import Candidate, Prediction
from surrogates.acquisition import ACQUISITIONS, AcquisitionConfig, PoolAcquisition
from surrogates.batch import PoolModel
from surrogates.posterior import JointPrediction
from surrogates.properties import BULK_MODULUS, E_ABOVE_HULL, Property
from surrogates.utility import (
    Constraint,
    Objective,
    bind,
    log_expected_improvement,
    upper_confidence_bound,
)
from tests.fakes import rocksalt

A, B = Property("a", "1"), Property("b", "1")
ONE = AcquisitionConfig(objectives=(Objective("a"),), constraints=())


class Posterior:
    """A surrogate whose posterior is given."""

    def __init__(self, mean, covariance, labels=None, properties=(A, B)):
        self.mean, self.covariance = np.asarray(mean, float), np.asarray(covariance, float)
        self.properties = properties[: self.mean.shape[1]]
        self.labels = np.empty((0, self.mean.shape[1])) if labels is None else np.asarray(labels, float)
        self.pool = pool(len(self.mean))

    def rows(self, candidates):
        ids = [candidate.id for candidate in self.pool]
        return [ids.index(candidate.id) for candidate in candidates]

    def marginal(self, candidates):
        rows = self.rows(candidates)
        return self.mean[rows], np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2).T)[rows]

    def joint(self, candidates):
        rows = self.rows(candidates)
        return JointPrediction(self.mean[rows], self.covariance[:, rows][:, :, rows], self.properties)

    def select(self, strategy, k, config=ONE, seed=0):
        return PoolAcquisition(replace(config, strategy=strategy)).select(self.pool, self, k, seed=seed)


_POOL: list[Candidate] = []


def pool(n):
    while len(_POOL) < n:
        _POOL.append(Candidate(rocksalt(a=4 + 0.01 * len(_POOL))))
    return _POOL[:n]


def diagonal(*stds):
    return np.stack([np.diag(np.square(std)) for std in stds])


def test_expected_improvement_known_values():
    # BoTorch's own test of EI: mean -0.5, variance 1, best 0 -> 0.19780
    assert np.exp(log_expected_improvement(np.array([-0.5]), np.array([1.0]), 0.0))[0] == pytest.approx(
        0.19780, abs=1e-5
    )
    assert np.exp(log_expected_improvement(np.array([2.0]), np.array([1e-6]), 0.5))[0] == pytest.approx(1.5)


def test_expected_improvement_and_bound_equal_botorch():
    mean, std = np.array([-1e5, -300.0, -12.0, -1.0, -0.2, 0.0, 3.0, 40.0]), np.linspace(0.5, 2, 8)
    posterior = MockPosterior(mean=torch.tensor(mean)[:, None, None], variance=torch.tensor(std**2)[:, None, None])
    X = torch.zeros(8, 1, 1, dtype=torch.float64)
    expected = LogExpectedImprovement(MockModel(posterior), best_f=torch.tensor(0.3, dtype=torch.float64))(X)
    np.testing.assert_allclose(log_expected_improvement(mean, std, 0.3), expected.numpy(), rtol=1e-6)
    bound = UpperConfidenceBound(MockModel(posterior), beta=2.0)(X)
    np.testing.assert_allclose(upper_confidence_bound(mean, std, 2.0), bound.numpy(), rtol=1e-12)


def test_target_utility_has_the_moments_of_a_folded_normal():
    goals = bind([Objective("a", "target", 1.0)], [], [A])
    mean, std = goals.moments(np.array([[1.0], [1.5]]), np.array([[0.4], [0.4]]))
    draws = -np.abs(np.random.default_rng(0).normal([[0.0], [0.5]], 0.4, size=(2, 400_000)))
    np.testing.assert_allclose(mean[:, 0], draws.mean(axis=1), atol=2e-3)
    np.testing.assert_allclose(std[:, 0], draws.std(axis=1), atol=2e-3)
    assert mean[0, 0] == pytest.approx(-0.4 * np.sqrt(2 / np.pi))


def test_bounds_are_given_in_own_units():
    goals = bind([Objective("bulk_modulus")], [Constraint("e_above_hull", at_most=0.1)], [E_ABOVE_HULL, BULK_MODULUS])
    t = np.column_stack([E_ABOVE_HULL.to_scale(np.array([0.099, 0.101])), [5.0, 5.0]])
    assert goals.kept(t).tolist() == [True, False]
    at_bound = np.array([[float(E_ABOVE_HULL.to_scale(np.array(0.1))), 5.0]])
    assert np.exp(goals.log_feasible(at_bound, np.ones((1, 2))))[0] == pytest.approx(0.5)


@pytest.mark.parametrize("strategy", ACQUISITIONS.ours)
def test_every_strategy_gives_distinct_rows_and_repeats_under_its_seed(strategy):
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 30, 30)) * 0.3
    posterior = Posterior(
        rng.normal(size=(30, 2)), root @ root.transpose(0, 2, 1) + 0.05 * np.eye(30), rng.normal(size=(8, 2))
    )
    assert isinstance(PoolAcquisition(replace(ONE, strategy=strategy)), Acquisition)
    for objectives in (
        (Objective("a"),),
        (Objective("a"), Objective("b", "minimise")),
        (Objective("a", "target", 0.2),),
    ):
        config = AcquisitionConfig(objectives=objectives, constraints=(Constraint("b", at_most=0.5),), samples=16)
        chosen = posterior.select(strategy, 5, config, seed=3)
        assert len(set(chosen)) == 5
        assert all(0 <= i < 30 for i in chosen)
        assert posterior.select(strategy, 5, config, seed=3) == chosen
    assert sorted(posterior.select(strategy, 99)) == list(range(30))
    assert posterior.select(strategy, 0) == []


@pytest.mark.parametrize("strategy", [name for name in ACQUISITIONS.ours if name != "random"])
def test_every_strategy_takes_the_certain_winner_first(strategy):
    mean = np.linspace(0, 1, 20)[:, None]
    mean[7] = 5.0
    assert Posterior(mean, diagonal(np.full(20, 0.01)), [[0.2], [0.4]]).select(strategy, 1) == [7]
    least = AcquisitionConfig(objectives=(Objective("a", "minimise"),), constraints=())
    assert Posterior(-mean, diagonal(np.full(20, 0.01)), [[-0.2], [-0.4]]).select(strategy, 1, least) == [7]
    near = AcquisitionConfig(objectives=(Objective("a", "target", 5.0),), constraints=())
    assert Posterior(mean, diagonal(np.full(20, 0.01)), [[0.2], [0.4]]).select(strategy, 1, near) == [7]


@pytest.mark.parametrize("strategy", [name for name in ACQUISITIONS.ours if name != "random"])
def test_constraints_are_not_traded_against_objectives(strategy):
    mean = np.column_stack([np.linspace(0, 1, 20), np.where(np.arange(20) < 10, 0.0, 3.0)])
    config = AcquisitionConfig(objectives=(Objective("a"),), constraints=(Constraint("b", at_most=1.0),))
    posterior = Posterior(mean, diagonal(np.full(20, 0.1), np.full(20, 0.2)), [[0.1, 0.0], [0.9, 3.0]])
    assert max(posterior.select(strategy, 4, config)) < 10


def test_probability_ranks_by_the_constraint_alone():
    mean = np.column_stack([np.arange(6.0), [0.9, 0.2, 0.5, 2.0, 0.7, 0.1]])
    config = AcquisitionConfig(objectives=(Objective("a"),), constraints=(Constraint("b", at_most=1.0),))
    posterior = Posterior(mean, diagonal(np.ones(6), np.full(6, 0.3)))
    assert posterior.select("pof", 6, config) == [5, 1, 2, 4, 0, 3]


def test_random_ignores_the_posterior():
    hits = [
        Posterior(np.eye(20)[:, :1] * 9, diagonal(np.ones(20))).select("random", 1, seed=seed)[0] for seed in range(200)
    ]
    assert len(set(hits)) == 20


@pytest.mark.parametrize("strategy", ["ucb", "qlogei"])
def test_joint_strategies_do_not_label_the_same_thing_twice(strategy):
    """Rows 0 to 9 are one thing (fully correlated) and look best; row 10 is independent and nearly as good."""
    covariance = np.full((11, 11), 1.0)
    covariance[10, :10] = covariance[:10, 10] = 0.0
    covariance += 1e-6 * np.eye(11)
    mean = np.append(np.full(10, 1.0), 0.8)[:, None]
    chosen = Posterior(mean, covariance[None], [[0.0], [0.5]]).select(strategy, 2, seed=1)
    assert 10 in chosen
    assert 10 not in Posterior(mean, covariance[None]).select("greedy", 2)


def test_batch_improvement_prefers_uncertainty_between_equal_means():
    std = np.full(12, 0.1)
    std[4] = 1.0
    assert Posterior(np.zeros((12, 1)), diagonal(std), [[0.0], [0.1]]).select("qlogei", 1) == [4]


def test_hypervolume_fills_the_gap_of_the_front():
    """The front is (0, 1), (1, 0); of certain candidates only one adds much: (0.9, 0.9)."""
    mean = np.array([[0.0, 0.9], [0.9, 0.0], [0.05, 0.95], [0.9, 0.9], [-1.0, -1.0], [0.3, 0.3]])
    config = AcquisitionConfig(objectives=(Objective("a"), Objective("b")), constraints=())
    posterior = Posterior(mean, diagonal(np.full(6, 0.01), np.full(6, 0.01)), [[0, 1], [1, 0], [0, 0]])
    assert posterior.select("qlognehvi", 1, config) == [3]


def test_pool_model_looks_up_the_joint_posterior():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(2, 6, 6))
    covariance = root @ root.transpose(0, 2, 1) + np.eye(6)
    mean = rng.normal(size=(6, 2))
    X = torch.tensor([[[4.0], [1.0]], [[0.0], [5.0]]])
    posterior = PoolModel(mean, covariance).posterior(X)
    np.testing.assert_allclose(posterior.mean[0], mean[[4, 1]])
    draws = posterior.rsample(torch.Size([40_000])).numpy()
    for j in range(2):
        np.testing.assert_allclose(
            np.cov(draws[:, 0, :, j].T), covariance[j][np.ix_([4, 1], [4, 1])], rtol=0.1, atol=0.15
        )


def test_a_surrogate_that_only_predicts_is_enough():
    class Plain:
        def predict(self, candidates):
            mean = np.array([[candidate.structure.volume] for candidate in candidates])
            return Prediction(mean, np.ones_like(mean), ("a",), ("1",))

    for strategy in ACQUISITIONS.ours:
        assert len(PoolAcquisition(replace(ONE, strategy=strategy)).select(pool(10), Plain(), 3, seed=0)) == 3
    assert PoolAcquisition(replace(ONE, strategy="greedy")).select(pool(10), Plain(), 2, seed=0) == [9, 8]


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match=r"expected one of random.*got 'best'"):
        PoolAcquisition(AcquisitionConfig(strategy="best"))
    posterior = Posterior(np.zeros((3, 1)), diagonal(np.ones(3)))
    with pytest.raises(ConfigError, match="no surrogate predicts 'hardness'"):
        posterior.select("greedy", 1, AcquisitionConfig(objectives=(Objective("hardness"),), constraints=()))
    with pytest.raises(ConfigError, match="at least one objective"):
        posterior.select("greedy", 1, AcquisitionConfig(objectives=(), constraints=()))
    with pytest.raises(ConfigError, match="target"):
        Objective("a", "target")
    with pytest.raises(ConfigError, match="either"):
        Constraint("a")


@pytest.mark.parametrize("strategy", ["greedy", "ucb", "logcei"])
def test_energies_too_good_to_be_true_come_last_by_default(strategy):
    energies, log_moduli = [-0.9, 0.02, 0.4], [5.9, 4.0, 5.5]  # the first is stiffest, and an error of the potential
    posterior = Posterior(
        np.column_stack([energies, log_moduli]),
        diagonal([0.02] * 3, [0.1] * 3),
        properties=(E_ABOVE_HULL, BULK_MODULUS),
    )
    assert posterior.select(strategy, 1, AcquisitionConfig())[0] == 1


class Panel:
    """Several predictions in one pool."""

    def __init__(self, *means):
        self.members = tuple(Posterior(np.array(mean)[:, None], 1e-6 * np.eye(len(mean))[None]) for mean in means)


@pytest.mark.parametrize("strategy", ["greedy", "ucb", "thompson", "qlogei"])
def test_members_of_a_committee_choose_in_turn(strategy):
    """Both hold the second for good; what the other has chosen is not chosen again."""
    panel = Panel([9.0, 8.0, 7.0, 0.0, 0.0, 0.0], [0.0, 8.5, 0.0, 8.0, 7.5, 7.0])
    choose = PoolAcquisition(replace(ONE, strategy=strategy))
    assert [set(chosen) for chosen in _halves(choose.select(pool(6), panel, 4, seed=0))] == [{0, 1}, {3, 4}]
    assert choose.select(pool(6), panel, 1, seed=0) == [1]
    assert choose.select(pool(6), panel, 3, seed=0)[0] == 0
    assert sorted(choose.select(pool(6), panel, 9, seed=0)) == list(range(6))
    assert choose.select([], panel, 3, seed=0) == choose.select(pool(6), panel, 0, seed=0) == []


def _halves(chosen):
    return chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]
