"""Which prototype a crystal is, so that a list of finds cannot hide that it repeats one idea.

The label is AFLOW's, made by pymatgen: anonymised formula, Pearson symbol, space group, Wyckoff letters, canonical over
origins and exchanges of elements, as ``AB_cF8_225_a_b`` for rock salt (Goodall et al., Sci. Adv. 8, eabn4117 (2022)).

An ordered decoration of fcc, bcc or hcp is new in name only: alloys of its elements are often disordered on the same
lattice, and any potential finds hundreds of orderings close to the hull.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.core import Lattice, Structure

from loop.moyo import find_symmetry

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher

SYMPREC = 0.1  # A, of the prototype: relaxed crystals
MERGE = 0.15  # of the mean distance of atoms: how far a decorated lattice's atoms may lie off their ideal places
STRAIN = 0.15  # of lattice vectors against the ideal lattice's: an ordering shears and stretches it
OTHER = ""


def prototype(structure: Structure) -> str:
    """AFLOW-like label of an ordered crystal; empty where no symmetry is found."""
    found = find_symmetry(structure, SYMPREC)
    if found is None:
        return OTHER
    from pymatgen.analysis import prototypes as library
    from pymatgen.core import Element

    # the library runs the symmetry finder by itself: give it a cell that is exactly symmetric and standard
    cell = found.std_cell
    standard = Structure(Lattice(cell.basis), [Element.from_Z(z) for z in cell.numbers], cell.positions)
    try:
        with warnings.catch_warnings():  # the library's own uses of what it deprecates
            warnings.simplefilter("ignore", FutureWarning)
            label = library.get_protostructure_label_from_moyopy(standard, raise_errors=True, symprec=0.01)
            return library.get_prototype_from_protostructure(label) if label else OTHER
    except (ValueError, KeyError):  # letters and composition that do not go together
        return OTHER


def family(label: str, parent: str) -> str:
    """Family of a prototype: the parent lattice of a decoration, else formula and space group of the label."""
    parts = label.split("_")
    return parent or (f"{parts[0]} in {parts[2]}" if len(parts) > 2 else label)


def parent_lattice(structure: Structure) -> str:
    """``fcc``, ``bcc`` or ``hcp`` where a crystal of several elements is an ordering of that lattice, else empty.

    All species are made equal and the cell is reduced within `MERGE`; what is left is compared with the ideal lattice
    within `STRAIN`. Of several that fit the nearest counts: by Bain's path fcc and bcc differ by strain alone.
    """
    if len(structure.composition) < 2 or not structure.is_ordered:
        return OTHER
    same = Structure(structure.lattice, ["Cu"] * len(structure), structure.frac_coords)
    same.scale_lattice(float(len(same)))  # one unit of volume per atom
    small = same.get_primitive_structure(tolerance=MERGE)
    if len(small) > 2:
        return OTHER
    fits = {}
    for name, ideal in _ideal().items():
        if len(ideal) == len(small) and (distance := _distance(small, ideal)) is not None:
            fits[name] = distance
    return min(fits, key=lambda name: fits[name]) if fits else OTHER


def prototype_counts(labels: Sequence[str]) -> list[int]:
    """How often each prototype stands in the list, for each entry; 0 for one without a label."""
    counts = Counter(labels)
    return [counts[label] if label else 0 for label in labels]


def _distance(small: Structure, ideal: Structure) -> float | None:
    """How far a cell is from an ideal one, in lengths and angles; None where the matcher sees two lattices."""
    mapping = small.lattice.find_mapping(ideal.lattice, ltol=STRAIN, atol=float(np.degrees(STRAIN)))
    if mapping is None or not _matcher().fit(small, ideal):
        return None
    lengths = np.abs(np.array(mapping[0].abc) / ideal.lattice.abc - 1).max()
    angles = np.radians(np.abs(np.array(mapping[0].angles) - ideal.lattice.angles)).max()
    return float(lengths + angles)


@cache
def _matcher() -> StructureMatcher:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(ltol=STRAIN, stol=MERGE, angle_tol=float(np.degrees(STRAIN)), primitive_cell=False)


@cache
def _ideal() -> dict[str, Structure]:
    """Primitive cells of one unit of volume per atom."""
    edge = {"fcc": 4 ** (1 / 3), "bcc": 2 ** (1 / 3)}
    half = {"fcc": [[0, 1, 1], [1, 0, 1], [1, 1, 0]], "bcc": [[-1, 1, 1], [1, -1, 1], [1, 1, -1]]}
    made = {name: Structure(Lattice(np.array(half[name]) * edge[name] / 2), ["Cu"], [[0, 0, 0]]) for name in edge}
    a = (2 / (np.sqrt(3) / 2 * np.sqrt(8 / 3))) ** (1 / 3)
    hcp = Lattice.hexagonal(a, a * np.sqrt(8 / 3))
    return made | {"hcp": Structure(hcp, ["Cu", "Cu"], [[1 / 3, 2 / 3, 0.25], [2 / 3, 1 / 3, 0.75]])}
