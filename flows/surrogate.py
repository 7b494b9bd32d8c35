"""The Gaussian processes as a campaign wants them: their inputs scaled by typical crystals."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from loop.values import Candidate, Evaluation
from surrogates.features import FeatureExtractor
from surrogates.gp import GPSurrogate
from surrogates.properties import GPConfig


class CampaignSurrogate(GPSurrogate):
    """Implements `loop.contracts.Surrogate`.

    Args:
        extractor: features of candidates.
        config: settings.
        typical: gives unlabelled crystals from which the input scaling is taken before the first fit: among a few
            labelled ones many columns are constant or ill-scaled.
    """

    def __init__(
        self, extractor: FeatureExtractor, config: GPConfig, typical: Callable[[], Sequence[Candidate]] | None = None
    ) -> None:
        super().__init__(extractor, config)
        self._typical = typical

    def fit(
        self,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        *,
        drawn: Collection[str] = frozenset(),
    ) -> dict[str, float]:
        """Learn from all labels so far; returns metrics of the fit."""
        if self._typical is not None:
            self.adapt(self._typical())
            self._typical = None
        return super().fit(candidates, evaluations, drawn=drawn)

    def load(self, path: Path) -> None:
        """Take over what `save` wrote; the scaling comes along.

        Raises:
            CheckpointError: missing, damaged, or made with other features.
        """
        super().load(path)
        self._typical = None
