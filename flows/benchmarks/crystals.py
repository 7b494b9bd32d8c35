"""Crystals of published tables, for more than one benchmark."""

from __future__ import annotations

from loop.errors import InputError
from loop.io.cif import read_cif
from loop.values import Candidate


def candidate_of(text: str) -> Candidate | None:
    """None where the text of a CIF holds no usable crystal."""
    try:
        return Candidate(read_cif(text).structure)
    except InputError:
        return None
