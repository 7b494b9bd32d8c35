"""What is learned from: crystals of the replay buffer, by class of chemistry, prototype, and how often they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from generator.rl.strata import capped, chances, prototypes, strata

if TYPE_CHECKING:
    from generator.rl.config import FinetuneConfig
    from generator.rl.replay import ReplayBuffer


class Lessons:
    """Minibatches of a replay buffer, as `keep_classes`, `prototype_limit` and `replay_evenly` have them."""

    def __init__(self, replay: ReplayBuffer, config: FinetuneConfig) -> None:
        self.replay, self.config = replay, config
        self.forget()

    def forget(self) -> None:
        """The buffer's crystals, or what the policy draws, have changed."""
        self._about: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        self._chances: np.ndarray | None = None

    def choose(self, rng: np.random.Generator, wanted: np.ndarray | None, drawn: Mapping[str, float]) -> np.ndarray:
        """Rows of the buffer for a minibatch; counted as learned from.

        Args:
            rng: source of chance.
            wanted: shares to learn the strata in; None: any of the better half.
            drawn: running shares of the prototypes that the policy draws.
        """
        rows = self._better_half(rng) if wanted is None else self._by_class(rng, wanted, drawn)
        self.replay.learn_from(rows)
        if self.config.replay_evenly:
            self._chances = None
        return rows

    def _better_half(self, rng: np.random.Generator) -> np.ndarray:
        good, p = self.replay.good, None
        if self.config.replay_evenly:
            fresh = self.replay.freshness[good]
            p = fresh / fresh.sum()
        return rng.choice(good, size=min(len(good), self.config.minibatch_size), replace=False, p=p)

    def _by_class(self, rng: np.random.Generator, wanted: np.ndarray, drawn: Mapping[str, float]) -> np.ndarray:
        if self._about is None:
            self._about = self._look(drawn)
        of_row, kinds, caps = self._about
        if self._chances is None:
            fresh = self.replay.freshness if self.config.replay_evenly else np.ones(len(of_row))
            found = chances(of_row, self.replay.best_rewards, wanted, self.config.keep_classes, fresh)
            self._chances = capped(found, kinds, caps) if self.config.prototype_limit < 1 else found
        return rng.choice(len(of_row), size=self.config.minibatch_size, p=self._chances)

    def _look(self, drawn: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Strata (n,) and numbers of the prototypes (n,) of the buffer's crystals, and the prototypes' caps.

        What the policy draws beyond the limit is learned from less than that, in proportion: learning in proportion to
        what is drawn already would leave it as it is.
        """
        best, limit = self.replay.best, self.config.prototype_limit
        assert best is not None
        names, kinds = np.unique(prototypes(best), return_inverse=True)
        shares = np.array([drawn.get(str(name), 0.0) for name in names])
        return strata(best), kinds, limit * np.minimum(1.0, limit / np.maximum(shares, 1e-9))
