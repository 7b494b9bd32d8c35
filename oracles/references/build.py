"""Make the table of reference crystals from tables of the Materials Project's."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.errors import InputError
from loop.io.cif import parse_cif
from loop.io.crystals import read_frame
from loop.io.files import sha256, write_bytes, write_text
from oracles.references.crystals import (
    ANGLE_STEP,
    ARRAYS,
    ATTRIBUTION,
    ENERGY_STEP,
    HULL_SOURCES,
    LENGTH_STEP,
    NO_ENERGY,
    SOURCES,
    STEPS,
    expand,
    operations,
    primitive_basis,
)

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

EXACT = 1e-3  # A: no atom and no corner of the cell lies further from the published one
SYMPRECS = (0.01, 1e-3, 1e-4, 1e-5)  # A; the first that keeps the crystal within `EXACT`
SPLITS = ("train", "val")

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Packed:
    """One crystal in the table's form."""

    formula: str  # reduced
    space_group: int  # at the first of `SYMPRECS`
    group: int  # of the description that is kept
    lengths: np.ndarray  # (3,) in `LENGTH_STEP`
    angles: np.ndarray  # (3,) in `ANGLE_STEP`
    elements: np.ndarray  # (s,)
    multiplicities: np.ndarray  # (s,)
    coordinates: np.ndarray  # (s, 3) in `STEPS`
    error: float  # A, largest distance of an atom or a cell vector from the source


def pack(arrays: Arrays) -> Packed:
    """The crystal in its highest symmetry that keeps it within `EXACT`.

    Raises:
        InputError: no symmetry finder's description is that close.
    """
    from moyopy import Setting

    from loop.moyo import find_symmetry

    structure = _structure(arrays)
    found = [find_symmetry(structure, SYMPRECS[0], setting=Setting.standard())]
    for symprec in (*SYMPRECS[1:], None):
        described = None if found[-1] is None else _described(arrays, found[-1])
        if described is not None:
            loosest = 1 if found[0] is None else int(found[0].number)
            return Packed(structure.composition.reduced_formula, loosest, *described)
        if symprec is not None:
            found.append(find_symmetry(structure, symprec, setting=Setting.standard()))
    raise InputError(f"expected a description within {EXACT} A at a tolerance of {SYMPRECS} A, found none")


def _described(arrays: Arrays, found: Any) -> tuple[Any, ...] | None:
    """What `Packed` holds, from the group on; None where that is further than `EXACT` from the source."""
    cell = _parameters(np.array(found.std_cell.basis))
    lengths, angles = np.round(cell[:3] / LENGTH_STEP), np.round(cell[3:] / ANGLE_STEP)
    basis = primitive_basis(found.number, np.concatenate([lengths * LENGTH_STEP, angles * ANGLE_STEP]))
    sites = _sites(found, basis)
    if sites is None:
        return None
    packed = (int(found.number), lengths, angles, *sites)
    error = _error(arrays, found, packed)
    return (*packed, error) if error < EXACT else None


