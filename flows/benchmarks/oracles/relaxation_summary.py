"""From relaxations by several variants to numbers: how fast, and whether they end in the same crystals."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from flows.benchmarks.harness import files_of, write_benchmark
from loop.io.files import write_text
from loop.values import OK

BASELINE = "ase-"
SAME_ENERGY = 0.002  # eV/atom
FEWEST = 5  # chunks from which an interval is given
MARGIN = 0.002  # eV/atom by which another basin is higher or lower


def summarise(output: Path, rows: list[dict[str, Any]], about: dict[str, Any]) -> dict[str, Any]:
    """The record; writes ``record.json``, ``crystals.csv`` and ``speed.png``."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    by_variant = {name: [row for row in rows if row["variant"] == name] for name in variants}
    results: dict[str, Any] = {name: _one(found) for name, found in by_variant.items()}
    for name in [name for name in variants if name.startswith(BASELINE)]:
        for ours in [ours for ours in variants if not ours.startswith(BASELINE)]:
            results[f"{ours} against {name}"] = _against(_pairs(by_variant, ours, name), about["settings"]["chunk"])
    # how far ASE agrees with itself: what no other program can be expected to exceed
    for one, other in combinations([name for name in variants if name.startswith(BASELINE)], 2):
        results[f"{one} against {other}"] = _against(_pairs(by_variant, one, other), about["settings"]["chunk"])
    record = {
        "benchmark": "relaxation", **about,
        "units": {"cpu_seconds": "s", "wall_seconds": "s", "energy": "eV/atom"}, "results": results,
    }  # fmt: skip
    if rows:
        _write_table(output / "crystals.csv", by_variant)
        _figure(output / "speed.png", by_variant, "wall" if about["settings"]["device"].startswith("cuda") else "cpu")
    record["files"] = files_of(output / name for name in ("crystals.csv", "speed.png") if rows)
    return write_benchmark(output, record)


def _pairs(by_variant: dict[str, list[dict[str, Any]]], one: str, other: str) -> list[tuple[dict, dict]]:
    """Rows of the crystals that both variants have done."""
    there = {row["crystal"]: row for row in by_variant[other]}
    return [(row, there[row["crystal"]]) for row in by_variant[one] if row["crystal"] in there]


def _one(rows: list[dict[str, Any]]) -> dict[str, Any]:
    cpu, wall = (sum(row[name] for row in rows) for name in ("cpu_seconds", "wall_seconds"))
    return {
        "crystals": len(rows),
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "crystals_per_cpu_minute": 60 * len(rows) / cpu,
        "crystals_per_minute": 60 * len(rows) / wall,
        "steps": sum(row["steps"] for row in rows),
        "statuses": dict(Counter(row["status"] for row in rows)),
    }


def _against(pairs: list[tuple[dict[str, Any], dict[str, Any]]], chunk: int) -> dict[str, Any]:
    """Ratios of seconds with intervals over chunks of crystals, and how the ends differ."""
    if not pairs:
        return {}
    verdicts = Counter(compare(one, other) for one, other in pairs)
    ratios: dict[str, Any] = {}
    for clock in ("cpu", "wall"):
        chunks = _by_chunk(pairs, f"{clock}_seconds", chunk)
        draws = chunks[np.random.default_rng(0).integers(len(chunks), size=(2000, len(chunks)))].sum(axis=1)
        interval = np.percentile(draws[:, 1] / draws[:, 0], [2.5, 97.5]).tolist() if len(chunks) >= FEWEST else None
        ratios[f"speedup_{clock}"] = float(chunks[:, 1].sum() / chunks[:, 0].sum())
        ratios[f"speedup_{clock}_95"] = interval
    return {
        "crystals": len(pairs),
        **ratios,
        "ends": dict(verdicts.most_common()),
        "same": sum(verdicts[kind] for kind in ("same", "same failure")) / len(pairs),
    }


def _by_chunk(pairs: list[tuple[dict[str, Any], dict[str, Any]]], name: str, chunk: int) -> np.ndarray:
    """Seconds of each chunk, shape (chunks, 2)."""
    sums: dict[int, np.ndarray] = {}
    for one, other in pairs:
        key = one["crystal"] // chunk
        sums[key] = sums.get(key, np.zeros(2)) + np.array([one[name], other[name]])
    return np.array(list(sums.values()))


def compare(one: dict[str, Any], other: dict[str, Any]) -> str:
    """How the end of a crystal by one variant differs from that by another, in words."""
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure

    if OK not in (one["status"], other["status"]):
        return "same failure"
    if one["status"] != other["status"]:
        return "only here" if one["status"] == OK else "only there"
    apart = one["energy"] - other["energy"]
    first, second = (Structure.from_dict(row["structure"]) for row in (one, other))
    fits = bool(StructureMatcher(attempt_supercell=True).fit(first, second))
    if abs(apart) <= SAME_ENERGY:
        return "same" if fits else "same energy, other crystal by StructureMatcher"
    return f"{'same crystal by StructureMatcher, ' if fits else ''}{'lower' if apart < -MARGIN else 'higher'} here"


def _write_table(path: Path, by_variant: dict[str, list[dict[str, Any]]]) -> None:
    import pandas as pd

    columns: dict[str, Any] = {}
    for name, rows in by_variant.items():
        for column in ("status", "energy", "steps"):
            columns[f"{name} {column}"] = pd.Series({row["crystal"]: row[column] for row in rows})
    ours = next(iter(by_variant))
    for name in [name for name in by_variant if name.startswith(BASELINE)]:
        ends = {one["crystal"]: compare(one, other) for one, other in _pairs(by_variant, ours, name)}
        columns[f"against {name}"] = pd.Series(ends)
    frame = pd.DataFrame(columns)
    write_text(path, frame.to_csv(index_label="crystal", float_format="%.5f", lineterminator="\n"))


def _figure(path: Path, by_variant: dict[str, list[dict[str, Any]]], clock: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axis = figure.subplots()
    rates = [60 * len(rows) / sum(row[f"{clock}_seconds"] for row in rows) for rows in by_variant.values()]
    bars = axis.barh(list(by_variant), rates, color=["tab:blue", "tab:cyan", "tab:grey", "tab:grey"][: len(rates)])
    axis.bar_label(bars, fmt="%.1f", padding=3)
    axis.invert_yaxis()
    axis.set(xlabel=f"crystals relaxed in a minute ({clock} time)", xlim=(0, 1.15 * max(rates, default=1)))
    figure.savefig(path, dpi=130)
