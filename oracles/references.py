"""Reference phases: the energies against which stability is judged, computed with the very potential that judges.

A table holds one energy per formula, that of its lowest-energy known crystal as published, evaluated as it stands in
its published (DFT-relaxed) cell. Its energy type says which potential made it; a hull built from it takes no other.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.crystals import read_frame
from loop.errors import EnergyTypeError, InputError
from loop.files import write_bytes, write_text
from loop.hull import Hull, HullEntry
from loop.values import EnergyType

if TYPE_CHECKING:
    import pandas as pd
    from ase import Atoms
    from pymatgen.core import Structure

    from oracles.potentials import Potential

_ELEMENT = re.compile("([A-Z][a-z]?)[0-9]*")
DEFAULT = Path(__file__).parent / "data" / "chgnet_references.csv.gz"
ATTRIBUTION = (
    "Structures evaluated: Materials Project (materialsproject.org), CC BY 4.0; Jain et al., APL Mater. 1, 011002 "
    "(2013), doi 10.1063/1.4812323. The energies are this project's own computation."
)


@dataclass(frozen=True)
class References:
    """A table of reference phases."""

    formulas: tuple[str, ...]
    energies: np.ndarray  # (n,) eV/atom
    ids: tuple[str, ...]
    held_out: np.ndarray  # (n,) bool: of a test split, for benchmarks to leave out
    energy_type: EnergyType
    checksum: str  # of the table's bytes
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.formulas)

    def hull(self, *, with_held_out: bool = True, min_compounds: int | None = None) -> Hull:
        """The convex hull of the table, for benchmarks without the formulas of the test split."""
        rows = zip(self.formulas, self.energies.tolist(), self.ids, self.held_out.tolist(), strict=True)
        entries = [HullEntry(formula, energy, id) for formula, energy, id, out in rows if with_held_out or not out]
        return Hull(entries, self.energy_type, min_compounds=min_compounds)


def load_references(path: str | Path | None = None) -> References:
    """Load a table: by default the one that ships, for CHGNet 0.3.0.

    Args:
        path: a CSV or CSV.gz with columns formula, energy_per_atom (eV/atom) and id, beside a JSON of the same name
            with `energy_type` (method, functional, corrections, checksum).

    Raises:
        InputError: the table or its JSON is missing or damaged.
    """
    return _load(Path(path or DEFAULT).resolve())


def shipped_tables() -> list[References]:
    """All tables in the package."""
    return [load_references(path) for path in sorted(DEFAULT.parent.glob("*_references.csv.gz"))]


def shipped_for(energy_type: EnergyType) -> References:
    """The table in the package that holds energies of a type.

    Raises:
        EnergyTypeError: there is none.
    """
    tables = {table.energy_type: table for table in shipped_tables()}
    if energy_type not in tables:
        raise EnergyTypeError(
            f"No reference phases of type {energy_type} are shipped (there are {', '.join(map(str, tables))}): let "
            "them be computed as they are needed (references: demand), or make a table with discovery-loop hull build."
        )
    return tables[energy_type]


@lru_cache(maxsize=4)
def _load(path: Path) -> References:
    import pandas as pd

    try:
        data = path.read_bytes()
        frame = pd.read_csv(path, keep_default_na=False, dtype={"formula": str, "id": str, "energy_per_atom": float})
        meta = json.loads(_json_path(path).read_text(encoding="utf-8"))
        energy_type = EnergyType(**meta["energy_type"])
        formulas, ids = tuple(frame["formula"]), tuple(frame["id"])
        held_out = frame["held_out"].to_numpy(dtype=bool) if "held_out" in frame else np.zeros(len(frame), dtype=bool)
        energies = frame["energy_per_atom"].to_numpy()
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"expected reference phases in {path} (columns formula, energy_per_atom, id) with their energy type in "
            f"{_json_path(path).name}, cannot read them: {error!r}"
        ) from error
    if not np.isfinite(energies).all():
        raise InputError(f"expected finite energies in {path}, found NaN or infinity")
    return References(formulas, energies, ids, held_out, energy_type, hashlib.sha256(data).hexdigest(), meta)


def _json_path(path: Path) -> Path:
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".csv") + ".json")


def ground_states(frame: pd.DataFrame) -> pd.DataFrame:
    """The lowest-energy row of each formula: lowest e_above_hull where every row of it has one, else formation energy.

    Args:
        frame: columns material_id, pretty_formula and, where known, n_atoms and e_above_hull and
            formation_energy_per_atom (eV/atom).

    Returns:
        One row a formula, elements first, then by size, so that a table in the making is useful early.
    """
    frame = frame.copy()
    for column in ("e_above_hull", "formation_energy_per_atom", "n_atoms"):
        if column not in frame:
            frame[column] = np.nan
    complete = frame["e_above_hull"].notna().groupby(frame["pretty_formula"]).transform("all")
    frame["rank_by"] = np.where(complete, frame["e_above_hull"], frame["formation_energy_per_atom"])
    frame = frame.sort_values(["rank_by", "n_atoms", "material_id"], na_position="last")
    best = frame.drop_duplicates("pretty_formula")
    element = best["pretty_formula"].str.fullmatch("[A-Z][a-z]?[0-9]*")
    return best.assign(compound=~element).sort_values(["compound", "n_atoms", "material_id"]).drop(columns="compound")


@dataclass(frozen=True)
class BuildConfig:
    """How a table is built."""

    splits: tuple[str, ...] | None = None  # values of a `split` column to take; None: all
    held_out: tuple[str, ...] = ("test",)  # values of a `split` column whose formulas benchmarks leave out
    chunk: int = 1024  # crystals between two files on disk: what a kill may cost
    one_per_formula: bool = True  # evaluate the published ground state only, not every polymorph


def build_references(
    sources: Sequence[str | Path],
    output: str | Path,
    potential: Potential,
    config: BuildConfig = BuildConfig(),
    progress: Callable[[int, int], None] | None = None,
) -> References:
    """Evaluate crystals and write a table of reference phases with its provenance.

    Finished chunks stay in ``<output>.parts``, so that a killed build goes on where it stopped.

    Args:
        sources: CSV files with a `cif` column; see `ground_states` for the others.
        output: where the table goes (.csv or .csv.gz); its JSON lies beside it.
        potential: evaluates single points, in primitive cells, without relaxation.
        config: which rows.
        progress: called with crystals done and their total.

    Raises:
        InputError: no usable row.
    """
    import pandas as pd

    rows, digests = _read_sources(sources, config)
    output = Path(output)
    parts = output.with_name(output.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    stamp = _resume(parts, potential.energy_type, digests)
    done = {name for part in stamp for name in pd.read_csv(part, dtype=str, keep_default_na=False)["id"]}
    todo = rows[~rows["material_id"].isin(done)]
    for start in range(0, len(todo), config.chunk):
        table = _evaluate(todo.iloc[start : start + config.chunk], potential)
        path = parts / f"chunk_{len(stamp) + start // config.chunk:05d}.csv"
        write_text(path, table.to_csv(index=False))
        if progress is not None:
            progress(len(done) + min(start + config.chunk, len(todo)), len(rows))
    chunks = [pd.read_csv(p, keep_default_na=False, na_values=[""]) for p in sorted(parts.glob("chunk_*.csv"))]
    table = pd.concat(chunks, ignore_index=True)
    table = pd.concat([table, missing_elements(table, potential)], ignore_index=True)
    return write_references(output, table, potential, sources=digests)


def missing_elements(table: pd.DataFrame, potential: Potential) -> pd.DataFrame:
    """Elements that the potential knows and the table lacks, relaxed from ASE's reference states (experimental cells).

    Args:
        table: columns formula, energy_per_atom, id.
        potential: relaxes them.

    Returns:
        Rows of the same columns; ids begin with ``ase:``.
    """
    import pandas as pd

    from oracles.ase_potential import to_structure
    from oracles.relax import relax

    usable = table[np.isfinite(table["energy_per_atom"]) & (table["held_out"] == 0)]
    have = {match[1] for match in map(_ELEMENT.fullmatch, usable["formula"]) if match}
    states = {symbol: atoms for symbol in sorted(potential.elements - have) if (atoms := _reference_state(symbol))}
    relaxed = relax([to_structure(atoms) for atoms in states.values()], potential)
    rows = [(f"ase:{symbol}", symbol, r.energy, 0) for symbol, r in zip(states, relaxed, strict=True) if r.ok]
    return pd.DataFrame(rows, columns=["id", "formula", "energy_per_atom", "held_out"])


def _reference_state(symbol: str) -> Atoms | None:
    """The crystal of an element in ASE's table; None where that holds none (gases, promethium)."""
    from ase import Atoms
    from ase.build import bulk

    if symbol == "Pm":  # double hexagonal; Pallmer and Chikalla, J. Less-Common Met. 24, 233 (1971): 3.65 and 11.65 A
        positions = [[0, 0, 0], [1 / 3, 2 / 3, 0.25], [0, 0, 0.5], [2 / 3, 1 / 3, 0.75]]
        return Atoms("Pm4", scaled_positions=positions, cell=[3.65, 3.65, 11.65, 90, 90, 120], pbc=True)
    try:
        return bulk(symbol)
    except (ValueError, KeyError, RuntimeError, NotImplementedError):
        return None


