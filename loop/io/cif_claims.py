"""What a CIF says of its crystal besides its sites, and whether the crystal that was read agrees.

Tolerances. Atoms of the cell: none, but 0.01 per formula unit where the formula has decimals; hydrogens count. Volume:
1 %. Density and formula weight: 3 %, and half a unit of the last digit given; the measured density is not compared.
Multiplicities: none, where the file gives any that is not 1; some programs write the order of the site's symmetry
there, which is as good.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import gemmi
import numpy as np

from loop.io.cif_items import Items

VOLUME = 0.01
DENSITY = 0.03
ROUNDED = 0.01  # of a decimal in a formula
_DALTON = 1.66053907  # g/cm3 * A3

_PART = re.compile(r"([A-Z][a-z]?)(\d*\.?\d*)")
_FORMULA = re.compile(r"(?:[A-Z][a-z]?\d*\.?\d*\s*)+")
_MULTIPLE = re.compile(r"(\d+\.?\d*)?\s*\(([^()]*)\)(\d+\.?\d*)?")
_SYMBOLS = frozenset({gemmi.Element(z).name for z in range(1, 119)} | {"D", "T"})

Formula = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Claims:
    """What a file says; None or empty where it says nothing.

    Attributes:
        text: the formula as given.
        formula: symbol and number of each element in a formula unit; D and T as such.
        units: formula units in the cell.
        volume: of the cell, A^3.
        density: g/cm3, and half a unit of its last digit.
        weight: of a formula unit, u, likewise.
        notes: what cannot be compared.
    """

    text: str
    formula: Formula
    units: float | None
    volume: float | None
    density: tuple[float, float] | None
    weight: tuple[float, float] | None
    notes: tuple[str, ...]

    @property
    def symbols(self) -> frozenset[str]:
        """The formula's elements."""
        return frozenset(symbol for symbol, _ in self.formula)


def read_claims(items: Items) -> Claims:
    """Read formula, Z, volume, density and weight of a block.

    Raises:
        InputError: one of them is given twice, differently.
    """
    text = items.text("_chemical_formula_sum") or ""
    formula = parse_formula(text)
    notes = (f"the formula {text!r} is not compared: it is no list of elements",) if text and not formula else ()
    if not text:
        text = items.text("_chemical_formula_moiety") or ""
        formula = parse_formula(text)
    units = items.number("_cell_formula_units_z")
    return Claims(
        text,
        formula,
        units if units is not None and units > 0 else None,
        _positive(items.number("_cell_volume")),
        _rounded(items, "_exptl_crystal_density_diffrn"),
        _rounded(items, "_chemical_formula_weight"),
        notes,
    )


@lru_cache(maxsize=10_000)
def parse_formula(text: str) -> Formula:
    """Elements and numbers of a formula such as 'Al2 Mg O4' or 'Ca F2, 2(H2 O)'; empty for anything else."""
    totals: dict[str, float] = {}
    for group in text.split(","):
        factor, plain = _group(group)
        if not _FORMULA.fullmatch(plain):
            return ()
        for symbol, number in _PART.findall(plain):
            totals[symbol] = totals.get(symbol, 0.0) + factor * float(number if number not in ("", ".") else 1)
    return tuple(totals.items()) if totals.keys() <= _SYMBOLS else ()


def _group(text: str) -> tuple[float, str]:
    """How often a group of a formula is there, and its formula: '2(H2 O)', 'N H4 1+'."""
    plain = re.sub(r"\s+\d*[+-]$", "", text.strip())
    found = _MULTIPLE.fullmatch(plain)
    return (1.0, plain) if found is None else (float(found[1] or found[3] or 1), found[2].strip())


def _positive(value: float | None) -> float | None:
    return value if value is not None and value > 0 else None


def _rounded(items: Items, name: str) -> tuple[float, float] | None:
    """A positive number and half a unit of the last digit that is given."""
    value, text = _positive(items.number(name)), items.text(name) or ""
    if value is None:
        return None
    digits = re.match(r"[-+]?\d*\.?(\d*)", text)
    return value, 0.5 * 10.0 ** -len(digits[1] if digits else "")


