"""How far to strain: elastic moduli by strains of several sizes, on crystals that the benchmark does not quote."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.contracts import Progress
from loop.errors import InputError
from loop.values import OK

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from oracles.potentials.base import Potential

SIZES = (0.01, 0.02, 0.03, 0.04)  # largest strain of four: plus and minus it, and half of it
COLUMNS = {"poscar", "formula", "K_VRH", "G_VRH"}
MOST_ATOMS = 4
SOFTEST = 5.0  # GPa: below, a relative error says little
PROTOCOL = (
    f"Crystals of at most {MOST_ATOMS} atoms drawn by seed from the table of de Jong et al. (2015), none of a formula "
    "that the benchmark quotes, moduli of at least 5 GPa; relaxed and strained as there. The size is chosen whose mean "
    "absolute relative error, bulk and shear together, is smallest."
)


def choose(
    output: Path, data: Path, potential: Potential, exclude: Sequence[str], n: int, progress: Progress | None = None
) -> dict[str, Any]:
    """Moduli of `n` other crystals by strains of each size; writes ``strains.csv``. A killed run resumes.

    Args:
        output: folder.
        data: CSV as published: columns poscar, formula, K_VRH and G_VRH (GPa).
        potential: gives the stresses.
        exclude: formulas that must not take part.
        n: crystals.
        progress: called after each crystal.

    Raises:
        InputError: the table cannot be read, or has too few crystals.
    """
    import pandas as pd

    from flows.journal import Journal

    rows: list[dict[str, Any]] = []
    settings = {"potential": potential.energy_type.checksum, "n": n, "sizes": SIZES}
    with Journal(output / "strains.csv", settings) as journal:
        for done, (index, structure, bulk, shear) in enumerate(_others(data, exclude, n)):
            key = str(index)
            if key not in journal.done:
                found = _measured(structure, potential)
                journal.write(key, {"rows": [row | {"bulk": bulk, "shear": shear} for row in found]})
            rows += journal.done[key]["rows"]
            if progress is not None:
                progress("other crystals", done + 1, n, {})
        table = pd.DataFrame(rows)
        table.to_csv(output / "strains.csv", index=False, float_format="%.4f", lineterminator="\n")
    return summary(table, n)


def summary(table: pd.DataFrame, n: int) -> dict[str, Any]:
    """Errors of each size on the crystals that all sizes have, and the best size."""
    good = table[table["status"] == OK]
    everywhere = good.groupby("formula")["size"].nunique()
    good = good[good["formula"].isin(everywhere[everywhere == len(SIZES)].index)]
    sizes: dict[str, Any] = {}
    for size, mine in good.groupby("size"):
        errors = {name: float(np.abs(mine[f"found {name}"] / mine[name] - 1).mean()) for name in ("bulk", "shear")}
        sizes[f"{size:g}"] = errors | {"crystals": len(mine)}
    best = min(sizes, key=lambda size: sizes[size]["bulk"] + sizes[size]["shear"], default=None)
    return {"protocol": PROTOCOL, "crystals": n, "mean_absolute_relative_error": sizes, "best": best}


def _others(data: Path, exclude: Sequence[str], n: int) -> Iterator[tuple[int, Structure, float, float]]:
    """Row number, crystal, bulk and shear modulus of the first of a shuffled table that qualify."""
    import pandas as pd
    from pymatgen.core import Structure

    try:
        table = pd.read_csv(data, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise InputError(f"{data} cannot be read as a table: {error}.") from error
    if missing := COLUMNS - set(table):
        there = ", ".join(map(str, table))
        raise InputError(f"{data} lacks the columns {', '.join(sorted(missing))}; there are {there}.")
    rows: list[dict[str, Any]] = json.loads(table.to_json(orient="records"))
    found, formulas = 0, set(exclude)
    for index in np.random.default_rng(0).permutation(len(rows)).tolist():
        row: dict[str, Any] = rows[index]
        if row["formula"] in formulas or min(row["K_VRH"], row["G_VRH"]) < SOFTEST:
            continue
        structure = Structure.from_str(row["poscar"].replace("\\n", "\n"), fmt="poscar")
        if len(structure) > MOST_ATOMS:
            continue
        found, formulas = found + 1, formulas | {row["formula"]}
        yield index, structure, float(row["K_VRH"]), float(row["G_VRH"])
        if found == n:
            return
    raise InputError(f"{data} has {found} crystals of at most {MOST_ATOMS} atoms, expected {n}.")


def _measured(structure: Structure, potential: Potential) -> list[dict[str, Any]]:
    """One row a size."""
    from oracles.properties.elastic import ElasticConfig, elastic_tensor, tight
    from oracles.relax import RelaxConfig, relax

    outcome = relax([structure], potential, tight(RelaxConfig()))[0]
    rows = []
    for size in SIZES:
        row: dict[str, Any] = {"formula": structure.reduced_formula, "size": size, "status": outcome.status}
        if outcome.structure is not None and outcome.ok:
            strains = (-size, -size / 2, size / 2, size)
            elastic = elastic_tensor(outcome.structure, potential, ElasticConfig(normal=strains, shear=strains))
            row["status"] = elastic.status
            if elastic.status == OK:
                values = {"bulk": elastic.values["bulk_modulus_vrh"], "shear": elastic.values["shear_modulus"]}
                row |= {f"found {name}": value for name, value in values.items()}
        rows.append(json.loads(json.dumps(row)))
    return rows
