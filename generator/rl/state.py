"""The state of a fine-tuning in one file, such that a resumed run ends where the uninterrupted one does."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from loop.errors import CheckpointError
from loop.io.disk import writing

if TYPE_CHECKING:
    from generator.rl.loop import Finetuner

STATE = "finetune.safetensors"


def save(tuner: Finetuner, path: Path) -> None:
    """Write policy, optimiser, replay buffer, random state and counters, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"policy.{k}": v.detach().contiguous() for k, v in tuner.policy.state_dict().items()}
    for index, state in tuner.optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors |= {f"memory.{k}": v.contiguous() for k, v in tuner.replay.tensors().items()}
    text = {
        "anchor": tuner.anchor,
        "config": asdict(tuner.config),
        "now": asdict(tuner.now),
        "rows": tuner.rows,
        "rng": tuner.rng.bit_generator.state,
        "seen": tuner.replay.counts,
        "best": tuner.replay.best_keys,
    }
    part = path.with_name(path.name + ".part")
    with writing(path):
        save_file(tensors, part, metadata={"state": json.dumps(text)})
        part.replace(path)


def load(tuner: Finetuner, path: Path) -> None:
    """Restore a saved state.

    Raises:
        CheckpointError: damaged, or of another base model or other settings.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        _check(tuner, text, path)
        restore(tuner, text, tensors)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); remove it to start this fine-tuning again") from error


def _check(tuner: Finetuner, text: dict[str, Any], path: Path) -> None:
    if text["anchor"] != tuner.anchor:
        raise CheckpointError(
            f"{path} was tuned against the base {text['anchor'][:12]}…, now the base is {tuner.anchor[:12]}…: "
            "the KL term would change its meaning. Give the same checkpoint, or use a new folder."
        )
    ours = json.loads(json.dumps(asdict(tuner.config)))
    changed = [k for k in ours if k != "iterations" and ours[k] != text["config"].get(k)]
    if changed:
        raise CheckpointError(f"{path} was tuned with other settings of {', '.join(changed)}; use a new folder")


def restore(tuner: Finetuner, text: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """Put everything back."""

    def part(kind: str) -> dict[str, Tensor]:
        return {key.removeprefix(kind): value for key, value in tensors.items() if key.startswith(kind)}

    tuner.policy.load_state_dict(part("policy."))
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in part("adam.").items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    tuner.optimizer.load_state_dict({"state": state, "param_groups": tuner.optimizer.state_dict()["param_groups"]})
    tuner.replay.restore(text["seen"], text["best"], part("memory."))
    tuner.now = type(tuner.now)(**text["now"])
    tuner.rows = text["rows"]
    tuner.rng.bit_generator.state = text["rng"]
