"""From crystals to a table of named columns, cached by content id."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from pymatgen.core import Structure

from loop.contracts import Progress
from loop.errors import InputError
from loop.io.disk import writing
from loop.values import Candidate
from surrogates.blocks import (
    Block,
    CompositionBlock,
    Descriptors,
    ElementBlock,
    GeometryBlock,
    HullDistance,
    PotentialBlock,
    SymmetryBlock,
)
from surrogates.electronic import ElectronicBlock

CHUNK = 256  # crystals featurised at a time: what one progress step covers
# Raised when the meaning of a column changes, so that old caches are not read.
VERSION = 1


def default_blocks(
    descriptors: Descriptors | None = None, e_above_hull: HullDistance | None = None, *, key: str = "", size: int = 64
) -> tuple[Block, ...]:
    """Composition, elements, electrons, symmetry and geometry; a frozen potential's descriptors where one is given."""
    blocks: tuple[Block, ...] = (
        CompositionBlock(),
        ElementBlock(),
        ElectronicBlock(),
        SymmetryBlock(),
        GeometryBlock(),
    )
    if descriptors is not None:
        blocks = (*blocks, PotentialBlock(descriptors, key, e_above_hull, size))
    return blocks


class FeatureExtractor:
    """Turns candidates into X of shape (n, d), float64, NaN where a feature could not be computed.

    Rows are kept in memory by candidate id and, where a folder is given, in npz files beside each other (one for each
    call that computed something), which later processes read.

    Args:
        blocks: what to compute; `default_blocks()` if None.
        cache: folder of the on-disk cache; None keeps rows in memory only.
    """

    def __init__(self, blocks: Sequence[Block] | None = None, cache: Path | None = None) -> None:
        self.blocks = tuple(default_blocks() if blocks is None else blocks)
        self.names: tuple[str, ...] = tuple(name for block in self.blocks for name in block.columns)
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"feature names must be unique, got {self.names}")
        self.key = self._hash()
        self.failures = 0  # block by crystal, in this process
        self._rows: dict[str, int] = {}
        self._table = np.empty((0, len(self.names)))
        self._folder = None if cache is None else Path(cache) / self.key
        if self._folder is not None:
            self._read(self._folder)

    @property
    def groups(self) -> dict[str, np.ndarray]:
        """Indices of the columns of each group."""
        prefixes = np.array([name.split(":")[0] for name in self.names])
        return {str(group): np.flatnonzero(prefixes == group) for group in dict.fromkeys(prefixes.tolist())}

    def detached(self) -> FeatureExtractor:
        """A copy that answers from memory alone, and so can go to another process whatever the blocks hold."""
        copy = FeatureExtractor(())
        copy.names, copy.key, copy._rows, copy._table = self.names, self.key, self._rows, self._table
        return copy

    def _hash(self) -> str:
        """Hash of what the columns mean: a cache of another key is never read."""
        parts = [str(VERSION), *self.names, *(block.key for block in self.blocks)]
        return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, candidates: Sequence[Candidate], progress: Progress | None = None) -> np.ndarray:
        """X of shape (n, d). Computes only what the cache lacks.

        A crystal on which a block fails keeps NaN in that block's columns and adds one to `failures`.
        """
        missing = {c.id: c.structure for c in candidates if c.id not in self._rows}
        if missing and not self.blocks:
            raise ValueError(f"a detached extractor has no features of {len(missing)} crystals, such as {min(missing)}")
        if missing:
            self._compute(missing, progress)
        return self._table[[self._rows[c.id] for c in candidates]]

    def _compute(self, missing: dict[str, Structure], progress: Progress | None) -> None:
        ids, structures = list(missing), list(missing.values())
        parts = []
        if progress is not None:
            progress("features", 0, len(ids), {})  # a clock starts here, however often crystals are featurised
        for start in range(0, len(ids), CHUNK):
            chunk = structures[start : start + CHUNK]
            parts.append(np.column_stack([self._block(block, chunk) for block in self.blocks]))
            if progress is not None:
                progress("features", min(start + CHUNK, len(ids)), len(ids), {"failures": float(self.failures)})
        self._add(ids, np.concatenate(parts))
        if self._folder is not None:
            _write(self._folder, ids, self._table[-len(ids) :])

    def _block(self, block: Block, structures: Sequence[Structure]) -> np.ndarray:
        """One block over a chunk; on an error crystal by crystal, so that one bad crystal costs only itself."""
        try:
            rows = np.asarray(block.compute(structures), dtype=float)
        except Exception:
            if len(structures) == 1:
                self.failures += 1
                return np.full((1, len(block.columns)), np.nan)
            return np.concatenate([self._block(block, [structure]) for structure in structures])
        if rows.shape != (len(structures), len(block.columns)):
            raise ValueError(
                f"{type(block).__name__} must give shape {(len(structures), len(block.columns))}, gave {rows.shape}"
            )
        return np.where(np.isfinite(rows), rows, np.nan)

    def _add(self, ids: list[str], rows: np.ndarray) -> None:
        self._rows |= {id: len(self._rows) + i for i, id in enumerate(ids)}
        self._table = np.concatenate([self._table, rows])

    def _read(self, folder: Path) -> None:
        for path in sorted(folder.glob("part-*.npz")):
            try:
                with path.open("rb") as stream, np.load(stream, allow_pickle=False) as part:
                    ids, rows = part["ids"].tolist(), part["rows"]
            except (OSError, ValueError, KeyError, EOFError, BadZipFile, zlib.error) as error:
                raise InputError(
                    f"expected a feature cache in {path}, could not read it ({error}); delete it to recompute"
                ) from error
            fresh = [i for i, id in enumerate(ids) if id not in self._rows]
            self._add([ids[i] for i in fresh], rows[fresh])


def add_to_cache(cache: Path, extractor: FeatureExtractor, ids: Sequence[str], rows: np.ndarray) -> None:
    """Put features that came from elsewhere into a cache, as rows (n, d) of an extractor's columns.

    Raises:
        ValueError: the shape does not fit.
    """
    if rows.shape != (len(ids), len(extractor.names)):
        raise ValueError(f"expected rows of shape {(len(ids), len(extractor.names))}, got {rows.shape}")
    _write(Path(cache) / extractor.key, list(ids), rows)


def _write(folder: Path, ids: list[str], rows: np.ndarray) -> None:
    """Add one part, atomically: a killed process leaves no half-written file behind."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256("".join(ids).encode()).hexdigest()[:16]
    temporary = folder / f".{name}-{os.getpid()}.npz"
    with writing(folder):
        with temporary.open("wb") as file:
            np.savez(file, ids=np.array(ids), rows=rows)
        temporary.replace(folder / f"part-{name}.npz")
