"""Phonons of a sample of what fine-tuning finds: a crystal near the hull may still be no minimum of the energy."""

from __future__ import annotations

from dataclasses import astuple
from typing import TYPE_CHECKING, Any

import pandas as pd

from flows.journal import Journal
from flows.tables.properties import Derivatives, measured
from loop.io.files import write_text
from loop.values import OK
from oracles.properties.elastic import tight

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from pymatgen.core import Structure

    from flows.benchmarks.rl.relaxed import Relaxing
    from flows.progress import Count
    from oracles.mlip import PotentialOracle
    from oracles.properties.phonons import PhononConfig

PROTOCOL = (
    "dynamically_stable: of each judged arm's relaxed samples that are M.S.U.N. by the last potential asked, the first "
    "`phonons` of every seed are relaxed by the default potential, then tightly by the last one, and displaced. "
    "Stable: no imaginary frequency beyond the tolerance at the wave vectors of the supercell. The share is of those "
    "that have phonons; `phonons_failed` counts the others."
)
BY = "phonons_by"
COLUMNS = ("status", "dynamically_stable", "lowest_frequency", "supercell", "message")


def dynamics(
    crystals: Mapping[int, Structure],
    with_: Relaxing,
    config: PhononConfig,
    path: Path,
    report: Count | None = None,
) -> pd.DataFrame:
    """One row per crystal: `sample`, its key, and `COLUMNS` (frequencies in THz, imaginary as negative).

    Each finished crystal is kept beside `path` until all are, and `path` holds what needs no second computation, where
    potentials and displacements are the same.

    Raises:
        InputError: unfinished ones were made with other settings.
    """
    first, last = with_.builder.measuring, with_.opinion or with_.builder.measuring
    displaced = " ".join(f"{value:g}" for value in astuple(config))
    by = f"{first.settings_hash} {last.name} {last.settings_hash} {displaced}"
    what = Derivatives(config, tight(last.config.relax))
    done = _finished(path, by)
    with Journal(path, {"by": by}) as journal:
        for count, (key, structure) in enumerate(crystals.items(), start=1):
            if key not in done and str(key) not in journal.done:
                result = _from_end(structure, first, last, what)
                journal.write(str(key), {name: result.get(name) for name in COLUMNS})
            if report is not None:
                report(count, len(crystals))
        done |= {int(key): result for key, result in journal.done.items()}
        rows = [{"sample": key} | done[key] for key in crystals]
        found = pd.DataFrame(rows, columns=["sample", *COLUMNS]).assign(**{BY: by})
        write_text(path, found.to_csv(index=False, lineterminator="\n"))
    return found


def _finished(path: Path, by: str) -> dict[int, dict[str, Any]]:
    """Rows of an earlier call by these potentials and displacements."""
    if not path.exists():
        return {}
    found = pd.read_csv(path)
    rows = found[found[BY] == by].drop(columns=BY).to_dict("records")
    return {int(row.pop("sample")): {str(name): value for name, value in row.items()} for row in rows}


def _from_end(structure: Structure, first: PotentialOracle, last: PotentialOracle, what: Derivatives) -> dict[str, Any]:
    """What `measured` says of a drawn crystal that the first potential relaxed."""
    from oracles.relax import relax

    outcome = relax([structure], first.potential, first.config.relax)[0]
    if outcome.structure is None:
        return {"status": outcome.status, "message": outcome.message}
    return measured(outcome.structure, last.potential, what)


def tally(found: pd.DataFrame) -> dict[str, Any]:
    """How many phonons came out, how many of these crystals are dynamically stable, and how many failed."""
    came_out = found[found["status"] == OK]
    stable = int(came_out["dynamically_stable"].astype(bool).sum())
    return {"phonons": len(came_out), "dynamically_stable": stable, "phonons_failed": len(found) - len(came_out)}
