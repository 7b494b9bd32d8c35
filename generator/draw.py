"""Conditional generation: space groups from p(g) or given, conditions, guard."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from generator.constraints.conditions import Sampling
from generator.constraints.guard import Guard
from generator.likelihood import LogProb
from generator.model import CrystalFormer
from generator.representation.tokens import CrystalBatch
from generator.sample import Sample, draw_space_groups, sample

SMALLEST_BATCH = 32  # of what is drawn again; smaller ones waste the network's speed


@dataclass(frozen=True)
class Drawn:
    """Crystals, and what the guard did.

    `sample.logp` is the exact log-probability without the guard. With it, a crystal and its space group have
    ``logp.joint - ln(acceptance)``; the acceptance is an estimate, with `acceptance_error` as its standard error.
    Space groups are drawn again too, so one acceptance holds for all groups together.
    """

    sample: Sample
    tries: int  # crystals drawn
    accepted: int  # those of them that passed, of which the first n were kept

    @property
    def acceptance(self) -> float:
        """Estimate of Z, the probability that a crystal passes; 1 without a guard."""
        return self.accepted / self.tries

    @property
    def acceptance_error(self) -> float:
        """Standard error of the acceptance."""
        return math.sqrt(self.acceptance * (1 - self.acceptance) / self.tries)


def draw(
    model: CrystalFormer,
    n: int,
    rng: np.random.Generator,
    sampling: Sampling | None = None,
    *,
    guard: Guard | None = None,
    batch_size: int = 256,
    report: Callable[[int, int], None] | None = None,
) -> Drawn:
    """Draw n crystals.

    Args:
        model: put into evaluation mode.
        n: number of crystals; fewer come back where the guard's tries run out.
        rng: source of randomness.
        sampling: temperature and conditions, the allowed space groups among them.
        guard: crystals that do not pass are drawn again, with their space group. None: all are kept.
        batch_size: crystals drawn at once.
        report: called with (crystals kept, crystals drawn) after each batch.

    Raises:
        ConditionError: conditions that cannot be met in an allowed space group, or in any.
    """
    sampling = sampling or Sampling()
    parts: list[Sample] = []
    tries = accepted = kept = 0
    most = n if guard is None else guard.max_tries * n
    while kept < n and tries < most:
        least = min(n, SMALLEST_BATCH)
        size = n - kept if guard is None else min(max(n - kept, least), most - tries)
        size = min(batch_size, size)
        drawn = sample(model, draw_space_groups(model, size, rng, sampling=sampling), rng, sampling)
        passed = np.ones(size, bool) if guard is None else guard.passes(drawn.batch)
        rows = np.flatnonzero(passed)[: n - kept]
        parts.append(Sample(drawn.batch[rows], drawn.logp[torch.as_tensor(rows, device=model.device)]))
        tries, accepted, kept = tries + size, accepted + int(passed.sum()), kept + len(rows)
        if report is not None:
            report(kept, tries)
    batch = CrystalBatch.concatenate([part.batch for part in parts])
    return Drawn(Sample(batch, LogProb.concatenate([part.logp for part in parts])), tries, accepted)
