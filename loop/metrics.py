"""Numbers that say whether a campaign works: hit rates, acceleration, calibration; with intervals and sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; NaN where there are no data."""

    value: float
    low: float
    high: float


def wilson(hits: int, n: int, confidence: float = CONFIDENCE) -> Interval:
    """A share with its Wilson score interval (E. B. Wilson, J. Am. Stat. Assoc. 22, 209 (1927)).

    Raises:
        ValueError: hits lie outside 0..n.
    """
    if not 0 <= hits <= n:
        raise ValueError(f"expected 0 <= hits <= n, got {hits=}, {n=}")
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    interval = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    return Interval(hits / n, float(interval.low), float(interval.high))


def rate_ratio(
    hits: tuple[int, int],
    baseline: tuple[int, int],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    draws: int = 20_000,
) -> Interval:
    """Ratio of two hit rates, each given as (hits, labels): how many labels of the baseline one label is worth.

    The interval is that of the Bayesian bootstrap (Rubin, Ann. Stat. 9, 130 (1981)) with Jeffreys' half pseudo-counts:
    rates are drawn from Beta(hits + 1/2, misses + 1/2). The plain bootstrap would give a shadow arm of four misses a
    rate of exactly zero, and the ratio no interval at all. The estimate is the plain ratio where the baseline has hits,
    else the median of the draws. NaN where an arm has no labels, and where neither arm has a hit.
    """
    (a, n), (b, m) = hits, baseline
    if n == 0 or m == 0 or a == b == 0:
        return Interval(math.nan, math.nan, math.nan)
    rng = np.random.default_rng(seed)
    ratio = rng.beta(a + 0.5, n - a + 0.5, draws) / rng.beta(b + 0.5, m - b + 0.5, draws)
    tail = (1 - confidence) / 2
    low, middle, high = np.quantile(ratio, [tail, 0.5, 1 - tail])
    return Interval((a / n) / (b / m) if b else float(middle), float(low), float(high))


Strata = Sequence[tuple[tuple[int, int], tuple[int, int]]]
"""One pair of (hits, labels) per repetition: of ours, and of what it is compared with."""


def pooled_ratio(strata: Strata, confidence: float = CONFIDENCE) -> Interval:
    """Ratio of two hit rates over several campaigns, compared within each (Mantel and Haenszel).

    The interval is Greenland's and Robins' (Biometrics 41, 55 (1985)): of labels drawn independently within campaigns,
    which says nothing of how campaigns differ. NaN without labels in both arms of some campaign, or without a hit.
    """
    counts = np.array([(a, n, b, m) for (a, n), (b, m) in strata if n and m], dtype=float).reshape(-1, 4)
    a, n, b, m = counts.T
    ours, theirs = float(np.sum(a * m / (n + m))), float(np.sum(b * n / (n + m)))
    if ours == 0 or theirs == 0:
        return Interval(math.nan, math.nan, math.nan)
    variance = float(np.sum(n * m * (a + b) / (n + m) ** 2 - a * b / (n + m))) / (ours * theirs)
    return _exponential(math.log(ours / theirs), stats.norm.ppf(0.5 + confidence / 2) * math.sqrt(variance))


def paired_ratio(strata: Strata, confidence: float = CONFIDENCE) -> Interval:
    """Geometric mean over campaigns of the ratio of two hit rates, with Student's interval: campaigns are the sample.

    Half a hit is added to each arm and half a label besides, as an arm of few labels may have no hit (Walter,
    Biometrika 62, 371 (1975)). NaN for no campaign with labels in both arms, no interval for one.
    """
    ratios = [math.log((a + 0.5) / (n + 0.5)) - math.log((b + 0.5) / (m + 0.5)) for (a, n), (b, m) in strata if n and m]
    found = student_mean(ratios, confidence)
    return Interval(*(math.exp(value) for value in (found.value, found.low, found.high)))


def student_mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Mean with Student's interval; NaN for no values, no interval for one."""
    data = np.asarray(values, dtype=float)
    if len(data) < 2 or np.ptp(data) == 0:
        return Interval(float(data.mean()) if len(data) else math.nan, math.nan, math.nan)
    low, high = stats.ttest_1samp(data, 0.0).confidence_interval(confidence)
    return Interval(float(data.mean()), float(low), float(high))


def _exponential(logarithm: float, half: float) -> Interval:
    return Interval(math.exp(logarithm), math.exp(logarithm - half), math.exp(logarithm + half))


def bootstrap_mean(values: Sequence[float], *, seed: int = 0, confidence: float = CONFIDENCE) -> Interval:
    """Mean with its percentile bootstrap interval; NaN for no values, a point for one."""
    data = np.asarray(values, dtype=float)
    if len(data) == 0:
        return Interval(math.nan, math.nan, math.nan)
    if len(data) == 1 or np.ptp(data) == 0:
        return Interval(float(data.mean()), float(data.mean()), float(data.mean()))
    found = stats.bootstrap(
        (data,),
        np.mean,
        confidence_level=confidence,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(data.mean()), float(found.low), float(found.high))


