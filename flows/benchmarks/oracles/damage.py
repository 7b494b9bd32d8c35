"""Damaged and absurd crystals, made from a seed: what files from anywhere may hold, and worse."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from pymatgen.core import Element, Lattice, Structure

Rng = np.random.Generator
Input = Structure | str  # a structure, or the text of a CIF


@lru_cache
def sound() -> tuple[Structure, ...]:
    """Small crystals of several systems, from textbook data."""
    from ase.build import bulk

    from oracles.potentials.calculator import to_structure

    cells = [
        bulk("Si"), bulk("MgO", "rocksalt", a=4.25), bulk("NaCl", "rocksalt", a=5.64), bulk("Fe"), bulk("Ti"),
        bulk("ZnO", "wurtzite", a=3.25, c=5.2), bulk("CaF2", "fluorite", a=5.51), bulk("CsCl", "cesiumchloride", a=4.1),
        bulk("GaAs", "zincblende", a=5.75, cubic=True), bulk("Cu", cubic=True),
    ]  # fmt: skip
    perovskite = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    crystals = [to_structure(atoms) for atoms in cells]
    return (*crystals, Structure(Lattice.cubic(3.92), ["Sr", "Ti", "O", "O", "O"], perovskite))


def damaged(seed: int) -> tuple[str, Input]:
    """One input and the name of what was done to it; the same for the same seed."""
    rng = np.random.default_rng(seed)
    crystal = sound()[rng.integers(len(sound()))].copy()
    name = list(DAMAGES)[rng.integers(len(DAMAGES))]
    return name, DAMAGES[name](crystal, rng)


def _rebuilt(crystal: Structure, matrix: Any = None, coords: Any = None, species: Any = None) -> Structure:
    return Structure(
        crystal.lattice.matrix if matrix is None else matrix,
        crystal.species if species is None else species,
        crystal.frac_coords if coords is None else coords,
    )


def _overlap(crystal: Structure, rng: Rng) -> Structure:
    doubled = crystal * (1, 1, 2)
    coords = doubled.frac_coords.copy()
    coords[rng.integers(len(coords))] = coords[0] + rng.normal(0, 10 ** rng.uniform(-6, -1), 3)
    return _rebuilt(doubled, coords=coords)


def _flat(crystal: Structure, rng: Rng) -> Structure:
    matrix = crystal.lattice.matrix.copy()
    matrix[2] = matrix[0] * rng.normal() + matrix[1] * rng.normal() + rng.choice([0, 1e-12, 1e-6, 1e-3])
    return _rebuilt(crystal, matrix)


def _not_a_number(crystal: Structure, rng: Rng) -> Structure:
    bad = rng.choice([np.nan, np.inf, -np.inf, 1e300, 1e12])
    if rng.random() < 0.5:
        coords = crystal.frac_coords.copy()
        coords[rng.integers(len(coords)), rng.integers(3)] = bad
        return _rebuilt(crystal, coords=coords)
    matrix = crystal.lattice.matrix.copy()
    matrix[rng.integers(3), rng.integers(3)] = bad
    return _rebuilt(crystal, matrix)


def _units(crystal: Structure, rng: Rng) -> Structure:
    """Nanometres, bohr, picometres, metres taken for Angstrom."""
    return _rebuilt(crystal, crystal.lattice.matrix * rng.choice([0.1, 1.8897, 0.529, 10.0, 100.0, 1e-10, 1e10]))


def _elements(crystal: Structure, rng: Rng) -> Structure:
    """Noble gases, radioactive and superheavy elements, deuterium."""
    strange = ["He", "Ne", "Ar", "Kr", "Xe", "Rn", "Po", "At", "Fr", "Ra", "Am", "Lr", "Og", "D", "Pm", "Tc"]
    copy = crystal.copy()
    copy.replace(int(rng.integers(len(copy))), str(rng.choice(strange)))
    return copy


def _chemistry(crystal: Structure, rng: Rng) -> Structure:
    """Any elements at all."""
    return _rebuilt(crystal, species=[Element.from_Z(int(z)) for z in rng.integers(1, 95, len(crystal))])


def _large(crystal: Structure, rng: Rng) -> Structure:
    """Some 500 atoms, as a supercell or (rarely) without any order; or thousands."""
    if rng.random() < 0.02:
        n = int(rng.integers(100, 200))
        return Structure(Lattice.cubic((20 * n) ** (1 / 3)), ["Cu"] * n, rng.random((n, 3)))
    times = int(np.ceil((rng.choice([400, 520, 1500]) / len(crystal)) ** (1 / 3)))
    return crystal * (times, times, times)


def _gas(_: Structure, rng: Rng) -> Structure:
    n = int(rng.integers(1, 12))
    species = [Element.from_Z(int(z)) for z in rng.integers(1, 90, n)]
    return Structure(Lattice.cubic(rng.uniform(2, 40)), species, rng.random((n, 3)))


def _skewed(crystal: Structure, rng: Rng) -> Structure:
    matrix = crystal.lattice.matrix.copy()
    matrix[0] += matrix[1] * int(10 ** rng.uniform(0, 4))
    return _rebuilt(crystal, matrix * rng.choice([1, -1]))


def _strained(crystal: Structure, rng: Rng) -> Structure:
    return _rebuilt(crystal, crystal.lattice.matrix @ (np.eye(3) + rng.normal(0, 0.4, (3, 3))))


def _disordered(crystal: Structure, rng: Rng) -> Structure:
    copy = crystal.copy()
    copy.replace(0, {"Fe": 0.5, "Co": float(rng.choice([0.5, 0.25, 0.0]))})
    return copy


def _decorated(crystal: Structure, rng: Rng) -> Structure:
    """Oxidation states, and properties that nobody asked for."""
    copy = crystal.copy()
    copy.add_oxidation_state_by_site([int(k) for k in rng.integers(-4, 5, len(copy))])
    copy.add_site_property("magmom", [None] * len(copy))
    return copy


def _dummy(crystal: Structure, rng: Rng) -> Structure:
    from pymatgen.core import DummySpecies

    copy = crystal.copy()
    copy.replace(int(rng.integers(len(copy))), DummySpecies("X"))
    return copy


def _empty(crystal: Structure, _: Rng) -> Structure:
    return Structure(crystal.lattice, [], [])


def _cif(crystal: Structure) -> str:
    from loop.io.cif_writer import to_cif

    return to_cif(crystal)


def _cut(crystal: Structure, rng: Rng) -> str:
    text = _cif(crystal)
    return text[: rng.integers(len(text))]


def _bytes(crystal: Structure, rng: Rng) -> str:
    letters = list(_cif(crystal))
    for _ in range(int(rng.integers(1, 30))):
        letters[rng.integers(len(letters))] = chr(int(rng.choice([0, 9, 10, 34, 35, 39, 95, 48, 57, 46, 233, 0x4E2D])))
    return "".join(letters)


def _lines(crystal: Structure, rng: Rng) -> str:
    lines = _cif(crystal).splitlines()
    for _ in range(int(rng.integers(1, 6))):
        k, other = int(rng.integers(len(lines))), int(rng.integers(len(lines)))
        action = rng.integers(3)
        if action == 0:
            lines.pop(k)
        elif action == 1:
            lines.insert(other, lines[k])
        else:
            lines[k], lines[other] = lines[other], lines[k]
    return "\n".join(lines)


def _numbers(crystal: Structure, rng: Rng) -> str:
    """Numbers that are none, or absurd."""
    words = _cif(crystal).split(" ")
    places = [k for k, word in enumerate(words) if any(letter.isdigit() for letter in word)]
    for _ in range(int(rng.integers(1, 4))):
        odd = ["nan", "?", ".", "1e999", "-5", "0", "1/3", "0.5(3)", "abc", "1,5", "--1", "1e-300", "90.0000001"]
        words[places[rng.integers(len(places))]] = str(rng.choice(odd))
    return " ".join(words)


def _garbage(_: Structure, rng: Rng) -> str:
    choices = ["", "data_", "loop_\n" * 50, "\x00" * 100, "{}", "<html>", "_cell_length_a 5\n" * 3, "x" * 100_000]
    return str(rng.choice(choices)) if rng.random() < 0.5 else rng.bytes(300).decode("latin-1")


DAMAGES: dict[str, Callable[[Structure, Rng], Input]] = {
    "atoms on top of each other": _overlap,
    "cell without volume": _flat,
    "not a number": _not_a_number,
    "wrong units": _units,
    "strange elements": _elements,
    "absurd chemistry": _chemistry,
    "500 atoms and more": _large,
    "gas": _gas,
    "skewed cell": _skewed,
    "strain": _strained,
    "partial occupancy": _disordered,
    "decorated": _decorated,
    "dummy species": _dummy,
    "no atoms": _empty,
    "CIF: cut off": _cut,
    "CIF: bytes changed": _bytes,
    "CIF: lines moved": _lines,
    "CIF: odd numbers": _numbers,
    "CIF: garbage": _garbage,
}
