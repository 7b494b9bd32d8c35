"""DFT by itself, from files to files; each result is written as it comes, and a cut-off table is gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.screening import UNREADABLE, rows_with
from loop.errors import InputError
from loop.values import Candidate, Evaluation

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from loop.contracts import Oracle, Progress
    from loop.crystals import CrystalTable

KEYS = ("structure_id", "settings")  # columns that tell which rows of an earlier output still hold


def dft_table(table: CrystalTable, oracle: Oracle, output: Path, progress: Progress | None = None) -> pd.DataFrame:
    """Evaluate crystals one by one; `output`, a CSV, is complete after each.

    Raises:
        InputError: the output holds results of other settings.
    """
    from loop.crystals import write_crystals

    known = _earlier(output, oracle)
    results: dict[int, dict[str, Any]] = {}
    final: list[Structure | None] = list(table.structures)
    for row, structure in enumerate(table.structures):
        if progress is not None:
            progress("dft", row, len(table), {})
        if structure is None:
            continue
        candidate = Candidate(structure)
        if candidate.id in known:
            results[row], final[row] = known[candidate.id]
            continue
        evaluation = oracle.evaluate([candidate])[0]
        results[row], final[row] = row_of(evaluation), evaluation.structure or structure
        frame = rows_with(table, results)
        write_crystals(output, table.ids, final, _without_pending(frame, results, table))
    frame = rows_with(table, results)
    write_crystals(output, table.ids, final, frame)
    return frame


def row_of(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as a flat row: properties in the units of `Quantity`, energies in eV/atom."""
    return {
        "status": evaluation.status,
        **{name: quantity.value for name, quantity in evaluation.properties.items()},
        "energy_type": str(evaluation.energy_type) if evaluation.energy_type else "",
        "space_group": evaluation.space_group_relaxed or evaluation.space_group,
        "seconds": round(evaluation.cost.seconds, 1),
        "cores": evaluation.cost.cores,
        "oracle": evaluation.oracle,
        "structure_id": evaluation.candidate_id,
        "settings": evaluation.settings,
        "message": evaluation.message,
    }


def _without_pending(frame: pd.DataFrame, results: dict[int, dict[str, Any]], table: CrystalTable) -> pd.DataFrame:
    """Rows whose turn has not come are pending, not unreadable."""
    waiting = [row for row, s in enumerate(table.structures) if s is not None and row not in results]
    frame.loc[waiting, "status"] = "pending"
    frame.loc[waiting, "message"] = ""
    return frame


def _earlier(output: Path, oracle: Oracle) -> dict[str, tuple[dict[str, Any], Structure | None]]:
    """Finished rows of an earlier run with the same settings, by structure id."""
    if not output.exists():
        return {}
    from loop.crystals import read_crystals

    table = read_crystals(output)
    frame = table.frame
    if not set(KEYS) <= set(frame):
        raise InputError(f"{output} exists and is no table of `discovery-loop dft`: give another name, or remove it")
    done = frame[~frame["status"].isin([UNREADABLE, "pending"])]
    others = sorted(set(done["settings"].dropna().astype(str)) - {oracle.settings_hash})
    if others:
        raise InputError(
            f"{output} holds results of other settings ({', '.join(others)}, now {oracle.settings_hash}): give another "
            "name, or the settings that it was begun with"
        )
    names = list(row_of(Evaluation("", "", "", "")))
    columns = [name for name in frame if name in names or name in _properties(frame)]
    rows = done[columns].to_dict("records")
    kept = [{str(name): value for name, value in row.items() if value == value} for row in rows]  # NaN: no value
    return {row["structure_id"]: (row, table.structures[index]) for row, index in zip(kept, done.index, strict=True)}


def _properties(frame: pd.DataFrame) -> list[str]:
    """Columns between `status` and `energy_type`: what was measured."""
    names = [str(name) for name in frame]
    return names[names.index("status") + 1 : names.index("energy_type")]
