"""Space groups of crystals, by moyopy."""

from __future__ import annotations

import logging

from pymatgen.core import Structure

logging.getLogger("moyo").setLevel(logging.ERROR)  # it warns of what matters only to readers of its operations


def space_group(structure: Structure, symprec: float) -> int:
    """International number of the space group, 1 where none is found; `symprec` in Angstrom."""
    import moyopy

    numbers = [species.Z for species in structure.species]
    try:
        cell = moyopy.Cell(structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), numbers)
        return int(moyopy.MoyoDataset(cell, symprec=symprec).number)
    except Exception:  # moyopy raises bare exceptions of several kinds where it finds nothing
        return 1
