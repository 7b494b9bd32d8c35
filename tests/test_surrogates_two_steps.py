"""Two measurements, the second the costly one: gains against Monte Carlo."""

import numpy as np
import pytest

from surrogates.two_steps import Costs, Factors, excess, index_to_finish

COSTS = Costs(1.0, 3.0)


def factors(gap, log_constant, gap_std=0.5, log_std=0.2, correlation=0.0):
    mean, std = np.array([[gap, log_constant]]), np.array([[gap_std, log_std]])
    return Factors(mean, std, correlation)


@pytest.mark.parametrize(("first", "log_mean", "threshold"), [(3.0, 1.5, 12.0), (6.0, 0.9, 17.5), (0.5, 2.0, 17.5)])
def test_the_gain_of_a_known_first_factor_is_that_of_samples(first, log_mean, threshold):
    drawn = first * np.exp(log_mean + 0.3 * np.random.default_rng(0).standard_normal(2_000_000))
    expected = np.maximum(drawn - threshold, 0).mean()
    found = excess(np.array([first]), np.array([log_mean]), np.array([0.3]), threshold)[0]
    assert found == pytest.approx(expected, rel=0.02, abs=1e-3)


def test_no_gap_no_gain():
    assert excess(np.array([0.0, -1.0]), np.zeros(2), np.ones(2), 10.0).tolist() == [0.0, 0.0]


def test_what_the_gap_has_shown_decides_about_the_constant():
    gaps = np.array([2.0, 4.0, 6.0])
    posterior = Factors(np.tile([4.0, 1.4], (3, 1)), np.tile([1.0, 0.2], (3, 1)))
    finish = index_to_finish(gaps, posterior, 17.5, COSTS)
    drawn = np.exp(1.4 + 0.2 * np.random.default_rng(0).standard_normal(1_000_000))
    assert finish[1] == pytest.approx(np.maximum(4.0 * drawn - 17.5, 0).mean() / 3, rel=0.02)
    assert finish[0] < 1e-4 < 0.1 < finish[2]  # a small gap is left, a large one goes on


def test_a_gap_above_the_posterior_lowers_the_constant_where_their_errors_oppose():
    posterior = factors(4.0, 1.5, gap_std=1.0, correlation=-0.5)
    mean, std = posterior.given(np.array([5.0]))
    assert mean[0] == pytest.approx(1.5 - 0.5 * 0.2)
    assert std[0] == pytest.approx(0.2 * np.sqrt(0.75))
