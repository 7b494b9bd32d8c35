"""Maximum-likelihood training of the generator, with progress, checkpoints and exact resume."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from generator import prompt, train_state
from generator.checkpoint import load_checkpoint, save_checkpoint
from generator.likelihood import Definition, LogProb, log_prob
from generator.model import CrystalFormer, ModelConfig
from generator.representation.sequence import Crystals
from generator.representation.tokens import CrystalBatch
from generator.schedule import batches, learning_rate
from loop.errors import CheckpointError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

STATE, CURVE = "train.safetensors", "curve.csv"
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.monotonic, "cpu": time.process_time}


@dataclass(frozen=True)
class PretrainConfig:
    """How to train. Defaults were chosen by validation likelihood, see docs/LOG.md.

    One device trains, and resumes, bit for bit the same. Several share each batch (`batch_size` stays that of an
    update); dropout then differs from one device, the likelihood does not.
    """

    model: ModelConfig = field(default_factory=ModelConfig)  # of a new network; with `init`: dropout and prompt count
    init: str | None = None  # checkpoint to start from, as for fine-tuning on another set; p(g) is estimated again
    deepen_to: int | None = None  # layers, with `init`: blocks are added that begin as the identity (arXiv 1511.05641)
    definition: Definition = "exact"  # of the likelihood; published: the original's loss, for its layout
    epochs: int = 60
    batch_size: int = 128
    learning_rate: float = 2e-3
    warmup_steps: int = 300
    final_share: float = 0.02  # of the learning rate, at the end of the cosine
    weight_decay: float = 0.02
    betas: tuple[float, float] = (0.9, 0.98)
    clip_norm: float = 1.0
    averaging: float = 0.0  # decay per update of the weights' running mean, which is then what is validated and kept
    seed: int = 0
    validate_every: int = 1  # epochs
    checkpoint_seconds: float = 120.0
    max_seconds: float | None = None  # stop then
    clock: Literal["wall", "cpu"] = "wall"  # of max_seconds; cpu: seconds that this process computed, all threads
    anneal: Literal["steps", "seconds"] = "steps"  # what the cosine runs over; seconds: max_seconds
    accelerator: str = "cpu"  # or cuda, mps, auto: see lightning_fabric.Fabric
    devices: int = 1
    precision: str = "32-true"  # or bf16-mixed, for GPUs

    def __post_init__(self) -> None:
        """Refuse what contradicts itself."""
        if self.anneal == "seconds" and self.max_seconds is None:
            raise ValueError("anneal: seconds needs max_seconds")
        if min(self.devices, self.validate_every, self.batch_size) < 1:
            raise ValueError("devices, validate_every and batch_size must be at least 1")
        if self.deepen_to is not None and self.init is None:
            raise ValueError("deepen_to needs init, the checkpoint to deepen; for a new network set model.layers")
        if not 0 <= self.averaging < 1:
            raise ValueError("averaging must be at least 0 and below 1, e.g. 0.999")


FREE = ("epochs", "max_seconds", "checkpoint_seconds", "init", "accelerator")  # may change between parts of a run
Report = Callable[[dict[str, float]], None]


def space_group_logits(batch: CrystalBatch, smoothing: float = 0.1) -> Tensor:
    """Logits (230,) of p(g): the smoothed frequencies of a training set, the maximum-likelihood estimate."""
    counts = np.bincount(batch.G, minlength=231)[1:] + smoothing
    return torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)


@torch.no_grad()
def mean_nll(model: CrystalFormer, crystals: Crystals, **options: Any) -> dict[str, float]:
    """Mean negative log-likelihood in nats per crystal, by term; `options` go to `log_prob`."""
    was_training = model.training
    model.eval()
    order = torch.argsort((crystals.W > 0).sum(1), stable=True)
    chunks: list[LogProb] = [log_prob(model, crystals[rows], **options) for rows in order.split(256)]
    model.train(was_training)
    terms = {name: -torch.cat([getattr(c, name) for c in chunks]).mean().item() for name in ("g", "w", "a", "xyz", "l")}
    return terms | {"nll": sum(terms[name] for name in ("w", "a", "xyz", "l"))}


def averaged(model: CrystalFormer, decay: float) -> AveragedModel:
    """The exponential mean of a network's weights, from the first update on.

    Such means generalise better than their last term (Polyak and Juditsky, SIAM J. Control Optim. 30, 838 (1992);
    Izmailov et al., arXiv 1803.05407).
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))


