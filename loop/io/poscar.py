"""POSCAR, the crystal format of VASP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure


def to_poscar(structure: Structure) -> str:
    """An ordered structure in its own cell, sites grouped by element."""
    from pymatgen.io.vasp import Poscar

    comment = structure.composition.reduced_formula
    return str(Poscar(right_handed(structure), comment=comment, sort_structure=True))


def right_handed(structure: Structure) -> Structure:
    """The same crystal in a right-handed cell, for VASP takes no other.

    A left-handed cell is turned over, sites with it; pymatgen's writer turns the cell alone, which makes a chiral
    crystal its mirror image.
    """
    from pymatgen.core import Lattice, Structure

    if np.linalg.det(structure.lattice.matrix) > 0:
        return structure
    return Structure(Lattice(-structure.lattice.matrix), structure.species, -structure.frac_coords)
