"""Energies of formulas whose crystals are not shipped, so that a hull on demand does not lack their compounds.

``python -m oracles.references.held_out TABLE.csv.gz CRYSTALS.csv... --points POINTS.jsonl`` computes the crystals of
the split ``test`` as they stand, of each formula those within 0.02 eV/atom of its lowest published one, and writes the
lowest energy of each formula into the table, marked as held out. With ``--elements`` the crystals of that space
are relaxed, too, as `oracles.references.settle` does with those that are shipped. POINTS keeps what was computed, so
that a run that was cut off continues.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from loop.hull import amounts_of
from oracles.references.table import COLUMNS, json_path, structure_of
from oracles.relax import RelaxConfig, relax

if TYPE_CHECKING:
    import pandas as pd

    from oracles.potentials.base import Potential

NEAR = 0.02  # eV/atom of published heights, within which another potential may order crystals otherwise
MOST = 3  # crystals of a formula
CHUNK = 16


def wanted(frame: pd.DataFrame, split: str = "test") -> pd.DataFrame:
    """Rows of a split that may be the lowest of their formula, small cells first.

    Args:
        frame: columns material_id, pretty_formula, n_atoms, e_above_hull (eV/atom, may be missing), split.
        split: whose crystals are not shipped.
    """
    rows = frame[frame["split"] == split].sort_values(["e_above_hull", "n_atoms", "material_id"])
    least = rows.groupby("pretty_formula")["e_above_hull"].transform("min")
    near = ~(rows["e_above_hull"] > least + NEAR)  # what has no published height counts as near
    chosen: pd.DataFrame = rows[near].groupby("pretty_formula").head(MOST)
    return chosen.sort_values(["n_atoms", "material_id"])


def with_held_out(
    table: pd.DataFrame, energies: Mapping[str, float], formulas: Mapping[str, str], relaxed: Mapping[str, float]
) -> pd.DataFrame:
    """The table with the lowest energy of each further formula, held out, sorted by formula and id.

    Args:
        table: columns `COLUMNS`; formulas that it holds are left as they are, those held out before are replaced.
        energies: eV/atom of crystals as they stand, corrected as the table's, by id; NaN is left out.
        formulas: of the crystals, by id.
        relaxed: energies (eV/atom) of those that were relaxed, by id.
    """
    import pandas as pd
    from pymatgen.core import Composition

    kept = table[table["held_out"] == 0]
    rows = pd.DataFrame(
        {"formula": [Composition(formulas[id]).reduced_formula for id in energies], "id": list(energies),
         "energy_per_atom": [relaxed.get(id, energy) for id, energy in energies.items()],
         "unrelaxed": list(energies.values()), "relaxed": [int(id in relaxed) for id in energies], "held_out": 1}
    )  # fmt: skip
    rows = rows[np.isfinite(rows["energy_per_atom"]) & ~rows["formula"].isin(set(kept["formula"]))]
    added = rows.sort_values(["energy_per_atom", "id"]).drop_duplicates("formula")[COLUMNS]
    both: pd.DataFrame = pd.concat([kept, added])
    return both.sort_values(["formula", "id"], ignore_index=True)


def computed(frame: pd.DataFrame, potential: Potential, path: Path, report: Callable[[int, int], None]) -> None:
    """Append the energies of rows that are not there yet to `path`, one JSON object a line."""
    done = read_points(path)
    rows = frame[~frame["material_id"].isin(done)]
    with path.open("a", encoding="utf-8") as file:
        for start in range(0, len(rows), CHUNK):
            part = rows.iloc[start : start + CHUNK]
            crystals = {id: structure_of(cif)[0] for id, cif in zip(part["material_id"], part["cif"], strict=True)}
            there = {id: crystal for id, crystal in crystals.items() if crystal is not None}
            found = dict(zip(there, potential.energies(list(there.values())).tolist(), strict=True))
            for id in crystals:
                energy = found.get(id, np.nan)
                point = {"material_id": id, "energy_per_atom": round(energy, 6) if np.isfinite(energy) else None}
                file.write(json.dumps(point) + "\n")
            file.flush()
            report(min(start + CHUNK, len(rows)), len(rows))


def relaxed_energies(frame: pd.DataFrame, potential: Potential, config: RelaxConfig) -> dict[str, float]:
    """Energies (eV/atom) of the crystals of a frame whose relaxation ended, by id."""
    crystals = {id: structure_of(cif)[0] for id, cif in zip(frame["material_id"], frame["cif"], strict=True)}
    there = {id: crystal for id, crystal in crystals.items() if crystal is not None}
    outcomes = relax(list(there.values()), potential, config)
    return {id: outcome.energy for id, outcome in zip(there, outcomes, strict=True) if outcome.ok}


def read_points(path: Path) -> dict[str, float]:
    """Energies (eV/atom) by id, NaN where there is none."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    points = [json.loads(line) for line in lines]
    return {p["material_id"]: np.nan if p["energy_per_atom"] is None else p["energy_per_atom"] for p in points}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    import pandas as pd

    from loop.io.files import sha256
    from oracles.potentials.loading import load_potential
    from oracles.references.settle import write

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("crystals", type=Path, nargs="+")
    parser.add_argument("--potential", default="sevennet")
    parser.add_argument("--points", type=Path, required=True)
    parser.add_argument("--elements", nargs="+", default=[], help="of a chemical space whose crystals are relaxed")
    asked = parser.parse_args(arguments)
    names = ["material_id", "pretty_formula", "n_atoms", "e_above_hull", "split", "cif"]
    read = [pd.read_csv(path, usecols=names, keep_default_na=False, na_values=[""]) for path in asked.crystals]
    frame = wanted(pd.concat(read))
    potential, config = load_potential(asked.potential), RelaxConfig()
    computed(frame, potential, asked.points, lambda done, n: print(f"{done} of {n}", file=sys.stderr))
    inside = [set(amounts_of(formula)) <= set(asked.elements) for formula in frame["pretty_formula"]]
    relaxed = relaxed_energies(frame[inside], potential, config)
    points, formulas = read_points(asked.points), dict(zip(frame["material_id"], frame["pretty_formula"], strict=True))
    table = pd.read_csv(asked.table, keep_default_na=False)
    found = with_held_out(table, {id: points[id] for id in formulas}, formulas, relaxed)
    meta = json.loads(json_path(asked.table).read_text(encoding="utf-8"))
    about = {
        "held_out": int(found["held_out"].sum()),
        "held_out_what": "formulas of the test split, whose crystals are not shipped: the lowest as it stands; relaxed "
        "where all elements are among held_out_relaxed",
        "held_out_relaxed": sorted(asked.elements),
        "held_out_sources": {path.name: sha256(path) for path in asked.crystals},
    }
    write(asked.table, found, meta, config, **about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