class Objective(nn.Module):
    """The loss as a module, which is what gradients are averaged over devices by."""

    def __init__(self, model: CrystalFormer, definition: Definition) -> None:
        super().__init__()
        self.model, self.definition = model, definition

    def forward(self, crystals: tuple[Tensor, ...], weight: Tensor) -> Tensor:
        """Weighted sum of the negative log-likelihoods, nats; that of the space group counts where it is learned."""
        logp = log_prob(self.model, Crystals(*crystals), definition=self.definition)
        return -((logp.joint if self.model.config.prompt else logp.total) * weight).sum()


class Trainer:
    """A training run in a folder. Everything that a resumed run needs is in one file, `STATE`.

    Args:
        config: how to train.
        train: crystals to learn from.
        val: crystals whose likelihood chooses the best network.
        folder: of state, curve and checkpoint.
        fabric: of the process, where several devices train; else one is made.

    Raises:
        CheckpointError: `config.init` is no checkpoint.
    """

    def __init__(
        self,
        config: PretrainConfig,
        train: CrystalBatch,
        val: CrystalBatch,
        folder: Path,
        fabric: Fabric | None = None,
    ) -> None:
        self.fabric = make_fabric(config) if fabric is None else fabric
        start = None if config.init is None else load_checkpoint(config.init)
        if start is not None:
            layers = max(start.model.config.layers, config.deepen_to or 0)
            told = config.model.prompt or start.model.config.prompt
            changes: dict[str, Any] = {"dropout": config.model.dropout, "layers": layers, "prompt": told}
            config = replace(config, model=replace(start.model.config, **changes))
        torch.manual_seed(config.seed)
        self.config, self.folder = config, folder
        self.model = CrystalFormer(config.model)
        if start is not None:  # what the checkpoint lacks, deeper blocks or prompts, adds exactly zero yet
            self.model.load_state_dict(self.model.state_dict() | start.model.state_dict())
        self.started_from = None if start is None else start.checksum
        self.model.space_group_logits.copy_(space_group_logits(train))
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        plain = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self.mean = averaged(self.model, config.averaging) if config.averaging else None
        objective = Objective(self.model, config.definition)
        self.objective, self.stepper = self.fabric.setup(objective, self.optimizer)
        like = self.model.head.weight
        self.train_set, self.val_set = Crystals.from_batch(train, like), Crystals.from_batch(val, like)
        self.lengths = np.asarray(train.num_sites)
        self.steps_per_epoch = sum(1 for _ in batches(self.lengths, config.batch_size, np.random.default_rng(0)))
        if self.fabric.world_size > 1:  # weights are the same everywhere, dropout is not
            torch.manual_seed(config.seed + 1 + self.fabric.global_rank)
        self.epoch, self.step_in_epoch, self.seconds = 0, 0, 0.0
        self.best = math.inf
        self.curve: list[dict[str, float]] = []
        self.losses: list[float] = []  # since the last validation

    @property
    def step(self) -> int:
        """Updates so far."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def judged(self) -> CrystalFormer:
        """The network that is validated and kept: the mean of those so far, where `averaging` asks for it."""
        if self.mean is None:
            return self.model
        assert isinstance(self.mean.module, CrystalFormer)
        return self.mean.module

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        config, share = self.config, None
        if config.anneal == "seconds" and config.max_seconds is not None:
            share = self.seconds / config.max_seconds
        return learning_rate(config, self.step, config.epochs * self.steps_per_epoch, share)

    def update(self, rows: np.ndarray) -> float:
        """One gradient step; returns the loss in nats per crystal."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        world, rank = self.fabric.world_size, self.fabric.global_rank
        own = rows[rank::world]
        weight = torch.full((len(own),), world / len(rows), device=self.fabric.device)
        if len(own) == 0:  # every device takes part in every update
            own, weight = rows[:1], weight.new_zeros(1)
        crystals = self.train_set[torch.as_tensor(own, device=self.fabric.device)]
        if self.config.model.prompt:
            crystals = replace(crystals, prompt=prompt.drawn(crystals.G, crystals.W, crystals.A))
        loss = self.objective(tuple(getattr(crystals, f.name) for f in fields(crystals)), weight)
        self.stepper.zero_grad(set_to_none=True)
        self.fabric.backward(loss)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.stepper.step()
        if self.mean is not None:
            self.mean.update_parameters(self.model)
        if world == 1:
            result: float = loss.item()
            return result
        mean = self.fabric.all_reduce(loss.detach(), reduce_op="mean")
        assert isinstance(mean, Tensor)
        return mean.item()

    def run(self, report: Report | None = None) -> dict[str, float]:
        """Train to the end (or to `max_seconds`); returns the last row of the curve."""
        clock, saved = CLOCKS[self.config.clock], time.monotonic()
        started, before = clock(), self.seconds
        self.model.train()
        while self.epoch < self.config.epochs:
            order = batches(self.lengths, self.config.batch_size, np.random.default_rng([self.config.seed, self.epoch]))
            for k, rows in enumerate(order):
                if k < self.step_in_epoch:
                    continue
                self.losses.append(self.update(rows))
                self.step_in_epoch = k + 1
                self.seconds = before + clock() - started
                if time.monotonic() - saved > self.config.checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
                if self._over():
                    return self.validate(report)
            self.epoch, self.step_in_epoch = self.epoch + 1, 0
            if self.epoch % self.config.validate_every == 0 or self.epoch == self.config.epochs:
                self.validate(report)
        return self.curve[-1] if self.curve else {}

    def _over(self) -> bool:
        """Whether the time is up; with several devices the first one's clock decides."""
        limit = self.config.max_seconds
        if limit is None or self.fabric.world_size == 1:
            return limit is not None and self.seconds > limit
        return bool(self.fabric.broadcast(self.seconds > limit))

    def validate(self, report: Report | None) -> dict[str, float]:
        """Validate, keep the best model, save the state, tell."""
        terms = self.validation()
        mean = float(np.mean(self.losses)) if self.losses else math.nan
        self.losses = []
        row = {"epoch": self.epoch, "step": self.step, "train": mean} | terms | {"seconds": round(self.seconds, 1)}
        self.curve.append(row)
        better, self.best = terms["nll"] < self.best, min(self.best, terms["nll"])
        if better and self.fabric.is_global_zero:
            provenance = {"epoch": self.epoch, "validation": terms, "training": len(self.train_set)}
            provenance |= {"config": _jsonable(asdict(self.config)), "seconds": round(self.seconds, 1)}
            if self.started_from is not None:
                provenance["init_sha256"] = self.started_from
            save_checkpoint(self.judged, self.folder, provenance)
        self.save()
        if report and self.fabric.is_global_zero:
            report(row)
        return row

    def validation(self) -> dict[str, float]:
        """Mean negative log-likelihoods of the validation set; `told`: g and the rest, given the elements."""
        terms = mean_nll(self.judged, self.val_set, definition=self.config.definition)
        if not self.config.model.prompt:
            return terms
        val = self.val_set
        told = replace(val, prompt=prompt.of_sites(val.G, val.W, val.A, shares=False))
        given = mean_nll(self.judged, told, definition=self.config.definition)
        return terms | {"told": given["nll"] + given["g"]}

    def save(self) -> None:
        """Write the state, atomically."""
        if not self.fabric.is_global_zero:
            return
        tensors = train_state.prefixed("model.", self.model.state_dict())
        tensors |= train_state.optimizer_tensors(self.optimizer)
        if self.mean is not None:
            tensors |= train_state.prefixed("mean.", self.mean.state_dict())
        tensors["rng"] = torch.get_rng_state()
        if self.fabric.device.type == "cuda":
            tensors["rng.cuda"] = torch.cuda.get_rng_state(self.fabric.device)
        names = ("epoch", "step_in_epoch", "seconds", "best", "curve", "losses")
        text = {name: getattr(self, name) for name in names} | {"config": _jsonable(asdict(self.config))}
        train_state.write(self.folder / STATE, tensors, text)
        if self.curve:
            lines = [",".join(self.curve[0])] + [",".join(f"{v:.6g}" for v in row.values()) for row in self.curve]
            (self.folder / CURVE).write_text("\n".join(lines) + "\n")

    def resume(self) -> None:
        """Take up the run in the folder where its last save left it.

        Raises:
            CheckpointError: no state there, or one of another configuration.
        """
        try:
            text, tensors = train_state.read(self.folder / STATE)
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(f"nothing to resume in {self.folder}: {error}") from error
        ours = {k: v for k, v in _jsonable(asdict(self.config)).items() if k not in FREE}
        theirs = _defaults() | text["config"]  # settings that are newer than the run
        changed = [k for k in ours if ours[k] != theirs[k]]
        if changed:
            raise CheckpointError(
                f"{self.folder} was trained with other settings of {', '.join(changed)}; use them or a new folder"
            )
        for name in ("epoch", "step_in_epoch", "seconds", "best", "curve"):
            setattr(self, name, text[name])
        self.losses = text.get("losses", [])
        self.model.load_state_dict(train_state.without_prefix("model.", tensors))
        if self.mean is not None:
            self.mean.load_state_dict(train_state.without_prefix("mean.", tensors))
        train_state.restore_optimizer(self.optimizer, tensors)
        if self.fabric.world_size == 1:
            torch.set_rng_state(tensors["rng"])
            if self.fabric.device.type == "cuda" and "rng.cuda" in tensors:
                torch.cuda.set_rng_state(tensors["rng.cuda"], self.fabric.device)


