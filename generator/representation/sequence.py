"""Crystals as token sequences: W A X Y Z of every site, then the stop letter.

A token stands at position ``5 * site + kind``, whether or not the tokens before it are present. The published layout
keeps all five tokens of a site; the free layout leaves out the coordinates that symmetry fixes, which are most of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from generator.representation.tokens import CrystalBatch

W, A, X, Y, Z = range(5)
LATTICE = 5  # what the stop letter predicts
KINDS = 5


@dataclass(frozen=True)
class Crystals:
    """A `CrystalBatch` as tensors on one device: G (n,), W and A (n, S), XYZ (n, S, 3), L (n, 6).

    `prompt` (n, SIZE) is what the network knows of each (`generator.prompt`), None: nothing of any.
    """

    G: Tensor
    W: Tensor
    A: Tensor
    XYZ: Tensor
    L: Tensor
    prompt: Tensor | None = None

    @classmethod
    def from_batch(cls, batch: CrystalBatch, like: Tensor) -> Crystals:
        """Tensors with the device and dtype of `like`, but never fewer bits than float32 has."""
        real = torch.float64 if like.dtype == torch.float64 else torch.float32
        ints = [torch.as_tensor(a, dtype=torch.long, device=like.device) for a in (batch.G, batch.W, batch.A)]
        floats = [torch.as_tensor(a, dtype=real, device=like.device) for a in (batch.XYZ, batch.L)]
        return cls(*ints, *floats)

    def __len__(self) -> int:
        """Number of crystals."""
        return len(self.G)

    def __getitem__(self, rows: Tensor | slice) -> Crystals:
        """Some of the crystals."""
        prompt = None if self.prompt is None else self.prompt[rows]
        return Crystals(self.G[rows], self.W[rows], self.A[rows], self.XYZ[rows], self.L[rows], prompt)


@dataclass(frozen=True)
class TokenSequence:
    """Left-aligned tokens of n crystals, padded to the longest (T). Padding comes last, so a causal mask hides it.

    `kind`, `site`, `next_kind`, `index` (letter or atomic number) are int64, `coordinate` is float, all (n, T);
    `present` marks real tokens.
    """

    G: Tensor  # (n,)
    kind: Tensor
    site: Tensor
    index: Tensor
    coordinate: Tensor
    next_kind: Tensor
    present: Tensor
    prompt: Tensor | None = None  # (n, SIZE)

    @property
    def position(self) -> Tensor:
        """Positions of the rotary embedding, (n, T)."""
        return KINDS * self.site + self.kind


def build_sequence(crystals: Crystals, free: Tensor | None) -> TokenSequence:
    """Tokens of crystals.

    Args:
        crystals: n crystals in S slots; at least the last slot of each is a pad.
        free: independent axes, bool (231, 28, 3), for the free layout; None for the published layout.
    """
    n, slots = crystals.W.shape
    real = crystals.W > 0
    slot = torch.arange(slots, device=real.device)
    letter_present = slot <= real.sum(1, keepdim=True)  # the stop letter too
    axes = real[..., None].expand(n, slots, 3)
    if free is not None:
        axes = axes & free[crystals.G[:, None], crystals.W]
    present = torch.cat([letter_present[..., None], real[..., None], axes], -1).reshape(n, KINDS * slots)
    none = torch.zeros_like(crystals.W)
    index = torch.stack([crystals.W, crystals.A, none, none, none], -1).reshape(n, -1)
    padded = torch.cat([torch.zeros_like(crystals.XYZ[..., :2]), crystals.XYZ], -1).reshape(n, -1)

    length = int(present.sum(1).max())
    order = torch.argsort((~present).to(torch.int8), dim=1, stable=True)[:, :length]
    present = present.gather(1, order)
    kind = torch.where(present, order % KINDS, 0)
    next_kind = torch.full_like(kind, LATTICE)
    next_kind[:, :-1] = torch.where(present[:, 1:], kind[:, 1:], LATTICE)
    return TokenSequence(
        G=crystals.G,
        kind=kind,
        site=torch.where(present, order // KINDS, 0),
        index=index.gather(1, order),
        coordinate=padded.gather(1, order),
        next_kind=next_kind,
        present=present,
        prompt=crystals.prompt,
    )
