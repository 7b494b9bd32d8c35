"""Making the stated uncertainty true. How true it is, `loop.metrics.calibration` tells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import norm

LEVEL = 0.9  # the interval that users are shown
# A factor beyond these bounds says that the model is wrong, not its scale.
BOUNDS = (0.5, 3.0)
# From fewer residuals than this the 90 % quantile is the largest or second largest: it may warn, but not promise.
ENOUGH = 15
SPREADS = (0.2, 5.0)  # factors beyond these rest on too few residuals


def conformal_factor(
    y: np.ndarray, mean: np.ndarray, std: np.ndarray, weights: np.ndarray | None = None, level: float = LEVEL
) -> float:
    """Factor on standard deviations that makes the central interval of `level` cover that share of held-out labels.

    Split-conformal quantile of normalised residuals |y - mean| / std, with its finite-sample correction (Angelopoulos
    and Bates, arXiv 2107.07511, section 2), over the normal one. Weights make it a statement about other crystals than
    the labelled, which a campaign did not choose at random (Tibshirani et al., arXiv 1904.06019): the number of
    residuals becomes the effective one, (sum w)^2 / sum w^2.

    Args:
        y: held-out labels, shape (n,).
        mean: their predictions, shape (n,).
        std: stated standard deviations, shape (n,), positive.
        weights: density of the crystals that matter over that of the labelled, up to a factor, shape (n,).
        level: probability of the interval.

    Returns:
        Within `BOUNDS`; 1 for fewer than two labels, at least 1 for effectively fewer than `ENOUGH`.
    """
    if len(y) < 2:
        return 1.0
    weights = np.ones(len(y)) if weights is None else weights
    order = np.argsort(np.abs(y - mean) / std)
    scores, share = (np.abs(y - mean) / std)[order], np.cumsum(weights[order]) / weights.sum()
    effective = weights.sum() ** 2 / (weights**2).sum()
    wanted = min(1.0, level * (1 + 1 / effective))
    score = scores[min(int(np.searchsorted(share, wanted - 1e-12)), len(scores) - 1)]
    low = BOUNDS[0] if effective >= ENOUGH else 1.0
    return float(np.clip(score / norm.ppf(0.5 + level / 2), low, BOUNDS[1]))


@dataclass(frozen=True)
class ResidualScale:
    """How the size of residuals grows along one coordinate, relative to the stated standard deviations; mean 1.

    Relaxation takes a crystal that was drawn well a little way down and a poor one a long way, so errors of one size
    are too wide for the former, on whom decisions fall. Normalising residuals by a difficulty estimate keeps conformal
    intervals valid (Papadopoulos et al., doi 10.1007/3-540-36755-1_29). The estimate is the isotonic regression of
    |y - mean| / std, which assumes no more than that difficulty does not fall.
    """

    at: np.ndarray  # coordinates, ascending, shape (k,); none: 1 everywhere
    size: np.ndarray  # shape (k,)

    @classmethod
    def none(cls) -> ResidualScale:
        """The same everywhere."""
        return cls(np.empty(0), np.empty(0))

    @classmethod
    def fit(cls, coordinate: np.ndarray, y: np.ndarray, mean: np.ndarray, std: np.ndarray) -> ResidualScale:
        """From held-out labels, shape (n,) each; `none` for fewer than `ENOUGH`."""
        from sklearn.isotonic import IsotonicRegression

        scores = np.abs(y - mean) / std
        if len(y) < ENOUGH or np.ptp(coordinate) == 0 or not scores.any():
            return cls.none()
        # One more residual of the average size at each end, so that no interval rests on lucky ones alone.
        usual = scores.mean()
        low, high = coordinate.min(), coordinate.max()
        fitted = IsotonicRegression(increasing=True).fit([*coordinate, low, high], [*scores, usual, usual])
        size = fitted.y_thresholds_ / usual
        return cls(fitted.X_thresholds_, np.clip(size, *SPREADS))

    def __call__(self, coordinate: np.ndarray) -> np.ndarray:
        """Factors on standard deviations, shape (n,)."""
        if not len(self.at):
            return np.ones(len(coordinate))
        result: np.ndarray = np.interp(coordinate, self.at, self.size)
        return result


@dataclass(frozen=True)
class Calibrator:
    """Factors on stated standard deviations: how residuals grow along a coordinate, times one conformal factor."""

    factor: float
    spread: ResidualScale

    @classmethod
    def none(cls) -> Calibrator:
        """Stated standard deviations as they are."""
        return cls(1.0, ResidualScale.none())

    @classmethod
    def fit(
        cls, coordinate: np.ndarray, y: np.ndarray, mean: np.ndarray, std: np.ndarray, weights: np.ndarray | None
    ) -> Calibrator:
        """From held-out labels, shape (n,) each; for weights see `conformal_factor`."""
        spread = ResidualScale.fit(coordinate, y, mean, std)
        return cls(conformal_factor(y, mean, std * spread(coordinate), weights), spread)

    def widths(self, coordinate: np.ndarray) -> np.ndarray:
        """Factors on standard deviations, shape (n,)."""
        return self.factor * self.spread(coordinate)


def shift_weights(labelled: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Density of the reference over that of the labelled, at each labelled point, shape (n,).

    The nearest-neighbour estimate: how many reference points are closest to it (Loog, MLSP 2012,
    doi 10.1109/MLSP.2012.6349714).

    Args:
        labelled: shape (n, d), in a space where distance means unlikeness.
        reference: shape (r, d), a sample of the crystals that predictions are for.
    """
    from sklearn.neighbors import NearestNeighbors

    nearest = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(labelled)
    return np.bincount(nearest.kneighbors(reference)[1][:, 0], minlength=len(labelled)).astype(float)
