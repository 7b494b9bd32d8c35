"""The atom sites of a CIF: elements, positions, occupancies. What does not say exactly what it is, is refused."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

import gemmi
import numpy as np

from loop.errors import DisorderedError, InputError
from loop.io.cif_items import UNKNOWN, Items

FULL = 0.005  # what an occupancy may differ from 1

_FULL_TEXTS = frozenset({"1", "1.0", "1.00", "1.000", *UNKNOWN})
_AXES = ("x", "y", "z")
_NUMBERS = {gemmi.Element(z).name: z for z in range(1, 119)}
_ISOTOPES = {"D": 2.014, "T": 3.016}
_TYPE = re.compile(r"^([A-Za-z]{1,2})(?:\d+(?:\.\d+)?[+-]?|[+-]\d*(?:\.\d+)?)?$")  # symbol, then a charge or a number
_LABEL = re.compile(r"^([A-Z][a-z]?|[A-Z]{2})(?![A-Za-z])")  # symbol, then no letter
_WATER = re.compile(r"^[HD][23]O")  # would pass for a hydrogen
_LEADING = re.compile(r"^[A-Z][a-z]?")

Parsed = tuple[int, float, str]
"""Atomic number, mass (u), and the isotope's symbol where it is one."""


@dataclass(frozen=True, eq=False)
class Sites:
    """The sites of an asymmetric unit."""

    labels: list[str]
    numbers: np.ndarray  # (n,)
    masses: np.ndarray  # (n,), u
    coordinates: np.ndarray  # (n, 3), fractional
    multiplicities: list[int | None]  # as the file states them
    notes: tuple[str, ...]


def read_sites(items: Items, formula: frozenset[str]) -> Sites:
    """Read the sites of a block.

    Args:
        items: the block.
        formula: symbols of the file's formula, D and T as such; empty where it has none. It decides about labels that
            can be read in two ways.

    Raises:
        DisorderedError: occupancies that are not 1, or alternative positions.
        InputError: no fractional coordinates, or a site of which position or element is unknown.
    """
    columns = [items.column(f"_atom_site_fract_{axis}") for axis in _AXES]
    if any(column is None for column in columns):
        raise InputError(_no_coordinates(items))
    rows = len(columns[0] or ())
    if rows == 0 or any(len(column or ()) != rows for column in columns):
        raise InputError("expected three coordinates of each site, found columns of different lengths")
    labels = items.column("_atom_site_label") or items.column("_atom_site_type_symbol") or [""] * rows
    labels = [label if label not in UNKNOWN else str(row + 1) for row, label in enumerate(labels)]
    _refuse_marked(items, labels)
    kept, notes = _occupied(items, labels)
    parsed = _elements(items, labels, kept, formula)
    isotopes = sorted({isotope for _, _, isotope in parsed if isotope})
    if isotopes:
        notes.append(f"{' and '.join(isotopes)} read as H")
    if any("_atom_site_moment" in name for name in items.names()):
        notes.append("magnetic moments are not used")
    return Sites(
        [labels[row] for row in kept],
        np.array([number for number, _, _ in parsed], dtype=int),
        np.array([mass for _, mass, _ in parsed]),
        _coordinates([column or [] for column in columns], labels, kept),
        _multiplicities(items, kept),
        tuple(notes),
    )


def _no_coordinates(items: Items) -> str:
    wanted = "expected fractional coordinates (_atom_site_fract_x, _y, _z)"
    if "_atom_site_cartn_x" in items:
        return f"{wanted}, found Cartesian ones alone (_atom_site_Cartn_x), as in mmCIF: write fractional coordinates"
    return f"{wanted}, found none"


def _refuse_marked(items: Items, labels: list[str]) -> None:
    """Refuse sites that the file itself marks as no plain atoms of one crystal."""
    for label, count in zip(labels, items.column("_atom_site_attached_hydrogens") or (), strict=False):
        if gemmi.cif.as_number(count) > 0:
            raise InputError(f"site {label} counts {count} attached hydrogen(s) that have no position of their own")
    for label, flag in zip(labels, items.column("_atom_site_calc_flag") or (), strict=False):
        if flag.lower() in ("dum", "dummy"):
            raise InputError(f"site {label} is a dummy (_atom_site_calc_flag {flag}), no atom: take it out of the file")
    groups = items.column("_atom_site_disorder_group") or []
    assemblies = items.column("_atom_site_disorder_assembly") or [""] * len(groups)
    seen: dict[str, str] = {}
    for assembly, group in zip(assemblies, groups, strict=False):
        if group not in UNKNOWN and (group.startswith("-") or seen.setdefault(assembly, group) != group):
            raise DisorderedError("expected one position of each atom, found alternatives (_atom_site_disorder_group)")


