"""Maximum-likelihood training of the generator, with progress, checkpoints and exact resume."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from generator.checkpoint import save_checkpoint
from generator.likelihood import LogProb, log_prob
from generator.model import CrystalFormer, ModelConfig
from generator.sequence import Crystals
from generator.tokens import CrystalBatch
from loop.errors import CheckpointError

STATE, CURVE = "train.safetensors", "curve.csv"
BUCKETS = 32  # batches that are sorted by length together


@dataclass(frozen=True)
class PretrainConfig:
    """How to train. Defaults were chosen by validation likelihood, see docs/LOG.md."""

    model: ModelConfig = field(default_factory=ModelConfig)
    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 300
    final_share: float = 0.02  # of the learning rate, at the end of the cosine
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    seed: int = 0
    checkpoint_seconds: float = 120.0
    max_seconds: float | None = None  # stop early, with the schedule where it stands


Report = Callable[[dict[str, float]], None]


def space_group_logits(batch: CrystalBatch, smoothing: float = 0.1) -> Tensor:
    """Logits (230,) of p(g): the smoothed frequencies of a training set, the maximum-likelihood estimate."""
    counts = np.bincount(batch.G, minlength=231)[1:] + smoothing
    return torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)


def batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Random batches of alike lengths, so that little is padding: shuffle, sort within pools, shuffle the batches."""
    order = rng.permutation(len(lengths))
    pools = [order[i : i + BUCKETS * size] for i in range(0, len(order), BUCKETS * size)]
    cuts = [
        ordered[i : i + size]
        for ordered in (pool[np.argsort(lengths[pool], kind="stable")] for pool in pools)
        for i in range(0, len(ordered), size)
    ]
    for k in rng.permutation(len(cuts)):
        yield cuts[k]


def learning_rate(config: PretrainConfig, step: int, total: int) -> float:
    """Linear warm-up, then cosine down to `final_share`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps)
    floor = config.final_share
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


@torch.no_grad()
def mean_nll(model: CrystalFormer, crystals: Crystals, **options: Any) -> dict[str, float]:
    """Mean negative log-likelihood in nats a crystal, by term; `options` go to `log_prob`."""
    was_training = model.training
    model.eval()
    order = torch.argsort((crystals.W > 0).sum(1), stable=True)
    chunks: list[LogProb] = [log_prob(model, crystals[rows], **options) for rows in order.split(256)]
    model.train(was_training)
    terms = {name: -torch.cat([getattr(c, name) for c in chunks]).mean().item() for name in ("g", "w", "a", "xyz", "l")}
    return terms | {"nll": sum(terms[name] for name in ("w", "a", "xyz", "l"))}


class Trainer:
    """A training run in a folder. Everything that a resumed run needs is in one file, `STATE`."""

    def __init__(self, config: PretrainConfig, train: CrystalBatch, val: CrystalBatch, folder: Path) -> None:
        torch.manual_seed(config.seed)
        self.config, self.folder = config, folder
        self.model = CrystalFormer(config.model)
        self.model.space_group_logits.copy_(space_group_logits(train))
        like = self.model.head.weight
        self.train_set, self.val_set = Crystals.from_batch(train, like), Crystals.from_batch(val, like)
        self.lengths = np.asarray(train.num_sites)
        self.steps_per_epoch = sum(1 for _ in batches(self.lengths, config.batch_size, np.random.default_rng(0)))
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas)
        self.epoch, self.step_in_epoch, self.seconds = 0, 0, 0.0
        self.best = math.inf
        self.curve: list[dict[str, float]] = []

    @property
    def step(self) -> int:
        """Updates so far."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    def update(self, rows: np.ndarray) -> float:
        """One gradient step; returns the loss in nats a crystal."""
        total = self.config.epochs * self.steps_per_epoch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step, total)
        logp = log_prob(self.model, self.train_set[torch.as_tensor(rows)])
        loss = -logp.total.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        return loss.item()

    def run(self, report: Report | None = None) -> dict[str, float]:
        """Train to the end (or to `max_seconds`); returns the last row of the curve."""
        started, saved = time.monotonic(), time.monotonic()
        before = self.seconds
        self.model.train()
        while self.epoch < self.config.epochs:
            losses = []
            order = batches(self.lengths, self.config.batch_size, np.random.default_rng([self.config.seed, self.epoch]))
            for k, rows in enumerate(order):
                if k < self.step_in_epoch:
                    continue
                losses.append(self.update(rows))
                self.step_in_epoch = k + 1
                self.seconds = before + time.monotonic() - started
                if time.monotonic() - saved > self.config.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                if self.config.max_seconds and self.seconds > self.config.max_seconds:
                    return self.finish_epoch(losses, report)
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
            self.finish_epoch(losses, report)
        return self.curve[-1] if self.curve else {}

    def finish_epoch(self, losses: list[float], report: Report | None) -> dict[str, float]:
        """Validate, keep the best model, save the state, tell."""
        terms = mean_nll(self.model, self.val_set)
        mean = float(np.mean(losses)) if losses else math.nan
        row = {"epoch": self.epoch, "step": self.step, "train": mean} | terms | {"seconds": round(self.seconds, 1)}
        self.curve.append(row)
        if terms["nll"] < self.best:
            self.best = terms["nll"]
            provenance = {"epoch": self.epoch, "validation": terms, "training": len(self.train_set)}
            provenance |= {"config": _jsonable(asdict(self.config)), "seconds": round(self.seconds, 1)}
            save_checkpoint(self.model, self.folder, provenance)
        self.save()
        if report:
            report(row)
        return row

    def save(self) -> None:
        """Write the state, atomically."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
        tensors["rng"] = torch.get_rng_state()
        names = ("epoch", "step_in_epoch", "seconds", "best", "curve")
        text = {name: getattr(self, name) for name in names} | {"config": _jsonable(asdict(self.config))}
        part = self.folder / (STATE + ".part")
        save_file(tensors, part, metadata={"state": json.dumps(text)})
        part.replace(self.folder / STATE)
        if self.curve:
            lines = [",".join(self.curve[0])] + [",".join(f"{v:.6g}" for v in row.values()) for row in self.curve]
            (self.folder / CURVE).write_text("\n".join(lines) + "\n")

    def resume(self) -> None:
        """Take up the run in the folder where its last save left it.

        Raises:
            CheckpointError: no state there, or one of another configuration.
        """
        try:
            with safe_open(self.folder / STATE, framework="pt") as file:
                text = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"nothing to resume in {self.folder}: {error}") from error
        free = ("epochs", "max_seconds", "checkpoint_seconds")  # what may change between the parts of a run
        ours = {k: v for k, v in _jsonable(asdict(self.config)).items() if k not in free}
        theirs = {k: text["config"].get(k) for k in ours}
        if ours != theirs:
            changed = [k for k in ours if ours[k] != theirs[k]]
            raise CheckpointError(
                f"{self.folder} was trained with other settings of {', '.join(changed)}; use them or a new folder"
            )
        for name in ("epoch", "step_in_epoch", "seconds", "best", "curve"):
            setattr(self, name, text[name])
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        torch.set_rng_state(tensors["rng"])


def _jsonable(data: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(data, default=str).replace("Infinity", '"inf"'))


def pretrain(
    config: PretrainConfig,
    train: CrystalBatch,
    val: CrystalBatch,
    folder: Path,
    *,
    resume: bool = False,
    report: Report | None = None,
) -> dict[str, float]:
    """Train into `folder`; the best model by validation likelihood stands there as a checkpoint."""
    trainer = Trainer(config, train, val, folder)
    if resume:
        trainer.resume()
    return trainer.run(report)