def write_references(
    output: Path, table: pd.DataFrame, potential: Potential | EnergyType, **provenance: Any
) -> References:
    """Write the lowest finite energy of each formula, sorted by formula, and the JSON with its provenance.

    Args:
        output: .csv or .csv.gz
        table: columns formula, energy_per_atom (eV/atom), id.
        potential: what computed it, or the type of energies that come from elsewhere.
        provenance: further entries of the JSON.
    """
    import gzip

    from pymatgen.core import Composition

    finite = table[np.isfinite(table["energy_per_atom"])].copy()
    finite["formula"] = [Composition(formula).reduced_formula for formula in finite["formula"]]
    lowest = finite.sort_values(["energy_per_atom", "id"]).drop_duplicates("formula").sort_values("formula")
    lowest = lowest[["formula", "energy_per_atom", "id", "held_out"]]
    text = lowest.to_csv(index=False, float_format="%.5f", lineterminator="\n").encode()
    meta = {
        **_origin(potential),
        "unit": "eV/atom",
        "rows": len(lowest),
        "held_out": int(lowest["held_out"].sum()),
        "elements": len(
            {element for formula in lowest["formula"] for element in Composition(formula).chemical_system_set}
        ),
        "not_computed": len(table) - len(finite),
        "attribution": ATTRIBUTION,
        "date": datetime.now(UTC).date().isoformat(),
        **provenance,
    }
    write_bytes(output, gzip.compress(text, mtime=0) if output.suffix == ".gz" else text)
    write_text(_json_path(output), json.dumps(meta, indent=2) + "\n")
    _load.cache_clear()
    return load_references(output)


