"""ASE's Atoms with their values, from and to structures: the common ground of extxyz, trajectories and databases."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.errors import InputError

if TYPE_CHECKING:
    from pymatgen.core import Structure

TOTAL, PER_ATOM, TYPE = "energy", "energy_per_atom", "energy_type"
OF_ATOMS = {"forces", "energies", "stresses", "charges", "magmoms", "momenta"}  # results that are one value per atom
HEAVIEST = 118


def structure_of(atoms: Any) -> Structure:
    """The crystal of ASE's Atoms.

    Raises:
        InputError: it is not periodic in three directions, or holds unknown elements.
    """
    from pymatgen.core import Element, Lattice, Structure

    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise InputError("expected a crystal, found a frame that is not periodic in three directions")
    numbers = atoms.numbers.tolist()
    if not numbers or min(numbers) < 1 or max(numbers) > HEAVIEST:
        raise InputError("expected atoms of known elements")
    coordinates = atoms.get_scaled_positions(wrap=False)
    if not np.isfinite(coordinates).all() or not np.isfinite(atoms.cell.array).all():
        raise InputError("expected finite coordinates and cell vectors")
    return Structure(Lattice(atoms.cell.array), [Element.from_Z(z) for z in numbers], coordinates)


def values_of(atoms: Any) -> dict[str, Any]:
    """What goes with ASE's Atoms beside the geometry: their info, and what a calculator found for the whole cell."""
    results = {} if atoms.calc is None else atoms.calc.results
    found = {name: value for name, value in {**atoms.info, **results}.items() if name not in OF_ATOMS}
    return {str(name): plain(value) for name, value in found.items() if value is not None}


def plain(value: Any) -> Any:
    """A Python number, truth value or text; anything longer as JSON."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, bool, int, float)):
        return value
    try:
        return json.dumps(value.tolist() if isinstance(value, np.ndarray) else value)
    except (TypeError, ValueError):
        return str(value)


def in_table(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a format that ASE reads, as tables have them: this program's own energies in eV/atom."""
    if not (values.get(TYPE) and TOTAL in values and PER_ATOM in values):
        return dict(values)
    return {(TOTAL if name == PER_ATOM else name): value for name, value in values.items() if name != TOTAL}


def for_ase(values: Mapping[Any, Any], atoms: int) -> dict[str, Any]:
    """Values of a table, as a format that ASE reads has them: without what is missing, `energy` that of the cell (eV).

    Only an `energy` with an `energy_type` beside it is this program's, in eV/atom; any other stays as it is.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        cell = None if value is None else plain(value)
        if cell is None or cell == "" or cell != cell:
            continue
        if key == TOTAL and isinstance(cell, (int, float)) and values.get(TYPE):
            found |= {TOTAL: cell * atoms, PER_ATOM: cell}
        else:
            found.setdefault(str(key), cell)
    return found
