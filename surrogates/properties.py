"""Properties that surrogates predict, and the scale on which they model each.

A Gaussian process assumes symmetric errors of one size. Energies above the hull and moduli are not like that, so
each property names a monotone map to a scale on which they nearly are; thresholds are mapped along, and predictions
come back as means and standard deviations in the property's own unit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from loop.values import PRODUCT
from surrogates.blocks import UNRELAXED_HULL

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(32)  # probabilists' Gauss-Hermite
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
# Above its softness a value counts by its logarithm: errors of 0.5 eV/atom at 2 eV/atom above the hull must not
# outweigh those at the hull, where decisions fall. 0.1 eV/atom is the usual bound of metastability.
SOFTNESS = 0.1
_MAX_LOG = 50.0  # keeps exp finite far from the data


@dataclass(frozen=True)
class Property:
    """What to learn from evaluations.

    On the scale ``soft`` a value y > 0 becomes s ln(1 + y/s) with s = `SOFTNESS`, and y itself stays below 0.
    """

    name: str
    """Key in `Evaluation.properties`."""
    unit: str
    """Unit of the label."""
    scale: Literal["linear", "log", "soft"] = "linear"
    """linear; log for positive quantities over decades; soft: linear up to about 0.1 and logarithmic above."""
    offset: str | None = None
    """Feature, in the property's own unit, to which the model learns the difference (residual learning)."""
    prior_mean: float = 0.0
    """Prior mean on the model scale, relative to the offset where there is one; counts as one label."""
    prior_std: float = 1.0
    """Prior standard deviation on the model scale."""

    def to_scale(self, values: np.ndarray) -> np.ndarray:
        """Own unit to model scale; NaN where the scale has no place for a value (the logarithm of 0)."""
        values = np.asarray(values, dtype=float)
        if self.scale == "linear":
            return values
        if self.scale == "log":
            return np.log(np.where(values > 0, values, np.nan))
        return np.where(values > 0, SOFTNESS * np.log1p(np.maximum(values, 0.0) / SOFTNESS), values)

    def from_scale(self, values: np.ndarray) -> np.ndarray:
        """Model scale to own unit."""
        values = np.asarray(values, dtype=float)
        if self.scale == "linear":
            return values
        if self.scale == "log":
            result: np.ndarray = np.exp(np.minimum(values, _MAX_LOG))
            return result
        stretched = SOFTNESS * np.expm1(np.clip(values / SOFTNESS, 0.0, _MAX_LOG))
        return np.where(values > 0, stretched, values)

    def moments(self, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation in the own unit of what is normal on the model scale, by 32-point quadrature."""
        if self.scale == "linear":
            return mean, std
        values = self.from_scale(mean[..., None] + std[..., None] * _NODES)
        first = values @ _WEIGHTS
        return first, np.sqrt(np.maximum((values - first[..., None]) ** 2 @ _WEIGHTS, 0.0))


# Priors: Materials Project crystals have ln K = 4.35 +- 0.8 (9,137 moduli); how far relaxation takes a crystal
# down is unknown before the first label, so that prior is wide.
E_ABOVE_HULL = Property("e_above_hull", "eV/atom", "soft", UNRELAXED_HULL, prior_mean=-0.05, prior_std=0.15)
BULK_MODULUS = Property("bulk_modulus", "GPa", "log", prior_mean=4.35, prior_std=0.8)
DEFAULT_PROPERTIES = (E_ABOVE_HULL, BULK_MODULUS)
# Wide priors of one label's weight for what else may be an objective: ln G and ln E as ln K, with its spread and more;
# gaps of semiconductors; the logarithm of dielectric constants of insulators, 2 to 100.
_OTHERS = (
    Property("bulk_modulus_vrh", "GPa", "log", prior_mean=4.35, prior_std=0.8),
    Property("shear_modulus", "GPa", "log", prior_mean=3.6, prior_std=1.0),
    Property("youngs_modulus", "GPa", "log", prior_mean=4.5, prior_std=1.0),
    Property("poisson_ratio", "1", prior_mean=0.28, prior_std=0.1),
    Property("band_gap", "eV", prior_mean=1.0, prior_std=1.5),
    Property("band_gap_direct", "eV", prior_mean=1.5, prior_std=1.5),
    Property("dielectric_electronic", "1", "log", prior_mean=1.8, prior_std=0.8),
    Property("dielectric_total", "1", "log", prior_mean=2.7, prior_std=0.9),
    Property("volume", "A^3/atom", "log", prior_mean=2.9, prior_std=0.5),
    Property("energy", "eV/atom", prior_mean=-5.0, prior_std=3.0),
    Property("lowest_frequency", "THz", prior_mean=0.0, prior_std=3.0),
)
_KNOWN = {item.name: item for item in (*DEFAULT_PROPERTIES, *_OTHERS)}


def default_property(name: str) -> Property | None:
    """How a property is modelled where nothing is said of it; None for one that is not known here.

    Args:
        name: of a property, or of a costlier oracle and a property, as ``dft_band_gap``; or of a product of properties.
    """
    if PRODUCT in name:
        return _product(name)
    ends = (name, *(name[at + 1 :] for at, letter in enumerate(name) if letter == "_"))
    found = next((_KNOWN[end] for end in ends if end in _KNOWN), None)
    return None if found is None else replace(found, name=name)


def _product(name: str) -> Property | None:
    """On a linear scale, with a prior as wide as it is high: products of positive properties are skewed."""
    factors = [default_property(part) for part in name.split(PRODUCT)]
    known = [factor for factor in factors if factor is not None]
    if len(known) < len(factors):
        return None
    means = [float(part.moments(np.array(part.prior_mean), np.array(part.prior_std))[0]) for part in known]
    units = " ".join(part.unit for part in known if part.unit != "1") or "1"
    mean = float(np.prod(means))
    return Property(name, units, prior_mean=mean, prior_std=max(abs(mean), 1e-3))


@dataclass(frozen=True)
class GPConfig:
    """Settings of the Gaussian processes.

    The kernel is one Matern-3/2 with a lengthscale for each group of features. On Materials Project gaps, moduli and
    formation energies with 20 to 200 labels it was as good as or better than additive kernels, Matern-5/2, RBF and
    forest-weighted columns in negative log-likelihood, and faster than the additive ones by a factor of 3.
    """

    properties: tuple[Property, ...] = field(default=DEFAULT_PROPERTIES)
    """Properties to learn."""
    forest: bool = True
    """Combine each Gaussian process with a random forest from `surrogates.property_model.MIN_FIT` labels on."""
    calibrate: bool = True
    """Scale standard deviations by the quantile of leave-one-formula-out residuals."""
    max_fit: int = 600
    """Labels used to find hyperparameters, drawn by seed where there are more; conditioning uses all labels."""
    max_labels: int = 2000
    """Labels up to which inference is exact (seconds at 2,000); beyond, a sparse posterior is used."""
    inducing: int = 2000
    """Inducing points of the sparse posterior, drawn by seed."""
    warm_start: bool = False
    """Begin each fit at the last hyperparameters; off, a fit depends on its labels alone, so that a resumed campaign
    repeats the uninterrupted one.
    """
    maxiter: int = 75
    """L-BFGS steps of a fit."""
    seed: int = 0
    """Seed of the subsets above."""
