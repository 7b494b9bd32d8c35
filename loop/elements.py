"""Numbers of elements and of space groups that several rooms need."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

F_BLOCK = (*range(57, 72), *range(89, 104))  # atomic numbers, La to Lu and Ac to Lr

# crystal system -> its last space group; they follow each other from 1 to 230
CRYSTAL_SYSTEMS = {
    "triclinic": 2, "monoclinic": 15, "orthorhombic": 74, "tetragonal": 142, "trigonal": 167, "hexagonal": 194,
    "cubic": 230,
}  # fmt: skip


@lru_cache(maxsize=1)
def covalent_radii() -> np.ndarray:
    """Covalent radii (A) by atomic number (Cordero et al. 2008, as tabulated by ASE)."""
    from ase.data import covalent_radii

    radii: np.ndarray = covalent_radii
    return radii
