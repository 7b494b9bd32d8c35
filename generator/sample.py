"""Drawing crystals: keys and values are cached, finished crystals leave the batch, fixed coordinates cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from generator.constraints.conditions import Sampling
from generator.constraints.feasibility import FeasibleCompletions, feasibility
from generator.distributions import Categorical, LatticeMixture, VonMisesMixture
from generator.likelihood import (
    LogProb,
    element_distribution,
    first_letter_distribution,
    letter_distribution,
    masks,
    space_group_logp,
)
from generator.model import Cache, CrystalFormer, Step
from generator.representation.sequence import LATTICE, A, Crystals, W, X
from generator.representation.tokens import CrystalBatch
from generator.representation.wyckoff import symmetrize_lattice


@dataclass(frozen=True)
class Sample:
    """n crystals as drawn, and their exact log-probabilities in nats, (n,) each."""

    batch: CrystalBatch
    logp: LogProb


@torch.no_grad()
def draw_space_groups(
    model: CrystalFormer,
    n: int,
    rng: np.random.Generator,
    allowed: Sequence[int] | None = None,
    sampling: Sampling | None = None,
) -> np.ndarray:
    """Space groups (n,) from the learned p(g).

    Args:
        model: has p(g).
        n: how many.
        rng: source of randomness.
        allowed: the choices, where given; else those of `sampling`.
        sampling: groups in which its conditions cannot be met are left out.

    Raises:
        ConditionError: an allowed group is impossible under the conditions, or all groups are.
    """
    logp = space_group_logp(model, (sampling or Sampling()).within(allowed or ())).double().cpu().numpy()
    p = np.exp(logp - logp.max())
    return rng.choice(np.arange(1, len(p) + 1), size=n, p=p / p.sum())


class _Draw:
    """The crystals being drawn. Rows of `alive` are those not finished; the cache holds exactly these."""

    def __init__(self, model: CrystalFormer, g: Tensor, rng: np.random.Generator, sampling: Sampling) -> None:
        self.model, self.rng, self.sampling, self.config = model, rng, sampling, model.config
        self.mask = masks(model.device, model.real)
        conditions = feasibility(sampling, model.config.slots)
        self.prefixes: FeasibleCompletions | None = None
        if conditions is not None:
            groups = g.cpu().numpy()
            conditions.demand(np.unique(groups).tolist())
            self.prefixes = FeasibleCompletions(conditions, groups)
        n, slots = len(g), model.config.slots
        zeros = torch.zeros(n, slots, dtype=torch.long, device=model.device)
        xyz = torch.zeros(n, slots, 3, dtype=model.real, device=model.device)
        self.out = Crystals(g, zeros, zeros.clone(), xyz, torch.zeros(n, 6, dtype=model.real, device=model.device))
        self.logp = {name: torch.zeros(n, dtype=model.real, device=model.device) for name in ("w", "a", "xyz", "l")}
        self.alive = torch.arange(n, device=model.device)
        self.cache: Cache = model.new_cache(n)
        self.told = model.told_by(sampling)
        self.hidden: Tensor | None = None

    def run(self) -> None:
        """Draw site after site until every crystal has stopped."""
        for site in range(self.config.slots):
            letter = self.letters(site)
            self.finish(letter)
            if len(self.alive) == 0:
                return
            letter = self.out.W[self.alive, site]
            present = self.tokens_of(letter)
            self.elements(site, letter, present)
            for axis in range(3):
                self.coordinates(site, letter, axis, present)

    def note(self, name: str, rows: Tensor, logp: Tensor) -> None:
        """Add log-probabilities of some crystals, given as rows of `alive`."""
        self.logp[name][self.alive[rows]] += logp

    def choose(self, name: str, distribution: Categorical) -> Tensor:
        """Draw for every alive crystal."""
        choice = distribution.sample(self.rng)
        self.logp[name][self.alive] += distribution.log_prob(choice)
        return choice

    def step(self, site: int, kind: int, value: Tensor, next_kind: Tensor, rows: Tensor) -> None:
        """Feed a token to the network; `value` is a letter, an element or a coordinate of each of `rows`."""
        g = self.out.G[self.alive[rows]]
        token = Step(g, kind, site, value, value, next_kind, None if self.told is None else self.told.tokens)
        hidden = self.model.step(token, self.cache, rows)
        if self.hidden is None or len(rows) == len(self.alive):
            self.hidden = hidden
        else:
            self.hidden = self.hidden.index_copy(0, rows, hidden)

    def letters(self, site: int) -> Tensor:
        """Letters (alive,) of this site, 0 where the crystal stops."""
        g = self.out.G[self.alive]
        everyone = torch.arange(len(self.alive), device=g.device)
        further = None if self.prefixes is None else torch.as_tensor(self.prefixes.letters(), device=g.device)
        if self.hidden is None:
            raw = self.model.predict_first_letter(g, self.told)
            distribution = first_letter_distribution(raw, g, self.sampling, further=further)
        else:
            before = self.out.W[self.alive, site - 1]
            last = torch.full_like(g, site == self.config.slots - 1, dtype=torch.bool)
            raw = self.model.predict("letter", self.hidden)
            distribution = letter_distribution(raw, g, before, last, self.sampling, further=further)
        letter = self.choose("w", distribution)
        self.out.W[self.alive, site] = letter
        self.step(site, W, letter, torch.where(letter > 0, A, LATTICE), everyone)
        return letter

    def finish(self, letter: Tensor) -> None:
        """Draw the cells of crystals that stopped, and let them go."""
        assert self.hidden is not None
        stopped = (letter == 0).nonzero()[:, 0]
        if len(stopped) == 0:
            return
        rows = self.alive[stopped]
        mixture = LatticeMixture.of(self.model.predict("lattice", self.hidden[stopped]), self.config, self.sampling)
        cell = mixture.sample(self.rng)
        self.out.L[rows] = cell
        self.note("l", stopped, mixture.log_prob(cell, self.mask.lattice[self.out.G[rows]]))
        going = _closed_up(letter > 0)
        self.cache.keep(going)
        if self.prefixes is not None:
            self.prefixes.keep(going.cpu().numpy())
        self.alive, self.hidden = self.alive[going], self.hidden[going]

    def tokens_of(self, letter: Tensor) -> Tensor:
        """Which coordinates have a token, bool (alive, 3)."""
        free = self.mask.free[self.out.G[self.alive], letter]
        return free if self.config.free_layout else torch.ones_like(free)

    def after(self, present: Tensor, axis: int) -> Tensor:
        """Kind of the token that follows the coordinate `axis` (-1: the element), (alive,)."""
        following = torch.full_like(present[:, 0], W, dtype=torch.long)
        for later in (2, 1, 0):
            if later > axis:
                following = torch.where(present[:, later], X + later, following)
        return following

    def elements(self, site: int, letter: Tensor, present: Tensor) -> None:
        """Elements of this site."""
        assert self.hidden is not None
        further = None
        if self.prefixes is not None:
            further = torch.as_tensor(self.prefixes.elements(letter.cpu().numpy()), device=letter.device)
        raw = self.model.predict("element", self.hidden)
        element = self.choose("a", element_distribution(raw, self.sampling, further=further))
        self.out.A[self.alive, site] = element
        if self.prefixes is not None:
            self.prefixes.place(letter.cpu().numpy(), element.cpu().numpy())
        everyone = torch.arange(len(letter), device=letter.device)
        self.step(site, A, element, self.after(present, -1), everyone)

    def coordinates(self, site: int, letter: Tensor, axis: int, present: Tensor) -> None:
        """One coordinate of this site: drawn where independent, else computed from those before it."""
        assert self.hidden is not None
        g, rows_out = self.out.G[self.alive], self.alive
        free = self.mask.free[g, letter][:, axis].nonzero()[:, 0]
        operator = self.mask.op0[g, letter][:, axis]  # (alive, 4)
        known = self.out.XYZ[rows_out, site]
        value = ((operator[:, :3] * known).sum(-1) + operator[:, 3]) % 1.0
        if len(free):
            raw = self.model.predict("coordinate", self.hidden[free])
            mixture = VonMisesMixture.of(raw, self.config, self.sampling)
            drawn = mixture.sample(self.rng)
            self.note("xyz", free, mixture.log_prob(drawn))
            value[free] = drawn
        self.out.XYZ[rows_out, site, axis] = value
        tokens = present[:, axis].nonzero()[:, 0]
        if len(tokens):
            self.step(site, X + axis, value[tokens], self.after(present, axis)[tokens], tokens)


def _closed_up(going: Tensor) -> Tensor:
    """Rows that continue, the last ones in the places of those that stopped, so that few of them have to move."""
    rows, n = going.nonzero()[:, 0], int(going.sum())
    order = torch.arange(n, device=going.device)
    order[~going[:n]] = rows[rows >= n]
    return order


@torch.no_grad()
def sample(
    model: CrystalFormer, space_groups: np.ndarray, rng: np.random.Generator, sampling: Sampling | None = None
) -> Sample:
    """Draw one crystal in each space group (n,). The model is put into evaluation mode.

    Raises:
        ConditionError: a space group in which the conditions cannot be met.
    """
    model.eval()
    sampling = sampling or Sampling()
    g = torch.as_tensor(np.asarray(space_groups), dtype=torch.long, device=model.device)
    draw = _Draw(model, g, rng, sampling)
    draw.run()
    out = draw.out
    logp_g = space_group_logp(model, sampling)[g - 1]
    return Sample(_to_batch(out), LogProb(logp_g, **draw.logp))


def _to_batch(out: Crystals) -> CrystalBatch:
    """To arrays, with the dependent cell parameters filled in."""
    G, W, A = (t.cpu().numpy() for t in (out.G, out.W, out.A))
    cells = out.L.double().cpu().numpy()
    cells = np.stack([symmetrize_lattice(int(g), cell) for g, cell in zip(G, cells, strict=True)])
    return CrystalBatch(
        G=G.astype(np.int16), W=W.astype(np.int8), A=A.astype(np.int8), XYZ=out.XYZ.double().cpu().numpy(), L=cells
    )
