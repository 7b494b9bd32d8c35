"""Crystals of published tables and random ones, for more than one benchmark."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loop.errors import InputError
from loop.io.cif import read_cif
from loop.values import Candidate, Origin

if TYPE_CHECKING:
    from pymatgen.core import Structure

RANDOM = "random"
LENGTHS, ANGLES = (3.0, 15.0), (60.0, 120.0)  # Angstrom, degrees: the random generator of arXiv 2601.20996
# Half of the random cells hold over 30 A^3 an atom. They are to close up, or chance is handicapped by a guard. A second
# try with FIRE where BFGS makes a crystal fall into itself changes chance's discoveries by 0, 0 and 1 of 50.
CONTRACTION = 100.0


def candidate_of(text: str) -> Candidate | None:
    """None where the text of a CIF holds no usable crystal."""
    try:
        return Candidate(read_cif(text).structure)
    except InputError:
        return None


def random_crystals(system: Sequence[str], n: int, max_atoms: int, seed: int) -> list[Candidate]:
    """Random cells with atoms anywhere, of compositions of at least two elements drawn uniformly."""
    from pymatgen.core import Lattice, Structure

    rng = np.random.default_rng(seed)
    amounts = [
        counts
        for counts in product(range(max_atoms + 1), repeat=len(system))
        if sum(counts) <= max_atoms and np.count_nonzero(counts) > 1
    ]
    made = []
    for _ in range(n):
        counts = amounts[rng.integers(len(amounts))]
        lattice = Lattice.from_parameters(*rng.uniform(*LENGTHS, 3), *rng.uniform(*ANGLES, 3))
        species = [symbol for symbol, count in zip(system, counts, strict=True) for _ in range(count)]
        made.append(Candidate(Structure(lattice, species, rng.random((len(species), 3))), Origin(RANDOM)))
    return made


def structures_of_split(data: Path, split: str) -> dict[str, Structure]:
    """Readable crystals of a split of a table, by id.

    Args:
        data: CSV with columns cif, split and ids.
        split: as `test`.

    Raises:
        InputError: there is no column split, or no such crystal.
    """
    from loop.io.crystals import read_crystals

    table = read_crystals(data)
    if "split" not in table.frame:
        raise InputError(f"{data.name} has no column split, which says what the generator was not trained on")
    rows = np.flatnonzero(table.frame["split"] == split)
    found = {str(table.ids[i]): table.structures[i] for i in rows}
    result = {id: structure for id, structure in found.items() if structure is not None}
    if not result:
        raise InputError(f"{data.name} has no readable crystal whose split is {split!r}")
    return result
