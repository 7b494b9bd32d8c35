"""Crystals as tokens: space group; Wyckoff letter, element and coordinates of each inequivalent site; the cell.

The representation is CrystalFormer's (Cao et al., Sci. Bull. 70, 3522 (2025), arXiv 2403.15734): only one point of each
orbit is stored, the one that the first operator of its Wyckoff position maps to itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from generator.representation.wyckoff import letter_index, project, symmetrize_lattice, tables
from loop.errors import InputError
from loop.moyo import symmetry_of

if TYPE_CHECKING:
    from pymatgen.core import Structure

MAX_SITES = 20  # inequivalent sites; the published model's limit
ATOM_TYPES = 119
_REPRESENTATIVE_TOLERANCE = 1e-3  # fractional; refined positions satisfy op0(x) = x far better than this
_ANGLE_TOLERANCE = float(np.radians(1.0))  # of the symmetry search
_KEY_STEPS = 10_000  # coordinates that round to the same 1e-4 are equal when points are compared
_KEY_RANGE = _KEY_STEPS**3
_ZERO = 1e-6  # fractional coordinates this close to a lattice point are written as 0, never as 0.9999999

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Cell (3, 3) with row vectors in Angstrom, atomic numbers (n,), fractional coordinates (n, 3)."""


class TokenError(InputError):
    """A crystal cannot be tokenised. `kind` is short and stable, for counting."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, str(self))


@dataclass(frozen=True, eq=False)
class CrystalBatch:
    """n crystals as padded arrays of S slots each; pads are 0 and the last slot is always one."""

    G: np.ndarray  # (n,) int16, space group 1..230
    W: np.ndarray  # (n, S) int8, letter index
    A: np.ndarray  # (n, S) int8, atomic number
    XYZ: np.ndarray  # (n, S, 3) float64, representative in [0, 1)
    L: np.ndarray  # (n, 6) float64, lengths / natoms^(1/3) in Angstrom, angles in radians

    def __len__(self) -> int:
        return len(self.G)

    def __getitem__(self, index: Any) -> Self:
        """A batch of the rows that a slice, a mask or an index array picks (a single integer gives a batch of one)."""
        if isinstance(index, (int, np.integer)):
            index = [index]
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))

    @property
    def num_sites(self) -> np.ndarray:
        """Inequivalent sites of each crystal, shape (n,)."""
        result: np.ndarray = (self.W > 0).sum(1)
        return result

    @property
    def multiplicities(self) -> np.ndarray:
        """Points in the orbit of each slot, shape (n, S), 0 for pads."""
        result: np.ndarray = tables().multiplicity[self.G[:, None], self.W]
        return result

    @property
    def natoms(self) -> np.ndarray:
        """Atoms in the conventional cell, shape (n,)."""
        result: np.ndarray = self.multiplicities.sum(1)
        return result

    @classmethod
    def concatenate(cls, batches: Sequence[Self]) -> Self:
        """One batch of many with the same number of slots."""
        return cls(*(np.concatenate([getattr(batch, f.name) for batch in batches]) for f in fields(cls)))

    @classmethod
    def empty(cls, slots: int = MAX_SITES + 1) -> Self:
        """A batch of no crystals."""
        return cls(
            np.zeros(0, np.int16),
            np.zeros((0, slots), np.int8),
            np.zeros((0, slots), np.int8),
            np.zeros((0, slots, 3)),
            np.zeros((0, 6)),
        )

    def save(self, path: Path) -> None:
        """Write a compressed .npz without pickles."""
        np.savez_compressed(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            InputError: the file is missing or holds something else.
        """
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as data:
                return cls(*(data[f.name] for f in fields(cls)))
        except (OSError, KeyError, ValueError) as error:
            raise InputError(f"expected a .npz of tokenised crystals at {path}, found none ({error})") from error


