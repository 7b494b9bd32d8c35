"""Hulls whose phases are computed when they matter: EMT alloys, whose complete hulls are cheap."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition, Lattice, Structure
from typer.testing import CliRunner

from flows.cli import app
from flows.rehull import Rehuller
from loop.errors import ConfigError, EnergyTypeError
from loop.hull import HullEntry
from loop.stability import IMPLAUSIBLE, LEVELS, METASTABLE, ON_HULL, within
from loop.values import Candidate, EnergyType, Evaluation, Quantity
from oracles.mlip import MlipConfig, PotentialOracle
from oracles.potentials.loading import load_potential
from oracles.references import phase_ledger, settle
from oracles.references.hull_on_demand import DemandHull
from oracles.references.phase_estimates import Estimates, Phase
from oracles.references.phase_ledger import PhaseLedger, PotentialPhases, relaxation
from oracles.references.settle import merged
from oracles.references.table import COLUMNS, References
from oracles.relax import RelaxConfig

METALS = {"Cu": 3.61, "Ni": 3.52, "Pd": 3.89, "Pt": 3.92, "Al": 4.05}
SETTINGS = RelaxConfig(fmax=0.01, smax=0.05)
FACES = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]


@dataclass(frozen=True)
class Entry:
    id: str
    formula: str
    e_above_hull: float = float("nan")
    formation_energy: float = float("nan")


class Alloys:
    """Elements, and L1_2, L1_0, B2 and D0_22-like order of each pair, in slightly wrong cells."""

    def __init__(self, metals):
        rng = np.random.default_rng(0)
        self.crystals = {}
        for metal in metals:
            self.crystals[f"{metal}-fcc"] = Structure(Lattice.cubic(METALS[metal]), [metal] * 4, FACES)
        for one, other in itertools.permutations(metals, 2):
            side = (METALS[one] * 3 + METALS[other]) / 4 * (1 + rng.normal() * 0.01)
            self.crystals[f"{one}3{other}-L12"] = Structure(Lattice.cubic(side), [other, one, one, one], FACES)
            cell = Lattice.tetragonal(side, side * 2.05)
            sites = [[x / 1, y, z / 2] for x, y, z in FACES] + [
                [(x + 0.5) % 1, (y + 0.5) % 1, (z + 1) / 2] for x, y, z in FACES
            ]
            self.crystals[f"{one}3{other}-D022"] = Structure(cell, [other, one, one, one] * 2, sites)
        for one, other in itertools.combinations(metals, 2):
            side = (METALS[one] + METALS[other]) / 2 * (1 + rng.normal() * 0.01)
            flat, cube = Lattice.tetragonal(side, side * 0.97), Lattice.cubic(side * 0.794)
            layers = [FACES[0], FACES[3], FACES[1], FACES[2]]
            self.crystals[f"{one}{other}-L10"] = Structure(flat, [one, one, other, other], layers)
            self.crystals[f"{one}{other}-B2"] = Structure(cube, [one, other], [[0, 0, 0], [0.5, 0.5, 0.5]])

    checksum = "alloys"

    def in_system(self, elements):
        inside = (id for id, c in self.crystals.items() if {e.symbol for e in c.composition.elements} <= set(elements))
        return sorted(inside)

    def known(self, id):
        return Entry(id, self.crystals[id].composition.reduced_formula)

    def structure(self, id):
        return self.crystals[id]


def table(source, potential, energy_type=None, shift=0.0):
    """Single points of the lowest crystal of each formula, as they stand."""
    lowest = {}
    points = potential.single_points(list(source.crystals.values()), gradients=False)
    for id, point in zip(source.crystals, points, strict=True):
        formula = source.known(id).formula
        if formula not in lowest or point.energy < lowest[formula][0]:
            lowest[formula] = (point.energy + shift, id)
    energies, ids = zip(*lowest.values(), strict=True)
    kind = energy_type or potential.energy_type
    return References(tuple(lowest), np.array(energies), ids, np.zeros(len(ids), dtype=bool), kind, "", {})


def frame_of(references):
    return pd.DataFrame(
        {"formula": references.formulas, "energy_per_atom": references.energies, "id": references.ids, "held_out": 0,
         "relaxed": 0, "unrelaxed": references.energies}
    )[COLUMNS]  # fmt: skip


def written(frame, potential, path, settings):
    return settle.write(path, frame, {"energy_type": asdict(potential.energy_type)}, settings)


@pytest.fixture(scope="module")
def emt():
    return load_potential("ase.calculators.emt:EMT")


@pytest.fixture
def made(emt, tmp_path):
    def make(metals=("Cu", "Ni", "Pd", "Pt"), where="phases.db", kind=None, shift=0.0, **margins):
        source = Alloys(metals)
        estimates = Estimates([table(source, emt, kind, shift)], emt.energy_type, **margins)
        return DemandHull(PhaseLedger(PotentialPhases(emt, SETTINGS), str(tmp_path / where)), source, estimates)

    return make


def candidates(metals, n=40, seed=0):
    rng = np.random.default_rng(seed)
    compositions = []
    for _ in range(n):
        chosen = rng.choice(metals, size=rng.integers(2, 4), replace=False)
        compositions.append(Composition(dict(zip(chosen, rng.integers(1, 5, size=len(chosen)).tolist(), strict=True))))
    return compositions


def test_it_equals_the_complete_hull_and_computes_less(made, emt):
    metals = ("Cu", "Ni", "Pd", "Pt")
    asked = candidates(metals, n=20)
    energies = np.zeros(len(asked))
    hull = made(metals, own_margin=0.04)
    found = hull.batch(asked, energies, emt.energy_type)
    compounds = {id for id in hull.computed if "-" in id and "fcc" not in id}
    assert len(compounds) < 0.8 * len(hull.source.crystals)
    complete = made(metals, where="all.db").complete(metals)
    for composition, result in zip(asked, found, strict=True):
        expected = complete.e_above_hull(composition, 0.0, emt.energy_type)
        assert result.e_above_hull == pytest.approx(expected.e_above_hull, abs=1e-6)
        assert result.decomposition == pytest.approx(expected.decomposition)
        assert result.ids == expected.ids
        assert result.n_entries == hull.complete(composition.chemical_system_set).e_above_hull(
            composition, 0.0, emt.energy_type
        ).n_entries  # fmt: skip


def test_a_verdict_needs_fewer_phases_than_a_distance(made, emt):
    """On which side of a level a distance lies is that of the complete hull, and most verdicts cost nothing."""
    metals, levels, margin = ("Cu", "Ni", "Pd", "Pt"), (0.0, 0.1), 0.04
    asked = candidates(metals, n=30, seed=1)
    complete = made(metals, where="all.db").complete(metals)
    depth = np.array([complete.e_above_hull(one, 0.0, emt.energy_type).e_above_hull for one in asked])
    wanted = np.random.default_rng(0).uniform(-0.1, 0.2, len(asked))
    wanted[:4] = [0.005, -0.005, 0.095, 0.105]  # too near a level for bounds
    whole, hull = made(metals, where="one.db", own_margin=margin), made(metals, where="two.db", own_margin=margin)
    told = []
    deciding = hull.deciding(levels, lambda *done: told.append(done))
    assert deciding.checksum != hull.checksum
    truth = whole.batch(asked, wanted - depth, emt.energy_type)
    found = deciding.batch(asked, wanted - depth, emt.energy_type)
    assert len(deciding.computed) < 0.7 * len(whole.computed)
    assert told
    assert told[-1][0] == told[-1][1]
    assert hull.progress is None
    bounds = [result for result in found if "as published" in result.message]
    assert len(bounds) >= 15
    for result, true in zip(found, truth, strict=True):
        assert [result.e_above_hull <= level for level in levels] == [true.e_above_hull <= level for level in levels]
        assert true.e_above_hull - margin <= result.e_above_hull <= true.e_above_hull + 1e-9
        assert (result.n_entries, result.sparse) == (true.n_entries, true.sparse)
    assert hull.computed == deciding.computed  # what is computed counts for both
    between = hull.bounds(asked, wanted - depth)
    assert hull.computed == deciding.computed  # bounds cost nothing
    for (low, high), result, true in zip(between, found, truth, strict=True):
        assert low - 1e-9 <= true.e_above_hull <= high + 1e-9
        assert low >= result.e_above_hull - 1e-9  # phases computed later lift it
    for (low, high), true in zip(whole.bounds(asked, wanted - depth), truth, strict=True):
        assert low == pytest.approx(high) == pytest.approx(true.e_above_hull)
    assert np.isnan(hull.bounds(asked[:1], [np.nan])).all()


def test_bounds_change_no_verdict(made, emt):
    """What lies too far below a hull is no find, and a bound lies below its distance."""
    margin = {"own_margin": 0.04}
    whole = made(**margin)
    (depth,) = (result.e_above_hull for result in whole.batch(["NiPt"], [0.0], emt.energy_type))
    for height in (IMPLAUSIBLE, IMPLAUSIBLE + 0.01, ON_HULL, METASTABLE):
        (true,) = whole.batch(["NiPt"], [height - depth], emt.energy_type)
        (found,) = made(**margin).deciding(LEVELS).batch(["NiPt"], [height - depth], emt.energy_type)
        for limit in (ON_HULL, METASTABLE):
            assert within([found.e_above_hull], limit) == within([true.e_above_hull], limit)
    (bound,) = made(**margin).deciding(LEVELS).batch(["NiPt"], [0.05 - depth], emt.energy_type)
    assert bound.message.startswith("a lower bound, the distance is at most 0.0")


def test_few_phases_are_computed_for_one_crystal(made, emt):
    hull = made(own_margin=0.02)
    hull.e_above_hull("Cu3Pd", 0.0, emt.energy_type)
    compounds = {id for id in hull.computed if "-" in id and "fcc" not in id}
    assert compounds < {id for id in hull.source.in_system(["Cu", "Pd"]) if "-" in id and "fcc" not in id}
    assert 1 <= len(compounds) <= 4


def test_polymorphs_are_looked_at_as_they_stand_before_they_are_relaxed(made, emt):
    """A crystal of unknown height that lies far above the others of its formula: one single point rules it out."""
    hull = made(("Cu", "Pd"))
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    hull.source.crystals["CuPd-rocksalt"] = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.0), ["Cu", "Pd"], sites)
    result = hull.e_above_hull("CuPd", 0.0, emt.energy_type)
    assert "CuPd-rocksalt" in hull._points
    assert "CuPd-rocksalt" not in hull.computed
    whole = made(("Cu", "Pd"), where="all.db").e_above_hull("CuPd", 0.0, emt.energy_type)
    assert result.e_above_hull == pytest.approx(whole.e_above_hull, abs=1e-6)


def test_nothing_is_computed_twice(made, emt, monkeypatch):
    asked = candidates(("Cu", "Ni", "Pd", "Pt"), n=10)
    first = made().batch(asked, np.zeros(10), emt.energy_type)
    monkeypatch.setattr(phase_ledger, "relax", lambda *_, **__: pytest.fail("a phase was computed again"))
    again = made().batch(asked, np.zeros(10), emt.energy_type)
    assert [result.e_above_hull for result in again] == [result.e_above_hull for result in first]


def test_other_settings_are_another_ledger(emt, tmp_path):
    one, other = (PhaseLedger(PotentialPhases(emt, RelaxConfig(fmax=f)), str(tmp_path / "x.db")) for f in (0.05, 0.01))
    assert one.key != other.key
    same = PhaseLedger(PotentialPhases(emt, RelaxConfig(fmax=0.05, batch_size=3)), str(tmp_path / "x.db"))
    assert one.key == same.key


def test_a_table_of_another_potential_proposes_too(made, emt):
    """Formation energies of another type, shifted by each element's own energy."""
    kind = EnergyType("other", "PBE", "none", "f" * 64)
    hull = made(kind=kind, shift=3.0, own_margin=0.04, other_margin=0.1)  # EMT gains up to 0.038
    asked = candidates(("Cu", "Ni", "Pd"), n=8)
    complete = made(where="all.db").complete(("Cu", "Ni", "Pd"))
    for composition, result in zip(asked, hull.batch(asked, np.zeros(8), emt.energy_type), strict=True):
        expected = complete.e_above_hull(composition, 0.0, emt.energy_type).e_above_hull
        assert result.e_above_hull == pytest.approx(expected, abs=1e-6)


