"""The replay buffer: which crystals of earlier batches were rewarded how often, and the best of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from generator.representation.tokens import CrystalBatch

FIELDS = ("G", "W", "A", "XYZ", "L")


class ReplayBuffer:
    """How often each key was rewarded and learned from, and the best crystals with distinct keys."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.counts: Counter[str] = Counter()
        self.learned: Counter[str] = Counter()
        self.best: CrystalBatch | None = None
        self.best_rewards = np.zeros(0)
        self.best_keys: list[str] = []

    def discounted(self, rewards: np.ndarray, keys: Sequence[str], discount: float) -> np.ndarray:
        """Rewards (n,); positive ones shrink by `discount` for each time that their key was rewarded before.

        Takes the batch up: within it later copies count as repeats of earlier ones.
        """
        out = rewards.astype(float)
        for index, key in enumerate(keys):
            if out[index] > 0:
                out[index] *= discount ** self.counts[key]
                self.counts[key] += 1
        return out

    def keep(self, batch: CrystalBatch, rewards: np.ndarray, keys: Sequence[str]) -> None:
        """Take up the best crystals, one per key."""
        if self.capacity == 0:
            return
        merged = batch if self.best is None else CrystalBatch.concatenate([self.best, batch])
        values, names = np.concatenate([self.best_rewards, rewards]), [*self.best_keys, *keys]
        chosen: list[int] = []
        taken: set[str] = set()
        for index in np.argsort(-values, kind="stable"):
            if len(chosen) == self.capacity or values[index] <= 0:
                break
            if names[index] not in taken:
                taken.add(names[index])
                chosen.append(int(index))
        self.best, self.best_rewards = merged[np.array(chosen, dtype=int)], values[chosen]
        self.best_keys = [names[index] for index in chosen]

    def learn_from(self, rows: np.ndarray) -> None:
        """Count that these rows of the best, repeats included, were learned from once more."""
        self.learned.update(self.best_keys[row] for row in rows)

    @property
    def freshness(self) -> np.ndarray:
        """Weight of each of the best, (n,): less the more often it was learned from, and drawn.

        1 / (1 + times learned from)^2 lets later crystals of a buffer catch up with the first; 1 / times drawn keeps
        what the policy has by heart from being taught once more.
        """
        learned = np.array([self.learned[key] for key in self.best_keys], dtype=float)
        drawn = np.array([max(1, self.counts[key]) for key in self.best_keys], dtype=float)
        found: np.ndarray = (1 + learned) ** -2.0 / drawn
        return found

    @property
    def good(self) -> np.ndarray:
        """Indices of the remembered whose reward is not below their mean: a bar that rises as better ones come."""
        bar = self.best_rewards.mean() if len(self.best_rewards) else 0.0
        return np.flatnonzero(self.best_rewards >= bar)

    def tensors(self) -> dict[str, Tensor]:
        """The best crystals, for a file."""
        if self.best is None:
            return {}
        return {name: torch.as_tensor(getattr(self.best, name)) for name in FIELDS} | {
            "rewards": torch.as_tensor(self.best_rewards)
        }

    def restore(
        self, counts: dict[str, int], learned: dict[str, int], keys: list[str], tensors: dict[str, Tensor]
    ) -> None:
        """Inverse of `tensors`, with the counts and the keys of the best."""
        self.counts, self.learned, self.best_keys = Counter(counts), Counter(learned), keys
        if tensors:
            self.best = CrystalBatch(*(tensors[name].numpy() for name in FIELDS))
            self.best_rewards = tensors["rewards"].numpy()
