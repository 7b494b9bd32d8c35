"""Whether a crystal is dynamically stable: phonon frequencies by finite displacements, with phonopy.

Frequencies are taken only at wave vectors that fit into the supercell, where the displacements give them exactly and
nothing is interpolated (Togo, J. Phys. Soc. Jpn. 92, 012001 (2023), doi 10.7566/JPSJ.92.012001).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.core import Structure

from loop.errors import ConfigError
from loop.values import OK, Quantity, failed
from oracles.potentials.base import ROUND_OFF, Potential
from oracles.symmetry import find_group, primitive

if TYPE_CHECKING:
    from phonopy import Phonopy


@dataclass(frozen=True)
class PhononConfig:
    """How a crystal is displaced."""

    min_length: float = 9.0
    """Shortest vector of the supercell, A; 0: the primitive cell itself, which gives Gamma alone."""
    max_atoms: int = 200
    """Largest supercell, atoms; a larger one shrinks along its longest vector first."""
    displacement: float = 0.03
    """A; well above the noise of single precision, and still harmonic."""
    tolerance: float = 0.3
    """Imaginary frequencies up to this count as noise, THz."""

    def __post_init__(self) -> None:
        """Check values."""
        if not (0.001 <= self.displacement <= 0.1 and self.max_atoms >= 1 and self.tolerance >= 0):
            raise ConfigError(
                "phonons: expected a displacement of 0.001 to 0.1 A, max_atoms >= 1 and a tolerance >= 0 THz, got "
                f"{self.displacement:g} A, {self.max_atoms} and {self.tolerance:g} THz."
            )


@dataclass(frozen=True)
class Phonons:
    """Frequencies at the wave vectors of a supercell. Imaginary ones are negative numbers, as usual."""

    status: str
    lowest: float = float("nan")  # THz, of all but the three acoustic ones at Gamma
    lowest_gamma: float = float("nan")  # THz, of the optical ones at Gamma; NaN for one atom
    highest: float = float("nan")  # THz
    acoustic: float = float("nan")  # THz, largest deviation from zero of the acoustic ones at Gamma: the noise
    supercell: tuple[int, ...] = ()
    at: tuple[float, ...] = ()  # wave vector of the lowest, in the primitive reciprocal lattice
    stable: bool = False
    message: str = ""
    frequencies: list[list[float]] = field(default_factory=list)  # THz, (wave vectors, branches)

    def quantities(self) -> dict[str, Quantity]:
        """For an evaluation."""
        if self.status != OK:
            return {}
        return {
            "lowest_frequency": Quantity(self.lowest, "THz"),
            "highest_frequency": Quantity(self.highest, "THz"),
            "dynamically_stable": Quantity(float(self.stable), "1"),
        }


def phonons(relaxed: Structure, potential: Potential, config: PhononConfig = PhononConfig()) -> Phonons:
    """Phonons of a crystal at its minimum.

    Args:
        relaxed: relaxed with the same potential, tightly; its primitive cell is displaced.
        potential: gives the forces.
        config: supercell and displacements.
    """
    relaxed = primitive(relaxed, ROUND_OFF)
    supercell = supercell_of(relaxed, config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            calculation = _displaced(relaxed, supercell, config.displacement)
            cells = [_structure(cell) for cell in calculation.supercells_with_displacements or [] if cell is not None]
            forces = _forces(cells, potential)
            if isinstance(forces, str):
                return Phonons(failed("phonons"), supercell=supercell, message=forces)
            calculation.forces = forces
            calculation.produce_force_constants()
            calculation.symmetrize_force_constants()
            wave_vectors = _commensurate(supercell)
            calculation.run_qpoints(wave_vectors)
            frequencies = _frequencies(calculation)
    except (RuntimeError, ValueError, ArithmeticError, np.linalg.LinAlgError, TypeError) as error:
        return Phonons(failed("phonons"), supercell=supercell, message=f"{type(error).__name__}: {error}")
    return _judged(wave_vectors, frequencies, supercell, config)


def _frequencies(calculation: Phonopy) -> np.ndarray:
    """Frequencies (wave vectors, branches) in THz."""
    if calculation.qpoints is None:
        raise RuntimeError("phonopy gave no frequencies")
    return np.array(calculation.qpoints.frequencies)


def supercell_of(structure: Structure, config: PhononConfig) -> tuple[int, int, int]:
    """How often each vector is repeated."""
    heights = 1 / np.linalg.norm(structure.lattice.inv_matrix, axis=0)  # A, between lattice planes
    times = np.maximum(1, np.ceil(config.min_length / heights - 1e-6)).astype(int)
    while times.prod() * len(structure) > config.max_atoms and times.max() > 1:
        times[int(np.argmax(np.where(times > 1, times * heights, 0.0)))] -= 1
    return int(times[0]), int(times[1]), int(times[2])


def _displaced(structure: Structure, supercell: tuple[int, ...], distance: float) -> Phonopy:
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(
        numbers=[species.Z for species in structure.species],
        cell=structure.lattice.matrix,
        scaled_positions=structure.frac_coords,
    )
    calculation = Phonopy(cell, np.diag(supercell).tolist(), primitive_matrix="P", symprec=1e-4)
    calculation.generate_displacements(distance=distance, is_plusminus=True)
    return calculation


def _structure(cell: object) -> Structure:
    return Structure(cell.cell, cell.numbers, cell.scaled_positions)  # type: ignore[attr-defined]


def _forces(cells: Sequence[Structure], potential: Potential) -> np.ndarray | str:
    """Forces (displacements, atoms, 3) in eV/A, or why there are none."""
    points = potential.single_points(cells, groups=[find_group(cell, ROUND_OFF) for cell in cells])
    for point in points:
        if point.forces is None:
            return f"a displaced cell has no forces: {point.status} {point.message}"
    return np.array([point.forces for point in points])


def _commensurate(supercell: tuple[int, ...]) -> np.ndarray:
    """Wave vectors (q, 3) that fit into the supercell, Gamma first; one of each pair q, -q."""
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in supercell], indexing="ij"), axis=-1).reshape(-1, 3)
    opposite = (-grid) % np.array(supercell)
    first = [tuple(q) <= tuple(p) for q, p in zip(grid.tolist(), opposite.tolist(), strict=True)]
    result: np.ndarray = grid[first] / np.array(supercell)
    return result


def _judged(
    wave_vectors: np.ndarray, frequencies: np.ndarray, supercell: tuple[int, ...], config: PhononConfig
) -> Phonons:
    """Take the acoustic branches at Gamma out, and look for imaginary frequencies among the others."""
    at_gamma = frequencies[0][np.argsort(np.abs(frequencies[0]))]
    acoustic, optical = at_gamma[:3], at_gamma[3:]
    others = frequencies[1:]
    lowest, where = float("inf"), 0
    if optical.size:
        lowest = float(optical.min())
    if others.size and others.min() < lowest:
        lowest, where = float(others.min()), 1 + int(np.argmin(others.min(axis=1)))
    known = np.isfinite(lowest)
    return Phonons(
        status=OK if known else failed("phonons"),
        lowest=lowest if known else float("nan"),
        lowest_gamma=float(optical.min()) if optical.size else float("nan"),
        highest=float(frequencies.max()),
        acoustic=float(np.abs(acoustic).max()),
        supercell=supercell,
        at=tuple(wave_vectors[where].tolist()),
        stable=bool(known and lowest >= -config.tolerance),
        message="" if known else "one atom and no wave vector but Gamma: nothing to judge by; allow a larger supercell",
        frequencies=np.round(frequencies, 4).tolist(),
    )
