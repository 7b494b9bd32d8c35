"""The log-probability of a crystal: one definition for training, sampling, policy ratios and KL.

``exact`` is the probability of what the sampler draws: independent coordinates only, one mixture component for the
whole cell, masks, temperature and top-p included. ``published`` is the loss of arXiv 2403.15734 as released: dependent
coordinates are counted too and each cell parameter has a mixture of its own; it needs the published layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal, Self

import numpy as np
import torch
from torch import Tensor

from generator.constraints.budgets import INFEASIBLE
from generator.constraints.conditions import Sampling, numbers
from generator.constraints.feasibility import Feasibility, FeasibleCompletions, feasibility
from generator.distributions import Categorical, LatticeMixture, VonMisesMixture
from generator.model import CrystalFormer
from generator.prompt import Told, of_conditions
from generator.representation.sequence import A, Crystals, TokenSequence, W, X, Z, build_sequence
from generator.representation.wyckoff import tables

Definition = Literal["exact", "published"]


@dataclass(frozen=True)
class LogProb:
    """Log-probabilities in nats, each (n,). Coordinates are densities per radian of 2 pi x.

    `g` is that of the space group under p(g), restricted to the allowed groups in which the conditions can be met; the
    others are given the space group and the conditions.
    """

    g: Tensor
    w: Tensor
    a: Tensor
    xyz: Tensor
    l: Tensor  # noqa: E741

    @property
    def total(self) -> Tensor:
        """Of the crystal given its space group: w + a + xyz + l."""
        return self.w + self.a + self.xyz + self.l

    @property
    def joint(self) -> Tensor:
        """Of the crystal and its space group."""
        return self.g + self.total

    def __getitem__(self, rows: Tensor | slice) -> Self:
        """Some of the crystals."""
        return type(self)(*(getattr(self, f.name)[rows] for f in fields(self)))

    @classmethod
    def concatenate(cls, parts: Sequence[Self]) -> Self:
        """One after the other."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class Masks:
    """What symmetry allows, as tensors: see `generator.representation.wyckoff.WyckoffTables` for the sources."""

    first_letter: Tensor  # (231, 28)
    next_letter: Tensor  # (231, 28, 28): by the letter before
    free: Tensor  # (231, 28, 3)
    active: Tensor  # (231, 28, 3): coordinates that the published loss counts
    lattice: Tensor  # (231, 6)
    op0: Tensor  # (231, 28, 3, 4)


_MASKS: dict[tuple[str, torch.dtype], Masks] = {}


def masks(device: torch.device, dtype: torch.dtype) -> Masks:
    """Masks of all groups, cached by device and dtype."""
    key = (str(device), dtype)
    if key not in _MASKS:
        t = tables()
        letter = torch.arange(28)
        exists = (letter >= 1) & (letter <= torch.tensor(t.n_letters)[:, None])  # (231, 28)
        before = letter[:, None]
        # Letters never go back; a position without freedom is used once. A pad follows a pad.
        repeatable = ~torch.tensor(t.dof0)[:, :, None]
        later = (letter > before) | ((letter == before) & repeatable)
        following = exists[:, None] & later & (before > 0)
        following[:, :, 0] = True
        parts = [exists, following, *(torch.tensor(mask) for mask in (t.free, t.fc_mask, t.lattice_mask))]
        moved = [part.to(device) for part in parts]
        op0 = torch.tensor(t.op0, dtype=dtype, device=device)
        _MASKS[key] = Masks(moved[0], moved[1], moved[2], moved[3], moved[4].bool(), op0)
    return _MASKS[key]


@lru_cache(maxsize=32)
def _elements(allowed: frozenset[int], size: int, device: torch.device) -> Tensor:
    """Allowed elements, bool (size,)."""
    mask = torch.zeros(size, dtype=torch.bool)
    mask[list(allowed)] = True
    return mask.to(device)


def _conditioned(raw: Tensor, further: Tensor, sampling: Sampling) -> Categorical:
    """Choices from logits (m, k) where each needs `further` (m, k) sites to fulfil them (INFEASIBLE: forbidden).

    The network knows nothing of the conditions. It would end a crystal where it cannot end yet, and, forbidden to, add
    site after site until the slots run out. Urgency stands for what it does not know: the probability exp(-urgency),
    for each site that is still needed, that it would come by itself.
    """
    return Categorical.of(raw - sampling.urgency * further, further < INFEASIBLE, sampling)


