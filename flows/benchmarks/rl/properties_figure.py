"""Table and figure of the benchmark of two properties."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flows.benchmarks.rl.properties_front import SEEN_BY, TOP, front_of, points_of
from flows.benchmarks.rl.variants import BASE

COLOURS = {BASE: "#8a8a8a", "tuned": "#2f6fb0", "no-novelty": "#c8641e"}
TITLES = {"surrogate": "by the reward's surrogates", "forest": "by forests of the composition"}
TITLES |= {"megnet": "gap by MEGNet, constant by the forest"}
SHARES = (
    "structure_valid",
    "accepted",
    "metastable",
    "counting",
    "counting_new",
    "unique",
    "known",
    "known_of_counting",
)


def table(summary: dict[str, Any]) -> str:
    """One line per arm and judge, as CSV."""
    rows = []
    for judge, arms in summary["fronts"].items():
        for name, entry in arms.items():
            row: dict[str, Any] = {"judge": judge, "variant": name}
            for key in ("hypervolume", "ratio", "hypervolume_new", "ratio_new"):
                row |= {f"{key}{tail}": round(entry[key][part], 3) for tail, part in _PARTS.items()}
            row |= {
                key: round(entry[key], 3) for key in ("dominated", "dominates_back", "mean_area", "mean_area_known")
            }
            row["gain_by_known"] = entry["gain_by_known"]
            for key in ("front", f"top{TOP}"):
                row[f"{key}_known_percent"] = round(100 * entry[f"{key}_known"]["value"], 1)
            shares = summary["shares"][name]
            row |= {f"{key}_percent": round(100 * shares[key]["value"], 1) for key in SHARES}
            rows.append(row)
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n", float_format="%.3f")


_PARTS = {"": "value", "_low": "low", "_high": "high"}


def draw_fronts(arms: dict[str, list[pd.DataFrame]], path: Path) -> None:
    """All samples that count and the front of each arm, one panel per judge; known crystals are hollow."""
    from matplotlib.figure import Figure

    some = arms[BASE][0]
    judges = [judge for judge, columns in SEEN_BY.items() if set(columns) <= set(some.columns)]
    figure = Figure(figsize=(5.2 * len(judges), 4.8), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(judges), sharex=True, sharey=True))
    for axis, judge in zip(axes, judges, strict=True):
        for name, frames in arms.items():
            rows = pd.concat(frames)
            colour = COLOURS.get(name, "#3a923a")
            points, known = points_of(rows, judge), rows["known"].to_numpy(bool)
            for some_, face in ((~known, colour), (known, "none")):
                axis.scatter(points[some_, 0], np.exp(points[some_, 1]), s=9, lw=0.5, ec=colour, fc=face, alpha=0.35)
            front, _ = front_of(rows, judge)
            if len(front):
                edge = np.vstack([[0, front[0, 1]], front, [front[-1, 0], 0]])
                axis.step(edge[:, 0], np.exp(edge[:, 1]), where="pre", color=colour, lw=1.8, label=name)
        axis.set(yscale="log", title=TITLES[judge], xlabel="band gap (eV)")
        axis.set_xlim(left=0)
        axis.set_yticks([1, 2, 3, 5, 10, 20], ["1", "2", "3", "5", "10", "20"])
    axes[0].set_ylabel("electronic dielectric constant")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=130)