def acceleration_factor(curve: Sequence[float], reference: Sequence[float], target: float) -> float:
    """AF: calls the reference needs to reach a target, over the calls that the curve needs.

    Curves are best-so-far or cumulative values after 1, 2, ... calls (Rohr et al., Chem. Sci. 11, 2696 (2020)).
    Infinite where only the curve reaches it, 0 where only the reference does, NaN where neither does.
    """
    ours, theirs = _calls_to(curve, target), _calls_to(reference, target)
    if math.isinf(ours) and math.isinf(theirs):
        return math.nan
    return 0.0 if math.isinf(ours) else theirs / ours


def enhancement_factor(curve: Sequence[float], reference: Sequence[float], calls: int) -> float:
    """EF: the curve's value after some calls, over the reference's (Rohr et al. 2020); NaN where the latter is 0."""
    if not 1 <= calls <= min(len(curve), len(reference)):
        raise ValueError(f"expected 1 <= calls <= {min(len(curve), len(reference))}, got {calls=}")
    return float(curve[calls - 1] / reference[calls - 1]) if reference[calls - 1] else math.nan


def _calls_to(curve: Sequence[float], target: float) -> float:
    reached = np.flatnonzero(np.asarray(curve, dtype=float) >= target)
    return float(reached[0] + 1) if len(reached) else math.inf


# calibration of Gaussian predictions


def coverage(y: np.ndarray, mean: np.ndarray, std: np.ndarray, level: float) -> float:
    """Share of y, shape (n,), inside the central Gaussian interval of that level."""
    half = stats.norm.ppf(0.5 + level / 2) * std
    return float(np.mean(np.abs(y - mean) <= half))


def miscalibration_area(y: np.ndarray, mean: np.ndarray, std: np.ndarray, levels: int = 100) -> float:
    """Area between expected and observed share of y below each predicted quantile, 0 (perfect) to 0.5.

    Kuleshov et al., ICML 2018; as in uncertainty-toolbox (interval version): central intervals of rising level.
    """
    expected = np.linspace(0, 1, levels)
    observed = np.array([coverage(y, mean, std, level) for level in expected])
    return float(np.trapezoid(np.abs(observed - expected), expected))


def ence(y: np.ndarray, mean: np.ndarray, std: np.ndarray, bins: int = 10) -> float:
    """Expected normalised calibration error (Levi et al., Sensors 22, 5540 (2022)).

    Predictions are sorted by std into bins of equal size; in each, root mean variance is compared with the root mean
    squared error, relative to the former. With fewer than two predictions a bin, fewer bins are used.
    """
    order = np.argsort(std, kind="stable")
    parts = [part for part in np.array_split(order, max(1, min(bins, len(y) // 2))) if len(part)]
    rmv = np.array([np.sqrt(np.mean(std[part] ** 2)) for part in parts])
    rmse = np.array([np.sqrt(np.mean((y - mean)[part] ** 2)) for part in parts])
    return float(np.mean(np.abs(rmv - rmse) / rmv))


def spearman(y: np.ndarray, mean: np.ndarray) -> float:
    """Rank correlation; NaN where one side is constant or there are fewer than three."""
    if len(y) < 3 or np.ptp(y) == 0 or np.ptp(mean) == 0:
        return math.nan
    return float(stats.spearmanr(y, mean).statistic)


def calibration(y: np.ndarray, mean: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """How good predictions were, on labels that they had not seen. Arrays of shape (n,); no data give ``n=0`` only.

    Raises:
        ValueError: shapes differ, or a standard deviation is not positive.
    """
    if not y.shape == mean.shape == std.shape or y.ndim != 1:
        raise ValueError(f"expected three arrays of one shape (n,), got {y.shape=}, {mean.shape=}, {std.shape=}")
    keep = np.isfinite(y) & np.isfinite(mean) & np.isfinite(std)
    y, mean, std = y[keep], mean[keep], std[keep]
    if len(y) == 0:
        return {"n": 0.0}
    if (std <= 0).any():
        raise ValueError(f"standard deviations must be positive, the smallest is {std.min()}")
    return {
        "n": float(len(y)),
        "mae": float(np.mean(np.abs(y - mean))),
        "rmse": float(np.sqrt(np.mean((y - mean) ** 2))),
        "coverage50": coverage(y, mean, std, 0.5),
        "coverage90": coverage(y, mean, std, 0.9),
        "ence": ence(y, mean, std),
        "miscalibration_area": miscalibration_area(y, mean, std),
        "sharpness": float(np.sqrt(np.mean(std**2))),
        "nll": float(-np.mean(stats.norm.logpdf(y, mean, std))),
        "spearman": spearman(y, mean),
    }


# fronts and concentration --------------------------------------------------------------------------------------


def pareto_front(points: np.ndarray) -> np.ndarray:
    """Indices of the points, shape (n, m), that no other point dominates; higher is better in every column."""
    points = np.asarray(points, dtype=float)
    at_least = (points[:, None, :] >= points[None, :, :]).all(axis=2)
    better = (points[:, None, :] > points[None, :, :]).any(axis=2)
    return np.flatnonzero(~(at_least & better).any(axis=0))


def concentration(counts: Sequence[int]) -> float:
    """Herfindahl-Hirschman index of shares, 1/k for k equal ones to 1 for a single one; NaN for none."""
    total = sum(counts)
    return math.nan if total == 0 else float(sum((count / total) ** 2 for count in counts))
