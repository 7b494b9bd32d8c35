"""Oracles by themselves, from files to files: relax, hull."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.values import OK

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from loop.contracts import Progress
    from loop.crystals import CrystalTable
    from oracles.potentials import Potential
    from oracles.references import References
    from oracles.relax import RelaxConfig, Relaxed

UNREADABLE = "failed:unreadable"


def rows_with(table: CrystalTable, results: dict[int, dict[str, Any]]) -> pd.DataFrame:
    """The table's columns, then the results by row; a row that could not be read gets that status and its reason."""
    import pandas as pd

    reasons = {failure.row: failure.reason for failure in table.failures}
    missing = [{"status": UNREADABLE, "message": reasons.get(row, "")} for row in range(len(table))]
    found = pd.DataFrame([results.get(row, missing[row]) for row in range(len(table))])
    kept = table.frame.drop(columns=[name for name in found if name in table.frame], errors="ignore")
    joined = pd.concat([kept.reset_index(drop=True), found], axis=1)
    if not {"id", "material_id"} & set(joined):
        joined.insert(0, "id", table.ids)
    return joined


def readable(table: CrystalTable) -> tuple[list[int], list[Structure]]:
    """Rows that could be read, and their structures."""
    pairs = [(row, structure) for row, structure in enumerate(table.structures) if structure is not None]
    return [row for row, _ in pairs], [structure for _, structure in pairs]


def relax_table(
    table: CrystalTable, potential: Potential, config: RelaxConfig, progress: Progress | None = None
) -> tuple[pd.DataFrame, list[Structure | None]]:
    """Relax crystals; returns one row each and the relaxed structures (None where there is none)."""
    from oracles.relax import relax

    rows, structures = readable(table)
    outcomes = relax(structures, potential, config, _counter("relax", progress))
    results = {row: _relaxed_row(outcome, potential) for row, outcome in zip(rows, outcomes, strict=True)}
    relaxed: list[Structure | None] = [None] * len(table)
    for row, outcome in zip(rows, outcomes, strict=True):
        relaxed[row] = outcome.structure
    return rows_with(table, results), relaxed


def _relaxed_row(outcome: Relaxed, potential: Potential) -> dict[str, Any]:
    return {
        "status": outcome.status,
        "energy": outcome.energy,
        "energy_type": str(potential.energy_type) if outcome.structure is not None else "",
        "steps": outcome.steps,
        "max_force": outcome.max_force,
        "max_stress": outcome.max_stress,
        "seconds": round(outcome.seconds, 3),
        "message": outcome.message,
    }


def hull_table(
    table: CrystalTable,
    potential: Potential,
    references: References,
    relaxation: RelaxConfig | None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Energies above the hull, of crystals as they are or relaxed first.

    Raises:
        EnergyTypeError: potential and references do not belong together.
    """
    hull = references.hull()
    rows, structures = readable(table)
    if relaxation is None:
        energies, statuses, messages = _single_points(structures, potential, progress)
    else:
        from oracles.relax import relax

        outcomes = relax(structures, potential, relaxation, _counter("relax", progress))
        energies = np.array([outcome.energy for outcome in outcomes])
        statuses = [outcome.status for outcome in outcomes]
        messages = [outcome.message for outcome in outcomes]
    places = hull.batch([structure.composition for structure in structures], energies, potential.energy_type)
    results = {}
    for row, energy, status, message, place in zip(rows, energies, statuses, messages, places, strict=True):
        results[row] = {
            "e_above_hull": place.e_above_hull,
            "decomposition": json.dumps({name: round(share, 6) for name, share in place.decomposition.items()}),
            "energy": energy,
            "energy_type": str(potential.energy_type) if np.isfinite(energy) else "",
            "status": status if status != OK else place.status,
            "sparse": place.sparse,
            "message": message or place.message,
        }
    return rows_with(table, results)


def _single_points(
    structures: Sequence[Structure], potential: Potential, progress: Progress | None
) -> tuple[np.ndarray, list[str], list[str]]:
    energies, statuses, messages = [], [], []
    step = 64
    for start in range(0, len(structures), step):
        points = potential.single_points(structures[start : start + step], gradients=False)
        energies += [point.energy for point in points]
        statuses += [point.status for point in points]
        messages += [point.message for point in points]
        if progress is not None:
            progress("energies", len(energies), len(structures), {})
    return np.array(energies), statuses, messages


def _counter(stage: str, progress: Progress | None) -> Any:
    return None if progress is None else lambda done, total: progress(stage, done, total, {})


def statuses_of(frame: pd.DataFrame) -> dict[str, int]:
    """How many rows have each status."""
    return dict(Counter(frame["status"].tolist()))