def tokenize(
    structure: Structure, symprec: float = 0.01, max_sites: int = MAX_SITES, *, canonical: bool = True
) -> CrystalBatch:
    """Tokenise a pymatgen structure; see `tokenize_arrays`."""
    if not structure.is_ordered:
        raise TokenError("disordered", f"{structure.formula} has partial occupancies; ordered crystals were expected")
    numbers = [getattr(site.specie, "Z", 0) for site in structure]
    arrays = (structure.lattice.matrix, np.array(numbers), structure.frac_coords)
    return tokenize_arrays(arrays, symprec, max_sites, canonical=canonical)


def tokenize_arrays(
    arrays: Arrays, symprec: float = 0.01, max_sites: int = MAX_SITES, *, canonical: bool = True
) -> CrystalBatch:
    """Tokenise one crystal.

    Args:
        arrays: cell, atomic numbers and fractional coordinates.
        symprec: tolerance of the symmetry search, Angstrom; a failed search is repeated with 1e-4.
        max_sites: most inequivalent sites that are accepted; the batch gets one slot more.
        canonical: choose among equal descriptions (origin, axes) always the same; otherwise keep the one that the
            symmetry search found.

    Returns:
        A batch of one crystal.

    Raises:
        TokenError: of kind unsupported-element, empty, symmetry-failed or too-many-sites.
    """
    numbers = np.asarray(arrays[1])
    if len(numbers) == 0:
        raise TokenError("empty", "a crystal without atoms")
    if numbers.min() < 1 or numbers.max() >= ATOM_TYPES:
        raise TokenError("unsupported-element", f"atomic numbers must lie in 1..{ATOM_TYPES - 1}, got {set(numbers)}")
    failure: TokenError | None = None
    for tolerance in (symprec, 1e-4):
        try:
            return _tokenize(arrays, tolerance, max_sites, canonical)
        except TokenError as error:
            failure = failure or error
            if error.kind != "symmetry-failed":
                break
    assert failure is not None
    raise failure


def _tokenize(arrays: Arrays, symprec: float, max_sites: int, canonical: bool) -> CrystalBatch:
    g, sites, lattice = _symmetry_sites(arrays, symprec)
    n = len(sites)
    if n > max_sites:
        raise TokenError("too-many-sites", f"{n} inequivalent sites, at most {max_sites} were expected")
    letters, elements = np.array([w for w, _, _ in sites]), np.array([z for _, z, _ in sites])
    letters, elements, points = _describe(g, letters, elements, np.array([x for _, _, x in sites]), canonical)
    W, A = np.zeros((2, 1, max_sites + 1), np.int8)
    XYZ = np.zeros((1, max_sites + 1, 3))
    W[0, :n], A[0, :n], XYZ[0, :n] = letters, elements, points
    lattice[:3] /= tables().multiplicity[g, letters].sum() ** (1 / 3)
    return CrystalBatch(np.array([g], np.int16), W, A, XYZ, lattice[None])


