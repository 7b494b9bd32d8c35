"""Normal posteriors of one quantity, and what two of them say together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surrogates.properties import Property

Posterior = tuple[np.ndarray, np.ndarray]
"""Mean and standard deviation, shape (n,) each."""


@dataclass(frozen=True)
class JointPrediction:
    """Joint normal posterior of m properties of n candidates, each on its model scale (`Property.to_scale`).

    Properties are independent of each other: mean (n, m), covariance (m, n, n), float64.
    """

    mean: np.ndarray
    covariance: np.ndarray
    properties: tuple[Property, ...]


def log_opinion_pool(first: Posterior, second: Posterior, weight: float = 0.5) -> Posterior:
    """Two posteriors of one quantity as one: weighted by precision (Bates and Granger, Oper. Res. Q. 20, 451 (1969)).

    Their errors come from the same labels and so go together: the precision is the mean of the two and not their sum.
    This is the normal density closest to both, and the logarithmic opinion pool (Genest and Zidek, Stat. Sci. 1, 114
    (1986)).

    Args:
        first: mean and standard deviation, shape (n,) each.
        second: likewise.
        weight: of the second; that of the first is 1 - weight.
    """
    (m, s), (k, t) = first, second
    p, q = (1 - weight) * s**-2, weight * t**-2
    return (p * m + q * k) / (p + q), (p + q) ** -0.5


def log_score(t: np.ndarray, posterior: Posterior) -> float:
    """Sum over labels t (n,) of the logarithm of their normal density, without its constant."""
    mean, std = posterior
    return float(-(0.5 * ((t - mean) / std) ** 2 + np.log(std)).sum())
