"""What counts as known by default: the shipped crystals, and the textbook crystals of the elements."""

from __future__ import annotations

from loop.known import KnownCrystals
from loop.novelty import NoveltyIndex, Tolerances
from oracles.references.crystals import load_reference_crystals
from oracles.references.element_prototypes import textbook_crystals


def shipped_novelty(tolerances: Tolerances | None = None) -> NoveltyIndex:
    """An index with an empty archive; `tolerances` are those of the comparison."""
    return NoveltyIndex(KnownCrystals.shipped(), tolerances, load_reference_crystals(), textbook_crystals)
