"""PPO with clipped ratios (arXiv 1707.06347), on crystals that are drawn whole.

Differences from the paper and from CrystalFormer-RL (arXiv 2504.02367): no value network, since an episode is one
crystal; the baseline leaves the crystal itself out; by default each part of a crystal (letters, elements, coordinates,
cell, space group) is an action whose ratio is clipped by itself, so that a small move of fifteen choices does not clip
them all. `ratio: crystal` with `baseline: moving-average` is the published form.

Logged besides `approx_kl` and `updates`: `clip_fraction`, the share of ratios beyond the clip range, of that which is
clipped (parts or crystals), mean over all minibatches of the iteration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from generator.rl.learner import Learner
from generator.rl.policy_gradient import AdvantageGradient
from generator.rl.rollout import Rollout
from loop.errors import ConfigError


@dataclass(frozen=True)
class Ppo(AdvantageGradient):
    """Clipped policy gradients."""

    kind: Literal["ppo"] = "ppo"
    """Proximal policy optimisation (arXiv 1707.06347)."""
    clip: float = 0.2
    """The ratio of new to old probability is clipped to 1 +- this."""
    ratio: Literal["crystal", "part"] = "part"
    """Clip the ratio of the whole crystal, or of each part of it."""

    def __post_init__(self) -> None:
        """Check ranges."""
        super().__post_init__()
        if not 0 < self.clip <= 1:
            raise ConfigError(f"ppo expects clip in (0, 1], got {self.clip}")

    def update(self, learner: Learner, rollout: Rollout) -> dict[str, float]:
        """Clipped surrogate on minibatches."""
        advantage, fractions = self.advantages(learner, rollout), []

        def objective(logp: Tensor, at: Tensor) -> Tensor:
            old = rollout.logp_old[at]
            if self.ratio == "crystal":
                logp, old = logp.sum(1), old.sum(1)
            fractions.append(clip_fraction(logp.detach(), old, self.clip))
            return ppo_objective(logp, old, advantage[at], self.clip)

        logged = self.run(learner, rollout, objective)
        return logged | {"clip_fraction": float(np.mean(fractions))}


def ppo_objective(logp: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Clipped surrogate (scalar) of arXiv 1707.06347, eq. 7. logp and old (n,) or (n, parts), advantage (n,).

    With parts each is an action of its own, and the crystal's advantage counts for all of them.
    """
    ratio = (logp - old).exp()
    if ratio.ndim == 2:
        advantage = advantage[:, None]
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return surrogate.sum() / len(surrogate)


def clip_fraction(logp: Tensor, old: Tensor, clip: float) -> float:
    """Share of the ratios beyond 1 - clip to 1 + clip; logp and old of one shape."""
    return ((logp - old).exp() - 1).abs().gt(clip).float().mean().item()
