"""Rollouts: crystals that a policy drew, and what was noted of them when they were drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from generator.constraints.conditions import Sampling
from generator.likelihood import LogProb, log_prob
from generator.model import CrystalFormer
from generator.representation.sequence import Crystals
from generator.representation.tokens import detokenize_all
from generator.sample import Sample
from loop.values import Candidate, Origin


@dataclass(frozen=True)
class Rollout:
    """A batch of n crystals. Parts are the choices that make a crystal: letters, elements, coordinates, cell, group.

    Attributes:
        crystals: as tensors.
        groups: (n,) their space groups.
        logp_old: (n, parts) nats under the policy that drew them, without gradient.
        logp_ref: (n,) nats under the frozen reference policy.
        shaped_reward: (n,) reward after repeats and frequent elements were discounted, less `kl_weight` times kl.
    """

    crystals: Crystals
    groups: np.ndarray
    logp_old: Tensor
    logp_ref: Tensor
    shaped_reward: np.ndarray

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.groups)

    @property
    def kl(self) -> np.ndarray:
        """ln(p / p_ref) of each crystal, (n,), nats; its mean estimates the divergence from the reference policy."""
        return (self.logp_old.sum(1) - self.logp_ref).double().cpu().numpy()


def policy_log_prob(
    model: CrystalFormer, crystals: Crystals, conditions: Sampling, *, with_groups: bool, chunks: int = 4
) -> Tensor:
    """Log-probabilities (n, parts) of what the policy chose; the space group is a choice where `with_groups` says so.

    Crystals of similar length are scored together: most of one batch would be padding.
    """
    order = torch.argsort((crystals.W > 0).sum(1), stable=True)
    parts = [_parts(log_prob(model, crystals[rows], conditions), with_groups) for rows in order.chunk(chunks)]
    return torch.cat(parts)[torch.argsort(order)]


def _parts(logp: LogProb, with_groups: bool) -> Tensor:
    chosen = [logp.w, logp.a, logp.xyz, logp.l]
    return torch.stack([*chosen, logp.g] if with_groups else chosen, dim=1)


def to_candidates(drawn: Sample, *, policy: str, round: int, source: str = "policy") -> list[Candidate | None]:
    """Candidates of a sample, None where the tokens are no crystal (a cell without volume)."""
    logp = drawn.logp.total.double().cpu().tolist()
    groups = drawn.batch.G.tolist()
    return [
        None if structure is None else Candidate(structure, Origin(source, g, policy, p), round)
        for structure, g, p in zip(detokenize_all(drawn.batch), groups, logp, strict=True)
    ]
