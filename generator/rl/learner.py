"""What an algorithm works with: the policy, its optimiser, the replay buffer, and one step of gradient ascent."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from generator.representation.sequence import Crystals
from generator.rl.replay import ReplayBuffer
from generator.rl.rollout import Rollout


class Learner(Protocol):
    """The part of `generator.rl.loop.Finetuner` that algorithms use."""

    rng: np.random.Generator
    replay: ReplayBuffer
    reward_average: float | None  # running mean of shaped rewards, for the moving-average baseline; survives a kill

    def log_prob(self, crystals: Crystals) -> Tensor:
        """Log-probabilities (n, parts) under the policy, with gradient."""
        ...

    def replayed_log_prob(self) -> Tensor:
        """Mean log-probability (scalar, nats) of a minibatch from the better half of the replay buffer."""
        ...

    def minibatches(self, n: int) -> list[np.ndarray]:
        """Rows 0 to n - 1 in random order, in minibatches: one pass."""
        ...

    def steps_per_pass(self, n: int) -> int:
        """Minibatches in a pass over n crystals, at least 1."""
        ...

    def passes(self) -> int:
        """Passes over a batch in an iteration."""
        ...

    def step(self, objective: Tensor) -> None:
        """Ascend the gradient of an objective (scalar), with what the configuration adds to every objective."""
        ...


class Algorithm(Protocol):
    """One way to move a policy towards crystals with high rewards."""

    @property
    def kind(self) -> str:
        """Its name in configurations."""
        ...

    @property
    def replay_capacity(self) -> int:
        """Crystals that the replay buffer has to keep; 0: none."""
        ...

    def update(self, learner: Learner, rollout: Rollout) -> dict[str, float]:
        """Update the policy with one batch; returns what is logged, `updates` (gradient steps) among it."""
        ...
