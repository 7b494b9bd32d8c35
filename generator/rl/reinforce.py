"""REINFORCE (Williams, Mach. Learn. 8, 229 (1992)): the score function times the advantage. Meant for `epochs: 1`.

Logged: `approx_kl` and `updates`, see `generator.rl.policy_gradient`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from generator.rl.learner import Learner
from generator.rl.policy_gradient import AdvantageGradient
from generator.rl.rollout import Rollout


@dataclass(frozen=True)
class Reinforce(AdvantageGradient):
    """Plain policy gradients."""

    kind: Literal["reinforce"] = "reinforce"
    """REINFORCE with a baseline, the algorithm of CrystalFormer-RL (arXiv 2504.02367)."""

    def update(self, learner: Learner, rollout: Rollout) -> dict[str, float]:
        """Score-function surrogate on minibatches."""
        advantage = self.advantages(learner, rollout)
        return self.run(learner, rollout, lambda logp, at: reinforce_objective(logp.sum(1), advantage[at]))


def reinforce_objective(logp: Tensor, advantage: Tensor) -> Tensor:
    """Score-function surrogate (scalar) for logp and advantage (n,)."""
    return (advantage * logp).mean()
