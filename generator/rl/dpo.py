"""DPO (arXiv 2305.18290) on pairs ranked by the reward: the upper half of a minibatch against its lower half.

The KL term is implied by `beta`; the reference policy of the pairs is the frozen one. Logged: `approx_kl`, `updates`,
see `generator.rl.policy_gradient`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from generator.rl.learner import Learner
from generator.rl.policy_gradient import PolicyGradient
from generator.rl.rollout import Rollout
from loop.errors import ConfigError


@dataclass(frozen=True)
class Dpo(PolicyGradient):
    """Direct preference optimisation."""

    kind: Literal["dpo"] = "dpo"
    """Direct preference optimisation on pairs of a batch (arXiv 2305.18290)."""
    beta: float = 0.1
    """Strength of the implied KL term."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if self.beta <= 0:
            raise ConfigError(f"dpo expects beta > 0, got {self.beta}")

    def update(self, learner: Learner, rollout: Rollout) -> dict[str, float]:
        """Preference objective on minibatches."""
        old = rollout.logp_old
        reward = torch.as_tensor(rollout.shaped_reward, dtype=old.dtype, device=old.device)

        def objective(logp: Tensor, at: Tensor) -> Tensor:
            log_ratio = logp.sum(1) - rollout.logp_ref[at]
            better, worse = ranked_pairs(reward[at])
            if len(better) == 0:
                return log_ratio.sum() * 0.0
            return dpo_objective(log_ratio[better], log_ratio[worse], self.beta)

        return self.run(learner, rollout, objective)


def dpo_objective(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Mean log-probability (scalar) that the chosen crystal of each pair is preferred, arXiv 2305.18290, eq. 7.

    Args:
        chosen: log-ratios of policy to reference, (pairs,), in nats.
        rejected: of the crystals that they are preferred to.
        beta: strength of the implied KL term.
    """
    return F.logsigmoid(beta * (chosen - rejected)).mean()


def ranked_pairs(reward: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (pairs,) of better and worse crystals: the upper half against the lower half, equals left out."""
    order = torch.argsort(reward, descending=True, stable=True)
    half = len(order) // 2
    better, worse = order[:half], order[len(order) - half :]
    apart = reward[better] > reward[worse]
    return better[apart], worse[apart]
