"""Figures of the evaluation of generated crystals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows import evaluation_distances as distances
from loop.stability import METASTABLE

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

SYSTEMS = {"tricl.": 2, "monocl.": 15, "orthorh.": 74, "tetrag.": 142, "trig.": 167, "hexag.": 194, "cubic": 230}


def draw(structures: Sequence[Structure], known: Sequence[Structure], rows: pd.DataFrame, path: Path) -> None:
    """Density, number of elements, crystal systems, elements, and distances from the hull, unrelaxed and relaxed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    sides = [("samples", structures), *([("reference", known)] if known else [])]
    _histogram(axes[0], {name: [distances.density(s)[0] for s in side] for name, side in sides}, 40)
    axes[0].set_xlabel("density (g/cm$^3$)")
    counts = {name: [distances.n_elements(s)[0] for s in side] for name, side in sides}
    most = max((max(part, default=1) for part in counts.values()), default=1)
    _histogram(axes[1], counts, np.arange(0.5, most + 1))
    axes[1].set_xlabel("elements in a crystal")
    _systems(axes[2], {name: [distances.space_group(s) for s in side] for name, side in sides})
    _elements(axes[3], {name: [symbol for s in side for symbol in distances.symbols(s)] for name, side in sides})
    for axis, column, label in (
        (axes[4], "e_above_hull", "unrelaxed"),
        (axes[5], "e_above_hull_relaxed", "relaxed"),
    ):
        if column in rows and rows[column].notna().any():
            axis.hist(np.clip(rows[column].dropna(), -0.5, 2), bins=50)
            axis.axvline(METASTABLE, color="black", lw=1)
            axis.set(xlabel=f"energy above the hull, {label} (eV/atom)", ylabel="crystals")
        else:
            axis.set_axis_off()
    axes[0].legend()
    figure.savefig(path, dpi=130)


def _histogram(axis: Any, sides: Mapping[str, Sequence[float]], bins: Any) -> None:
    values = [value for part in sides.values() for value in part]
    edges = np.histogram_bin_edges(values, bins) if isinstance(bins, int) else bins
    for name, part in sides.items():
        axis.hist(part, bins=edges, density=True, histtype="stepfilled", alpha=0.5, label=name)


def _systems(axis: Any, sides: dict[str, list[int]]) -> None:
    """Shares of the crystal systems."""
    edges = [0, *SYSTEMS.values()]
    for k, (name, groups) in enumerate(sides.items()):
        shares = np.histogram(groups, bins=np.array(edges) + 0.5)[0] / max(1, len(groups))
        axis.bar(np.arange(len(SYSTEMS)) + 0.4 * k, shares, width=0.4, alpha=0.6, label=name)
    axis.set_xticks(np.arange(len(SYSTEMS)) + 0.2, SYSTEMS, rotation=30)
    axis.set_ylabel("share")


def _elements(axis: Any, sides: dict[str, list[str]]) -> None:
    """Shares of the elements among the mentions of elements, commonest first."""
    counts = {name: Counter(part) for name, part in sides.items()}
    common = [symbol for symbol, _ in list(counts.values())[-1].most_common(24)]
    for k, (name, count) in enumerate(counts.items()):
        total = max(1, sum(count.values()))
        axis.bar(np.arange(len(common)) + 0.4 * k, [count[s] / total for s in common], 0.4, alpha=0.6, label=name)
    axis.set_xticks(np.arange(len(common)) + 0.2, common, fontsize=7)
    axis.set_ylabel("share")
