"""The published tokenisation, against pyxtal itself."""

import warnings

import numpy as np
import pytest
from pymatgen.core import Element, Lattice, Structure
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from generator.compat import _as_parsed, tokenize_published
from generator.representation.tokens import TokenError
from generator.representation.wyckoff import letter_index
from loop.io.cif import parse_cif
from loop.io.cif_writer import to_cif
from tests.crystals import SYSTEMS, bismuth_telluride


def by_pyxtal(structure: Structure) -> tuple[int, list[tuple], np.ndarray]:
    """Group, sorted sites (letter, x, y, z, element) and scaled cell, by the steps of the published pipeline."""
    from pyxtal import pyxtal

    parsed = Structure.from_str(to_cif(structure), fmt="cif")
    crystal = pyxtal()
    crystal.from_seed(SpacegroupAnalyzer(parsed, symprec=0.01).get_refined_structure(), tol=0.01)
    sites = sorted(
        (letter_index(site.wp.letter), *np.mod(site.position.astype(float), 1).tolist(), Element(site.specie).Z)
        for site in crystal.atom_sites
    )
    cell = np.array(crystal.lattice.get_para(degree=False))
    cell[:3] /= sum(site.wp.multiplicity for site in crystal.atom_sites) ** (1 / 3)
    return crystal.group.number, sites, cell


def shifted(structure: Structure) -> Structure:
    """Another origin and axes; coordinates as a CIF with six decimals has them."""
    cell = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
    coordinates = np.round((structure.frac_coords + np.array([0.25, 0.5, 0.123])) @ np.linalg.inv(cell), 6)
    return Structure(Lattice(cell @ structure.lattice.matrix), structure.species, coordinates)


def test_thirds_are_read_as_by_the_parser():
    """A CIF with four decimals: pymatgen's parser makes 1/3 of 0.3333, and orders the sites; no other value moves."""
    coordinates = [[0.3333, 0.6667, 0.25], [0.3331, 0.1, 0.0], [0.6667, 0.3333, 0.75]]
    structure = Structure(Lattice.hexagonal(3.2, 5.2), ["Zn", "O", "Zn"], coordinates)
    parsed = Structure.from_str(to_cif(structure), fmt="cif").get_sorted_structure()
    np.testing.assert_allclose(_as_parsed(structure).frac_coords, parsed.frac_coords, atol=1e-9)
    assert np.abs(parsed.frac_coords - 1 / 3).min() < 1e-9


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("write", [lambda s: s, shifted], ids=["as built", "shifted"])
def test_same_tokens_as_pyxtal(name, write):
    basis, numbers, coordinates = parse_cif(to_cif(write(SYSTEMS[name]())))
    structure = Structure(Lattice(basis), numbers, coordinates)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        g, sites, cell = by_pyxtal(structure)
    batch = tokenize_published(structure)
    n = len(sites)
    assert batch.G[0] == g
    assert batch.num_sites[0] == n
    np.testing.assert_array_equal(batch.W[0, :n], [site[0] for site in sites])
    np.testing.assert_array_equal(batch.A[0, :n], [site[4] for site in sites])
    np.testing.assert_allclose(batch.XYZ[0, :n], [site[1:4] for site in sites], atol=1e-8)
    np.testing.assert_allclose(batch.L[0], cell, atol=1e-8)


def test_representative_of_bismuth_is_the_one_that_comes_first():
    """Published figure: 0.6 although the input says 0.4."""
    batch = tokenize_published(bismuth_telluride().get_primitive_structure())
    bismuth = batch.XYZ[0][batch.A[0] == 83]
    assert bismuth[0, 2] == pytest.approx(0.6, abs=1e-6)


def test_failures_have_kinds():
    cubic = Lattice.cubic(4)
    rng = np.random.default_rng(0)
    bad = {
        "disordered": Structure(cubic, [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]]),
        "unsupported-element": Structure(cubic, ["X"], [[0, 0, 0]]),
        "symmetry-failed": Structure(cubic, ["Fe", "Fe"], [[0, 0, 0], [0, 0, 0]]),
        "too-many-sites": Structure(Lattice.cubic(12), ["Si"] * 21, rng.random((21, 3))),
    }
    for kind, structure in bad.items():
        with pytest.raises(TokenError) as error:
            tokenize_published(structure)
        assert error.value.kind == kind