def _jsonable(data: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(json.dumps(data, default=str).replace("Infinity", '"inf"'))
    return result


def _defaults() -> dict[str, Any]:
    return {f.name: f.default for f in fields(PretrainConfig) if f.default is not MISSING}


def make_fabric(config: PretrainConfig) -> Fabric:
    """Lightning Fabric for a configuration: one device, or several by distributed data parallelism.

    Under torchrun or Slurm their processes are taken, else processes are spawned.

    Raises:
        CheckpointError: the accelerator or the precision is not available.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy
    from lightning_fabric.utilities.exceptions import MisconfigurationException

    # A batch without, say, a free z coordinate leaves its weights without a gradient.
    several: dict[str, Any] = {"find_unused_parameters": True}
    method: Any = "popen" if "LOCAL_RANK" in os.environ or "SLURM_PROCID" in os.environ else "spawn"
    strategy = DDPStrategy(start_method=method, **several) if config.devices > 1 else "auto"
    settings: dict[str, Any] = {"accelerator": config.accelerator, "devices": config.devices, "strategy": strategy}
    try:
        return Fabric(**settings, precision=config.precision)  # type: ignore[arg-type]
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise CheckpointError(
            f"cannot train with accelerator {config.accelerator}, {config.devices} devices and precision "
            f"{config.precision}: {error}"
        ) from error


def pretrain(
    config: PretrainConfig,
    train: CrystalBatch,
    val: CrystalBatch,
    folder: Path,
    *,
    resume: bool = False,
    report: Report | None = None,
) -> dict[str, float]:
    """Train into `folder`; the best model by validation likelihood stands there as a checkpoint.

    With several devices, `report` is called in the first one's process and has to survive pickling.
    """
    job = partial(_train, config=config, train=train, val=val, folder=folder, resume=resume, report=report)
    fabric = make_fabric(config)
    # Fabric looks into the arguments of what it spawns, and takes no frozen dataclass there: they are bound instead.
    return job(fabric) if config.devices == 1 else fabric.launch(job)


def _train(
    fabric: Fabric,
    config: PretrainConfig,
    train: CrystalBatch,
    val: CrystalBatch,
    folder: Path,
    resume: bool,
    report: Report | None,
) -> dict[str, float]:
    """What each process does."""
    trainer = Trainer(config, train, val, folder, fabric)
    if resume:
        trainer.resume()
    return trainer.run(report)
