"""discovery-loop benchmark elasticity: elastic constants and phonons of textbook crystals against published ones."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.harness import files_of, write_benchmark
from flows.benchmarks.oracles.elasticity_strain import choose
from loop.contracts import Progress
from loop.io.files import make_folder, write_text
from loop.values import OK

if TYPE_CHECKING:
    import pandas as pd
    from ase import Atoms

    from oracles.potentials.base import Potential

SOURCES = {
    "elastic": "PBE: de Jong et al., Sci. Data 2, 150009 (2015), doi 10.1038/sdata.2015.9 (by the Materials Project, "
    "CC BY 4.0), compared with the published table",
    "optical": "measured transverse optical modes at Gamma near 300 K, rounded to 0.1 THz: Yu and Cardona, "
    "Fundamentals of Semiconductors (Si, GaAs, SiC); Kittel, Introduction to Solid State Physics (MgO, LiF, NaCl); as "
    "remembered from these books, not looked up again, but for GaAs: 273 per cm or 8.2 THz at 4 K by Hass and Henvis, "
    "J. Phys. Chem. Solids 23, 1099 (1962), and softer at room temperature",
}
PROTOCOL = (
    "Crystals from textbook prototypes near their PBE lattice constants, relaxed to 0.01 eV/A and 0.05 GPa, then six "
    "strains at four magnitudes with relaxed atoms. Compared: bulk and shear modulus (Voigt-Reuss-Hill) and C11, C12, "
    "C44 of cubic crystals, all PBE in the source. Phonons: displacements of 0.03 A in supercells of 9 A; every one of "
    "these crystals is dynamically stable. The optical mode at Gamma is without the splitting by the electric field."
)


@dataclass(frozen=True)
class Material:
    """A crystal with published values."""

    name: str
    prototype: str  # of ase.build.bulk
    lattice: tuple[float, ...]  # a, or a and c, A
    bulk: float  # GPa, VRH
    shear: float  # GPa, VRH
    cubic: tuple[float, float, float] | None = None  # C11, C12, C44, GPa
    optical: float | None = None  # THz, transverse at Gamma


MATERIALS = (
    Material("Si", "diamond", (5.469,), 83.0, 61.2, (144, 53, 75), 15.5),
    Material("SiC", "zincblende", (4.379,), 211.4, 186.9, (382, 126, 241), 23.9),
    Material("GaAs", "zincblende", (5.748,), 60.7, 40.8, (99, 41, 51), 8.0),
    Material("AlN", "wurtzite", (3.128, 5.015), 194.4, 121.5),
    Material("ZnO", "wurtzite", (3.287, 5.304), 129.6, 41.2),
    Material("MgO", "rocksalt", (4.254,), 151.5, 118.7, (273, 91, 141), 12.0),
    Material("LiF", "rocksalt", (4.081,), 69.9, 50.9, (125, 43, 59), 9.2),
    Material("NaCl", "rocksalt", (5.698,), 22.6, 14.3, (46, 11, 12), 4.9),
    Material("CaF2", "fluorite", (5.514,), 76.5, 38.4, (151, 39, 30)),
    Material("Al", "fcc", (4.038,), 83.3, 23.9, (104, 73, 32)),
    Material("Cu", "fcc", (3.633,), 136.2, 31.1, (146, 131, 71)),
    Material("Ni", "fcc", (3.521,), 198.1, 95.0, (276, 159, 132)),
    Material("W", "bcc", (3.190,), 303.9, 147.3, (510, 201, 143)),
    Material("Mg", "hcp", (3.197, 5.168), 36.7, 17.3),
    Material("Ti", "hcp", (2.936, 4.651), 113.0, 46.7),
    Material("AlNi", "cesiumchloride", (2.894,), 161.6, 71.9, (208, 138, 117)),
)


def run(
    output: Path,
    potential: str = "chgnet",
    materials: tuple[Material, ...] = MATERIALS,
    *,
    dtype: str | None = None,
    trust: bool = False,
    others: tuple[Path, int] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure, and write ``record.json``, ``table.csv`` and ``moduli.png``. A killed run resumes.

    Args:
        output: folder.
        potential: name, as `load_potential` takes it.
        materials: what is measured.
        dtype: of the potential.
        trust: load a MACE file.
        others: table of published moduli and number of its crystals, none of them among `materials`, on which the size
            of strains is chosen (`flows.benchmarks.oracles.elasticity_strain`); None: no choice.
        progress: called after each crystal.

    Raises:
        ConfigError: the potential cannot be loaded.
        InputError: the table cannot be used.
    """
    import pandas as pd

    from flows.journal import Journal
    from oracles.potentials.loading import load_potential

    make_folder(output)
    loaded = load_potential(potential, device="cpu", dtype=dtype, trust=trust)
    settings = {"energy_type": asdict(loaded.energy_type), "dtype": loaded.about.dtype, "protocol": PROTOCOL}
    rows = []
    with Journal(output / "table.csv", settings) as journal:
        for done, material in enumerate(materials):
            if material.name not in journal.done:
                journal.write(material.name, _measured(material, loaded))
            rows.append(journal.done[material.name])
            if progress is not None:
                progress("materials", done + 1, len(materials), {})
        chosen = None
        if others is not None:
            names = [material.name for material in materials]
            chosen = choose(output, others[0], loaded, names, others[1], progress)
        return _write(output, pd.DataFrame(rows), loaded, chosen)


