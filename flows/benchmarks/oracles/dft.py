"""How far each DFT preset is from published PBE values: gaps, dielectric constants, lattice parameters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from flows.benchmarks.clock import cpu_seconds, load
from flows.benchmarks.harness import write_benchmark
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, write_text
from loop.values import Candidate, Evaluation
from oracles.dft.oracle import ALL, DftConfig, DftOracle

FACE_CENTRED = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
PROTOTYPES = {"diamond": 0.25, "zincblende": 0.25, "rocksalt": 0.5}  # where the second lattice begins, on the diagonal
SOURCES = {
    "FLAPW": "Betzinger, Friedrich, Bluegel, Phys. Rev. B 81, 195117 (2010): PBE, all-electron, gap at Gamma",
    "MP": "Materials Project, PBE (VASP): gap; dielectric constant by DFPT; Jain et al., APL Mater. 1, 011002 (2013); "
    "mp-149 Si, mp-1265 MgO, mp-2534 GaAs, mp-22862 NaCl, mp-66 C, mp-1138 LiF, compared with published tables",
    "Petousis": "Petousis et al., Sci. Data 4, 160134 (2017): PBE (VASP), gap, dielectric constant by DFPT, geometry",
    "Harl": "Harl, Schimka, Kresse, Phys. Rev. B 81, 115126 (2010): PBE lattice parameters (VASP)",
}
STRETCH = 1.02  # where relaxations begin: at the published lattice parameter they would end at once, and prove nothing
PROPERTIES = {"gap": "band_gap", "dielectric": "dielectric_electronic"}
UNITS = {"gap": "eV", "dielectric": "1", "lattice": "A"}
USUAL = ("gap", "dielectric")
KINDS: tuple[tuple[Literal["none", "cell"], tuple[str, ...]], ...] = (("none", USUAL), ("cell", ("lattice",)))


@dataclass(frozen=True)
class Case:
    """One crystal at one lattice parameter, with what was published for it."""

    name: str
    prototype: str
    a: float  # A, conventional cell
    published: tuple[tuple[str, float, str], ...]  # property, value, source

    def candidate(self, stretch: float = 1.0) -> Candidate:
        """The crystal, its lattice parameter times `stretch`."""
        from pymatgen.core import Composition, Lattice, Structure

        species = [str(element) for element in Composition(self.name)]
        shift = PROTOTYPES[self.prototype]
        sites = [*FACE_CENTRED, *(FACE_CENTRED + shift)]
        return Candidate(Structure(Lattice.cubic(self.a * stretch), [species[0]] * 4 + [species[-1]] * 4, sites))


# Gaps depend on the geometry: each is computed at that of its source, dielectric constants at PBE lattice parameters.
CASES = (
    Case("Si", "diamond", 5.466, (("gap", 0.612, "MP"), ("dielectric", 13.00, "MP"), ("lattice", 5.466, "Harl"))),
    Case("MgO", "rocksalt", 4.259, (("dielectric", 3.208, "MP"), ("lattice", 4.259, "Harl"))),
    Case("MgO", "rocksalt", 4.189, (("gap", 4.84, "FLAPW"),)),
    Case("GaAs", "zincblende", 5.749, (("dielectric", 14.84, "MP"), ("lattice", 5.749, "Harl"))),
    Case("GaAs", "zincblende", 5.640, (("gap", 0.55, "FLAPW"),)),
    Case("NaCl", "rocksalt", 5.697, (("dielectric", 2.488, "MP"), ("lattice", 5.697, "Harl"))),
    Case("NaCl", "rocksalt", 5.569, (("gap", 5.08, "FLAPW"),)),
    Case("C", "diamond", 3.569, (("gap", 4.113, "MP"), ("dielectric", 5.830, "MP"), ("lattice", 3.569, "Harl"))),
    Case(
        "SiC",
        "zincblende",
        4.380,
        (("gap", 1.37, "Petousis"), ("dielectric", 7.00, "Petousis"), ("lattice", 4.380, "Petousis")),
    ),
    Case(
        "BP",
        "zincblende",
        4.547,
        (("gap", 1.24, "Petousis"), ("dielectric", 9.18, "Petousis"), ("lattice", 4.547, "Petousis")),
    ),
    Case("LiF", "rocksalt", 4.069, (("gap", 8.72, "MP"), ("dielectric", 2.036, "MP"), ("lattice", 4.069, "Harl"))),
)
COLUMNS = ["preset", "name", "a", "property", "published", "found", "error", "relative", "unit", "source", "status"]
COLUMNS += ["seconds", "cpu_seconds", "cores", "load"]


def run(
    output: Path,
    presets: Sequence[str],
    config: DftConfig | None = None,
    *,
    names: Sequence[str] | None = None,
    measured: Sequence[str] = USUAL,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Compute cases with presets; rows are kept as they come in ``rows.jsonl``, and a second run continues from there.

    Args:
        output: folder for ``record.json``, ``table.csv`` and ``rows.jsonl``.
        presets: of `oracles.dft.presets`.
        config: resources and limits, by default `DftConfig`'s; preset, properties and relaxation are the benchmark's.
        names: formulas to compute; None: all.
        measured: of gap, dielectric and lattice; the last relaxes the cell.
        progress: called before each crystal.

    Raises:
        ConfigError: no such preset, crystal or property.
        EngineError: there is no DFT engine here.
    """
    unknown = set(names or ()) - {case.name for case in CASES}
    if unknown:
        known = ", ".join(dict.fromkeys(case.name for case in CASES))
        raise ConfigError(f"The benchmark has no {', '.join(sorted(unknown))}; there are {known}.")
    if set(measured) - set(UNITS):
        raise ConfigError(f"The benchmark measures {', '.join(UNITS)}; got {', '.join(measured)}.")
    make_folder(output)
    config = config or DftConfig()
    path = output / "rows.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    cases = [case for case in CASES if names is None or case.name in names]
    for preset in presets:
        for done, case in enumerate(cases):
            for relax, kind in KINDS:
                wanted = [item for item in case.published if item[0] in kind and item[0] in measured]
                if not wanted:
                    continue
                if progress is not None:
                    asked = ", ".join(name for name, *_ in wanted)
                    progress(f"{preset} {asked}", done, len(cases), {"crystal": float(done)})
                new = _measure(case, wanted, replace(config, preset=preset, relax=relax), rows)
                replaced = {_place(row) for row in new}  # of other settings, or another version
                rows = [row for row in rows if _place(row) not in replaced] + new
                write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    record = _record(rows)
    write_text(output / "table.csv", _csv(rows))
    return write_benchmark(output, record)


