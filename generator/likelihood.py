"""The log-probability of a crystal: one definition for training, sampling, policy ratios and KL.

``exact`` is the probability of what the sampler draws: independent coordinates only, one mixture component for the
whole cell, masks, temperature and top-p included. ``published`` is the loss of arXiv 2403.15734 as released: dependent
coordinates are counted too and each cell parameter has a mixture of its own; it needs the published layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from generator.distributions import Categorical, LatticeMixture, VonMisesMixture
from generator.model import CrystalFormer, Sampling
from generator.sequence import A, Crystals, TokenSequence, W, X, Z, build_sequence
from generator.wyckoff import tables

Definition = Literal["exact", "published"]


@dataclass(frozen=True)
class LogProb:
    """Log-probabilities in nats, each (n,). Coordinates are densities per radian of 2 pi x."""

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


@dataclass(frozen=True)
class Masks:
    """What symmetry allows, as tensors: see `generator.wyckoff.WyckoffTables` for the sources."""

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


def letter_distribution(raw: Tensor, g: Tensor, before: Tensor, last: Tensor, sampling: Sampling) -> Categorical:
    """Of the next letter.

    Args:
        raw: logits (m, 28).
        g: space groups (m,).
        before: letters before (m,).
        last: bool (m,), slots where only the stop letter is left.
        sampling: temperature and top-p.
    """
    allowed = masks(raw.device, raw.dtype).next_letter[g, before]
    stop = torch.zeros_like(allowed)
    stop[:, 0] = True
    return Categorical.of(raw, torch.where(last[:, None], stop, allowed), sampling)


def first_letter_distribution(raw: Tensor, g: Tensor, sampling: Sampling) -> Categorical:
    """Of the first letter; the stop letter is not among the choices."""
    return Categorical.of(raw, masks(raw.device, raw.dtype).first_letter[g], sampling)


def element_distribution(raw: Tensor, sampling: Sampling) -> Categorical:
    """Of the element of a site; `sampling.elements` are the choices."""
    allowed = torch.zeros(raw.shape[-1], dtype=torch.bool, device=raw.device)
    allowed[list(sampling.elements) or slice(None)] = True
    allowed[0] = False
    return Categorical.of(raw, allowed.expand_as(raw), sampling)


def log_prob(
    model: CrystalFormer, crystals: Crystals, sampling: Sampling | None = None, definition: Definition = "exact"
) -> LogProb:
    """Log-probabilities of n crystals.

    Raises:
        ValueError: the published definition was asked of a model in the free layout.
    """
    config, sampling = model.config, sampling or Sampling()
    if definition == "published" and config.free_layout:
        raise ValueError("the published likelihood needs a model in the published layout, not free_layout=True")
    sequence = build_sequence(crystals, model.free if config.free_layout else None)
    hidden = model(sequence)
    before = torch.cat([torch.zeros_like(hidden[:, :1]), hidden[:, :-1]], 1)  # state that predicts each token
    mask = masks(model.device, model.dtype)
    g = sequence.G[:, None].expand_as(sequence.kind)
    n = len(crystals)

    def gather(at: Tensor, logp: Tensor) -> Tensor:
        return torch.zeros(n, dtype=logp.dtype, device=logp.device).index_add(0, at.nonzero()[:, 0], logp)

    first = first_letter_distribution(model.predict_first_letter(crystals.G), crystals.G, sampling)
    at = sequence.present & (sequence.kind == W) & (sequence.site > 0)
    previous = crystals.W.gather(1, (sequence.site - 1).clamp(min=0))
    last = sequence.site[at] == config.slots - 1 if definition == "exact" else torch.zeros_like(g[at], dtype=torch.bool)
    letters = letter_distribution(model.predict("letter", before[at]), g[at], previous[at], last, sampling)
    logp_w = first.log_prob(crystals.W[:, 0]) + gather(at, letters.log_prob(sequence.index[at]))

    at = sequence.present & (sequence.kind == A)
    elements = element_distribution(model.predict("element", before[at]), sampling)
    logp_a = gather(at, elements.log_prob(sequence.index[at]))

    logp_xyz = _coordinates(
        model, crystals, sequence, before, sampling, mask.free if definition == "exact" else mask.active
    )
    at = sequence.present & (sequence.kind == W) & (sequence.index == 0)
    cell = LatticeMixture.of(model.predict("lattice", hidden[at]), config, sampling)
    density = cell.log_prob if definition == "exact" else cell.log_prob_published
    logp_l = density(crystals.L, mask.lattice[crystals.G])
    logp_g = torch.log_softmax(model.space_group_logits, 0)[crystals.G - 1]
    return LogProb(logp_g, logp_w, logp_a, logp_xyz, logp_l)


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
    logp = mixture.log_prob(sequence.coordinate[at])
    return torch.zeros(len(crystals), dtype=logp.dtype, device=logp.device).index_add(0, at.nonzero()[:, 0], logp)