def atoms_of(material: Material) -> Atoms:
    """The crystal."""
    from ase.build import bulk

    a, c = (*material.lattice, None)[:2]
    return bulk(material.name, material.prototype, a=a, c=c)


def _measured(material: Material, potential: Potential) -> dict[str, Any]:
    from oracles.potentials.calculator import to_structure
    from oracles.properties.elastic import elastic_tensor, tight
    from oracles.properties.phonons import phonons
    from oracles.relax import RelaxConfig, relax

    began = time.process_time()
    row: dict[str, Any] = {"material": material.name, "prototype": material.prototype}
    row |= {"published bulk": material.bulk, "published shear": material.shear, "published optical": material.optical}
    outcome = relax([to_structure(atoms_of(material))], potential, tight(RelaxConfig()))[0]
    row["status"] = outcome.status
    if outcome.structure is None or outcome.status != OK:
        return row
    row["volume"] = outcome.structure.volume / atoms_of(material).get_volume()
    elastic = elastic_tensor(outcome.structure, potential)
    row["status"] = elastic.status
    if elastic.tensor is not None:
        row |= {"bulk": elastic.values.get("bulk_modulus_vrh"), "shear": elastic.values.get("shear_modulus")}
        row["mechanically stable"] = elastic.stable
    for name, index, value in zip(("C11", "C12", "C44"), ((0, 0), (0, 1), (3, 3)), material.cubic or (), strict=False):
        row[f"published {name}"] = value
        row[name] = None if elastic.tensor is None else elastic.tensor[index[0]][index[1]]
    found = phonons(outcome.structure, potential)
    row |= {"lowest": found.lowest, "dynamically stable": found.stable}
    row |= {"optical": found.lowest_gamma if material.optical else None, "cpu seconds": time.process_time() - began}
    return row


def _write(output: Path, table: pd.DataFrame, potential: Potential, strains: dict[str, Any] | None) -> dict[str, Any]:

    names = ("bulk", "shear", "C11", "C12", "C44", "optical")
    results: dict[str, Any] = {name: errors(table, name) for name in names if name in table}
    results["statuses"] = {str(k): int(v) for k, v in table["status"].value_counts().items()}
    results["mechanically stable"] = int((table["mechanically stable"] == True).sum())  # noqa: E712
    results["dynamically stable"] = int((table["dynamically stable"] == True).sum())  # noqa: E712
    results["materials"] = len(table)
    results["cpu_seconds_each"] = float(table["cpu seconds"].mean())
    record: dict[str, Any] = {
        "benchmark": "elasticity", "protocol": PROTOCOL, "sources": SOURCES,
        "potential": {"name": potential.name, "energy_type": asdict(potential.energy_type)},
        "units": {"bulk": "GPa", "shear": "GPa", "C11": "GPa", "optical": "THz", "volume": "ratio to the published"},
        "settings": {"potential": potential.name, "dtype": potential.about.dtype}, "results": results,
    }  # fmt: skip
    if strains is not None:
        record["strains"] = strains
    write_text(output / "table.csv", table.to_csv(index=False, float_format="%.3f", lineterminator="\n"))
    _figure(output / "moduli.png", table)
    written = ("table.csv", "moduli.png", *(["strains.csv"] if strains is not None else []))
    record["files"] = files_of(output / name for name in written)
    return write_benchmark(output, record)


def errors(table: pd.DataFrame, name: str) -> dict[str, float]:
    """Relative errors: mean absolute, and the mean of the ratio, which tells softening."""
    found, published = (table[column].to_numpy(dtype=float) for column in (name, f"published {name}"))
    there = np.isfinite(found) & np.isfinite(published)
    if not there.any():
        return {"materials": 0.0}
    ratio = found[there] / published[there]
    return {
        "materials": int(there.sum()),
        "mean_absolute_relative_error": float(np.abs(ratio - 1).mean()),
        "mean_ratio": float(ratio.mean()),
        "lowest_ratio": float(ratio.min()),
        "highest_ratio": float(ratio.max()),
    }


def _figure(path: Path, table: pd.DataFrame) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, 2), ("bulk", "shear"), strict=True):
        if name not in table:
            continue
        axis.scatter(table[f"published {name}"], table[name], s=14)
        for _, row in table.iterrows():
            if np.isfinite(row[name]):
                axis.annotate(row["material"], (row[f"published {name}"], row[name]), fontsize=7)
        top = float(table[f"published {name}"].max()) * 1.1
        axis.plot([0, top], [0, top], color="grey", linewidth=1)
        axis.set(xlabel=f"published {name} modulus (GPa)", ylabel=f"{name} modulus (GPa)", xlim=(0, top), ylim=(0, top))
    figure.savefig(path, dpi=130)
