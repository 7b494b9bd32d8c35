"""`discovery-loop benchmark demand`: does a hull on demand equal the complete one, and how much of it is computed?

Every known crystal of many chemical systems has its energy by SevenNet first: from the shipped table, and where that
lacks it by the potential itself. These answer in place of relaxations, so that the complete hulls are known, and what
the hull on demand asks for can be counted.
"""

from __future__ import annotations

import gzip
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.harness import files_of, write_benchmark
from loop.contracts import Progress
from loop.errors import ConfigError, InputError
from loop.hull import Hull, HullEntry, amounts_of
from loop.io.files import make_folder, sha256, write_bytes, write_text
from loop.io.opening import read_bytes
from loop.store import OracleKey
from loop.values import OK, Evaluation, Quantity, failed
from oracles.references.hull_on_demand import DemandHull
from oracles.references.phase_estimates import OTHER_MARGIN, OWN_MARGIN, Estimates
from oracles.references.table import References, is_element

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from oracles.references.crystals import Known

ALL, OWN, OTHER = "shipped tables", "one crystal a formula", "another potential"
POINTS = "points.csv.gz"  # energies of polymorphs that the table lacks
JUDGE, POTENTIAL = "SevenNet-l3i5", "sevennet"  # whose table answers, and its name as a potential
EXACT = 1e-6  # eV/atom
DIGITS = 6  # of energies that are kept
PROTOCOL = (
    "Compositions of crystals drawn from the test split. Phases: all crystals in the package in the chemical systems "
    "of these compositions, polymorphs among them; compounds only, as the elements' corners are given. Each has its "
    "energy by the judge: relaxed where the shipped table holds that, else as published (of the table, else computed "
    "here: points.csv.gz). What is counted are phases that are relaxed, and with them those that are looked at as they "
    "stand. `shipped tables`: proposed as in the package, by the judge's energies of one crystal a formula, by "
    "CHGNet's formation energies, else by published ones. `one crystal a formula`: only phases of which the judge's "
    "table holds an energy, and these propose. `another potential`: the same phases, proposed by CHGNet's formation "
    "energies. The complete hull holds all phases of its kind."
)


@dataclass(frozen=True)
class DemandConfig:
    """Settings of the benchmark.

    Attributes:
        crystals: whose compositions are asked about.
        seed: of their draw.
        own_margin: eV/atom by which relaxing may lower an energy of the judge's own.
        other_margin: eV/atom by which any other estimate may be too high.
    """

    crystals: int = 500
    seed: int = 0
    own_margin: float = OWN_MARGIN
    other_margin: float = OTHER_MARGIN

    def __post_init__(self) -> None:
        """Check values."""
        if self.crystals < 1 or min(self.own_margin, self.other_margin) < 0:
            raise ConfigError(f"expected at least one crystal and margins of at least 0, got {self}")


class Answers:
    """In place of computer and ledger: energies (eV/atom) by id."""

    costly = False

    def __init__(self, table: References, standing: Mapping[str, float], relaxed: Mapping[str, float]) -> None:
        self.energy_type, self.elements = table.energy_type, frozenset(table.elements())
        self.key = OracleKey("answers", table.checksum)
        self.computer, self.standing, self.relaxed = self, standing, relaxed

    def points(self, asked: Mapping[str, Any], _: Any = None) -> dict[str, Evaluation]:
        """As they stand."""
        return {id: self._told(id, self.standing) for id in asked}

    def energies(self, asked: Mapping[str, Any], _: Any = None) -> dict[str, Evaluation]:
        """Relaxed."""
        return {id: self._told(id, self.relaxed) for id in asked}

    def _told(self, id: str, energies: Mapping[str, float]) -> Evaluation:
        energy = energies[id]
        measured = {"energy": Quantity(energy, "eV/atom")} if np.isfinite(energy) else {}
        status = OK if measured else failed("no-energy")
        return Evaluation(id, self.key.oracle, self.key.settings, status, measured, self.energy_type)


