"""Simulated campaigns as numbers with intervals, a table and a figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flows.benchmarks.dielectric.arms import CLOSED, PAPER, RANDOM
from loop.metrics import bootstrap_mean

if TYPE_CHECKING:
    from flows.benchmarks.dielectric.simulated import Cell, DielectricConfig

COLOURS = {CLOSED: "C0", PAPER: "C1", RANDOM: "0.5"}
WORDS = {"best": "best merit (eV)", "above": "crystals above the lesson's 99th percentile"}


def at(found: Mapping[str, Any], key: str, evaluations: np.ndarray) -> np.ndarray:
    """``best`` or ``above`` when so many evaluations (m,) were spent; 0 before the first."""
    steps = np.searchsorted(np.array(found["cost"]), evaluations + 1e-9, side="right")
    values = np.concatenate([[0.0], np.asarray(found[key], dtype=float)])
    return values[steps]


def summarise(outcomes: Mapping[Cell, Mapping[str, Any]], config: DielectricConfig) -> dict[str, Any]:
    """By world and arm: at half of the budget and at its end, and the difference of the closed loop to each other."""
    found: dict[str, Any] = {}
    for world in config.worlds:
        own = {cell: value for cell, value in outcomes.items() if cell.world == world}
        first = {cell.seed: value for cell, value in own.items()}
        found[world] = {"pool": [value["pool"] for value in first.values()]}
        found[world] |= {key: [round(v[key], 3) for v in first.values()] for key in ("threshold", "best_there")}
        found[world]["above_there"] = [value["above_there"] for value in first.values()]
        for arm in config.arms:
            runs = {cell.seed: value for cell, value in own.items() if cell.arm == arm}
            base = {cell.seed: value for cell, value in own.items() if cell.arm == CLOSED}
            found[world][arm] = _arm(runs, base if arm != CLOSED else {}, config)
    return found


def _arm(runs: Mapping[int, Any], closed: Mapping[int, Any], config: DielectricConfig) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for name, evaluations in (("half", config.evaluations / 2), ("end", float(config.evaluations))):
        for key in ("best", "above"):
            values = {seed: float(at(run, key, np.array([evaluations]))[0]) for seed, run in runs.items()}
            entry[f"{key}_{name}"] = asdict(bootstrap_mean(list(values.values())))
            pairs = [
                float(at(closed[seed], key, np.array([evaluations]))[0]) - value
                for seed, value in values.items()
                if seed in closed
            ]
            if pairs:
                entry[f"closed_minus_this_{key}_{name}"] = asdict(bootstrap_mean(pairs))
    entry["crystals_with_both"] = float(np.mean([sum(s != "gap" for s in run["step"]) for run in runs.values()]))
    entry["crystals_begun"] = float(np.mean([sum(s != "dielectric" for s in run["step"]) for run in runs.values()]))
    entry["seconds"] = float(np.mean([run["seconds"] for run in runs.values()]))
    return entry


def curves_table(outcomes: Mapping[Cell, Mapping[str, Any]], config: DielectricConfig) -> str:
    """``curves.csv``: best and number above the threshold after each evaluation, campaign by campaign."""
    grid = np.arange(1.0, config.evaluations + 1)
    rows = [
        {"world": cell.world, "arm": cell.arm, "seed": cell.seed, "evaluations": n, "best": best, "above": above}
        for cell, run in outcomes.items()
        for n, best, above in zip(grid, at(run, "best", grid), at(run, "above", grid), strict=True)
    ]
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.5g", lineterminator="\n")


def draw(outcomes: Mapping[Cell, Mapping[str, Any]], config: DielectricConfig, path: Path) -> None:
    """Curves of all arms, mean over seeds with its 95 % interval, a row a world."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    grid = np.arange(1.0, config.evaluations + 1)
    figure, axes = plt.subplots(len(config.worlds), 2, figsize=(9, 3.6 * len(config.worlds)), squeeze=False)
    for line, world in zip(axes, config.worlds, strict=True):
        for axis, key in zip(line, ("above", "best"), strict=True):
            for place, arm in enumerate(config.arms):
                curves = np.array([at(r, key, grid) for c, r in outcomes.items() if (c.world, c.arm) == (world, arm)])
                colour = COLOURS.get(arm, f"C{place + 2}")
                axis.plot(grid, curves.mean(axis=0), label=arm, color=colour)
                points = [bootstrap_mean(column.tolist()) for column in curves.T[::4]]
                axis.fill_between(
                    grid[::4], [p.low for p in points], [p.high for p in points], color=colour, alpha=0.15, lw=0
                )
            axis.set(xlabel="evaluations (gap and constant)", ylabel=WORDS[key], title=f"{world} split")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
