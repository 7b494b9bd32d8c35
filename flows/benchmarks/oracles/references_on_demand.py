"""`discovery-loop benchmark references --potential NAME`: distances by a potential that has no table of all phases.

Crystals of the test split are relaxed by it and meet its own hull on demand, as a campaign's candidates do. The draw is
that of the shipped potential's benchmark, so that both are compared crystal by crystal.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.harness import files_of, write_benchmark
from flows.benchmarks.oracles.references import LARGEST, Arrays, metrics, rows_of_test, structures_of
from flows.journal import Journal
from flows.tables.screening import relax_all, relax_settings
from loop.contracts import Progress
from loop.io.files import make_folder, write_text
from loop.stability import METASTABLE
from loop.values import OK

if TYPE_CHECKING:
    import pandas as pd

    from loop.hull import HullResult
    from oracles.potentials.base import Potential
    from oracles.references.hull_on_demand import DemandHull
    from oracles.relax import RelaxConfig

PROTOCOL = (
    f"Crystals of the test split with at most {LARGEST} atoms per cell, drawn at random, relaxed by the potential. "
    "Hull: its own, on demand, over the reference crystals in the package, which hold none of the test split. "
    "Published distances refer to a DFT hull that holds the crystal itself, so they are never negative; found ones "
    "are, for a crystal below its competitors; `clipped` sets them to 0. A crystal without a distance counts as not "
    "stable. `former` is the same crystals by the potential of another record, of those that have a distance by both. "
    "`verdicts`: all crystals; phases are computed until it is certain on which side of the threshold a distance lies, "
    "which is then known between two bounds (`mae_least`, `mae_most`; `mae_lower`: of the lower bounds, by phases as "
    "published). The others: crystals whose distance was computed, the first of the draw."
)
CHUNK = 20  # crystals whose phases are computed together: a killed run loses no more than what is in work


def run(
    output: Path,
    n: int,
    data: Sequence[Path],
    potential: Potential,
    *,
    exact: int | None = None,
    seed: int = 0,
    former: Path | None = None,
    hull: DemandHull | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare, and write ``record.json`` and ``table.csv``. A killed run goes on with what it relaxed.

    Args:
        output: folder.
        n: crystals to relax, drawn with `seed`.
        data: CSVs with columns cif, split, pretty_formula, n_atoms, e_above_hull (eV/atom).
        potential: relaxes and judges.
        exact: how many of these, the first of the draw, get the distance itself; None: all.
        seed: of the draw.
        former: table.csv of another potential's record, to put its figures beside.
        hull: of the potential; by default on demand over the reference crystals in the package.
        progress: told of stages.

    Returns:
        The record.

    Raises:
        InputError: no row to test on.
    """
    from oracles.references.hull_on_demand import demand_hull
    from oracles.relax import RelaxConfig

    began, config = time.perf_counter(), RelaxConfig()
    frame = rows_of_test(data)
    frame = frame.sample(min(n, len(frame)), random_state=seed)
    make_folder(output)
    judge = hull or demand_hull(potential, config, held_out=False)
    with Journal(output / "table.csv", {**relax_settings(potential, config), "seed": seed}) as journal:
        frame = frame.assign(**_relaxed(frame, potential, config, progress, journal))
        places = _places(frame.iloc[:exact], judge, "hulls", progress)
        places += _places(frame.iloc[len(places) :], judge.deciding((METASTABLE,)), "verdicts", progress)
        bounds = judge.bounds(frame["pretty_formula"].tolist(), frame["energy"].tolist())
        frame["lowest"], frame["highest"] = np.array(bounds).T
        frame["exact"] = np.arange(len(frame)) < (len(frame) if exact is None else exact)
        frame["relaxed"] = [place.e_above_hull for place in places]
        frame["competing"] = [" ".join(f"{f}:{place.ids.get(f, '')}" for f in place.decomposition) for place in places]
        frame["message"] = [place.message for place in places]
        record = {
            "benchmark": "references",
            "protocol": PROTOCOL,
            "threshold": METASTABLE,
            "units": {"mae": "eV/atom", "bias": "eV/atom", "seconds": "s", "precision": "fraction"},
            "potential": {"name": potential.name, "energy_type": asdict(potential.energy_type)},
            "settings": {"n": n, "exact": exact, "seed": seed, "relax": asdict(config)},
            "results": _results(frame, judge, former),
            "seconds": round(time.perf_counter() - began, 1),
        }
        return _write(output, frame, record)


