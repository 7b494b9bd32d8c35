"""ASE's SQLite database: crystals with their columns, all of them exactly, and those that ASE can search as such."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.io.ase_atoms import for_ase

if TYPE_CHECKING:
    from pymatgen.core import Structure

COLUMNS = "columns"  # of a row's `data`: every column of the table, under its own name
_KEY = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_PREFIX = "dl_"  # of names that ASE keeps for itself
_OF_ROWS = {"status", "charge", "mass", "volume"}  # what its rows say of themselves


def read_rows(path: str) -> list[tuple[Any, dict[str, Any]]]:
    """ASE's Atoms of a database with the values beside them, by row."""
    from ase.db import connect

    rows = []
    with connect(path, type="db", append=True) as database:
        for row in database.select():
            own = row.data.get(COLUMNS) if isinstance(row.data, Mapping) else None
            pairs = {name.removeprefix(_PREFIX): value for name, value in row.key_value_pairs.items()}
            rows.append((row.toatoms(), dict(own) if isinstance(own, Mapping) else pairs))
    return rows


def to_bytes(rows: Iterable[tuple[Structure, Mapping[Any, Any]]]) -> bytes:
    """A database of crystals with the values of a table; energies are totals (`loop.io.ase_atoms.for_ase`)."""
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.db import connect

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys that are formulas, too
        path = Path(folder) / "crystals.db"
        with connect(str(path), append=False, use_lock_file=False) as database:
            for structure, columns in rows:
                atoms = Atoms(structure.atomic_numbers, structure.cart_coords, cell=structure.lattice.matrix, pbc=True)
                values = for_ase(columns, len(structure))
                energy = values.get("energy")
                if isinstance(energy, (int, float)):
                    atoms.calc = SinglePointCalculator(atoms, energy=energy)
                pairs = {key: value for name, value in values.items() for key in [_key(name)] if _allowed(key, value)}
                database.write(atoms, key_value_pairs=pairs, data={COLUMNS: values})
        return path.read_bytes()


def _key(name: str) -> str:
    from ase.db.core import reserved_keys

    return f"{_PREFIX}{name}" if name in reserved_keys | _OF_ROWS else name


def _allowed(key: str, value: Any) -> bool:
    """Whether ASE can search for it: a plain name, and no text that looks like a number or a truth value."""
    from ase.db.core import check

    try:
        check({key: value})
    except ValueError:
        return False
    return _KEY.fullmatch(key) is not None
