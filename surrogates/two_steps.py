"""Whom to measure next where a figure of merit is the product of two measurements, and the second is the costly one.

The first factor is measured alone; whether the second is worth its price is decided then, by its gain per cost beside
that of beginning another crystal. The exact rule for boxes that are opened in two steps (Weitzman, Econometrica 47, 641
(1979)) was tried and spends too much on first factors of crystals that are merely uncertain (docs/LOG.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr


@dataclass(frozen=True)
class Costs:
    """Of the two steps, in any one unit: the ratio decides."""

    first: float = 1.0
    second: float = 3.0

    @property
    def both(self) -> float:
        """Of a crystal that takes both."""
        return self.first + self.second


@dataclass(frozen=True)
class Factors:
    """Posterior of the two factors of n crystals: the first normal, the second log-normal, their errors correlated.

    Attributes:
        mean: of the first (own unit) and of the logarithm of the second, shape (n, 2).
        std: likewise.
        correlation: of the errors of the two.
    """

    mean: np.ndarray
    std: np.ndarray
    correlation: float = 0.0

    def given(self, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the logarithm of the second factor, where the first (n, ...) is known."""
        place = [slice(None)] + [None] * (np.ndim(first) - 1)
        mean, std = ([column[tuple(place)] for column in part.T] for part in (self.mean, self.std))
        surprise = (first - mean[0]) / std[0]
        return mean[1] + self.correlation * std[1] * surprise, std[1] * np.sqrt(1 - self.correlation**2) * np.ones_like(
            first
        )


def excess(first: np.ndarray, log_mean: np.ndarray, log_std: np.ndarray, threshold: float) -> np.ndarray:
    """E[max(first * second - threshold, 0)] for a known first and a log-normal second factor (any one shape).

    The formula of Black and Scholes (J. Polit. Econ. 81, 637 (1973)); 0 where the first is not positive.
    """
    forward = first * np.exp(log_mean + log_std**2 / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = (np.log(np.maximum(first, 1e-12)) + log_mean - np.log(threshold)) / log_std
    gain = forward * ndtr(near + log_std) - threshold * ndtr(near)
    return np.where(first > 0, np.maximum(gain, 0.0), 0.0)


def index_to_finish(first: np.ndarray, posteriors: Factors, threshold: float, costs: Costs) -> np.ndarray:
    """Gain per cost (n,) of measuring the second factor where the first is known.

    Args:
        first: known values, (n,).
        posteriors: of both, those of the first from before it was known.
        threshold: merit above which a crystal counts.
        costs: of the steps.
    """
    return excess(first, *posteriors.given(first), threshold) / costs.second
