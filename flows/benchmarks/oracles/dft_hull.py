"""`discovery-loop benchmark dft-hull`: distances from DFT's own hull, and the order of polymorphs.

Crystals are relaxed by DFT through the ledger of phases, each once, and placed on the hull on demand of the same
settings. The folder is written after each crystal, and a killed run continues from the ledger.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.benchmarks.harness import write_benchmark
from flows.progress import of_stage
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, write_text
from oracles.dft.hull import ELEMENT_MARGIN, OWN_MARGIN, DftHull
from oracles.dft.oracle import DftConfig

if TYPE_CHECKING:
    from pymatgen.core import Structure

CRYSTALS = ("mp-2696", "mp-661", "mp-1265")  # an intermetallic, MgAg; a nitride, AlN; an oxide, MgO
# Compared with each other alone. Lattice parameters in A, from where relaxations begin: those of PBE for MgO and NaCl
# (Harl, Schimka, Kresse, Phys. Rev. B 81, 115126 (2010)), and of the same distances between ions in the order of CsCl.
BUILT: dict[str, tuple[str, float, tuple[str, str]]] = {
    "NaCl-B1": ("Fm-3m", 5.70, ("Na", "Cl")),
    "NaCl-B2": ("Pm-3m", 3.45, ("Na", "Cl")),
    "MgO-B1": ("Fm-3m", 4.26, ("Mg", "O")),
    "MgO-B2": ("Pm-3m", 2.65, ("Mg", "O")),
}
POLYMORPHS = (*BUILT, "mp-549706", "mp-2657", "mp-390")  # wurtzite-like MgO; rutile, anatase
PROTOCOL = (
    "PBE by GPAW, raw energies. Each crystal is relaxed with its cell, and so is each competing phase: known crystals "
    "that a potential's formation energy, less the margin, would put on the hull, until the decomposition consists of "
    "relaxed phases alone. Elements: published crystals of about the lowest height; O2, N2 and halogens as molecular "
    "crystals. `height`: above the lowest crystal of the same formula in this table, eV/atom. Published: Materials "
    "Project, PBE(+U) with MP2020 corrections or as the release says. Seconds are wall time on a shared machine."
)
UNITS = {"energy": "eV/atom", "e_above_hull": "eV/atom", "height": "eV/atom", "published_above_hull": "eV/atom"}
UNITS |= {"margins": "eV/atom", "largest_gain_of_relaxing": "eV/atom", "volume": "A^3/atom", "phase_seconds": "s"}


@dataclass(frozen=True)
class DftHullConfig:
    """Settings of the benchmark.

    Attributes:
        dft: preset, limits, resources, margin and ledger; properties and relaxation are the benchmark's.
        crystals: ids of reference crystals that get a distance from the hull.
        polymorphs: ids, or names in `BUILT`, that are compared with others of their formula alone.
    """

    dft: DftConfig = field(
        # with wider limits MgO alone has stacking variants of 16 atoms that take over 20 minutes each
        default_factory=lambda: DftConfig(preset="test", phase_margin=0.05, phase_atoms=12)
    )
    crystals: tuple[str, ...] = CRYSTALS
    polymorphs: tuple[str, ...] = POLYMORPHS


def run(
    output: Path, config: DftHullConfig, more: Path | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Compute the crystals in turn.

    Args:
        output: folder of record.json, table.csv and phases.csv.
        config: settings.
        more: file with further crystals, such as finds.
        progress: called with crystals done, and within each with its competing phases.

    Raises:
        ConfigError: no such crystal.
        EngineError: there is no DFT engine here.
        InputError: the file cannot be read.
    """
    make_folder(output)
    crystals = list(_crystals(config, more))
    tell = progress or (lambda *_: None)
    hull = DftHull(config.dft, progress=of_stage(progress, "competing phases"))
    rows: list[dict[str, Any]] = []
    for done, (id, crystal, published) in enumerate(crystals):
        tell("crystals", done, len(crystals), {})
        rows.append({"id": id} | published | _row(hull, crystal, placed=id not in config.polymorphs))
        _write(output, hull, rows)
    record = {
        "benchmark": "dft-hull",
        "protocol": PROTOCOL,
        "settings": asdict(config) | {"dft": _settings(config.dft)},
        "units": UNITS,
        "margins": {"phase": config.dft.phase_margin, "relaxation": OWN_MARGIN, "elements": ELEMENT_MARGIN},
        "energy_type": str(hull.demand.energy_type),
        "results": {row["id"]: {name: value for name, value in row.items() if name != "id"} for row in rows},
        "largest_gain_of_relaxing": largest_gain(hull.phases()),
    }
    return write_benchmark(output, record)


