"""What surrogates have learnt from: labels, with the features of their crystals."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from loop.values import Candidate, Evaluation
from surrogates.features import FeatureExtractor


@dataclass(frozen=True)
class LabelTable:
    """n labelled crystals with d features and m properties.

    Attributes:
        ids: of the crystals, n.
        X: features as the extractor gives them, shape (n, d), NaN where missing.
        Y: labels in own units, shape (n, m), NaN where a property was not measured.
        formulas: shape (n,); crystals of one formula are left out together when calibrating.
        picked_at_random: which crystals chance picked, bool of shape (n,).
    """

    ids: tuple[str, ...]
    X: np.ndarray
    Y: np.ndarray
    formulas: np.ndarray
    picked_at_random: np.ndarray

    @classmethod
    def empty(cls, d: int, m: int) -> Self:
        """No labels yet."""
        return cls((), np.empty((0, d)), np.empty((0, m)), np.empty(0, dtype=str), np.empty(0, dtype=bool))

    @classmethod
    def of(
        cls,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        names: Sequence[str],
        extractor: FeatureExtractor,
        picked_at_random: Collection[str],
    ) -> Self:
        """The usable labels of some candidates, several of one candidate averaged; failures are left out."""
        known = {candidate.id: candidate for candidate in candidates}
        values = label_values(known, evaluations, names)
        chosen = [known[id] for id in values]
        if not chosen:
            return cls.empty(len(extractor.names), len(names))
        formulas = np.array([candidate.formula for candidate in chosen])
        random = np.array([id in picked_at_random for id in values], dtype=bool)
        return cls(tuple(values), extractor(chosen), np.array(list(values.values())), formulas, random)

    def __len__(self) -> int:
        return len(self.ids)


def label_values(
    known: Mapping[str, Candidate], evaluations: Sequence[Evaluation], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Values (m,) by candidate id: the mean of good labels of one candidate, NaN where there is none."""
    collected: dict[str, list[list[float]]] = {}
    for evaluation in evaluations:
        if evaluation.ok and evaluation.candidate_id in known:
            row = [evaluation.value(name) for name in names]
            collected.setdefault(evaluation.candidate_id, []).append(row)
    return {id: _mean(np.array(rows, dtype=float)) for id, rows in collected.items()}


def _mean(rows: np.ndarray) -> np.ndarray:
    """Mean over rows of what is finite, NaN where nothing is."""
    finite = np.isfinite(rows)
    total = np.where(finite, rows, 0.0).sum(axis=0)
    return np.where(finite.any(axis=0), total / np.maximum(finite.sum(axis=0), 1), np.nan)
