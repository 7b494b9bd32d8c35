"""A figure of merit that is the product of two properties, each with a Gaussian process of its own.

A process of the product alone has errors of one size. Those of a product go with its factors: among crystals with a
large dielectric constant and a small gap the figure of merit is far less certain than among wide-gap oxides, and some
of the best are there. On a pool of 2,000 crystals, where one process stayed with the oxides, this finds both kinds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from loop.errors import CheckpointError, ConfigError
from loop.metrics import calibration
from loop.values import Candidate, Evaluation, Prediction
from surrogates.calibration import ENOUGH, conformal_factor
from surrogates.gp import GPSurrogate, JointPrediction
from surrogates.properties import Property

ABOUT = "product.json"
STRONGEST = 0.9  # correlation of the errors of the two factors: what few labels may at most suggest


@dataclass(frozen=True)
class Moments:
    """Means and standard deviations of the two factors, own units, shape (n,) each."""

    mean: tuple[np.ndarray, np.ndarray]
    std: tuple[np.ndarray, np.ndarray]

    def product(self, correlation: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation (n,) of the product of two normal variables (Goodman, JASA 55, 708 (1960))."""
        (a, b), (s, t) = self.mean, self.std
        shared = correlation * s * t
        variance = (a * t) ** 2 + (b * s) ** 2 + 2 * a * b * shared + (s * t) ** 2 + shared**2
        return a * b + shared, np.sqrt(np.maximum(variance, 1e-12 * (1 + (a * b) ** 2)))


class ProductSurrogate:
    """Predicts the product, on its own linear scale, with recalibrated uncertainty.

    Labels are those of the factors; a crystal that lacks one has no label. Behaviour on awkward labels is that of
    `GPSurrogate`.

    Args:
        factors: predicts two properties, on linear or logarithmic scales.
        prop: the product: its name, unit, and a linear scale.

    Raises:
        ConfigError: another number of properties, or another scale.
    """

    def __init__(self, factors: GPSurrogate, prop: Property) -> None:
        scales = [part.scale for part in factors.properties]
        if len(scales) != 2 or "soft" in scales or prop.scale != "linear":
            raise ConfigError(
                "a product wants two factors on linear or log scales and a linear scale of its own, got "
                f"{scales} and {prop.scale!r}"
            )
        self._factors, self._prop = factors, prop
        self._correlation, self._width = 0.0, 1.0

    @property
    def properties(self) -> tuple[Property, ...]:
        """The product."""
        return (self._prop,)

    @property
    def labels(self) -> np.ndarray:
        """Products so far, shape (n, 1), NaN where a factor was not measured."""
        return self._factors.labels.prod(axis=1, keepdims=True)

    def adapt(self, candidates: Sequence[Candidate]) -> None:
        """Tell what predictions are for: see `GPSurrogate.adapt`."""
        self._factors.adapt(candidates)
        self._recalibrate()

    def fit(
        self,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        *,
        drawn: Collection[str] = frozenset(),
    ) -> dict[str, float]:
        """Learn both factors from all labels so far: see `GPSurrogate.fit`, whose metrics come with the product's."""
        metrics = self._factors.fit(candidates, evaluations, drawn=drawn)
        return metrics | self._recalibrate()

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Mean and standard deviation of the product, shape (n, 1)."""
        return Prediction(*self.marginal(candidates), (self._prop.name,), (self._prop.unit,))

    def marginal(self, candidates: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the product, shape (n, 1) each."""
        mean, std = self._moments(*self._factors.marginal(candidates)).product(self._correlation)
        return mean[:, None], std[:, None] * self._width

    def joint(self, candidates: Sequence[Candidate]) -> JointPrediction:
        """Joint belief: between crystals as of independent factors, each crystal's variance as in `marginal`."""
        belief = self._factors.joint(candidates)
        std = np.sqrt(np.maximum(np.diagonal(belief.covariance, axis1=1, axis2=2).T, 0.0))
        moments = self._moments(belief.mean, std)
        mean, wanted = moments.product(self._correlation)
        a, b = moments.mean
        first, second = (self._spread(j, belief, moments.mean[j]) for j in (0, 1))
        covariance = first * second + first * np.outer(b, b) + second * np.outer(a, a)
        stretch = wanted * self._width / np.sqrt(np.diagonal(covariance))
        return JointPrediction(mean[:, None], (covariance * np.outer(stretch, stretch))[None], self.properties)

    def save(self, path: Path) -> None:
        """Write the factors' processes and what joins them into a folder."""
        from loop.files import write_text

        self._factors.save(path)
        about = {"correlation": self._correlation, "width": self._width}
        write_text(Path(path) / ABOUT, json.dumps(about) + "\n")

    def load(self, path: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or made with other features.
        """
        self._factors.load(path)
        try:
            about = json.loads((Path(path) / ABOUT).read_text(encoding="utf-8"))
            self._correlation, self._width = float(about["correlation"]), float(about["width"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"expected {ABOUT} in {path}, cannot read it: {error!r}; fit it again") from error

    def _moments(self, mean: np.ndarray, std: np.ndarray) -> Moments:
        """From the factors' model scales (n, 2) to own units."""
        pairs = [part.moments(mean[:, j], std[:, j]) for j, part in enumerate(self._factors.properties)]
        return Moments((pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1]))

    def _spread(self, j: int, belief: JointPrediction, mean: np.ndarray) -> np.ndarray:
        """Covariance (n, n) of a factor in its own unit: exact, as both scales are normal or log-normal."""
        if self._factors.properties[j].scale == "linear":
            return belief.covariance[j]
        return np.outer(mean, mean) * np.expm1(belief.covariance[j])

    def _recalibrate(self) -> dict[str, float]:
        """How the errors of the factors go together, and how wide the product's are, from labels left out."""
        self._correlation, self._width = 0.0, 1.0
        mean, std = self._factors.left_out()
        scaled = [part.to_scale(self._factors.labels[:, j]) for j, part in enumerate(self._factors.properties)]
        residual = (np.column_stack(scaled) - mean) / std
        rows = np.flatnonzero(np.isfinite(residual).all(axis=1))
        if len(rows) < ENOUGH:
            return {f"{self._prop.name}/labels": float(len(rows))}
        found = float(np.nan_to_num(np.corrcoef(residual[rows].T)[0, 1])) if residual[rows].std(axis=0).all() else 0.0
        self._correlation = float(np.clip(found, -STRONGEST, STRONGEST))
        centre, width = self._moments(mean[rows], std[rows]).product(self._correlation)
        labels, drawn = self.labels[rows, 0], self._factors.drawn[rows]
        if self._factors.config.calibrate:
            weights = drawn.astype(float) if drawn.sum() >= ENOUGH else None
            self._width = conformal_factor(labels, centre, width, weights)
        metrics = {f"cv_{name}": value for name, value in calibration(labels, centre, width * self._width).items()}
        metrics |= {"labels": float(len(rows)), "factor": self._width, "correlation": self._correlation}
        return {f"{self._prop.name}/{name}": value for name, value in metrics.items()}
