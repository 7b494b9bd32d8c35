"""The distributions of letters, elements, coordinates and cells: one definition for the sampler and the likelihood.

Each takes the network's raw outputs (m, ...) and a `Sampling`; `log_prob` is exactly that of what `sample` draws.
Random numbers come from a `numpy.random.Generator`, so that a seed is a value and the same on every device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from generator.constraints.conditions import Sampling
from generator.model import ModelConfig

LOG_2PI = math.log(2 * math.pi)
TWO_PI = 2 * math.pi
# Standardisation of the cell in `ModelConfig.log_lattice`: ln(length / natoms^(1/3) / A) and radians.
LATTICE_CENTRE = (0.85, 0.85, 0.85, math.pi / 2, math.pi / 2, math.pi / 2)
LATTICE_SCALE = 0.3


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Logits with all but the smallest set of choices whose probability reaches `top_p` set to -inf."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(-1)
    dropped = probability.cumsum(-1) - probability >= top_p  # the best one always stays
    return logits.masked_fill(torch.zeros_like(dropped).scatter(-1, order, dropped), -math.inf)


@dataclass(frozen=True)
class Categorical:
    """Normalised log-probabilities (m, choices); forbidden ones are -inf."""

    logp: Tensor

    @classmethod
    def of(cls, logits: Tensor, allowed: Tensor | None, sampling: Sampling) -> Self:
        """Mask, then top-p on the untempered logits, then temperature."""
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        return cls(F.log_softmax(keep_top_p(logits, sampling.top_p) / sampling.temperature, dim=-1))

    def log_prob(self, choice: Tensor) -> Tensor:
        """Of choices (m,)."""
        return self.logp.gather(-1, choice[:, None])[:, 0]

    def sample(self, rng: np.random.Generator) -> Tensor:
        """One choice a row, (m,), by inversion."""
        cumulative = self.logp.double().exp().cumsum(-1)
        u = torch.as_tensor(rng.random(len(cumulative)), device=cumulative.device)[:, None] * cumulative[:, -1:]
        return torch.searchsorted(cumulative, u, right=True)[:, 0].clamp(max=cumulative.shape[-1] - 1)


@dataclass(frozen=True)
class VonMisesMixture:
    """Mixture over the angle 2 pi (x - 1/2); densities are per radian. Parameters (m, components)."""

    logw: Tensor
    loc: Tensor
    kappa: Tensor

    @classmethod
    def of(cls, raw: Tensor, config: ModelConfig, sampling: Sampling) -> Self:
        """From raw outputs (m, 3 components): weights, locations, concentrations (softplus)."""
        logits, loc, kappa = raw.chunk(3, dim=-1)
        kappa = F.softplus(kappa).clamp(max=config.kappa_max) / sampling.temperature
        return cls(Categorical.of(logits, None, sampling).logp, loc, kappa)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density (m,) at fractional coordinates (m,)."""
        cosine = torch.cos(TWO_PI * (x[:, None] - 0.5) - self.loc)
        normaliser = LOG_2PI + torch.special.i0e(self.kappa).log()
        return torch.logsumexp(self.logw + self.kappa * (cosine - 1) - normaliser, dim=-1)

    def sample(self, rng: np.random.Generator) -> Tensor:
        """Fractional coordinates (m,) in [0, 1)."""
        component = Categorical(self.logw).sample(rng)[:, None]
        loc, kappa = (p.gather(1, component)[:, 0].double().cpu().numpy() for p in (self.loc, self.kappa))
        angle = rng.vonmises(np.remainder(loc + np.pi, 2 * np.pi) - np.pi, kappa)
        x = np.mod(angle / TWO_PI + 0.5, 1.0)
        x[x >= 1.0] = 0.0
        return torch.as_tensor(x, dtype=self.loc.dtype, device=self.loc.device) % 1.0


@dataclass(frozen=True)
class LatticeMixture:
    """Gaussian mixture over the cell. logw (m, K); mean and sigma (m, K, 6) in the coordinates of `to_inner`."""

    logw: Tensor
    mean: Tensor
    sigma: Tensor
    logarithmic: bool

    @classmethod
    def of(cls, raw: Tensor, config: ModelConfig, sampling: Sampling) -> Self:
        """From raw outputs (m, 13 K): weights, means, sigmas (softplus + sigma_min)."""
        k = config.lattice_components
        logits, mean, sigma = raw.split([k, 6 * k, 6 * k], dim=-1)
        sigma = (F.softplus(sigma) + config.sigma_min) * math.sqrt(sampling.temperature)
        shape = (*raw.shape[:-1], k, 6)
        logw = Categorical.of(logits, None, sampling).logp
        return cls(logw, mean.reshape(shape), sigma.reshape(shape), config.log_lattice)

    def to_inner(self, cell: Tensor) -> Tensor:
        """Cells (m, 6), lengths / natoms^(1/3) and radians, to the mixture's coordinates."""
        if not self.logarithmic:
            return cell
        centre = torch.tensor(LATTICE_CENTRE, dtype=cell.dtype, device=cell.device)
        return (torch.cat([cell[:, :3].clamp(min=1e-6).log(), cell[:, 3:]], -1) - centre) / LATTICE_SCALE

    def to_cell(self, inner: Tensor) -> Tensor:
        """Inverse of `to_inner`."""
        if not self.logarithmic:
            return inner
        centre = torch.tensor(LATTICE_CENTRE, dtype=inner.dtype, device=inner.device)
        cell = inner * LATTICE_SCALE + centre
        return torch.cat([cell[:, :3].exp(), cell[:, 3:]], -1)

    def _densities(self, cell: Tensor) -> Tensor:
        """Log-density of each parameter under each component, (m, K, 6)."""
        z = (self.to_inner(cell)[:, None] - self.mean) / self.sigma
        jacobian = math.log(LATTICE_SCALE) if self.logarithmic else 0.0
        return -0.5 * (z**2 + LOG_2PI) - self.sigma.log() - jacobian

    def log_prob(self, cell: Tensor, independent: Tensor) -> Tensor:
        """Joint log-density (m,) of the independent parameters, bool (m, 6): one component for the whole cell.

        Per ln(length) and radian where the mixture is logarithmic, else per length and radian.
        """
        joint = self._densities(cell).masked_fill(~independent[:, None], 0.0).sum(-1)
        return torch.logsumexp(self.logw + joint, dim=-1)

    def log_prob_published(self, cell: Tensor, independent: Tensor) -> Tensor:
        """The published loss: a mixture for each parameter by itself. Not the density of what `sample` draws."""
        single = torch.logsumexp(self.logw[..., None] + self._densities(cell), dim=1)
        return single.masked_fill(~independent, 0.0).sum(-1)

    def sample(self, rng: np.random.Generator) -> Tensor:
        """Cells (m, 6); dependent parameters are left to the caller."""
        component = Categorical(self.logw).sample(rng)[:, None, None].expand(-1, 1, 6)
        mean, sigma = (p.gather(1, component)[:, 0] for p in (self.mean, self.sigma))
        noise = torch.as_tensor(rng.standard_normal(mean.shape), dtype=mean.dtype, device=mean.device)
        return self.to_cell(mean + sigma * noise)
