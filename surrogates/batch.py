"""Batches chosen as a whole, by BoTorch's acquisition functions over a finite pool."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from botorch.acquisition.logei import qLogExpectedImprovement
from botorch.acquisition.multi_objective import logei as hypervolume_logei
from botorch.acquisition.multi_objective.objective import GenericMCMultiOutputObjective
from botorch.acquisition.objective import GenericMCObjective
from botorch.models.model import Model
from botorch.optim.optimize import optimize_acqf_discrete
from botorch.posteriors import GPyTorchPosterior
from botorch.sampling import SobolQMCNormalSampler
from botorch.utils.multi_objective.hypervolume import infer_reference_point
from botorch.utils.multi_objective.pareto import is_non_dominated
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch import Tensor

from surrogates.posterior import JointPrediction
from surrogates.utility import BoundObjectives

# BoTorch would compile a C++ kernel on first use: minutes on a busy machine, and a process killed meanwhile leaves a
# lock on which all later ones wait. Its Python fallback gives the same values.
hypervolume_logei._load_attempted = True

CHUNK = 256  # candidates whose batches are sampled at a time: bounds memory at CHUNK x samples x batch^2
_LABEL_VARIANCE = 1e-8  # of a label, relative to the pool's mean variance: known, yet with a Cholesky factor


class PoolModel(Model):
    """A finite set of crystals as a BoTorch model: inputs are row numbers, the posterior is looked up.

    Exact, and independent of how the posterior was made; the kernel is evaluated once and not for each batch tried.

    Args:
        mean: shape (N, m).
        covariance: shape (m, N, N).
    """

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        super().__init__()
        self._mean = torch.as_tensor(mean, dtype=torch.float64)
        self._covariance = torch.as_tensor(covariance, dtype=torch.float64)

    @property
    def num_outputs(self) -> int:
        """Number of properties."""
        return self._mean.shape[1]

    @property
    def batch_shape(self) -> torch.Size:
        """None."""
        return torch.Size()

    def posterior(
        self,
        X: Tensor,
        output_indices: list[int] | None = None,
        observation_noise: bool | Tensor = False,  # noqa: ARG002  the looked-up posterior is one in labels
        posterior_transform: Callable[..., Any] | None = None,
    ) -> Any:
        """Posterior in rows X of shape `batch_shape x q x 1`."""
        rows = X.squeeze(-1).round().long()
        outputs = output_indices or range(self.num_outputs)
        parts = [
            MultivariateNormal(self._mean[rows, j], self._covariance[j][rows.unsqueeze(-1), rows.unsqueeze(-2)])
            for j in outputs
        ]
        joint = parts[0] if len(parts) == 1 else MultitaskMultivariateNormal.from_independent_mvns(parts)
        posterior = GPyTorchPosterior(joint)
        return posterior_transform(posterior) if posterior_transform else posterior


@dataclass(frozen=True)
class Request:
    """What to choose from.

    Attributes:
        joint: posterior of the candidates.
        goals: objectives (standardised; summed by `qlogei`) and constraints.
        reached: labels (n, m) on the model scale that keep the constraints.
        incumbent: rank of the label that counts as reached, for `qlogei`.
        k: how many to choose.
        samples: of quasi-Monte Carlo.
        seed: of the samples.
    """

    joint: JointPrediction
    goals: BoundObjectives
    reached: np.ndarray
    incumbent: int
    k: int
    samples: int
    seed: int


def qlogei(request: Request) -> list[int]:
    """Batch log expected improvement with constraints (Ament et al., arXiv 2310.20708), greedily one by one."""
    joint, goals, reached = request.joint, request.goals, request.reached
    utilities = _utilities(goals)
    centre, spread = _standardisation(joint, goals)

    def objective(Y: Tensor, X: Tensor | None = None) -> Tensor:  # noqa: ARG001
        return ((utilities(Y) - centre) / spread).sum(-1)

    # Without a feasible label any feasible crystal is an improvement: three deviations below the pool's mean.
    best = -3.0 * len(goals.objectives)
    if len(reached):
        best = objective(torch.as_tensor(reached)).topk(min(request.incumbent, len(reached))).values[-1].item()
    acquisition = qLogExpectedImprovement(
        PoolModel(joint.mean, joint.covariance),
        best_f=best,
        sampler=SobolQMCNormalSampler(torch.Size([request.samples]), seed=request.seed),
        objective=GenericMCObjective(objective),
        constraints=_constraints(goals, joint),
    )
    return _optimise(acquisition, len(joint.mean), request.k)


def qlognehvi(request: Request) -> list[int]:
    """Batch log expected hypervolume improvement over the labelled Pareto front, with constraints; see `qlogei`.

    Daulton et al., arXiv 2105.08195, in the logarithmic form of Ament et al. The reference point is BoTorch's: a tenth
    of the front's range below its worst values. One objective alone is `qlogei`'s.
    """
    joint, goals, reached = request.joint, request.goals, request.reached
    if len(goals.objectives) == 1:
        return qlogei(request)
    utilities = _utilities(goals)
    centre, spread = _standardisation(joint, goals)

    def objective(Y: Tensor, X: Tensor | None = None) -> Tensor:  # noqa: ARG001
        return (utilities(Y) - centre) / spread

    front = _front(objective, reached)
    if len(front):
        values = objective(torch.as_tensor(front))
        reference = infer_reference_point(values)
    else:  # nothing to improve on yet: everything better than poor counts
        front, reference = joint.mean[:0], torch.full((len(goals.objectives),), -3.0, dtype=torch.float64)
    model, baseline = _with_labels(joint, front)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of jitter on the rows of known labels
        acquisition = hypervolume_logei.qLogNoisyExpectedHypervolumeImprovement(
            model,
            ref_point=reference,
            X_baseline=baseline,
            sampler=SobolQMCNormalSampler(torch.Size([request.samples]), seed=request.seed),
            objective=GenericMCMultiOutputObjective(objective),
            constraints=_constraints(goals, joint),
            prune_baseline=False,
            cache_root=False,
        )
        return _optimise(acquisition, len(joint.mean), request.k)


def _optimise(acquisition: Any, n: int, k: int) -> list[int]:
    rows = torch.arange(n, dtype=torch.float64)[:, None]
    chosen, _ = optimize_acqf_discrete(acquisition, k, rows, max_batch_size=CHUNK, return_acq_values=False)
    return [int(i) for i in chosen.squeeze(-1).tolist()]


def _utilities(goals: BoundObjectives) -> Callable[[Tensor], Tensor]:
    """`BoundObjectives.values` in torch: `... x m` to `... x objectives`."""

    def utilities(Y: Tensor) -> Tensor:
        columns = []
        for column, objective, target in goals.objectives:
            value = Y[..., column]
            columns.append({"maximise": value, "minimise": -value, "target": -(value - target).abs()}[objective.goal])
        return torch.stack(columns, dim=-1)

    return utilities


def _standardisation(joint: JointPrediction, goals: BoundObjectives) -> tuple[Tensor, Tensor]:
    """Centre and spread of each utility over the candidates, their uncertainty included."""
    std = np.sqrt(np.diagonal(joint.covariance, axis1=1, axis2=2).T)
    mean, std = goals.moments(joint.mean, std)
    spread = np.sqrt(mean.var(axis=0) + (std**2).mean(axis=0))
    return torch.as_tensor(mean.mean(axis=0)), torch.as_tensor(np.where(spread > 0, spread, 1.0))


def _constraints(goals: BoundObjectives, joint: JointPrediction) -> list[Callable[[Tensor], Tensor]] | None:
    """Feasible where negative; in units of the mean standard deviation, so that BoTorch's smoothing is a small one."""
    std = np.sqrt(np.diagonal(joint.covariance, axis1=1, axis2=2).mean(axis=1))
    made: list[Callable[[Tensor], Tensor]] = [
        partial(_excess, column=c, scale=sign / float(std[c]), bound=bound) for c, sign, bound in goals.constraints
    ]
    return made or None


def _excess(Y: Tensor, column: int, scale: float, bound: float) -> Tensor:
    return (Y[..., column] - bound) * scale


def _front(objective: Callable[[Tensor], Tensor], reached: np.ndarray) -> np.ndarray:
    if not len(reached):
        return reached
    result: np.ndarray = reached[is_non_dominated(objective(torch.as_tensor(reached))).numpy()]
    return result


def _with_labels(joint: JointPrediction, front: np.ndarray) -> tuple[PoolModel, Tensor]:
    """The candidates and, behind them, labelled crystals whose values are known."""
    n, extra = len(joint.mean), len(front)
    covariance = np.zeros((len(joint.covariance), n + extra, n + extra))
    covariance[:, :n, :n] = joint.covariance
    for matrix, part in zip(covariance, joint.covariance, strict=True):
        rows = np.arange(n, n + extra)
        matrix[rows, rows] = _LABEL_VARIANCE * np.trace(part) / n
    model = PoolModel(np.vstack([joint.mean, front]), covariance)
    return model, torch.arange(n, n + extra, dtype=torch.float64)[:, None]
