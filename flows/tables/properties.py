"""Elastic tensors and phonons by themselves, from files to files."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from flows.tables.columns import rows_with
from flows.tables.screening import readable
from loop.values import OK, structure_id

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from flows.journal import Journal
    from loop.contracts import Progress
    from loop.io.crystals import CrystalTable
    from oracles.potentials.base import Potential
    from oracles.properties.elastic import ElasticConfig
    from oracles.properties.phonons import PhononConfig
    from oracles.relax import RelaxConfig


@dataclass(frozen=True)
class Derivatives:
    """What to measure: one of the two, after a relaxation or (None) on crystals that are at their minimum."""

    measure: ElasticConfig | PhononConfig
    relaxation: RelaxConfig | None

    def settings(self, potential: Potential) -> dict[str, Any]:
        """What a journal must have been made with."""
        relaxation = None if self.relaxation is None else asdict(self.relaxation)
        measure = {type(self.measure).__name__: asdict(self.measure)}
        kind = {"energy_type": asdict(potential.energy_type), "dtype": potential.about.dtype}
        return {**measure, "relaxation": relaxation, **kind}


def property_table(
    table: CrystalTable,
    potential: Potential,
    what: Derivatives,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> pd.DataFrame:
    """The table's columns, then status, what was measured (units in the names' documentation), and a message."""
    rows, structures = readable(table)
    found: dict[str, dict[str, Any]] = {} if journal is None else dict(journal.done)
    for done, structure in enumerate(structures):
        key = structure_id(structure)
        if key not in found:
            found[key] = measured(structure, potential, what)
            if journal is not None:
                journal.write(key, found[key])
        if progress is not None:
            progress("crystals", done + 1, len(structures), {})
    keys = [structure_id(structure) for structure in structures]
    return rows_with(table, {row: found[key] for row, key in zip(rows, keys, strict=True)})


def measured(structure: Structure, potential: Potential, what: Derivatives) -> dict[str, Any]:
    """Columns of one crystal; a failure is a status."""
    from oracles.potentials.base import ROUND_OFF
    from oracles.properties.elastic import ElasticConfig, elastic_tensor
    from oracles.properties.phonons import phonons
    from oracles.relax import relax
    from oracles.symmetry import primitive

    verdict = potential.check(structure)
    if not verdict.ok:
        return {"status": verdict.status, "message": verdict.message}
    cell = primitive(structure, ROUND_OFF)
    if what.relaxation is not None:
        outcome = relax([structure], potential, what.relaxation)[0]
        if outcome.structure is None or outcome.status != OK:
            return {"status": outcome.status, "message": outcome.message or "the relaxation came to no minimum"}
        cell = outcome.structure
    if isinstance(what.measure, ElasticConfig):
        elastic = elastic_tensor(cell, potential, what.measure)
        columns = {
            **elastic.values,
            "mechanically_stable": elastic.stable,
            "elastic_tensor": json.dumps(elastic.tensor),
        }
        return {"status": elastic.status, **(columns if elastic.tensor else {}), "message": elastic.message}
    found = phonons(cell, potential, what.measure)
    columns = {
        "lowest_frequency": found.lowest,
        "lowest_frequency_gamma": found.lowest_gamma,
        "highest_frequency": found.highest,
        "dynamically_stable": found.stable,
        "at": json.dumps(list(found.at)),
        "supercell": json.dumps(list(found.supercell)),
    }
    return {"status": found.status, **(columns if found.status == OK else {}), "message": found.message}
