"""Making the stated uncertainty true. How true it is, `loop.metrics.calibration` tells."""

from __future__ import annotations

import numpy as np
from scipy.stats import norm

LEVEL = 0.9  # the interval that users are shown
# A factor beyond these bounds says that the model is wrong, not its scale.
BOUNDS = (0.5, 3.0)
# From fewer residuals than this the 90 % quantile is one of the three largest: it may warn, but not promise.
ENOUGH = 30


def conformal_factor(y: np.ndarray, mean: np.ndarray, std: np.ndarray, level: float = LEVEL) -> float:
    """Factor on standard deviations that makes the central interval of `level` cover that share of held-out labels.

    Split-conformal quantile of normalised residuals with its finite-sample correction: the ceil((n + 1) level)-th
    smallest of |y - mean| / std (Angelopoulos and Bates, arXiv 2107.07511, section 2), over the normal one.

    Args:
        y: held-out labels, shape (n,).
        mean: their predictions, shape (n,).
        std: stated standard deviations, shape (n,), positive.
        level: probability of the interval.

    Returns:
        Within `BOUNDS`; 1 for fewer than two labels, at least 1 for fewer than `ENOUGH`.
    """
    n = len(y)
    if n < 2:
        return 1.0
    scores = np.sort(np.abs(y - mean) / std)
    rank = min(n, int(np.ceil((n + 1) * level)))
    low, high = BOUNDS if n >= ENOUGH else (1.0, BOUNDS[1])
    return float(np.clip(scores[rank - 1] / norm.ppf(0.5 + level / 2), low, high))
