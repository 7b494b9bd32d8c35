"""What the algorithms that learn from the last batch share: advantages, minibatch passes, self-imitation, early stop.

Logged: `approx_kl`, an estimate of the KL divergence (nats) between the policy that drew the batch and the updated
one, mean over the last pass (E[exp(d) - 1 - d] with d the change in log-probability: non-negative and of small
variance, http://joschu.net/blog/kl-approx.html); `updates`, the gradient steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from generator.rl.learner import Learner
from generator.rl.rollout import Rollout
from loop.errors import ConfigError

Baseline = Literal["leave-one-out", "space-group", "moving-average"]
Objective = Callable[[Tensor, Tensor], Tensor]
"""From log-probabilities (m, parts) and the rows (m,) of the rollout that they belong to, to a scalar to maximise."""


@dataclass(frozen=True)
class PolicyGradient:
    """Options of every algorithm that learns from the last batch."""

    target_kl: float = 0.5
    """Passes end when the policy has moved this far from the one that drew the batch, nats."""
    self_imitation: float = 0.0
    """Weight of the likelihood of the replay buffer's best crystals (arXiv 1806.05464); 0: off."""
    replay: int = 16384
    """Crystals in the replay buffer, where self-imitation is on."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.target_kl < 0 or self.self_imitation < 0 or self.replay < 1:
            raise ConfigError(f"expected target_kl >= 0, self_imitation >= 0 and replay > 0, got {self}")

    @property
    def replay_capacity(self) -> int:
        """Crystals to keep."""
        return self.replay if self.self_imitation > 0 else 0

    def run(self, learner: Learner, rollout: Rollout, objective: Objective) -> dict[str, float]:
        """Passes over a rollout in minibatches, until the policy has moved too far."""
        updates, moved = 0, 0.0
        for _ in range(learner.passes()):
            estimates = []
            for rows in learner.minibatches(len(rollout)):
                at = torch.as_tensor(rows, device=rollout.logp_old.device)
                logp = learner.log_prob(rollout.crystals[at])
                total = objective(logp, at)
                if self.self_imitation > 0:
                    total = total + self.self_imitation * learner.replayed_log_prob()
                learner.step(total)
                updates += 1
                change = (logp - rollout.logp_old[at]).detach().sum(1)
                estimates.append((change.exp() - 1 - change).mean().item())
            moved = float(np.mean(estimates))
            if moved > self.target_kl:
                break
        return {"approx_kl": moved, "updates": updates}


@dataclass(frozen=True)
class AdvantageGradient(PolicyGradient):
    """Options of the algorithms that weigh crystals by their advantage: reward beyond a baseline."""

    baseline: Baseline = "leave-one-out"
    """What an advantage is measured against: the other crystals of the batch, those of the same space group, or a
    moving average.
    """
    baseline_decay: float = 0.95
    """Decay of the moving average, as in CrystalFormer-RL (arXiv 2504.02367)."""
    normalize_advantage: bool = True
    """Divide advantages by their standard deviation."""

    def advantages(self, learner: Learner, rollout: Rollout) -> Tensor:
        """Advantage (n,) of each crystal; updates the moving average."""
        rewards = rollout.shaped_reward
        mean, average = float(rewards.mean()), learner.reward_average
        decay = self.baseline_decay
        learner.reward_average = mean if average is None else decay * average + (1 - decay) * mean
        values = rewards - baselines(rewards, rollout.groups, self.baseline, learner.reward_average)
        if self.normalize_advantage:
            values = values / (values.std() + 1e-6)
        return torch.as_tensor(values, dtype=rollout.logp_old.dtype, device=rollout.logp_old.device)


def baselines(rewards: np.ndarray, groups: np.ndarray, kind: Baseline, average: float) -> np.ndarray:
    """What each reward (n,) is compared with, (n,).

    leave-one-out: mean of the others in the batch, an unbiased baseline (Kool et al., ICLR DeepRLStructPred 2019).
    space-group: mean of the others of the same space group, shrunk to leave-one-out of the batch with weight 1, since
    rewards differ strongly between groups. moving-average: the paper's, one number for all.
    """
    n = len(rewards)
    if kind == "moving-average":
        return np.full(n, average)
    others: np.ndarray = (rewards.sum() - rewards) / max(1, n - 1)
    if kind == "leave-one-out":
        return others
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=rewards)
    result: np.ndarray = (sums[inverse] - rewards + others) / counts[inverse]
    return result
