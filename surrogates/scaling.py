"""From raw feature tables to inputs of a kernel: imputed, standardised, without constant columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

# Groups whose columns keep their sizes relative to each other: standardised one by one, the fraction of an element that
# occurs once would count as much as that of oxygen.
UNIFORM_GROUPS = ("elements",)
CLIP = 5.0  # standard deviations; beyond, a column says no more than "far away"
_CONSTANT = 1e-9


@dataclass(frozen=True)
class InputScaler:
    """Standardised inputs Z of shape (n, D), in which each group of columns has a total variance of 1.

    A missing value becomes the mean of the crystals the scaler was fitted on; where a group had missing values among
    them, a further column of that group says which share of it is missing. Columns that are constant are dropped.
    """

    mean: np.ndarray  # (d,)
    weight: np.ndarray  # (d,) 1 / standard deviation, 0 for a dropped column
    size: np.ndarray  # (d,) factor that gives the group its unit variance
    columns: np.ndarray  # (D,) of which raw column; -1 - g for the flag of group g
    group: np.ndarray  # (D,) index of the group
    names: tuple[str, ...]  # of the groups

    @classmethod
    def fit(cls, X: np.ndarray, groups: Mapping[str, np.ndarray]) -> Self:
        """Fit to X of shape (n, d), NaN where missing. With fewer than two rows all columns drop."""
        d = X.shape[1]
        mean, std = np.zeros(d), np.zeros(d)
        known = ~np.isnan(X).all(axis=0) if len(X) else np.zeros(d, dtype=bool)
        mean[known], std[known] = np.nanmean(X[:, known], axis=0), np.nanstd(X[:, known], axis=0)
        std[std < _CONSTANT * np.maximum(1.0, np.abs(mean))] = 0.0
        weight, size, columns, group = np.zeros(d), np.ones(d), [], []
        for g, (name, members) in enumerate(groups.items()):
            live = members[std[members] > 0]
            if not len(live):
                continue
            weight[live] = 1 / (np.sqrt((std[live] ** 2).sum()) if name in UNIFORM_GROUPS else std[live])
            size[live] = 1.0 if name in UNIFORM_GROUPS else 1 / np.sqrt(len(live))
            flagged = bool(np.isnan(X[:, members]).any())
            columns += [*live, *([-1 - g] if flagged else [])]
            group += [g] * (len(live) + flagged)
        return cls(mean, weight, size, np.array(columns, dtype=int), np.array(group, dtype=int), tuple(groups))

    def __call__(self, X: np.ndarray, groups: Mapping[str, np.ndarray]) -> np.ndarray:
        """Z of shape (n, D), finite."""
        Z = np.empty((len(X), len(self.columns)))
        plain = self.columns >= 0
        index = self.columns[plain]
        scaled = (X[:, index] - self.mean[index]) * self.weight[index]
        uniform = np.isin(self.group[plain], [g for g, name in enumerate(self.names) if name in UNIFORM_GROUPS])
        scaled[:, ~uniform] = np.clip(scaled[:, ~uniform], -CLIP, CLIP)
        Z[:, plain] = np.nan_to_num(scaled * self.size[index])
        members = list(groups.values())
        for position in np.flatnonzero(~plain):
            Z[:, position] = np.isnan(X[:, members[-1 - self.columns[position]]]).mean(axis=1)
        return Z