def without(hull, formula):
    """The hull, its source robbed of a formula's crystals, as the test split's are not shipped."""
    for id in [id for id in hull.source.crystals if hull.source.known(id).formula == formula]:
        del hull.source.crystals[id]
    return hull


def test_a_compound_whose_crystal_is_not_shipped_counts_by_the_tables_energy(made, emt):
    """Otherwise a hull would lack compounds as common as ZnSe, and what decomposes to them would look stable."""
    margin = {"own_margin": 0.04}
    robbed = without(made(("Cu", "Pd"), **margin), "Cu3Pd")
    energy = robbed.estimates._own[0].energy["Cu3Pd"]
    result = robbed.e_above_hull("Cu3Pd", 0.0, emt.energy_type)
    assert result.decomposition == {"Cu3Pd": 1.0}
    assert result.e_above_hull == pytest.approx(-energy, abs=1e-9)
    assert "rests on the table's energy of a crystal that is not in the package: Cu3Pd (Cu3Pd-" in result.message
    assert robbed.complete(("Cu", "Pd")).e_above_hull("Cu3Pd", 0.0, emt.energy_type).decomposition == {"Cu3Pd": 1.0}
    blind = without(made(("Cu", "Pd"), held_out=False, **margin), "Cu3Pd").e_above_hull("Cu3Pd", 0.0, emt.energy_type)
    assert "Cu3Pd" not in blind.decomposition
    assert blind.e_above_hull < result.e_above_hull - 1e-3
    assert blind.message == ""


