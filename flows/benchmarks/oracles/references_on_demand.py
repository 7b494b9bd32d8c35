"""`discovery-loop benchmark references --potential NAME`: distances by a potential that has no table of all phases.

Crystals of the test split are relaxed by it and meet its own hull on demand, as a campaign's candidates do. The draw is
that of the shipped potential's benchmark, so that both are compared crystal by crystal.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
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
    "stable. `former` is the same crystals by the potential of another record, of those that it relaxed. "
    "`verdicts`: all crystals; phases are computed until it is certain on which side of the threshold a distance lies, "
    "which is then known between two bounds (`mae_least`, `mae_most`; `mae_lower`: of the lower bounds, by phases as "
    "published; `mae_clipped_...`: distances below 0 count as 0, like the published ones). The others: crystals whose "
    "distance was computed, the first of the draw; with `within` those with the widest bounds, too, until the mean of "
    "`mae_clipped_most` less `mae_clipped_least` is no more. `full_hull` has formulas of the test split among the "
    "phases, as the package judges, each with its energy as published."
)
FULL = "_full_hull"
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
    within: float | None = None,
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
        exact: how many of these, the first of the draw, get the distance itself; None: all, with `within` none.
        within: eV/atom. Further distances are computed, those with the widest bounds first, until the mean absolute
            error of all is known to this; on the hull that the package judges by alone. None: no further ones.
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
    hulls = {}
    if hull is not None or within is None:
        hulls[""] = hull or demand_hull(potential, config, held_out=False)
    if hull is None:
        hulls[FULL] = demand_hull(potential, config)
    with Journal(output / "table.csv", {**relax_settings(potential, config), "seed": seed}) as journal:
        frame = frame.assign(**_relaxed(frame, potential, config, progress, journal))
        first = exact if exact is not None else len(frame) * (within is None)
        frame["exact"] = np.arange(len(frame)) < first
        for end, judge in hulls.items():
            judged = _judged(frame, judge, within, progress)
            frame = frame.assign(**{f"{name}{end}": each for name, each in judged.items()})
        record = {
            "benchmark": "references",
            "protocol": PROTOCOL,
            "threshold": METASTABLE,
            "units": {"mae": "eV/atom", "bias": "eV/atom", "seconds": "s", "precision": "fraction"},
            "potential": {"name": potential.name, "energy_type": asdict(potential.energy_type)},
            "settings": {"n": n, "exact": exact, "within": within, "seed": seed, "relax": asdict(config)},
            "results": _results(frame, hulls, former),
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


def _judged(frame: pd.DataFrame, hull: DemandHull, within: float | None, progress: Progress | None) -> dict[str, Any]:
    """Distances of the first crystals and of those with the widest bounds, verdicts of the others, bounds of all."""
    computed = frame["exact"].to_numpy(dtype=bool, copy=True)
    places = np.empty(len(frame), dtype=object)
    places[computed] = _places(frame[computed], hull, "hulls", progress)
    while within is not None and (wide := _widest(frame, hull, computed, within)):
        places[wide] = _places(frame.iloc[wide], hull, "wide bounds", progress)
        computed[wide] = True
    places[~computed] = _places(frame[~computed], hull.deciding((METASTABLE,)), "verdicts", progress)
    low, high = _bounds(frame, hull)
    return {
        "relaxed": [place.e_above_hull for place in places],
        "computed": computed,
        "lowest": low,
        "highest": high,
        "competing": [" ".join(f"{f}:{place.ids.get(f, '')}" for f in place.decomposition) for place in places],
        "message": [place.message for place in places],
    }


def _bounds(frame: pd.DataFrame, hull: DemandHull) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.array(hull.bounds(frame["pretty_formula"].tolist(), frame["energy"].tolist())).T
    return low, high


def _widest(frame: pd.DataFrame, hull: DemandHull, computed: np.ndarray, within: float) -> list[int]:
    """Rows to compute next: those whose error is known least; none where the mean error is known well enough."""
    low, high = (np.maximum(bound, 0.0) for bound in _bounds(frame, hull))
    least, most = _errors(frame["published"].to_numpy(dtype=float), low, high)
    spread = np.nan_to_num(most - least)
    if spread.mean() <= within:
        return []
    order = np.argsort(-spread, kind="stable")
    return [int(row) for row in order if spread[row] > 0 and not computed[row]][:CHUNK]


def _errors(published: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least and largest absolute error of distances between two bounds, eV/atom."""
    least = np.maximum(np.maximum(low - published, published - high), 0.0)
    return least, np.maximum(np.abs(low - published), np.abs(high - published))


