"""Preparing training data: a table of crystals becomes tokens, in parallel, once."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from generator.representation.tokens import MAX_SITES, CrystalBatch, TokenError, tokenize, tokenize_arrays
from loop.errors import InputError
from loop.io.cif import parse_cif
from loop.io.crystals import CIF_COLUMN, read_crystals, read_frame
from loop.io.formats import crystal_of
from loop.io.opening import bare_name, clean
from loop.io.structure_dicts import looks_like_dict

if TYPE_CHECKING:
    import pandas as pd

    from loop.contracts import Progress

_CHUNK = 200  # crystals a task: long enough to hide the cost of sending them, short enough for a smooth progress bar
_FORMAT = 4  # raise when tokens change meaning, so that old caches are not read


@dataclass(frozen=True)
class Failure:
    """A row that gave no tokens."""

    row: int
    id: str
    kind: str
    message: str


@dataclass(frozen=True, eq=False)
class Prepared:
    """Tokens of the rows that could be tokenised, in the order of the file, and the list of those that could not."""

    batch: CrystalBatch
    rows: np.ndarray  # (n,) int64, row number in the file
    ids: np.ndarray  # (n,) str
    failures: tuple[Failure, ...]

    def failures_by_kind(self) -> dict[str, int]:
        """How many rows failed, by kind."""
        return dict(Counter(failure.kind for failure in self.failures))

    def save(self, path: Path) -> None:
        """Write one .npz without pickles."""
        arrays = {name: getattr(self.batch, name) for name in ("G", "W", "A", "XYZ", "L")}
        failures = np.array(json.dumps([asdict(failure) for failure in self.failures]))
        temporary = path.with_name(path.name + ".tmp.npz")
        np.savez_compressed(temporary, **arrays, rows=self.rows, ids=self.ids, failures=failures)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Prepared:
        """Read what `save` wrote."""
        batch = CrystalBatch.load(path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
            failures = tuple(Failure(**failure) for failure in json.loads(str(data["failures"])))
            return cls(batch, data["rows"], data["ids"], failures)


@dataclass(frozen=True)
class PrepareConfig:
    """How crystals become tokens."""

    symprec: float = 0.01  # Angstrom; the published model's value
    max_sites: int = MAX_SITES
    canonical: bool = True


def prepare(
    path: Path,
    config: PrepareConfig = PrepareConfig(),
    *,
    where: Callable[[pd.DataFrame], Any] | None = None,
    workers: int = 2,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Tokenise the crystals of a CSV or CSV.gz with a `cif` column (or of any source that `loop.io.crystals` reads).

    Args:
        path: the source.
        config: tolerance and limits.
        where: given the table, returns a boolean mask of the rows to take.
        workers: processes; 1 stays in this one.
        cache: folder for results, keyed by the content of the CSV and the settings; other sources are not cached.
        progress: called after every few hundred crystals with the counts of failures.

    Returns:
        Tokens, and the rows that failed with kind (unreadable, disordered, overlap and others of `loop.plausibility`,
        unsupported-element, symmetry-failed, too-many-sites) and message.

    Raises:
        InputError: the source cannot be read or has no column `cif`, or no row gives a crystal.
    """
    path = Path(path)
    frame, ids, items = _read(path)
    rows = np.arange(len(frame)) if where is None else np.flatnonzero(np.asarray(where(frame), dtype=bool))
    stored = None if cache is None or not path.is_file() else Path(cache) / f"{_key(path, config, rows)}.npz"
    if stored is not None and stored.is_file():
        return Prepared.load(stored)
    results = _tokenize_rows([items[row] for row in rows], config, workers)
    prepared = _collect(results, rows, [ids[row] for row in rows], progress)
    if len(prepared.batch) == 0:
        raise InputError(f"no crystal of {path} could be tokenised ({len(rows)} rows; {prepared.failures_by_kind()})")
    if stored is not None:
        stored.parent.mkdir(parents=True, exist_ok=True)
        prepared.save(stored)
    return prepared


def _read(path: Path) -> tuple[pd.DataFrame, list[str], list[Any]]:
    """Table, ids and CIF texts; for other sources structures, or kind and message of what is not read."""
    if bare_name(path).lower().endswith(".csv") and not path.is_dir():
        frame, ids = read_frame(path)
        return frame, ids, frame[CIF_COLUMN].tolist()
    table = read_crystals(path)
    reasons = {failure.row: (failure.kind, failure.reason) for failure in table.failures}
    return table.frame, table.ids, [s if s is not None else reasons[i] for i, s in enumerate(table.structures)]


def _key(path: Path, config: PrepareConfig, rows: np.ndarray) -> str:
    digest = hashlib.sha256(path.read_bytes())
    digest.update(json.dumps([_FORMAT, asdict(config)]).encode())
    digest.update(rows.tobytes())
    return digest.hexdigest()[:24]


Outcome = CrystalBatch | tuple[str, str]
"""Tokens of one crystal, or kind and message of a failure."""


def _tokenize_rows(items: Sequence[Any], config: PrepareConfig, workers: int) -> Iterator[list[Outcome]]:
    chunks = (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))
    if workers == 1 or len(items) <= _CHUNK:
        return (_tokenize_chunk(chunk, config) for chunk in chunks)
    from joblib import Parallel, delayed

    result: Iterator[list[CrystalBatch | tuple[str, str]]] = Parallel(n_jobs=workers, return_as="generator")(
        delayed(_tokenize_chunk)(chunk, config) for chunk in chunks
    )
    return result


def _tokenize_chunk(chunk: Sequence[Any], config: PrepareConfig) -> list[Outcome]:
    return [tokenize_item(item, config) for item in chunk]


def tokenize_item(item: Any, config: PrepareConfig) -> Outcome:
    """Tokens of a CIF text or a structure, or kind and message of what is wrong with it; never raises.

    Args:
        item: a text, a structure, or kind and message of a failure to read one, which are given back.
        config: tolerance and limits.
    """
    try:
        if isinstance(item, tuple):
            return item
        if isinstance(item, str) and not looks_like_dict(item):  # the usual case, in the quickest way
            return tokenize_arrays(parse_cif(clean(item)), config.symprec, config.max_sites, canonical=config.canonical)
        structure = item if hasattr(item, "lattice") else crystal_of(item)[0]
        return tokenize(structure, config.symprec, config.max_sites, canonical=config.canonical)
    except TokenError as error:
        return error.kind, str(error)
    except InputError as error:
        return error.kind, str(error)
    except Exception as error:  # a row must never end the whole preparation
        return "unexpected", f"{type(error).__name__}: {error}"


def _collect(
    results: Iterator[list[Outcome]], rows: np.ndarray, ids: Sequence[str], progress: Progress | None
) -> Prepared:
    batches: list[CrystalBatch] = []
    kept: list[int] = []
    failures: list[Failure] = []
    done = 0
    for outcomes in results:
        for outcome in outcomes:
            if isinstance(outcome, CrystalBatch):
                batches.append(outcome)
                kept.append(done)
            else:
                failures.append(Failure(int(rows[done]), ids[done], *outcome))
            done += 1
        if progress is not None:
            progress("prepare", done, len(rows), {"failures": float(len(failures))})
    batch = CrystalBatch.concatenate(batches) if batches else CrystalBatch.empty()
    return Prepared(batch, rows[kept], np.array([ids[i] for i in kept], dtype=str), tuple(failures))
