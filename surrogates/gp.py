"""Gaussian processes as `loop.contracts.Surrogate`: one a property, on features of the unrelaxed candidate."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from loop.errors import ConfigError
from loop.metrics import calibration
from loop.values import Candidate, Evaluation, Prediction
from surrogates.beliefs import Belief
from surrogates.calibration import ENOUGH, Spread, conformal_factor, shift_weights
from surrogates.features import FeatureExtractor
from surrogates.forest import Seconded
from surrogates.properties import GPConfig, Property
from surrogates.scaling import InputScaler

if TYPE_CHECKING:
    from surrogates.exact import ExactGP

CHUNK = 8192  # crystals predicted at a time
REFERENCE = 1000  # unlabelled crystals on which calibration is meant to hold; more are drawn down to this
MIN_FIT = 8  # labels, about as many as there are hyperparameters


@dataclass(frozen=True)
class JointPrediction:
    """Joint normal belief in m properties of n candidates, each on its model scale (`Property.to_scale`).

    Properties are independent of each other: mean (n, m), covariance (m, n, n), float64.
    """

    mean: np.ndarray
    covariance: np.ndarray
    properties: tuple[Property, ...]


@dataclass
class _Fitted:
    """One property's process and the factors on its standard deviations."""

    process: ExactGP | Seconded
    left_out: Belief | None  # of each label without those of its formula; None below three labels
    factor: float
    spread: Spread

    def widths(self, offset: np.ndarray) -> np.ndarray:
        """Factors on standard deviations, shape (n,)."""
        return self.factor * self.spread(offset)


