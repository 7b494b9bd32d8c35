"""The surrogates as a campaign wants them: inputs scaled by typical crystals, and taught what is known already."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from flows.known_labels import KnownLabels
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
        known: labels that were there before the campaign; every fit learns from them, too.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        config: GPConfig,
        typical: Callable[[], Sequence[Candidate]] | None = None,
        known: KnownLabels | None = None,
    ) -> None:
        super().__init__(extractor, config)
        self._typical = typical
        self._known = known

    def fit(
        self,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        *,
        drawn: Collection[str] = frozenset(),
    ) -> dict[str, float]:
        """Learn from all labels so far and from those known before; returns metrics of the fit."""
        if self._typical is not None:
            self.adapt(self._typical())
            self._typical = None
        if self._known is None:
            return super().fit(candidates, evaluations, drawn=drawn)
        before, labels = self._known.candidates, self._known.evaluations
        if not len(
            self.labels
        ):  # by themselves at first: what they make of the campaign's first labels is worth knowing
            super().fit(before, labels)
        metrics = super().fit([*before, *candidates], [*labels, *evaluations], drawn=drawn)
        return metrics | {"known": float(len(labels))}

    def load(self, path: Path) -> None:
        """Take over what `save` wrote; the scaling comes along.

        Raises:
            CheckpointError: missing, damaged, or made with other features.
        """
        super().load(path)
        self._typical = None
