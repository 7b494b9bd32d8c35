"""Wyckoff positions of the 230 space groups in the standard settings of the International Tables (ITA), volume A.

Settings: unique axis b and cell choice 1 for monoclinic, hexagonal axes for rhombohedral groups, origin choice 2.
The operators ship as package data (`data/wyckoff.npz`), written once from pyxtal's tables by
`generator.representation.wyckoff_build` (Fredericks et al., Comput. Phys. Commun. 261, 107810 (2021), doi
10.1016/j.cpc.2020.107810).

Arrays are indexed directly by the space group number g (row 0 is unused) and by the letter index w: 0 is the pad, 1 is
'a', ..., 26 is 'z' and 27 is 'A', which only group 47 has.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import numpy as np

N_GROUPS = 230
WYCK_TYPES = 28
LETTERS = " abcdefghijklmnopqrstuvwxyzA"
DENOMINATOR = 24  # every translation of the ITA operators is a multiple of 1/24

# Last space group of each lattice kind, and which of a, b, c, alpha, beta, gamma are independent there.
_LATTICE_KINDS = (
    (2, (1, 1, 1, 1, 1, 1)),
    (15, (1, 1, 1, 0, 1, 0)),
    (74, (1, 1, 1, 0, 0, 0)),
    (194, (1, 0, 1, 0, 0, 0)),
    (230, (1, 0, 0, 0, 0, 0)),
)


@dataclass(frozen=True, eq=False)
class WyckoffTables:
    """What symmetry says about each Wyckoff position. Affine operators are rows of (rotation | translation)."""

    multiplicity: np.ndarray  # (231, 28) int64, points of the orbit in the conventional cell; 0 for pads
    n_letters: np.ndarray  # (231,) int64, number of letters of the group
    dof: np.ndarray  # (231, 28) int64, number of independent coordinates
    op0: np.ndarray  # (231, 28, 3, 4) float64, first operator: the representative x satisfies op0(x) = x (mod 1)
    free: np.ndarray  # (231, 28, 3) bool, independent coordinates: op0[axis, axis] != 0 (op0 is lower triangular)
    fc_mask: np.ndarray  # (231, 28, 3) bool, CrystalFormer's mask: coordinates that move, dependent ones included
    dof0: np.ndarray  # (231, 28) bool, no degree of freedom; True for the pad and for letters that do not exist
    lattice_mask: np.ndarray  # (231, 6) bool, independent parameters among a, b, c, alpha, beta, gamma
    site_symmetry: np.ndarray  # (231, 28) str, oriented site-symmetry symbol, '' where there is no letter
    hall_numbers: np.ndarray  # (231,) int64, of the standard setting
    operators: np.ndarray  # (14433, 3, 4) float64, all orbits one after the other
    offsets: np.ndarray  # (231, 28) int64, where the orbit (g, w) begins in `operators`
    normalizers: np.ndarray  # (sum K, 3, 4) float64, see `normalizer_ops`
    normalizer_letters: np.ndarray  # (sum K, 28) int64, letter that each letter becomes
    normalizer_offsets: np.ndarray  # (232,) int64, where the normaliser of group g begins

    def orbit_ops(self, g: int, w: int) -> np.ndarray:
        """Operators (M, 3, 4) that expand the representative of position (g, w) to its M points."""
        start = self.offsets[g, w]
        return self.operators[start : start + self.multiplicity[g, w]]

    def general_ops(self, g: int) -> np.ndarray:
        """Operators (M, 3, 4) of the general position, i.e. the group modulo lattice translations of the cell."""
        return self.orbit_ops(g, int(self.n_letters[g]))

    def normalizer_ops(self, g: int) -> tuple[np.ndarray, np.ndarray]:
        """Operators (K, 3, 4) that describe the same crystal by another choice of origin or axes, identity first.

        Elements of the Euclidean normaliser, modulo the group, that keep the cell, the setting and the handedness;
        shifts along polar axes are left out. With them the letters (K, 28) that each letter becomes.
        """
        rows = slice(self.normalizer_offsets[g], self.normalizer_offsets[g + 1])
        return self.normalizers[rows], self.normalizer_letters[rows]


@lru_cache(maxsize=1)
def tables() -> WyckoffTables:
    """The tables, read once from the package data."""
    with (files("generator") / "data" / "wyckoff.npz").open("rb") as stream:
        data = dict(np.load(stream, allow_pickle=False))
    n_letters = np.concatenate([[0], data["n_letters"].astype(np.int64)])
    exists = (np.arange(WYCK_TYPES) >= 1) & (np.arange(WYCK_TYPES) <= n_letters[:, None])  # (231, 28)
    multiplicity, offsets = np.zeros((2, N_GROUPS + 1, WYCK_TYPES), dtype=np.int64)
    multiplicity[exists] = data["multiplicity"]
    offsets[exists] = np.concatenate([[0], np.cumsum(data["multiplicity"].astype(np.int64))[:-1]])
    operators = _affine(data["rotations"], data["translations"])
    op0 = np.where(exists[..., None, None], operators[offsets], 0.0)
    free = np.diagonal(op0[..., :3], axis1=-2, axis2=-1) != 0
    site_symmetry = np.full(exists.shape, "", dtype=data["site_symmetry"].dtype)
    site_symmetry[exists] = data["site_symmetry"]
    arrays = {
        "multiplicity": multiplicity,
        "n_letters": n_letters,
        "dof": free.sum(-1),
        "op0": op0,
        "free": free,
        "fc_mask": (op0[..., :3] != 0).any(-1),
        "dof0": ~free.any(-1),
        "lattice_mask": _lattice_mask(),
        "site_symmetry": site_symmetry,
        "hall_numbers": np.concatenate([[0], data["hall_numbers"].astype(np.int64)]),
        "operators": operators,
        "offsets": offsets,
        "normalizers": _affine(data["normalizer_rotations"], data["normalizer_translations"]),
        "normalizer_letters": data["normalizer_letters"].astype(np.int64),
        "normalizer_offsets": np.concatenate([[0, 0], np.cumsum(data["normalizer_counts"].astype(np.int64))]),
    }
    for array in arrays.values():
        array.setflags(write=False)  # one copy is shared by everybody
    return WyckoffTables(**arrays)


def _affine(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    return np.concatenate([rotations.astype(float), translations[..., None] / DENOMINATOR], axis=-1)


def _lattice_mask() -> np.ndarray:
    mask = np.zeros((N_GROUPS + 1, 6), dtype=bool)
    first = 1
    for last, independent in _LATTICE_KINDS:
        mask[first : last + 1] = independent
        first = last + 1
    return mask


def symmetrize_lattice(g: int, parameters: np.ndarray) -> np.ndarray:
    """Impose the metric of the crystal system on a, b, c (any unit) and alpha, beta, gamma (radians); shape (6,)."""
    a, b, c, alpha, beta, gamma = parameters
    right = np.pi / 2
    if g <= 2:
        return np.array([a, b, c, alpha, beta, gamma], dtype=float)
    if g <= 15:
        return np.array([a, b, c, right, beta, right])
    if g <= 74:
        return np.array([a, b, c, right, right, right])
    if g <= 142:
        return np.array([a, a, c, right, right, right])
    if g <= 194:
        return np.array([a, a, c, right, right, 2 * np.pi / 3])
    return np.array([a, a, a, right, right, right])


def centring(g: int) -> int:
    """Lattice points of the conventional cell: 1 (P), 2 (A, C, I), 3 (R) or 4 (F)."""
    rotations = tables().general_ops(g)[:, :, :3]
    return int((rotations == np.eye(3)).all((1, 2)).sum())


def project(op0: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Apply affine operators (..., 3, 4) to points (..., 3); the result is not wrapped."""
    result: np.ndarray = np.einsum("...ij,...j->...i", op0[..., :3], x) + op0[..., 3]
    return result


def letter_index(letter: str) -> int:
    """Index of a Wyckoff letter: 'a' -> 1, ..., 'A' -> 27."""
    return LETTERS.index(letter)
