"""Reference phases from energies that a table already holds, of DFT or any other origin, with their type stated."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loop.errors import InputError
from loop.io.crystals import read_frame
from loop.io.files import sha256
from loop.values import EnergyType
from oracles.references.table import References, structure_of, write_references

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

NO_ENERGY = "no energy"


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

    Rows without an energy or a readable crystal are left out; the provenance counts and names them (`dropped`,
    `dropped_ids`).

    Args:
        sources: CSVs with a `cif` column, the column of energies, and an id.
        output: where the table goes (.csv or .csv.gz); its JSON lies beside it.
        given: what the energies are.

    Raises:
        InputError: no such column, a cell of it that is no number, or an element without a reference of its own.
        ConfigError: corrections that do not belong to such energies.
    """
    import pandas as pd

    digests = {source.name: sha256(source) for source in map(Path, sources) if source.is_file()}
    checksum = hashlib.sha256("".join(sorted(digests.values())).encode()).hexdigest()
    kind = EnergyType(given.method, given.functional, given.corrections, checksum)
    if given.correct:
        from oracles.potentials.corrections import corrected

        kind = corrected(kind)
    table = pd.concat([_rows(Path(source), given) for source in sources], ignore_index=True)
    lost = table[table["reason"].notna()]
    table = table[table["reason"].isna()]
    if table.empty:
        raise InputError(
            f"expected crystals with energies in column {given.column!r} of {', '.join(digests)}, found none"
        )
    _require_elements(table, lost)
    return write_references(
        Path(output),
        table,
        kind,
        sources=digests,
        attribution="energies as given in the sources",
        dropped=dict(Counter(lost["reason"])),
        dropped_ids=lost["id"].tolist(),
    )


def _rows(source: Path, given: Given) -> pd.DataFrame:
    """Columns formula, energy_per_atom, id, held_out, relaxed, and the reason why a row cannot be used."""
    import pandas as pd

    frame, ids = read_frame(source)
    if given.column not in frame:
        raise InputError(
            f"expected a column {given.column!r} of energies (eV/atom) in {source}, found {', '.join(map(str, frame))}"
        )
    energies = _numbers(source, frame[given.column], ids)
    named = frame["pretty_formula"] if "pretty_formula" in frame else [None] * len(frame)
    read = [structure_of(text, formula) for text, formula in zip(frame["cif"], named, strict=True)]
    reasons = [reason or (None if np.isfinite(e) else NO_ENERGY) for (_, reason), e in zip(read, energies, strict=True)]
    structures = [structure for structure, _ in read]
    if given.correct:
        energies = energies + np.array([_correction(structure) for structure in structures])
    formulas = ["" if structure is None else structure.composition.reduced_formula for structure in structures]
    return pd.DataFrame(
        {"formula": formulas, "energy_per_atom": energies, "id": ids, "held_out": 0, "relaxed": 1, "reason": reasons}
    )


def _numbers(source: Path, cells: pd.Series, ids: Sequence[str]) -> np.ndarray:
    """Values of a column, shape (rows,), NaN where a cell is empty.

    Raises:
        InputError: names the first cell that is no finite number, and its row.
    """
    import pandas as pd

    numbers = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float)
    blank = (cells.isna() | (cells.astype(str).str.strip() == "")).to_numpy()
    wrong = np.flatnonzero(~np.isfinite(numbers) & ~blank)
    if len(wrong):
        at = int(wrong[0])
        raise InputError(
            f"{source}: expected a finite number (eV/atom, with a point) or nothing in column {cells.name!r}, got "
            f"{str(cells.iloc[at])!r} for {ids[at]} in row {at + 1}: correct it, or empty the cell to leave it out"
        )
    return numbers


def _correction(structure: Structure | None) -> float:
    from oracles.potentials.corrections import mp2020

    return float("nan") if structure is None else mp2020(structure) / len(structure)


def _require_elements(table: pd.DataFrame, lost: pd.DataFrame) -> None:
    """A hull without its corners says nothing."""
    from pymatgen.core import Composition

    compositions = [Composition(formula) for formula in table["formula"]]
    pure = {c.elements[0].symbol for c in compositions if len(c.elements) == 1}
    missing = sorted({element.symbol for c in compositions for element in c.elements} - pure)
    if missing:
        dropped = f" (left out: {', '.join(lost['id'].iloc[:10])})" if len(lost) else ""
        raise InputError(
            f"a hull needs an energy of each element, of the same type; there is none of {', '.join(missing)}: add the "
            f"elements' crystals to the sources{dropped} (for energies of a potential, `hull build` computes them "
            "itself)"
        )
