"""Writes the package data of `generator.representation.wyckoff` from pyxtal's tables. Needs pyxtal, a test extra.

Run by hand: ``from generator.representation.wyckoff_build import write_tables;
write_tables('generator/data/wyckoff.npz')``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

from generator.representation.wyckoff import DENOMINATOR, N_GROUPS, WYCK_TYPES

_GENERIC = np.array([0.1234, 0.0857, 0.2719])  # a point on no special position
_HOLOHEDRY = ((2, 2), (15, 10), (74, 47), (142, 123), (194, 191), (230, 221))
"""Last group of a crystal system, and the group whose rotations leave every lattice of the system alone."""


def write_tables(path: str | Path) -> None:
    """Write operators, site symmetries and normalisers of all groups in one compressed .npz of small integers."""
    from pyxtal.symmetry import Group, Hall

    orbits: dict[int, list[np.ndarray]] = {}
    site_symmetry = []
    for g in range(1, N_GROUPS + 1):
        positions = Group(g).Wyckoff_positions[::-1]  # pyxtal begins with the general position
        for position in positions:
            position.get_site_symmetry()
            site_symmetry.append(position.site_symm)
        orbits[g] = [np.array([op.affine_matrix[:3] for op in position.ops]) for position in positions]
    holohedries = {g: _unique_rotations(orbits[g][-1]) for _, g in _HOLOHEDRY}
    normalizers, letters = [], []
    for g in range(1, N_GROUPS + 1):
        system = next(holohedry for last, holohedry in _HOLOHEDRY if g <= last)
        operators = normalizer(orbits[g][-1], holohedries[system])
        normalizers.append(operators)
        letters.append(np.array([_letters_under(op, orbits[g]) for op in operators]))
    rotations, translations = _integers(np.concatenate([orbit for g in orbits for orbit in orbits[g]]))
    normalizer_rotations, normalizer_translations = _integers(np.concatenate(normalizers))
    np.savez_compressed(
        path,
        n_letters=np.array([len(orbits[g]) for g in orbits], dtype=np.uint8),
        multiplicity=np.array([len(orbit) for g in orbits for orbit in orbits[g]], dtype=np.uint8),
        site_symmetry=np.array(site_symmetry),
        hall_numbers=np.array([Hall(g).hall_default for g in orbits], dtype=np.uint16),
        rotations=rotations,
        translations=translations,
        normalizer_counts=np.array([len(operators) for operators in normalizers], dtype=np.uint8),
        normalizer_letters=np.concatenate(letters).astype(np.int8),
        normalizer_rotations=normalizer_rotations,
        normalizer_translations=normalizer_translations,
    )


def _integers(operators: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rotations, translations = operators[..., :3], operators[..., 3] * DENOMINATOR
    if np.abs(rotations - rotations.round()).max() > 1e-6 or np.abs(translations - translations.round()).max() > 0.05:
        raise ValueError("expected integer rotations with translations in 24ths")
    return rotations.round().astype(np.int8), translations.round().astype(np.int8)


def normalizer(group: np.ndarray, holohedry: np.ndarray) -> np.ndarray:
    """Operators (K, 3, 4) that map any crystal of the group to an equal crystal in the same setting, modulo the group.

    These are the elements of the Euclidean normaliser (ITA A, chapter 3.5) that leave every lattice of the crystal
    system alone and keep the handedness, without shifts along polar axes. The first is the identity.

    Args:
        group: operators (M, 3, 4) of the general position.
        holohedry: rotations (H, 3, 3) of the lattice.
    """
    rotations = _unique_rotations(group)
    centrings = _in_24ths(group[_same(group[:, :, :3], np.eye(3))][:, :, 3])
    polar = (rotations == np.eye(3)).all(axis=(0, 1))  # directions that no operator changes
    axes = [range(1) if fixed else range(DENOMINATOR) for fixed in polar]
    grid = np.array(list(product(*axes)))  # in 24ths
    handed = bool((np.linalg.det(rotations) > 0).all())
    cosets, covered = [], np.zeros(len(holohedry), dtype=bool)
    for i in np.argsort([not _same(r, np.eye(3)) for r in holohedry], kind="stable"):
        if covered[i] or (handed and np.linalg.det(holohedry[i]) < 0):
            continue
        for r in rotations:
            covered |= _same(holohedry, r @ holohedry[i])
        shifts = _valid_shifts(group, holohedry[i], grid, centrings)
        cosets += [np.hstack([holohedry[i], shift[:, None] / DENOMINATOR]) for shift in shifts]
    return np.array(cosets)


def _valid_shifts(group: np.ndarray, rotation: np.ndarray, grid: np.ndarray, centrings: np.ndarray) -> np.ndarray:
    """Shifts s of the grid, in 24ths, distinct modulo the centrings, for which (rotation | s) normalises the group."""
    inverse = np.linalg.inv(rotation).round()
    valid = np.ones(len(grid), dtype=bool)
    by_rotation = {tuple(op[:, :3].ravel()): _in_24ths(op[:, 3]) for op in group}
    for op in group:
        # (S|s) (R|t) (S|s)^-1 = (S R S^-1 | s + S t - S R S^-1 s)
        conjugate = (rotation @ op[:, :3] @ inverse).round() + 0.0
        wanted = by_rotation.get(tuple(conjugate.ravel()))
        if wanted is None:
            return grid[:0]
        moved = grid + rotation @ _in_24ths(op[:, 3]) - grid @ conjugate.T
        difference = np.mod(np.round(moved - wanted), DENOMINATOR)[:, None] - np.mod(centrings, DENOMINATOR)
        valid &= (difference == 0).all(-1).any(-1)
    shifts: list[np.ndarray] = []
    seen: set[tuple[int, ...]] = set()
    for shift in grid[valid]:
        if tuple(shift) not in seen:
            shifts.append(shift)
            seen |= {tuple(np.mod(shift + c, DENOMINATOR).astype(int)) for c in centrings}
    return np.array(shifts).reshape(-1, 3)


def _letters_under(operator: np.ndarray, orbits: Sequence[np.ndarray]) -> np.ndarray:
    """Letter index (28,) of the position to which the operator carries each position."""
    letters = np.zeros(WYCK_TYPES, dtype=np.int64)
    general = orbits[-1]
    for w, orbit in enumerate(orbits, start=1):
        point = operator[:, :3] @ (orbit[0, :, :3] @ _GENERIC + orbit[0, :, 3]) + operator[:, 3]
        images = general[:, :, :3] @ point + general[:, :, 3]
        for candidate, other in enumerate(orbits, start=1):
            if len(other) == len(orbit):
                residual = images @ other[0, :, :3].T + other[0, :, 3] - images
                if (np.abs(residual - residual.round()) < 1e-6).all(-1).any():
                    letters[w] = candidate
                    break
    if len(set(letters[1 : len(orbits) + 1])) != len(orbits):
        raise ValueError(f"the operator {operator.tolist()} does not permute the Wyckoff positions")
    return letters


def _unique_rotations(operators: np.ndarray) -> np.ndarray:
    return np.unique(operators[:, :, :3], axis=0)


def _in_24ths(translations: np.ndarray) -> np.ndarray:
    return np.round(translations * DENOMINATOR)


def _same(matrices: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    result: np.ndarray = (matrices == matrix).all(axis=(-2, -1))
    return result
