"""The programs that our files are for, each with its own way to make a crystal of a CIF, and when two are the same."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable

import ase.io
import gemmi
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.ext.optimade import OptimadeRester
from pymatgen.io.cif import CifParser

from loop.io.cif import parse_cif

TIGHT = StructureMatcher(ltol=2e-3, stol=0.01, angle_tol=0.1, scale=False, primitive_cell=False)


def by_pymatgen(text: str) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a reader's doubt is our fault
        warnings.filterwarnings("ignore", message=".*fractional coordinates rounded|.*electronegativity")
        return CifParser.from_str(text).parse_structures(primitive=False, on_error="raise")[0]


def by_ase(text: str) -> Structure:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return of_atoms(ase.io.read(io.StringIO(text), format="cif"))


def of_atoms(atoms: ase.Atoms) -> Structure:
    return Structure(atoms.cell.array, atoms.numbers, atoms.get_scaled_positions())


def by_gemmi(text: str) -> Structure:
    read = gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block())
    sites = read.get_all_unit_cell_sites()
    basis = np.array(read.cell.orth.mat.tolist()).T
    return Structure(basis, [site.element.name for site in sites], [site.fract.tolist() for site in sites])


def by_ourselves(text: str) -> Structure:
    basis, numbers, coordinates = parse_cif(text)
    return Structure(basis, numbers.tolist(), coordinates)


def optimade_by_pymatgen(line: str) -> Structure:
    """A structure of a line of OPTIMADE, as pymatgen makes it of a provider's answer."""
    found = OptimadeRester._get_snls_from_resource({"data": [json.loads(line)]}, "", "")
    return next(iter(found.values())).structure


READERS: dict[str, Callable[[str], Structure]] = {
    "pymatgen": by_pymatgen,
    "ase": by_ase,
    "gemmi": by_gemmi,
    "ourselves": by_ourselves,
}


def same_atoms(one: Structure, other: Structure, tolerance: float = 2e-3) -> bool:
    """Whether two have the same cell, and the same atoms in it whatever their order; tolerance in Angstrom."""
    if len(one) != len(other) or not np.allclose(one.lattice.parameters, other.lattice.parameters, atol=1e-4):
        return False
    difference = one.frac_coords[:, None] - other.frac_coords
    away = np.linalg.norm((difference - np.round(difference)) @ one.lattice.matrix, axis=-1)
    unlike = np.array(one.atomic_numbers)[:, None] != np.array(other.atomic_numbers)
    nearest = np.where(unlike, np.inf, away)
    return bool((nearest.min(1) < tolerance).all() and len(set(nearest.argmin(1).tolist())) == len(one))


def same_crystal(one: Structure, other: Structure) -> bool:
    """Whether two are one crystal, whatever cells describe it."""
    per_atom = [structure.volume / len(structure) for structure in (one, other)]
    if one.composition.reduced_composition != other.composition.reduced_composition:
        return False
    # the matcher's own primitive cells forget distortions of up to 0.25 A, and then choose one of several
    pair = [structure.get_primitive_structure(tolerance=0.02) for structure in (one, other)]
    return bool(np.isclose(*per_atom, rtol=2e-3) and TIGHT.fit(*pair))
