"""Reading CIF: the crystal that a file describes, or a refusal that says why.

gemmi knows the syntax and the tables of groups; see `loop.io.cif_sites` for elements and positions,
`loop.io.cif_symmetry` for the settings, `loop.io.cif_claims` for what the crystal is compared with, `loop.plausibility`
for what none may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from loop.errors import DisorderedError, ImplausibleError, InputError
from loop.io.cif_claims import Claims, disagreement, multiplicity_disagreement, read_claims
from loop.io.cif_items import Items, crystal_items, has_atoms, read_document
from loop.io.cif_sites import Sites, read_sites
from loop.io.cif_symmetry import IDENTITY, Setting, orbit, read_settings
from loop.plausibility import require_plausible

if TYPE_CHECKING:
    import gemmi
    from pymatgen.core import Structure

__all__ = ["Arrays", "CifCrystal", "DisorderedError", "cif_blocks", "parse_cif", "read_cif"]

_CELL = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
_RADIANS = 3.15  # angles that are all below: of 180 degrees at most
_SAME = 1e-3  # of `StructureMatcher`, in which two readings must agree to be one crystal

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Cell (3, 3) with row vectors in Angstrom, atomic numbers (n,) and fractional coordinates (n, 3)."""


@dataclass(frozen=True, eq=False)
class CifCrystal:
    """A crystal read from a CIF.

    Attributes:
        basis: (3, 3) row vectors of the cell in Angstrom.
        numbers: (n,) atomic numbers.
        coordinates: (n, 3) fractional.
        notes: what a user must be told of how it was read, e.g. that D was taken for H.
    """

    basis: np.ndarray
    numbers: np.ndarray
    coordinates: np.ndarray
    notes: tuple[str, ...] = ()

    @property
    def structure(self) -> Structure:
        """The crystal for pymatgen; without the notes."""
        from pymatgen.core import Element, Lattice, Structure

        species = [Element.from_Z(z) for z in self.numbers.tolist()]
        return Structure(Lattice(self.basis), species, self.coordinates)


def parse_cif(text: str) -> Arrays:
    """Cell, atomic numbers and fractional coordinates of a CIF; see `read_cif`."""
    crystal = read_cif(text)
    return crystal.basis, crystal.numbers, crystal.coordinates


def read_cif(text: str) -> CifCrystal:
    """The crystal that a CIF describes, symmetry expanded.

    Operators are used where given, else the Hall symbol, else the Hermann-Mauguin symbol, else the number; what these
    leave open is decided by the cell and by what the file says of itself. What is read is compared with the file's
    formula, Z, volume and density (see `loop.io.cif_claims`).

    Raises:
        DisorderedError: it has partial occupancies or alternative positions.
        ImplausibleError: what was read is no crystal, e.g. because atoms overlap.
        InputError: no crystal can be made of the text, or another one than it describes.
    """
    items = crystal_items(text)
    cell = _read_cell(items)
    claims = read_claims(items)
    sites = read_sites(items, claims.symbols)
    settings, notes = read_settings(items, cell)
    notes = (*sites.notes, *claims.notes, *notes)
    if len(settings) == 1:
        return _expanded(settings[0], cell, sites, claims, notes)
    return _only_one(settings, cell, sites, claims, notes)


