"""Crystals whose energies are known: a machine that gets them wrong must label nothing."""

from __future__ import annotations

import numpy as np
from pymatgen.core import Structure

from loop.errors import PotentialError
from oracles.potentials.base import Potential

TOLERANCE = 2e-3  # eV/atom; float32 on other hardware moves these energies by 1e-6

# eV/atom of CHGNet 0.3.0 by its own `CHGNet.predict_structure` (chgnet 0.4.2, float32, CPU) in the cells below
CHGNET = {"Si": -5.3122, "MgO": -6.3139, "SrTiO3": -8.4216, "Fe": -8.3565}


def crystals() -> dict[str, Structure]:
    """Silicon, rock salt, perovskite, iron: primitive cells, lattice constants in Angstrom near experiment."""
    face_centred = np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    body_centred = np.array([[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]])
    perovskite = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return {
        "Si": Structure(5.43 * face_centred, ["Si", "Si"], np.array([[0, 0, 0], [0.25, 0.25, 0.25]])),
        "MgO": Structure(4.25 * face_centred, ["Mg", "O"], np.array([[0, 0, 0], [0.5, 0.5, 0.5]])),
        "SrTiO3": Structure(3.92 * np.eye(3), ["Sr", "Ti", "O", "O", "O"], perovskite),
        "Fe": Structure(2.84 * body_centred, ["Fe"], [[0, 0, 0]]),
    }


def check_canary(potential: Potential) -> None:
    """Check a potential on this machine: known energies for CHGNet, and for each that a supercell has the same energy.

    Raises:
        PotentialError: an energy is wrong.
    """
    known = CHGNET if potential.energy_type.method == "CHGNet-0.3.0" else {}
    sound = {name: crystal for name, crystal in crystals().items() if potential.check(crystal).ok}
    names, structures = list(sound), list(sound.values())
    points = potential.single_points(structures, gradients=False)
    doubled = potential.single_points([structure * (2, 1, 1) for structure in structures], gradients=False)
    for name, point, twice in zip(names, points, doubled, strict=True):
        expected = known.get(name, twice.energy)
        wrong = [e for e in (point.energy, twice.energy) if not np.isfinite(e) or abs(e - expected) > TOLERANCE]
        if wrong:
            raise PotentialError(
                f"{potential.name} on {potential.about.device} gives {wrong[0]:.4f} eV/atom for {name}, expected "
                f"{expected:.4f}: this installation computes wrong energies and must not label anything; "
                "reinstall torch and the potential."
            )
