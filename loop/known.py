"""The known crystals: a table of fingerprints that the project computed, never the crystals themselves.

Made again by ``python -m loop.known --output FOLDER CSV...`` from CSVs with the columns `material_id`, `cif` and, where
there, `split` and `e_above_hull`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np

from loop.errors import InputError
from loop.fingerprint import N_GEOMETRY, SYMPRECS, Fingerprint, fingerprint
from loop.io.crystals import read_frame

MARGIN = 0.15  # beyond any tolerance of `loop.novelty`
TRAIN, STABLE = 1, 2  # bits of `flags`: in the train split; at most 0.1 eV/atom above the published hull
_ARRAYS = {
    "formula": np.uint64,  # sorted
    "geometry": np.uint8,  # (n, 24): between `low` and `high` of its column in 255 steps
    "low": np.float32,
    "high": np.float32,
    "volume": np.float16,
    "symmetry": np.uint32,  # at the loose tolerance
    "tight_rows": np.uint32,  # rows whose symmetry differs at the tight tolerance, and that symmetry
    "tight_symmetry": np.uint32,
    "space_group": np.uint8,  # at the loose tolerance
    "number": np.uint32,  # of the id, such as 149 of mp-149
    "prefix": np.uint8,
    "prefixes": np.str_,
    "flags": np.uint8,
}


@dataclass(frozen=True, eq=False)
class KnownCrystals:
    """Fingerprints of n known crystals, sorted by formula."""

    arrays: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.arrays["formula"])

    @classmethod
    def shipped(cls) -> Self:
        """The table in the package: Materials Project crystals of at most 52 atoms per cell (CC BY 4.0)."""
        with resources.as_file(resources.files("loop") / "data" / "known_crystals.npz") as path:
            return cls.load(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a table.

        Raises:
            InputError: the file is missing, damaged, or of another layout.
        """
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _ARRAYS}
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"The table of known crystals {path} cannot be read: {error}.") from error
        if arrays["geometry"].shape != (len(arrays["formula"]), N_GEOMETRY):
            raise InputError(
                f"The table {path} holds geometries of shape {arrays['geometry'].shape}, expected (n, {N_GEOMETRY}): "
                "make it again with `python -m loop.known`."
            )
        return cls(arrays)

    @classmethod
    def from_fingerprints(cls, ids: list[str], prints: list[Fingerprint], flags: list[int] | None = None) -> Self:
        """Table of fingerprints with symmetry; ids such as ``mp-149`` are kept as prefix and number."""
        order = np.argsort([found.formula for found in prints], kind="stable")
        prints, ids = [prints[i] for i in order], [ids[i] for i in order]
        prefixes = sorted({identifier.rpartition("-")[0] for identifier in ids})
        geometry = np.array([found.geometry for found in prints]).reshape(len(prints), N_GEOMETRY)
        # the rare extremes are clipped, in tables and queries alike, so that 255 steps resolve the rest; the margin
        # keeps queries outside the range of a small table apart
        low, high = np.quantile(geometry, [0.001, 0.999], axis=0) if prints else np.zeros((2, N_GEOMETRY))
        low, high = low - MARGIN, high + MARGIN
        symmetries = np.array([found.symmetries for found in prints], dtype=np.int64).reshape(-1, len(SYMPRECS))
        tight = np.flatnonzero(symmetries[:, 0] != symmetries[:, 1])
        arrays = {
            "formula": [found.formula for found in prints],
            "geometry": np.round(_scaled(geometry, low, high)),
            "low": low,
            "high": high,
            "volume": [found.volume for found in prints],
            "symmetry": symmetries[:, 0],
            "tight_rows": tight,
            "tight_symmetry": symmetries[tight, 1],
            "space_group": [found.space_groups[0] for found in prints],
            "number": [int(identifier.rpartition("-")[2]) for identifier in ids],
            "prefix": [prefixes.index(identifier.rpartition("-")[0]) for identifier in ids],
            "prefixes": prefixes,
            "flags": np.zeros(len(ids)) if flags is None else [flags[i] for i in order],
        }
        return cls({name: np.asarray(values).astype(_ARRAYS[name]) for name, values in arrays.items()})

    def save(self, path: Path) -> None:
        """Write as a compressed npz without pickles."""
        with path.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **self.arrays)

    def id(self, row: int) -> str:
        """Id of a row, such as ``mp-149``."""
        prefix = self.arrays["prefixes"][self.arrays["prefix"][row]]
        number = self.arrays["number"][row]
        return f"{prefix}-{number}" if prefix else str(number)

    def where(self, kept: np.ndarray) -> Self:
        """The table of those rows that a boolean mask (n,) keeps, in the same order."""
        rows = np.flatnonzero(kept)
        tight = np.isin(self.arrays["tight_rows"], rows)
        whole = ("low", "high", "prefixes")
        arrays = {
            name: values if name in whole else values[rows]
            for name, values in self.arrays.items()
            if "tight" not in name
        }
        arrays["tight_rows"] = np.searchsorted(rows, self.arrays["tight_rows"][tight]).astype(np.uint32)
        arrays["tight_symmetry"] = self.arrays["tight_symmetry"][tight]
        return type(self)(arrays)

    def in_training(self, row: int) -> bool:
        """Whether the shipped generator may have seen it: train split, at most 0.1 eV/atom above the hull."""
        return bool(self.arrays["flags"][row] & (TRAIN | STABLE) == (TRAIN | STABLE))

    def of_formula(self, key: int) -> range:
        """Rows of a formula."""
        formulas = self.arrays["formula"]
        first, last = np.searchsorted(formulas, [np.uint64(key), np.uint64(key + 1)])
        return range(int(first), int(last))

    def distances(self, found: Fingerprint, rows: range) -> np.ndarray:
        """Largest difference of geometry to each of some rows, shape (len(rows),)."""
        low, high = self.arrays["low"], self.arrays["high"]
        step = (high - low) / 255
        table = self.arrays["geometry"][rows.start : rows.stop].astype(float)
        result: np.ndarray = (np.abs(table - _scaled(found.geometry, low, high)) * step).max(axis=1, initial=0.0)
        return result

    def symmetries(self, row: int) -> set[int]:
        """Symmetry hashes of a row, at both tolerances."""
        loose = int(self.arrays["symmetry"][row])
        return {loose, self._tight.get(row, loose)}

    @cached_property
    def _tight(self) -> dict[int, int]:
        return dict(zip(self.arrays["tight_rows"].tolist(), self.arrays["tight_symmetry"].tolist(), strict=True))


