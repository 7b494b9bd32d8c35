"""RAFT, reward-ranked fine-tuning (arXiv 2304.06767): raise the likelihood of the best crystals found so far.

The default. Samples of a policy near the reference that pass the reward are mostly right; policy gradients continue
to where the reward errs (`discovery-loop benchmark rl`, judged by a second potential). Unlike in the paper, the best
are taken from the replay buffer, that is from all that was drawn so far, and not from the last batch alone.

Logged: `updates`, the gradient steps of the iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from generator.rl.learner import Learner
from generator.rl.rollout import Rollout
from loop.errors import ConfigError


@dataclass(frozen=True)
class Raft:
    """Maximum likelihood of crystals in the replay buffer whose shaped reward is not below the buffer's mean."""

    kind: Literal["raft"] = "raft"
    """Reward-ranked fine-tuning: learn from the best crystals of the replay buffer (arXiv 2304.06767)."""
    replay: int = 16384
    """Crystals in the replay buffer, one per composition and Wyckoff positions."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.replay < 1:
            raise ConfigError(f"raft expects replay > 0, or there is nothing to learn from; got {self.replay}")

    @property
    def replay_capacity(self) -> int:
        """Crystals to keep."""
        return self.replay

    def update(self, learner: Learner, rollout: Rollout) -> dict[str, float]:
        """As many minibatches from the buffer as the rollout has."""
        if not len(learner.replay.good):
            return {"updates": 0}
        updates = learner.passes() * learner.steps_per_pass(len(rollout))
        for _ in range(updates):
            learner.step(learner.replayed_log_prob())
        return {"updates": updates}
