"""Reference phases from energies that a table already holds, of DFT or any other origin, with their type stated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loop.crystals import read_frame
from loop.errors import InputError
from loop.values import EnergyType
from oracles.references import References, write_references

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure


@dataclass(frozen=True)
class Given:
    """What the energies of a table are."""

    column: str = "energy_per_atom"  # eV/atom
    method: str = "DFT"
    functional: str = "PBE(+U)"
    corrections: str = "none"  # what the column holds already
    correct: bool = False  # add MP2020 corrections to it


def references_from(sources: Sequence[Path], output: Path, given: Given = Given()) -> References:
    """A table of reference phases from energies in CSV files; their checksum is the type's, so that no others mix in.

    Args:
        sources: CSVs with a `cif` column, the column of energies, and an id.
        output: where the table goes (.csv or .csv.gz); its JSON lies beside it.
        given: what the energies are.

    Raises:
        InputError: no such column, or an element without a reference of its own.
        ConfigError: corrections that do not belong to such energies.
    """
    import pandas as pd

    digests = {source.name: hashlib.sha256(source.read_bytes()).hexdigest() for source in map(Path, sources)}
    checksum = hashlib.sha256("".join(sorted(digests.values())).encode()).hexdigest()
    kind = EnergyType(given.method, given.functional, given.corrections, checksum)
    if given.correct:
        from oracles.corrections import corrected

        kind = corrected(kind)
    table = pd.concat([_rows(Path(source), given) for source in sources], ignore_index=True)
    if not np.isfinite(table["energy_per_atom"]).any():
        raise InputError(f"expected energies in column {given.column!r} of {', '.join(digests)}, found none")
    _require_elements(table)
    attribution = {"attribution": "energies as given in the sources"}
    return write_references(Path(output), table, kind, sources=digests, **attribution)


def _rows(source: Path, given: Given) -> pd.DataFrame:
    import pandas as pd

    frame, ids = read_frame(source)
    if given.column not in frame:
        raise InputError(
            f"expected a column {given.column!r} of energies (eV/atom) in {source}, found {', '.join(map(str, frame))}"
        )
    energies = pd.to_numeric(frame[given.column], errors="coerce").to_numpy(dtype=float)
    structures = [structure_of(text) for text in frame["cif"]]
    if given.correct:
        energies = energies + np.array([_correction(structure) for structure in structures])
    formulas = [None if structure is None else structure.composition.reduced_formula for structure in structures]
    rows = pd.DataFrame({"formula": formulas, "energy_per_atom": energies, "id": ids, "held_out": 0})
    return rows.dropna(subset=["formula"])


def structure_of(text: object) -> Structure | None:
    """The crystal of a CIF, None where it is none."""
    from pymatgen.core import Element, Structure

    from loop.cif import parse_cif

    try:
        basis, numbers, coordinates = parse_cif(str(text))
    except InputError:
        return None
    return Structure(basis, [Element.from_Z(z) for z in numbers.tolist()], coordinates)


def _correction(structure: Structure | None) -> float:
    from oracles.corrections import mp2020

    return float("nan") if structure is None else mp2020(structure) / len(structure)


def _require_elements(table: pd.DataFrame) -> None:
    """A hull without its corners says nothing."""
    from pymatgen.core import Composition

    finite = table[np.isfinite(table["energy_per_atom"])]
    compositions = [Composition(formula) for formula in finite["formula"]]
    pure = {c.elements[0].symbol for c in compositions if len(c.elements) == 1}
    missing = sorted({element.symbol for c in compositions for element in c.elements} - pure)
    if missing:
        raise InputError(
            f"a hull needs an energy of each element, of the same type; there is none of {', '.join(missing)}: add the "
            "elements' crystals to the sources (for energies of a potential, `hull build` computes them itself)"
        )
