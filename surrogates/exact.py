"""One Gaussian process for one property, on standardised inputs; gpytorch and botorch, float64."""

from __future__ import annotations

import warnings
from typing import Any

import gpytorch
import numpy as np
import torch
from botorch.exceptions.errors import ModelFittingError
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from gpytorch.priors import LogNormalPrior, NormalPrior
from torch import Tensor

CHUNK = 4096  # rows predicted at a time: bounds memory at CHUNK x labels
MIN_NOISE = 1e-4  # of the standardised variance; keeps the Cholesky factor well-conditioned with duplicate rows
# Inputs have unit variance in each group, so two crystals are sqrt(2) apart in a group: e is "varies slowly".
LENGTHSCALE_PRIOR = (1.0, 0.8)  # of its logarithm
OUTPUTSCALE_PRIOR = (0.0, 1.0)
NOISE_PRIOR = (-3.0, 1.0)
# Relaxation takes an energy down by an amount that grows with it: slope 1 is "by the same for all".
SLOPE_PRIOR = (1.0, 0.5)


class GroupMatern(gpytorch.kernels.Kernel):
    r"""Matern-3/2 with one lengthscale a group of columns.

    k(x, x') = (1 + sqrt(3) r) exp(-sqrt(3) r), with
    r^2 = sum_g |x_g - x'_g|^2 / l_g^2 (Rasmussen and Williams 2006, eq. 4.17).

    Args:
        group: group of each column, shape (D,). Columns of the input beyond D are not looked at.
    """

    has_lengthscale = False

    def __init__(self, group: np.ndarray) -> None:
        super().__init__()
        kinds, index = np.unique(group, return_inverse=True)
        self.register_buffer("index", torch.as_tensor(index, dtype=torch.long))
        self.register_parameter("log_lengthscale", torch.nn.Parameter(torch.full((len(kinds),), LENGTHSCALE_PRIOR[0])))
        self.register_prior("lengthscale_prior", NormalPrior(*LENGTHSCALE_PRIOR), lambda module: module.log_lengthscale)
        self._table: Tensor | None = None

    def tabulate(self, x: Tensor) -> None:
        """Keep squared distances between rows of `x`, group by group; from now on this kernel is that of `x` alone.

        For a fit: a step then costs by the number of groups and not of columns.
        """
        columns = [x[:, : len(self.index)][:, self.index == g] for g in range(len(self.log_lengthscale))]
        self._table = torch.stack([self.covar_dist(part, part, square_dist=True) for part in columns])

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """Covariances of `... x n x (D+)` and `... x m x (D+)` inputs: `... x n x m`, or `... x n` if diag."""
        if self._table is not None:
            square = torch.tensordot(torch.exp(-2.0 * self.log_lengthscale), self._table, dims=1)
            square = square.diagonal() if diag else square
        else:
            inverse = torch.exp(-self.log_lengthscale)[self.index]
            a, b = (x[..., : len(self.index)] * inverse for x in (x1, x2))
            square = self.covar_dist(a, b, square_dist=True, diag=diag)
        r = (3.0 * square).clamp_min(1e-15).sqrt()
        result: Tensor = (1.0 + r) * torch.exp(-r)
        return result