def _describe(
    g: int, letters: np.ndarray, elements: np.ndarray, x: np.ndarray, canonical: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Letters, elements and representatives (n, 3) of the sites x (n, 3), sorted by letter, then coordinates.

    Of the descriptions that the normaliser offers the canonical one has the smallest letters; among those the smallest
    elements; among those the smallest coordinates. That leaves e.g. one of eight origins in group 62.
    """
    operators, permutations = tables().normalizer_ops(g)
    if not canonical:
        operators, permutations = operators[:1], permutations[:1]
    moved = project(operators[:, None], x)  # (K, n, 3)
    moved_letters = permutations[:, letters]
    points, keys = _representatives(g, moved_letters, moved)
    order = np.argsort(moved_letters * _KEY_RANGE + keys, axis=1)
    moved_letters, keys = (np.take_along_axis(array, order, 1) for array in (moved_letters, keys))
    moved_elements = elements[order]
    best = np.lexsort(np.concatenate([moved_letters, moved_elements, keys], axis=1).T[::-1])[0]
    return moved_letters[best], moved_elements[best], points[best, order[best]]


def _representatives(g: int, letters: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Representatives of sites x (K, n, 3) on the positions `letters` (K, n), exactly projected, in [0, 1).

    Returns:
        Of each orbit the point with the smallest coordinates among those with op0(x) = x (mod 1), shape (K, n, 3), and
        its sort key (K, n): the coordinates, rounded so that noise decides nothing, as one integer.
    """
    op0 = tables().op0[g, letters]  # (K, n, 3, 4)
    linear, shift = np.swapaxes(op0[..., :3], -1, -2), op0[:, :, None, :, 3]
    group = tables().general_ops(g)
    images = (x @ group[..., :3].reshape(-1, 3).T).reshape(*x.shape[:2], -1, 3) + group[..., 3]  # (K, n, M, 3)
    residual = images @ linear + shift - images
    distance = np.abs(residual - np.round(residual)).max(-1)
    nearest = distance.min(-1, keepdims=True)
    if nearest.max() > _REPRESENTATIVE_TOLERANCE:
        raise TokenError("symmetry-failed", f"a site lies on no Wyckoff position of group {g} by {nearest.max():.1e}")
    points = wrap(wrap(images @ linear + shift) @ linear + shift)
    rounded = np.round(points * _KEY_STEPS).astype(np.int64) % _KEY_STEPS
    keys = (rounded[..., 0] * _KEY_STEPS + rounded[..., 1]) * _KEY_STEPS + rounded[..., 2]
    keys = np.where(distance < nearest + _REPRESENTATIVE_TOLERANCE / 10, keys, _KEY_RANGE)
    first = keys.argmin(-1)[..., None]
    return np.take_along_axis(points, first[..., None], 2)[:, :, 0], np.take_along_axis(keys, first, 2)[:, :, 0]


@lru_cache(maxsize=1)
def _standard_setting() -> Any:
    from moyopy import Setting

    return Setting.standard()


def _find_symmetry(arrays: Arrays, symprec: float) -> Any:
    """The symmetry of a crystal in the standard setting, as moyo's dataset.

    moyo's default tolerance of angles follows from symprec and loses the symmetry of some relaxed cells (0.5 % of
    Materials Project crystals, e.g. 225 becomes 139); one degree keeps it. Where moyo then lowers symprec by itself,
    its default may find more. Cells that are too thin for a search that ends are refused, see `loop.moyo`.
    """
    basis, numbers, positions = (np.asarray(array) for array in arrays)
    search = partial(symmetry_of, basis, numbers, positions, setting=_standard_setting())
    found = search(symprec, angle_tolerance=_ANGLE_TOLERANCE)
    if found is None:
        raise TokenError(
            "symmetry-failed", f"no space group found at tolerance {symprec} A: atoms overlap, or a flat cell?"
        )
    if found.symprec < symprec:
        other = search(symprec)
        found = found if other is None else max(found, other, key=lambda dataset: len(dataset.operations))
    return found


def _symmetry_sites(arrays: Arrays, symprec: float) -> tuple[int, list[tuple[int, int, np.ndarray]], np.ndarray]:
    """Space group, (letter index, atomic number, position) of each orbit in the standard cell, and a, b, c, angles."""
    found, numbers = _find_symmetry(arrays, symprec), arrays[1]
    g = found.number
    # Refined positions of the primitive cell, carried over to the conventional one, which has the same origin.
    linear = np.linalg.inv(np.array(found.std_linear)) @ np.array(found.prim_std_linear)
    primitive = found.prim_std_cell.positions
    representatives = sorted(set(found.orbits))
    sites = [
        (
            letter_index(found.wyckoffs[atom]),
            int(numbers[atom]),
            linear @ np.array(primitive[found.mapping_std_prim[atom]]),
        )
        for atom in representatives
    ]
    natoms = sum(int(tables().multiplicity[g, w]) for w, _, _ in sites)
    if natoms != found.std_cell.num_atoms:
        raise TokenError(
            "symmetry-failed", f"orbits hold {natoms} atoms, the standard cell of group {g} {found.std_cell.num_atoms}"
        )
    return g, sites, symmetrize_lattice(g, cell_parameters(np.array(found.std_cell.basis)))


def wrap(x: np.ndarray) -> np.ndarray:
    """Fractional coordinates in [0, 1), with values within 1e-6 of a lattice point set to 0."""
    x = np.mod(x, 1.0)
    return np.where((x < _ZERO) | (x > 1.0 - _ZERO), 0.0, x)


def cell_parameters(basis: np.ndarray) -> np.ndarray:
    """a, b, c and alpha, beta, gamma in radians of row vectors (3, 3)."""
    lengths = np.linalg.norm(basis, axis=1)
    unit = basis / lengths[:, None]
    cosines = np.array([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]])
    return np.concatenate([lengths, np.arccos(np.clip(cosines, -1.0, 1.0))])


