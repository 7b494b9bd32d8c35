"""What fine-tuning maximises: the settings, baselines, and one objective an algorithm.

Every objective takes log-probabilities of scored crystals under the policy, shape (n, parts), and what was noted of
these crystals when they were drawn; it returns a scalar to be maximised. (Imitation has none: it maximises the
log-probability of remembered crystals, see `Finetuner._imitate`.) The parts (space group, letters, elements,
coordinates, cell) are those of `generator.likelihood`; their sum is the log-probability of the crystal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from generator.conditions import Sampling
from generator.rl.drift import DriftLimits
from loop.errors import ConfigError

Algorithm = Literal["imitation", "ppo", "reinforce", "dpo"]
Baseline = Literal["leave-one-out", "space-group", "moving-average"]
KL_CHANGE = 0.2  # by which the KL coefficient adapts at most in an iteration


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of the fine-tuning; the defaults are the recipe that `discovery-loop benchmark rl` measures.

    `imitation` draws, scores, remembers what earned something, and raises the likelihood of what is not below
    the mean of all remembered.

    `clip` 0.2 and the moving average's decay 0.95 are those of CrystalFormer-RL (arXiv 2504.02367), whose other
    settings are the variant `paper` of that benchmark (KL weight 0.1, the crystal's ratio, p(g) fixed, nothing against
    repeats); `dpo_beta` 0.1 is that of arXiv 2305.18290.

    Raises:
        ConfigError: a value is out of range.
    """

    iterations: int = 30
    batch_size: int = 128
    algorithm: Algorithm = "imitation"
    epochs: int = 2  # passes over the batch of an iteration; reinforce wants 1
    minibatch_size: int = 64
    learning_rate: float = 2e-4
    learn_space_groups: bool = True  # p(g) is part of the policy; the paper keeps it fixed
    space_group_learning_rate: float = 0.1  # of its 230 logits
    tilt_learning_rate: float = 0.03  # of the biases of letters and elements, beside the network's own; 0: off
    clip: float = 0.2  # of the ratio of new to old probability, arXiv 1707.06347
    ratio: Literal["crystal", "part"] = "part"  # what is clipped: the crystal as one action, or each part of it
    kl_weight: float = 0.01  # nats^-1
    kl_target: float | None = None  # nats to the base; the weight then adapts (Ziegler et al., arXiv 1909.08593)
    kl_stop: float = 0.5  # nats; an iteration's updates end when the policy has moved this far from the sampling one
    baseline: Baseline = "leave-one-out"
    baseline_decay: float = 0.95
    standardise: bool = True  # divide advantages by their standard deviation
    space_group_anchor: float = 0.0  # weight of KL(p(g) to the base's) in the objective: see `Finetuner._anchor`
    repeat_discount: float = 0.2  # of a reward, for each time that its composition and Wyckoff positions were rewarded
    element_limit: float | None = 3.0  # crystals of elements this many times as frequent as in the base earn less
    dpo_beta: float = 0.1
    replay: int = 16384  # best crystals kept, one a composition and Wyckoff positions; 0: none
    replay_weight: float = 0.0  # of self-imitation beside another algorithm (arXiv 1806.05464); 0: off
    max_grad_norm: float = 1.0
    space_groups: tuple[int | str, ...] = ()  # allowed, by number or symbol; empty: all of p(g)
    limits: DriftLimits = field(default_factory=DriftLimits)
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        """Check ranges."""
        positive = (
            "iterations",
            "batch_size",
            "epochs",
            "minibatch_size",
            "learning_rate",
            "max_grad_norm",
            "dpo_beta",
        )
        wrong = [f"{name} > 0" for name in positive if not getattr(self, name) > 0]
        wrong += [
            f"{name} >= 0"
            for name in ("kl_weight", "space_group_anchor", "tilt_learning_rate", "replay", "replay_weight")
            if getattr(self, name) < 0
        ]
        wrong += [f"{name} in (0, 1]" for name in ("clip", "repeat_discount") if not 0 < getattr(self, name) <= 1]
        wrong += [f"{name} > 0 or none" for name in ("kl_target", "element_limit") if (getattr(self, name) or 1) <= 0]
        if self.algorithm == "imitation" and self.replay == 0:
            wrong.append("replay > 0, for there is nothing to imitate otherwise")
        if wrong:
            raise ConfigError(f"fine-tuning expects {', '.join(wrong)}; got {self}.")

    @property
    def imitates(self) -> bool:
        """Whether good crystals are remembered and learned from again."""
        return self.algorithm == "imitation" or (self.replay_weight > 0 and self.replay > 0)

    @property
    def conditions(self) -> Sampling:
        """`sampling` within the allowed space groups: what is drawn, and what every log-probability is under."""
        return self.sampling.within(self.space_groups)


