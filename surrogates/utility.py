"""What a campaign looks for: objectives and constraints, apart from each other, over normal posteriors.

Everything here is on the model scales of the properties (`Property.to_scale`); targets and bounds are given in own
units and mapped. Utility is higher is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import erfcx
from scipy.stats import norm

from loop.errors import ConfigError
from loop.goal import BRITISH
from surrogates.properties import Property


@dataclass(frozen=True)
class Objective:
    """A property to maximise, to minimise, or to bring close to `target` (own unit)."""

    name: str
    """Property."""
    goal: Literal["maximise", "minimise", "target", "maximize", "minimize"] = "maximise"
    """maximise, minimise or target."""
    target: float | None = None
    """Target value, in the property's unit."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "goal", BRITISH.get(self.goal, self.goal))
        if (self.goal == "target") != (self.target is not None):
            raise ConfigError(f"objective {self.name!r}: `target` belongs to the goal 'target' and to no other")


@dataclass(frozen=True)
class Constraint:
    """A bound that a crystal must keep to be of use (own unit); never traded against an objective."""

    name: str
    """Property."""
    at_most: float | None = None
    """Upper bound, in the property's unit."""
    at_least: float | None = None
    """Lower bound, in the property's unit."""

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ConfigError(f"constraint on {self.name!r}: give either `at_most` or `at_least`")


@dataclass(frozen=True)
class BoundObjectives:
    """Objectives and constraints bound to the properties that a surrogate predicts, by column."""

    objectives: tuple[tuple[int, Objective, float], ...]  # column, objective, target on the model scale
    constraints: tuple[tuple[int, float, float], ...]  # column, sign, bound: kept where sign * (t - bound) <= 0

    def values(self, t: np.ndarray) -> np.ndarray:
        """Utilities (..., objectives) of property values t (..., m)."""
        columns = []
        for column, objective, target in self.objectives:
            value = t[..., column]
            columns.append({"maximise": value, "minimise": -value, "target": -abs(value - target)}[objective.goal])
        return np.stack(columns, axis=-1)

    def moments(self, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and standard deviations (n, objectives) of utilities; those of a folded normal for a target."""
        means, stds = [], []
        for column, objective, target in self.objectives:
            m, s = mean[:, column], std[:, column]
            if objective.goal == "target":
                m, s = _folded(m - target, s)
            means.append(m if objective.goal == "maximise" else -m)
            stds.append(s)
        return np.stack(means, axis=1), np.stack(stds, axis=1)

    def kept(self, t: np.ndarray) -> np.ndarray:
        """Whether values t (..., m) keep every constraint; NaN keeps none."""
        ok = np.ones(t.shape[:-1], dtype=bool)
        for column, sign, bound in self.constraints:
            ok &= sign * (t[..., column] - bound) <= 0
        return ok

    def log_feasible(self, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
        """Log-probability (n,) that every constraint is kept, properties being independent of each other."""
        total = np.zeros(len(mean))
        for column in sorted({item[0] for item in self.constraints}):
            high = min((b for c, sign, b in self.constraints if c == column and sign > 0), default=np.inf)
            low = max((b for c, sign, b in self.constraints if c == column and sign < 0), default=-np.inf)
            total += _log_between((low - mean[:, column]) / std[:, column], (high - mean[:, column]) / std[:, column])
        return total


def bind(
    objectives: Sequence[Objective], constraints: Sequence[Constraint], properties: Sequence[Property]
) -> BoundObjectives:
    """Find each name among the properties.

    Raises:
        ConfigError: no objective, or a name that is not predicted.
    """
    if not objectives:
        raise ConfigError("expected at least one objective, got none")
    names = [prop.name for prop in properties]
    wanted = [objective.name for objective in objectives] + [constraint.name for constraint in constraints]
    for name in wanted:
        if name not in names:
            raise ConfigError(f"no surrogate predicts {name!r}; there are {', '.join(names)}")

    def scaled(name: str, value: float | None) -> float:
        return float("nan") if value is None else float(properties[names.index(name)].to_scale(np.array(value)))

    return BoundObjectives(
        tuple((names.index(o.name), o, scaled(o.name, o.target)) for o in objectives),
        tuple(
            (names.index(c.name), 1.0, scaled(c.name, c.at_most))
            if c.at_most is not None
            else (names.index(c.name), -1.0, scaled(c.name, c.at_least))
            for c in constraints
        ),
    )


def _log_between(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Log of Phi(high) - Phi(low), from the tail in which the difference does not cancel; -inf for an empty window."""
    flip = low + high > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.exp(np.minimum(norm.logcdf(low) - norm.logcdf(high), 0.0))
        return np.where(low < high, norm.logcdf(high) + np.log1p(-ratio), -np.inf)


def _folded(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of |x|, x normal (Leone et al., Technometrics 3, 543 (1961))."""
    z = mean / std
    folded = std * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + mean * (1 - 2 * norm.cdf(-z))
    return folded, np.sqrt(np.maximum(mean**2 + std**2 - folded**2, 1e-12 * std**2))


def upper_confidence_bound(mean: np.ndarray, std: np.ndarray, beta: float) -> np.ndarray:
    """Mean + sqrt(beta) std, as BoTorch and Srinivas et al. (arXiv 0912.3995) count beta."""
    result: np.ndarray = mean + np.sqrt(beta) * std
    return result


def log_expected_improvement(mean: np.ndarray, std: np.ndarray, best: float) -> np.ndarray:
    """Log of EI(u) = E[max(u - best, 0)] for normal u: log(phi(z) + z Phi(z)) + log(std), z = (mean - best) / std.

    In the form of Ament et al. (arXiv 2310.20708, eq. 9), which still ranks candidates many deviations below
    `best`, where the plain formula is 0.
    """
    z = np.asarray((mean - best) / std, dtype=float)
    near = np.log(norm.pdf(np.maximum(z, -1.0)) + np.maximum(z, -1.0) * norm.cdf(np.maximum(z, -1.0)))
    middle = np.clip(z, -1e3, -1.0)
    tail = np.log1p(np.sqrt(np.pi / 2) * middle * erfcx(-middle / np.sqrt(2)))
    far = np.where(z > -1e3, tail, -2 * np.log(np.maximum(np.abs(z), 1.0)))
    result: np.ndarray = np.where(z > -1.0, near, -0.5 * z**2 - 0.5 * np.log(2 * np.pi) + far) + np.log(std)
    return result
