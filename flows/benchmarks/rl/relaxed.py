"""Fresh samples relaxed with the default potential: stable, unique and new after relaxation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from flows.benchmarks.rl.judge import Samples
from loop.io.files import write_text
from loop.validity import STRUCTURE
from loop.values import DUPLICATE, NEW, OK

if TYPE_CHECKING:
    from collections.abc import Callable

    from flows.build import Builder

COLUMN = "relaxed_e_above_hull"


def relaxed(
    samples: Samples, n: int, builder: Builder, path: Path, report: Callable[[int, int], None] | None = None
) -> pd.DataFrame:
    """Rows of the first n samples with `COLUMN`, and with `structure_valid`, `unique`, `new` of the relaxed crystals.

    A relaxation that fails or does not converge counts as no crystal. What was relaxed once is read from `path`.
    """
    rows = samples.rows.head(n).reset_index(drop=True)
    found = pd.read_csv(path) if path.exists() else None
    if found is None or len(found) != len(rows):
        found = _relax(samples, n, builder, report)
        write_text(path, found.to_csv(index=False, lineterminator="\n"))
    return rows.assign(**{name: found[name] for name in found.columns})


def _relax(
    samples: Samples, n: int, builder: Builder, report: Callable[[int, int], None] | None = None
) -> pd.DataFrame:
    from oracles.relax import relax

    oracle = builder.measuring
    rows = samples.rows.head(n)
    sound = [i for i in range(len(rows)) if bool(rows["structure_valid"].iloc[i]) and samples.structures[i] is not None]
    crystals = [s for i in sound if (s := samples.structures[i]) is not None]
    outcomes = relax(crystals, oracle.potential, oracle.config.relax, report)
    kept = [
        (i, o.structure, o.energy)
        for i, o in zip(sound, outcomes, strict=True)
        if o.status == OK and o.structure is not None
    ]
    structures = [structure for _, structure, _ in kept]
    compositions = [structure.composition for structure in structures]
    energies = np.array([energy for *_, energy in kept], dtype=float)
    places = oracle.hull.batch(compositions, energies, oracle.potential.energy_type)
    index = builder.novelty.emptied()
    verdicts = index.judge(structures, [str(i) for i, *_ in kept])
    found = pd.DataFrame({COLUMN: np.full(len(rows), np.nan)})
    for name in ("structure_valid", "unique", "new"):
        found[name] = False
    for (i, structure, _), place, verdict in zip(kept, places, verdicts, strict=True):
        found.loc[i, COLUMN] = place.e_above_hull if place.status == OK else np.nan
        found.loc[i, "structure_valid"] = STRUCTURE.reason(structure) is None
        found.loc[i, "unique"] = verdict.kind != DUPLICATE
        found.loc[i, "new"] = verdict.kind == NEW
    return found
