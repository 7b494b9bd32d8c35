"""DFT by itself, from files to files; each result is written as it comes, and an interrupted table is continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.tables.columns import UNREADABLE, rows_with
from loop.errors import InputError
from loop.io.files import write_text
from loop.stability import is_suspect
from loop.values import Candidate, Evaluation

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from loop.contracts import Oracle, Progress
    from loop.io.crystals import CrystalTable
    from oracles.dft.hull import DftHull

PROPERTIES = ["energy", "band_gap", "band_gap_direct", "dielectric_electronic", "volume", "max_force", "max_stress"]
PROPERTIES += ["magnetic_moment", "steps", "scf_attempts"]
WHOLE = ("space_group", "cores", "hull_phases")  # columns of whole numbers, which may be missing
KEYS = ("structure_id", "settings")  # columns that tell which rows of an earlier output still hold


def dft_table(
    table: CrystalTable, oracle: Oracle, output: Path, progress: Progress | None = None, hull: DftHull | None = None
) -> pd.DataFrame:
    """Evaluate crystals one by one; `output`, a CSV, is complete after each.

    Args:
        table: crystals.
        oracle: evaluates.
        output: a CSV; an existing one is continued.
        progress: called before each crystal.
        hull: the oracle's own, where it has one: its phases are written beside the output, `phases_file`.

    Raises:
        InputError: the output holds results of other settings.
    """
    from loop.io.crystals import write_crystals

    known = _earlier(output, oracle, hull is not None)
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
        results[row], final[row] = row_of(evaluation, hull is not None), evaluation.structure or structure
        if hull is not None:
            write_phases(hull, phases_file(output))
        write_crystals(output, table.ids, final, _frame(table, results), as_held=True)
    frame = _frame(table, results)
    write_crystals(output, table.ids, final, frame, as_held=True)
    return frame


def phases_file(output: Path) -> Path:
    """Where the competing phases of a table are written: ``labels.csv`` has ``labels.phases.csv`` beside it."""
    return output.with_name(output.name.removesuffix(".gz").removesuffix(".csv") + ".phases.csv")


def write_phases(hull: DftHull, path: Path) -> None:
    """All phases that were computed, with those that an earlier run of the same table wrote."""
    import pandas as pd

    frame = pd.DataFrame(hull.phases())
    if path.exists():
        frame = pd.concat([pd.read_csv(path), frame]).drop_duplicates("id", keep="last")
    write_text(path, frame.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def row_of(evaluation: Evaluation, hull: bool = False) -> dict[str, Any]:
    """An evaluation as a flat row: properties in the units of `Quantity`, energies in eV/atom."""
    return {
        "status": evaluation.status,
        **(_place_of(evaluation) if hull else {}),
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


def _place_of(evaluation: Evaluation) -> dict[str, Any]:
    """Columns of a distance from the hull, named as those of `discovery-loop hull`, and what it rests on."""
    above = evaluation.value("e_above_hull")
    shares = {name: round(share, 6) for name, share in evaluation.decomposition.items()}
    return {
        "e_above_hull": above,
        "decomposition": json.dumps(shares),
        "sparse": evaluation.value("hull_sparse") == 1.0,
        "suspect": is_suspect(above),
        "hull_phases": evaluation.value("hull_phases"),
        "hull_seconds": evaluation.value("hull_seconds"),
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


def _earlier(output: Path, oracle: Oracle, hull: bool) -> dict[str, tuple[dict[str, Any], Structure | None]]:
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
    names = [name for name in row_of(Evaluation("", "", "", ""), hull) if name in frame]
    rows = done[names].to_dict("records")
    return {
        str(row["structure_id"]): ({str(name): value for name, value in row.items()}, table.structures[index])
        for row, index in zip(rows, done.index, strict=True)
    }
