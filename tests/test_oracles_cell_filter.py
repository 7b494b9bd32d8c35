"""Our cell filter is ASE's: same coordinates, same forces, same path."""

import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

from oracles.potentials.cell_filter import CellFilter


@pytest.fixture
def alloys():
    """Two copies of a shaken and sheared cell without symmetry."""
    made = []
    for _ in range(2):
        atoms = bulk("Cu", cubic=True)
        atoms.symbols[0] = "Au"
        atoms.rattle(0.1, seed=1)
        strain = np.array([[0.03, 0.05, 0], [-0.02, -0.04, 0.01], [0, 0.02, 0.02]])
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
        atoms.calc = EMT()
        made.append(atoms)
    return made


def test_coordinates_and_forces_are_those_of_ase(alloys):
    ours, ases = CellFilter(alloys[0]), FrechetCellFilter(alloys[1])
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.1, 0.5):  # 0.5: strains of about a tenth, and turned axes
        step = scale * rng.standard_normal((7, 3))
        for each in (ours, ases):
            each.set_positions(each.get_positions() + step)
        offset = np.vstack([np.zeros((4, 3)), 4 * np.log(4) * np.eye(3)])  # a constant of ASE's
        np.testing.assert_allclose(ours.get_positions() + offset, ases.get_positions(), atol=1e-10)
        np.testing.assert_allclose(ours.get_forces(), ases.get_forces(), atol=1e-10)
        np.testing.assert_allclose(alloys[0].cell, alloys[1].cell, atol=1e-12)
    assert np.abs(ours.get_positions()[-3:] - ours.get_positions()[-3:].T).max() > 0.1  # no symmetric special case


def test_a_relaxation_goes_the_same_way(alloys):
    runs = [
        BFGS(kind(atoms), logfile=None) for kind, atoms in zip((CellFilter, FrechetCellFilter), alloys, strict=True)
    ]
    for run in runs:
        run.run(fmax=0.01, steps=60)
    assert runs[0].nsteps == runs[1].nsteps > 10
    np.testing.assert_allclose(alloys[0].positions, alloys[1].positions, atol=1e-8)
    np.testing.assert_allclose(alloys[0].cell, alloys[1].cell, atol=1e-8)


def test_forces_are_the_gradient_of_the_energy(alloys):
    filtered = CellFilter(alloys[0])
    filtered.set_positions(filtered.get_positions() + 0.2 * np.random.default_rng(1).standard_normal((7, 3)))
    at, forces = filtered.get_positions(), filtered.get_forces()
    for row, axis in ((1, 2), (4, 0), (5, 2), (6, 1)):
        energies = []
        for sign in (-1, 1):
            moved = at.copy()
            moved[row, axis] += sign * 1e-4
            filtered.set_positions(moved)
            energies.append(alloys[0].get_potential_energy())
        assert forces[row, axis] == pytest.approx(-(energies[1] - energies[0]) / 2e-4, abs=2e-6)