@dataclass(frozen=True)
class Scored:
    """What was noted of n crystals when they were drawn: all without gradient."""

    old: Tensor  # (n, parts) nats under the policy that drew them
    base: Tensor  # (n,) nats under the frozen base
    reward: Tensor  # (n,) with the KL term
    advantage: Tensor  # (n,) reward beyond its baseline

    def __getitem__(self, rows: Tensor) -> Self:
        """Some of the crystals."""
        return type(self)(*(getattr(self, item.name)[rows] for item in fields(self)))


Objective = Callable[[Tensor, Scored], Tensor]


def baselines(rewards: np.ndarray, groups: np.ndarray, kind: Baseline, average: float) -> np.ndarray:
    """What each reward (n,) is compared with, (n,).

    leave-one-out: mean of the others in the batch, an unbiased baseline (Kool et al., ICLR DeepRLStructPred 2019).
    space-group: mean of the others of the same space group, shrunk to leave-one-out of the batch with weight 1, since
    rewards differ strongly between groups. moving-average: the paper's, one number for all.
    """
    n = len(rewards)
    if kind == "moving-average":
        return np.full(n, average)
    others = (rewards.sum() - rewards) / max(1, n - 1)
    if kind == "leave-one-out":
        return others
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.bincount(inverse, weights=rewards)
    return (sums[inverse] - rewards + others) / counts[inverse]


def ppo_objective(logp: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Clipped surrogate (scalar) of arXiv 1707.06347, eq. 7. logp and old (n,) or (n, parts), advantage (n,).

    With parts each is an action of its own: the crystal's advantage counts for all, and each ratio is clipped by
    itself, so that a small move of fifteen choices does not clip them all.
    """
    ratio = (logp - old).exp()
    if ratio.ndim == 2:
        advantage = advantage[:, None]
    surrogate = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
    return surrogate.sum() / len(surrogate)


def reinforce_objective(logp: Tensor, advantage: Tensor) -> Tensor:
    """Score-function surrogate (scalar) of Williams, Mach. Learn. 8, 229 (1992), for logp and advantage (n,)."""
    return (advantage * logp).mean()


def dpo_objective(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Mean log-probability (scalar) that the chosen crystal of each pair is preferred, arXiv 2305.18290, eq. 7.

    Args:
        chosen: log-ratios of policy to base, (pairs,), in nats.
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


def objective_of(config: FinetuneConfig) -> Objective:
    """The objective of an algorithm."""
    if config.algorithm == "dpo":
        return lambda logp, scored: _pairwise(logp.sum(1) - scored.base, scored.reward, config.dpo_beta)
    if config.algorithm == "reinforce":
        return lambda logp, scored: reinforce_objective(logp.sum(1), scored.advantage)
    if config.ratio == "part":
        return lambda logp, scored: ppo_objective(logp, scored.old, scored.advantage, config.clip)
    return lambda logp, scored: ppo_objective(logp.sum(1), scored.old.sum(1), scored.advantage, config.clip)


def _pairwise(log_ratio: Tensor, reward: Tensor, beta: float) -> Tensor:
    better, worse = ranked_pairs(reward)
    if len(better) == 0:
        return log_ratio.sum() * 0.0
    return dpo_objective(log_ratio[better], log_ratio[worse], beta)


def adapted(weight: float, kl: float, target: float | None) -> float:
    """The KL coefficient for the next iteration: larger where the policy is further from the base than wanted."""
    if target is None:
        return weight
    return weight * (1 + float(np.clip(kl / target - 1, -KL_CHANGE, KL_CHANGE)))