def letter_distribution(
    raw: Tensor, g: Tensor, before: Tensor, last: Tensor, sampling: Sampling, *, further: Tensor | None = None
) -> Categorical:
    """Of the next letter.

    Args:
        raw: logits (m, 28).
        g: space groups (m,).
        before: letters before (m,).
        last: bool (m,), slots where only the stop letter is left.
        sampling: temperature and top-p.
        further: sites (m, 28) of `generator.constraints.feasibility` where there are conditions, which imply
            what symmetry allows.
    """
    if further is not None:
        return _conditioned(raw, further, sampling)
    allowed = masks(raw.device, raw.dtype).next_letter[g, before]
    stop = torch.zeros_like(allowed)
    stop[:, 0] = True
    return Categorical.of(raw, torch.where(last[:, None], stop, allowed), sampling)


def first_letter_distribution(
    raw: Tensor, g: Tensor, sampling: Sampling, *, further: Tensor | None = None
) -> Categorical:
    """Of the first letter; the stop letter is not among the choices. `further` as in `letter_distribution`."""
    if further is not None:
        return _conditioned(raw, further, sampling)
    return Categorical.of(raw, masks(raw.device, raw.dtype).first_letter[g], sampling)


def element_distribution(raw: Tensor, sampling: Sampling, *, further: Tensor | None = None) -> Categorical:
    """Of the element of a site.

    Args:
        raw: logits (m, 119).
        sampling: allowed elements, bias, temperature and top-p.
        further: sites (m, 119) of `generator.constraints.feasibility` where there are conditions, which imply the
            allowed elements.
    """
    if sampling.bias:
        bias = torch.zeros(raw.shape[-1], dtype=raw.dtype)
        bias[list(numbers(sampling.bias))] = torch.tensor(list(sampling.bias.values()), dtype=raw.dtype)
        raw = raw + bias.to(raw.device)
    if further is not None:
        return _conditioned(raw, further, sampling)
    return Categorical.of(raw, _elements(sampling.allowed, raw.shape[-1], raw.device).expand_as(raw), sampling)


def space_group_logp(model: CrystalFormer, sampling: Sampling, told: Told | None = None) -> Tensor:
    """Log-probabilities (n, 230) of the space groups: p(g), on the allowed groups in which the conditions can be met.

    Not the posterior of g given the conditions, which would take a sum over all crystals; where the network was told
    the elements, p(g) is what it learned for them.

    Args:
        model: the network.
        sampling: conditions.
        told: what the prompts of n crystals add; None: that of the conditions, and the result is (230,).

    Raises:
        ConditionError: an allowed group is impossible, or all groups are.
    """
    logits, general = model.space_group_logits.to(model.real), told or model.told_by(sampling)
    if general is not None:
        logits = logits + (general.groups if told is not None else general.groups[0]).to(model.real)
    conditions = feasibility(sampling, model.config.slots)
    if conditions is None and not sampling.space_groups:
        return torch.log_softmax(logits, -1)
    groups = np.arange(1, logits.shape[-1] + 1)
    allowed = np.isin(groups, sampling.space_groups) if conditions is None else conditions.groups
    logits = logits.masked_fill(~torch.as_tensor(allowed, device=logits.device), -torch.inf)
    return torch.log_softmax(logits, -1)


def prompted(model: CrystalFormer, crystals: Crystals, sampling: Sampling) -> Crystals:
    """The crystals with the prompt of the conditions, where the network takes prompts and they have none."""
    prompt = of_conditions(sampling) if model.config.prompt and crystals.prompt is None else None
    return crystals if prompt is None else replace(crystals, prompt=prompt.to(model.device).expand(len(crystals), -1))


def teacher_forced(conditions: Feasibility, crystals: Crystals) -> tuple[Tensor, Tensor]:
    """Further sites at each site of given crystals: by letter (n, S, 28) and by element (n, S, 119), uint8."""
    G, W, A = (t.cpu().numpy() for t in (crystals.G, crystals.W, crystals.A))
    letters, elements = np.zeros((*W.shape, 28), np.uint8), np.zeros((*W.shape, 119), np.uint8)
    prefixes, rows = FeasibleCompletions(conditions, G), np.arange(len(G))
    for site in range(W.shape[1]):
        letters[rows, site] = prefixes.letters()
        going = np.flatnonzero(W[rows, site])
        rows, prefixes = rows[going], prefixes.keep(going)
        if len(rows) == 0:
            break
        elements[rows, site] = prefixes.elements(W[rows, site])
        prefixes.place(W[rows, site], A[rows, site])
    device = crystals.G.device
    return torch.as_tensor(letters, device=device), torch.as_tensor(elements, device=device)


