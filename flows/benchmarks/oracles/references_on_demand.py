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
from flows.benchmarks.oracles.references import LARGEST, compare, rows_of_test, structures_of
from flows.journal import Journal
from flows.tables.screening import relax_all, relax_settings
from loop.contracts import Progress
from loop.io.files import make_folder, write_text
from loop.metrics import bootstrap_mean
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
    "Hull: its own, on demand, as the package judges: over the reference crystals in the package, which hold none of "
    "the test split, and formulas of the split with their energies as published. Published distances refer to a DFT "
    "hull that holds the crystal itself, so they are never negative; found ones are, for a crystal below its "
    "competitors; `clipped` sets them to 0. A crystal without a distance counts as not stable. `former` is the same "
    "crystals by the potential of another record, of those that it relaxed. `verdicts`: all crystals; phases are "
    "computed until it is certain on which side of the threshold a distance lies, which is then known between two "
    "bounds (`mae_least`, `mae_most`). The others: crystals whose distance was computed, the first of the draw. "
    "`mae_clipped_all`: of all crystals by phases as published, none relaxed (`mae_clipped_standing`), plus the mean "
    "change of that error where distances were computed; 95 %, bootstrap over these crystals."
)
END = "_full_hull"  # of names: the hull that holds the split's formulas, as in the record of the shipped potential
COUNTS = ("rows", "found", "true_positives", "false_positives", "false_negatives", "true_negatives")
VERDICT = (*COUNTS, "precision", "recall", "accuracy", "prevalence")  # what a verdict alone tells
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
    hull = demand_hull(potential, config)
    with Journal(output / "table.csv", {**relax_settings(potential, config), "seed": seed}) as journal:
        frame = frame.assign(**_relaxed(frame, potential, config, progress, journal))
        frame["exact"] = np.arange(len(frame)) < (len(frame) if exact is None else exact)
        frame = frame.assign(**_judged(frame, hull, progress))
        record = {
            "benchmark": "references",
            "protocol": PROTOCOL,
            "threshold": METASTABLE,
            "units": {"mae": "eV/atom", "bias": "eV/atom", "seconds": "s", "precision": "fraction"},
            "potential": {"name": potential.name, "energy_type": asdict(potential.energy_type)},
            "settings": {"n": n, "exact": exact, "seed": seed, "relax": asdict(config)},
            "results": _results(frame, hull, former),
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


def _judged(frame: pd.DataFrame, hull: DemandHull, progress: Progress | None) -> dict[str, Any]:
    """Distances of the first crystals, verdicts of the others, and bounds of all."""
    first = int(frame["exact"].sum())
    standing, _ = _bounds(frame, hull)
    places = _places(frame.iloc[:first], hull, "hulls", progress)
    places += _places(frame.iloc[first:], hull.deciding((METASTABLE,)), "verdicts", progress)
    low, high = _bounds(frame, hull)
    return {
        "relaxed": [place.e_above_hull for place in places],
        "standing": standing,
        "lowest": low,
        "highest": high,
        "competing": [" ".join(f"{f}:{place.ids.get(f, '')}" for f in place.decomposition) for place in places],
        "message": [place.message for place in places],
    }


def _bounds(frame: pd.DataFrame, hull: DemandHull) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(hull.bounds(frame["pretty_formula"].tolist(), frame["energy"].tolist())).T
    return low, high


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

    exact, name = frame[frame["exact"]], f"relaxed{END}"
    results: dict[str, Any] = {
        name: compare(exact, "relaxed")
        | {
            "phases": len(hull.computed),  # relaxed for these crystals; the others were in the shipped table
            "looked_at": len(hull.points),  # energies of phases as they stand
            "with_a_note": int((exact["message"] != "").sum()),
        },
        f"verdicts{END}": _verdicts(frame),
    }
    if former is not None:
        earlier = pd.read_csv(former, keep_default_na=False, na_values=[""]).set_index("material_id")
        if name in earlier:
            theirs = earlier[name].reindex(frame["material_id"]).to_numpy(dtype=float)
            results |= _beside(frame[np.isfinite(theirs)].assign(former=theirs[np.isfinite(theirs)]))
    statuses = dict(Counter(frame["status"]))
    return results | {"relaxations": {"statuses": statuses, "seconds_each": float(frame["seconds"].mean())}}


def _beside(by_both: pd.DataFrame) -> dict[str, Any]:
    """The same crystals by this potential and by the former: distances where computed here, verdicts of all."""
    results: dict[str, Any] = {}
    exact = by_both[by_both["exact"] & by_both["relaxed"].notna()]
    if len(exact):
        results[f"same_crystals{END}"] = compare(exact, "relaxed")
        results[f"former_relaxed{END}"] = compare(exact, "former")
    if len(by_both):
        for key, column in ((f"same_verdicts{END}", "relaxed"), (f"former_verdicts{END}", "former")):
            results[key] = {of: value for of, value in compare(by_both, column).items() if of in VERDICT}
    return results


def _verdicts(frame: pd.DataFrame) -> dict[str, Any]:
    """All crystals: on which side of the threshold, and how large the error is at least and at most."""
    published, low, high = (frame[name].to_numpy(dtype=float) for name in ("published", "lowest", "highest"))
    least = np.maximum(np.maximum(low - published, published - high), 0.0)
    most = np.maximum(np.abs(low - published), np.abs(high - published))
    all_ = compare(frame, "relaxed")
    errors = {"mae_least": least, "mae_most": most, "between": high - low}
    means = {name: float(np.nanmean(values)) for name, values in errors.items()}
    return {name: all_[name] for name in VERDICT} | means | _error_of_all(frame)


def _error_of_all(frame: pd.DataFrame) -> dict[str, Any]:
    """Mean absolute error of all crystals, from errors by phases as published and what relaxing those changes."""
    published = frame["published"].to_numpy(dtype=float)
    distances = (frame[name].to_numpy(dtype=float) for name in ("standing", "relaxed"))
    standing, found = (np.abs(np.maximum(each, 0.0) - published) for each in distances)
    mean, exact = float(np.nanmean(standing)), frame["exact"].to_numpy(dtype=bool)
    change = (found - standing)[exact]
    change = change[np.isfinite(change)]
    if not len(change):
        return {"mae_clipped_standing": mean}
    by = bootstrap_mean(change.tolist())
    told = {"value": mean + by.value, "low": mean + by.low, "high": mean + by.high}
    return {"mae_clipped_standing": mean, "mae_clipped_all": told}


def _write(output: Path, frame: pd.DataFrame, record: dict[str, Any]) -> dict[str, Any]:
    judged = ["relaxed", "standing", "lowest", "highest", "competing", "message"]
    # none of the source's numbers
    columns = ["material_id", "pretty_formula", "energy", "status", "steps", "exact", *judged]
    table = frame[columns].rename(columns={name: f"{name}{END}" for name in judged})
    text = table.to_csv(index=False, float_format="%.5f", lineterminator="\n")
    write_text(output / "table.csv", text)
    return write_benchmark(output, record | {"files": files_of([output / "table.csv"])})
