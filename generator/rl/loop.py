"""Reinforcement fine-tuning with a KL term to the frozen base: draw, score, update, again.

Objective of CrystalFormer-RL (arXiv 2504.02367): maximise E[r(x) - tau ln(p(x) / p_base(x))]. Differences from the
released code, each for a reason given in its place: the KL term carries no gradient of its own inside the advantage,
log-probabilities are exactly those of what was drawn, baselines leave the crystal itself out, updates use minibatches
and stop early when the policy has moved far, and everything needed to go on after a kill is kept. By default the update
is imitation (`Finetuner._imitate`): policy gradients follow the reward to where its potential errs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generator.likelihood import LogProb, log_prob, space_group_logp
from generator.model import CrystalFormer
from generator.rl import state as rl_state
from generator.rl.config import (
    FinetuneConfig,
    Scored,
    adapted,
    baselines,
    objective_of,
    ppo_objective,
)
from generator.rl.drift import SHARES_DECAY, drift, element_ratios, element_shares, keys, over_represented
from generator.rl.replay import Memory
from generator.sample import Sample, draw_space_groups, sample
from generator.sequence import Crystals
from generator.tokens import detokenize_all
from loop.contracts import Progress, Reward
from loop.values import Candidate, Origin

__all__ = ["FinetuneConfig", "Finetuner", "baselines", "policy_log_prob", "ppo_objective", "to_candidates"]
BASE_BATCHES = 4  # drawn from the base, for the element shares that the policy's are compared with


def policy_log_prob(model: CrystalFormer, crystals: Crystals, config: FinetuneConfig, groups: int = 4) -> Tensor:
    """Log-probabilities (n, parts) of what the policy chose: letters, elements, coordinates, cell, and g if it learns.

    Crystals of alike length are scored together: most of one batch would be padding.
    """
    order = torch.argsort((crystals.W > 0).sum(1), stable=True)
    parts = [_parts(log_prob(model, crystals[rows], config.conditions), config) for rows in order.chunk(groups)]
    return torch.cat(parts)[torch.argsort(order)]


def _parts(logp: LogProb, config: FinetuneConfig) -> Tensor:
    chosen = [logp.w, logp.a, logp.xyz, logp.l]
    return torch.stack([*chosen, logp.g] if config.learn_space_groups else chosen, dim=1)


def to_candidates(drawn: Sample, *, policy: str, round: int, source: str = "policy") -> list[Candidate | None]:
    """Candidates of a sample, None where the tokens are no crystal (a cell without volume)."""
    logp = drawn.logp.total.double().cpu().tolist()
    groups = drawn.batch.G.tolist()
    return [
        None if structure is None else Candidate(structure, Origin(source, g, policy, p), round)
        for structure, g, p in zip(detokenize_all(drawn.batch), groups, logp, strict=True)
    ]


class Tilt:
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
        """The gradient of the biases is that of the tilt."""
        self.value.grad = None if self.bias.grad is None else self.bias.grad[self.at].clone()

    def fold(self) -> None:
        """Put the step into the biases; the tilt starts at 0 again."""
        with torch.no_grad():
            self.bias[self.at] += self.value
            self.value.zero_()


@dataclass
class Progressing:
    """Numbers that change as the fine-tuning goes on, apart from weights: all of them survive a kill."""

    kl_weight: float
    iteration: int = 0
    average: float | None = None  # of rewards, for the moving-average baseline
    shares: list[float] | None = None  # running share of the crystals that hold each element
    stopped: str = ""  # the limit that ended the run


class Finetuner:
    """A policy under training and all that a resumed run needs.

    Args:
        policy: trained in place.
        base: frozen; anchor of the KL term.
        anchor: checksum of the base, so that a run is never resumed against another one.
    """

    def __init__(
        self, policy: CrystalFormer, base: CrystalFormer, config: FinetuneConfig, *, seed: int, anchor: str
    ) -> None:
        self.policy, self.base, self.config, self.anchor = policy.eval(), base.eval(), config, anchor
        self.rng = np.random.default_rng(seed)
        groups = [{"params": list(policy.parameters()), "lr": config.learning_rate}]
        if config.learn_space_groups:
            # p(g) is a buffer: its maximum-likelihood estimate is a count, only rewards move it by gradients
            policy.space_group_logits.requires_grad_(True)
            groups.append({"params": [policy.space_group_logits], "lr": config.space_group_learning_rate})
        self.tilt = Tilt(policy) if config.tilt_learning_rate > 0 else None
        if self.tilt is not None:
            groups.append({"params": [self.tilt.value], "lr": config.tilt_learning_rate})
        self.optimizer = torch.optim.Adam(groups)
        self.objective = objective_of(config)
        self.now = Progressing(config.kl_weight)
        self.memory = Memory(config.replay if config.imitates else 0)
        self.rows: list[dict[str, Any]] = []
        self.seed = seed

    def run(
        self, reward: Reward, *, name: str, round: int, progress: Progress | None, folder: Path | None
    ) -> list[dict[str, Any]]:
        """Go on to the last iteration, or until a limit is passed; returns the rows of all of them.

        Raises:
            CheckpointError: the folder holds a damaged state, or that of another base or other settings.
        """
        path = None if folder is None else folder / rl_state.STATE
        if path is not None and path.exists():
            rl_state.load(self, path)
        while self.now.iteration < self.config.iterations and not self.now.stopped:
            row = self.iterate(reward, name, round)
            self.rows.append(row)
            stopped = self.config.limits.passed(self.rows)
            if stopped:
                self.now.stopped = row["stopped"] = stopped
            if path is not None:
                rl_state.save(self, path)
            if progress is not None:
                progress("finetune", self.now.iteration, self.config.iterations, row)
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
        earned, watched = self._shape(drawn, rewards, names)
        row |= watched | self.update(drawn, earned, groups, names)
        row |= _named(_means(components))
        row["crystals"] = sum(c is not None for c in candidates) / len(candidates)
        clock.append(time.monotonic())
        seconds = np.diff(clock)
        row |= dict(zip(("seconds_sample", "seconds_reward", "seconds_update"), seconds.round(3).tolist(), strict=True))
        self.now.iteration += 1
        return row

    @cached_property
    def base_shares(self) -> np.ndarray:
        """Share of the base's crystals that hold each element, (119,)."""
        n = BASE_BATCHES * self.config.batch_size
        return element_shares(self._draw(self.base, np.random.default_rng(self.seed), n)[0].batch)

    def _draw(self, model: CrystalFormer, rng: np.random.Generator, n: int) -> tuple[Sample, np.ndarray]:
        conditions = self.config.conditions
        groups = draw_space_groups(model, n, rng, sampling=conditions)
        return sample(model, groups, rng, conditions), groups

    def _shape(self, drawn: Sample, rewards: np.ndarray, names: list[str]) -> tuple[np.ndarray, dict[str, float]]:
        """Rewards less what repeats and over-represented elements cost, and the numbers that limits watch."""
        config, now, batch = self.config, self.now, drawn.batch
        shares = element_shares(batch)
        running = shares if now.shares is None else SHARES_DECAY * np.array(now.shares) + (1 - SHARES_DECAY) * shares
        now.shares = running.tolist()
        watches = config.element_limit is not None or config.limits.max_element_ratio is not None
        ratios = element_ratios(running, self.base_shares) if watches else np.ones_like(running)
        earned = self.memory.discounted(rewards, names, config.repeat_discount)
        if config.element_limit is not None:
            factors = over_represented(batch, ratios, config.element_limit)
            earned = np.where(earned > 0, earned * factors, earned)
        p_groups = space_group_logp(self.policy, config.conditions).exp().detach().double().cpu().numpy()
        return earned, drift(batch, ratios, p_groups) | {"reward_earned": float(earned.mean())}

    def update(self, drawn: Sample, rewards: np.ndarray, groups: np.ndarray, names: list[str]) -> dict[str, float]:
        """Move the policy towards crystals that did better than others; `names` are the keys of what was drawn."""
        config, now = self.config, self.now
        crystals = Crystals.from_batch(drawn.batch, self.policy.head.weight)
        with torch.no_grad():
            old = policy_log_prob(self.policy, crystals, config)
            base = policy_log_prob(self.base, crystals, config).sum(1)
        kl = (old.sum(1) - base).double().cpu().numpy()
        # The KL term is part of the reward: compared with its own baseline, and without a gradient of its own.
        penalised = rewards - now.kl_weight * kl
        self.memory.keep(drawn.batch, np.where(rewards > 0, penalised, 0.0), names)
        mean, decay = float(penalised.mean()), config.baseline_decay
        now.average = mean if now.average is None else decay * now.average + (1 - decay) * mean
        stepped: dict[str, float]
        if config.algorithm == "imitation":
            stepped = {"updates": self._imitate(len(groups))}
        else:
            advantage = penalised - baselines(penalised, groups, config.baseline, now.average)
            if config.standardise:
                advantage = advantage / (advantage.std() + 1e-6)
            tensor = lambda values: torch.as_tensor(values, dtype=old.dtype, device=old.device)  # noqa: E731
            stepped = self._epochs(crystals, Scored(old, base, tensor(penalised), tensor(advantage)))
        logp, weight = float(old.sum(1).mean()), now.kl_weight
        now.kl_weight = adapted(weight, float(kl.mean()), config.kl_target)
        measured = {"kl": float(kl.mean()), "kl_weight": weight, "logp": logp, "entropy": -logp}
        return measured | stepped

    def _imitate(self, n: int) -> int:
        """Maximum likelihood of remembered crystals, in as many minibatches as `n` drawn ones have; returns these.

        Samples of a policy near the base that pass the reward are mostly right; policy gradients go on to where the
        reward errs (`discovery-loop benchmark rl`, judged by a second potential). Reward-ranked fine-tuning,
        arXiv 2304.06767, over all that was drawn so far instead of the last batch.
        """
        if not len(self.memory.good):
            return 0
        updates = self.config.epochs * max(1, n // self.config.minibatch_size)
        for _ in range(updates):
            self._step(self._recalled() + self._extras())
        return updates

    def _epochs(self, crystals: Crystals, scored: Scored) -> dict[str, float]:
        """Minibatch updates; returns KL to the sampling policy, share of clipped ratios, number of updates."""
        config, n, updates = self.config, len(crystals), 0
        moved = clipped = 0.0
        for _ in range(config.epochs):
            estimates = []
            for rows in np.array_split(self.rng.permutation(n), max(1, n // config.minibatch_size)):
                at = torch.as_tensor(rows, device=scored.old.device)
                logp = policy_log_prob(self.policy, crystals[at], config)
                self._step(self.objective(logp, scored[at]) + self._extras())
                updates += 1
                change = (logp - scored.old[at]).detach().sum(1)
                # E[exp(d) - 1 - d] >= 0 is an estimate of the KL divergence of small variance
                estimates.append((change.exp() - 1 - change).mean().item())
                clipped = ((change.exp() - 1).abs() > config.clip).float().mean().item()
            moved = float(np.mean(estimates))
            if moved > config.kl_stop:
                break
        return {"kl_step": moved, "clipped": clipped, "updates": updates}

    def _step(self, objective: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        (-objective).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        if self.tilt is not None:
            self.tilt.take_gradient()
        self.optimizer.step()
        if self.tilt is not None:
            self.tilt.fold()

    def _extras(self) -> Tensor:
        """What is maximised besides: nearness of p(g) to the base's, log-probability of the best crystals so far."""
        config = self.config
        total = torch.zeros((), dtype=self.policy.dtype, device=self.policy.device)
        if config.space_group_anchor > 0 and config.learn_space_groups:
            total = total - config.space_group_anchor * self._anchor()
        if config.algorithm != "imitation" and config.imitates:
            total = total + config.replay_weight * self._recalled()
        return total

    def _recalled(self) -> Tensor:
        """Mean log-probability (scalar, nats) of some of the good crystals in memory."""
        good, memory = self.memory.good, self.memory.best
        if memory is None or not len(good):
            return torch.zeros((), dtype=self.policy.dtype, device=self.policy.device)
        rows = self.rng.choice(good, size=min(len(good), self.config.minibatch_size), replace=False)
        crystals = Crystals.from_batch(memory[rows], self.policy.head.weight)
        return policy_log_prob(self.policy, crystals, self.config).sum(1).mean()

    def _anchor(self) -> Tensor:
        """KL divergence (scalar, nats) of p(g) from the base's, exactly.

        Without it p(g) ends in the one space group that pays best, since nothing stops a policy-gradient from making a
        good choice certain. With weight w the groups settle at p_base(g) exp(A(g) / w), where A(g) is the mean
        advantage in a group, in standard deviations.
        """
        logp, base = (space_group_logp(model, self.config.conditions) for model in (self.policy, self.base))
        possible = torch.isfinite(base)
        return (logp[possible].exp() * (logp[possible] - base[possible])).sum()


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