def disagreement(claims: Claims, numbers: np.ndarray, masses: np.ndarray, volume: float) -> str | None:
    """What the file says otherwise than the crystal that was read, with both values; None where they agree.

    Args:
        claims: of the file.
        numbers: atomic numbers of all atoms in the cell, (n,).
        masses: theirs, u.
        volume: of the cell, A^3.
    """
    if claims.volume is not None and abs(volume / claims.volume - 1) > VOLUME:
        return f"the cell has {volume:.5g} A^3, the file says {claims.volume:.5g} (_cell_volume)"
    if claims.formula:
        wrong = _formula_disagreement(claims, numbers)
        if wrong is not None:
            return wrong
    elif claims.weight is not None and claims.units is not None:
        (weight, half), found = claims.weight, float(masses.sum()) / claims.units
        if abs(found - weight) > DENSITY * weight + half:
            return f"read {found:.5g} u per formula unit, the file says {weight:.5g} (_chemical_formula_weight)"
    if claims.density is not None:
        (density, half), found = claims.density, float(masses.sum()) * _DALTON / volume
        if abs(found - density) > DENSITY * density + half:
            return f"read {found:.4g} g/cm3, the file says {density:.4g} (_exptl_crystal_density_diffrn)"
    return None


def _formula_disagreement(claims: Claims, numbers: np.ndarray) -> str | None:
    unit = _by_number(claims.formula)
    values, counts = np.unique(numbers, return_counts=True)
    read = dict(zip(values.tolist(), counts.tolist(), strict=True))
    if claims.units is None:
        wholes, said = [max(1.0, round(len(numbers) / sum(unit.values())))], f"multiples of {claims.text}"
    else:
        # pymatgen gives the atoms of the whole cell, and Z of the reduced formula
        wholes = [1.0, claims.units] if _divides(claims.units, unit) else [claims.units]
        cells = [_written({z: count * whole for z, count in unit.items()}) for whole in wholes]
        said = f"{' or '.join(cells)} (formula {claims.text!r}, Z {claims.units:g})"
    if any(_equal(read, unit, whole) for whole in wholes):
        return None
    order = sorted(read, key=[*unit, *sorted(read)].index)
    return f"read {_written({z: read[z] for z in order})} in the cell, the file says {said}"


def _by_number(formula: Formula) -> dict[int, float]:
    totals: dict[int, float] = {}
    for symbol, count in formula:
        z = 1 if symbol in ("D", "T") else gemmi.Element(symbol).atomic_number
        totals[z] = totals.get(z, 0.0) + count
    return {z: count for z, count in totals.items() if count > 0}


def _divides(units: float, unit: dict[int, float]) -> bool:
    counts = list(unit.values())
    if units <= 1 or any(count != int(count) for count in (*counts, units)):
        return False
    return math.gcd(*(int(count) for count in counts)) % int(units) == 0


def _equal(read: dict[int, int], unit: dict[int, float], whole: float) -> bool:
    tolerance = {z: 1e-6 if count == int(count) else ROUNDED * whole for z, count in unit.items()}
    return read.keys() == unit.keys() and all(
        abs(read[z] - whole * count) <= tolerance[z] + 1e-6 for z, count in unit.items()
    )


def _written(counts: Mapping[int, float]) -> str:
    return " ".join(f"{gemmi.Element(z).name}{count:g}" for z, count in counts.items())


def multiplicity_disagreement(stated: list[int | None], found: list[int], order: int, labels: list[str]) -> str | None:
    """Where the stated numbers of sites differ from the images found; None where they agree or are all 1.

    Args:
        stated: by the file.
        found: images of each site.
        order: number of operators.
        labels: of the sites.
    """
    pairs = [(label, said, read) for label, said, read in zip(labels, stated, found, strict=True) if said is not None]
    if all(said == 1 for _, said, _ in pairs) or all(said == order // read for _, said, read in pairs):
        return None
    wrong = next((pair for pair in pairs if pair[1] != pair[2]), None)
    return None if wrong is None else f"site {wrong[0]} has {wrong[2]} images, the file says {wrong[1]} (multiplicity)"
