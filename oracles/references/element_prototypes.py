"""Crystals of the elements: what the corners of a hull are chosen from, and checked against.

A corner that is too high makes everything look stable that decomposes into it. So each element is tried in many
prototypes (AFLOW's library as pymatgen ships it, molecular crystals with the bond lengths of the free molecules, ASE's
reference states, and whatever published crystals there are), each relaxed as candidates are, and the lowest is kept.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from oracles.relax import RelaxConfig, relax
from oracles.symmetry import space_group

if TYPE_CHECKING:
    from oracles.potentials.base import Potential

FAR = 1.0  # eV/atom above the lowest as it stands, beyond which a prototype is not worth relaxing
SAME = 5e-4  # eV/atom: of crystals that end this close the first is kept, published before built ones
SAME_MOLECULAR = 0.01  # of molecular crystals: so soft that the stress left at convergence weighs as much
AS_IT_STANDS = 0.02  # eV/atom above itself relaxed, within which a corner as it stands serves crystals as they stand
SYMPREC = 0.1  # A, of the space groups shown
LARGEST = 8  # atoms per cell: larger prototypes are tried for the element they are named after only
# Bond lengths in A (Huber and Herzberg, Constants of Diatomic Molecules, 1979) and volumes of the molecular crystals
# in A^3 a molecule (from the densities in the CRC Handbook): starting points, the relaxation has the last word.
MOLECULES = {
    "H": (0.741, 38.0), "N": (1.098, 45.0), "O": (1.208, 34.7), "F": (1.412, 32.0),
    "Cl": (1.988, 57.7), "Br": (2.281, 65.6), "I": (2.666, 85.0),
}  # fmt: skip
# AFLOW's packings of two atoms that become molecules: alpha-N2, gamma-N2, hexagonal as H2, Cl2, alpha-O2, beta-O2
MOLECULAR = (
    "A_cP8_205_c:N", "A_tP4_136_f:N", "A_hP4_194_f:C", "A_oC8_64_f:I", "A_mC4_12_i:O", "A_hR2_166_c:O",
)  # fmt: skip
LOOSE = 1.4  # a second start, this much larger: potentials without dispersion end there
PROMETHIUM = (3.65, 11.65)  # A, a and c of dhcp; Pallmer and Chikalla, J. Less-Common Met. 24, 233 (1971)


@dataclass(frozen=True)
class Prototype:
    """A crystal of an element, before relaxation."""

    element: str
    name: str  # ``prototype:A1``, ``molecules:A_cP8_205_c``, ``ase:Cu``, or the id of a published crystal
    structure: Structure


@dataclass(frozen=True)
class Corner:
    """The lowest relaxed crystal of an element."""

    element: str
    name: str
    energy: float  # eV/atom
    unrelaxed: float  # eV/atom of the same crystal as it stood; `energy` where that is too far above
    volume: float  # A^3/atom, relaxed
    space_group: int = 0  # of the relaxed crystal at 0.1 A
    tried: dict[str, float] = field(default_factory=dict)  # name -> eV/atom of all that converged


def prototypes(
    element: str, published: Mapping[str, Structure] | None = None, largest: int = LARGEST
) -> list[Prototype]:
    """Crystals to try for an element.

    Args:
        element: its symbol.
        published: known crystals of it by their ids.
        largest: most atoms of a primitive cell, of prototypes named after other elements.
    """
    published = dict(published or {})
    reference = _ase_reference(element)
    named = {f"ase:{element}": reference} if reference is not None else {}
    volume = _volume(element, [*published.values(), *named.values()])
    built = {f"prototype:{name}": structure for name, structure in _of_aflow(element, volume, largest)}
    molecules = {f"molecules:{name}": structure for name, structure in _molecular(element)}
    everything = {**molecules, **published, **named, **built}
    return [Prototype(element, name, structure) for name, structure in everything.items()]


@cache
def textbook_crystals(element: str) -> dict[str, Structure]:
    """The prototypes of an element by name: crystals that are no discovery. Volumes are rough."""
    return {each.name: each.structure for each in prototypes(element)}


def lowest_prototypes(
    elements: Sequence[str],
    potential: Potential,
    published: Mapping[str, Mapping[str, Structure]] | None = None,
    config: RelaxConfig | None = None,
    *,
    largest: int = LARGEST,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Corner]:
    """Relax the prototypes of elements and keep the lowest of each.

    Args:
        elements: symbols; those that the potential does not know are left out.
        potential: relaxes, with the settings that candidates get.
        published: known crystals, by element and id.
        config: of the relaxation; None: as candidates are relaxed by default.
        largest: see `prototypes`.
        progress: called with the number of elements done and their total.

    Returns:
        A corner for each element of which a prototype converged.
    """
    corners, known = {}, sorted(set(elements) & potential.elements)
    for done, element in enumerate(known, start=1):
        tried = prototypes(element, (published or {}).get(element), largest)
        corner = _lowest(element, tried, potential, config or RelaxConfig())
        if corner is not None:
            corners[element] = corner
        if progress is not None:
            progress(done, len(known))
    return corners


def _lowest(element: str, tried: Sequence[Prototype], potential: Potential, config: RelaxConfig) -> Corner | None:
    points = potential.energies([each.structure for each in tried])
    if not np.isfinite(points).any():
        return None
    lowest = float(np.nanmin(points))
    near = [index for index, point in enumerate(points) if point <= lowest + FAR]
    structures = [tried[index].structure for index in near]
    outcomes = relax(structures, potential, replace(config, batch_size=max(len(near), 1)))
    good = {index: out for index, out in zip(near, outcomes, strict=True) if out.ok and out.structure}
    if not good:
        return None
    best = min(out.energy for out in good.values())
    same = SAME_MOLECULAR if element in MOLECULES else SAME
    index = next(index for index, out in good.items() if out.energy <= best + same)
    name, crystal = tried[index].name, good[index].structure
    assert crystal is not None  # of those that converged
    energy = float(good[index].energy)
    return Corner(
        element=element,
        name=name,
        energy=energy,
        unrelaxed=float(points[index]) if points[index] <= energy + AS_IT_STANDS else energy,
        volume=float(crystal.volume / len(crystal)),
        space_group=space_group(crystal, SYMPREC),
        tried={tried[index].name: float(out.energy) for index, out in good.items()},
    )


@cache
def _library() -> dict[str, Structure]:
    """AFLOW's prototypes of elements (Mehl et al., Comput. Mater. Sci. 136, S1 (2017)), by AFLOW's name.

    From the file in pymatgen and not through its module, which parses 288 literature references first: 12 s.
    """
    found = {}
    for entry in _aflow_entries():
        crystal = entry["snl"]
        structure = Structure.from_dict({"lattice": crystal["lattice"], "sites": crystal["sites"]})
        if len(structure.composition.elements) == 1:
            symbol = structure.composition.elements[0].symbol
            found[f"{entry['tags']['aflow']}:{symbol}"] = structure.get_primitive_structure()
    return found


def _aflow_entries() -> list[dict[str, Any]]:
    module = find_spec("pymatgen.analysis.prototypes")
    assert module is not None
    assert module.origin is not None
    entries: list[dict[str, Any]] = json.loads(
        gzip.decompress((Path(module.origin).parent / "aflow_prototypes.json.gz").read_bytes())
    )
    return entries


def _of_aflow(element: str, volume: float, largest: int) -> Iterator[tuple[str, Structure]]:
    for name, structure in _library().items():
        if len(structure) <= largest or name.endswith(f":{element}"):
            yield name, _scaled(structure, element, volume)


def _scaled(structure: Structure, element: str, volume: float) -> Structure:
    """The prototype with another element and volume (A^3/atom)."""
    species: list[Any] = [element] * len(structure)
    scaled = Structure(structure.lattice, species, structure.frac_coords)
    scaled.scale_lattice(volume * len(scaled))
    return scaled


def _molecular(element: str) -> Iterator[tuple[str, Structure]]:
    """Crystals of diatomic molecules with their own bond length, at the real crystal's density and looser."""
    if element not in MOLECULES:
        return
    bond, volume = MOLECULES[element]
    for name in MOLECULAR:
        for factor in (1.0, LOOSE):
            packed = _scaled(_library()[name], element, factor * volume / 2)
            yield name.partition(":")[0] + ("" if factor == 1.0 else f"@{factor}"), _with_bond(packed, bond)


