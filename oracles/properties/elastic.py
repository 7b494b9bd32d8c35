"""Elastic tensors: stresses of strained crystals, their atoms relaxed, fitted by pymatgen.

The recipe is that of de Jong et al., Sci. Data 2, 150009 (2015), doi 10.1038/sdata.2015.9: six independent
Green-Lagrange strains at four magnitudes each. Cells and fit are pymatgen's, the stresses those of any potential, all
strained cells of a crystal in one batch. The default strains are larger than theirs (1 %): of 16 textbook crystals some
have ripples on that scale, on 16 others strains of 1 to 4 % do equally well (results/elasticity).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.units import GPa
from pymatgen.core import Structure

from loop.errors import ConfigError
from loop.values import OK, Quantity, failed
from oracles.potentials.base import ROUND_OFF, Potential
from oracles.relax import RelaxConfig, relax
from oracles.symmetry import find_group, primitive

if TYPE_CHECKING:
    from pymatgen.analysis.elasticity import ElasticTensor

UNSTABLE = "unstable"  # status
UNITS = {
    "bulk_modulus_vrh": "GPa", "shear_modulus": "GPa", "youngs_modulus": "GPa", "poisson_ratio": "1",
    "elastic_anisotropy": "1", "elastic_stability": "GPa",
}  # fmt: skip


@dataclass(frozen=True)
class ElasticConfig:
    """How a crystal is strained."""

    normal: tuple[float, ...] = (-0.03, -0.015, 0.015, 0.03)
    """Normal strains."""
    shear: tuple[float, ...] = (-0.03, -0.015, 0.015, 0.03)
    """Shear strains."""
    relax_ions: bool = True
    """Let atoms move; else the clamped-ion tensor, which is too stiff where atoms can give way."""
    fmax: float = 0.002
    """Largest force of that relaxation, eV/A: what is left on the atoms stiffens the crystal."""
    max_steps: int = 200
    """Steps of that relaxation."""

    def __post_init__(self) -> None:
        """Check values."""
        for name in ("normal", "shear"):
            strains = np.array(getattr(self, name), dtype=float)
            if len(set(strains.tolist())) < 2 or not 0 < np.abs(strains).min() <= np.abs(strains).max() <= 0.1:
                raise ConfigError(f"{name} strains: expected at least 2 of size above 0 up to 0.1, got {strains}.")


@dataclass(frozen=True)
class Elastic:
    """An elastic tensor and what follows from it.

    A tensor that is not positive definite is that of no stable crystal (status ``unstable``): its averages are no
    moduli, so the tensor and its lowest eigenvalue are all that is given.
    """

    status: str  # ok, unstable, or what failed
    tensor: list[list[float]] | None = None  # (6, 6) GPa, Voigt order, axes of the IEEE standard; None if it failed
    values: dict[str, float] = field(default_factory=dict)  # see `UNITS`; moduli are Voigt-Reuss-Hill averages
    message: str = ""

    @property
    def stable(self) -> bool:
        """Born's criterion: the tensor is positive definite; Mouhat and Coudert, Phys. Rev. B 90, 224104 (2014)."""
        return self.status == OK

    def quantities(self) -> dict[str, Quantity]:
        """For an evaluation."""
        return {name: Quantity(value, UNITS[name]) for name, value in self.values.items()}


def elastic_tensor(relaxed: Structure, potential: Potential, config: ElasticConfig = ElasticConfig()) -> Elastic:
    """Elastic tensor of a crystal at its minimum.

    Args:
        relaxed: relaxed with the same potential, tightly: a stress that is left shifts the tensor. Its primitive cell
            is strained.
        potential: gives the stresses.
        config: strains.
    """
    from pymatgen.analysis.elasticity import DeformedStructureSet

    relaxed = primitive(relaxed, ROUND_OFF)
    strained = DeformedStructureSet(relaxed, config.normal, config.shear)
    steps = config.max_steps if config.relax_ions else 0
    settings = RelaxConfig(fmax=config.fmax, relax_cell=False, standardise=False, max_steps=steps)
    outcomes = relax(list(strained), potential, settings)
    ends = [outcome.structure for outcome in outcomes if outcome.structure is not None]
    if len(ends) < len(outcomes) or (config.relax_ions and not all(outcome.ok for outcome in outcomes)):
        wrong = next(o for o in outcomes if o.structure is None or not o.ok)
        return Elastic(failed("elastic"), message=f"a strained cell ended with {wrong.status} {wrong.message}".strip())
    stresses = _stresses([relaxed, *ends], potential)
    if stresses is None:
        return Elastic(failed("elastic"), message="a strained cell has no stress")
    strains = [deformation.green_lagrange_strain for deformation in strained.deformations]
    return _fit(strains, stresses, relaxed)


def _stresses(cells: Sequence[Structure], potential: Potential) -> list[np.ndarray] | None:
    """Stresses in GPa, positive under tension."""
    points = potential.single_points(cells, groups=[find_group(cell, ROUND_OFF) for cell in cells])
    found = [point.stress / GPa for point in points if point.stress is not None]
    return found if len(found) == len(cells) else None


def _fit(strains: Sequence[Any], stresses: Sequence[np.ndarray], relaxed: Structure) -> Elastic:
    """Fit the stresses; the first one is that of the unstrained crystal."""
    from pymatgen.analysis.elasticity import ElasticTensor, Stress

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            fit = ElasticTensor.from_independent_strains(
                strains, [Stress(stress) for stress in stresses[1:]], eq_stress=Stress(stresses[0])
            )
            tensor = fit.voigt_symmetrized.fit_to_structure(relaxed).convert_to_ieee(relaxed)
            values = _moduli(tensor)
    except (ValueError, ArithmeticError, np.linalg.LinAlgError, TypeError) as error:
        return Elastic(failed("elastic"), message=f"no fit: {error}")
    if not np.isfinite(list(values.values())).all():
        return Elastic(failed("elastic"), message="the fit gave no finite moduli")
    voigt = np.round(np.array(tensor.voigt), 3).tolist()
    stability = values["elastic_stability"]
    if stability > 0:
        return Elastic(OK, voigt, values)
    message = f"no moduli: the elastic tensor is not positive definite (lowest eigenvalue {stability:.4g} GPa)"
    return Elastic(UNSTABLE, voigt, {"elastic_stability": stability}, message)


def _moduli(tensor: ElasticTensor) -> dict[str, float]:
    bulk, shear = float(tensor.k_vrh), float(tensor.g_vrh)
    return {
        "bulk_modulus_vrh": bulk,
        "shear_modulus": shear,
        "youngs_modulus": 9 * bulk * shear / (3 * bulk + shear),
        "poisson_ratio": float(tensor.homogeneous_poisson),
        "elastic_anisotropy": float(tensor.universal_anisotropy),
        # lowest eigenvalue in the basis where the tensor's length does not depend on the axes (Kelvin's)
        "elastic_stability": float(np.linalg.eigvalsh(_kelvin(np.array(tensor.voigt))).min()),
    }


def _kelvin(voigt: np.ndarray) -> np.ndarray:
    """Kelvin's matrix of a stiffness in Voigt's."""
    weights = np.sqrt([1, 1, 1, 2, 2, 2])
    result: np.ndarray = voigt * np.outer(weights, weights)
    return result


def tight(config: RelaxConfig) -> RelaxConfig:
    """Settings that take a crystal near enough to its minimum for derivatives there."""
    return replace(
        config, fmax=min(config.fmax, 0.01), smax=min(config.smax, 0.05), max_steps=max(config.max_steps, 500)
    )
