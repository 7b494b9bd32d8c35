"""Whom to measure next where a figure of merit is the product of two measurements, and the second is the dear one.

The first factor is measured alone; whether the second is worth its price is decided then. Which crystal to begin with,
and which to finish, is then one question: Pandora's boxes (Weitzman, Econometrica 47, 641 (1979)). Each step has an
index, the gain per cost at which it would just be worth taking, and the step of the highest index is taken.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(24)  # probabilists' Gauss-Hermite
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
RATES = np.geomspace(1e-6, 10.0, 121)  # gains per cost among which an index is sought; merit is in eV, cost in calls


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


def index_to_begin(posteriors: Factors, threshold: float, costs: Costs) -> np.ndarray:
    """Index (n,) of measuring the first factor: the rate at which what the second may bring just pays for it.

    Args:
        posteriors: of crystals of which nothing is measured.
        threshold: merit above which a crystal counts.
        costs: of the steps.
    """
    mean, std = posteriors.mean[:, :1], posteriors.std[:, :1]
    first = mean + std * _NODES  # (n, nodes)
    gain = excess(first, *posteriors.given(first), threshold)
    found = np.zeros(len(first))
    for rate in RATES:  # the net value falls with the rate: the last at which it is not negative
        net = np.maximum(gain - rate * costs.second, 0.0) @ _WEIGHTS - rate * costs.first
        found = np.where(net >= 0, rate, found)
    return found


def index_to_finish(first: np.ndarray, posteriors: Factors, threshold: float, costs: Costs) -> np.ndarray:
    """Index (n,) of measuring the second factor where the first is known; `posteriors` are those from before."""
    return excess(first, *posteriors.given(first), threshold) / costs.second
