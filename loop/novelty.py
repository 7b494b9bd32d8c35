"""Is a crystal new? Against the known ones, against what the campaign has seen, and within a batch.

Fingerprint first (`loop.fingerprint`); pymatgen's StructureMatcher second, where both structures are at hand. Where the
known crystal itself is there, the matcher decides what is known; it scales volumes, so that a potential's other volume
makes no crystal new. No clock decides: a matcher with a time limit would give other verdicts on other machines, so
large cells go by fingerprint.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Element, Structure

from loop.contracts import CrystalLibrary
from loop.fingerprint import SYMPRECS, Fingerprint, fingerprint, symmetry
from loop.known import KnownCrystals
from loop.values import DUPLICATE, KNOWN, NEW


@dataclass(frozen=True)
class Tolerances:
    """When two crystals of one formula are the same: largest difference of their geometries.

    Chosen on Materials Project crystals, see `results/novelty/record.json`: 99 of 100 crystals whose atoms were moved
    by 0.05 A, or by 0.03 A under 2 % of strain, stay within `geometry` of themselves.
    """

    geometry: float = 0.035
    """Two crystals of one formula are the same up to this difference of their geometries."""
    same_symmetry: float = 0.045
    """The same, where space group and occupied sites are equal."""
    certain: float = 0.008
    """Below this difference no structure matcher is asked."""
    matcher: float = 0.12
    """Above this difference no structure matcher is asked: the crystals differ."""
    max_sites: int = 60
    """No matcher is asked for larger cells, for which it may run for hours."""


@dataclass(frozen=True)
class Verdict:
    """What a crystal is: ``new``, ``known`` (in the reference) or ``duplicate`` (of one seen before)."""

    kind: str
    match: str | None = None  # id of what it equals
    in_training: bool = False  # the match is a crystal that the shipped generator was trained on
    by: str = "fingerprint"  # or "matcher"


@dataclass(frozen=True, eq=False)
class _Seen:
    """A crystal with what was found out about it; symmetry only when asked for."""

    id: str
    structure: Structure
    print: Fingerprint

    @cached_property
    def symmetries(self) -> set[int]:
        return {symmetry(self.structure, symprec)[1] for symprec in SYMPRECS}


class NoveltyIndex:
    """Known crystals plus an archive that grows.

    Args:
        known: the reference; None for none.
        tolerances: of the comparison.
        crystals: the crystals behind the reference, or some of them: those are compared themselves.
        elements: crystals of an element, by its symbol, that are known beside the reference, by name. Collections of
            compounds often leave the elements out; then even hexagonal rhenium would be a find.
    """

    def __init__(
        self,
        known: KnownCrystals | None = None,
        tolerances: Tolerances | None = None,
        crystals: CrystalLibrary | None = None,
        elements: Callable[[str], Mapping[str, Structure]] | None = None,
    ) -> None:
        self.known, self.crystals, self.elements = known, crystals, elements
        self.tolerances = tolerances or Tolerances()
        self.agreement: Counter[str] = Counter()  # how fingerprint and matcher agreed, over the life of this object
        self._archive: dict[int, list[_Seen]] = defaultdict(list)
        self._of_element: dict[str, list[_Seen]] = {}
        self._matcher = StructureMatcher()
        self._of_supercells = StructureMatcher(attempt_supercell=True)  # a distorted supercell has no smaller cell

    def __len__(self) -> int:
        """Size of the archive."""
        return sum(map(len, self._archive.values()))

    def emptied(self) -> Self:
        """The same reference with an empty archive."""
        return type(self)(self.known, self.tolerances, self.crystals, self.elements)

    def protocol(self) -> dict[str, Any]:
        """What a verdict rests on, for records."""
        reference = "none" if self.known is None else f"{len(self.known)} fingerprints of known crystals"
        if self.crystals is not None:
            reference += ", confirmed by the matcher where the crystal itself is there"
        if self.elements is not None:
            reference += "; textbook crystals of the elements"
        matcher = {name: getattr(self._matcher, name, None) for name in ("ltol", "stol", "angle_tol")}
        return {"reference": reference, "tolerances": asdict(self.tolerances), "matcher": matcher}

    def judge(self, structures: Sequence[Structure], ids: Sequence[str], *, quick: bool = False) -> list[Verdict]:
        """One verdict a structure; later copies within the batch are duplicates of the first. Adds nothing.

        Args:
            structures: ordered crystals.
            ids: of the crystals, named in verdicts on later ones.
            quick: by fingerprint alone, some 2 ms each, as a reward needs it.
        """
        batch: dict[int, list[_Seen]] = defaultdict(list)
        verdicts = []
        for structure, identifier in zip(structures, ids, strict=True):
            seen = _Seen(identifier, structure, fingerprint(structure, with_symmetry=False))
            verdict = self._in_known(seen, quick) or self._in_elements(seen, quick) or self._in_seen(seen, batch, quick)
            if verdict is None:
                verdict = Verdict(NEW)
                batch[seen.print.formula].append(seen)
            verdicts.append(verdict)
        return verdicts

    def add(self, structures: Sequence[Structure], ids: Sequence[str]) -> None:
        """Put crystals into the archive."""
        for structure, identifier in zip(structures, ids, strict=True):
            seen = _Seen(identifier, structure, fingerprint(structure, with_symmetry=False))
            self._archive[seen.print.formula].append(seen)

    def forget(self, ids: Collection[str]) -> None:
        """Take crystals out of the archive again, all that were added under these ids."""
        for formula, crystals in self._archive.items():
            self._archive[formula] = [seen for seen in crystals if seen.id not in ids]

    def _in_known(self, seen: _Seen, quick: bool) -> Verdict | None:
        rows = self.known.of_formula(seen.print.formula) if self.known is not None else range(0)
        if self.known is None or not rows:
            return None
        distances = self.known.distances(seen.print, rows)
        row = self._by_fingerprint(seen, self.known, rows, distances)
        by = "fingerprint"
        if self.crystals is not None and not quick and len(seen.structure) <= self.tolerances.max_sites:
            nearest_first = [rows[i] for i in np.argsort(distances)]
            row, by = self._by_matcher(seen, self.known, self.crystals, row, nearest_first)
        return None if row is None else Verdict(KNOWN, self.known.id(row), self.known.in_training(row), by)

    def _in_elements(self, seen: _Seen, quick: bool) -> Verdict | None:
        numbers = {site.specie.Z for site in seen.structure}  # Fe2+ and Fe3+ are one element
        if self.elements is None or len(numbers) > 1:
            return None
        others = self._crystals_of(Element.from_Z(numbers.pop()).symbol)
        for other in sorted(others, key=partial(_distance, seen)):  # the nearest names it
            same, by = self._same(seen, other, quick)
            if same:
                return Verdict(KNOWN, other.id, by=by)
        return None

    def _crystals_of(self, symbol: str) -> list[_Seen]:
        """Known crystals of an element, each once: of two equal ones the last bits would choose which names a match."""
        if symbol not in self._of_element and self.elements is not None:
            kept: list[_Seen] = []
            for name, structure in self.elements(symbol).items():
                one = _Seen(name, structure, fingerprint(structure, with_symmetry=False))
                if all(_distance(one, other) > self.tolerances.certain for other in kept):
                    kept.append(one)
            self._of_element[symbol] = kept
        return self._of_element[symbol]

    def _by_fingerprint(self, seen: _Seen, known: KnownCrystals, rows: range, distances: np.ndarray) -> int | None:
        """Row of the known crystal that has the fingerprint, if any."""
        nearest = int(np.argmin(distances))
        if distances[nearest] <= self.tolerances.geometry:
            return rows[nearest]
        likely = [i for i in np.argsort(distances) if distances[i] <= self.tolerances.same_symmetry]
        return next((rows[i] for i in likely if seen.symmetries & known.symmetries(rows[i])), None)

    def _by_matcher(
        self, seen: _Seen, known: KnownCrystals, crystals: CrystalLibrary, found: int | None, rows: list[int]
    ) -> tuple[int | None, str]:
        """The first crystal of a formula that the matcher takes it for; that which has the fingerprint is asked first.

        Where that one is not among the crystals, its fingerprint decides.
        """
        if found is not None and known.id(found) not in crystals:
            self.agreement["fingerprint alone"] += 1
            return found, "fingerprint"
        present = [row for row in rows if known.id(row) in crystals]
        for row in dict.fromkeys([*present] if found is None else [found, *present]):
            structure = crystals.structure(known.id(row))
            matcher = self._of_supercells if row == found else self._matcher
            if len(structure) <= self.tolerances.max_sites and matcher.fit(seen.structure, structure):
                self.agreement["both" if found is not None else "matcher alone"] += 1
                return row, "matcher"
        if present:
            self.agreement["neither" if found is None else "denied by the matcher"] += 1
        return None, "matcher"

    def _in_seen(self, seen: _Seen, batch: dict[int, list[_Seen]], quick: bool) -> Verdict | None:
        for other in [*self._archive.get(seen.print.formula, []), *batch.get(seen.print.formula, [])]:
            same, by = self._same(seen, other, quick)
            if same:
                return Verdict(DUPLICATE, other.id, by=by)
        return None

    def _same(self, one: _Seen, other: _Seen, quick: bool) -> tuple[bool, str]:
        distance = _distance(one, other)
        large = max(len(one.structure), len(other.structure)) > self.tolerances.max_sites
        if quick or large:
            return distance <= self.tolerances.geometry, "fingerprint"
        if distance <= self.tolerances.certain or distance > self.tolerances.matcher:
            return distance <= self.tolerances.certain, "fingerprint"
        return bool(self._matcher.fit(one.structure, other.structure)), "matcher"


def _distance(one: _Seen, other: _Seen) -> float:
    """Largest difference of two geometries."""
    return float(np.abs(one.print.geometry - other.print.geometry).max())
