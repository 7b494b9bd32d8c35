"""In which order and how fast a network learns: batches of similar lengths, learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from generator.pretrain import PretrainConfig

BUCKETS = 32  # batches that are sorted by length together


def batches(lengths: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Random batches of similar lengths, so that little is padding: shuffle, sort within pools, shuffle the batches."""
    order = rng.permutation(len(lengths))
    pools = [order[i : i + BUCKETS * size] for i in range(0, len(order), BUCKETS * size)]
    cuts = [
        ordered[i : i + size]
        for ordered in (pool[np.argsort(lengths[pool], kind="stable")] for pool in pools)
        for i in range(0, len(ordered), size)
    ]
    for k in rng.permutation(len(cuts)):
        yield cuts[k]


def learning_rate(config: PretrainConfig, step: int, total: int, share: float | None = None) -> float:
    """Linear warm-up, then cosine down to `final_share`.

    Args:
        config: of the training.
        step: updates so far.
        total: updates in all.
        share: of the training that is done, where time decides and not the number of updates.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    done = (step - config.warmup_steps) / max(1, total - config.warmup_steps) if share is None else share
    floor = config.final_share
    return config.learning_rate * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))