def _read_cell(items: Items) -> gemmi.UnitCell:
    """The cell, of which every length and angle must be there.

    Raises:
        InputError: one is missing, or they make no cell.
    """
    import gemmi

    values = [items.number(f"_cell_{name}") for name in _CELL]
    missing = [f"_cell_{name}" for name, value in zip(_CELL, values, strict=True) if value is None]
    wrong = [f"{name} is {text!r}" for name in missing if (text := items.text(name)) is not None]
    if wrong:
        raise InputError(f"expected numbers for the cell, {', '.join(wrong)}")
    if missing:
        raise InputError(f"expected a cell, {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not given")
    a, b, c, alpha, beta, gamma = (float(value or 0.0) for value in values)
    if not (min(a, b, c) > 0 and min(alpha, beta, gamma) > 0 and max(alpha, beta, gamma) < 180):
        raise ImplausibleError(
            "cell",
            f"expected lengths above 0 and angles from 0 to 180, got {a:g} {b:g} {c:g} {alpha:g} {beta:g} {gamma:g}",
        )
    if max(alpha, beta, gamma) < _RADIANS:
        raise ImplausibleError(
            "cell", f"expected angles in degrees, got {alpha:g}, {beta:g}, {gamma:g}, which look like radians"
        )
    cell = gemmi.UnitCell(a, b, c, alpha, beta, gamma)
    if not cell.volume > 0:
        raise ImplausibleError("cell", f"expected angles that close a cell, got {alpha:g}, {beta:g}, {gamma:g}")
    return cell


def _expanded(
    setting: Setting, cell: gemmi.UnitCell, sites: Sites, claims: Claims, notes: tuple[str, ...]
) -> CifCrystal:
    """All atoms of the cell in one setting, compared with the file's claims.

    Raises:
        InputError: they disagree, or it is no crystal.
    """
    basis = np.array(cell.orth.mat.tolist()).T
    numbers, masses, coordinates = sites.numbers, sites.masses, sites.coordinates
    if setting is not IDENTITY:
        orbits = [orbit(setting, point, basis) for point in coordinates]
        counts = [len(images) for images in orbits]
        numbers, masses = np.repeat(numbers, counts), np.repeat(masses, counts)
        coordinates = np.concatenate(orbits)
    else:
        counts = [1] * len(numbers)
    wrong = disagreement(claims, numbers, masses, cell.volume)
    wrong = wrong or multiplicity_disagreement(sites.multiplicities, counts, len(setting), sites.labels)
    if wrong is not None:
        raise InputError(f"the file contradicts itself: {wrong}")
    require_plausible(basis, coordinates)
    return CifCrystal(basis, numbers, coordinates, notes)


def _only_one(
    settings: list[Setting], cell: gemmi.UnitCell, sites: Sites, claims: Claims, notes: tuple[str, ...]
) -> CifCrystal:
    """The crystal of the one setting, of those that the file leaves open, that agrees with the rest of the file.

    Raises:
        InputError: none does, or several that are different crystals.
    """
    kept: list[tuple[str, CifCrystal]] = []
    reasons: list[str] = []
    for setting in settings:
        try:
            kept.append((setting.name, _expanded(setting, cell, sites, claims, notes)))
        except InputError as error:
            reasons.append(f"{setting.name}: {error}")
    if not kept:
        raise InputError(f"no setting of the space group fits the file ({'; '.join(reasons)})")
    name, first = kept[0]
    others = [other for other, crystal in kept[1:] if not _are_one(first, crystal)]
    if others:
        raise InputError(
            f"the file leaves open which setting of the space group is meant ({', '.join([name, *others])}), and they "
            "are different crystals: give the operators, or the setting's full symbol"
        )
    said = (f"setting {name} taken: others contradict the file",) if reasons else ()
    return CifCrystal(first.basis, first.numbers, first.coordinates, (*notes, *said))


def _are_one(one: CifCrystal, other: CifCrystal) -> bool:
    from pymatgen.analysis.structure_matcher import StructureMatcher
    from pymatgen.core import Lattice, Structure

    first, second = (Structure(Lattice(each.basis), each.numbers.tolist(), each.coordinates) for each in (one, other))
    matcher = StructureMatcher(_SAME, _SAME, 10 * _SAME, primitive_cell=False, scale=False)
    return bool(matcher.fit(first, second))


def cif_blocks(text: str) -> list[tuple[str, str]]:
    """Name and text of the data blocks that hold atoms; one nameless block where the text is no CIF."""
    try:
        document = read_document(text)
    except InputError:
        return [("", text)]
    return [(block.name, block.as_string()) for block in document if has_atoms(Items(block))] or [("", text)]
