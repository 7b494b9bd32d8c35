"""Crystals as nested dicts: of pymatgen (also in tables of CrystalFormer) and of OPTIMADE.

A structure is made of its lattice, species and coordinates alone: no class that a file names is looked up.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.errors import InputError
from loop.io.ase_atoms import plain
from loop.io.cif import DisorderedError

if TYPE_CHECKING:
    from pymatgen.core import Structure

_STRUCTURE_KEYS = ("structure", "initial_structure", "final_structure", "atoms")  # of an entry that holds one
_NAMES = ("material_id", "id", "entry_id", "task_id", "candidate_id")
_NOT_PBC = "expected a crystal, found a structure that is not periodic in three directions"


def looks_like_dict(text: str) -> bool:
    """Whether a cell holds a dict rather than a CIF."""
    return text.lstrip().startswith("{")


def from_dict(data: Any) -> Structure:
    """The crystal of pymatgen's dict of a structure, or of an OPTIMADE resource; as a mapping, JSON or Python text.

    Raises:
        InputError: it is none, or not periodic in three directions.
        DisorderedError: sites are shared or partly empty.
    """
    data = _parsed(data) if isinstance(data, str) else data
    if data is None:
        raise InputError("no structure in this row")
    try:
        if "attributes" in data:
            return _of_optimade(data["attributes"])
        return _of_pymatgen(data)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"expected the lattice and sites of a structure, found a dict that lacks them ({type(error).__name__}: "
            f"{error})"
        ) from error


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise InputError("expected a CIF or a structure's dict, found a dict that is cut off or damaged") from error


def _of_pymatgen(data: Mapping[str, Any]) -> Structure:
    if not all(data["lattice"].get("pbc", (True,) * 3)):
        raise InputError(_NOT_PBC)
    symbols = []
    for site in data["sites"]:
        species = site["species"] if "species" in site else [{"element": site["label"], "occu": 1}]
        if len(species) != 1 or abs(float(species[0]["occu"]) - 1) > 1e-8:
            raise DisorderedError("expected full occupancies, found a disordered crystal")
        symbols.append(str(species[0]["element"]))
    return _structure(data["lattice"]["matrix"], symbols, [site["abc"] for site in data["sites"]], cartesian=False)


def _of_optimade(found: Mapping[str, Any]) -> Structure:
    if found.get("nperiodic_dimensions", 3) != 3:
        raise InputError(_NOT_PBC)
    species = {one["name"]: one for one in found["species"]}
    symbols = []
    for name in found["species_at_sites"]:
        one = species[name]
        if len(one["chemical_symbols"]) != 1 or abs(float(one["concentration"][0]) - 1) > 1e-8:
            raise DisorderedError("expected full occupancies, found a disordered crystal")
        symbols.append(str(one["chemical_symbols"][0]))
    return _structure(found["lattice_vectors"], symbols, found["cartesian_site_positions"], cartesian=True)


def _structure(matrix: Any, symbols: list[str], coordinates: Any, *, cartesian: bool) -> Structure:
    from pymatgen.core import Element, Lattice, Structure

    unknown = sorted({symbol for symbol in symbols if not Element.is_valid_symbol(symbol)})
    if unknown or not symbols:
        raise InputError(f"expected atoms of known elements, found {', '.join(unknown) or 'none'}")
    isotopes = sorted({"D", "T"} & set(symbols))
    if isotopes:
        raise InputError(f"expected elements, found the isotope {isotopes[0]}: write H, of which energies are the same")
    basis, points = np.array(matrix, float), np.array(coordinates, float)
    if basis.shape != (3, 3) or not np.isfinite(basis).all() or not np.isfinite(points).all():
        raise InputError("expected finite coordinates and three cell vectors")
    if abs(np.linalg.det(basis)) < 1e-6:
        raise InputError("expected a cell with a volume, found a flat one")
    return Structure(Lattice(basis), symbols, points, coords_are_cartesian=cartesian)


def crystals_of_json(data: Any) -> list[tuple[str | None, Any, dict[str, Any]]]:
    """Name, structure's dict and further values of each crystal of a JSON file.

    Such as a structure, an entry that holds one, a list or a dict by name of either, a response of OPTIMADE.

    Raises:
        InputError: there is none.
    """
    if isinstance(data, Mapping) and isinstance(data.get("data"), list):
        data = data["data"]
    if isinstance(data, Mapping) and not _holds(data):
        rows: list[tuple[str | None, Any]] = [(str(name), value) for name, value in data.items()]
    else:
        rows = [(None, value) for value in (data if isinstance(data, list) else [data])]
    if not any(isinstance(value, Mapping) and _holds(value) for _, value in rows):
        raise InputError("expected structures as pymatgen, ASE or OPTIMADE write them in JSON, found none")
    return [_entry(name, value) for name, value in rows]


def _holds(data: Mapping[str, Any]) -> bool:
    return ("lattice" in data and "sites" in data) or "attributes" in data or _inner(data) is not None


def _inner(data: Mapping[str, Any]) -> str | None:
    return next((key for key in _STRUCTURE_KEYS if isinstance(data.get(key), Mapping)), None)


def _entry(name: str | None, data: Any) -> tuple[str | None, Any, dict[str, Any]]:
    if not isinstance(data, Mapping):
        return name, data, {}
    if "attributes" in data:
        from loop.io.optimade import PREFIX

        own = {key: value for key, value in data["attributes"].items() if key.startswith("_")}
        values = {key.removeprefix(PREFIX): plain(value) for key, value in own.items() if value is not None}
        return _text(data.get("id")) or name, data, values
    inner = _inner(data) or next((key for key in _STRUCTURE_KEYS if key in data and data[key] is None), None)
    found = next((_text(data[key]) for key in _NAMES if _text(data.get(key))), None)
    if inner is None:
        return found or name, data, {}
    values = {
        str(key): plain(value)
        for key, value in data.items()
        if key != inner and value is not None and not key.startswith("@") and not isinstance(value, Mapping)
    }
    return found or name, data[inner], values


def _text(value: Any) -> str | None:
    return str(value) if isinstance(value, (str, int)) and str(value) else None
