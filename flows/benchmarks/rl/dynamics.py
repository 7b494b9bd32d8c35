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
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pymatgen.core import Structure

    from flows.benchmarks.rl.relaxed import Relaxing
    from oracles.properties.phonons import PhononConfig

PROTOCOL = (
    "dynamically_stable: of each judged arm's relaxed samples that are M.S.U.N. by the last potential asked, the first "
    "`phonons` of every seed are relaxed as there, then tightly by that potential, and displaced by it. Stable: no "
    "imaginary frequency beyond the tolerance at the wave vectors of the supercell. The share is of those that have "
    "phonons; `phonons_failed` counts the others."
)
BY = "phonons_by"
COLUMNS = ("status", "dynamically_stable", "lowest_frequency", "supercell", "message")


def dynamics(
    crystals: Mapping[int, Structure],
    with_: Relaxing,
    config: PhononConfig,
    path: Path,
    report: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """One row per crystal: `sample`, its key, and `COLUMNS` (frequencies in THz, imaginary as negative).

    Finished crystals are kept beside `path` until it is complete; `path` is read where it has these crystals by this
    potential and these displacements.

    Raises:
        InputError: unfinished ones were made with other settings.
    """
    from oracles.relax import relax

    first, last = with_.builder.measuring, with_.opinion or with_.builder.measuring
    by = f"{last.name} {last.settings_hash} {' '.join(f'{value:g}' for value in astuple(config))}"
    if path.exists():
        found = pd.read_csv(path)
        if found["sample"].tolist() == list(crystals) and (found[BY] == by).all():
            return found
    what = Derivatives(config, tight(last.config.relax))
    settings = what.settings(last.potential) | {"first": first.settings_hash, "crystals": list(crystals)}
    with Journal(path, settings) as journal:
        for done, (key, structure) in enumerate(crystals.items()):
            if str(key) not in journal.done:
                end = relax([structure], first.potential, first.config.relax)[0].structure
                result = measured(structure if end is None else end, last.potential, what)
                journal.write(str(key), {name: result.get(name) for name in COLUMNS})
            if report is not None:
                report(done + 1, len(crystals))
        rows = [{"sample": key} | journal.done[str(key)] for key in crystals]
        found = pd.DataFrame(rows, columns=["sample", *COLUMNS]).assign(**{BY: by})
        write_text(path, found.to_csv(index=False, lineterminator="\n"))
    return found


def tally(found: pd.DataFrame) -> dict[str, Any]:
    """How many phonons came out, how many of these crystals are dynamically stable, and how many failed."""
    came_out = found[found["status"] == OK]
    stable = int(came_out["dynamically_stable"].astype(bool).sum())
    return {"phonons": len(came_out), "dynamically_stable": stable, "phonons_failed": len(found) - len(came_out)}
