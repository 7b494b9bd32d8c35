"""Benchmark of the oracle's hull: distances found for crystals of the test split against the published ones."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.harness import write_benchmark
from flows.journal import Journal
from flows.tables.screening import relax_all, relax_settings
from loop.contracts import Progress
from loop.errors import InputError
from loop.io.files import make_folder, sha256, write_text
from loop.stability import METASTABLE, REFUSED
from loop.values import OK

if TYPE_CHECKING:
    import pandas as pd

    from loop.hull import Hull
    from oracles.potentials.base import Potential
    from oracles.references.table import References
    from oracles.relax import RelaxConfig

LARGEST = 20  # atoms per cell
PROTOCOL = (
    "Crystals of the test split with at most 20 atoms per cell. Hull: reference phases without any formula of the test "
    "split, as they stand for `unrelaxed`, relaxed where the table is for `relaxed`; elements are the lowest of their "
    "prototypes in all. `nitrides` and `hydrides` hold the element. `former` is the same crystals in the table of an "
    "earlier run, judged by the references of then. Published distances refer to a DFT hull that holds the crystal "
    "itself, so they are never negative; found ones are, for a crystal below its competitors. `clipped` sets them to "
    "0. `full_hull` adds the formulas of the test split to the hull, as the table ships."
)


@dataclass(frozen=True)
class Arrays:
    """Published and found distances from the hull, eV/atom, shape (n,); NaN where none was found."""

    published: np.ndarray
    found: np.ndarray


def run(
    output: Path,
    n: int,
    data: Sequence[Path],
    relax: bool = True,
    *,
    seed: int = 0,
    potential: str = "chgnet",
    former: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare, and write ``record.json``, ``table.csv`` and ``parity.png``. A killed run resumes its relaxations.

    Args:
        output: folder.
        n: crystals to relax, drawn with `seed`.
        data: CSVs with columns cif, split, pretty_formula, n_atoms, e_above_hull (eV/atom).
        relax: whether to relax at all; the unrelaxed comparison takes all rows.
        seed: of the draw.
        potential: name of the potential; the shipped references belong to ``chgnet``.
        former: table.csv of an earlier run, to put its figures beside.
        progress: told of stages.

    Returns:
        The record.

    Raises:
        InputError: no row to test on.
        EnergyTypeError: references and potential do not belong together.
    """
    from oracles.potentials.loading import load_potential
    from oracles.references.table import load_references
    from oracles.relax import RelaxConfig

    began = time.perf_counter()
    frame = rows_of_test(data)
    make_folder(output)
    loaded, references = load_potential(potential), load_references()
    frame = frame.assign(**_unrelaxed(frame, loaded, _hulls(references, relaxed=False), progress))
    results = {name: compare(frame, name) for name in ("unrelaxed", "unrelaxed_full_hull")}
    results["unrelaxed_not_sparse"] = compare(frame[~frame["sparse"].to_numpy(dtype=bool)], "unrelaxed")
    config = RelaxConfig()
    if relax:
        chosen = frame.sample(min(n, len(frame)), random_state=seed).index
        with Journal(output / "table.csv", {**relax_settings(loaded, config), "seed": seed}) as journal:
            columns = _relaxed(frame.loc[chosen], (loaded, config), references, progress, journal)
        for name, values in columns.items():
            frame.loc[chosen, name] = values
        part = frame.loc[chosen]
        results["relaxed"] = compare(part, "relaxed")
        results["relaxed"] |= {"statuses": dict(Counter(part["status"])), "seconds_each": float(part["seconds"].mean())}
        results["relaxed_full_hull"] = compare(part, "relaxed_full_hull")
        results["relaxed_rows_unrelaxed"] = compare(part, "unrelaxed")
        results["relaxed_settled"] = compare(part[part["unrelaxed_phases"] == 0], "relaxed")
    results |= _apart(frame, former, relax)
    record = _record(results, loaded, references, {"n": n, "seed": seed, "relax": asdict(config) if relax else None})
    record["seconds"] = round(time.perf_counter() - began, 1)
    return _write(output, frame, record)


def _hulls(references: References, *, relaxed: bool) -> list[Hull]:
    """Without the test split's formulas, and with them."""
    return [references.hull(with_held_out=with_them, relaxed=relaxed) for with_them in (False, True)]


