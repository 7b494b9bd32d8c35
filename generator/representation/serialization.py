"""Tokens of one crystal as JSON: what a generator drew, kept exactly in files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from generator.representation.tokens import (
    ATOM_TYPES,
    Arrays,
    CrystalBatch,
    TokenError,
    expand,
    tokenize,
    tokenize_arrays,
)
from generator.representation.wyckoff import LETTERS, N_GROUPS, centring, tables

if TYPE_CHECKING:
    from pymatgen.core import Structure

UNREADABLE = "unreadable-tokens"
SAME = 1e-3  # A: how far files may round the places of atoms and the vectors of a cell


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


def describes(batch: CrystalBatch, structure: Structure, i: int = 0) -> bool:
    """Whether the tokens of crystal i are those of a structure, within `SAME`, in whatever cell it is written.

    In groups that have no mirror image of a crystal, a matching in another cell could not tell the two apart: there the
    canonical descriptions are compared, and in doubt the answer is no.
    """
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Structure as Crystal

    arrays = expand(batch, i)
    if arrays is None:
        return False
    basis, numbers, points = arrays
    if _same_sites(basis, numbers, points, structure):
        return True
    if (np.linalg.det(tables().general_ops(int(batch.G[i]))[:, :, :3]) > 0).all():
        return _same_description(arrays, structure)
    other = Crystal(basis, numbers.tolist(), points)
    if other.composition.reduced_formula != structure.composition.reduced_formula:
        return False
    step = SAME / (other.volume / len(other)) ** (1 / 3)
    return bool(StructureMatcher(ltol=SAME / 10, stol=step, angle_tol=0.01, scale=False).fit(other, structure))


def _same_description(arrays: Arrays, structure: Structure) -> bool:
    """Whether a cell and a structure have the same canonical tokens."""
    try:
        ours, theirs = tokenize_arrays(arrays), tokenize(structure)
    except TokenError:
        return False
    if not all((getattr(ours, name) == getattr(theirs, name)).all() for name in ("G", "W", "A")):
        return False
    scale = np.array([*[float(ours.natoms[0]) ** (1 / 3)] * 3, 1, 1, 1])
    cells = (ours.L[0] - theirs.L[0]) * scale
    longest = (ours.L[0] * scale)[:3].max()
    apart = ours.XYZ - theirs.XYZ
    moved = np.abs(apart - np.round(apart)).max() * longest
    return bool(max(moved, np.abs(cells[:3]).max(), np.abs(cells[3:]).max() * longest) < SAME)


def _same_sites(basis: np.ndarray, numbers: np.ndarray, points: np.ndarray, structure: Structure) -> bool:
    """Whether a structure has these sites in this order, in this cell but for its orientation."""
    other = structure.lattice.matrix
    if len(numbers) != len(structure) or (numbers != np.array(structure.atomic_numbers)).any():
        return False
    if np.linalg.det(other) < 0 or np.abs(basis @ basis.T - other @ other.T).max() > SAME * np.abs(basis).max():
        return False
    apart = points - structure.frac_coords
    return bool(np.linalg.norm((apart - np.round(apart)) @ basis, axis=1).max() < SAME)


def describe(batch: CrystalBatch) -> dict[str, list[Any]]:
    """Columns of a table of crystals: space group, atoms of the primitive and of the conventional cell, tokens."""
    conventional = batch.natoms.tolist()
    groups = batch.G.tolist()
    return {
        "space_group": groups,
        "n_atoms": [n // centring(g) for n, g in zip(conventional, groups, strict=True)],
        "n_atoms_conventional": conventional,
        "tokens": [to_json(batch, i) for i in range(len(batch))],
    }