class OffsetMean(gpytorch.means.Mean):
    """Constant plus slope times the last column of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("constant", torch.nn.Parameter(torch.zeros(())))
        self.register_parameter("slope", torch.nn.Parameter(torch.full((), SLOPE_PRIOR[0])))
        self.register_prior("constant_prior", NormalPrior(0.0, 1.0), lambda module: module.constant)
        self.register_prior("slope_prior", NormalPrior(*SLOPE_PRIOR), lambda module: module.slope)

    def forward(self, x: Tensor) -> Tensor:
        """Mean of `... x n x d` inputs: `... x n`."""
        result: Tensor = self.constant + self.slope * x[..., -1]
        return result


class ExactGP:
    """Prior, hyperparameters and conditioning of one property.

    Args:
        Z: inputs of the labels, shape (n, D), finite; n may be 0, which leaves the prior.
        t: the labels, shape (n,), finite.
        group: group of each input column, shape (D,).
        offset: known part of each label, shape (n,); the process learns t - offset.
        prior: mean and standard deviation of t - offset before any label. They count as one label in the centre and
            scale by which labels are standardised, so that constant labels leave a scale that is not zero.
    """

    def __init__(
        self, Z: np.ndarray, t: np.ndarray, group: np.ndarray, offset: np.ndarray, prior: tuple[float, float]
    ) -> None:
        residual = t - offset
        n = len(t)
        self.n = n
        self.centre = float((prior[0] + residual.sum()) / (1 + n))
        self.scale = float(np.sqrt((prior[1] ** 2 + ((residual - self.centre) ** 2).sum()) / (1 + n)))
        self._x = self._inputs(Z, offset)
        self._y = torch.as_tensor((t - self.centre) / self.scale, dtype=torch.float64)[:, None]
        self._group = group
        self._parts = _parts(group)
        self._condition()

    def _inputs(self, Z: np.ndarray, offset: np.ndarray) -> Tensor:
        return torch.as_tensor(np.column_stack([Z, offset / self.scale]), dtype=torch.float64)

    def fit(self, rows: np.ndarray, maxiter: int) -> bool:
        """Hyperparameters that maximise the posterior density (MAP), from some of the labels.

        Returns:
            False where the optimiser failed and the hyperparameters stay what they were.
        """
        parts = _parts(self._group)
        parts.load_state_dict(self._parts.state_dict())
        kernel: Any = parts["covariance"]
        kernel.base_kernel.tabulate(self._x[rows])
        with warnings.catch_warnings():
            # botorch asks for inputs in [0, 1] (the priors here are for unit variance); reaching maxiter is no failure.
            warnings.simplefilter("ignore")
            model = SingleTaskGP(
                self._x[rows],
                self._y[rows],
                likelihood=parts["likelihood"],
                covar_module=parts["covariance"],
                mean_module=parts["mean"],
                outcome_transform=None,
            )
            try:
                objective = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
                fit_gpytorch_mll(objective, optimizer_kwargs={"options": {"maxiter": maxiter}})
            except (ModelFittingError, RuntimeError, ValueError):
                return False
        self.load(_arrays(parts))
        return True

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Take over hyperparameters; those of other shapes (another set of groups) stay as they are."""
        with torch.no_grad():
            for name, parameter in self._parts.named_parameters():
                if name in state and state[name].shape == tuple(parameter.shape):
                    parameter.copy_(torch.as_tensor(state[name]))
        self._condition()

    @property
    def _noise(self) -> Tensor:
        likelihood: Any = self._parts["likelihood"]
        result: Tensor = likelihood.noise.squeeze()
        return result

    def _condition(self) -> None:
        """Cholesky factor of the labels' covariance, and its inverse applied to the residuals."""
        with torch.no_grad():
            matrix = self._parts["covariance"](self._x).to_dense()
            matrix.diagonal().add_(self._noise)
            self._factor = torch.linalg.cholesky(matrix)
            self._weights = torch.cholesky_solve(self._y - self._parts["mean"](self._x)[:, None], self._factor)

    def hyperparameters(self) -> dict[str, np.ndarray]:
        """What `load` takes."""
        return _arrays(self._parts)

    def metric(self, Z: np.ndarray) -> np.ndarray:
        """Inputs divided by their lengthscales, shape (n, D): unlikeness as the kernel sees it is distance here."""
        lengths = np.exp(self.hyperparameters()["covariance.base_kernel.log_lengthscale"])
        result: np.ndarray = Z / lengths[np.unique(self._group, return_inverse=True)[1]]
        return result

    def predict(self, Z: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of new labels (noise included), shape (n,) each."""
        x = self._inputs(Z, offset)
        parts = [self._posterior(x[i : i + CHUNK], joint=False) for i in range(0, len(x), CHUNK)]
        if not parts:
            return np.empty(0), np.empty(0)
        mean, variance = (np.concatenate([part[k] for part in parts]) for k in (0, 1))
        return mean * self.scale + self.centre, np.sqrt(variance) * self.scale

    def joint(self, Z: np.ndarray, offset: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean (n,) and covariance (n, n) of new labels (noise included)."""
        mean, covariance = self._posterior(self._inputs(Z, offset), joint=True)
        return mean * self.scale + self.centre, covariance * self.scale**2

    def _posterior(self, x: Tensor, *, joint: bool) -> tuple[np.ndarray, np.ndarray]:
        """Rasmussen and Williams 2006, algorithm 2.1, of which gpytorch has no version without labels."""
        covariance, noise = self._parts["covariance"], self._noise
        with torch.no_grad():
            cross = covariance(self._x, x).to_dense()
            mean = self._parts["mean"](x) + (cross.T @ self._weights).squeeze(-1)
            half = torch.linalg.solve_triangular(self._factor, cross, upper=False)
            if joint:
                spread = covariance(x).to_dense() - half.T @ half
                spread.diagonal().add_(noise)
                return mean.numpy(), (0.5 * (spread + spread.T)).numpy()
            spread = covariance(x, diag=True) - half.square().sum(0)
            return mean.numpy(), (spread.clamp_min(0.0) + noise).numpy()

    def leave_one_block_out(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the process would predict of each label without those of its block, in closed form.

        Rasmussen and Williams 2006, eqs. 5.10-5.12, for blocks: mean = y - [A_bb]^-1 [A (y - m)]_b, covariance
        [A_bb]^-1 with A the inverse of the labels' covariance.

        Args:
            blocks: a key for each label, shape (n,); equal keys are left out together.

        Returns:
            Mean and standard deviation (noise included), shape (n,) each.
        """
        inverse = torch.cholesky_inverse(self._factor).numpy()
        alpha = self._weights.squeeze(-1).numpy()
        mean, variance = self._y.squeeze(-1).numpy().copy(), np.empty(self.n)
        for key in np.unique(blocks):
            rows = np.flatnonzero(blocks == key)
            covariance = np.linalg.inv(inverse[np.ix_(rows, rows)])
            mean[rows] -= covariance @ alpha[rows]
            variance[rows] = np.diagonal(covariance)
        return mean * self.scale + self.centre, np.sqrt(variance) * self.scale


def _parts(group: np.ndarray) -> torch.nn.ModuleDict:
    """Mean, covariance and likelihood at their priors' centres."""
    covariance = gpytorch.kernels.ScaleKernel(GroupMatern(group), outputscale_prior=LogNormalPrior(*OUTPUTSCALE_PRIOR))
    likelihood = gpytorch.likelihoods.GaussianLikelihood(
        noise_prior=LogNormalPrior(*NOISE_PRIOR), noise_constraint=gpytorch.constraints.GreaterThan(MIN_NOISE)
    )
    parts = torch.nn.ModuleDict({"mean": OffsetMean(), "covariance": covariance, "likelihood": likelihood}).double()
    likelihood.noise = float(np.exp(NOISE_PRIOR[0]))
    covariance.outputscale = 1.0
    return parts


def _arrays(parts: torch.nn.ModuleDict) -> dict[str, np.ndarray]:
    return {name: parameter.detach().numpy().copy() for name, parameter in parts.named_parameters()}
