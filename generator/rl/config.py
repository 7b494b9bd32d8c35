"""Settings of a fine-tuning: what every algorithm shares, and the algorithm with options of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Discriminator

from generator.constraints.conditions import Sampling
from generator.rl.dpo import Dpo
from generator.rl.drift import DriftLimits
from generator.rl.ppo import Ppo
from generator.rl.raft import Raft
from generator.rl.reinforce import Reinforce
from loop.errors import ConfigError

ALGORITHMS: dict[str, type[Raft | Ppo | Reinforce | Dpo]] = {
    "raft": Raft,
    "ppo": Ppo,
    "reinforce": Reinforce,
    "dpo": Dpo,
}
BEFORE: dict[str, Any] = {
    "keep_classes": 0.0,  # not in version 0.2.0
    "prototype_limit": 1.0,
    "replay_evenly": False,
    "average_last": 0.0,
}
"""What was done before there was the setting, where today's default is something else."""
KL_CHANGE = 0.2  # by which the KL coefficient adapts at most in an iteration
AlgorithmConfig = Annotated[
    Raft | Ppo | Reinforce | Dpo,
    Discriminator("kind"),
    BeforeValidator(lambda value: {"kind": value} if isinstance(value, str) else value),
]
"""An algorithm with its options, or in a file its name alone: ``algorithm: ppo``."""


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of the fine-tuning; the defaults are the recipe that `discovery-loop benchmark rl` measures.

    An iteration draws `batch_size` crystals, scores them, and updates the policy by `algorithm`. The settings of
    CrystalFormer-RL (arXiv 2504.02367) are the variant `paper` of that benchmark: KL weight 0.1, PPO with the crystal's
    ratio and a moving average, p(g) fixed, nothing against repeats.

    Raises:
        ConfigError: a value is out of range.
    """

    iterations: int = 30
    """Iterations per round: sample a batch, score it, update the policy."""
    batch_size: int = 128
    """Crystals per iteration."""
    algorithm: AlgorithmConfig = field(default_factory=Raft)
    """raft, ppo, reinforce or dpo, each with its own options."""
    epochs: int = 2
    """Passes over the batch of an iteration; 1 for reinforce."""
    minibatch_size: int = 64
    """Crystals per gradient step."""
    learning_rate: float = 1e-4
    """Of the network (Adam), as in the paper. Twice as much learns faster, and leaves more copies (docs/rl.md)."""
    learn_space_groups: bool = True
    """Whether p(g) is part of the policy; the paper keeps it fixed."""
    space_group_learning_rate: float = 0.1
    """Of the 230 logits of p(g)."""
    tilt_learning_rate: float = 0.03
    """Of the added biases of letters and elements; 0: none."""
    kl_weight: float = 0.01
    """Weight of the KL term to the pretrained policy, 1/nat."""
    kl_target: float | None = None
    """KL to the pretrained policy to aim for, nats; the weight then adapts (Ziegler et al., arXiv 1909.08593)."""
    space_group_anchor: float = 0.0
    """Weight of the exact KL divergence of p(g) to the pretrained one."""
    repeat_discount: float = 0.2
    """Discount of a reward for each time its composition and Wyckoff positions were rewarded before."""
    element_limit: float | None = 3.0
    """Crystals with elements this many times as frequent as in the pretrained policy earn less; none: no limit."""
    keep_classes: float = 1.0
    """Part of what is learned from the replay buffer that is taken class by class, such that the policy draws them in
    the pretrained one's shares; the rest is whatever pays best. 0: none, for a reward that may well choose one class
    (docs/rl.md).
    """
    prototype_limit: float = 0.1
    """With keep_classes: largest share of what is learned from that crystals of one prototype have, less where the
    policy draws more of it; 1: no limit.
    """
    replay_evenly: bool = True
    """Whether crystals of the replay buffer weigh less the more often they were learned from and drawn; else the first
    ones are learned from far more often than the last (docs/rl.md).
    """
    average_last: float = 0.25
    """Part of the iterations, the last, over which the weights are averaged: the policy that a run ends with leaves
    fewer copies than its last weights do, and its classes are steadier (docs/rl.md). 0: the last weights.
    """
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    space_groups: tuple[int | str, ...] = ()
    """Allowed space groups, by number or symbol; empty: all."""
    limits: DriftLimits = field(default_factory=DriftLimits)
    """When fine-tuning ends because the policy has drifted too far."""
    sampling: Sampling = field(default_factory=Sampling)
    """Temperature, top-p and conditions of the samples that it learns from."""

    def __post_init__(self) -> None:
        """Check ranges."""
        positive = ("iterations", "batch_size", "epochs", "minibatch_size", "learning_rate", "max_grad_norm")
        not_negative = ("kl_weight", "space_group_anchor", "tilt_learning_rate")
        wrong = [f"{name} > 0" for name in positive if not getattr(self, name) > 0]
        wrong += [f"{name} >= 0" for name in not_negative if getattr(self, name) < 0]
        wrong += [f"{name} in [0, 1]" for name in ("keep_classes", "average_last") if not 0 <= getattr(self, name) <= 1]
        shares = ("repeat_discount", "prototype_limit")
        wrong += [f"{name} in (0, 1]" for name in shares if not 0 < getattr(self, name) <= 1]
        wrong += [f"{name} > 0 or none" for name in ("kl_target", "element_limit") if (getattr(self, name) or 1) <= 0]
        if wrong:
            raise ConfigError(f"fine-tuning expects {', '.join(wrong)}; got {self}.")

    @property
    def conditions(self) -> Sampling:
        """`sampling` within the allowed space groups: what is drawn, and what every log-probability is under."""
        return self.sampling.within(self.space_groups)


def adapted(weight: float, kl: float, target: float | None) -> float:
    """The KL coefficient of the next iteration: larger where the policy is further from the reference than wanted."""
    if target is None:
        return weight
    return weight * (1 + float(np.clip(kl / target - 1, -KL_CHANGE, KL_CHANGE)))