def _origin(potential: Potential | EnergyType) -> dict[str, Any]:
    if isinstance(potential, EnergyType):
        return {"energy_type": asdict(potential), "what": "lowest given energy of each formula"}
    about = potential.about
    return {
        "energy_type": asdict(potential.energy_type),
        "potential": {"name": about.name, "citation": about.citation, "licence": about.licence, "dtype": about.dtype},
        "what": "energy of the lowest-energy known crystal of each formula, single point in its published cell",
    }


def _read_sources(sources: Sequence[str | Path], config: BuildConfig) -> tuple[pd.DataFrame, dict[str, str]]:
    """Rows to evaluate (material_id, pretty_formula, cif) and the checksum of each file."""
    import pandas as pd

    frames, digests = [], {}
    for source in map(Path, sources):
        frame, ids = read_frame(source)
        frame["material_id"] = ids
        if "split" in frame and config.splits is not None:
            frame = frame[frame["split"].isin(config.splits)].copy()
        frame["held_out"] = frame["split"].isin(config.held_out).astype(int) if "split" in frame else 0
        if "pretty_formula" not in frame:
            frame["pretty_formula"] = [_formula(cif) for cif in frame["cif"]]
        frames.append(frame)
        digests[source.name] = hashlib.sha256(source.read_bytes()).hexdigest()
    rows = pd.concat(frames, ignore_index=True).dropna(subset=["pretty_formula"])
    rows = ground_states(rows) if config.one_per_formula else rows
    if rows.empty:
        raise InputError(f"expected crystals in {', '.join(digests)}, found none")
    return rows, digests


def _formula(cif: str) -> str | None:
    structure = _structure(cif)
    return None if structure is None else structure.composition.reduced_formula


def _structure(cif: str) -> Structure | None:
    from pymatgen.core import Element, Structure

    from loop.cif import parse_cif

    try:
        basis, numbers, coordinates = parse_cif(cif)
    except InputError:
        return None
    return Structure(basis, [Element.from_Z(z) for z in numbers.tolist()], coordinates)


def _resume(parts: Path, energy_type: EnergyType, digests: dict[str, str]) -> list[Path]:
    """Chunks that are there already; an older build of something else is refused."""
    stamp = json.dumps({"energy_type": asdict(energy_type), "sources": digests}, sort_keys=True)
    path = parts / "build.json"
    if path.exists() and path.read_text(encoding="utf-8") != stamp:
        raise InputError(
            f"{parts} holds parts of another build (other potential or sources): delete it, or choose another output."
        )
    write_text(path, stamp)
    return sorted(parts.glob("chunk_*.csv"))


def _evaluate(rows: pd.DataFrame, potential: Potential) -> pd.DataFrame:
    import pandas as pd

    structures = [_structure(cif) for cif in rows["cif"]]
    energies = np.full(len(rows), np.nan)
    readable = [index for index, structure in enumerate(structures) if structure is not None]
    energies[readable] = potential.energies([structure for structure in structures if structure is not None])
    return pd.DataFrame(
        {
            "id": rows["material_id"],
            "formula": rows["pretty_formula"],
            "energy_per_atom": np.round(energies, 6),
            "held_out": rows["held_out"],
        }
    )
