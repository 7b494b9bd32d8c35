from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error, root_mean_squared_error

from loop.metrics import (
    acceleration_factor,
    bootstrap_mean,
    calibration,
    concentration,
    coverage,
    ence,
    enhancement_factor,
    miscalibration_area,
    pareto_front,
    rate_ratio,
    spearman,
    wilson,
)


@pytest.mark.parametrize(("hits", "n"), [(0, 4), (1, 4), (4, 4), (7, 20), (50, 1000)])
def test_wilson_is_the_closed_form(hits, n):
    z = stats.norm.ppf(0.975)
    p = hits / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    found = wilson(hits, n)
    assert (found.value, found.low, found.high) == pytest.approx((p, max(0, centre - half), min(1, centre + half)))


def test_wilson_covers_as_often_as_it_says():
    """Newcombe, Stat. Med. 17, 857: close to nominal on average, also for few labels."""
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.05, 0.95, 4000)
    table = [wilson(hits, 12) for hits in range(13)]
    intervals = [table[rng.binomial(12, rate)] for rate in rates]
    covered = np.mean([x.low <= rate <= x.high for x, rate in zip(intervals, rates, strict=True)])
    assert 0.93 < covered < 0.97


def test_no_labels_give_no_rate():
    assert math.isnan(wilson(0, 0).value)
    assert math.isnan(rate_ratio((1, 2), (0, 0)).value)
    nothing = rate_ratio((0, 3), (0, 1))  # of nothing to nothing: no number, and no interval made of priors alone
    assert all(math.isnan(value) for value in (nothing.value, nothing.low, nothing.high))
    with pytest.raises(ValueError, match="hits=3, n=2"):
        wilson(3, 2)


def test_rate_ratio_of_many_labels_is_the_normal_approximation():
    """Katz et al., Biometrics 34, 469: log ratio with variance 1/a - 1/n + 1/b - 1/m."""
    a, n, b, m = 600, 1000, 300, 1000
    half = 1.96 * math.sqrt(1 / a - 1 / n + 1 / b - 1 / m)
    found = rate_ratio((a, n), (b, m), seed=1)
    assert found.value == pytest.approx(2.0)
    assert found.low == pytest.approx(2 * math.exp(-half), rel=0.02)
    assert found.high == pytest.approx(2 * math.exp(half), rel=0.02)


def test_rate_ratio_of_few_labels_is_wide_and_finite():
    found = rate_ratio((6, 6), (0, 3), seed=0)
    assert math.isfinite(found.value)
    assert found.low > 1  # six of six against none of three is something
    equal = rate_ratio((3, 6), (1, 2), seed=0)
    assert equal.low < 1 < equal.high
    assert equal.value == pytest.approx(1.0)


def test_rate_ratio_has_its_seed():
    assert rate_ratio((3, 9), (1, 4), seed=5) == rate_ratio((3, 9), (1, 4), seed=5)
    assert rate_ratio((3, 9), (1, 4), seed=5) != rate_ratio((3, 9), (1, 4), seed=6)


def test_the_bootstrap_mean_is_the_normal_interval_of_many():
    data = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap_mean(data.tolist(), seed=1)
    error = 1.96 * data.std(ddof=1) / 20
    assert found.value == pytest.approx(data.mean())
    assert (found.low, found.high) == pytest.approx((data.mean() - error, data.mean() + error), abs=0.03)
    assert bootstrap_mean([2.0]).high == 2.0
    assert math.isnan(bootstrap_mean([]).value)


@pytest.mark.parametrize(
    ("curve", "reference", "target", "factor"),
    [
        pytest.param([0, 1, 2, 3], [0, 0, 0, 1, 1, 2], 2, 2.0, id="twice-as-fast"),
        pytest.param([0, 1], [0, 0, 0], 1, math.inf, id="only-ours"),
        pytest.param([0, 0], [0, 1], 1, 0.0, id="only-theirs"),
        pytest.param([3], [0, 3], 3, 2.0, id="first-call"),
    ],
)
def test_acceleration_counts_calls(curve, reference, target, factor):
    assert acceleration_factor(curve, reference, target) == factor


def test_acceleration_and_enhancement_without_data():
    assert math.isnan(acceleration_factor([0], [0], 1))
    assert enhancement_factor([1, 4], [1, 2], 2) == 2.0
    assert math.isnan(enhancement_factor([1], [0], 1))
    with pytest.raises(ValueError, match="calls=3"):
        enhancement_factor([1, 2], [1, 2], 3)


@pytest.fixture(scope="module")
def honest():
    """Predictions that are what they say: y drawn from N(mean, std)."""
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=20_000), rng.uniform(0.5, 2, 20_000)
    return rng.normal(mean, std), mean, std


def test_honest_predictions_are_calibrated(honest):
    found = calibration(*honest)
    assert found["coverage50"] == pytest.approx(0.5, abs=0.01)
    assert found["coverage90"] == pytest.approx(0.9, abs=0.01)
    assert found["ence"] < 0.03
    assert found["miscalibration_area"] < 0.01
    assert found["nll"] == pytest.approx(np.mean(0.5 * np.log(2 * np.pi * np.e * honest[2] ** 2)), abs=0.02)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_over_and_underconfidence_have_their_closed_form(honest, factor):
    y, mean, std = honest
    z = stats.norm.ppf(0.95)
    assert coverage(y, mean, factor * std, 0.9) == pytest.approx(2 * stats.norm.cdf(z * factor) - 1, abs=0.01)
    assert ence(y, mean, factor * std) == pytest.approx(abs(factor - 1) / factor, abs=0.03)
    levels = np.linspace(0, 1, 2001)[1:-1]
    observed = 2 * stats.norm.cdf(factor * stats.norm.ppf(0.5 + levels / 2)) - 1
    area = np.trapezoid(np.abs(observed - levels), levels)
    assert miscalibration_area(y, mean, factor * std) == pytest.approx(area, abs=0.01)


def test_errors_are_those_of_sklearn(honest):
    y, mean, std = (array[:500] for array in honest)
    found = calibration(y, mean, std)
    assert found["mae"] == pytest.approx(mean_absolute_error(y, mean))
    assert found["rmse"] == pytest.approx(root_mean_squared_error(y, mean))
    assert found["spearman"] == pytest.approx(stats.spearmanr(y, mean).statistic)


def test_unusable_predictions_are_left_out_or_refused():
    nan = math.nan
    found = calibration(np.array([1.0, nan, 3.0]), np.array([1.0, 2.0, nan]), np.ones(3))
    assert found["n"] == 1
    assert calibration(*np.zeros((3, 0))) == {"n": 0.0}
    with pytest.raises(ValueError, match="must be positive"):
        calibration(np.ones(2), np.ones(2), np.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="shape"):
        calibration(np.ones(2), np.ones(3), np.ones(2))
    assert math.isnan(spearman(np.ones(5), np.arange(5.0)))
    assert math.isnan(spearman(np.arange(2.0), np.arange(2.0)))
    assert spearman(np.arange(3.0), -np.arange(3.0)) == -1


def test_the_pareto_front_is_what_nothing_dominates():
    points = np.random.default_rng(3).normal(size=(60, 2))
    front = set(pareto_front(points).tolist())
    for index, point in enumerate(points):
        dominated = any((other >= point).all() and (other > point).any() for other in points)
        assert (index in front) != dominated
    assert pareto_front(np.array([[1.0, 1.0], [1.0, 1.0]])).tolist() == [0, 1]


def test_concentration():
    assert concentration([5, 5, 5, 5]) == 0.25
    assert concentration([7]) == 1.0
    assert math.isnan(concentration([]))