def _sites(found: Any, basis: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Elements, multiplicities and rounded coordinates of one atom of each orbit of the primitive cell."""
    positions, numbers = np.mod(found.prim_std_cell.positions, 1.0), np.array(found.prim_std_cell.numbers)
    rotations, shifts = operations(found.number)
    left, rows = np.ones(len(numbers), dtype=bool), []
    for atom, x in enumerate(positions):
        if not left[atom]:
            continue
        images = rotations @ x + shifts
        apart = images[:, None] - positions
        distance = np.linalg.norm((apart - np.round(apart)) @ basis, axis=-1)
        equal = np.unique(distance.argmin(axis=1))
        if distance.min(axis=1).max() > EXACT * 20 or not left[equal].all() or (numbers[equal] != numbers[atom]).any():
            return None
        left[equal] = False
        rows.append((numbers[atom], len(equal), np.mod(np.round(x * STEPS), STEPS)))
    rows.sort(key=lambda row: (row[0], row[1], row[2].tolist()))
    return tuple(np.array(column) for column in zip(*rows, strict=True))  # type: ignore[return-value]


def _error(arrays: Arrays, found: Any, packed: tuple[Any, ...]) -> float:
    """Largest distance (A) of what is read back from the source: of the cell's vectors, and of atoms."""
    group, lengths, angles, elements, multiplicities, coordinates = packed
    cell = np.concatenate([lengths * LENGTH_STEP, angles * ANGLE_STEP])
    try:
        basis, numbers, positions = expand(group, cell, elements, multiplicities, coordinates)
    except ValueError:
        return float("inf")
    linear = np.array(found.prim_std_linear)
    source = linear.T @ arrays[0] @ np.array(found.std_rotation_matrix).T
    cells = np.linalg.norm(source - basis, axis=1).max()
    moved = (arrays[2] - found.prim_std_origin_shift) @ np.linalg.inv(linear).T
    apart = moved[:, None] - positions
    distance = np.linalg.norm((apart - np.round(apart)) @ basis, axis=-1)
    distance[arrays[1][:, None] != numbers] = np.inf
    taken = np.bincount(distance.argmin(axis=1), minlength=len(numbers))
    if (taken != len(arrays[1]) / len(numbers)).any():
        return float("inf")
    return float(max(cells, distance.min(axis=1).max()))


def _parameters(basis: np.ndarray) -> np.ndarray:
    """a, b, c and angles in degrees of row vectors."""
    from pymatgen.core import Lattice

    return np.array(Lattice(basis).parameters)


def build(
    sources: Sequence[str | Path],
    output: str | Path,
    splits: Sequence[str] = SPLITS,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Write the table of reference crystals and, beside it, a JSON with its provenance, which is returned.

    Args:
        sources: CSVs with the columns material_id and cif and, where known, split, e_above_hull, e_above_hull_source,
            formation_energy_per_atom (eV/atom) and formation_energy_source.
        output: a name ending in .npz.
        splits: values of the column split to take; rows of tables without that column are all taken.
        workers: processes.
        progress: called with crystals done and their total.

    Raises:
        InputError: no usable row, or an id or source that the table cannot hold.
    """
    frame, digests = _read(sources, splits)
    rows: list[int] = []
    crystals: list[Packed] = []
    left_out: dict[str, str] = {}
    with ProcessPoolExecutor(workers) as pool:
        for row, found in enumerate(pool.map(_pack_text, frame["cif"], chunksize=100)):
            if isinstance(found, Packed):
                rows.append(row)
                crystals.append(found)
            else:
                left_out[frame["material_id"][row]] = found
            if progress is not None and row % 100 == 99:
                progress(row + 1, len(frame))
    if not rows:
        raise InputError(f"expected crystals of the splits {', '.join(splits)} in {', '.join(digests)}, found none")
    table = _table(frame.iloc[rows], crystals)
    output = Path(output)
    save(output, table)
    about = {
        "what": "known crystals: space group, one atom of each orbit, cell",
        "crystals": len(rows),
        "formulas": len(set(table["formula"].tolist())),
        "splits": list(splits),
        "left_out": left_out,
        "largest_error_angstrom": round(max(crystal.error for crystal in crystals), 6),
        "attribution": ATTRIBUTION,
        "licence": "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/)",
        "energies": "published ones of the Materials Project, eV/atom; formation energies of the data sets mb and "
        "megnet are of the 2018-19 release, those of mp20 and mpts of a later one: they do not mix in one hull",
        "sources": digests,
        "made_by": f"discovery-loop reference build {' '.join(digests)} --output {output.name}",
        "date": datetime.now(UTC).date().isoformat(),
        "sha256": sha256(output),
    }
    write_text(output.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    return about


def save(path: Path, table: dict[str, np.ndarray]) -> None:
    """Write arrays as .npz that `numpy.load` reads, packed by LZMA; the same arrays give the same bytes."""
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", compression=zipfile.ZIP_LZMA) as archive:
        for name in ARRAYS:
            member = BytesIO()
            np.lib.format.write_array(member, np.ascontiguousarray(table[name]), allow_pickle=False)
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            archive.writestr(info, member.getvalue(), compress_type=zipfile.ZIP_LZMA)
    write_bytes(path, packed.getvalue())


def _read(sources: Sequence[str | Path], splits: Sequence[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Rows of the splits in all sources, by id, and the checksum of each file."""
    import pandas as pd

    frames, digests = [], {}
    for source in map(Path, sources):
        frame, ids = read_frame(source)
        frame["material_id"] = ids
        if "cif" not in frame:
            raise InputError(f"expected a column cif in {source}, found {', '.join(map(str, frame.columns))}")
        frames.append(frame[frame["split"].isin(splits)] if "split" in frame else frame)
        digests[source.name] = sha256(source)
    rows = pd.concat(frames, ignore_index=True).drop_duplicates("material_id")
    for column in ("e_above_hull", "formation_energy_per_atom"):
        rows[column] = pd.to_numeric(rows[column], errors="raise") if column in rows else np.nan
    for column in ("e_above_hull_source", "formation_energy_source"):
        rows[column] = rows[column].fillna("") if column in rows else ""
    parts = rows["material_id"].str.extract(r"^([A-Za-z]+)-(\d+)$")
    if parts.isna().any(axis=None):
        raise InputError(f"expected ids as mp-149, found {rows['material_id'][parts.isna().any(axis=1)].iloc[0]!r}")
    rows["prefix"], rows["number"] = parts[0], parts[1].astype(np.uint32)
    return rows.sort_values(["prefix", "number"], ignore_index=True), digests


def _structure(arrays: Arrays) -> Structure:
    from pymatgen.core import Element, Structure

    return Structure(arrays[0], [Element.from_Z(int(z)) for z in arrays[1]], arrays[2])


def _pack_text(cif: Any) -> Packed | str:
    """A crystal, or the reason why there is none."""
    try:
        return pack(parse_cif(cif))
    except InputError as error:
        return str(error)


def _table(frame: pd.DataFrame, crystals: list[Packed]) -> dict[str, np.ndarray]:
    prefixes = sorted(set(frame["prefix"]))
    return {
        "prefix": np.array([prefixes.index(prefix) for prefix in frame["prefix"]], dtype=np.uint8),
        "number": frame["number"].to_numpy(np.uint32),
        "formula": np.array([crystal.formula.encode("ascii") for crystal in crystals]),
        "space_group": np.array([crystal.space_group for crystal in crystals], dtype=np.uint8),
        "setting": np.array([crystal.group for crystal in crystals], dtype=np.uint8),
        "sites": np.array([len(crystal.elements) for crystal in crystals], dtype=np.uint8),
        "element": np.concatenate([crystal.elements for crystal in crystals]).astype(np.uint8),
        "multiplicity": np.concatenate([crystal.multiplicities for crystal in crystals]).astype(np.uint8),
        "coordinates": np.concatenate([crystal.coordinates for crystal in crystals]).T.astype(np.uint16),
        "lengths": np.array([crystal.lengths for crystal in crystals]).T.astype(np.uint32),
        "angles": np.array([crystal.angles for crystal in crystals]).T.astype(np.uint32),
        "e_above_hull": _steps(frame["e_above_hull"]),
        "hull_source": _codes(frame["e_above_hull_source"], HULL_SOURCES),
        "formation_energy": _steps(frame["formation_energy_per_atom"]),
        "formation_source": _codes(frame["formation_energy_source"], SOURCES),
        "prefixes": np.array(prefixes),
        "attribution": np.array(ATTRIBUTION),
    }


def _steps(energies: pd.Series) -> np.ndarray:
    values = energies.to_numpy(float)
    return np.where(np.isfinite(values), np.round(np.nan_to_num(values) / ENERGY_STEP), NO_ENERGY).astype(np.int32)


def _codes(names: pd.Series, allowed: tuple[str, ...]) -> np.ndarray:
    unknown = sorted(set(names) - set(allowed))
    if unknown:
        raise InputError(f"expected sources of energies among {', '.join(filter(None, allowed))}, found {unknown[0]!r}")
    return np.array([allowed.index(name) for name in names], dtype=np.uint8)
