"""Bulk modulus from an equation of state: energies of a relaxed crystal at several volumes, fitted after Birch."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pymatgen.core import Structure

from loop.errors import ConfigError
from loop.values import OK, failed
from oracles.potentials.base import Potential
from oracles.relax import RelaxConfig, relax


@dataclass(frozen=True)
class BulkConfig:
    """How an equation of state is sampled."""

    strain: float = 0.06
    """Largest relative change of volume, in both directions."""
    points: int = 7
    """Volumes of the equation of state; at least 5."""
    relax_ions: bool = True
    """Let atoms move at each volume; the cell keeps its shape."""
    max_steps: int = 50
    """Steps of that relaxation."""
    max_residual: float = 0.05
    """RMS misfit over the span of the energies; above it the curve is no equation of state."""

    def __post_init__(self) -> None:
        """Check values."""
        if self.points < 5 or not 0.005 <= self.strain <= 0.2:
            raise ConfigError(
                "equation of state: expected at least 5 points and a strain of 0.005 to 0.2, got "
                f"{self.points} and {self.strain:g}."
            )


@dataclass(frozen=True)
class BulkModulus:
    """Result of a fit. NaN where the status is not ``ok``."""

    status: str
    value: float = float("nan")  # GPa
    derivative: float = float("nan")  # of the modulus with pressure, about 4 for most solids
    volume: float = float("nan")  # A^3/atom at the minimum
    message: str = ""
    seconds: float = 0.0  # of all its energies


def bulk_moduli(
    relaxed: Sequence[Structure],
    potential: Potential,
    config: BulkConfig = BulkConfig(),
    relaxation: RelaxConfig | None = None,
) -> list[BulkModulus]:
    """Bulk moduli of crystals at their minima; cell shapes stay, so for cubic crystals this is the modulus itself.

    Birch, Phys. Rev. 71, 809 (1947), doi 10.1103/PhysRev.71.809, fitted by pymatgen.

    Args:
        relaxed: crystals relaxed with the same potential.
        potential: gives the energies.
        config: volumes.
        relaxation: convergence of the atoms' positions at each volume.
    """
    scales = np.linspace(1 - config.strain, 1 + config.strain, config.points)
    cells = [_scaled(structure, scale) for structure in relaxed for scale in scales]
    steps = config.max_steps if config.relax_ions else 0
    settings = replace(relaxation or RelaxConfig(), relax_cell=False, max_steps=steps)
    outcomes = relax(cells, potential, settings)
    energies = np.array([outcome.energy for outcome in outcomes]).reshape(len(relaxed), config.points)
    moduli = []
    for i, (structure, row) in enumerate(zip(relaxed, energies, strict=True)):
        own = outcomes[i * config.points :][: config.points]
        message = "; ".join(outcome.message for outcome in own if outcome.message)
        modulus = _fit(structure.volume / len(structure) * scales, row, config, message)
        moduli.append(replace(modulus, seconds=sum(outcome.seconds for outcome in own)))
    return moduli


def _scaled(structure: Structure, scale: float) -> Structure:
    """The crystal with its volume scaled, shape and fractional coordinates kept."""
    return Structure(structure.lattice.matrix * scale ** (1 / 3), structure.species, structure.frac_coords)


def _fit(volumes: np.ndarray, energies: np.ndarray, config: BulkConfig, message: str) -> BulkModulus:
    """Fit energies (eV/atom) at volumes (A^3/atom)."""
    from pymatgen.analysis.eos import EOS, EOSError

    if not np.isfinite(energies).all():
        return BulkModulus(failed("equation-of-state"), message=f"no energy at some volume: {message}")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            fit = EOS("birch_murnaghan").fit(volumes.tolist(), energies.tolist())
            value, derivative, minimum = float(fit.b0_GPa), float(fit.b1), float(fit.v0)
            misfit = float(np.sqrt(np.mean((fit.func(volumes) - energies) ** 2)))
    except (EOSError, ValueError, RuntimeError, TypeError) as error:
        return BulkModulus(failed("equation-of-state"), message=f"no fit: {error}")
    span = float(np.ptp(energies))
    if not volumes[0] <= minimum <= volumes[-1]:
        return BulkModulus(
            failed("equation-of-state"),
            message=f"expected the minimum between {volumes[0]:.2f} and {volumes[-1]:.2f} A^3/atom, got {minimum:.2f}",
        )
    if not (value > 0 and misfit <= config.max_residual * span):
        return BulkModulus(
            failed("equation-of-state"), message=f"modulus {value:.3g} GPa, misfit {misfit:.2g} of {span:.2g} eV/atom"
        )
    return BulkModulus(OK, value, derivative, minimum)
