"""Figures of the evaluation of generated crystals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.evaluation import distances
from loop.elements import CRYSTAL_SYSTEMS
from loop.stability import METASTABLE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure
    from pymatgen.core import Structure

ELEMENTS = 20  # the commonest, which are shown
BINS = 30  # of the density
HULL_EDGES = np.linspace(-0.5, 2.0, 26)  # eV/atom; what lies outside is counted in the outermost bins
SHARE = "share of crystals"


def draw(structures: Sequence[Structure], known: Sequence[Structure], rows: pd.DataFrame, path: Path) -> None:
    """Density, number of elements, crystal systems, elements, and distances from the hull, unrelaxed and relaxed."""
    figure_of(structures, known, rows).savefig(path, dpi=130)


def figure_of(structures: Sequence[Structure], known: Sequence[Structure], rows: pd.DataFrame) -> Figure:
    """The figure; samples beside the reference where there is one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), layout="constrained")
    axes = figure.subplots(2, 3).ravel()
    sides = {f"samples ({len(structures)})": structures} | ({f"reference ({len(known)})": known} if known else {})
    _densities(axes[0], {name: [distances.density(s)[0] for s in side] for name, side in sides.items()})
    counts = {name: Counter(distances.n_elements(s)[0] for s in side) for name, side in sides.items()}
    most = max((max(count, default=1) for count in counts.values()), default=1)
    _bars(axes[1], {name: [count[n] for n in range(1, most + 1)] for name, count in counts.items()}, sides)
    _ticks(axes[1], [str(n) for n in range(1, most + 1)], "number of elements", SHARE)
    _bars(axes[2], {name: _systems(side) for name, side in sides.items()}, sides)
    _ticks(axes[2], list(CRYSTAL_SYSTEMS), "crystal system", SHARE, rotation=30)
    found = {name: Counter(symbol for s in side for symbol in distances.symbols(s)) for name, side in sides.items()}
    common = [symbol for symbol, _ in list(found.values())[-1].most_common(ELEMENTS)]
    _bars(axes[3], {name: [count[symbol] for symbol in common] for name, count in found.items()}, sides)
    _ticks(axes[3], common, f"element (the {len(common)} commonest)", "share of crystals that hold it")
    for axis, column, label in ((axes[4], "e_above_hull", "as drawn"), (axes[5], "e_above_hull_relaxed", "relaxed")):
        _hull_distances(axis, rows[column].dropna().to_numpy(dtype=float) if column in rows else np.empty(0), label)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


def _densities(axis: Any, sides: Mapping[str, Sequence[float]]) -> None:
    """Outlines over the same bins, which end where 99 % of all values lie; what is denser is in the last one."""
    values = np.array([value for part in sides.values() for value in part])
    top = np.ceil(np.percentile(values, 99)) if len(values) else 1.0
    edges = np.linspace(0, max(top, 1.0), BINS + 1)
    for name, part in sides.items():
        shares = np.histogram(np.minimum(part, edges[-1]), edges)[0] / max(1, len(part))
        axis.stairs(shares, edges, fill=True, alpha=0.35)
        axis.stairs(shares, edges, label=name, color=axis.patches[-1].get_facecolor()[:3], lw=1.5)
    axis.set(xlabel="density (g/cm$^3$)", ylabel=SHARE, xlim=(0, edges[-1]))


def _bars(axis: Any, counts: Mapping[str, Sequence[int]], sides: Mapping[str, Sequence[Any]]) -> None:
    """Shares side by side, centred on their ticks."""
    width = 0.8 / len(counts)
    for k, (name, part) in enumerate(counts.items()):
        places = np.arange(len(part)) + (k - (len(counts) - 1) / 2) * width
        axis.bar(places, np.array(part) / max(1, len(sides[name])), width, alpha=0.75)


def _ticks(axis: Any, names: Sequence[str], xlabel: str, ylabel: str, rotation: float = 0) -> None:
    slanted = {"rotation": rotation, "ha": "right", "rotation_mode": "anchor"} if rotation else {}
    axis.set_xticks(range(len(names)), names, fontsize=8 if len(names) > 10 else None, **slanted)
    axis.set(xlabel=xlabel, ylabel=ylabel)


def _systems(structures: Sequence[Structure]) -> list[int]:
    """Crystals of each system."""
    edges = np.array([0, *CRYSTAL_SYSTEMS.values()]) + 0.5
    return np.histogram([distances.space_group(structure) for structure in structures], edges)[0].tolist()


def _hull_distances(axis: Any, above: np.ndarray, label: str) -> None:
    """Distances from the hull with the line of metastability."""
    axis.set(xlabel=f"energy above the hull, {label} (eV/atom)", ylabel="crystals")
    if not len(above):
        axis.text(0.5, 0.5, "not measured", transform=axis.transAxes, ha="center", color="0.4")
        axis.set(xticks=[], yticks=[])
        return
    axis.stairs(np.histogram(np.clip(above, HULL_EDGES[0], HULL_EDGES[-1]), HULL_EDGES)[0], HULL_EDGES, fill=True)
    axis.axvline(METASTABLE, color="black", lw=1, label=f"{METASTABLE:g} eV/atom")
    outside = int(((above < HULL_EDGES[0]) | (above > HULL_EDGES[-1])).sum())
    told = f"\n{outside} of them beyond the axis, in the outermost bins" if outside else ""
    axis.set_title(f"{len(above)} crystals{told}", fontsize=9)
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.legend(frameon=False)
