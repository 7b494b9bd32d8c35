"""Pictures of the best crystals that DFT verified: the crystals themselves, and their phase diagrams."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from oracles.references.table import References

if TYPE_CHECKING:
    from pymatgen.core import Structure

SHOWN = 6  # crystals
# Okabe and Ito's, which the colour-blind tell apart; ASE's own have calcium and chlorine in two greens
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")


def draw_crystals(found: pd.DataFrame, structures: dict[str, Structure], path: Path) -> None:
    """The best by merit: their conventional cell along a slanted axis, its elements in a legend, what was found."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from ase.visualize.plot import plot_atoms
    from pymatgen.io.ase import AseAtomsAdaptor
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

    best = found[found["merit"].notna()].head(SHOWN)
    figure, axes = plt.subplots(1, max(1, len(best)), figsize=(3.1 * max(1, len(best)), 3.6), squeeze=False)
    for axis, row in zip(axes[0], best.to_dict("records"), strict=False):
        cell = SpacegroupAnalyzer(structures[row["id"]], symprec=0.05).get_conventional_standard_structure()
        colours = {element.symbol: COLOURS[place % len(COLOURS)] for place, element in enumerate(cell.composition)}
        shown = [colours[site.specie.symbol] for site in cell]
        plot_atoms(AseAtomsAdaptor.get_atoms(cell), axis, radii=0.4, rotation="-80x,-20y,5z", colors=shown)
        for symbol, colour in colours.items():
            axis.scatter([], [], color=colour, edgecolors="k", label=symbol)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(colours), frameon=False, fontsize=8)
        axis.set_axis_off()
        text = f"{row['formula']}, group {row['space_group']:.0f}\ngap {row['band_gap']:.2f} eV, constant "
        axis.set_title(text + f"{row['dielectric_electronic']:.2f}\nmerit {row['merit']:.1f} eV", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_phases(found: pd.DataFrame, references: References, path: Path) -> None:
    """Phase diagrams by the potential's energies, of the best crystals of two and three elements, each system once."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from pymatgen.core import Composition

    best = found[found["merit"].notna()]
    systems: dict[str, dict[Any, Any]] = {}
    for row in best.to_dict("records"):
        elements = sorted(element.symbol for element in Composition(row["formula"]).elements)
        if len(elements) in (2, 3):
            systems.setdefault("-".join(elements), row)
    chosen = list(systems.items())[:SHOWN]
    columns = min(3, max(1, len(chosen)))
    lines = -(-max(1, len(chosen)) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.2 * columns, 3.8 * lines), squeeze=False)
    for axis, (system, row) in zip(axes.flat, chosen, strict=False):
        _diagram(axis, system.split("-"), row, references)
    for axis in axes.flat[len(chosen) :]:
        axis.remove()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _diagram(axis: Any, elements: Sequence[str], row: dict[Any, Any], references: References) -> None:
    """Known phases of a system on and above the hull, and the crystal."""
    from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
    from pymatgen.core import Composition

    entries = [
        PDEntry(composition, energy * composition.num_atoms)
        for formula, energy in zip(references.formulas, references.energies.tolist(), strict=True)
        if set((composition := Composition(formula)).chemical_system.split("-")) <= set(elements)
    ]
    diagram, ours = PhaseDiagram(entries), Composition(row["formula"])
    places = [_place(entry.composition, elements) for entry in diagram.stable_entries]
    axis.set_title(f"{row['formula']}: {row['e_above_hull']:+.3f} eV/atom", fontsize=9)
    if len(elements) == 2:
        energies = [diagram.get_form_energy_per_atom(entry) for entry in diagram.stable_entries]
        order = np.argsort([x for x, _ in places])
        axis.plot([places[i][0] for i in order], [energies[i] for i in order], "o-", color="#059669")
        here = diagram.get_hull_energy_per_atom(ours) + row["e_above_hull"]
        corners = sum(diagram.el_refs[e].energy_per_atom * ours.get_atomic_fraction(e) for e in diagram.el_refs)
        axis.plot([_place(ours, elements)[0]], [here - corners], "s", color="#2563eb")
        axis.set(xlabel=f"share of {elements[1]} in {elements[0]}-{elements[1]}", ylabel="formation energy (eV/atom)")
    else:
        for facet in diagram.facets:
            corners = np.array([_place(diagram.qhull_entries[i].composition, elements) for i in (*facet, facet[0])])
            axis.plot(*corners.T, color="0.8", lw=0.8, zorder=0)
        axis.plot(*np.array(places).T, "o", color="#059669", ms=5)
        axis.plot(*np.array([_place(ours, elements)]).T, "s", color="#2563eb")
        axis.set_axis_off()
        axis.set_aspect("equal")
    for entry, (x, y) in zip(diagram.stable_entries, places, strict=True):
        if len(elements) == 3:
            axis.annotate(
                entry.composition.reduced_formula, (x, y), fontsize=7, xytext=(2, 3), textcoords="offset points"
            )


def _place(composition: Any, elements: Sequence[str]) -> tuple[float, float]:
    """In a line or a triangle."""
    fractions = [composition.get_atomic_fraction(element) for element in elements]
    if len(elements) == 2:
        return fractions[1], 0.0
    return fractions[1] + fractions[2] / 2, fractions[2] * 3**0.5 / 2
