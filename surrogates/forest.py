"""A random forest beside a Gaussian process: two posteriors of one property, which err in different places.

A process assumes that similar crystals have similar properties, a forest that there are kinds of them. Of band gaps,
half of which are exactly 0, the first knows better which is the largest, the second which are near 1.3 eV
(docs/LOG.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from surrogates.posterior import Posterior, log_opinion_pool, log_score

if TYPE_CHECKING:
    from surrogates.exact import ExactGP

TREES = 100
COLUMNS = 1 / 3  # tried at each split, the usual choice for regression (Hastie et al. 2009, section 15.3)
DRAWN = 2000  # labels that a tree is grown from, at most: time grows faster than their number
FLOOR = 0.01  # of the scale of the labels: no forest is surer
WEIGHTS = (0.05, 0.25, 0.5, 0.75, 0.95)  # of the forest's posterior, that of the process being what is left of 1
PRIOR = 2.0  # Beta(3, 3): few labels leave both about equal weights


class Forest:
    """scikit-learn's random forest, with a standard deviation.

    The variance is that between the trees and the noise that they leave, estimated from labels that they have not seen.

    Args:
        Z: inputs of the labels, shape (n, D), finite.
        t: the labels, shape (n,), finite.
        blocks: a key for each label, shape (n,); equal keys are left out together.
        scale: of the labels, positive.
        seed: of the forest.
    """

    def __init__(self, Z: np.ndarray, t: np.ndarray, blocks: np.ndarray, scale: float, seed: int) -> None:
        from sklearn.ensemble import RandomForestRegressor

        drawn = min(len(t), DRAWN)
        self._forest = RandomForestRegressor(
            TREES, max_features=COLUMNS, max_samples=drawn, random_state=seed, n_jobs=1
        )
        self._forest.fit(_single(Z), t)
        mean, variance = self._unseen(Z, t, blocks)
        self._noise = max(float(((t - mean) ** 2 - variance).mean()), (FLOOR * scale) ** 2)
        self.held_out: Posterior = mean, np.sqrt(variance + self._noise)

    def predict(self, Z: np.ndarray) -> Posterior:
        """Mean and standard deviation of new labels (noise included), shape (n,) each."""
        trees = self._trees(Z)
        return trees.mean(axis=0), np.sqrt(trees.var(axis=0) + self._noise)

    def _trees(self, Z: np.ndarray) -> np.ndarray:
        """What each tree predicts, shape (trees, n)."""
        Z = _single(Z)
        return np.stack([tree.tree_.predict(Z)[:, 0] for tree in self._forest.estimators_])

    def _unseen(self, Z: np.ndarray, t: np.ndarray, blocks: np.ndarray) -> Posterior:
        """Mean and variance (n,) over the trees that no label of the same block has grown; all labels' if none."""
        block = np.unique(blocks, return_inverse=True)[1]
        seen = np.zeros((TREES, block.max() + 1), dtype=bool)
        for tree, drawn in enumerate(self._forest.estimators_samples_):
            seen[tree, block[drawn]] = True
        trees = np.ma.masked_array(self._trees(Z), mask=seen[:, block])
        return trees.mean(axis=0).filled(t.mean()), trees.var(axis=0).filled(t.var())


class StackedModel:
    """A Gaussian process and a random forest, stacked; used like `surrogates.exact.ExactGP`.

    Each posterior counts by its precision, and the forest's as much as labels left out favour (stacking: Yao et
    al., Bayesian Anal. 13, 917 (2018)).

    Args:
        gp: the process.
        Z: inputs of its labels, shape (n, D).
        t: the labels, shape (n,).
        offset: known part of each, shape (n,).
        blocks: a key for each label, shape (n,); equal keys are left out together.
        held_out: what the process predicts for each label without those of its block.
        seed: of the forest.

    Attributes:
        weight: of the forest, 0 to 1.
        held_out: what both predict for each label without those of its block, shape (n,) each.
    """

    def __init__(
        self,
        gp: ExactGP,
        Z: np.ndarray,
        t: np.ndarray,
        offset: np.ndarray,
        *,
        blocks: np.ndarray,
        held_out: Posterior,
        seed: int,
    ) -> None:
        self._gp = gp
        self._forest = Forest(Z, t - offset, blocks, gp.scale, seed)
        posteriors = {
            weight: log_opinion_pool(held_out, _above(self._forest.held_out, offset), weight) for weight in WEIGHTS
        }
        scores = {w: log_score(t, posterior) + PRIOR * np.log(w * (1 - w)) for w, posterior in posteriors.items()}
        self.weight = max(WEIGHTS, key=scores.__getitem__)
        self.held_out = posteriors[self.weight]

    def predict(self, Z: np.ndarray, offset: np.ndarray) -> Posterior:
        """Mean and standard deviation of new labels (noise included), shape (n,) each."""
        return self._with_forest(self._gp.predict(Z, offset), Z, offset)

    def joint(self, Z: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (n,) and covariance (n, n) of new labels: correlations are those of the process."""
        mean, covariance = self._gp.joint(Z, offset)
        own = np.sqrt(np.diagonal(covariance))
        mean, std = self._with_forest((mean, own), Z, offset)
        return mean, covariance * np.outer(std / own, std / own)

    def _with_forest(self, posterior: Posterior, Z: np.ndarray, offset: np.ndarray) -> Posterior:
        return log_opinion_pool(posterior, _above(self._forest.predict(Z), offset), self.weight)


def _above(posterior: Posterior, offset: np.ndarray) -> Posterior:
    """The posterior of what comes on top of a known part, as the posterior of the whole."""
    return posterior[0] + offset, posterior[1]


def _single(Z: np.ndarray) -> np.ndarray:
    """In the precision in which scikit-learn's trees compare, so that they need not convert for each."""
    return np.ascontiguousarray(Z, dtype=np.float32)