def test_a_compound_that_only_anothers_table_knows_is_named(made, emt):
    kind = EnergyType("other", "PBE", "none", "f" * 64)
    robbed = without(made(("Cu", "Pd"), kind=kind, own_margin=0.04, other_margin=0.1), "Cu3Pd")
    result = robbed.e_above_hull("Cu3Pd", 0.0, emt.energy_type)
    assert "not among the phases: Cu3Pd (Cu3Pd-" in result.message
    assert "its crystal is not in the package" in result.message
    assert "Cu3Pd" not in result.decomposition
    assert not any(id.startswith("Cu3Pd") for id in robbed.computed)
    # elsewhere in the same system, where it cannot matter, it is not named, whatever was asked before
    assert robbed.e_above_hull("Pd", 0.0, emt.energy_type).message == ""
    assert robbed.e_above_hull("Cu3Pd", 0.0, emt.energy_type).n_entries == result.n_entries
    blind = without(made(("Cu", "Pd"), where="b.db", own_margin=0.04, held_out=False), "Cu3Pd")
    expected = blind.e_above_hull("Cu3Pd", 0.0, emt.energy_type).e_above_hull
    assert result.e_above_hull == pytest.approx(expected, abs=1e-6)


def test_energies_that_stand_are_part_of_the_key(made, emt):
    hull = made(("Cu", "Pd"))
    own = hull.estimates._own[0]
    before = hull.checksum
    own.checksum = "a"
    assert hull.checksum != before
    assert hull.estimates.standing == ["a"]  # a user's table marks no row as held out