def _scaled(geometry: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    result: np.ndarray = (np.clip(geometry, low, high) - low) / (high - low) * 255
    return result


def build(paths: list[Path]) -> tuple[KnownCrystals, dict[str, Any]]:
    """Fingerprint every crystal of some CSVs; returns the table and its provenance."""
    ids: list[str] = []
    prints: list[Fingerprint] = []
    flags: list[int] = []
    unread = 0
    for identifier, found, flag in _fingerprints(paths):
        if found is None:
            unread += 1
        else:
            ids.append(identifier)
            prints.append(found)
            flags.append(flag)
    table = KnownCrystals.from_fingerprints(ids, prints, flags)
    return table, {
        "crystals": len(ids),
        "unreadable": unread,
        "formulas": len({found.formula for found in prints}),
        "train_split": int(sum(flag & TRAIN == TRAIN for flag in flags)),
        "train_split_stable": int(sum(flag == TRAIN | STABLE for flag in flags)),
        "symprec_angstrom": list(SYMPRECS),
        "content": "hashes of formula and symmetry, scale-free neighbour counts, volume per atom, id, split flag",
        "source": "Materials Project (https://materialsproject.org), crystals of at most 52 atoms per cell",
        "licence": "CC BY 4.0 (https://creativecommons.org/licenses/by/4.0/); fingerprints computed by this project",
        "citation": "A. Jain et al., APL Materials 1, 011002 (2013), doi:10.1063/1.4812323",
        "made_by": "python -m loop.known",
    }


def _fingerprints(paths: list[Path]) -> Iterator[tuple[str, Fingerprint | None, int]]:
    from loop.io.cif import read_cif

    for path in paths:
        frame, ids = read_frame(path)
        start = time.monotonic()
        split = frame.get("split", [""] * len(frame))
        above = frame.get("e_above_hull", [float("nan")] * len(frame))
        for row, (identifier, text, part, energy) in enumerate(zip(ids, frame["cif"], split, above, strict=True)):
            flag = TRAIN * (part == "train") | STABLE * bool(energy <= 0.1)
            try:
                yield identifier, fingerprint(read_cif(text).structure), flag
            except InputError:
                yield identifier, None, flag
            if row % 5000 == 0:
                print(
                    f"{path.name}: {row} of {len(frame)}, {time.monotonic() - start:.0f} s", file=sys.stderr, flush=True
                )


def main() -> None:
    """Command line of the builder."""
    parser = argparse.ArgumentParser(description="Make the table of known crystals")
    parser.add_argument("csv", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, required=True, help="folder for known_crystals.npz and .json")
    arguments = parser.parse_args()
    table, provenance = build(arguments.csv)
    arguments.output.mkdir(parents=True, exist_ok=True)
    table.save(arguments.output / "known_crystals.npz")
    (arguments.output / "known_crystals.json").write_text(json.dumps(provenance, indent=1) + "\n")
    print(json.dumps(provenance, indent=1))


if __name__ == "__main__":
    main()
