"""Prompts: what the network knows of a crystal before its first letter.

A prompt names the elements that occur, all of them and no other, and may add their shares of the atoms. Training leaves
it out for a part of the crystals, so one network gives p(crystal) and p(crystal | prompt); without a prompt the encoder
adds exactly zero.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from generator.constraints.conditions import Sampling
from generator.representation.wyckoff import tables

ATOM_TYPES = 119
SIZE = 2 * ATOM_TYPES + 2  # elements, shares, whether elements are given, whether shares are
HIDDEN = 256
TOLD_NOTHING, TOLD_SHARES = 0.5, 0.25  # share of the training crystals without a prompt, and with shares in it


class Told(NamedTuple):
    """What a prompt adds, for n crystals or for one that stands for all."""

    tokens: Tensor  # (n, width), to the input of every token
    first_letter: Tensor  # (n, embedding), to the space group's embedding before the first letter
    groups: Tensor  # (n, 230), to the logits of p(g)


class PromptEncoder(nn.Module):
    """Prompts (n, SIZE) to what they add. It has no biases: an empty prompt adds nothing."""

    def __init__(self, width: int, embedding: int, groups: int) -> None:
        super().__init__()
        self.sizes = [width, embedding, groups]
        self.hidden = nn.Linear(SIZE, HIDDEN, bias=False)
        self.out = nn.Linear(HIDDEN, sum(self.sizes), bias=False)

    def forward(self, prompt: Tensor) -> Told:
        """Encode prompts."""
        hidden = nn.functional.gelu(self.hidden(prompt.to(self.out.weight.dtype)), approximate="tanh")
        return Told(*self.out(hidden).split(self.sizes, -1))


def encode(elements: Tensor, shares: Tensor | None = None) -> Tensor:
    """Prompts (n, SIZE) from elements (n, 119), True where one occurs, and their shares of the atoms (n, 119)."""
    n = len(elements)
    given = torch.ones(n, 1, device=elements.device)
    known = torch.zeros_like(elements, dtype=given.dtype) if shares is None else shares.to(given.dtype)
    return torch.cat([elements.to(given.dtype), known, given, given * float(shares is not None)], -1)


def of_sites(G: Tensor, W: Tensor, A: Tensor, *, shares: bool) -> Tensor:
    """Prompts (n, SIZE) that are true of crystals: groups (n,), letters and elements (n, S)."""
    multiplicity = torch.tensor(tables().multiplicity, dtype=torch.float32, device=G.device)[G[:, None], W]
    atoms = torch.zeros(len(G), ATOM_TYPES, device=G.device).scatter_add_(1, A, multiplicity * (W > 0))
    atoms[:, 0] = 0.0
    return encode(atoms > 0, atoms / atoms.sum(1, keepdim=True) if shares else None)


def drawn(G: Tensor, W: Tensor, A: Tensor) -> Tensor:
    """Prompts (n, SIZE) for training: of some crystals nothing, of some the elements, of some their shares as well."""
    chance = torch.rand(len(G), 1, device=G.device)
    with_shares = chance < TOLD_NOTHING + TOLD_SHARES
    prompt = torch.where(with_shares, of_sites(G, W, A, shares=True), of_sites(G, W, A, shares=False))
    return torch.where(chance < TOLD_NOTHING, torch.zeros_like(prompt), prompt)


@lru_cache(maxsize=32)
def of_conditions(sampling: Sampling) -> Tensor | None:
    """The prompt (1, SIZE) that conditions imply; None where they leave open which elements occur."""
    if not sampling.prompt or sampling.required != sampling.allowed:
        return None
    elements = torch.zeros(1, ATOM_TYPES)
    elements[0, list(sampling.required)] = 1.0
    if sampling.composition is None:
        return encode(elements > 0)
    shares = torch.zeros(1, ATOM_TYPES)
    total = sum(sampling.composition.values())
    for number, atoms in sampling.composition.items():
        shares[0, number] = atoms / total
    return encode(elements > 0, shares)
