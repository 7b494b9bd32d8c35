"""Tokens of one crystal as JSON: what a generator drew, kept exactly in files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from generator.tokens import ATOM_TYPES, CrystalBatch, TokenError
from generator.wyckoff import LETTERS, N_GROUPS, tables

UNREADABLE = "unreadable-tokens"


def to_json(batch: CrystalBatch, i: int = 0) -> str:
    """Crystal i: space group, letters, elements, coordinates of the sites, and the cell as `CrystalBatch.L` has it."""
    sites = np.flatnonzero(batch.W[i])
    data = {
        "g": int(batch.G[i]),
        "w": "".join(LETTERS[w] for w in batch.W[i, sites]),
        "a": batch.A[i, sites].tolist(),
        "x": batch.XYZ[i, sites].tolist(),
        "l": batch.L[i].tolist(),
    }
    return json.dumps(data, separators=(",", ":"))


def from_json(text: str, slots: int) -> CrystalBatch:
    """The crystal that `to_json` wrote, in a batch of one with `slots` slots.

    Raises:
        TokenError: it reads otherwise, or has too many sites.
    """
    try:
        data = json.loads(text)
        g, letters = int(data["g"]), [LETTERS.index(letter) for letter in data["w"]]
        elements, points = np.array(data["a"], int), np.array(data["x"], float).reshape(len(letters), 3)
        cell = np.array(data["l"], float).reshape(1, 6)
        n = len(letters)
        known = 1 <= g <= N_GROUPS and min(letters) > 0 and max(letters) <= tables().n_letters[g]
        if not known or len(elements) != n or elements.min() < 1 or elements.max() >= ATOM_TYPES:
            raise ValueError("a letter that the group lacks, or an element outside 1..118")
        if not (np.isfinite(points).all() and np.isfinite(cell).all() and (cell > 0).all()):
            raise ValueError("numbers that are not finite")
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise TokenError(UNREADABLE, f"expected the tokens of a crystal as `generate` writes them: {error}") from error
    if n >= slots:
        raise TokenError("too-many-sites", f"{n} inequivalent sites, at most {slots - 1} were expected")
    W, A, XYZ = np.zeros((1, slots), np.int8), np.zeros((1, slots), np.int8), np.zeros((1, slots, 3))
    W[0, :n], A[0, :n], XYZ[0, :n] = letters, elements, points
    return CrystalBatch(np.array([g], np.int16), W, A, XYZ, cell)


def describe(batch: CrystalBatch) -> dict[str, list[Any]]:
    """Columns of a table of crystals: space group, atoms of the primitive and of the conventional cell, tokens."""
    from generator.reach import centring

    conventional = batch.natoms.tolist()
    groups = batch.G.tolist()
    return {
        "space_group": groups,
        "n_atoms": [n // centring(g) for n, g in zip(conventional, groups, strict=True)],
        "n_atoms_conventional": conventional,
        "tokens": [to_json(batch, i) for i in range(len(batch))],
    }
