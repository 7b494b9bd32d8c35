"""The state of a fine-tuning in one file, such that a resumed run ends where the uninterrupted one does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor

from generator import train_state
from generator.rl.config import BEFORE
from loop.errors import CheckpointError

if TYPE_CHECKING:
    from generator.rl.loop import Finetuner

STATE = "finetune.safetensors"


def save(tuner: Finetuner, path: Path) -> None:
    """Write policy, optimiser, replay buffer, random state and counters, atomically."""
    tensors = train_state.prefixed("policy.", tuner.policy.state_dict())
    tensors |= train_state.optimizer_tensors(tuner.optimizer)
    tensors |= train_state.prefixed("memory.", tuner.replay.tensors())
    tensors |= train_state.prefixed("mean.", tuner.mean.tensors())
    text = {
        "anchor": tuner.reference_checksum,
        "config": asdict(tuner.config),
        "now": asdict(tuner.now),
        "rows": tuner.rows,
        "rng": tuner.rng.bit_generator.state,
        "seen": tuner.replay.counts,
        "learned": tuner.replay.learned,
        "best": tuner.replay.best_keys,
    }
    train_state.write(path, tensors, text)


def load(tuner: Finetuner, path: Path) -> None:
    """Restore a saved state.

    Raises:
        CheckpointError: damaged, or of another base model or other settings.
    """
    try:
        text, tensors = train_state.read(path)
        _check(tuner, text, path)
        restore(tuner, text, tensors)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it to start this fine-tuning again") from error


def _check(tuner: Finetuner, text: dict[str, Any], path: Path) -> None:
    if text["anchor"] != tuner.reference_checksum:
        raise CheckpointError(
            f"{path} was tuned against the base {text['anchor'][:12]}…, now the base is "
            f"{tuner.reference_checksum[:12]}…: the KL term would change its meaning. Give the same checkpoint, or "
            "use a new folder."
        )
    ours = json.loads(json.dumps(asdict(tuner.config)))
    changed = [k for k in ours if k != "iterations" and ours[k] != text["config"].get(k, BEFORE.get(k))]
    if changed:
        raise CheckpointError(f"{path} was tuned with other settings of {', '.join(changed)}; use a new folder")


def restore(tuner: Finetuner, text: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put everything back."""
    tuner.policy.load_state_dict(train_state.without_prefix("policy.", tensors))
    train_state.restore_optimizer(tuner.optimizer, tensors)
    buffer = train_state.without_prefix("memory.", tensors)
    tuner.replay.restore(text["seen"], text.get("learned", {}), text["best"], buffer)
    tuner.mean.restore(train_state.without_prefix("mean.", tensors))
    tuner.now = type(tuner.now)(**text["now"])
    tuner.rows = text["rows"]
    tuner.rng.bit_generator.state = text["rng"]
