"""A figure of merit that is the product of two properties, predicted by two models.

A process of the product alone has errors of one size. Those of a product go with its factors: among crystals with a
large dielectric constant and a small gap the figure of merit is far less certain than among wide-gap oxides, and some
of the best are there. On pools of 2,000 crystals the former stays with the oxides, two processes, one a factor, with
the small gaps. What is predicted weighs both by their precisions; of a batch each chooses half, which finds both kinds
(docs/LOG.md).
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from loop.errors import CheckpointError, ConfigError
from loop.metrics import calibration
from loop.values import Candidate, Evaluation, Prediction, Quantity
from surrogates.calibration import ENOUGH, conformal_factor
from surrogates.features import FeatureExtractor
from surrogates.gp import GPSurrogate
from surrogates.posterior import JointPrediction, Posterior, log_opinion_pool
from surrogates.properties import GPConfig, Property
from surrogates.two_steps import Factors

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


@dataclass(frozen=True)
class Member:
    """One of the two posteriors of a `ProductSurrogate`, as a surrogate to choose by: 0 by the factors, 1 direct."""

    whole: ProductSurrogate
    side: int

    @property
    def properties(self) -> tuple[Property, ...]:
        """The product."""
        return self.whole.properties

    @property
    def labels(self) -> np.ndarray:
        """Products so far, shape (n, 1)."""
        return self.whole.labels

    def marginal(self, candidates: Sequence[Candidate]) -> Posterior:
        """Mean and standard deviation, shape (n, 1) each."""
        return self.whole.marginal(candidates, self.side)

    def joint(self, candidates: Sequence[Candidate]) -> JointPrediction:
        """Joint posterior."""
        return self.whole.joint(candidates, self.side)


class ProductSurrogate:
    """Predicts the product, on its own linear scale, with recalibrated uncertainty.

    Labels are those of the factors; a crystal that lacks one has no label. Behaviour on awkward labels is that of
    `GPSurrogate`.

    Args:
        extractor: features of candidates.
        config: settings of the processes; its properties are the two factors, on linear or logarithmic scales, and
            any others.
        prop: the product: its name, unit, and a linear scale.
        factors: names of the two factors; by default the first two properties.
        alone: predict the product alone; else all properties, the product last.

    Raises:
        ConfigError: a factor is missing, or on another scale.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        config: GPConfig,
        prop: Property,
        factors: Sequence[str] = (),
        *,
        alone: bool = True,
    ) -> None:
        plain = config.properties
        names = [part.name for part in plain]
        wanted = tuple(factors) or tuple(names[:2])
        self._factors = tuple(part for name in wanted for part in plain if part.name == name)
        scales = [part.scale for part in self._factors]
        if len(scales) != 2 or len(wanted) != 2 or "soft" in scales or prop.scale != "linear":
            raise ConfigError(
                f"{prop.name}: expected a product of two predicted properties on linear or log scales, itself on a "
                f"linear one, got {', '.join(wanted) or 'none'} among {', '.join(names) or 'none'} on {scales} and "
                f"{prop.scale!r}"
            )
        self._columns = [names.index(name) for name in wanted]  # of the factors; the product's is the last
        self._plain, self._prop, self._alone = plain, prop, alone
        self._processes = GPSurrogate(extractor, replace(config, properties=(*plain, prop)))
        self._correlation, self._narrow, self._width = 0.0, 1.0, 1.0
        self._rows: dict[str, np.ndarray] = {}  # means and deviations of the processes, by candidate id, of this fit

    @property
    def properties(self) -> tuple[Property, ...]:
        """The product, and where it is not alone all others before it."""
        return (self._prop,) if self._alone else (*self._plain, self._prop)

    @property
    def extractor(self) -> FeatureExtractor:
        """Features of candidates."""
        return self._processes.extractor

    def probability(self, candidates: Sequence[Candidate], name: str, *, at_most: float) -> np.ndarray:
        """Probability (n,) that a property is at most a value: see `GPSurrogate.probability`."""
        return self._processes.probability(candidates, name, at_most=at_most)

    def distance(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """How far outside the labelled crystals each candidate lies: see `GPSurrogate.distance`."""
        return self._processes.distance(candidates)

    @property
    def members(self) -> tuple[Member, Member]:
        """Both posteriors, each to choose half of a batch by: see `surrogates.acquisition.Committee`."""
        return Member(self, 0), Member(self, 1)

    @property
    def labels(self) -> np.ndarray:
        """Labels so far, shape (n, properties), NaN where one was not measured; a product's where a factor was not."""
        return self._processes.labels[:, -1:] if self._alone else self._processes.labels

    def adapt(self, candidates: Sequence[Candidate]) -> None:
        """Tell what predictions are for: see `GPSurrogate.adapt`."""
        self._processes.adapt(candidates)
        self._rows.clear()
        self._recalibrate()

    def fit(
        self,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        *,
        picked_at_random: Collection[str] = frozenset(),
    ) -> dict[str, float]:
        """Learn factors and product from all labels so far: see `GPSurrogate.fit`, whose metrics come with ours."""
        metrics = self._processes.fit(
            candidates, [self._with_product(one) for one in evaluations], picked_at_random=picked_at_random
        )
        self._rows.clear()
        return metrics | self._recalibrate()

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Means and standard deviations in own units, shape (n, properties)."""
        mean, std = self.marginal(candidates)
        pairs = [p.moments(mean[:, j], std[:, j]) for j, p in enumerate(self.properties)]
        means, stds = (np.column_stack([pair[k] for pair in pairs]) for k in (0, 1))
        return Prediction(means, stds, tuple(p.name for p in self.properties), tuple(p.unit for p in self.properties))

    def marginal(self, candidates: Sequence[Candidate], side: int | None = None) -> Posterior:
        """Means and standard deviations on the model scales, shape (n, properties) each.

        Those of the product are of one side, or of both as one.
        """
        means, stds = self._of_processes(candidates)
        mean, std = self._combined(means, stds, side)
        if self._alone:
            return mean[:, None], std[:, None]
        return np.column_stack([means[:, :-1], mean]), np.column_stack([stds[:, :-1], std])

    def factors(self, candidates: Sequence[Candidate]) -> Factors:
        """Posterior of the two factors, on their model scales, with the correlation of their errors."""
        mean, std = self._of_processes(candidates)
        return Factors(mean[:, self._columns], std[:, self._columns], self._correlation)

    def _of_processes(self, candidates: Sequence[Candidate]) -> Posterior:
        """Means and standard deviations of the processes, shape (n, m) each; kept, as both sides ask for them."""
        missing = [candidate for candidate in candidates if candidate.id not in self._rows]
        if missing:
            table = np.stack(self._processes.marginal(missing), axis=1)
            self._rows |= {candidate.id: row for candidate, row in zip(missing, table, strict=True)}
        table = np.array([self._rows[candidate.id] for candidate in candidates]).reshape(-1, 2, len(self._plain) + 1)
        return table[:, 0], table[:, 1]

    def joint(self, candidates: Sequence[Candidate], side: int | None = None) -> JointPrediction:
        """Joint posterior, each crystal's variance as in `marginal`.

        Of products, between crystals as of independent factors, or, by the direct side, as of its process.
        """
        posterior = self._processes.joint(candidates)
        std = np.sqrt(np.maximum(np.diagonal(posterior.covariance, axis1=1, axis2=2).T, 0.0))
        mean, wanted = self._combined(posterior.mean, std, side)
        covariance = posterior.covariance[-1] if side == 1 else self._of_factors(posterior, std)
        stretch = wanted / np.sqrt(np.diagonal(covariance))
        covariance = (covariance * np.outer(stretch, stretch))[None]
        if self._alone:
            return JointPrediction(mean[:, None], covariance, self.properties)
        others = posterior.covariance[:-1]
        return JointPrediction(
            np.column_stack([posterior.mean[:, :-1], mean]), np.concatenate([others, covariance]), self.properties
        )

    def save(self, path: Path) -> None:
        """Write the processes and what joins them into a folder."""
        from loop.io.files import write_text

        self._processes.save(path)
        about = {"correlation": self._correlation, "narrow": self._narrow, "width": self._width}
        write_text(Path(path) / ABOUT, json.dumps(about) + "\n")

    def load(self, path: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or made with other features.
        """
        self._processes.load(path)
        self._rows.clear()
        try:
            about = json.loads((Path(path) / ABOUT).read_text(encoding="utf-8"))
            self._correlation, self._narrow, self._width = (
                float(about[name]) for name in ("correlation", "narrow", "width")
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"expected {ABOUT} in {path}, cannot read it: {error!r}; fit it again") from error

    def _with_product(self, evaluation: Evaluation) -> Evaluation:
        """The evaluation with the product among its values: NaN where a factor is missing."""
        value = float(np.prod([evaluation.value(factor.name) for factor in self._factors]))
        return evaluation.with_properties(**{self._prop.name: Quantity(value, self._prop.unit)})

    def _combined(self, mean: np.ndarray, std: np.ndarray, side: int | None = None) -> Posterior:
        """The product's posterior (n,) from those of the processes on their model scales (n, m)."""
        centre, width = self._moments(mean, std).product(self._correlation)
        sides = (centre, width * self._narrow), (mean[:, -1], std[:, -1])
        if side is not None:
            return sides[side]
        centre, width = log_opinion_pool(*sides)
        return centre, width * self._width

    def _of_factors(self, posterior: JointPrediction, std: np.ndarray) -> np.ndarray:
        """Covariance (n, n) of the product of independent factors."""
        a, b = self._moments(posterior.mean, std).mean
        first, second = (self._spread(j, posterior, value) for j, value in enumerate((a, b)))
        result: np.ndarray = first * second + first * np.outer(b, b) + second * np.outer(a, a)
        return result

    def _moments(self, mean: np.ndarray, std: np.ndarray) -> Moments:
        """Of the factors, from their model scales to own units."""
        pairs = [part.moments(mean[:, j], std[:, j]) for j, part in zip(self._columns, self._factors, strict=True)]
        return Moments((pairs[0][0], pairs[1][0]), (pairs[0][1], pairs[1][1]))

    def _spread(self, j: int, posterior: JointPrediction, mean: np.ndarray) -> np.ndarray:
        """Covariance (n, n) of a factor in its own unit: exact, as both scales are normal or log-normal."""
        covariance: np.ndarray = posterior.covariance[self._columns[j]]
        if self._factors[j].scale != "linear":
            covariance = np.outer(mean, mean) * np.expm1(covariance)
        return covariance

    def _recalibrate(self) -> dict[str, float]:
        """How the errors of the factors go together, and how wide the product's are, from labels left out."""
        self._correlation, self._narrow, self._width = 0.0, 1.0, 1.0
        mean, std = self._processes.leave_one_formula_out()
        known = self._processes.labels
        scaled = np.column_stack(
            [part.to_scale(known[:, j]) for j, part in zip(self._columns, self._factors, strict=True)]
        )
        residual = (scaled - mean[:, self._columns]) / std[:, self._columns]
        rows = np.flatnonzero(np.isfinite(residual).all(axis=1))
        if len(rows) < ENOUGH:
            return {f"{self._prop.name}/labels": float(len(rows))}
        shared = float(np.nan_to_num(np.corrcoef(residual[rows].T)[0, 1])) if residual[rows].std(axis=0).all() else 0.0
        self._correlation = float(np.clip(shared, -STRONGEST, STRONGEST))
        labels = known[rows, -1]
        if self._processes.config.calibrate:
            random = self._processes.picked_at_random[rows]
            weights = random.astype(float) if random.sum() >= ENOUGH else None
            pair = self._moments(mean[rows], std[rows]).product(self._correlation)
            self._narrow = conformal_factor(labels, *pair, weights)
            self._width = conformal_factor(labels, *self._combined(mean[rows], std[rows]), weights)
        found = self._combined(mean[rows], std[rows])
        metrics = {f"cv_{name}": value for name, value in calibration(labels, *found).items()}
        metrics |= {"labels": float(len(rows)), "factor": self._width, "correlation": self._correlation}
        return {f"{self._prop.name}/{name}": value for name, value in metrics.items()}