def test_without_any_table_all_phases_are_computed(emt, tmp_path):
    hull = DemandHull(
        PhaseLedger(PotentialPhases(emt, SETTINGS), str(tmp_path / "a.db")),
        Alloys(("Cu", "Pd")),
        Estimates([], emt.energy_type),
    )
    result = hull.e_above_hull("CuPd", 0.0, emt.energy_type)
    assert result.status == "ok"
    assert {id for id in hull.computed if " " not in id} == set(hull.source.crystals)


def test_an_element_without_published_crystals_has_its_reference_state(made, emt):
    hull, whole = made(("Cu", "Pd"), where="a.db"), made(("Cu", "Pd"), where="b.db")
    del hull.source.crystals["Pd-fcc"]
    found, expected = (each.e_above_hull("CuPd", 0.0, emt.energy_type) for each in (hull, whole))
    assert found.e_above_hull == pytest.approx(expected.e_above_hull, abs=1e-6)
    assert "Pd ase:Pd" in hull.computed


def test_margins_that_are_broken_are_widened(made, emt):
    """Estimates 0.3 eV/atom too high: what is computed shows it, and nothing that matters is left out."""
    source = Alloys(("Cu", "Ni", "Pd", "Pt"))
    right = table(source, emt)
    compound = np.array([len(Composition(formula).elements) > 1 for formula in right.formulas])
    wrong = References(
        right.formulas, right.energies + 0.3 * compound, right.ids, right.held_out, right.energy_type, "", {}
    )
    hull = made()
    hull.estimates = Estimates([wrong], emt.energy_type, own_margin=0.28)
    complete = made(where="all.db").complete(("Cu", "Pd", "Pt"))
    for formula in ("Cu3Pd", "CuPdPt", "Pd2Pt"):
        expected = complete.e_above_hull(formula, 0.0, emt.energy_type).e_above_hull
        assert hull.e_above_hull(formula, 0.0, emt.energy_type).e_above_hull == pytest.approx(expected, abs=1e-6)