def _places(frame: pd.DataFrame, hull: DemandHull, stage: str, progress: Progress | None) -> list[HullResult]:
    """Where each crystal lies; the phases of some crystals are computed side by side, then those of the next."""
    places: list[HullResult] = []
    for start in range(0, len(frame), CHUNK):
        part = frame.iloc[start : start + CHUNK]
        places += hull.batch(part["pretty_formula"].tolist(), part["energy"].tolist(), hull.energy_type)
        if progress is not None:
            progress(stage, len(places), len(frame), {"phases": float(len(hull.computed))})
    return places


def _results(frame: pd.DataFrame, hulls: Mapping[str, DemandHull], former: Path | None) -> dict[str, Any]:
    import pandas as pd

    earlier = None
    if former is not None:
        earlier = pd.read_csv(former, keep_default_na=False, na_values=[""]).set_index("material_id")
    results: dict[str, Any] = {}
    for end, hull in hulls.items():
        name = f"relaxed{end}"
        exact = frame[frame[f"computed{end}"]]
        told = compare(exact, name) if len(exact) else {}
        results[name] = told | {
            "phases": len(hull.computed),  # relaxed for these crystals; the others were in the shipped table
            "looked_at": len(hull.points),  # energies of phases as they stand
            "with_a_note": int((exact[f"message{end}"] != "").sum()),
        }
        results[f"verdicts{end}"] = _verdicts(frame, end)
        if earlier is not None and name in earlier:
            theirs = earlier[name].reindex(frame["material_id"]).to_numpy(dtype=float)
            by_both = frame[np.isfinite(theirs)].assign(former=theirs[np.isfinite(theirs)])
            results |= _beside(by_both, name, end)
    results["relaxations"] = {
        "statuses": dict(Counter(frame["status"])),
        "seconds_each": float(frame["seconds"].mean()),
    }
    return results


def _beside(by_both: pd.DataFrame, name: str, end: str) -> dict[str, Any]:
    """The same crystals by this potential and by the former: distances where computed here, verdicts of all."""
    results: dict[str, Any] = {}
    exact = by_both[by_both[f"computed{end}"] & by_both[name].notna()]
    if len(exact):
        results[f"same_crystals{end}"] = compare(exact, name)
        results[f"former_{name}"] = compare(exact, "former")
    if len(by_both):
        for key, column in ((f"same_verdicts{end}", name), (f"former_verdicts{end}", "former")):
            results[key] = {of: value for of, value in compare(by_both, column).items() if of in VERDICT}
    return results


def _verdicts(frame: pd.DataFrame, end: str) -> dict[str, Any]:
    """All crystals: on which side of the threshold, and how large the error is at least and at most."""
    names = ("published", f"lowest{end}", f"highest{end}")
    published, low, high = (frame[name].to_numpy(dtype=float) for name in names)
    least, most = _errors(published, low, high)
    clipped = _errors(published, np.maximum(low, 0.0), np.maximum(high, 0.0))
    all_ = compare(frame, f"relaxed{end}")
    errors = {"mae_least": least, "mae_most": most, "mae_clipped_least": clipped[0], "mae_clipped_most": clipped[1]}
    errors |= {"mae_lower": np.abs(low - published), "between": high - low}
    means = {name: float(np.nanmean(values)) for name, values in errors.items()}
    return {name: all_[name] for name in VERDICT} | means


def _write(output: Path, frame: pd.DataFrame, record: dict[str, Any]) -> dict[str, Any]:
    judged = ["relaxed", "computed", "lowest", "highest", "competing", "message"]
    columns = ["material_id", "pretty_formula", "energy", "status", "steps"]
    columns += [f"{name}{end}" for end in ("", FULL) for name in judged if f"{name}{end}" in frame]
    text = frame[columns].to_csv(index=False, float_format="%.5f", lineterminator="\n")  # none of the source's numbers
    write_text(output / "table.csv", text)
    return write_benchmark(output, record | {"files": files_of([output / "table.csv"])})
