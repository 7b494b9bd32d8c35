"""Fresh samples relaxed with the default potential, then by another one that judges on its own hull."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from flows.benchmarks.rl.judge import Samples
from flows.evaluation.report import judge_stability, second_opinion
from flows.journal import Journal
from loop.io.files import write_text
from loop.stability import METASTABLE
from loop.validity import STRUCTURE
from loop.values import DUPLICATE, NEW, OK

if TYPE_CHECKING:
    from collections.abc import Callable

    from pymatgen.core import Structure

    from flows.build import Builder
    from flows.progress import Count
    from oracles.mlip import PotentialOracle

    Report = Callable[[str, int, int], None]

COLUMN, SECOND, SECOND_BY = "relaxed_e_above_hull", "second_e_above_hull", "second_by"
PROTOCOL = (
    "relaxed_*: of the first `relaxed` samples of an arm and seed, those with valid distances are relaxed with their "
    "cell by the default potential; validity of distances, uniqueness among them and novelty are judged again. "
    "second_*: of these, those that are valid, unique, new and within `second_below` of the default potential's hull "
    "are relaxed on by the potential `second`, and stand on its own hull; all others count as not stable."
)


@dataclass(frozen=True)
class Relaxing:
    """How samples are relaxed and judged.

    Attributes:
        builder: of the default potential, which relaxes first.
        opinion: oracle of a potential that the reward never saw, which relaxes on; none: no second judge.
        below: distance from the first one's hull (eV/atom) up to which the second is asked; beyond, a crystal counts
            as not stable.
    """

    builder: Builder
    opinion: PotentialOracle | None = None
    below: float = METASTABLE

    @property
    def second_by(self) -> str | None:
        """What the second distances depend on."""
        return None if self.opinion is None else f"{self.opinion.name} {self.opinion.settings_hash} {self.below:g}"


def relaxed(samples: Samples, n: int, with_: Relaxing, path: Path, report: Report | None = None) -> pd.DataFrame:
    """Rows of the first n samples with `COLUMN`, and with `structure_valid`, `unique`, `new` of the relaxed crystals.

    A relaxation that fails or does not converge counts as no crystal. With a second judge `SECOND` holds its distance
    (eV/atom, or a bound on the same side of every level) of what is valid, unique and new as relaxed. What was relaxed
    once is read from `path`, unless another judge is asked now. `report` is called with the stage, how many are done
    and the total.
    """
    rows = samples.rows.head(n).reset_index(drop=True)
    found = pd.read_csv(path) if path.exists() else None
    asked = None if found is None or SECOND_BY not in found else found[SECOND_BY].iloc[0]
    if found is None or len(found) != len(rows) or with_.second_by not in (None, asked):
        with Journal(path, {"second": with_.second_by}) as journal:
            found = _relax(samples, n, with_, journal, report)
            write_text(path, found.to_csv(index=False, lineterminator="\n"))
    return rows.assign(**{name: found[name] for name in found.columns})


def _relax(samples: Samples, n: int, with_: Relaxing, journal: Journal, report: Report | None) -> pd.DataFrame:
    from oracles.relax import relax

    oracle = with_.builder.measuring
    rows = samples.rows.head(n)
    sound = [i for i in range(len(rows)) if bool(rows["structure_valid"].iloc[i]) and samples.structures[i] is not None]
    crystals = [s for i in sound if (s := samples.structures[i]) is not None]
    outcomes = relax(crystals, oracle.potential, oracle.config.relax, _of(report, "relaxed"))
    kept = [
        (i, o.structure, o.energy)
        for i, o in zip(sound, outcomes, strict=True)
        if o.status == OK and o.structure is not None
    ]
    structures = [structure for _, structure, _ in kept]
    compositions = [structure.composition for structure in structures]
    energies = np.array([energy for *_, energy in kept], dtype=float)
    places = oracle.hull.batch(compositions, energies, oracle.potential.energy_type)
    index = with_.builder.novelty.emptied()
    verdicts = index.judge(structures, [str(i) for i, *_ in kept])
    found = pd.DataFrame({COLUMN: np.full(len(rows), np.nan)})
    for name in ("structure_valid", "unique", "new"):
        found[name] = False
    for (i, structure, _), place, verdict in zip(kept, places, verdicts, strict=True):
        found.loc[i, COLUMN] = place.e_above_hull if place.status == OK else np.nan
        found.loc[i, "structure_valid"] = STRUCTURE.reason(structure) is None
        found.loc[i, "unique"] = verdict.kind != DUPLICATE
        found.loc[i, "new"] = verdict.kind == NEW
    if with_.opinion is not None:
        ends = {i: structure for i, structure, _ in kept}
        told = _of(report, "second opinion")
        found[SECOND] = _second(rows, found, ends, with_, (told, journal))
        found[SECOND_BY] = with_.second_by
    return found


def _of(report: Report | None, stage: str) -> Count | None:
    return None if report is None else partial(report, stage)


def _second(
    rows: pd.DataFrame,
    found: pd.DataFrame,
    ends: dict[int, Structure],
    with_: Relaxing,
    telling: tuple[Count | None, Journal],
) -> pd.Series:
    """Distances by the second judge, of crystals that may count; `telling`: of progress, and where they are kept."""
    assert with_.opinion is not None
    valid = rows["composition_valid"].reset_index(drop=True) & found["structure_valid"]
    part = found.assign(valid=valid, e_above_hull=found[COLUMN], sparse_hull=False)
    judge_stability(part)
    may_count = part[["valid", "unique", "new"]].all(axis=1)
    asked = {i: structure for i, structure in ends.items() if may_count[i]}
    second_opinion(part, asked, with_.opinion, with_.below, *telling)
    return part["second_opinion"]