def _apart(frame: pd.DataFrame, former: Path | None, relax: bool) -> dict[str, Any]:
    """Nitrides and hydrides by themselves, now and in an earlier run's table."""
    import pandas as pd
    from pymatgen.core import Composition

    names = ["unrelaxed", "relaxed"] if relax else ["unrelaxed"]
    if former is not None:
        earlier = pd.read_csv(former, keep_default_na=False, na_values=[""]).set_index("material_id")
        for name in names:
            frame[f"former_{name}"] = earlier[name].reindex(frame["material_id"]).to_numpy()
        names += [f"former_{name}" for name in names]
    held = [set(Composition(formula).get_el_amt_dict()) for formula in frame["pretty_formula"]]
    results = {}
    for name in names:
        # the same crystals are compared now and then
        done = (
            np.isfinite(frame["relaxed"])
            if name.endswith("_relaxed") or name == "relaxed"
            else np.isfinite(frame["unrelaxed"])
        )
        if name.startswith("former_"):
            results[name] = compare(frame[done], name)
        for kind, symbol in (("nitrides", "N"), ("hydrides", "H")):
            part = frame[done & np.array([symbol in elements for elements in held])]
            if len(part) and np.isfinite(part[name]).any():
                results[f"{name}_{kind}"] = compare(part, name)
    return results


def compare(frame: pd.DataFrame, column: str) -> dict[str, Any]:
    """`metrics` of a column against `published`."""
    return metrics(Arrays(frame["published"].to_numpy(dtype=float), frame[column].to_numpy(dtype=float)))


def metrics(arrays: Arrays) -> dict[str, float]:
    """Errors in eV/atom and the confusion at `METASTABLE`; a crystal without a finding counts as not stable.

    Raises:
        InputError: nothing was found at all.
    """
    finite = np.isfinite(arrays.found)
    if not finite.any():
        raise InputError("expected at least one crystal with a distance from the hull, found none")
    error = arrays.found[finite] - arrays.published[finite]
    clipped = np.maximum(arrays.found[finite], 0.0) - arrays.published[finite]
    truly, said = arrays.published <= METASTABLE, finite & (arrays.found <= METASTABLE)
    hits, false = int((truly & said).sum()), int((~truly & said).sum())
    missed = int((truly & ~said).sum())
    return {
        "rows": len(finite),
        "found": int(finite.sum()),
        "mae": float(np.abs(error).mean()),
        "median_absolute_error": float(np.median(np.abs(error))),
        "mae_clipped": float(np.abs(clipped).mean()),
        "bias": float(error.mean()),
        "true_positives": hits,
        "false_positives": false,
        "false_negatives": missed,
        "true_negatives": len(finite) - hits - false - missed,
        "precision": hits / max(hits + false, 1),
        "recall": hits / max(hits + missed, 1),
        "accuracy": float((truly == said).mean()),
        "prevalence": float(truly.mean()),
        "lowest_found": float(np.nanmin(arrays.found)),
        "below_-0.2": int((arrays.found[finite] < -0.2).sum()),
        "below_-0.5": int((arrays.found[finite] < REFUSED).sum()),
    }


def rows_of_test(data: Sequence[Path]) -> pd.DataFrame:
    """Crystals of the test split that are small enough; the published distance is column `published`.

    Raises:
        InputError: there are none, or a column is missing.
    """
    import pandas as pd

    from loop.io.crystals import read_frame

    frames = [read_frame(Path(path))[0] for path in data]
    frame = pd.concat(frames, ignore_index=True)
    missing = {"split", "n_atoms", "e_above_hull", "material_id", "pretty_formula"} - set(frame)
    if missing:
        raise InputError(f"expected columns {', '.join(sorted(missing))} in {', '.join(map(str, data))}")
    for name in ("n_atoms", "e_above_hull"):  # cells come as text
        frame[name] = pd.to_numeric(frame[name], errors="coerce")
    frame = frame[(frame["split"] == "test") & (frame["n_atoms"] <= LARGEST) & frame["e_above_hull"].notna()]
    if frame.empty:
        raise InputError(f"expected rows of the test split in {', '.join(map(str, data))}, found none")
    return frame.rename(columns={"e_above_hull": "published"}).reset_index(drop=True)


def structures_of(frame: pd.DataFrame) -> list[Any]:
    """Those of column `cif`."""
    from loop.io.cif import read_cif

    return [read_cif(text).structure for text in frame["cif"]]