def test_finds_join_the_hull(made, emt):
    hull = made()
    before = hull.e_above_hull("CuPd", 0.0, emt.energy_type)
    find = HullEntry("CuPd", -before.e_above_hull - 0.5, "mine")
    joined = hull.with_entries([find], emt.energy_type)
    after = joined.e_above_hull("CuPd", 0.0, emt.energy_type)
    assert after.e_above_hull == pytest.approx(before.e_above_hull + 0.5)
    assert after.ids == {"CuPd": "mine"}
    assert hull.e_above_hull("CuPd", 0.0, emt.energy_type) == before


def test_a_phase_that_cannot_be_computed_is_named(made, emt):
    hull = made(("Cu", "Pd"))
    flat = Structure(Lattice.cubic(3.0), ["Cu", "Pd"], [[0, 0, 0], [0.01, 0, 0]])
    hull.source.crystals["CuPd-broken"] = flat
    hull.estimates = Estimates([], emt.energy_type)
    result = hull.e_above_hull("CuPd", 0.0, emt.energy_type)
    assert result.status == "ok"
    assert "CuPd-broken: failed:overlap" in result.message


@pytest.mark.parametrize("limit", [{"max_steps": 1}, {"time_limit": 1e-9}])
def test_a_phase_whose_relaxation_was_cut_off_is_named_where_the_distance_rests_on_it(made, emt, tmp_path, limit):
    """Its energy is an upper bound: relaxed, it lies lower, and the candidate further above it."""
    hasty = PhaseLedger(PotentialPhases(emt, replace(SETTINGS, **limit)), str(tmp_path / "hasty.db"))
    whole = made(("Cu", "Pd"))
    hull = DemandHull(hasty, whole.source, whole.estimates)
    result = hull.e_above_hull("Cu3Pd", 0.0, emt.energy_type)
    cut_off = {id for id in result.ids.values() if hull.computed[id].status in ("timeout", "not-converged")}
    assert cut_off
    assert all(id in result.message.split("did not end")[1] for id in cut_off)
    finished = whole.e_above_hull("Cu3Pd", 0.0, emt.energy_type)
    assert finished.e_above_hull > result.e_above_hull
    assert not finished.message


def test_refusals(made, emt):
    hull = made()
    with pytest.raises(EnergyTypeError):
        hull.e_above_hull("CuPd", 0.0, EnergyType("other", "", ""))
    assert hull.e_above_hull("CuFe", 0.0, emt.energy_type).status == "failed:no-reference"
    assert hull.e_above_hull("CuPd", float("nan"), emt.energy_type).status == "failed:no-energy"
    assert all(id.startswith("Cu ") or id == "Cu-fcc" for id in hull.computed)


