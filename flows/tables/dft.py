"""DFT by itself, from files to files; each result is written as it comes, and an interrupted table is continued."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.tables.columns import UNREADABLE, rows_with
from loop.errors import InputError
from loop.values import Candidate, Evaluation

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from loop.contracts import Oracle, Progress
    from loop.io.crystals import CrystalTable

PROPERTIES = ["energy", "band_gap", "band_gap_direct", "dielectric_electronic", "volume", "max_force", "max_stress"]
PROPERTIES += ["magnetic_moment", "steps", "scf_attempts"]
WHOLE = ("space_group", "cores")  # columns of whole numbers, which may be missing
KEYS = ("structure_id", "settings")  # columns that tell which rows of an earlier output still hold


def dft_table(table: CrystalTable, oracle: Oracle, output: Path, progress: Progress | None = None) -> pd.DataFrame:
    """Evaluate crystals one by one; `output`, a CSV, is complete after each.

    Raises:
        InputError: the output holds results of other settings.
    """
    from loop.io.crystals import write_crystals

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
        write_crystals(output, table.ids, final, _frame(table, results), as_held=True)
    frame = _frame(table, results)
    write_crystals(output, table.ids, final, frame, as_held=True)
    return frame


def row_of(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation as a flat row: properties in the units of `Quantity`, energies in eV/atom."""
    return {
        "status": evaluation.status,
        **{name: evaluation.value(name) for name in PROPERTIES},
        "energy_type": str(evaluation.energy_type) if evaluation.energy_type else "",
        "space_group": evaluation.space_group_relaxed or evaluation.space_group,
        "seconds": round(evaluation.cost.seconds, 1),
        "cores": evaluation.cost.cores,
        "oracle": evaluation.oracle,
        "structure_id": evaluation.candidate_id,
        "settings": evaluation.settings,
        "message": evaluation.message,
    }


def _frame(table: CrystalTable, results: dict[int, dict[str, Any]]) -> pd.DataFrame:
    """All rows; those whose turn has not come are pending."""
    frame = rows_with(table, results, changed=True)
    for name in WHOLE:
        if name in frame:
            frame[name] = frame[name].astype("Int64")
    waiting = [row for row, s in enumerate(table.structures) if s is not None and row not in results]
    frame.loc[waiting, "status"] = "pending"
    frame.loc[waiting, "message"] = ""
    return frame


def _earlier(output: Path, oracle: Oracle) -> dict[str, tuple[dict[str, Any], Structure | None]]:
    """Finished rows of an earlier run with the same settings, by structure id."""
    if not output.exists():
        return {}
    from loop.io.crystals import read_crystals

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
    names = [name for name in row_of(Evaluation("", "", "", "")) if name in frame]
    rows = done[names].to_dict("records")
    return {
        str(row["structure_id"]): ({str(name): value for name, value in row.items()}, table.structures[index])
        for row, index in zip(rows, done.index, strict=True)
    }
