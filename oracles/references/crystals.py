"""Known crystals as crystals: the reference phases themselves, and where each comes from.

The table holds, per crystal, its space group, one atom of each orbit and the cell, so that 92,000 crystals take some
megabytes. Symmetry operations come from moyopy, in the standard setting and the primitive cell.
`oracles.references.build` writes it.
"""

from __future__ import annotations

import hashlib
import lzma
import zipfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.errors import InputError

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

DEFAULT = Path(__file__).parents[1] / "data" / "reference_crystals.npz"
STEPS = 65536  # of a fractional coordinate: 1e-3 A and less up to cells of 65 A
LENGTH_STEP, ANGLE_STEP = 1e-4, 1e-4  # A, degrees
ENERGY_STEP = 1e-5  # eV/atom
NO_ENERGY = np.iinfo(np.int32).min
SOURCES = ("", "mb", "megnet", "mp20", "mpts")
RELEASES = {"": "", "mb": "2018-19", "megnet": "2018-19", "mp20": "later", "mpts": "later"}
HULL_SOURCES = ("", "computed", "published")
ARRAYS = (
    "prefix", "number", "formula", "space_group", "setting", "sites", "element", "multiplicity", "coordinates",
    "lengths", "angles", "e_above_hull", "hull_source", "formation_energy", "formation_source", "prefixes",
    "attribution",
)  # fmt: skip

ATTRIBUTION = (
    "Crystals of the Materials Project (materialsproject.org), CC BY 4.0 "
    "(https://creativecommons.org/licenses/by/4.0/); A. Jain et al., APL Materials 1, 011002 (2013), "
    "doi 10.1063/1.4812323. Changed by this project: put into the standard primitive cell, coordinates rounded to "
    "1e-3 A."
)

# Rows: vectors of the primitive cell in terms of the conventional one, as moyopy chooses them
_CENTRINGS = {
    "P": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "A": [[1, 0, 0], [0, 0.5, 0.5], [0, -0.5, 0.5]],
    "C": [[0.5, -0.5, 0], [0.5, 0.5, 0], [0, 0, 1]],
    "I": [[-0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.5, 0.5, -0.5]],
    "F": [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]],
    "R": [[2 / 3, 1 / 3, 1 / 3], [-1 / 3, 1 / 3, 1 / 3], [-1 / 3, -2 / 3, 1 / 3]],
}


@dataclass(frozen=True)
class Known:
    """What is published about a reference crystal."""

    id: str
    formula: str  # reduced
    space_group: int  # found at 0.01 A
    e_above_hull: float  # eV/atom; NaN where nothing is known
    e_above_hull_source: str  # "published"; "computed" from the release's formation energies; or ""
    formation_energy: float  # eV/atom
    formation_energy_source: str  # data set that gave it; see `release`
    release: str  # of the Materials Project: "2018-19" or "later"; energies of two releases do not mix


