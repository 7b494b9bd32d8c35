"""Oracles by themselves, from files to files: relax, hull."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.progress import of_stage
from flows.tables.columns import rows_with
from loop.errors import InputError
from loop.hull import Hull
from loop.stability import SUSPECT, is_suspect
from loop.values import OK, structure_id

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from flows.journal import Journal
    from loop.contracts import Progress
    from loop.hull import HullResult
    from loop.io.crystals import CrystalTable
    from oracles.potentials.base import Potential
    from oracles.references.table import References
    from oracles.relax import RelaxConfig, Relaxed


def readable(table: CrystalTable) -> tuple[list[int], list[Structure]]:
    """Rows that could be read, and their structures."""
    pairs = [(row, structure) for row, structure in enumerate(table.structures) if structure is not None]
    return [row for row, _ in pairs], [structure for _, structure in pairs]


def relax_table(
    table: CrystalTable,
    potential: Potential,
    config: RelaxConfig,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> tuple[pd.DataFrame, list[Structure | None]]:
    """Relax crystals; returns one row each and the relaxed structures (None where there is none)."""
    rows, structures = readable(table)
    outcomes = relax_all(structures, potential, config, progress, journal)
    results = {row: _relaxed_row(outcome, potential) for row, outcome in zip(rows, outcomes, strict=True)}
    relaxed: list[Structure | None] = [None] * len(table)
    for row, outcome in zip(rows, outcomes, strict=True):
        relaxed[row] = outcome.structure
    return rows_with(table, results, changed=True), relaxed


def relax_settings(potential: Potential, config: RelaxConfig) -> dict[str, Any]:
    """What a journal of relaxations must have been made with."""
    settings = asdict(config)
    settings.pop("batch_size")
    return {"relax": settings, "energy_type": asdict(potential.energy_type), "dtype": potential.about.dtype}


def hull_settings(potential: Potential, config: RelaxConfig | None) -> dict[str, Any]:
    """Likewise for `hull_table`: energies do not depend on the hull they are put to."""
    if config is not None:
        return relax_settings(potential, config)
    return {"energy_type": asdict(potential.energy_type), "dtype": potential.about.dtype}


def relax_all(
    structures: Sequence[Structure],
    potential: Potential,
    config: RelaxConfig,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> list[Relaxed]:
    """Relax what the journal does not hold, and keep each outcome in it; the same crystal is relaxed once."""
    from oracles.relax import Relaxed, relax

    keys = [structure_id(structure) for structure in structures]
    found = {} if journal is None else {key: _from_json(Relaxed, entry) for key, entry in journal.done.items()}
    todo = {key: structure for key, structure in zip(keys, structures, strict=True) if key not in found}
    names, before = list(todo), len(set(keys)) - len(todo)

    def keep(index: int, outcome: Relaxed) -> None:
        found[names[index]] = outcome
        if journal is not None:
            journal.write(names[index], _to_json(outcome))
        if progress is not None:
            progress("relax", before + sum(name in found for name in names), len(set(keys)), {})

    relax(list(todo.values()), potential, config, finished=keep)
    return [found[key] for key in keys]


def _to_json(outcome: Relaxed) -> dict[str, Any]:
    return {**vars(outcome), "structure": None if outcome.structure is None else outcome.structure.as_dict()}


def _from_json(kind: type[Relaxed], entry: dict[str, Any]) -> Relaxed:
    from pymatgen.core import Structure

    return kind(**{**entry, "structure": entry["structure"] and Structure.from_dict(entry["structure"])})


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
    references: References | Hull,
    relaxation: RelaxConfig | None,
    progress: Progress | None = None,
    *,
    journal: Journal | None = None,
) -> tuple[pd.DataFrame, list[Structure | None] | None]:
    """Energies above the hull, of crystals as they are or relaxed first.

    Returns:
        One row per crystal, and the relaxed crystals (None where there is none), or None where none was relaxed.

    Raises:
        EnergyTypeError: potential and references do not belong together.
    """
    (references if isinstance(references, Hull) else references.hull()).require(potential.energy_type)  # before hours
    rows, structures = readable(table)
    relaxed: list[Structure | None] | None = None
    if relaxation is None:
        points = single_points(structures, potential, progress, journal)
    else:
        outcomes = relax_all(structures, potential, relaxation, progress, journal)
        points = [(outcome.energy, outcome.status, outcome.message) for outcome in outcomes]
        found = {row: outcome.structure for row, outcome in zip(rows, outcomes, strict=True)}
        relaxed = [found.get(row) for row in range(len(table))]
    energies = np.array([energy for energy, _, _ in points])
    if relaxation is not None and not isinstance(references, Hull):
        known = [s for s, energy in zip(structures, energies, strict=True) if np.isfinite(energy)]
        references = _relaxed_where_needed(references, known, potential, relaxation, progress)
    # references and crystals are treated alike
    hull = references if isinstance(references, Hull) else references.hull(relaxed=relaxation is not None)
    places = hull.batch([structure.composition for structure in structures], energies, potential.energy_type)
    results = {}

    def remark(place: HullResult) -> str:
        notes = [f"{SUSPECT}: an error of the potential more often than a find" * is_suspect(place.e_above_hull)]
        if relaxation is not None and not isinstance(references, Hull):
            notes.append(references.unrelaxed_among(place.decomposition))
        return "; ".join(filter(None, notes))

    for row, (energy, status, message), place in zip(rows, points, places, strict=True):
        results[row] = {
            "e_above_hull": place.e_above_hull,
            "decomposition": json.dumps({name: round(share, 6) for name, share in place.decomposition.items()}),
            "energy": energy,
            "energy_type": str(potential.energy_type) if np.isfinite(energy) else "",
            "status": status if status != OK else place.status,
            "sparse": place.sparse,
            "suspect": is_suspect(place.e_above_hull),
            "message": message or place.message or remark(place),
        }
    return rows_with(table, results, changed=relaxed is not None), relaxed


def _relaxed_where_needed(
    references: References,
    structures: Sequence[Structure],
    potential: Potential,
    relaxation: RelaxConfig,
    progress: Progress | None,
) -> References:
    """The shipped table with the phases relaxed that decide, where their crystals are shipped as well."""
    from oracles.references.competing import relax_competing
    from oracles.references.crystals import load_reference_crystals
    from oracles.references.table import load_references

    if not references.not_relaxed or references.checksum != load_references().checksum:
        return references
    try:
        crystals = load_reference_crystals()
    except InputError:  # not installed: the message of each row names what is not relaxed
        return references
    report = of_stage(progress, "relax competing phases")
    return relax_competing(
        [structure.composition for structure in structures],
        references,
        lambda name: crystals.structure(name) if name in crystals else None,
        potential,
        relaxation,
        report,
    )


AT_ONCE = 64  # single points between two writes to the journal


def single_points(
    structures: Sequence[Structure], potential: Potential, progress: Progress | None, journal: Journal | None
) -> list[tuple[float, str, str]]:
    """Energy (eV/atom), status and message of each crystal as it stands; what the journal holds is kept."""
    keys = [structure_id(structure) for structure in structures]
    found = {} if journal is None else dict(journal.done)
    todo = {key: structure for key, structure in zip(keys, structures, strict=True) if key not in found}
    names, before = list(todo), len(found)
    for start in range(0, len(todo), AT_ONCE):
        part = names[start : start + AT_ONCE]
        points = potential.single_points([todo[name] for name in part], gradients=False)
        for name, point in zip(part, points, strict=True):
            found[name] = {"energy": point.energy, "status": point.status, "message": point.message}
            if journal is not None:
                journal.write(name, found[name])
        if progress is not None:
            progress("energies", before + start + len(part), before + len(todo), {})
    return [(found[key]["energy"], found[key]["status"], found[key]["message"]) for key in keys]


def statuses_of(frame: pd.DataFrame) -> dict[str, int]:
    """How many rows have each status."""
    return dict(Counter(frame["status"].tolist()))
