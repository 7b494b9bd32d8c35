"""Hulls against pymatgen's phase diagrams, and their refusals."""

import numpy as np
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition

from loop.errors import EnergyTypeError, InputError
from loop.hull import Hull, HullEntry
from loop.values import EnergyType

TYPE = EnergyType("model", "PBE", "none", "1")
OTHER = EnergyType("model", "PBE", "MP2020", "1")


def random_entries(seed: int, symbols=("Li", "Mg", "Al", "Si"), n=120) -> list[HullEntry]:
    """Elements and compounds, most of them bound."""
    rng = np.random.default_rng(seed)
    entries = [HullEntry(symbol, float(rng.normal(-3, 1)), f"el-{symbol}") for symbol in symbols]
    pure = {entry.formula: entry.energy for entry in entries}
    for i in range(n):
        chosen = rng.choice(symbols, size=rng.integers(2, len(symbols) + 1), replace=False)
        formula = Composition({s: int(rng.integers(1, 7)) for s in chosen}).reduced_formula
        fractions = Composition(formula).fractional_composition
        base = sum(pure[s.symbol] * x for s, x in fractions.items())
        entries.append(HullEntry(formula, base + float(rng.normal(-0.5, 0.5)), f"id-{i}"))
    return entries


@pytest.mark.parametrize("seed", range(4))
def test_distance_and_products_are_those_of_pymatgen(seed):
    entries = random_entries(seed)
    hull = Hull(entries, TYPE)
    rng = np.random.default_rng(seed + 100)
    for _ in range(25):
        chosen = rng.choice(["Li", "Mg", "Al", "Si"], size=rng.integers(1, 5), replace=False)
        target = Composition({s: int(rng.integers(1, 9)) for s in chosen})
        known = [e for e in entries if set(Composition(e.formula).chemical_system_set) <= set(chosen)]
        diagram = PhaseDiagram([PDEntry(e.formula, e.energy * Composition(e.formula).num_atoms) for e in known])
        found = hull.e_above_hull(target, -3.0, TYPE)
        assert found.e_above_hull == pytest.approx(-3.0 - diagram.get_hull_energy_per_atom(target), abs=1e-8)
        mixture = sum(
            (Composition(f).fractional_composition * x for f, x in found.decomposition.items()), Composition()
        )
        assert mixture.almost_equals(target.fractional_composition, atol=1e-7)
        expected = {e.composition.reduced_formula for e, x in diagram.get_decomposition(target).items() if x > 1e-8}
        assert set(found.decomposition) == expected


def test_phases_on_the_hull_are_at_zero():
    entries = random_entries(1)
    hull = Hull(entries, TYPE)
    diagram = PhaseDiagram([PDEntry(e.formula, e.energy * Composition(e.formula).num_atoms) for e in entries])
    assert len(diagram.stable_entries) > 6
    for entry in diagram.stable_entries:
        assert hull.e_above_hull(entry.composition, entry.energy_per_atom, TYPE).e_above_hull == pytest.approx(
            0, abs=1e-9
        )


def test_the_lowest_of_several_polymorphs_counts():
    entries = [HullEntry("Na", -1.0), HullEntry("Cl2", -2.0), HullEntry("NaCl", -3.0), HullEntry("NaCl", -3.5, "low")]
    found = Hull(entries, TYPE).e_above_hull("Na2Cl2", -3.4, TYPE)
    assert found.e_above_hull == pytest.approx(0.1)
    assert found.ids == {"NaCl": "low"}
    assert found.n_entries == 3


def test_a_crystal_below_all_known_phases_is_negative():
    hull = Hull([HullEntry("Na", -1.0), HullEntry("Cl2", -2.0)], TYPE)
    assert hull.e_above_hull("NaCl", -3.0, TYPE).e_above_hull == pytest.approx(-1.5)


def test_energies_of_another_type_are_refused_by_name():
    hull = Hull([HullEntry("Na", -1.0)], TYPE)
    with pytest.raises(EnergyTypeError, match=r"model/PBE/none/1.*model/PBE/MP2020/1"):
        hull.e_above_hull("Na", -1.0, OTHER)
    with pytest.raises(EnergyTypeError):
        hull.with_entries([HullEntry("K", -1.0)], OTHER)


