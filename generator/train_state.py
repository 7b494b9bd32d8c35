"""The state of a training in one safetensors file: tensors by prefixed names, and all else as JSON beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from loop.io.disk import writing

ADAM = "adam."


def write(path: Path, tensors: dict[str, Tensor], text: dict[str, Any]) -> None:
    """Write a state whole or not at all; `text` is JSON-ready."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with writing(path):
        save_file(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            part,
            metadata={"state": json.dumps(text)},
        )
        part.replace(path)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `write` wrote: text and tensors.

    Raises:
        OSError: there is no such file.
        safetensors.SafetensorError, ValueError, TypeError, KeyError: it is damaged.
    """
    with safe_open(path, framework="pt") as file:
        text: dict[str, Any] = json.loads(file.metadata()["state"])
        return text, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under names that begin so."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of `prefixed`: those that begin so, under their own names."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimiser, such as Adam's moments, as ``adam.<index of the parameter>.<name>``."""
    found: dict[str, Tensor] = {}
    for index, state in optimizer.state_dict()["state"].items():
        found |= prefixed(f"{ADAM}{index}.", {name: torch.as_tensor(value) for name, value in state.items()})
    return found


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave; learning rates stay as they are."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in without_prefix(ADAM, tensors).items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
