"""Cheap judgement of unrelaxed crystals: one call of a fast potential for all of them, then a hull."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure

from loop.hull import Hull
from loop.values import OK, Candidate, EnergyType

Energies = Callable[[Sequence[Structure]], np.ndarray]
"""Energies of crystals as they are: eV/atom, shape (n,), NaN where there is none."""


@dataclass(frozen=True, eq=False)
class HullScreen:
    """Energies above the hull without relaxation. Implements `loop.contracts.Screen`."""

    energies: Energies
    energy_type: EnergyType  # of what `energies` gives; must be the hull's
    hull: Hull

    def __call__(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """Energies above the hull: eV/atom, shape (n,), NaN where there is none."""
        return self.judge([candidate.structure for candidate in candidates])[0]

    def judge(self, structures: list[Structure]) -> tuple[np.ndarray, np.ndarray]:
        """Energies above the hull (eV/atom, NaN where there is none), and whether each one's hull is sparse.

        Raises:
            EnergyTypeError: energies and hull are of different types.
        """
        energies = _energies(self.energies, structures)
        found = self.hull.batch([structure.composition for structure in structures], energies, self.energy_type)
        above = np.array([result.e_above_hull if result.status == OK else np.nan for result in found], dtype=float)
        return above, np.array([result.sparse for result in found], dtype=bool)


def _energies(energies: Energies, structures: list[Structure]) -> np.ndarray:
    """One call for the batch; should it fail as a whole, one by one, so that one crystal cannot take others along."""
    if not structures:
        return np.zeros(0)
    try:
        return np.asarray(energies(structures), dtype=float)
    except Exception:  # a potential may raise whatever its libraries raise; the crystal then has no energy
        if len(structures) == 1:
            return np.array([np.nan])
        return np.concatenate([_energies(energies, [structure]) for structure in structures])
