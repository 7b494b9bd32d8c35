"""The Gaussian processes as the campaign wants them: they load in place, and scale their inputs by typical crystals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from loop.values import Candidate, Evaluation, Prediction
from surrogates.features import FeatureExtractor
from surrogates.gp import GPSurrogate, JointPrediction
from surrogates.properties import GPConfig, Property


class CampaignSurrogate:
    """Implements `loop.contracts.Surrogate` and `surrogates.acquisition.JointSurrogate`.

    Args:
        extractor: features of candidates.
        config: settings.
        typical: gives unlabelled crystals from which the input scaling is taken before the first fit: among a few
            labelled ones many columns are constant or ill-scaled.
    """

    def __init__(
        self, extractor: FeatureExtractor, config: GPConfig, typical: Callable[[], Sequence[Candidate]] | None = None
    ) -> None:
        self._extractor, self._typical = extractor, typical
        self._gp = GPSurrogate(extractor, config)

    def fit(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]) -> dict[str, float]:
        """Learn from all labels so far; returns metrics of the fit."""
        if self._typical is not None:
            self._gp.adapt(self._typical())
            self._typical = None
        return self._gp.fit(candidates, evaluations)

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Mean and standard deviation per property, shape (n, m)."""
        return self._gp.predict(candidates)

    def save(self, path: Path) -> None:
        """Write all that `load` needs."""
        self._gp.save(path)

    def load(self, path: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            CheckpointError: missing, damaged, or made with other features.
        """
        self._gp.load(path)
        self._typical = None  # the scaling came along

    @property
    def properties(self) -> tuple[Property, ...]:
        """What is predicted."""
        return self._gp.properties

    @property
    def labels(self) -> np.ndarray:
        """Labels so far, own units, shape (n, m)."""
        return self._gp.labels

    def marginal(self, candidates: Sequence[Candidate]) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation on the model scales, shape (n, m) each."""
        return self._gp.marginal(candidates)

    def joint(self, candidates: Sequence[Candidate]) -> JointPrediction:
        """Joint belief."""
        return self._gp.joint(candidates)