def log_prob(
    model: CrystalFormer, crystals: Crystals, sampling: Sampling | None = None, definition: Definition = "exact"
) -> LogProb:
    """Log-probabilities of n crystals.

    Raises:
        ValueError: the published definition was asked of a model in the free layout.
    """
    config, sampling = model.config, sampling or Sampling()
    exact = definition == "exact"
    if not exact and config.free_layout:
        raise ValueError("the published likelihood needs a model in the published layout, not free_layout=True")
    crystals = prompted(model, crystals, sampling)
    told = model.told(crystals.prompt)
    sequence = build_sequence(crystals, model.free if config.free_layout else None)
    hidden = model(sequence)
    before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)  # state that predicts each token
    mask = masks(model.device, model.real)
    conditions = feasibility(sampling, config.slots)
    forced = None if conditions is None else teacher_forced(conditions, crystals)

    further = None if forced is None else forced[0]
    first = model.predict_first_letter(crystals.G, told)
    logp_w = _letters(model, crystals, sequence, first, before, sampling, further, last=exact)
    at = sequence.present & (sequence.kind == A)
    further = None if forced is None else forced[1][at.nonzero()[:, 0], sequence.site[at]]
    elements = element_distribution(model.predict("element", before[at]), sampling, further=further)
    logp_a = _sum(at, elements.log_prob(sequence.index[at]))
    logp_xyz = _coordinates(model, crystals, sequence, before, sampling, mask.free if exact else mask.active)

    at = sequence.present & (sequence.kind == W) & (sequence.index == 0)
    cell = LatticeMixture.of(model.predict("lattice", hidden[at]), config, sampling)
    density = cell.log_prob if exact else cell.log_prob_published
    logp_l = density(crystals.L, mask.lattice[crystals.G])
    at_groups = space_group_logp(model, sampling, told).expand(len(crystals), -1)
    logp_g = at_groups.gather(1, crystals.G[:, None] - 1)[:, 0]
    return LogProb(logp_g, logp_w, logp_a, logp_xyz, logp_l)


def _sum(at: Tensor, logp: Tensor) -> Tensor:
    """Sum over each crystal (n,) of log-probabilities of the tokens that `at` (n, T) marks."""
    return torch.zeros(len(at), dtype=logp.dtype, device=logp.device).index_add(0, at.nonzero()[:, 0], logp)


def _letters(
    model: CrystalFormer,
    crystals: Crystals,
    sequence: TokenSequence,
    raw_first: Tensor,
    before: Tensor,
    sampling: Sampling,
    further: Tensor | None,
    *,
    last: bool,
) -> Tensor:
    """Log-probability (n,) of the letters, the stop included; `last`: nothing but a stop in the last slot."""
    g = crystals.G
    first = first_letter_distribution(raw_first, g, sampling, further=None if further is None else further[:, 0])
    at = sequence.present & (sequence.kind == W) & (sequence.site > 0)
    row, site = at.nonzero()[:, 0], sequence.site[at]
    final = (site == model.config.slots - 1) & last
    raw, previous = model.predict("letter", before[at]), crystals.W[row, site - 1]
    further = None if further is None else further[row, site]
    later = letter_distribution(raw, g[row], previous, final, sampling, further=further)
    return first.log_prob(crystals.W[:, 0]) + _sum(at, later.log_prob(sequence.index[at]))


def _coordinates(
    model: CrystalFormer,
    crystals: Crystals,
    sequence: TokenSequence,
    before: Tensor,
    sampling: Sampling,
    counted: Tensor,
) -> Tensor:
    """Log-density (n,) of the coordinates that `counted` (231, 28, 3) marks."""
    letter = crystals.W.gather(1, sequence.site)
    axis = (sequence.kind - X).clamp(0, Z - X)
    at = sequence.present & (sequence.kind >= X) & counted[sequence.G[:, None], letter, axis]
    mixture = VonMisesMixture.of(model.predict("coordinate", before[at]), model.config, sampling)
    return _sum(at, mixture.log_prob(sequence.coordinate[at]))
