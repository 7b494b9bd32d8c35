"""Tokens of one crystal as JSON, and as a CIF with its symmetry: what a generator drew, kept exactly in files."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from generator.tokens import ATOM_TYPES, CrystalBatch, TokenError, expand
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


_HEADER = """data_{formula}
_symmetry_space_group_name_H-M   '{symbol}'
_symmetry_Int_Tables_number   {group}
_cell_length_a   {0:.8f}
_cell_length_b   {1:.8f}
_cell_length_c   {2:.8f}
_cell_angle_alpha   {3:.8f}
_cell_angle_beta   {4:.8f}
_cell_angle_gamma   {5:.8f}
loop_
 _symmetry_equiv_pos_site_id
 _symmetry_equiv_pos_as_xyz
"""
_SITES = """loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_symmetry_multiplicity
 _atom_site_Wyckoff_symbol
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
"""


def to_symmetrised_cif(batch: CrystalBatch, i: int = 0) -> str | None:
    """Crystal i as a CIF with its space group: standard setting of the International Tables, one line an orbit.

    None where the tokens are no crystal, or where the orbits, read again by their operators, would not give the same
    number of atoms: a point so near a position of higher symmetry that a reader merges its images.
    """
    import gemmi
    from ase.data import chemical_symbols
    from pymatgen.core import Composition

    arrays = expand(batch, i)
    if arrays is None:
        return None
    basis, numbers, coordinates = arrays
    g, sites = int(batch.G[i]), np.flatnonzero(batch.W[i])
    letters = batch.W[i, sites].astype(int)
    counts = tables().multiplicity[g, letters]
    first = np.cumsum(counts) - counts
    lengths = np.linalg.norm(basis, axis=1)
    unit = basis / lengths[:, None]
    angles = np.degrees(np.arccos([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]))
    formula = Composition.from_dict(
        {chemical_symbols[z]: float((numbers == z).sum()) for z in set(numbers.tolist())}
    ).reduced_formula
    symbol = gemmi.find_spacegroup_by_number(g).hm
    lines = [_HEADER.format(*lengths, *angles, formula=formula, symbol=symbol, group=g)]
    lines += [f"  {k}  '{_xyz(operator)}'\n" for k, operator in enumerate(tables().general_ops(g), 1)]
    lines.append(_SITES)
    for k, (at, w, m) in enumerate(zip(first, letters, counts, strict=True)):
        x, y, z = coordinates[at]
        element = chemical_symbols[numbers[at]]
        lines.append(f"  {element}  {element}{k}  {m}  {LETTERS[w]}  {x:.10f}  {y:.10f}  {z:.10f}  1\n")
    return "".join(lines) if _same_atoms(g, coordinates[first], counts) else None


def _same_atoms(g: int, points: np.ndarray, counts: np.ndarray, tolerance: float = 2e-4) -> bool:
    """Whether the group's operators make just `counts` points of each of the points, which readers tell apart."""
    operators = tables().general_ops(g)
    for point, count in zip(points, counts, strict=True):
        images = operators[:, :, :3] @ point + operators[:, :, 3]
        difference = images[:, None] - images
        near = (np.abs(difference - np.round(difference)) < tolerance).all(-1)
        if len(images) != count * near[0].sum() or not (near.sum(0) == near[0].sum()).all():
            return False
    return True


def _xyz(operator: np.ndarray) -> str:
    """An operator (3, 4) as ``-x+1/2, y, -z``."""
    import gemmi

    made = gemmi.Op()
    made.rot = [[round(24 * value) for value in row] for row in operator[:, :3].tolist()]
    made.tran = [round(24 * value) % 24 for value in operator[:, 3].tolist()]
    return str(made.triplet())


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