@pytest.mark.parametrize(("published", "expected"), [(float("nan"), None), (1.0, None), (-0.3, -0.3)])
def test_a_polymorph_may_be_as_low_as_the_lowest_of_its_formula(emt, published, expected):
    """By the judge's energy of that, or by the published one; not by how far above it the polymorph is published."""

    class Two(Alloys):
        def known(self, id):
            above = {"CuPd-L10": 0.0, "CuPd-B2": 0.05}.get(id, float("nan"))  # the table holds L1_0
            return Entry(id, self.crystals[id].composition.reduced_formula, above, published)

    source = Two(("Cu", "Pd"))
    own = table(source, emt)
    own = replace(own, provenance={"corners": {s: {"name": f"{s}-fcc", "energy": 0.0} for s in ("Cu", "Pd")}})
    phases = {
        phase.id: phase for phase in Estimates([own], emt.energy_type, own_margin=0.04).phases(["Cu", "Pd"], source)
    }
    lowest = phases["CuPd-L10"].estimate
    assert phases["CuPd-B2"].estimate == pytest.approx(lowest if expected is None else expected)
    assert phases["CuPd-B2"].guessed
    assert not phases["CuPd-L10"].guessed
    assert phases["CuPd-B2"].lower({}, 0.0) == pytest.approx(phases["CuPd-B2"].estimate - 0.20)
    assert phases["CuPd-L10"].lower({}, 0.0) == pytest.approx(lowest - 0.04)
    pbe = Estimates([own], emt.energy_type, uncorrected=True)  # whose published heights are its own
    above = {phase.id: phase.estimate for phase in pbe.phases(["Cu", "Pd"], source)}
    assert above["CuPd-B2"] == pytest.approx(phases["CuPd-B2"].estimate + 0.05)
    assert pbe.rules != Estimates([own], emt.energy_type).rules  # so distances by the one do not count as the other's
    unknown = Phase("x", "CuPd", float("nan"), formation=True, margin=0.2)
    assert unknown.lower({}, 0.0) == -np.inf


def test_a_settled_table_leaves_nothing_to_compute(made, emt, tmp_path):
    """What `settle` computed and `merged` put into the table, another user's hull takes from there: the same hull."""
    metals = ("Cu", "Ni", "Pd")
    first = made(metals)
    first.settle(metals)
    frame = frame_of(table(first.source, emt))
    both = merged(frame, first)
    assert both.relaxed.sum() > 5
    assert len(both) > len(frame)
    filled = written(both, emt, tmp_path / "filled_references.csv.gz", SETTINGS)
    ledger = PhaseLedger(PotentialPhases(emt, SETTINGS), str(tmp_path / "other.db"))
    second = DemandHull(ledger, first.source, Estimates([filled], emt.energy_type, relaxation=relaxation(SETTINGS)))
    asked = candidates(metals, n=10)
    found = second.batch(asked, np.zeros(len(asked)), emt.energy_type)
    expected = first.batch(asked, np.zeros(len(asked)), emt.energy_type)
    assert [each.e_above_hull for each in found] == pytest.approx([each.e_above_hull for each in expected], abs=2e-5)
    assert [each.ids for each in found] == [each.ids for each in expected]
    assert not [id for id in second.computed if "-" in id and "fcc" not in id]  # elements alone
    loose = RelaxConfig(fmax=0.1)
    other = DemandHull(PhaseLedger(PotentialPhases(emt, loose), str(tmp_path / "loose.db")), first.source, Estimates(
        [filled], emt.energy_type, relaxation=relaxation(loose)))  # fmt: skip
    other.batch(asked[:1], np.zeros(1), emt.energy_type)
    assert [id for id in other.computed if "-" in id and "fcc" not in id]  # relaxed by other settings: computed again


