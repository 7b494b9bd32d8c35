"""Is a crystal new? Against the known ones, against what the campaign has seen, and within a batch.

Fingerprint first (`loop.fingerprint`); pymatgen's StructureMatcher second, where both structures are at hand.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from loop.fingerprint import formula_key, geometry

NEW, KNOWN, DUPLICATE = "new", "known", "duplicate"
TOLERANCE = 0.08


@dataclass(frozen=True)
class Verdict:
    """What a crystal is: ``new``, ``known`` (in the reference) or ``duplicate`` (of one seen before)."""

    kind: str
    match: str | None = None  # id of what it equals
    in_training: bool = False  # the match is a crystal that the shipped generator was trained on
    by: str = "fingerprint"  # or "matcher"


@dataclass(frozen=True)
class _Seen:
    id: str
    structure: Structure
    geometry: np.ndarray


class NoveltyIndex:
    """Known crystals plus an archive that grows."""

    def __init__(self) -> None:
        self._archive: dict[int, list[_Seen]] = defaultdict(list)
        self._matcher = StructureMatcher()

    def judge(self, structures: Sequence[Structure], ids: Sequence[str]) -> list[Verdict]:
        """One verdict a structure; later copies within the batch are duplicates of the first. Adds nothing."""
        batch: dict[int, list[_Seen]] = defaultdict(list)
        verdicts = []
        for structure, structure_id in zip(structures, ids, strict=True):
            key, seen = formula_key(structure), _Seen(structure_id, structure, geometry(structure))
            verdict = self._copy_of(seen, [*self._archive.get(key, []), *batch[key]])
            if verdict.kind == NEW:
                batch[key].append(seen)
            verdicts.append(verdict)
        return verdicts

    def add(self, structures: Sequence[Structure], ids: Sequence[str]) -> None:
        """Put crystals into the archive."""
        for structure, structure_id in zip(structures, ids, strict=True):
            self._archive[formula_key(structure)].append(_Seen(structure_id, structure, geometry(structure)))

    def _copy_of(self, seen: _Seen, others: list[_Seen]) -> Verdict:
        for other in others:
            if np.abs(seen.geometry - other.geometry).max() < 4 * TOLERANCE and self._matcher.fit(
                seen.structure, other.structure
            ):
                return Verdict(DUPLICATE, other.id, by="matcher")
        return Verdict(NEW)
