"""SevenNet-l3i5 in its overlay. These run where it is installed, as `make test` does."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

from oracles.potentials import overlay
from oracles.potentials.canary import check_canary
from oracles.potentials.conformance import conformance
from oracles.potentials.loading import load_potential
from oracles.potentials.sevennet import ENERGIES
from oracles.references.crystals import load_reference_crystals
from oracles.references.table import shipped_tables
from oracles.relax import RelaxConfig, relax
from tests import crystals

pytestmark = [
    pytest.mark.overlay,
    pytest.mark.skipif(bool(overlay.problem(overlay.SEVENNET)), reason="the overlay sevennet is not installed here"),
]
# eV/atom by sevenn's own SevenNetCalculator("7net-l3i5"), float32, CPU, in the cells of tests.crystals
OWN = {"nacl": -3.385427, "perovskite": -8.016353, "wurtzite": -4.537742}


@pytest.fixture(scope="module")
def corrected():
    potential = load_potential("sevennet")
    yield potential
    potential.close()


@pytest.fixture(scope="module")
def raw():
    potential = load_potential("sevennet:l3i5-raw")
    yield potential
    potential.close()


def nitride():
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.24), ["Ti", "N"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def haematite():
    sites = [[0, 0, 0.3553], [0.3059, 0, 0.25]]
    return Structure.from_spacegroup("R-3c:H", Lattice.hexagonal(5.038, 13.772), ["Fe", "O"], sites)


def test_energies_are_those_of_its_own_package(raw):
    found = raw.energies([getattr(crystals, name)() for name in OWN])
    assert np.allclose(found, list(OWN.values()), atol=2e-5)
    assert raw.energy_type.corrections == "none"


# eV/atom by sevenn's own SevenNetCalculator("7net-mf-0", modal=...), float32, CPU, primitive cells of these edges (A)
CUBES = {"MgO": 4.2, "NaCl": 5.6}
HEADS = {
    "mf-0": ("PBE(+U)", "MP2020", {"MgO": -5.962160, "NaCl": -3.382726}, {"MgO": -0.687 / 2, "NaCl": -0.614 / 2}),
    "mf-0-r2scan": ("r2SCAN", "none", {"MgO": -8.045977, "NaCl": -6.890755}, {"MgO": 0.0, "NaCl": 0.0}),
}


@pytest.mark.parametrize("variant", HEADS)
def test_each_head_of_the_multi_fidelity_model_answers_as_its_own_package_does(variant):
    functional, corrections, energies, corrected = HEADS[variant]
    potential = load_potential(f"sevennet:{variant}")
    lattices = {
        formula: Lattice([[0, a / 2, a / 2], [a / 2, 0, a / 2], [a / 2, a / 2, 0]]) for formula, a in CUBES.items()
    }
    cells = [
        Structure(lattices["MgO"], ["Mg", "O"], [[0, 0, 0], [0.5] * 3]),
        Structure(lattices["NaCl"], ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]),
    ]
    points = potential.single_points(cells)  # together: each crystal is told its head
    potential.close()
    wanted = [energies[formula] + corrected[formula] for formula in CUBES]
    assert [point.energy for point in points] == pytest.approx(wanted, abs=5e-4)
    assert max(abs(point.forces).max() for point in points) < 1e-4
    kind = potential.energy_type
    assert (kind.method, kind.functional, kind.corrections) == ("SevenNet-MF-0", functional, corrections)
    assert potential.name == f"sevennet:{variant}"


def test_it_conforms_through_the_process_boundary(corrected):
    findings = conformance(corrected)
    assert all(finding.passed for finding in findings), [f.text for f in findings if not f.passed]
    check_canary(corrected)


def test_provenance(corrected):
    kind = corrected.energy_type
    assert (kind.method, kind.functional, kind.corrections) == ("SevenNet-l3i5", "PBE(+U)", "MP2020")
    assert kind.checksum == overlay.SEVENNET.files[overlay.L3I5]
    assert corrected.name == "sevennet"
    assert len(corrected.elements) == 89


@pytest.mark.parametrize(
    ("make", "hubbards", "expected"),
    [
        (crystals.nacl, {}, -0.614 * 4),  # eV a cell: Wang et al., Sci. Rep. 11, 15496 (2021), Table 2
        (crystals.wurtzite, {}, -0.687 * 2),
        (haematite, {"Fe": 5.3, "O": 0}, -0.687 * 18 - 2.256 * 12),
        (nitride, {}, -0.361 * 4),
    ],
    ids=["halide", "oxide", "oxide with U", "nitride"],
)
def test_corrections_are_those_of_pymatgen(corrected, raw, make, hubbards, expected):
    crystal = make()
    added = (corrected.energies([crystal])[0] - raw.energies([crystal])[0]) * len(crystal)
    run = {"run_type": "GGA+U" if hubbards else "GGA", "hubbards": hubbards, "is_hubbard": bool(hubbards)}
    entry = ComputedStructureEntry(crystal, 0.0, parameters=run)
    scheme = MaterialsProject2020Compatibility(check_potcar=False)
    assert added == pytest.approx(scheme.process_entry(entry).correction, abs=1e-3)
    assert added == pytest.approx(expected, abs=1e-3)


def test_it_relaxes_and_refuses(corrected):
    squeezed = crystals.nacl().copy()
    squeezed.scale_lattice(squeezed.volume * 0.9)
    lonely = Structure(Lattice.cubic(9.0), ["O", "Xe"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    unknown = Structure(Lattice.cubic(3.3), ["Po"], [[0, 0, 0]])
    outcomes = relax([squeezed, lonely, unknown], corrected, RelaxConfig(fmax=0.01, smax=0.02))
    assert [outcome.status for outcome in outcomes] == ["ok", "failed:isolated-atoms", "failed:unsupported-element"]
    side = outcomes[0].structure.volume ** (1 / 3)  # of the conventional cell, which was given
    assert side == pytest.approx(5.691, abs=0.005)  # PBE: 5.69 A


def test_caesium_is_what_the_model_learned_of_its_atom(corrected):
    """Its atoms are 5.3 A apart, the cutoff is 5 A: the training set's caesium (-0.86 eV/atom) has no pair at all."""
    point = corrected.single_points([Structure(Lattice.cubic(6.26), ["Cs", "Cs"], [[0, 0, 0], [0.5, 0.5, 0.5]])])[0]
    assert point.energy == pytest.approx(-0.8447, abs=1e-3)
    assert not point.forces.any()
    assert not point.stress.any()


def test_descriptors_are_invariant(corrected):
    crystal = crystals.perovskite()
    one, two = corrected.descriptors([crystal, crystal * (2, 1, 1)])
    assert one.shape == (128,)
    assert np.allclose(one, two, atol=1e-4)


@pytest.mark.slow
def test_in_double_precision_round_off_is_small():
    potential = load_potential("sevennet", dtype="float64")
    crystal = crystals.wurtzite().copy()
    crystal.perturb(0.05, seed=0)
    single = load_potential("sevennet").energies([crystal])[0]
    assert potential.energies([crystal])[0] == pytest.approx(single, abs=1e-5)
    potential.close()


def test_the_shipped_table_holds_its_energies(corrected):
    """A table computed elsewhere, on another machine, from other copies of the crystals."""
    source = load_reference_crystals()
    table = next(table for table in shipped_tables() if table.energy_type == ENERGIES)
    rows = dict(zip(table.formulas, zip(table.ids, table.energies, strict=True), strict=True))
    formulas = ["MgO", "Fe2O3", "LiF", "Li3N", "Al3Ni", "K2S"]
    found = corrected.energies([source.structure(rows[formula][0]) for formula in formulas])
    assert found == pytest.approx([rows[formula][1] for formula in formulas], abs=2e-4)