def cell_matrix(parameters: np.ndarray) -> np.ndarray | None:
    """Row vectors (3, 3) of a, b, c, alpha, beta, gamma (radians): a along x, b in the xy plane; None if impossible."""
    a, b, c, alpha, beta, gamma = parameters
    if (
        not np.isfinite(parameters).all()
        or min(a, b, c) <= 0
        or not 0 < min(alpha, beta, gamma) <= max(alpha, beta, gamma) < np.pi
    ):
        return None
    cosines = np.cos([alpha, beta, gamma])
    cosines[np.abs(cosines) < 1e-15] = 0.0
    cx, sin_gamma = cosines[1], np.sin(gamma)
    cy = (cosines[0] - cosines[1] * cosines[2]) / sin_gamma
    squared = 1.0 - cx**2 - cy**2
    if squared <= 1e-8:  # the three angles do not close to a cell, or to one without volume
        return None
    return np.array([[a, 0, 0], [b * cosines[2], b * sin_gamma, 0], [c * cx, c * cy, c * np.sqrt(squared)]])


def expand(batch: CrystalBatch, i: int = 0) -> Arrays | None:
    """Conventional cell, atomic numbers and fractional coordinates of crystal i; None where it is no crystal."""
    table = tables()
    g, W, A = int(batch.G[i]), batch.W[i].astype(int), batch.A[i].astype(int)
    sites = np.flatnonzero(W)
    if len(sites) == 0:
        return None
    counts = table.multiplicity[g, W[sites]]
    parameters = np.array(batch.L[i], dtype=float)
    parameters[:3] *= counts.sum() ** (1 / 3)
    basis = cell_matrix(symmetrize_lattice(g, parameters))
    if basis is None or (counts == 0).any() or not np.isfinite(batch.XYZ[i, sites]).all():
        return None
    representatives = project(table.op0[g, W[sites]], batch.XYZ[i, sites])
    operators = np.concatenate([table.orbit_ops(g, w) for w in W[sites]])
    coordinates = wrap(project(operators, np.repeat(representatives, counts, axis=0)))
    return basis, np.repeat(A[sites], counts), coordinates


def detokenize(batch: CrystalBatch, i: int = 0) -> Structure | None:
    """The conventional cell of crystal i as a pymatgen structure.

    Returns:
        None where the tokens are no crystal: no site, a letter that the group lacks, an element outside 1..118, or
        a cell without volume. Distances are not judged here.
    """
    from pymatgen.core import Element, Lattice, Structure

    arrays = expand(batch, i)
    if arrays is None or arrays[1].min() < 1 or arrays[1].max() >= ATOM_TYPES:
        return None
    basis, numbers, coordinates = arrays
    elements = {z: Element.from_Z(z) for z in set(numbers.tolist())}
    return Structure(Lattice(basis), [elements[z] for z in numbers.tolist()], coordinates)


def detokenize_all(batch: CrystalBatch, indices: Iterable[int] | None = None) -> list[Structure | None]:
    """`detokenize` for all crystals of a batch, or for some."""
    return [detokenize(batch, i) for i in (range(len(batch)) if indices is None else indices)]