def test_an_element_without_reference_is_a_status():
    found = Hull([HullEntry("Na", -1.0)], TYPE).e_above_hull("NaXe", -1.0, TYPE)
    assert found.status == "failed:no-reference"
    assert "Xe" in found.message
    assert np.isnan(found.e_above_hull)


def test_an_energy_that_is_none_is_a_status():
    assert Hull([HullEntry("Na", -1.0)], TYPE).e_above_hull("Na", float("nan"), TYPE).status == "failed:no-energy"


@pytest.mark.parametrize(("formula", "energy"), [("", -1.0), ("Na", float("inf"))])
def test_entries_without_formula_or_energy_are_refused(formula, energy):
    with pytest.raises(InputError, match="finite energy"):
        Hull([HullEntry(formula, energy)], TYPE)


def test_no_composition_is_refused():
    with pytest.raises(InputError, match="composition"):
        Hull([HullEntry("Na", -1.0)], TYPE).e_above_hull({}, -1.0, TYPE)
    with pytest.raises(InputError, match="formula"):
        Hull([HullEntry("Na", -1.0)], TYPE).e_above_hull("not a formula!", -1.0, TYPE)


def test_new_finds_make_a_new_hull_and_leave_the_old_one():
    hull = Hull([HullEntry("Na", -1.0), HullEntry("Cl2", -2.0)], TYPE)
    before = hull.e_above_hull("NaCl3", -2.0, TYPE).e_above_hull
    grown = hull.with_entries([HullEntry("NaCl", -3.0, "find")], TYPE)
    after = grown.e_above_hull("NaCl3", -2.0, TYPE)
    assert after.e_above_hull == pytest.approx(-2.0 - (0.5 * -3.0 + 0.5 * -2.0))
    assert after.ids["NaCl"] == "find"
    assert hull.e_above_hull("NaCl3", -2.0, TYPE).e_above_hull == pytest.approx(before)
    assert len(grown) == len(hull) + 1


def test_sparse_means_fewer_compounds_than_pairs_of_elements():
    elements = [HullEntry(symbol, -1.0) for symbol in ("Na", "Cl", "O")]
    compounds = [HullEntry(formula, -2.0) for formula in ("NaCl", "Na2O", "NaClO")]
    assert Hull(elements + compounds[:2], TYPE).e_above_hull("NaClO4", -1.0, TYPE).sparse
    assert not Hull(elements + compounds, TYPE).e_above_hull("NaClO4", -1.0, TYPE).sparse
    assert Hull(elements + compounds, TYPE, min_compounds=4).e_above_hull("NaClO4", -1.0, TYPE).sparse
    assert not Hull(elements, TYPE).e_above_hull("Na", -1.0, TYPE).sparse


def test_a_batch_is_its_members():
    hull = Hull(random_entries(2), TYPE)
    formulas, energies = ["LiSi", "MgAl", "LiMgAlSi4"], [-3.0, -2.0, -4.0]
    single = [hull.e_above_hull(f, e, TYPE) for f, e in zip(formulas, energies, strict=True)]
    assert Hull(random_entries(2), TYPE).batch(formulas, energies, TYPE) == single


def test_the_order_of_the_phases_changes_not_a_bit_of_the_answer():
    entries = random_entries(3)
    lists = {entry.formula: entry for entry in entries}  # one of each composition, so that ids cannot differ
    hulls = Hull(lists.values(), TYPE), Hull(reversed(lists.values()), TYPE)
    rng = np.random.default_rng(5)
    targets = [dict(zip(["Li", "Mg", "Al", "Si"], rng.integers(1, 9, 4).tolist(), strict=True)) for _ in range(200)]
    forward, backward = (hull.batch(targets, [-3.0] * len(targets), TYPE) for hull in hulls)
    assert [(one.e_above_hull, one.decomposition) for one in forward] == [
        (one.e_above_hull, one.decomposition) for one in backward
    ]
