"""Is the stated uncertainty true? Metrics of calibration, and the factor that mends it.

All functions take labels, predicted means and standard deviations of shape (n,), on one scale.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import norm, spearmanr

LEVELS = np.linspace(0.05, 0.95, 19)
RECALIBRATION_LEVEL = 0.9  # the interval that users are shown
# A factor from a handful of residuals is itself a guess; beyond these bounds the model is wrong, not the scale.
FACTOR_BOUNDS = (0.5, 3.0)
BINS = 10


def coverage(y: np.ndarray, mean: np.ndarray, std: np.ndarray, level: float) -> float:
    """Share of labels inside the central interval of a probability; `level` itself where the uncertainty is true."""
    half = norm.ppf(0.5 + level / 2)
    return float(np.mean(np.abs(y - mean) <= half * std))


def miscalibration_area(y: np.ndarray, mean: np.ndarray, std: np.ndarray) -> float:
    """Area between the curve of observed over stated coverage and the diagonal; 0 is best, 0.5 is worst.

    Chung et al., Uncertainty Toolbox, arXiv 2109.10254.
    """
    observed = np.array([coverage(y, mean, std, level) for level in LEVELS])
    grid = np.concatenate([[0.0], LEVELS, [1.0]])
    gap = np.concatenate([[0.0], np.abs(observed - LEVELS), [0.0]])
    return float(np.trapezoid(gap, grid))


def ence(y: np.ndarray, mean: np.ndarray, std: np.ndarray, bins: int = BINS) -> float:
    """Expected normalised calibration error: mean over bins of |RMV - RMSE| / RMV, bins of equal size by stated std.

    Levi et al., Sensors 22, 5540 (2022), doi 10.3390/s22155540. With fewer than two labels a bin there are fewer bins.
    """
    parts = np.array_split(np.argsort(std), max(1, min(bins, len(y) // 2)))
    stated = np.array([np.sqrt(np.mean(std[part] ** 2)) for part in parts])
    found = np.array([np.sqrt(np.mean((y[part] - mean[part]) ** 2)) for part in parts])
    return float(np.mean(np.abs(stated - found) / stated))


def rank_correlation(y: np.ndarray, mean: np.ndarray) -> float:
    """Spearman's coefficient; 0 where one side is constant, for then the ranking says nothing."""
    if len(y) < 2 or np.ptp(y) == 0 or np.ptp(mean) == 0:
        return 0.0
    return float(spearmanr(y, mean).statistic)


def metrics(y: np.ndarray, mean: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """Everything that a round reports of a set of predictions; only the count where there is no label."""
    y, mean, std = (np.asarray(array, dtype=float) for array in (y, mean, std))
    known = ~np.isnan(y)
    y, mean, std = y[known], mean[known], std[known]
    if not len(y):
        return {"n": 0.0}
    z = (y - mean) / std
    return {
        "n": float(len(y)),
        "mae": float(np.mean(np.abs(y - mean))),
        "rmse": float(np.sqrt(np.mean((y - mean) ** 2))),
        "spearman": rank_correlation(y, mean),
        "coverage_50": coverage(y, mean, std, 0.5),
        "coverage_90": coverage(y, mean, std, 0.9),
        "ence": ence(y, mean, std),
        "miscalibration_area": miscalibration_area(y, mean, std),
        "sharpness": float(np.sqrt(np.mean(std**2))),
        "nlpd": float(np.mean(0.5 * z**2 + np.log(std) + 0.5 * np.log(2 * np.pi))),
    }


def conformal_factor(y: np.ndarray, mean: np.ndarray, std: np.ndarray, level: float = RECALIBRATION_LEVEL) -> float:
    """Factor on standard deviations that makes the central interval of `level` cover that share of held-out labels.

    Split-conformal quantile of normalised residuals with its finite-sample correction: the ceil((n + 1) level)-th
    smallest of |y - mean| / std (Angelopoulos and Bates, arXiv 2107.07511, section 2). Bounded by `FACTOR_BOUNDS`; 1
    where fewer than two labels are given.
    """
    n = len(y)
    if n < 2:
        return 1.0
    scores = np.sort(np.abs(y - mean) / std)
    rank = min(n, int(np.ceil((n + 1) * level)))
    return float(np.clip(scores[rank - 1] / norm.ppf(0.5 + level / 2), *FACTOR_BOUNDS))