def _with_bond(structure: Structure, bond: float) -> Structure:
    """Each atom moved along the line to its nearest neighbour, so that the pair is `bond` (A) apart."""
    cartesian = structure.cart_coords.copy()
    for index, site in enumerate(structure):
        near = min(structure.get_neighbors(site, 5.0), key=lambda other: other.nn_distance)
        centre, half = (site.coords + near.coords) / 2, (site.coords - near.coords) / 2
        cartesian[index] = centre + half / np.linalg.norm(half) * bond / 2
    species: list[Any] = structure.species
    return Structure(structure.lattice, species, cartesian, coords_are_cartesian=True)


def _ase_reference(element: str) -> Structure | None:
    """The crystal of an element in ASE's table; None where that holds none."""
    from ase.build import bulk

    from oracles.potentials.calculator import to_structure

    if element == "Pm":  # double hexagonal
        a, c = PROMETHIUM
        sites = np.array([[0, 0, 0], [1 / 3, 2 / 3, 0.25], [0, 0, 0.5], [2 / 3, 1 / 3, 0.75]])
        return Structure(Lattice.hexagonal(a, c), ["Pm"] * 4, sites)
    try:
        return to_structure(bulk(element))
    except (ValueError, KeyError, RuntimeError, NotImplementedError):
        return None


def _volume(element: str, crystals: Sequence[Structure]) -> float:
    """A^3/atom to start from: of the densest known crystal, else of spheres of the atomic radius, close-packed."""
    if crystals:
        return min(structure.volume / len(structure) for structure in crystals)
    radius = Element(element).atomic_radius or 1.5
    return float(4 * np.sqrt(2) * float(radius) ** 3)
