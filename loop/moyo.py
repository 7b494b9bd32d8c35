"""The symmetry finder, made safe: moyopy may end in a panic of its Rust code, which Python sees as no Exception."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from moyopy import MoyoDataset
    from pymatgen.core import Structure

FLATTEST = 1e-3  # volume over the product of the three lengths: below it there is no cell to search
LARGEST = 1e6  # A or lattice vectors: beyond, coordinates have lost their decimals
_LOG = logging.getLogger("moyo")


def find_symmetry(structure: Structure, symprec: float, **options: Any) -> MoyoDataset | None:
    """What moyopy finds; None for what is no crystal, and where it finds nothing.

    Args:
        structure: any.
        symprec: in Angstrom.
        options: of `moyopy.MoyoDataset`, e.g. its setting.
    """
    matrix, coords = structure.lattice.matrix, structure.frac_coords
    if len(structure) == 0 or not structure.is_ordered or not _is_cell(matrix, coords):
        return None
    import moyopy

    _LOG.setLevel(logging.ERROR)  # it warns about every supercell, and about its operations
    try:
        numbers = [int(species.Z) for species in structure.species]  # a dummy species has none
        cell = moyopy.Cell(matrix.tolist(), coords.tolist(), numbers)
        return moyopy.MoyoDataset(cell, symprec=symprec, **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # it raises bare exceptions of several kinds, and panics that are not even these
        return None


def _is_cell(matrix: np.ndarray, coords: np.ndarray) -> bool:
    if not (np.isfinite(matrix).all() and np.isfinite(coords).all()):
        return False
    lengths = np.linalg.norm(matrix, axis=1)
    if not (lengths.min() > 0 and lengths.max() < LARGEST and np.abs(coords).max() < LARGEST):
        return False
    return bool(abs(np.linalg.det(matrix / lengths[:, None])) > FLATTEST)
