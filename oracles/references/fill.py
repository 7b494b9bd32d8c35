"""A table of reference phases from single points that were computed elsewhere: raw energies, corrections, corners.

A table that is shipped spares its users the computing of 35,000 crystals. It is made by
``python -m oracles.references.fill RAW.csv CRYSTALS.csv... --corners CORNERS.jsonl --output TABLE.csv.gz``: RAW holds
material_id, pretty_formula and energy_per_atom (eV/atom, uncorrected), CRYSTALS their published cells (material_id,
cif), CORNERS one object per line and element (element, name, energy in eV/atom, corrected), its lowest relaxed crystal.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.io.files import sha256, write_bytes, write_text
from loop.values import EnergyType
from oracles.references.table import ATTRIBUTION, COLUMNS, References, is_element, load_references

if TYPE_CHECKING:
    import pandas as pd


def filled(raw: pd.DataFrame, corrections: Mapping[str, float], corners: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Corrected energies of crystals as they stand, the elements relaxed.

    Args:
        raw: columns material_id, pretty_formula, energy_per_atom (eV/atom).
        corrections: eV/atom, by material_id; a crystal without a finite one is left out.
        corners: element, name and energy (eV/atom, corrected) of its lowest relaxed crystal.

    Returns:
        `COLUMNS`, one row per formula, sorted: the lowest energy, whether it is a relaxed one, and that as published.
    """
    import pandas as pd
    from pymatgen.core import Composition

    added = raw["material_id"].map(corrections).to_numpy(dtype=float)
    energy = raw["energy_per_atom"].to_numpy(dtype=float) + added
    formulas = [Composition(formula).reduced_formula for formula in raw["pretty_formula"]]
    rows = pd.DataFrame({"formula": formulas, "energy_per_atom": energy, "id": raw["material_id"], "relaxed": 0})
    relaxed = [
        {"formula": Composition(c["element"]).reduced_formula, "energy_per_atom": float(c["energy"]), "id": c["name"]}
        for c in corners
    ]
    everything = pd.concat([rows[np.isfinite(energy)], pd.DataFrame(relaxed).assign(relaxed=1)], ignore_index=True)
    standing = everything[everything["relaxed"] == 0].groupby("formula")["energy_per_atom"].min()
    everything["rounded"] = everything["energy_per_atom"].round(4)  # of equals the relaxed one
    order = everything.sort_values(["rounded", "relaxed", "id"], ascending=[True, False, True])
    lowest = order.drop_duplicates("formula").sort_values("formula")
    unrelaxed = lowest["formula"].map(standing).fillna(lowest["energy_per_atom"])
    return lowest.assign(held_out=0, unrelaxed=unrelaxed)[COLUMNS]


def write(
    output: Path, table: pd.DataFrame, energy_type: EnergyType, corners: Iterable[Mapping[str, Any]], **about: Any
) -> References:
    """Write a filled table and the JSON beside it; `about`: further entries of the JSON."""
    elements = {symbol for formula in table["formula"] if (symbol := is_element(formula))}
    settled = set(table["id"][table["relaxed"] == 1])  # a published crystal below what was relaxed settles nothing
    kept = {c["element"]: _corner(c) for c in corners if c["name"] in settled}
    meta = {
        "energy_type": asdict(energy_type),
        "unit": "eV/atom",
        "what": "energy of the lowest published crystal of each formula, as it stands; elements with `relaxed` 1: the "
        "lowest of their relaxed crystals",
        "rows": len(table),
        "relaxed": int(table["relaxed"].sum()),
        "elements": len(elements),
        "corners": dict(sorted(kept.items())),
        "attribution": ATTRIBUTION,
        "date": datetime.now(UTC).date().isoformat(),
        **about,
    }
    text = table.to_csv(index=False, float_format="%.5f", lineterminator="\n").encode()
    write_bytes(output, gzip.compress(text, mtime=0))
    write_text(output.with_name(output.name.removesuffix(".csv.gz") + ".json"), json.dumps(meta, indent=2) + "\n")
    return load_references(output)


def _corner(corner: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": corner["name"], "energy": round(float(corner["energy"]), 5)}


def corrections_of(sources: Iterable[Path], wanted: set[str]) -> dict[str, float]:
    """MP2020 corrections in eV/atom of crystals in CSVs with columns material_id and cif; NaN where there is none."""
    import pandas as pd

    from oracles.potentials.corrections import mp2020
    from oracles.references.table import structure_of

    found: dict[str, float] = {}
    for source in sources:
        frame = pd.read_csv(source, keep_default_na=False, dtype=str, usecols=["material_id", "cif"])
        for id, cif in frame[frame["material_id"].isin(wanted)].itertuples(index=False):
            structure, _ = structure_of(cif)
            found[id] = float("nan") if structure is None else mp2020(structure) / len(structure)
    return found


def main() -> int:
    """Entry point."""
    import pandas as pd

    from oracles.potentials.sevennet import ENERGIES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("raw", type=Path)
    parser.add_argument("crystals", type=Path, nargs="+")
    parser.add_argument("--corners", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    raw = pd.read_csv(arguments.raw, keep_default_na=False, dtype={"energy_per_atom": float})
    corners = [json.loads(line) for line in arguments.corners.read_text(encoding="utf-8").splitlines()]
    table = filled(raw, corrections_of(arguments.crystals, set(raw["material_id"])), corners)
    sources = {path.name: sha256(path) for path in (arguments.raw, *arguments.crystals)}
    write(arguments.output, table, ENERGIES, corners, sources=sources)
    return 0


if __name__ == "__main__":
    sys.exit(main())
