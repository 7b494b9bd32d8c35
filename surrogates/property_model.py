"""One property's model: a Gaussian process, a random forest beside it, and calibrated widths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from loop.metrics import calibration
from surrogates.calibration import Calibrator
from surrogates.forest import StackedModel
from surrogates.posterior import Posterior
from surrogates.properties import GPConfig, Property

if TYPE_CHECKING:
    from surrogates.exact import ExactGP

MIN_FIT = 8  # labels, about as many as there are hyperparameters
Hyperparameters = dict[str, np.ndarray]
Weights = Callable[["ExactGP"], np.ndarray | None]


@dataclass(frozen=True)
class Labels:
    """Usable labels of one property, n of them.

    Attributes:
        Z: standardised inputs, shape (n, D).
        t: labels on the model scale, shape (n,).
        y: the same in the property's own unit, shape (n,).
        offset: known part of each, on the model scale, shape (n,).
        blocks: a key for each label, shape (n,); equal keys are left out together.
        group: index of the group of each input column, shape (D,).
    """

    Z: np.ndarray
    t: np.ndarray
    y: np.ndarray
    offset: np.ndarray
    blocks: np.ndarray
    group: np.ndarray

    def __len__(self) -> int:
        return len(self.t)


@dataclass(frozen=True)
class PropertyModel:
    """Predicts one property on its model scale.

    Attributes:
        prop: the property.
        process: the Gaussian process, or the process and a forest stacked.
        hyperparameters: of the process.
        calibrator: factors on standard deviations.
        held_out: prediction of each label without those of its block, not calibrated; None below three labels.
        metrics: of the fit: ``fit_failed``, ``forest``, ``factor`` and, left out by block, ``cv_<metric>``.
    """

    prop: Property
    process: ExactGP | StackedModel
    hyperparameters: Hyperparameters
    calibrator: Calibrator
    held_out: Posterior | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        prop: Property,
        labels: Labels,
        config: GPConfig,
        *,
        former: Hyperparameters | None,
        refit: bool,
        weights: Weights,
    ) -> PropertyModel:
        """Condition on labels; with `refit`, find hyperparameters.

        Args:
            prop: the property.
            labels: usable ones; fewer than `MIN_FIT` leave hyperparameters at their priors' centres.
            config: settings.
            former: hyperparameters to begin from.
            refit: false: keep `former`.
            weights: what the residual of each label counts in calibration (see `conformal_factor`), from the process.
        """
        rng = np.random.default_rng(config.seed)
        gp = _process(prop, labels, config, rng)
        if former is not None and (config.warm_start or not refit):
            gp.load(former)
        fitted = True
        if refit and len(labels) >= MIN_FIT:
            subset = rng.permutation(len(labels))[: config.max_fit]
            fitted = gp.fit(np.sort(subset), config.maxiter)
        process: ExactGP | StackedModel = gp
        metrics = {"fit_failed": float(not fitted)}
        held_out = gp.leave_one_block_out(labels.blocks) if len(labels) >= 3 else None
        if held_out is not None and config.forest and len(labels) >= MIN_FIT:
            process = StackedModel(
                gp, labels.Z, labels.t, labels.offset, blocks=labels.blocks, held_out=held_out, seed=config.seed
            )
            held_out = process.held_out
            metrics["forest"] = process.weight
        calibrator = Calibrator.none()
        if held_out is not None:
            mean, std = held_out
            if config.calibrate:
                calibrator = Calibrator.fit(labels.offset, labels.t, mean, std, weights(gp))
            cross = metrics_of(prop, labels.y, mean, std * calibrator.widths(labels.offset))
            metrics |= {f"cv_{name}": value for name, value in cross.items()}
        metrics["factor"] = calibrator.factor
        return cls(prop, process, gp.hyperparameters(), calibrator, held_out, metrics)

    def predict(self, Z: np.ndarray, offset: np.ndarray) -> Posterior:
        """Mean and calibrated standard deviation, shape (n,) each."""
        mean, std = self.process.predict(Z, offset)
        return mean, std * self.calibrator.widths(offset)

    def joint(self, Z: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (n,) and calibrated covariance (n, n)."""
        mean, covariance = self.process.joint(Z, offset)
        widths = self.calibrator.widths(offset)
        return mean, covariance * np.outer(widths, widths)

    def with_factor(self, factor: float) -> PropertyModel:
        """The same with another conformal factor, such as one that was saved."""
        return replace(self, calibrator=replace(self.calibrator, factor=factor))


def _process(prop: Property, labels: Labels, config: GPConfig, rng: np.random.Generator) -> ExactGP:
    """Exact, or sparse with inducing points where there are too many labels for that."""
    from surrogates.exact import ExactGP
    from surrogates.sparse import SparseGP

    given = (labels.Z, labels.t, labels.group, labels.offset)
    prior = (prop.prior_mean, prop.prior_std)
    if len(labels) <= config.max_labels:
        return ExactGP(*given, prior)
    inducing = np.sort(rng.choice(len(labels), min(config.inducing, len(labels)), replace=False))
    return SparseGP(*given, prior, inducing=inducing)


def metrics_of(prop: Property, y: np.ndarray, mean: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """Calibration on the model scale; the two errors in the property's own unit.

    Args:
        prop: the property.
        y: labels in its own unit, shape (n,), NaN where there is none.
        mean: predictions on the model scale, shape (n,).
        std: their standard deviations, shape (n,).
    """
    t = prop.to_scale(y)
    found = calibration(t, mean, std)
    known = np.isfinite(t)
    if known.any():
        error = prop.moments(mean[known], std[known])[0] - y[known]
        found |= {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}
    return found