def _place(structures: Sequence[Any], energies: np.ndarray, hulls: Sequence[Hull], name: str) -> dict[str, Any]:
    """Distances from the hull without the test split's formulas, and from the hull of all."""
    compositions = [structure.composition for structure in structures]
    without, full = (hull.batch(compositions, energies, hull.energy_type) for hull in hulls)
    return {
        name: [place.e_above_hull for place in without],
        f"{name}_full_hull": [place.e_above_hull for place in full],
        "sparse": [place.sparse for place in without],
    }


def _unrelaxed(
    frame: pd.DataFrame, potential: Potential, hulls: Sequence[Hull], progress: Progress | None
) -> dict[str, Any]:
    structures = structures_of(frame)
    energies = np.full(len(structures), np.nan)
    for start in range(0, len(structures), 256):
        energies[start : start + 256] = potential.energies(structures[start : start + 256])
        if progress is not None:
            progress("single points", min(start + 256, len(structures)), len(structures), {})
    return _place(structures, energies, hulls, "unrelaxed")


def _relaxed(
    frame: pd.DataFrame,
    how: tuple[Potential, RelaxConfig],
    references: References,
    progress: Progress | None,
    journal: Journal,
) -> dict[str, Any]:
    """Relax; what the journal of a killed run holds is not relaxed again."""
    structures = structures_of(frame)
    outcomes = relax_all(structures, *how, progress, journal)
    energies = np.array([outcome.energy if outcome.status == OK else np.nan for outcome in outcomes])
    hulls = _hulls(references, relaxed=True)
    columns = _place(structures, energies, hulls, "relaxed")
    columns.pop("sparse")  # as found before
    compositions = [structure.composition for structure in structures]
    places = hulls[0].batch(compositions, energies, hulls[0].energy_type)
    columns["unrelaxed_phases"] = [len(references.not_relaxed & place.decomposition.keys()) for place in places]
    columns["status"] = [outcome.status for outcome in outcomes]
    columns["steps"] = [outcome.steps for outcome in outcomes]
    columns["seconds"] = [outcome.seconds for outcome in outcomes]
    return columns


def _record(
    results: dict[str, Any], potential: Potential, references: References, settings: dict[str, Any]
) -> dict[str, Any]:
    return {
        "benchmark": "references",
        "protocol": PROTOCOL,
        "threshold": METASTABLE,
        "units": {"mae": "eV/atom", "bias": "eV/atom", "seconds": "s", "precision": "fraction", "recall": "fraction"},
        "potential": {"name": potential.name, "energy_type": asdict(potential.energy_type)},
        "references": {
            "rows": len(references),
            "relaxed": len(references) - len(references.not_relaxed),
            "sha256": references.checksum,
        },
        "settings": settings,
        "attribution": references.provenance.get("attribution", ""),
        "results": results,
    }


def _write(output: Path, frame: pd.DataFrame, record: dict[str, Any]) -> dict[str, Any]:
    columns = ["material_id", "pretty_formula", "unrelaxed", "unrelaxed_full_hull", "sparse"]
    columns += ["relaxed", "relaxed_full_hull", "unrelaxed_phases", "status", "steps"]
    table = frame[[name for name in columns if name in frame]]  # only what was found here, none of the source's numbers
    write_text(output / "table.csv", table.to_csv(index=False, float_format="%.5f", lineterminator="\n"))
    _figure(output / "parity.png", frame, record["results"])
    record["files"] = [{"file": name, "sha256": sha256(output / name)} for name in ("table.csv", "parity.png")]
    return write_benchmark(output, record)


def _figure(path: Path, frame: pd.DataFrame, results: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    names = [name for name in ("unrelaxed", "relaxed") if name in results]
    figure = Figure(figsize=(5 * len(names), 4.6), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        axis.scatter(frame["published"], frame[name], s=6, alpha=0.4, edgecolors="none")
        axis.plot([0, 1], [0, 1], color="grey", linewidth=1)
        axis.axhline(METASTABLE, color="tab:red", linewidth=0.7)
        axis.axvline(METASTABLE, color="tab:red", linewidth=0.7)
        found = results[name]
        axis.set(
            xlim=(-0.02, 1), ylim=(-0.4, 1.2), xlabel="published $E_\\mathrm{hull}$ (eV/atom)",
            ylabel=f"{name} $E_\\mathrm{{hull}}$ (eV/atom)",
            title=f"{found['found']} crystals, MAE {found['mae']:.3f}, precision {found['precision']:.2f}, "
            f"recall {found['recall']:.2f}",
        )  # fmt: skip
        axis.title.set_fontsize(9)
    figure.savefig(path, dpi=130)
