"""Gaussian processes as `loop.contracts.Surrogate`: one per property, on features of the unrelaxed candidate."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import norm

from loop.errors import ConfigError
from loop.values import Candidate, Evaluation, Prediction
from surrogates import saving
from surrogates.calibration import ENOUGH, shift_weights
from surrogates.features import FeatureExtractor
from surrogates.label_table import LabelTable, label_values
from surrogates.posterior import JointPrediction
from surrogates.properties import GPConfig, Property
from surrogates.property_model import Hyperparameters, Labels, PropertyModel, metrics_of
from surrogates.scaling import InputScaler

if TYPE_CHECKING:
    from surrogates.exact import ExactGP

CHUNK = 8192  # crystals predicted at a time
REFERENCE = 1000  # unlabelled crystals on which calibration is meant to hold; more are drawn down to this


class GPSurrogate:
    """Independent Gaussian processes, each stacked with a random forest, with recalibrated uncertainty.

    Behaviour on awkward labels (each tested): NaN, infinite and failed labels are left out of the property that lacks
    them and counted; several labels of one candidate are averaged; constant labels predict that constant with a
    standard deviation that shrinks towards, and stays above, 0; without labels the prior is predicted (`Property`),
    wide; with fewer than `surrogates.property_model.MIN_FIT` labels hyperparameters stay at their priors' centres;
    constant feature columns are dropped.

    Args:
        extractor: features of candidates.
        config: settings.
    """

    def __init__(self, extractor: FeatureExtractor, config: GPConfig | None = None) -> None:
        self.extractor = extractor
        self.config = config or GPConfig()
        self._scaler: InputScaler | None = None  # of the crystals given to `adapt`
        self._reference = np.empty((0, len(extractor.names)))  # some of them
        self._table = LabelTable.empty(len(extractor.names), len(self.config.properties))
        self._models: dict[str, PropertyModel] = {}
        self._input = InputScaler.fit(self._table.X, extractor.groups)
        self._condition(refit=True)

    @property
    def properties(self) -> tuple[Property, ...]:
        """What is predicted."""
        return self.config.properties

    @property
    def labels(self) -> np.ndarray:
        """Labels so far in own units, shape (n, m), NaN where a property was not measured."""
        return self._table.Y

    @property
    def picked_at_random(self) -> np.ndarray:
        """Which labelled crystals chance picked, shape (n,)."""
        return self._table.picked_at_random

    def leave_one_formula_out(self) -> tuple[np.ndarray, np.ndarray]:
        """Prediction for each labelled crystal without the labels of its formula, shape (n, m) each.

        On the model scales; NaN where there is no label, or fewer than three.
        """
        table = self._table
        mean, std = np.full((2, *table.Y.shape), np.nan)
        for j, prop in enumerate(self.properties):
            rows, model = np.flatnonzero(np.isfinite(prop.to_scale(table.Y[:, j]))), self._models[prop.name]
            if model.held_out is not None:
                mean[rows, j], std[rows, j] = model.held_out
                std[rows, j] *= model.calibrator.widths(self._offset(prop, table.X[rows]))
        return mean, std

    def adapt(self, candidates: Sequence[Candidate]) -> None:
        """Set the target distribution: unlabelled crystals that predictions are for, such as a pool.

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
        picked_at_random: Collection[str] = frozenset(),
    ) -> dict[str, float]:
        """Learn from all labels so far; failures are ignored.

        Args:
            candidates: those that were evaluated, and any others.
            evaluations: any number for each candidate, matched by id, all of one fidelity; several of one
                candidate are averaged.
            picked_at_random: ids of those that chance picked. Their residuals are like those of the crystals that
                predictions are for, which those of chosen crystals are not: calibration rests on them where there are
                some.

        Returns:
            For each property ``<name>/labels``, ``<name>/unusable``, ``<name>/factor`` and, left out by formula,
            ``<name>/cv_<metric>``; and for labels that are new since the last fit, predicted before they were seen,
            ``<name>/new_<metric>``. Errors in own units, coverage and the rest on the model scale.
        """
        metrics = self._look_ahead(candidates, evaluations)
        self._table = LabelTable.of(candidates, evaluations, self._names, self.extractor, picked_at_random)
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
                mean[rows, j], std[rows, j] = self._models[prop.name].predict(Z, self._offset(prop, X[rows]))
        return mean, std

    def joint(self, candidates: Sequence[Candidate]) -> JointPrediction:
        """Joint posterior of at most a few thousand candidates (memory: m n^2 numbers)."""
        X = self.extractor(candidates)
        Z = self._standardised(X)
        parts = [self._models[prop.name].joint(Z, self._offset(prop, X)) for prop in self.properties]
        means, covariances = zip(*parts, strict=True)
        return JointPrediction(np.column_stack(means), np.stack(covariances), self.properties)

    def probability(self, candidates: Sequence[Candidate], name: str, *, at_most: float) -> np.ndarray:
        """Probability (n,) that a property is at most a value (own unit): of stability, for the energy above the hull.

        Raises:
            ConfigError: the property is not predicted.
        """
        if name not in self._names:
            raise ConfigError(f"no surrogate predicts {name!r}; there are {', '.join(self._names)}")
        column = self._names.index(name)
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

        if len(self._table) < 3:
            return np.full(len(candidates), np.inf)
        labelled = self._standardised(self._table.X)
        nearest = NearestNeighbors(n_neighbors=2, algorithm="brute").fit(labelled)
        usual = np.quantile(nearest.kneighbors(labelled)[0][:, 1], 0.95)
        near = nearest.kneighbors(self._standardised(self.extractor(candidates)), 1)[0][:, 0]
        result: np.ndarray = near / max(float(usual), 1e-12)
        return result

    def evaluate(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]) -> dict[str, float]:
        """Metrics of present predictions against labels they have not seen, ``<name>/<metric>`` (see `fit`)."""
        known = {candidate.id: candidate for candidate in candidates}
        values = label_values(known, evaluations, self._names)
        chosen = [known[id] for id in values]
        if not chosen:
            return {f"{prop.name}/n": 0.0 for prop in self.properties}
        mean, std = self.marginal(chosen)
        Y = np.array(list(values.values()))
        result: dict[str, float] = {}
        for j, prop in enumerate(self.properties):
            result |= _named(prop, metrics_of(prop, Y[:, j], mean[:, j], std[:, j]))
        return result

    def save(self, path: Path) -> None:
        """Write labels, features of the labelled, scaling and hyperparameters into a folder (npz and JSON)."""
        factors = {name: model.calibrator.factor for name, model in self._models.items()}
        hyperparameters = {name: model.hyperparameters for name, model in self._models.items()}
        state = saving.State(
            self.extractor.key, self.config, self._table, self._reference, self._scaler, hyperparameters, factors
        )
        saving.save(state, path)

    def load(self, path: Path) -> None:
        """Take over what `save` wrote, settings included.

        Raises:
            CheckpointError: missing, damaged, or made with other features.
        """
        state = saving.load(path, self.extractor)
        self.config, self._table = state.config, state.table
        self._reference, self._scaler = state.reference, state.scaler
        self._condition(refit=False, former=state.hyperparameters)
        for name, factor in state.factors.items():
            self._models[name] = self._models[name].with_factor(factor)

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(prop.name for prop in self.properties)

    def _look_ahead(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]) -> dict[str, float]:
        seen = set(self._table.ids)
        new = [candidate for candidate in candidates if candidate.id not in seen]
        metrics = self.evaluate(new, evaluations)
        return {name.replace("/", "/new_", 1): value for name, value in metrics.items()}

    def _condition(self, *, refit: bool, former: dict[str, Hyperparameters] | None = None) -> dict[str, float]:
        """Rebuild every model from the labels; with `refit`, find hyperparameters and recalibrate.

        Args:
            refit: false: keep the former hyperparameters.
            former: hyperparameters by property; default: the present ones.
        """
        if former is None:
            former = {name: model.hyperparameters for name, model in self._models.items()}
        table = self._table
        self._input = self._scaler or InputScaler.fit(self._on_scale(table.X), self.extractor.groups)
        Z = self._standardised(table.X)
        metrics: dict[str, float] = {}
        for j, prop in enumerate(self.properties):
            t = prop.to_scale(table.Y[:, j])
            rows = np.flatnonzero(np.isfinite(t))
            offset = self._offset(prop, table.X[rows])
            labels = Labels(Z[rows], t[rows], table.Y[rows, j], offset, table.formulas[rows], self._input.group)
            model = PropertyModel.fit(
                prop,
                labels,
                self.config,
                former=former.get(prop.name),
                refit=refit,
                weights=partial(self._weights, Z=Z, rows=rows),
            )
            self._models[prop.name] = model
            counts = {"labels": float(len(rows)), "unusable": float(len(t) - len(rows))}
            metrics |= _named(prop, counts | model.metrics)
        return metrics

    def _weights(self, gp: ExactGP, Z: np.ndarray, rows: np.ndarray) -> np.ndarray | None:
        """How much the residual of each labelled crystal says about those that predictions are for.

        On simulated campaigns the density ratio of `shift_weights` left intervals of 90 % with a coverage of 73 to
        83 % after 200 chosen labels; the 20 that chance had picked alone kept it at 81 to 96 %.
        """
        random: np.ndarray = self._table.picked_at_random[rows].astype(float)
        if random.sum() >= ENOUGH:
            return random
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
        usual = prop.to_scale(self._table.X[:, column])
        known = usual[np.isfinite(usual)]
        offset = prop.to_scale(X[:, column])
        return np.where(np.isfinite(offset), offset, known.mean() if len(known) else 0.0)


def _named(prop: Property, metrics: dict[str, float]) -> dict[str, float]:
    return {f"{prop.name}/{name}": value for name, value in metrics.items()}