def test_an_oracle_judges_by_it(made, emt):
    hull = made()
    config = MlipConfig(relax=SETTINGS, bulk=None, abstain_when_sparse=False)
    oracle = PotentialOracle(emt, hull, config)
    crystals = [hull.source.structure(id) for id in ("CuPd-L10", "Cu3Ni-L12")]
    overlap = Structure(Lattice.cubic(3.0), ["Cu", "Pd"], [[0, 0, 0], [0.01, 0, 0]])
    labels = oracle.evaluate([Candidate(crystal) for crystal in (crystals[0], overlap, crystals[1])])
    assert [label.status for label in labels] == ["ok", "failed:overlap", "ok"]
    complete = made(where="all.db").complete(("Cu", "Ni", "Pd"))
    for label, crystal in zip(labels[::2], crystals, strict=True):
        expected = complete.e_above_hull(crystal.composition, label.value("energy"), emt.energy_type)
        assert label.value("e_above_hull") == pytest.approx(expected.e_above_hull, abs=1e-6)
    assert oracle.on_demand
    with pytest.raises(ConfigError, match="screen"):
        _ = oracle.table
    assert oracle.settings_hash == PotentialOracle(emt, made(), config).settings_hash
    assert oracle.settings_hash != PotentialOracle(emt, made(own_margin=0.5), config).settings_hash
    assert oracle.settings_hash != PotentialOracle(emt, hull, MlipConfig(relax=SETTINGS, bulk=None)).settings_hash


def test_earlier_finds_are_judged_again_on_it(made, emt):
    hull = made()
    energies = [hull.e_above_hull(formula, 0.0, emt.energy_type) for formula in ("CuPd", "Cu3Pd")]
    deep = Quantity(-energies[0].e_above_hull - 0.3, "eV/atom")
    crystals = [Candidate(hull.source.structure(id)) for id in ("CuPd-L10", "Cu3Pd-L12")]
    kind = {"oracle": "o", "settings": "s", "status": "ok", "energy_type": emt.energy_type}
    finds = [
        Evaluation(crystals[0].id, properties={"energy": deep}, **kind),
        Evaluation(crystals[1].id, properties={"energy": Quantity(-energies[1].e_above_hull, "eV/atom")}, **kind),
    ]
    judged = Rehuller(hull)(crystals, finds)
    assert judged[0].value("e_above_hull") == 0.0
    assert 0.1 < judged[1].value("e_above_hull") <= 0.15  # half of CuPd's 0.3, less what it lies below that mixture


def test_phases_that_are_told_were_computed(made, emt):
    hull = made()
    result = hull.e_above_hull("CuPd", 0.0, emt.energy_type)
    told = {entry.id: entry.energy for entry in hull.phases(("Cu", "Pd"))}
    computed = {id: found.value("energy") for id, found in hull.computed.items()}
    assert set(result.ids.values()) <= told.keys()
    assert all(told[id] == computed[id] for id in told.keys() & computed.keys())
    assert len(told) < len(hull.complete(("Cu", "Pd")))  # bounds of the others are no phases


def test_demand_is_for_relaxed_candidates(tmp_path):
    path = tmp_path / "a.cif"
    path.write_text(Alloys(("Cu", "Pd")).crystals["CuPd-B2"].to(fmt="cif"))
    options = ["--input", str(path), "--output", str(tmp_path / "o.csv"), "--potential", "ase.calculators.emt:EMT"]
    said = CliRunner().invoke(app, ["hull", *options, "--reference", "demand"])
    assert said.exit_code == 1
    assert "--relax with --reference demand" in said.output


def test_from_crystals_to_distances_by_the_command_line(tmp_path):
    """Reference crystals of the package, proposed by CHGNet's table, relaxed by EMT."""
    path, output = tmp_path / "a.cif", tmp_path / "o.csv"
    path.write_text(Alloys(("Ni", "Pt")).crystals["NiPt-L10"].to(fmt="cif"))
    options = ["--input", str(path), "--output", str(output), "--potential", "ase.calculators.emt:EMT", "--relax"]
    said = CliRunner().invoke(app, ["hull", *options, "--reference", "demand"])
    assert said.exit_code == 0, said.output
    row = pd.read_csv(output).iloc[0]
    assert row.status == "ok"
    assert abs(row.e_above_hull) < 0.05
    refused = CliRunner().invoke(app, ["hull", *options, "--reference", "shipped"])
    assert refused.exit_code == 1
    assert "references: demand" in refused.output