class ReferenceCrystals:
    """The table. Cheap to open: crystals are made when they are asked for.

    Args:
        arrays: by name, see `ARRAYS`.
    """

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self._arrays = arrays
        ends = np.cumsum(arrays["sites"].astype(np.int64))
        self._starts = np.concatenate([[0], ends])
        self.formulas = np.char.decode(arrays["formula"], "ascii")

    def __len__(self) -> int:
        return len(self.formulas)

    @cached_property
    def checksum(self) -> str:
        """sha256 of the table."""
        digest = hashlib.sha256()
        for name in sorted(self._arrays):
            digest.update(np.ascontiguousarray(self._arrays[name]).tobytes())
        return digest.hexdigest()

    def __contains__(self, id: object) -> bool:
        return id in self._rows

    @cached_property
    def ids(self) -> np.ndarray:
        """Ids of all crystals, such as ``mp-149``."""
        prefixes, numbers = self._arrays["prefixes"][self._arrays["prefix"]], self._arrays["number"]
        return np.char.add(np.char.add(prefixes, "-"), numbers.astype(str))

    def known(self, id: str) -> Known:
        """What is published about a crystal.

        Raises:
            InputError: there is none of that id.
        """
        row, arrays = self._row(id), self._arrays
        source = SOURCES[arrays["formation_source"][row]]
        return Known(
            str(self.ids[row]),
            str(self.formulas[row]),
            int(arrays["space_group"][row]),
            _energy(arrays["e_above_hull"][row]),
            HULL_SOURCES[arrays["hull_source"][row]],
            _energy(arrays["formation_energy"][row]),
            source,
            RELEASES[source],
        )

    def structure(self, id: str) -> Structure:
        """The crystal of an id, in its standard primitive cell, within 1e-3 A of the published one.

        Raises:
            InputError: there is none of that id.
        """
        from pymatgen.core import Element, Structure

        basis, numbers, coordinates = self.arrays_of(self._row(id))
        return Structure(basis, [Element.from_Z(z) for z in numbers.tolist()], coordinates)

    def n_atoms(self, id: str) -> int:
        """Atoms in the primitive cell.

        Raises:
            InputError: there is none of that id.
        """
        return int(self._sizes[self._row(id)])

    def arrays_of(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cell (3, 3) with row vectors in Angstrom, atomic numbers (n,), fractional coordinates (n, 3)."""
        arrays, group = self._arrays, int(self._arrays["setting"][row])
        sites = slice(self._starts[row], self._starts[row + 1])
        cell = np.concatenate([arrays["lengths"][:, row] * LENGTH_STEP, arrays["angles"][:, row] * ANGLE_STEP])
        return expand(
            group, cell, arrays["element"][sites], arrays["multiplicity"][sites], arrays["coordinates"][:, sites].T
        )

    def of_formula(self, formula: str) -> list[str]:
        """Ids of a formula, given in any order and multiple, lowest published energy above the hull first.

        Raises:
            InputError: that is no formula.
        """
        from pymatgen.core import Composition

        expected = f"expected a chemical formula, as LiFePO4, got {formula!r}"
        try:
            composition = Composition(formula)
        except ValueError as error:
            raise InputError(expected) from error
        if not composition.valid:  # pymatgen takes what is no element for a dummy
            raise InputError(expected)
        return self._ordered(self._by_formula.get(composition.reduced_formula, []))

    def in_system(self, elements: Collection[str]) -> list[str]:
        """Ids of the crystals that hold no other elements than these, by formula; elements themselves included.

        Raises:
            InputError: one of them is no element.
        """
        allowed = _mask(elements)
        inside = ~(self._masks & ~allowed).any(axis=1)
        return self._ordered(np.flatnonzero(inside).tolist())

    def lowest(self) -> list[str]:
        """One id a formula, that of its lowest published crystal; elements first, then by number of atoms.

        Lowest by energy above the hull where all crystals of the formula have one, else by formation energy.
        """
        order = self._rank
        first = order[np.unique(self.formulas[order], return_index=True)[1]]
        elements = np.bitwise_count(self._masks[first]).sum(axis=1)
        result: list[str] = self.ids[first[np.lexsort([self.ids[first], self._sizes[first], elements > 1])]].tolist()
        return result

    def rows(self, ids: Iterable[str] | None = None) -> pd.DataFrame:
        """Crystals as `oracles.references.table` takes them from a file; by default the lowest one of each formula.

        Returns:
            Columns material_id, pretty_formula, n_atoms (of the primitive cell), e_above_hull and
            formation_energy_per_atom (eV/atom, published) and cif (the primitive cell, P1).
        """
        import pandas as pd

        from loop.io.cif_writer import to_cif

        chosen = [self.known(id) for id in (self.lowest() if ids is None else ids)]
        return pd.DataFrame(
            {
                "material_id": [known.id for known in chosen],
                "pretty_formula": [known.formula for known in chosen],
                "n_atoms": [self.n_atoms(known.id) for known in chosen],
                "e_above_hull": [known.e_above_hull for known in chosen],
                "formation_energy_per_atom": [known.formation_energy for known in chosen],
                "cif": [to_cif(self.structure(known.id)) for known in chosen],
            }
        )

    def _ordered(self, rows: Iterable[int]) -> list[str]:
        chosen = np.array(sorted(rows, key=lambda row: (self.formulas[row], self._place[row])), dtype=int)
        result: list[str] = self.ids[chosen].tolist()
        return result

    def _row(self, id: str) -> int:
        try:
            return self._rows[id]
        except KeyError:
            raise InputError(
                f"expected the id of a reference crystal, as mp-149, got {id!r}; of a formula: "
                "`discovery-loop reference show FORMULA`"
            ) from None

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {id: row for row, id in enumerate(self.ids.tolist())}

    @cached_property
    def _by_formula(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for row, formula in enumerate(self.formulas.tolist()):
            found.setdefault(formula, []).append(row)
        return found

    @cached_property
    def _sizes(self) -> np.ndarray:
        return np.add.reduceat(self._arrays["multiplicity"].astype(int), self._starts[:-1])

    @cached_property
    def _masks(self) -> np.ndarray:
        """Elements of each crystal as bits, shape (n, 2)."""
        z = self._arrays["element"].astype(np.uint64)
        words = [np.where(z // 64 == word, np.uint64(1) << (z % 64), np.uint64(0)) for word in (0, 1)]
        return np.stack([np.bitwise_or.reduceat(word, self._starts[:-1]) for word in words], axis=1)

    @cached_property
    def _rank(self) -> np.ndarray:
        """Rows, those of a formula from the lowest to the highest."""
        above, formation = self._arrays["e_above_hull"], self._arrays["formation_energy"]
        _, inverse = np.unique(self.formulas, return_inverse=True)
        incomplete = np.zeros(inverse.max(initial=0) + 1, dtype=bool)
        np.logical_or.at(incomplete, inverse, above == NO_ENERGY)
        energy = np.where(incomplete[inverse], formation, above).astype(np.int64)
        return np.lexsort([self._arrays["number"], np.where(energy == NO_ENERGY, np.iinfo(np.int64).max, energy)])

    @cached_property
    def _place(self) -> np.ndarray:
        place = np.empty(len(self), dtype=int)
        place[self._rank] = np.arange(len(self))
        return place


def load_reference_crystals(path: str | Path | None = None) -> ReferenceCrystals:
    """Open a table, by default the one in the package: Materials Project crystals of at most 52 atoms per cell.

    Attribution (CC BY 4.0) is in the file and in the JSON beside it.

    Raises:
        InputError: the file is missing, damaged, or of another layout.
    """
    return _load(Path(path or DEFAULT).resolve())


@lru_cache(maxsize=2)
def _load(path: Path) -> ReferenceCrystals:
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            return ReferenceCrystals({name: file[name] for name in ARRAYS})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise InputError(
            f"expected a table of reference crystals at {path}, cannot read it: {error!r}; make it with "
            "`discovery-loop reference build`"
        ) from error


def expand(
    group: int, cell: np.ndarray, elements: np.ndarray, multiplicities: np.ndarray, coordinates: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All atoms of a primitive cell from one of each orbit.

    Args:
        group: space group, standard setting.
        cell: a, b, c (A) and alpha, beta, gamma (degrees) of the conventional cell.
        elements: atomic number of each site, (s,).
        multiplicities: atoms of each orbit in the primitive cell, (s,).
        coordinates: (s, 3), in `STEPS` of the primitive cell's vectors.

    Returns:
        Cell (3, 3) with row vectors in Angstrom, atomic numbers (n,), fractional coordinates (n, 3).

    Raises:
        ValueError: an orbit has another number of atoms.
    """
    basis = primitive_basis(group, cell)
    orbits = [
        orbit(group, basis, x / STEPS, m)
        for x, m in zip(coordinates.astype(float), multiplicities.tolist(), strict=True)
    ]
    return basis, np.repeat(elements.astype(int), multiplicities), np.concatenate(orbits)


def orbit(group: int, basis: np.ndarray, x: np.ndarray, multiplicity: int) -> np.ndarray:
    """Positions (multiplicity, 3) equivalent to one, which is moved onto its special position first.

    Of M operations, the M / multiplicity that move x least are those that leave it where it is; the mean of its images
    under them is the special position, to the last digit.

    Raises:
        ValueError: there are not so many.
    """
    rotations, shifts = operations(group)
    images = rotations @ x + shifts
    images -= np.round(images - x)
    distance = np.linalg.norm((images - x) @ basis, axis=1)
    fixing = np.argsort(distance, kind="stable")[: len(rotations) // multiplicity]
    special = images[fixing].mean(axis=0)
    images = np.mod(rotations @ special + shifts, 1.0)
    images[images > 1 - 1e-9] = 0.0
    apart = images[:, None] - images
    same = np.abs(apart - np.round(apart)).max(axis=-1) < 1e-6
    first = np.unique(same.argmax(axis=1))
    if len(first) != multiplicity:
        raise ValueError(f"expected {multiplicity} positions equivalent to {x} in group {group}, found {len(first)}")
    result: np.ndarray = images[first]
    return result


@cache
def operations(group: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (M, 3, 3) and translations (M, 3) of a space group in its standard primitive cell."""
    from moyopy import Setting, operations_from_number

    found = operations_from_number(group, setting=Setting.standard(), primitive=True)
    return np.array(found.rotations, dtype=float), np.array(found.translations, dtype=float)


@cache
def centring(group: int) -> np.ndarray:
    """Vectors of the standard primitive cell in terms of the conventional one, as rows (3, 3)."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    return np.array(_CENTRINGS[sg_symbol_from_int_number(group, hexagonal=True)[0]])


def primitive_basis(group: int, cell: np.ndarray) -> np.ndarray:
    """Row vectors (3, 3) in A of the primitive cell, given a, b, c (A) and angles (degrees) of the conventional one."""
    a, b, c = cell[:3]
    ca, cb, cg = (0.0 if angle == 90 else np.cos(np.radians(angle)) for angle in np.round(cell[3:], 6))
    sg = np.sqrt(1 - cg**2)
    y = (ca - cb * cg) / sg
    conventional = np.array([[a, 0, 0], [b * cg, b * sg, 0], [c * cb, c * y, c * np.sqrt(1 - cb**2 - y**2)]])
    result: np.ndarray = centring(group) @ conventional
    return result


def _energy(steps: Any) -> float:
    return float("nan") if steps == NO_ENERGY else round(float(steps) * ENERGY_STEP, 5)


def _mask(elements: Collection[str]) -> np.ndarray:
    from pymatgen.core import Element

    mask = [0, 0]
    for symbol in elements:
        if not Element.is_valid_symbol(symbol):
            raise InputError(f"expected element symbols, as Li, got {symbol!r}")
        z = Element(symbol).Z
        mask[z // 64] |= 1 << (z % 64)
    return np.array(mask, dtype=np.uint64)
