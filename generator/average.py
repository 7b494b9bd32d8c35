"""Means of checkpoints: weights of several trainings of one network, as one network.

Trainings that began at the same weights often end in one valley of the loss, and their mean is better than each
(Wortsman et al., "Model soups", arXiv 2203.05482). Whether it is must be measured: `discovery-loop pretrain` tells the
validation likelihood, `evaluate-generator` all the rest.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from generator.checkpoint import load_checkpoint, save_checkpoint
from loop.errors import CheckpointError, InputError


def average_checkpoints(folders: Sequence[Path], shares: Sequence[float], output: Path) -> str:
    """Write the weighted mean of checkpoints of one architecture; returns the checksum of the weights.

    Args:
        folders: checkpoints; their descriptions are kept in the mean's.
        shares: of each in the mean, positive, summing to 1. None given: equal shares.
        output: folder to write.

    Raises:
        InputError: fewer than two checkpoints, one of them twice, or shares that are no shares.
        CheckpointError: a checkpoint is damaged, or of another architecture than the first.
    """
    if len(folders) < 2:
        raise InputError(f"expected at least two checkpoints to average, got {len(folders)}")
    shares = list(shares) or [1.0 / len(folders)] * len(folders)
    if len(shares) != len(folders) or min(shares) <= 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise InputError(f"expected a positive share for each of {len(folders)} checkpoints, 1 together, got {shares}")
    loaded = [load_checkpoint(folder) for folder in folders]
    if len({one.checksum for one in loaded}) < len(loaded):
        raise InputError(f"expected different checkpoints, two of {', '.join(map(str, folders))} hold the same weights")
    first = loaded[0].model
    for folder, one in zip(folders, loaded, strict=True):
        if replace(one.model.config, dropout=0.0) != replace(first.config, dropout=0.0):
            raise CheckpointError(f"{folder} is of another architecture than {folders[0]}: they have no mean")
    states = [one.model.state_dict() for one in loaded]
    mean = {}
    for name, tensor in states[0].items():
        if tensor.is_floating_point():
            mean[name] = sum(share * state[name] for share, state in zip(shares, states, strict=True))
        else:
            mean[name] = tensor
    first.load_state_dict(mean)
    parts: list[dict[str, Any]] = [
        {"share": share, "sha256": one.checksum, "provenance": one.provenance}
        for share, one in zip(shares, loaded, strict=True)
    ]
    return save_checkpoint(first, output, {"mean_of": parts})