def _measure(
    case: Case, wanted: list[tuple[str, float, str]], config: DftConfig, known: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of one calculation, unless they are there."""
    done = {(row["preset"], row["name"], row["a"], row["property"], row["settings"]) for row in known}
    asked = {name for name, *_ in wanted}
    config = replace(config, properties=tuple(name for name in ALL if name in asked))
    oracle = DftOracle(config)
    wanted = [item for item in wanted if (config.preset, case.name, case.a, item[0], oracle.settings_hash) not in done]
    if not wanted:
        return []
    busy, began = load(), cpu_seconds()
    evaluation = oracle.evaluate([case.candidate(1.0 if config.relax == "none" else STRETCH)])[0]
    effort = {"cpu_seconds": round(cpu_seconds() - began, 1), "load": busy}
    return [_row(case, config.preset, item, evaluation) | effort for item in wanted]


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("preset", "name", "a", "property"))


def _row(case: Case, preset: str, item: tuple[str, float, str], evaluation: Evaluation) -> dict[str, Any]:
    name, published, source = item
    found = _lattice_parameter(evaluation) if name == "lattice" else evaluation.value(PROPERTIES[name])
    there = found == found
    return {
        "preset": preset,
        "name": case.name,
        "a": case.a,
        "property": name,
        "published": published,
        "found": found if there else None,
        "error": found - published if there else None,
        "relative": found / published - 1 if there else None,
        "unit": UNITS[name],
        "source": source,
        "status": evaluation.status,
        "seconds": round(evaluation.cost.seconds, 1),
        "cores": evaluation.cost.cores,
        "settings": evaluation.settings,
        "message": evaluation.message,
    }


def _lattice_parameter(evaluation: Evaluation) -> float:
    """Of the conventional cell of a cubic face-centred crystal with two atoms in the primitive one."""
    if evaluation.structure is None or not evaluation.ok:
        return float("nan")
    return float((4 * evaluation.structure.volume * 2 / len(evaluation.structure)) ** (1 / 3))


def _record(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "benchmark": "dft",
        "protocol": (
            "PBE, GPAW; gaps and dielectric constants (ALDA kernel, local fields) at the geometry of the source, "
            "lattice parameters relaxed from 2 % above it; the published constants are of perturbation theory (DFPT). "
            "Seconds on the wall for all properties of a crystal, processor time of all processes beside it, and how "
            "many processes wanted a core when it began."
        ),
        "sources": SOURCES,
        "settings": {"presets": sorted({row["preset"] for row in rows})},
        "results": summary(rows),
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per preset and property: number, mean absolute and largest error, mean relative error, median seconds."""
    from statistics import fmean, median

    found: dict[str, Any] = {}
    for preset, name in dict.fromkeys((row["preset"], row["property"]) for row in rows):
        mine = [row for row in rows if (row["preset"], row["property"]) == (preset, name)]
        good = [row for row in mine if row["error"] is not None]
        entry: dict[str, Any] = {"unit": UNITS[name], "crystals": len(mine), "found": len(good)}
        if good:
            entry |= {
                "mean_absolute_error": fmean(abs(row["error"]) for row in good),
                "largest_error": max((row["error"] for row in good), key=abs),
                "mean_absolute_relative_error": fmean(abs(row["relative"]) for row in good),
                "median_seconds": median(row["seconds"] for row in good),
            }
            if all("cpu_seconds" in row for row in good):  # rows of older runs lack it
                entry["median_cpu_seconds"] = median(row["cpu_seconds"] for row in good)
        found.setdefault(preset, {})[name] = entry
    return found


def _csv(rows: list[dict[str, Any]]) -> str:
    import pandas as pd

    return pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, float_format="%.5g", lineterminator="\n")
