"""Reinforcement fine-tuning with a KL term to the frozen reference policy: draw, score, update, again.

Objective of CrystalFormer-RL (arXiv 2504.02367): maximise E[r(x) - tau ln(p(x) / p_ref(x))]. Differences from the
released code, each for a reason given in its place: the KL term carries no gradient of its own inside the advantage,
log-probabilities are exactly those of what was drawn, baselines leave the crystal itself out, updates use minibatches
and stop early when the policy has moved far, and everything needed to resume after a kill is kept. How the policy is
updated is up to the algorithm: `raft` (default), `ppo`, `reinforce`, `dpo`, one file each. docs/rl.md explains each
logged number.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generator.likelihood import space_group_logp
from generator.model import CrystalFormer
from generator.representation.sequence import Crystals
from generator.representation.tokens import CrystalBatch
from generator.rl import state as rl_state
from generator.rl.config import FinetuneConfig, adapted
from generator.rl.drift import (
    drift,
    element_ratios,
    element_shares,
    keys,
    over_represented,
    running_mean,
    running_shares,
)
from generator.rl.lessons import Lessons
from generator.rl.replay import ReplayBuffer
from generator.rl.rollout import Rollout, policy_log_prob, to_candidates
from generator.rl.strata import aims, class_shares, prototypes, stratum_shares
from generator.rl.tail import TailMean
from generator.sample import Sample, draw_space_groups, sample
from loop.contracts import Progress, Reward

BASE_BATCHES = 4  # drawn from the reference, for the element shares that the policy's are compared with


class LogitBias:
    """Biases of the letters' and elements' logits, to be moved at a rate of their own.

    Few numbers with direct credit, as the logits of p(g) are: which elements pay, and when to stop, is learned long
    before the network's weights have found it out.
    """

    def __init__(self, policy: CrystalFormer) -> None:
        self.bias = policy.head.bias
        rows = [np.arange(len(self.bias))[policy.rows[name]] for name in ("letter", "element")]
        self.at = torch.as_tensor(np.unique(np.concatenate(rows)), device=self.bias.device)
        self.value = torch.zeros(len(self.at), dtype=self.bias.dtype, device=self.bias.device, requires_grad=True)

    def take_gradient(self) -> None:
        """The gradient of the biases is that of the step to take."""
        self.value.grad = None if self.bias.grad is None else self.bias.grad[self.at].clone()

    def fold(self) -> None:
        """Put the step into the biases; it starts at 0 again."""
        with torch.no_grad():
            self.bias[self.at] += self.value
            self.value.zero_()


@dataclass
class TrainState:
    """Numbers that change during fine-tuning, apart from weights: all of them survive a kill."""

    kl_weight: float
    iteration: int = 0
    average: float | None = None  # of rewards, for the moving-average baseline
    shares: list[float] | None = None  # running share of the crystals that hold each element
    strata: list[float] | None = None  # the same of each stratum of chemistry
    prototypes: dict[str, float] = field(default_factory=dict)  # the same of the frequent prototypes
    stopped: str = ""  # the limit that ended the run


class Finetuner:
    """A policy under training and all that a resumed run needs.

    Args:
        policy: trained in place.
        reference: the frozen reference policy of the KL term.
        reference_checksum: of its weights, so that a run is never resumed against another one.
    """

    def __init__(
        self,
        policy: CrystalFormer,
        reference: CrystalFormer,
        config: FinetuneConfig,
        *,
        seed: int,
        reference_checksum: str,
    ) -> None:
        self.policy, self.reference, self.config = policy.eval(), reference.eval(), config
        self.reference_checksum = reference_checksum
        self.rng = np.random.default_rng(seed)
        groups = [{"params": list(policy.parameters()), "lr": config.learning_rate}]
        if config.learn_space_groups:
            # p(g) is a buffer: its maximum-likelihood estimate is a count, only rewards move it by gradients
            policy.space_group_logits.requires_grad_(True)
            groups.append({"params": [policy.space_group_logits], "lr": config.space_group_learning_rate})
        self.tilt = LogitBias(policy) if config.tilt_learning_rate > 0 else None
        if self.tilt is not None:
            groups.append({"params": [self.tilt.value], "lr": config.tilt_learning_rate})
        self.optimizer = torch.optim.Adam(groups)
        self.now = TrainState(config.kl_weight)
        self.replay = ReplayBuffer(config.algorithm.replay_capacity)
        self.lessons = Lessons(self.replay, config)
        self.mean = TailMean(policy)
        self.rows: list[dict[str, Any]] = []
        self.seed = seed

    def run(
        self, reward: Reward, *, name: str, round: int, progress: Progress | None, folder: Path | None
    ) -> list[dict[str, Any]]:
        """Continue to the last iteration, or until a limit is passed; returns the rows of all of them.

        Raises:
            CheckpointError: the folder holds a damaged state, or that of another base or other settings.
        """
        path = None if folder is None else folder / rl_state.STATE
        if path is not None and path.exists():
            rl_state.load(self, path)
        while self.now.iteration < self.config.iterations and not self.now.stopped:
            row = self.iterate(reward, name, round)
            self.rows.append(row)
            self.mean.after(self.now.iteration, self.config.iterations, self.config.average_last)
            stopped = self.config.limits.passed(self.rows)
            if stopped:
                self.now.stopped = row["stopped"] = stopped
            if path is not None:
                rl_state.save(self, path)
            if progress is not None:
                progress("finetune", self.now.iteration, self.config.iterations, row)
        self.mean.put()
        self.policy.space_group_logits.requires_grad_(False)
        return self.rows

    def iterate(self, reward: Reward, name: str, round: int) -> dict[str, Any]:
        """Draw a batch, score it, update the policy; returns a row of metrics."""
        clock = [time.monotonic()]
        drawn, groups = self._draw(self.policy, self.rng, self.config.batch_size)
        clock.append(time.monotonic())
        candidates = to_candidates(drawn, policy=f"{name}.{self.now.iteration}", round=round)
        rewards, components = reward(candidates)
        if rewards.shape != (len(candidates),) or not np.isfinite(rewards).all():
            raise ValueError(f"a reward must give {len(candidates)} finite numbers, got {rewards.shape=}")
        clock.append(time.monotonic())
        row = {"iteration": self.now.iteration, "reward": float(rewards.mean()), "reward_std": float(rewards.std())}
        names = keys(drawn.batch)
        shaped, watched = self._shape(drawn, rewards, names)
        row |= watched | self.update(drawn, shaped, groups, names)
        row |= _named(_means(components))
        row["crystals"] = sum(c is not None for c in candidates) / len(candidates)
        clock.append(time.monotonic())
        seconds = np.diff(clock)
        row |= dict(zip(("seconds_sample", "seconds_reward", "seconds_update"), seconds.round(3).tolist(), strict=True))
        self.now.iteration += 1
        return row

    @cached_property
    def reference_batch(self) -> CrystalBatch:
        """Crystals of the reference, with whose shares of elements and classes the policy's are compared."""
        n = BASE_BATCHES * self.config.batch_size
        return self._draw(self.reference, np.random.default_rng(self.seed), n)[0].batch

    @cached_property
    def reference_shares(self) -> np.ndarray:
        """Share of the reference's crystals that hold each element, (119,)."""
        return element_shares(self.reference_batch)

    @cached_property
    def stratum_shares(self) -> np.ndarray:
        """Share of the reference's crystals in each stratum of `generator.rl.strata`."""
        return stratum_shares(self.reference_batch)

    def _draw(self, model: CrystalFormer, rng: np.random.Generator, n: int) -> tuple[Sample, np.ndarray]:
        conditions = self.config.conditions
        groups = draw_space_groups(model, n, rng, sampling=conditions)
        return sample(model, groups, rng, conditions), groups

    def _shape(self, drawn: Sample, rewards: np.ndarray, names: list[str]) -> tuple[np.ndarray, dict[str, float]]:
        """Rewards less what repeats and over-represented elements cost, and the numbers that limits watch."""
        config, now, batch = self.config, self.now, drawn.batch
        shares = element_shares(batch)
        running = running_mean(now.shares, shares)
        now.shares = running.tolist()
        now.strata = running_mean(now.strata, stratum_shares(batch)).tolist()
        now.prototypes = running_shares(now.prototypes, prototypes(batch))
        watches = config.element_limit is not None or config.limits.max_element_ratio is not None
        ratios = element_ratios(running, self.reference_shares) if watches else np.ones_like(running)
        shaped = self.replay.discounted(rewards, names, config.repeat_discount)
        if config.element_limit is not None:
            factors = over_represented(batch, ratios, config.element_limit)
            shaped = np.where(shaped > 0, shaped * factors, shaped)
        p_groups = space_group_logp(self.policy, config.conditions).exp().detach().double().cpu().numpy()
        watched = drift(batch, ratios, p_groups) | class_shares(batch)
        return shaped, watched | {"shaped_reward": float(shaped.mean())}

    def update(self, drawn: Sample, rewards: np.ndarray, groups: np.ndarray, names: list[str]) -> dict[str, float]:
        """Move the policy towards crystals that did better than others; `names` are the keys of what was drawn."""
        config, now = self.config, self.now
        crystals = Crystals.from_batch(drawn.batch, self.policy.head.weight)
        with torch.no_grad():
            old = self.log_prob(crystals)
            reference = self._log_prob(self.reference, crystals).sum(1)
        kl = (old.sum(1) - reference).double().cpu().numpy()
        # The KL term is part of the reward: compared with its own baseline, and without a gradient of its own.
        penalised = rewards - now.kl_weight * kl
        self.replay.keep(drawn.batch, np.where(rewards > 0, penalised, 0.0), names)
        self.lessons.forget()
        stepped = config.algorithm.update(self, Rollout(crystals, groups, old, reference, penalised))
        logp, weight = float(old.sum(1).mean()), now.kl_weight
        now.kl_weight = adapted(weight, float(kl.mean()), config.kl_target)
        measured = {"kl": float(kl.mean()), "kl_weight": weight, "logp": logp, "entropy": -logp}
        return measured | stepped

    # what algorithms use: `generator.rl.learner.Learner` --------------------------------------------------------------

    @property
    def reward_average(self) -> float | None:
        """Running mean of shaped rewards."""
        return self.now.average

    @reward_average.setter
    def reward_average(self, value: float | None) -> None:
        self.now.average = value

    def log_prob(self, crystals: Crystals) -> Tensor:
        """Log-probabilities (n, parts) under the policy."""
        return self._log_prob(self.policy, crystals)

    def _log_prob(self, model: CrystalFormer, crystals: Crystals) -> Tensor:
        return policy_log_prob(model, crystals, self.config.conditions, with_groups=self.config.learn_space_groups)

    def replayed_log_prob(self) -> Tensor:
        """Mean log-probability (scalar, nats) of some of the good crystals in the replay buffer."""
        kept = self.replay.best
        if kept is None or not len(self.replay.good):
            return torch.zeros((), dtype=self.policy.dtype, device=self.policy.device)
        wanted = aims(self.stratum_shares, np.array(self.now.strata)) if self.config.keep_classes else None
        rows = self.lessons.choose(self.rng, wanted, self.now.prototypes)
        return self.log_prob(Crystals.from_batch(kept[rows], self.policy.head.weight)).sum(1).mean()

    def steps_per_pass(self, n: int) -> int:
        """Minibatches in a pass over n crystals."""
        return max(1, n // self.config.minibatch_size)

    def minibatches(self, n: int) -> list[np.ndarray]:
        """One pass over n rows, in random order."""
        return np.array_split(self.rng.permutation(n), self.steps_per_pass(n))

    def passes(self) -> int:
        """Passes over a batch."""
        return self.config.epochs

    def step(self, objective: Tensor) -> None:
        """Ascend the gradient of the objective and of the nearness of p(g) to the reference's."""
        config = self.config
        if config.space_group_anchor > 0 and config.learn_space_groups:
            objective = objective - config.space_group_anchor * self._kl_space_group()
        self.optimizer.zero_grad(set_to_none=True)
        (-objective).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        if self.tilt is not None:
            self.tilt.take_gradient()
        self.optimizer.step()
        if self.tilt is not None:
            self.tilt.fold()

    def _kl_space_group(self) -> Tensor:
        """KL divergence (scalar, nats) of p(g) from that of the reference, exactly.

        Without it p(g) ends in the one space group that pays best, since nothing stops a policy-gradient from making a
        good choice certain. With weight w the groups settle at p_ref(g) exp(A(g) / w), where A(g) is the mean
        advantage in a group, in standard deviations.
        """
        logp, reference = (space_group_logp(model, self.config.conditions) for model in (self.policy, self.reference))
        possible = torch.isfinite(reference)
        return (logp[possible].exp() * (logp[possible] - reference[possible])).sum()


def _means(components: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each component over the crystals that have it."""
    names = sorted({name for row in components for name in row})
    values = {name: [row[name] for row in components if name in row and np.isfinite(row[name])] for name in names}
    return {name: float(np.mean(v)) for name, v in values.items() if v}


def _named(means: dict[str, float]) -> dict[str, float]:
    """Columns of the components, and those that limits watch under their short names."""
    watched = {name: means[source] for name, source in (("known", "known"), ("replay", "replay")) if source in means}
    if "guard_invalid" in means:
        watched["valid"] = 1 - means["guard_invalid"]
    return watched | {f"mean_{name}": value for name, value in means.items()}