def _relaxed(
    frame: pd.DataFrame, potential: Potential, config: RelaxConfig, progress: Progress | None, journal: Journal
) -> dict[str, Any]:
    structures = structures_of(frame)
    outcomes = relax_all(structures, potential, config, progress, journal)
    return {
        "energy": [outcome.energy if outcome.status == OK else np.nan for outcome in outcomes],
        "status": [outcome.status for outcome in outcomes],
        "steps": [outcome.steps for outcome in outcomes],
        "seconds": [outcome.seconds for outcome in outcomes],
    }


def _places(frame: pd.DataFrame, hull: DemandHull, stage: str, progress: Progress | None) -> list[HullResult]:
    """Where each crystal lies; the phases of some crystals are computed side by side, then those of the next."""
    places: list[HullResult] = []
    for start in range(0, len(frame), CHUNK):
        part = frame.iloc[start : start + CHUNK]
        places += hull.batch(part["pretty_formula"].tolist(), part["energy"].tolist(), hull.energy_type)
        if progress is not None:
            progress(stage, len(places), len(frame), {"phases": float(len(hull.computed))})
    return places


def _results(frame: pd.DataFrame, hull: DemandHull, former: Path | None) -> dict[str, Any]:
    import pandas as pd

    everything, frame = frame, frame[frame["exact"]]
    published = frame["published"].to_numpy(dtype=float)
    results: dict[str, Any] = {"relaxed": metrics(Arrays(published, frame["relaxed"].to_numpy(dtype=float)))}
    results["relaxed"] |= {
        "statuses": dict(Counter(frame["status"])),
        "seconds_each": float(frame["seconds"].mean()),
        "phases": len(hull.computed),  # relaxed for these crystals; the others were in the shipped table
        "looked_at": len(hull.points),  # energies of phases as they stand
        "with_a_note": int((frame["message"] != "").sum()),
    }
    results["verdicts"] = _verdicts(everything)
    if former is not None:
        earlier = pd.read_csv(former, keep_default_na=False, na_values=[""]).set_index("material_id")
        theirs = earlier["relaxed"].reindex(frame["material_id"]).to_numpy(dtype=float)
        both = np.isfinite(theirs) & np.isfinite(frame["relaxed"].to_numpy(dtype=float))
        if both.any():
            results["same_crystals"] = metrics(Arrays(published[both], frame["relaxed"].to_numpy(dtype=float)[both]))
            results["former_relaxed"] = metrics(Arrays(published[both], theirs[both]))
    return results


def _verdicts(frame: pd.DataFrame) -> dict[str, Any]:
    """All crystals: on which side of the threshold, and how large the error is at least and at most."""
    published, low, high = (frame[name].to_numpy(dtype=float) for name in ("published", "lowest", "highest"))
    least = np.maximum(np.maximum(low - published, published - high), 0.0)
    most = np.maximum(np.abs(low - published), np.abs(high - published))
    told = metrics(Arrays(published, frame["relaxed"].to_numpy(dtype=float)))
    names = ("rows", "found", "true_positives", "false_positives", "false_negatives", "true_negatives")
    told = {name: told[name] for name in (*names, "precision", "recall", "accuracy", "prevalence")}
    errors = {"mae_least": least, "mae_most": most, "mae_lower": np.abs(low - published), "between": high - low}
    return told | {name: float(np.nanmean(values)) for name, values in errors.items()}


def _write(output: Path, frame: pd.DataFrame, record: dict[str, Any]) -> dict[str, Any]:
    columns = ["material_id", "pretty_formula", "relaxed", "exact", "lowest", "highest", "status", "steps"]
    columns += ["competing", "message"]
    text = frame[columns].to_csv(index=False, float_format="%.5f", lineterminator="\n")  # none of the source's numbers
    write_text(output / "table.csv", text)
    return write_benchmark(output, record | {"files": files_of([output / "table.csv"])})
