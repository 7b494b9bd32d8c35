"""Potentials as ASE calculators, and crystals from and to ASE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import CalculationFailed, Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from pymatgen.core import Structure

from oracles.potentials.base import Potential, SinglePoint


class PotentialCalculator(Calculator):
    """A `Potential` for ASE. One evaluation gives energy (eV), forces and stress."""

    implemented_properties = [  # noqa: RUF012  (the name and type are ASE's)
        "energy",
        "free_energy",
        "forces",
        "stress",
    ]

    def __init__(self, potential: Potential) -> None:
        super().__init__()
        self.potential = potential

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Evaluate.

        Raises:
            UnsupportedElementError: the potential does not know an element.
            CalculationFailed: it cannot compute this crystal.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        if self.atoms is None:
            raise ValueError("expected atoms, got None")
        structure = to_structure(self.atoms)
        self.potential.require(structure)
        point = self.potential.single_points([structure], gradients=bool({"forces", "stress"} & set(properties)))[0]
        if not point.ok:
            raise CalculationFailed(f"{self.potential.name}: {point.status}, {point.message}")
        self.results = as_results(point, len(structure))


def as_results(point: SinglePoint, n_atoms: int) -> dict[str, Any]:
    """A single point as the results of an ASE calculator (energy of the whole cell in eV, stress in Voigt order)."""
    energy = point.energy * n_atoms
    results: dict[str, Any] = {"energy": energy, "free_energy": energy}
    if point.forces is not None and point.stress is not None:
        results |= {"forces": point.forces, "stress": full_3x3_to_voigt_6_stress(point.stress)}
    return results


def to_structure(atoms: Atoms) -> Structure:
    """A structure with the atoms' order and cell."""
    return Structure(atoms.cell.array, atoms.numbers, atoms.positions, coords_are_cartesian=True)


def to_atoms(structure: Structure) -> Atoms:
    """Periodic atoms with the structure's order and cell."""
    numbers = [species.Z for species in structure.species]
    return Atoms(numbers=numbers, positions=structure.cart_coords, cell=structure.lattice.matrix, pbc=True)
