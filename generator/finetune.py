"""Reinforcement fine-tuning: proximal policy optimisation with a KL term to the frozen base.

Objective of CrystalFormer-RL (arXiv 2504.02367): maximise E[r(x) - tau ln(p(x) / p_base(x))]. Differences from the
released code, each for a reason given in its place: the KL term carries no gradient of its own inside the advantage,
log-probabilities are exactly those of what was drawn, baselines leave the crystal itself out, updates use minibatches
and stop early when the policy has moved far, and everything needed to go on after a kill is kept.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from generator.likelihood import log_prob
from generator.model import CrystalFormer, Sampling
from generator.sample import Sample, draw_space_groups, sample
from generator.sequence import Crystals
from generator.tokens import detokenize_all
from loop.contracts import Progress, Reward
from loop.errors import CheckpointError
from loop.values import Candidate, Origin

Baseline = Literal["leave-one-out", "space-group", "moving-average"]
STATE = "finetune.safetensors"


@dataclass(frozen=True)
class FinetuneConfig:
    """Settings of the fine-tuning.

    `kl_weight` (tau, nats^-1) 0.1, `clip` 0.2 and the moving average's decay 0.95 are the paper's.
    """

    iterations: int = 30
    batch_size: int = 100
    epochs: int = 2  # passes over the batch of an iteration
    minibatch_size: int = 50
    learning_rate: float = 3e-4
    learn_space_groups: bool = True  # p(g) is part of the policy; the paper keeps it fixed
    space_group_learning_rate: float = 0.03  # of its 230 logits
    clip: float = 0.2  # of the ratio of new to old probability, arXiv 1707.06347
    kl_weight: float = 0.1
    kl_stop: float = 0.5  # nats; an iteration's updates end when the policy has moved this far from the sampling one
    baseline: Baseline = "leave-one-out"
    baseline_decay: float = 0.95
    standardise: bool = True  # divide advantages by their standard deviation
    max_grad_norm: float = 1.0
    space_groups: tuple[int, ...] = ()  # allowed; empty: all of p(g)
    sampling: Sampling = field(default_factory=Sampling)


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
    """Clipped surrogate (scalar, to be maximised) of arXiv 1707.06347, eq. 7, with the crystal as the action."""
    ratio = (logp - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage).mean()


def policy_log_prob(model: CrystalFormer, crystals: Crystals, config: FinetuneConfig, groups: int = 4) -> Tensor:
    """Log-probabilities (n,) of what the policy chose: the crystal, and its space group where p(g) learns too.

    Crystals of alike length are scored together: most of one batch would be padding.
    """
    sampling = config.sampling.within(config.space_groups)
    order = torch.argsort((crystals.W > 0).sum(1), stable=True)
    parts = [log_prob(model, crystals[rows], sampling) for rows in order.chunk(groups)]
    chosen = [part.joint if config.learn_space_groups else part.total for part in parts]
    return torch.cat(chosen)[torch.argsort(order)]


def to_candidates(drawn: Sample, *, policy: str, round: int, source: str = "policy") -> list[Candidate | None]:
    """Candidates of a sample, None where the tokens are no crystal (a cell without volume)."""
    logp = drawn.logp.total.double().cpu().tolist()
    groups = drawn.batch.G.tolist()
    return [
        None if structure is None else Candidate(structure, Origin(source, g, policy, p), round)
        for structure, g, p in zip(detokenize_all(drawn.batch), groups, logp, strict=True)
    ]


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
        self.optimizer = torch.optim.Adam(groups)
        self.iteration = 0
        self.average: float | None = None
        self.rows: list[dict[str, Any]] = []

    def run(
        self, reward: Reward, *, name: str, round: int, progress: Progress | None, folder: Path | None
    ) -> list[dict[str, Any]]:
        """Go on to the last iteration; returns the rows of all of them."""
        if folder is not None and (folder / STATE).exists():
            self.load(folder / STATE)
        while self.iteration < self.config.iterations:
            row = self.iterate(reward, name, round)
            self.rows.append(row)
            if folder is not None:
                self.save(folder / STATE)
            if progress is not None:
                progress("finetune", self.iteration, self.config.iterations, row)
        self.policy.space_group_logits.requires_grad_(False)
        return self.rows

    def iterate(self, reward: Reward, name: str, round: int) -> dict[str, Any]:
        """Draw a batch, score it, update the policy; returns a row of metrics."""
        config, clock = self.config, [time.monotonic()]
        groups = draw_space_groups(self.policy, config.batch_size, self.rng, config.space_groups, config.sampling)
        drawn = sample(self.policy, groups, self.rng, config.sampling)
        clock.append(time.monotonic())
        candidates = to_candidates(drawn, policy=f"{name}.{self.iteration}", round=round)
        rewards, components = reward(candidates)
        if rewards.shape != (len(candidates),) or not np.isfinite(rewards).all():
            raise ValueError(f"a reward must give {len(candidates)} finite numbers, got {rewards.shape=}")
        clock.append(time.monotonic())
        row = {"iteration": self.iteration, "reward": float(rewards.mean()), "reward_std": float(rewards.std())}
        row |= self.update(drawn, rewards, groups)
        row |= _means(components)
        row["crystals"] = sum(c is not None for c in candidates) / len(candidates)
        clock.append(time.monotonic())
        seconds = np.diff(clock)
        row |= dict(zip(("seconds_sample", "seconds_reward", "seconds_update"), seconds.round(3).tolist(), strict=True))
        self.iteration += 1
        return row

    def update(self, drawn: Sample, rewards: np.ndarray, groups: np.ndarray) -> dict[str, float]:
        """Move the policy towards crystals that did better than their baseline."""
        config = self.config
        crystals = Crystals.from_batch(drawn.batch, self.policy.head.weight)
        with torch.no_grad():
            old = policy_log_prob(self.policy, crystals, config)
            log_ratio = old - policy_log_prob(self.base, crystals, config)
        kl = log_ratio.double().cpu().numpy()
        # The KL term is part of the reward: compared with its own baseline, and without a gradient of its own.
        penalised = rewards - config.kl_weight * kl
        mean = float(penalised.mean())
        decay = config.baseline_decay
        self.average = mean if self.average is None else decay * self.average + (1 - decay) * mean
        advantage = penalised - baselines(penalised, groups, config.baseline, self.average)
        if config.standardise:
            advantage = advantage / (advantage.std() + 1e-6)
        target = torch.as_tensor(advantage, dtype=old.dtype, device=old.device)
        moved, clipped, updates = self._epochs(crystals, old, target)
        return {
            "kl": float(kl.mean()),
            "logp": float(old.mean()),
            "kl_step": moved,
            "clipped": clipped,
            "updates": updates,
        }

    def _epochs(self, crystals: Crystals, old: Tensor, advantage: Tensor) -> tuple[float, float, int]:
        """Minibatch updates; returns KL to the sampling policy, share of clipped ratios, number of updates."""
        config, n, updates = self.config, len(crystals), 0
        moved = clipped = 0.0
        for _ in range(config.epochs):
            estimates = []
            for rows in np.array_split(self.rng.permutation(n), max(1, n // config.minibatch_size)):
                at = torch.as_tensor(rows, device=old.device)
                logp = policy_log_prob(self.policy, crystals[at], config)
                loss = -ppo_objective(logp, old[at], advantage[at], config.clip)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.policy.parameters(), config.max_grad_norm)
                self.optimizer.step()
                updates += 1
                change = (logp - old[at]).detach()
                # E[exp(d) - 1 - d] >= 0 is an estimate of the KL divergence of small variance
                estimates.append((change.exp() - 1 - change).mean().item())
                clipped = ((change.exp() - 1).abs() > config.clip).float().mean().item()
            moved = float(np.mean(estimates))
            if moved > config.kl_stop:
                break
        return moved, clipped, updates

    def save(self, path: Path) -> None:
        """Write the whole state into one file, atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {f"policy.{k}": v.detach().contiguous() for k, v in self.policy.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        text = {
            "anchor": self.anchor,
            "config": asdict(self.config),
            "iteration": self.iteration,
            "average": self.average,
            "rows": self.rows,
            "rng": self.rng.bit_generator.state,
        }
        part = path.with_name(path.name + ".part")
        save_file(tensors, part, metadata={"state": json.dumps(text)})
        part.replace(path)

    def load(self, path: Path) -> None:
        """Go back to a saved state.

        Raises:
            CheckpointError: damaged, or of another base model or other settings.
        """
        try:
            with safe_open(path, framework="pt") as file:
                text = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); remove it to start this fine-tuning again") from error
        if text["anchor"] != self.anchor:
            raise CheckpointError(
                f"{path} was tuned against the base {text['anchor'][:12]}…, now the base is {self.anchor[:12]}…: "
                "the KL term would change its meaning. Give the same checkpoint, or use a new folder."
            )
        ours = json.loads(json.dumps(asdict(self.config)))
        changed = [k for k in ours if k != "iterations" and ours[k] != text["config"].get(k)]
        if changed:
            raise CheckpointError(f"{path} was tuned with other settings of {', '.join(changed)}; use a new folder")
        self.policy.load_state_dict({k[7:]: v for k, v in tensors.items() if k.startswith("policy.")})
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("adam."):
                _, index, field_name = key.split(".")
                state.setdefault(int(index), {})[field_name] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.iteration, self.average, self.rows = text["iteration"], text["average"], text["rows"]
        self.rng.bit_generator.state = text["rng"]


def _means(components: Sequence[dict[str, float]]) -> dict[str, float]:
    """Mean of each component over the crystals that have it."""
    names = sorted({name for row in components for name in row})
    values = {name: [row[name] for row in components if name in row and np.isfinite(row[name])] for name in names}
    return {f"mean_{name}": float(np.mean(v)) for name, v in values.items() if v}