class Compounds:
    """Those crystals of the package that have an energy, as `oracles.references.phase_estimates.CrystalSource`."""

    def __init__(self, ids: Collection[str], known: Any) -> None:
        self.checksum, self._known = known.checksum, known
        self.formula = {id: known.known(id).formula for id in sorted(ids) if id in known}
        self.formula = {id: formula for id, formula in self.formula.items() if not is_element(formula)}
        self._systems: dict[frozenset[str], list[str]] = {}
        for id, formula in self.formula.items():
            self._systems.setdefault(frozenset(amounts_of(formula)), []).append(id)

    def in_system(self, elements: Collection[str]) -> list[str]:
        """Ids of the compounds that hold no other elements."""
        symbols = sorted(elements)
        parts = (frozenset(part) for size in range(1, len(symbols) + 1) for part in combinations(symbols, size))
        return [id for part in parts for id in self._systems.get(part, [])]

    def known(self, id: str) -> Known:
        """What is published about one."""
        return self._known.known(id)

    def structure(self, id: str) -> Any:
        """Its id: `Answers` goes by it."""
        return id

    def crystal(self, id: str) -> Any:
        """The crystal as published."""
        return self._known.structure(id)


def run(data: Path, output: Path, config: DemandConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        data: CSV with columns pretty_formula and split.
        output: folder of record.json and table.csv.
        config: settings.
        progress: called after each way of proposing.

    Raises:
        InputError: the table has no formulas of a test split.
    """
    import pandas as pd

    from oracles.references.crystals import load_reference_crystals
    from oracles.references.table import shipped_tables

    make_folder(output)
    formulas = _formulas(data, config)
    tables = shipped_tables()
    own = next(table for table in tables if table.energy_type.method == JUDGE)
    crystals = load_reference_crystals()
    whole = Compounds(_ids_of(formulas, crystals), crystals)
    points, relaxed = (
        dict(zip(own.ids, own.energies_of(relaxed=done).tolist(), strict=True)) for done in (False, True)
    )
    further = _polymorphs(output, whole, points, own, progress)
    part, answers = Compounds(own.ids, crystals), Answers(own, points | further, relaxed | further)
    unrelaxed, bare = replace(own, relaxed=frozenset()), _without_rows(own)
    others = [table for table in tables if table is not own]
    margins = {name: getattr(config, name) for name in ("own_margin", "other_margin")}
    proposers = {
        ALL: (whole, [unrelaxed, *others], margins),
        OWN: (part, [unrelaxed], {"own_margin": config.own_margin}),
        OTHER: (part, [bare, *others], {"other_margin": config.other_margin}),
    }
    results: dict[str, Any] = {}
    columns: dict[str, Any] = {"formula": formulas}
    for done, (name, (source, proposed, chosen)) in enumerate(proposers.items()):
        estimates = Estimates(proposed, own.energy_type, held_out=False, **chosen)
        hull = DemandHull(answers, source, estimates)  # type: ignore[arg-type]
        results[name], columns[name] = compare(hull, _complete(source, own, answers), formulas)
        if progress is not None:
            progress("demand", done + 1, len(proposers), {"share": results[name]["share"]})
    return _write(output, config, data, results, pd.DataFrame(columns))


def _ids_of(formulas: Sequence[str], crystals: Any) -> set[str]:
    """Crystals in the chemical systems of these formulas."""
    systems = {frozenset(amounts_of(formula)) for formula in formulas}
    return set().union(*(crystals.in_system(sorted(system)) for system in systems))


def _complete(source: Compounds, own: References, answers: Answers) -> Hull:
    """The hull of all phases."""
    entries = [HullEntry(formula, answers.relaxed[id], id) for id, formula in source.formula.items()]
    corners = own.provenance["corners"]
    entries += [HullEntry(symbol, corner["energy"], corner["name"]) for symbol, corner in corners.items()]
    return Hull([entry for entry in entries if np.isfinite(entry.energy)], own.energy_type)


def _polymorphs(
    output: Path, source: Compounds, points: Mapping[str, float], own: References, progress: Progress | None
) -> dict[str, float]:
    """Energies (eV/atom) as published of crystals that the table lacks, NaN where there is none.

    What an earlier run left in the folder is not computed again; a killed one goes on.

    Raises:
        InputError: the file of an earlier run cannot be read.
        PotentialError: the judge cannot be loaded.
    """
    import pandas as pd

    path, known = output / POINTS, dict[str, float]()
    if path.exists():
        try:
            kept = pd.read_csv(BytesIO(read_bytes(path)))
            known = dict(zip(kept["id"].astype(str), kept["energy"].astype(float), strict=True))
        except (ValueError, KeyError) as error:
            raise InputError(f"{path}: expected a CSV with the columns id and energy: {error}") from error
    missing = [id for id in source.formula if id not in points and id not in known]
    if missing:
        known |= _computed(path, {id: source.crystal(id) for id in missing}, own, progress)
        text = pd.DataFrame(sorted(known.items()), columns=["id", "energy"]).to_csv(index=False, lineterminator="\n")
        write_bytes(path, gzip.compress(text.encode(), mtime=0))
    return {id: known[id] for id in source.formula if id in known}


def _computed(
    path: Path, crystals: Mapping[str, Structure], own: References, progress: Progress | None
) -> dict[str, float]:
    from flows.journal import Journal
    from flows.provenance import cores
    from flows.tables.screening import hull_settings, single_points
    from oracles.potentials.loading import load_potential

    potential = load_potential(POTENTIAL, workers=cores())
    Hull((), own.energy_type).require(potential.energy_type)
    with Journal(path, hull_settings(potential, None)) as journal:
        found = single_points(list(crystals.values()), potential, progress, journal)
    return {id: round(energy, DIGITS) for id, (energy, _, _) in zip(crystals, found, strict=True)}


def compare(hull: DemandHull, complete: Hull, formulas: Sequence[str]) -> tuple[dict[str, Any], list[float]]:
    """How far distances by the hull on demand are from those by the complete one, and what it computed."""
    began = time.perf_counter()
    zeros = np.zeros(len(formulas))
    found, wanted = (each.batch(formulas, zeros, hull.energy_type) for each in (hull, complete))
    off = [abs(ours.e_above_hull - theirs.e_above_hull) for ours, theirs in zip(found, wanted, strict=True)]
    systems = {frozenset(amounts_of(formula)) for formula in formulas}
    phases = set().union(*(hull.source.in_system(system) for system in systems))
    deciding = set().union(*(result.ids.values() for result in wanted)) & phases
    relaxed, seen = hull.computed.keys() & phases, (hull.computed.keys() | hull.points.keys()) & phases
    told = {
        "crystals": len(formulas),
        "judged": int(np.isfinite(off).sum()),
        "largest_difference": float(np.nanmax(off)),
        "equal": int(np.sum(np.array(off) <= EXACT)),
        "phases": len(phases),
        "decide": len(deciding),
        "relaxed": len(relaxed),
        "looked_at": len(seen),
        "share": len(seen) / len(phases),
        "share_relaxed": len(relaxed) / len(phases),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return told, [result.e_above_hull for result in found]


def _without_rows(table: References) -> References:
    """The elements' corners alone."""
    none = np.zeros(0)
    return replace(table, formulas=(), ids=(), energies=none, unrelaxed=None, held_out=none > 0, relaxed=frozenset())


def _formulas(data: Path, config: DemandConfig) -> list[str]:
    import pandas as pd

    try:
        columns = ["pretty_formula", "split"]
        frame = pd.read_csv(data, usecols=columns, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise InputError(f"{data}: expected a CSV with the columns pretty_formula and split: {error}") from error
    frame = frame[(frame["split"] == "test") & frame["pretty_formula"].notna()]
    if frame.empty:
        raise InputError(f"{data}: expected rows of the test split, found none")
    return frame.sample(min(config.crystals, len(frame)), random_state=config.seed)["pretty_formula"].tolist()


def _write(
    output: Path, config: DemandConfig, data: Path, results: dict[str, Any], table: pd.DataFrame
) -> dict[str, Any]:
    write_text(output / "table.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6f"))
    record = {
        "benchmark": "demand",
        "protocol": PROTOCOL,
        "settings": asdict(config),
        "units": {"largest_difference": "eV/atom", "seconds": "s", "share": "fraction", "share_relaxed": "fraction"},
        "data": {"file": data.name, "sha256": sha256(data)},
        "results": results,
        "files": files_of([path for name in ("table.csv", POINTS) if (path := output / name).exists()]),
    }
    return write_benchmark(output, record)