def _settings(config: DftConfig) -> dict[str, Any]:
    """Those that decide the numbers, as they are used here."""
    left_out = ("resources", "phases", "hull_above_gap", "min_gap", "max_atoms", "references")
    told = {name: value for name, value in asdict(config).items() if name not in left_out}
    return told | {"relax": "cell", "properties": []}


def _crystals(config: DftHullConfig, more: Path | None) -> Iterator[tuple[str, Structure, dict[str, Any]]]:
    from pymatgen.core import Lattice, Structure

    from loop.io.crystals import read_crystals
    from oracles.references.crystals import load_reference_crystals

    known, ids = load_reference_crystals(), dict.fromkeys((*config.crystals, *config.polymorphs))
    unknown = [id for id in ids if id not in known and id not in BUILT]
    if unknown:
        raise ConfigError(
            f"there are no crystals {', '.join(unknown)}: expected ids of reference crystals (`discovery-loop "
            f"reference show FORMULA`) or {', '.join(BUILT)}"
        )
    for id in ids:
        if id in BUILT:
            group, side, species = BUILT[id]
            sites = [[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]
            yield id, Structure.from_spacegroup(group, Lattice.cubic(side), species, sites), {}
        else:
            about = known.known(id)
            told = {"space_group": about.space_group, "published_above_hull": about.e_above_hull}
            yield id, known.structure(id), told
    table = None if more is None else read_crystals(more)
    for name, structure in zip(table.ids, table.structures, strict=True) if table else ():
        if structure is not None:
            yield str(name), structure, {}


def _row(hull: DftHull, crystal: Structure, *, placed: bool) -> dict[str, Any]:
    done = hull.ledger.energies({"": crystal})[""]
    place = hull.on_hull(crystal, done) if placed else done
    return {
        "formula": crystal.composition.reduced_formula,
        "status": done.status,
        "energy": done.value("energy"),
        "space_group_relaxed": done.space_group_relaxed,
        "volume": done.value("volume"),
        "seconds": round(done.cost.seconds, 1),
        "e_above_hull": place.value("e_above_hull"),
        "decomposition": place.decomposition,
        "phases": int(place.value("hull_phases")) if place.decomposition else 0,
        "phase_seconds": place.value("hull_seconds"),
        "message": place.message,
    }


def _write(output: Path, hull: DftHull, rows: list[dict[str, Any]]) -> None:
    import pandas as pd

    lowest: dict[str, float] = {}
    for row in rows:
        lowest[row["formula"]] = min(row["energy"], lowest.get(row["formula"], float("inf")))
    for row in rows:
        row["height"] = row["energy"] - lowest[row["formula"]]
    table = pd.DataFrame([row | {"decomposition": json.dumps(row["decomposition"])} for row in rows])
    write_text(output / "table.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    phases = pd.DataFrame(hull.phases())
    write_text(output / "phases.csv", phases.to_csv(index=False, float_format="%.6g", lineterminator="\n"))


def largest_gain(phases: Sequence[dict[str, Any]]) -> float:
    """By how much relaxing lowered a phase below its energy as published, at most, eV/atom; NaN where none was."""
    gains = [each["energy_as_it_stands"] - each["energy"] for each in phases if each["relaxed"]]
    return max((gain for gain in gains if gain == gain), default=float("nan"))
