"""A Gaussian process for more labels than exact inference takes: the posterior rests on inducing points.

Snelson and Ghahramani, NIPS 18, 1257 (2005), later called FITC, in the form in which the process is a linear model on
the features phi(x) = L^-1 k(U, x), with K(U, U) = L L': n labels cost n m^2 instead of n^3. What the inducing points
cannot explain of a label, k(x, x) - |phi(x)|^2, is noise of that label. Hyperparameters are those of exact inference on
some labels; with them, without that noise (Titsias, AISTATS 2009), the posterior at the inducing points was bent to fit
what they cannot explain: their left-out residuals came out far beyond their variances.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from surrogates.exact import ExactGP

JITTER = 1e-6  # of the prior variance, on the inducing points' covariance


class SparseGP(ExactGP):
    """As `ExactGP`; the posterior rests on `inducing` of the labelled inputs, of which all labels tell.

    Args:
        Z: inputs of the labels, shape (n, D).
        t: the labels, shape (n,).
        group: group of each input column, shape (D,).
        offset: known part of each label, shape (n,).
        prior: mean and standard deviation before any label.
        inducing: rows of Z, shape (m,).
    """

    def __init__(
        self,
        Z: np.ndarray,
        t: np.ndarray,
        group: np.ndarray,
        offset: np.ndarray,
        prior: tuple[float, float],
        *,
        inducing: np.ndarray,
    ) -> None:
        self._rows = torch.as_tensor(inducing, dtype=torch.long)
        super().__init__(Z, t, group, offset, prior)

    def _condition(self) -> None:
        """Features of the labels, and the posterior of their weights: N(weights, (I + Phi Lambda^-1 Phi')^-1)."""
        with torch.no_grad():
            points = self._x[self._rows]
            matrix = self._parts["covariance"](points).to_dense()
            matrix.diagonal().add_(JITTER * matrix.diagonal().mean())
            self._lower = torch.linalg.cholesky(matrix)
            self._phi = self._features(self._x)  # (m, n)
            unexplained = self._parts["covariance"](self._x, diag=True) - self._phi.square().sum(0)
            self._lambda = unexplained.clamp_min(0.0) + self._noise  # (n,), noise of each label
            weighted = self._phi / self._lambda
            precision = weighted @ self._phi.T
            precision.diagonal().add_(1.0)
            self._precision = torch.linalg.cholesky(precision)
            residual = self._y - self._parts["mean"](self._x)[:, None]
            self._weights = torch.cholesky_solve(weighted @ residual, self._precision)

    def _features(self, x: Tensor) -> Tensor:
        cross = self._parts["covariance"](self._x[self._rows], x).to_dense()
        result: Tensor = torch.linalg.solve_triangular(self._lower, cross, upper=False)
        return result

    def _posterior(self, x: Tensor, *, joint: bool) -> tuple[np.ndarray, np.ndarray]:
        covariance = self._parts["covariance"]
        with torch.no_grad():
            phi = self._features(x)
            mean = self._parts["mean"](x) + (phi.T @ self._weights).squeeze(-1)
            half = torch.linalg.solve_triangular(self._precision, phi, upper=False)
            if joint:
                spread = covariance(x).to_dense() - phi.T @ phi + half.T @ half
                spread.diagonal().add_(self._noise)
                return mean.numpy(), (0.5 * (spread + spread.T)).numpy()
            spread = covariance(x, diag=True) - phi.square().sum(0) + half.square().sum(0)
            return mean.numpy(), (spread.clamp_min(0.0) + self._noise).numpy()

    def leave_one_block_out(self, blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `ExactGP.leave_one_block_out`, in closed form for the linear model.

        With S = phi_b' A^-1 phi_b of a block b and its noises L, its residuals when left out are (I - S / L)^-1 times
        those with it, and the variance of its mean is (I - S / L)^-1 S.
        """
        half = torch.linalg.solve_triangular(self._precision, self._phi, upper=False).numpy()
        noise = self._lambda.numpy()
        with torch.no_grad():
            fitted = (self._parts["mean"](self._x) + (self._phi.T @ self._weights).squeeze(-1)).numpy()
        y = self._y.squeeze(-1).numpy()
        mean, variance = np.empty(self.n), np.empty(self.n)
        order = np.argsort(blocks, kind="stable")
        for rows in np.split(order, np.flatnonzero(blocks[order][1:] != blocks[order][:-1]) + 1):
            S = half[:, rows].T @ half[:, rows]
            inverse = np.linalg.inv(np.eye(len(rows)) - S / noise[rows])
            mean[rows] = y[rows] - inverse @ (y[rows] - fitted[rows])
            variance[rows] = np.diagonal(inverse @ S) + noise[rows]
        return mean * self.scale + self.centre, np.sqrt(variance) * self.scale