class GPSurrogate:
    """Independent exact Gaussian processes, seconded by forests, with recalibrated uncertainty.

    Behaviour on awkward labels (each tested): NaN, infinite and failed labels are left out of the property that lacks
    them and counted; several labels of one candidate are averaged; constant labels predict that constant with a
    standard deviation that shrinks towards, and stays above, 0; without labels the prior is predicted (`Property`),
    wide; with fewer than `MIN_FIT` labels hyperparameters stay at their priors' centres; constant feature columns are
    dropped.

    Args:
        extractor: features of candidates.
        config: settings.
    """

    def __init__(self, extractor: FeatureExtractor, config: GPConfig | None = None) -> None:
        self.extractor = extractor
        self.config = config or GPConfig()
        self._scaler: InputScaler | None = None  # of the crystals given to `adapt`
        self._reference = np.empty((0, len(extractor.names)))  # some of them
        self._ids: list[str] = []
        self._X = np.empty((0, len(extractor.names)))
        self._Y = np.empty((0, len(self.config.properties)))  # own units, NaN where there is no label
        self._blocks = np.empty(0, dtype=str)  # formulas: left out together when calibrating
        self._drawn = np.empty(0, dtype=bool)  # labels that chance picked
        self._hyperparameters: dict[str, dict[str, np.ndarray]] = {}
        self._fitted: dict[str, _Fitted] = {}
        self._input = InputScaler.fit(self._X, extractor.groups)
        self._condition(refit=True)

    @property
    def properties(self) -> tuple[Property, ...]:
        """What is predicted."""
        return self.config.properties

    @property
    def labels(self) -> np.ndarray:
        """Labels so far in own units, shape (n, m), NaN where a property was not measured."""
        return self._Y

    @property
    def drawn(self) -> np.ndarray:
        """Which labelled crystals chance picked, shape (n,)."""
        return self._drawn if len(self._drawn) == len(self._ids) else np.zeros(len(self._ids), dtype=bool)

    def left_out(self) -> tuple[np.ndarray, np.ndarray]:
        """What would be believed of each labelled crystal without the labels of its formula, shape (n, m) each.

        On the model scales; NaN where there is no label, or fewer than three.
        """
        mean, std = np.full((2, *self._Y.shape), np.nan)
        for j, prop in enumerate(self.properties):
            rows, fitted = np.flatnonzero(np.isfinite(prop.to_scale(self._Y[:, j]))), self._fitted[prop.name]
            if fitted.left_out is not None:
                mean[rows, j], std[rows, j] = fitted.left_out
                std[rows, j] *= fitted.widths(self._offset(prop, self._X[rows]))
        return mean, std

    def adapt(self, candidates: Sequence[Candidate]) -> None:
        """Tell what predictions are for: unlabelled crystals, such as a pool.

        Inputs are scaled by them (among few labelled crystals many columns are constant or ill-scaled), and
        uncertainties are calibrated for them, rather than for the labelled, whom a campaign did not choose at random.
        """
        X = self.extractor(candidates)
        self._scaler = InputScaler.fit(self._on_scale(X), self.extractor.groups)
        few = np.random.default_rng(self.config.seed).permutation(len(X))[:REFERENCE]
        self._reference = X[np.sort(few)]
        self._condition(refit=True)

    def fit(
        self,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        *,
        drawn: Collection[str] = frozenset(),
    ) -> dict[str, float]:
        """Learn from all labels so far; failures are ignored.

        Args:
            candidates: those that were evaluated, and any others.
            evaluations: any number for each candidate, matched by id, all of one fidelity; several of one
                candidate are averaged.
            drawn: ids of those that chance picked. Their residuals are like those of the crystals that predictions
                are for, which those of chosen crystals are not: calibration rests on them where there are some.

        Returns:
            For each property ``<name>/labels``, ``<name>/unusable``, ``<name>/factor`` and, left out by formula,
            ``<name>/cv_<metric>``; and for labels that are new since the last fit, predicted before they were seen,
            ``<name>/new_<metric>``. Errors in own units, coverage and the rest on the model scale.
        """
        metrics = self._look_ahead(candidates, evaluations)
        self._take(candidates, evaluations)
        self._drawn = np.array([id in drawn for id in self._ids], dtype=bool)
        return metrics | self._condition(refit=True)

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Mean and standard deviation of what the oracle would find, in own units, shape (n, m)."""
        scaled = zip(self.properties, *(part.T for part in self.marginal(candidates)), strict=True)
        columns = [prop.moments(mean, std) for prop, mean, std in scaled]
        mean, std = (np.column_stack([column[k] for column in columns]) for k in (0, 1))
        return Prediction(mean, std, tuple(p.name for p in self.properties), tuple(p.unit for p in self.properties))

    def marginal(self, candidates: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation on the model scales, shape (n, m) each."""
        X = self.extractor(candidates)
        mean, std = np.empty((2, len(X), len(self.properties)))
        for start in range(0, len(X), CHUNK):  # bounds memory at a few copies of a chunk's features
            rows = slice(start, start + CHUNK)
            Z = self._standardised(X[rows])
            for j, prop in enumerate(self.properties):
                fitted = self._fitted[prop.name]
                offset = self._offset(prop, X[rows])
                mean[rows, j], std[rows, j] = fitted.process.predict(Z, offset)
                std[rows, j] *= fitted.widths(offset)
        return mean, std

    def joint(self, candidates: Sequence[Candidate]) -> JointPrediction:
        """Joint belief in at most a few thousand candidates (memory: m n^2 numbers)."""
        X = self.extractor(candidates)
        Z = self._standardised(X)
        offsets = [self._offset(prop, X) for prop in self.properties]
        fitted = [self._fitted[prop.name] for prop in self.properties]
        parts = [one.process.joint(Z, offset) for one, offset in zip(fitted, offsets, strict=True)]
        widths = [one.widths(offset) for one, offset in zip(fitted, offsets, strict=True)]
        covariance = np.stack([part[1] * np.outer(w, w) for part, w in zip(parts, widths, strict=True)])
        return JointPrediction(np.column_stack([part[0] for part in parts]), covariance, self.properties)

    def probability(self, candidates: Sequence[Candidate], name: str, *, at_most: float) -> np.ndarray:
        """Probability (n,) that a property is at most a value (own unit): of stability, for the energy above the hull.

        Raises:
            ConfigError: the property is not predicted.
        """
        names = [prop.name for prop in self.properties]
        if name not in names:
            raise ConfigError(f"no surrogate predicts {name!r}; there are {', '.join(names)}")
        column = names.index(name)
        bound = self.properties[column].to_scale(np.array(at_most))
        mean, std = self.marginal(candidates)
        result: np.ndarray = norm.cdf((bound - mean[:, column]) / std[:, column])
        return result

    def distance(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """How far outside the labelled crystals each candidate lies, shape (n,); above 1 is out of distribution.

        Euclidean distance of standardised features to the nearest labelled crystal, over the 95 % quantile of the same
        among the labelled (to the nearest other one). Infinite below three labels.
        """
        from sklearn.neighbors import NearestNeighbors

        if len(self._X) < 3:
            return np.full(len(candidates), np.inf)
        labelled = self._standardised(self._X)
        nearest = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(labelled)
        usual = np.quantile(nearest.kneighbors(labelled)[0][:, 1], 0.95)
        near = nearest.kneighbors(self._standardised(self.extractor(candidates)), 1)[0][:, 0]
        result: np.ndarray = near / max(float(usual), 1e-12)
        return result

    def evaluate(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]) -> dict[str, float]:
        """Metrics of present predictions against labels they have not seen, ``<name>/<metric>`` (see `fit`)."""
        known = {candidate.id: candidate for candidate in candidates}
        values = self._values(known, evaluations)
        chosen = [known[id] for id in values]
        if not chosen:
            return {f"{prop.name}/n": 0.0 for prop in self.properties}
        mean, std = self.marginal(chosen)
        Y = np.array(list(values.values()))
        result: dict[str, float] = {}
        for j, prop in enumerate(self.properties):
            result |= _named(prop, "", _metrics(prop, Y[:, j], mean[:, j], std[:, j]))
        return result

    def save(self, path: Path) -> None:
        """Write labels, features of the labelled, scaling and hyperparameters into a folder (npz and JSON)."""
        from surrogates import saving

        saving.save(self, path)

    def load(self, path: Path) -> None:
        """Take over what `save` wrote, settings included.

        Raises:
            CheckpointError: missing, damaged, or made with other features.
        """
        from surrogates import saving

        saving.load(self, path)

    def _values(self, known: dict[str, Candidate], evaluations: Sequence[Evaluation]) -> dict[str, np.ndarray]:
        """Values (m,) by candidate id: the mean of good labels of one candidate, NaN where there is none."""
        collected: dict[str, list[list[float]]] = {}
        for evaluation in evaluations:
            if evaluation.ok and evaluation.candidate_id in known:
                row = [evaluation.value(prop.name) for prop in self.properties]
                collected.setdefault(evaluation.candidate_id, []).append(row)
        return {id: _mean(np.array(rows, dtype=float)) for id, rows in collected.items()}

    def _look_ahead(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]) -> dict[str, float]:
        seen = set(self._ids)
        new = [candidate for candidate in candidates if candidate.id not in seen]
        metrics = self.evaluate(new, evaluations)
        return {name.replace("/", "/new_", 1): value for name, value in metrics.items()}

    def _take(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]) -> None:
        known = {candidate.id: candidate for candidate in candidates}
        values = self._values(known, evaluations)
        chosen = [known[id] for id in values]
        self._ids = list(values)
        self._X = self.extractor(chosen) if chosen else np.empty((0, len(self.extractor.names)))
        self._Y = np.array(list(values.values())).reshape(-1, len(self.properties))
        self._blocks = np.array([candidate.formula for candidate in chosen])

    def _condition(self, *, refit: bool) -> dict[str, float]:
        """Rebuild every process from the labels; with `refit`, find hyperparameters and recalibrate."""
        self._input = self._scaler or InputScaler.fit(self._on_scale(self._X), self.extractor.groups)
        Z = self._standardised(self._X)
        metrics: dict[str, float] = {}
        for j, prop in enumerate(self.properties):
            metrics |= _named(prop, "", self._condition_one(prop, j, Z, refit=refit))
        return metrics

    def _condition_one(self, prop: Property, j: int, Z: np.ndarray, *, refit: bool) -> dict[str, float]:
        from surrogates.exact import ExactGP
        from surrogates.sparse import SparseGP

        t = prop.to_scale(self._Y[:, j])
        rows = np.flatnonzero(np.isfinite(t))
        unusable = len(t) - len(rows)
        rng = np.random.default_rng(self.config.seed)
        offset, blocks = self._offset(prop, self._X[rows]), self._blocks[rows]
        given = (Z[rows], t[rows], self._input.group, offset)
        prior = (prop.prior_mean, prop.prior_std)
        if len(rows) > self.config.max_labels:
            inducing = np.sort(rng.choice(len(rows), min(self.config.inducing, len(rows)), replace=False))
            gp: ExactGP = SparseGP(*given, prior, inducing=inducing)
        else:
            gp = ExactGP(*given, prior)
        former = self._hyperparameters.get(prop.name)
        fitted = True
        if former is not None and (self.config.warm_start or not refit):
            gp.load(former)
        if refit and len(rows) >= MIN_FIT:
            subset = rng.permutation(len(rows))[: self.config.max_fit]
            fitted = gp.fit(np.sort(subset), self.config.maxiter)
        self._hyperparameters[prop.name] = gp.hyperparameters()
        metrics = {"labels": float(len(rows)), "unusable": float(unusable), "fit_failed": float(not fitted)}
        process: ExactGP | Seconded = gp
        left_out = gp.leave_out(blocks) if len(rows) >= 3 else None
        if left_out is not None and self.config.forest and len(rows) >= MIN_FIT:
            process = Seconded(gp, Z[rows], t[rows], offset, blocks=blocks, left_out=left_out, seed=self.config.seed)
            left_out = process.left_out
            metrics["forest"] = process.weight
        factor, spread = 1.0, Spread.none()
        if left_out is not None:
            mean, std = left_out
            if self.config.calibrate:
                spread = Spread.fit(offset, t[rows], mean, std)
                std = std * spread(offset)
                factor = conformal_factor(t[rows], mean, std, self._weights(gp, Z, rows))
            cross = _metrics(prop, self._Y[rows, j], mean, std * factor)
            metrics |= {f"cv_{name}": value for name, value in cross.items()}
        self._fitted[prop.name] = _Fitted(process, left_out, factor, spread)
        return metrics | {"factor": factor}

    def _weights(self, gp: ExactGP, Z: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
        """How much the residual of each labelled crystal says about those that predictions are for.

        On simulated campaigns the density ratio of `shift_weights` left intervals of 90 % with a coverage of 73 to
        83 % after 200 chosen labels; the 20 that chance had picked alone kept it at 81 to 96 %.
        """
        if len(self._drawn) == len(Z) and self._drawn[rows].sum() >= ENOUGH:
            result: np.ndarray | None = self._drawn[rows].astype(float)
            return result
        if not len(self._reference):
            return None
        return shift_weights(gp.metric(Z[rows]), gp.metric(self._standardised(self._reference)))

    def _standardised(self, X: np.ndarray) -> np.ndarray:
        """Inputs of the kernels, shape (n, D)."""
        return self._input(self._on_scale(X), self.extractor.groups)

    def _on_scale(self, X: np.ndarray) -> np.ndarray:
        """Features with the offset columns on the model scales, on which distances between them mean most."""
        X = X.copy()
        for prop in self.properties:
            if prop.offset in self.extractor.names:
                column = self.extractor.names.index(prop.offset)
                X[:, column] = prop.to_scale(X[:, column])
        return X

    def _offset(self, prop: Property, X: np.ndarray) -> np.ndarray:
        """The known part of a property on its model scale; the labelled crystals' mean where it is missing."""
        if prop.offset is None or prop.offset not in self.extractor.names:
            return np.zeros(len(X))
        column = self.extractor.names.index(prop.offset)
        usual = prop.to_scale(self._X[:, column])
        known = usual[np.isfinite(usual)]
        offset = prop.to_scale(X[:, column])
        return np.where(np.isfinite(offset), offset, known.mean() if len(known) else 0.0)


def _mean(rows: np.ndarray) -> np.ndarray:
    """Mean over rows of what is finite, NaN where nothing is."""
    finite = np.isfinite(rows)
    total = np.where(finite, rows, 0.0).sum(axis=0)
    return np.where(finite.any(axis=0), total / np.maximum(finite.sum(axis=0), 1), np.nan)


def _metrics(prop: Property, y: np.ndarray, mean: np.ndarray, std: np.ndarray) -> dict[str, float]:
    """Calibration on the model scale; the two errors in the property's own unit."""
    t = prop.to_scale(y)
    found = calibration(t, mean, std)
    known = np.isfinite(t)
    if known.any():
        error = prop.moments(mean[known], std[known])[0] - y[known]
        found |= {"mae": float(np.abs(error).mean()), "rmse": float(np.sqrt((error**2).mean()))}
    return found


def _named(prop: Property, prefix: str, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prop.name}/{prefix}{name}": value for name, value in metrics.items()}