def _occupied(items: Items, labels: list[str]) -> tuple[list[int], list[str]]:
    """Rows of the sites that are occupied, and what is to be told of the others; an unknown occupancy is 1."""
    column = items.column("_atom_site_occupancy")
    if column is None or _FULL_TEXTS.issuperset(column):
        return list(range(len(labels))), []
    kept, empty, nearly = [], [], []
    for row, text in enumerate(column):
        value = 1.0 if text in UNKNOWN else gemmi.cif.as_number(text)
        if value == 0.0:
            empty.append(labels[row])
        elif value != value or abs(value - 1.0) > FULL:
            raise DisorderedError(f"expected full occupancies, found a disordered crystal: {labels[row]} has {text}")
        else:
            kept.append(row)
            nearly += [f"{labels[row]} ({text})"] if value != 1.0 else []
    notes = [f"sites of occupancy 0 left out: {_listed(empty)}"] if empty else []
    if nearly:
        notes.append(f"occupancies taken as 1: {_listed(nearly)}")
    if not kept:
        raise InputError("expected atoms, found sites of occupancy 0 alone")
    return kept, notes


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _coordinates(columns: list[list[str]], labels: list[str], kept: list[int]) -> np.ndarray:
    number = gemmi.cif.as_number
    if len(kept) < len(labels):
        columns = [[column[row] for row in kept] for column in columns]
    values = np.array([[number(text) for text in column] for column in columns]).T
    if not np.isfinite(values).all():
        row, axis = np.argwhere(~np.isfinite(values))[0]
        text = columns[axis][row]
        raise InputError(f"expected numbers as coordinates, site {labels[kept[row]]} has {text!r} as {_AXES[axis]}")
    return values


def _multiplicities(items: Items, kept: list[int]) -> list[int | None]:
    for name in ("_atom_site_symmetry_multiplicity", "_atom_site_site_symmetry_multiplicity"):
        column = items.column(name)
        if column is not None:
            values = [gemmi.cif.as_number(column[row]) for row in kept]
            return [int(value) if value == value and value >= 1 else None for value in values]
    return [None] * len(kept)


def _elements(items: Items, labels: list[str], kept: list[int], formula: frozenset[str]) -> list[Parsed]:
    types = items.column("_atom_site_type_symbol")
    given = items.column("_atom_site_label")
    if types is None and given is None:
        raise InputError(
            "expected the element of each site (_atom_site_type_symbol or _atom_site_label), found neither"
        )
    unknown = ["?"] * len(labels)
    pairs = zip(types or unknown, given or unknown, strict=True)
    texts = [(symbol, label if symbol in UNKNOWN else "") for symbol, label in pairs]
    parsed = {text: _element_of(*text, formula) for text in set(texts)}
    found = [parsed[texts[row]] for row in kept]
    wrong = next((row for row, one in zip(kept, found, strict=True) if one is None), None)
    if wrong is not None:
        symbol, label = texts[wrong]
        text = label or symbol
        raise InputError(
            f"site {labels[wrong]}: expected the symbol of an element, got {text!r}; groups of atoms, vacancies and "
            "dummies must be written as the atoms that they are, or left out"
        )
    return [one for one in found if one is not None]


def _element_of(symbol: str, label: str, formula: frozenset[str]) -> Parsed | None:
    return element_of_label(label, formula) if symbol in UNKNOWN else element_of_type(symbol, formula)


@lru_cache(maxsize=10_000)
def element_of_type(text: str, formula: frozenset[str]) -> Parsed | None:
    """The element of a type symbol such as Fe, Fe3+, O2-; None where it is not exactly one."""
    found = _TYPE.match(text)
    return None if found is None else _element(found[1], formula)


@lru_cache(maxsize=10_000)
def element_of_label(text: str, formula: frozenset[str]) -> Parsed | None:
    """The element of a label such as Fe1 or O2A; None where it is not clear.

    With a formula at hand, which is compared afterwards, labels such as OH1 or SiT may be read by their first letters.
    T1 alone is a tetrahedral site more often than tritium.
    """
    found = _LABEL.match(text)
    if found is not None and not _WATER.match(text) and (found[1] != "T" or "T" in formula):
        parsed = _element(found[1], formula)
        if parsed is not None:
            return parsed
    leading = _LEADING.match(text)
    for symbol in (leading[0], leading[0][0]) if leading is not None else ():
        if symbol in formula:
            return _element(symbol, formula)
    return None


def _element(symbol: str, formula: frozenset[str]) -> Parsed | None:
    """By exact match; in other cases of letters only where it cannot be two elements, or the formula has it.

    CO is cobalt or carbon monoxide, NO is nobelium or nitrogen monoxide; CL can be nothing but chlorine.
    """
    if symbol in _ISOTOPES:
        return 1, _ISOTOPES[symbol], symbol
    name = symbol.capitalize()
    if name not in _NUMBERS:
        return None
    if name != symbol and symbol.isupper():
        group = set(symbol) <= _NUMBERS.keys()
        if group and (name not in formula or set(symbol) <= formula):
            return None
    number = _NUMBERS[name]
    return number, gemmi.Element(number).weight, ""
