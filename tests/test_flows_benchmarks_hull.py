"""The hull benchmark: its metrics against the published definitions, and episodes in a world of two elements."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Lattice, Structure

from flows.benchmarks.crystals import random_crystals
from flows.benchmarks.dielectric.real import RealConfig
from flows.benchmarks.hull.methods import InOrder, Ours, Pool, Ranking
from flows.benchmarks.hull.run import HullConfig, run
from flows.benchmarks.hull.summary import discovery_area, pooled, scores, summarise
from flows.benchmarks.hull.world import Answer, Episode, Outcome, Referee, RelaxingOracle
from flows.cli.records import settings_of
from loop.errors import ConfigError
from loop.fingerprint import fingerprint
from loop.hull import Hull, HullEntry
from loop.known import KnownCrystals
from loop.novelty import NoveltyIndex
from loop.values import NEW, Candidate, EnergyType
from oracles.potentials.loading import load_potential
from oracles.relax import RelaxConfig
from surrogates.blocks import UNRELAXED_HULL
from surrogates.features import FeatureExtractor, default_blocks

KIND = EnergyType("test", "none", "none")
FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def hull():
    return Hull([HullEntry("Mg", 0.0), HullEntry("Ag", 0.0), HullEntry("MgAg", -0.2)], KIND)


def alloy(*symbols, a=4.2, c=1.0):
    """Four sites of a stretched face-centred cell."""
    return Candidate(Structure(Lattice.tetragonal(a, a * c), list(symbols), FCC))


def test_metrics_are_the_published_ones():
    assert discovery_area(np.arange(1, 51)) == pytest.approx(1.0)
    assert discovery_area(np.zeros(50)) == 0
    assert discovery_area([0, 1, 2, 3]) == pytest.approx((0 + 0.5 + 1.5 + 2.5) / 8)
    found = scores([1, 2, 3, 4], [0, 0, 1, 1])
    assert found == {"af": 3.0, "ef": 4.0, "audc": pytest.approx(1.0), "msun": 1.0}
    assert scores([0, 0, 0, 1], [0, 0, 0, 2])["af"] == 0
    nothing = scores([0, 1], [0, 0])
    assert nothing["ef"] == 100
    assert np.isnan(nothing["af"])


def test_discoveries_are_counted_anew_on_each_hull():
    """Distances are pymatgen's; a deep find takes an earlier one off the list, a copy and a failure add none."""
    episode = Episode(hull(), None, (0.1,))
    found = [(alloy("Mg", "Mg", "Mg", "Ag"), -0.05), (alloy("Mg", "Mg", "Mg", "Ag", c=1.002), -0.05)]
    found += [(alloy("Mg", "Ag", "Mg", "Ag", c=1.3), -0.45), (alloy("Mg", "Ag", "Ag", "Ag"), -0.2)]
    for candidate, energy in found:
        episode.take(candidate, Answer("ok", energy, candidate.structure))
    bad = alloy("Mg", "Mg", "Ag", "Ag", c=0.6)
    assert np.isnan(episode.take(bad, Answer("failed:exploded")))
    assert np.isnan(episode.take(bad, Answer("ok", -5.0, bad.structure)))  # too good to be true
    assert [query.verdict for query in episode.queries] == ["new", "duplicate", "new", "new", "", ""]
    assert episode.queries[-1].status == "failed:energy-outlier"
    entries = [PDEntry(Composition(f), e * Composition(f).num_atoms) for f, e in (("Mg", 0), ("Ag", 0), ("MgAg", -0.2))]
    above = []
    for candidate, energy in found[:3]:
        entries.append(PDEntry(candidate.structure.composition, 4 * energy))
        above.append(PhaseDiagram(entries).get_e_above_hull(entries[-1]))
    np.testing.assert_allclose([query.e_above_hull for query in episode.queries[:3]], above, atol=1e-9)
    assert PhaseDiagram(entries).get_e_above_hull(entries[3]) > 0.1  # the first find, once the third is known
    assert episode.curves[0.1] == [1, 1, 1, 2, 2, 2]


class StretchOracle:
    """A potential whose energy falls with the stretch of the cell, for crystals as they are."""

    def __init__(self):
        self.asked = 0

    def __call__(self, candidates):
        self.asked += len(candidates)
        return [Answer("ok", energy(candidate) - 0.02, candidate.structure) for candidate in candidates]


def energy(candidate):
    stretch = candidate.structure.lattice.c / candidate.structure.lattice.a
    return float(-0.3 + abs(stretch - 1.5))


def pool():
    rows = [("Mg", "Ag", "Ag", "Ag"), ("Mg", "Mg", "Mg", "Ag"), ("Mg", "Mg", "Ag", "Ag")]
    made = [alloy(*rows[i % 3], c=1.1 + 0.07 * i) for i in range(12)]
    return Pool(tuple(made), np.array([energy(candidate) for candidate in made]))


def above(structures, energies):
    places = hull().batch([s.composition for s in structures], energies, KIND)
    return np.array([place.e_above_hull for place in places])


def test_ranking_and_ours_take_the_lowest_of_each_prototype_first():
    def describe(structures):
        return np.array([energy(Candidate(s)) for s in structures]), np.zeros((len(structures), 2))

    extractor = FeatureExtractor(default_blocks(describe, above, key="stretch", size=2))
    assert UNRELAXED_HULL in extractor.names
    crystals = pool()
    ranked = Ranking(crystals).propose(Episode(hull(), None, (0.1,)), 12)
    unrelaxed = [above([c.structure], [energy(c)])[0] for c in ranked]
    assert unrelaxed == sorted(unrelaxed)
    episode, method, oracle = Episode(hull(), None, (0.1,)), Ours(crystals, extractor, 0.1), StretchOracle()
    asked = []
    while chosen := method.propose(episode, 2):
        for candidate, answer in zip(chosen, oracle(chosen), strict=True):
            method.observe(candidate, answer, episode.take(candidate, answer))
            asked.append(candidate)
    assert asked[0].id == ranked[0].id
    assert len({candidate.formula for candidate in asked}) == len(asked) == 3  # all of a formula share their symmetry
    assert len(method._labels) == 3


def test_relaxed_crystals_of_one_prototype_are_all_asked_about():
    """Their copies were told apart by the novelty check; formula and symmetry say too little."""
    extractor = FeatureExtractor(default_blocks(lambda s: (np.zeros(len(s)), np.zeros((len(s), 2))), above, size=2))
    episode, crystals = Episode(hull(), None, (0.1,)), pool()
    method = Ours(crystals, extractor, 0.1, apart=False)
    asked = [*method.propose(episode, 7), *method.propose(episode, 7)]
    assert len(asked) == len({candidate.id for candidate in asked}) == len(crystals.candidates)


def test_ours_leaves_out_what_would_relax_into_a_known_crystal():
    """Same formula and symmetry as a known crystal, though so stretched that the novelty check calls it new."""
    crystals = pool()
    relaxed = alloy("Mg", "Mg", "Mg", "Ag", c=1.05)
    known = KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(relaxed.structure)])
    assert {v.kind for v in NoveltyIndex(known).judge([c.structure for c in crystals.candidates[4:]], ["x"] * 8)} == {
        NEW
    }
    extractor = FeatureExtractor(default_blocks(lambda s: (np.zeros(len(s)), np.zeros((len(s), 2))), above, size=2))
    episode = Episode(hull(), known, (0.1,))
    assert {c.formula for c in Ours(crystals, extractor, 0.1).propose(episode, 9)} == {"MgAg", "MgAg3", "Mg3Ag"}
    assert {c.formula for c in Ours(crystals, extractor, 0.1, known).propose(episode, 9)} == {"MgAg", "MgAg3"}


def test_ours_moves_its_bound_with_the_hull():
    crystals = pool()
    extractor = FeatureExtractor(default_blocks(lambda s: (np.zeros(len(s)), np.zeros((len(s), 2))), above, size=2))
    method, episode = Ours(crystals, extractor, 0.1), Episode(hull(), None, (0.1,))
    before = method.log_stable(episode)
    deep = alloy("Mg", "Ag", "Mg", "Ag", c=1.3)
    episode.take(deep, Answer("ok", -0.6, deep.structure))
    assert (method.log_stable(episode) < before).all()


def test_random_crystals_keep_system_and_size():
    made = random_crystals(("Mg", "Ag", "Zn"), 40, 6, seed=1)
    assert {len(c.structure.composition) for c in made} == {2, 3}
    assert max(len(c.structure) for c in made) <= 6
    assert [c.id for c in made] == [c.id for c in random_crystals(("Mg", "Ag", "Zn"), 40, 6, seed=1)]
    in_order = InOrder(made)
    assert in_order.propose(None, 3) == made[:3]
    assert in_order.propose(None, 3) == made[3:6]


def test_relaxations_are_paid_for_once(tmp_path, monkeypatch):
    from oracles.relax import RelaxConfig, Relaxed

    calls = []

    def relax(structures, *_):
        calls.append(len(structures))
        return [Relaxed("ok", structures[0], -1.5, 3), Relaxed("failed:exploded")][: len(structures)]

    monkeypatch.setattr("oracles.relax.relax", relax)
    crystals = [alloy("Mg", "Mg", "Ag", "Ag"), alloy("Mg", "Ag", "Ag", "Ag")]
    path = tmp_path / "answers.jsonl"
    first = RelaxingOracle(None, RelaxConfig(), path)(crystals)
    second = RelaxingOracle(None, RelaxConfig(), path)([*crystals[::-1]])
    assert calls == [2]
    assert [answer.status for answer in second] == ["failed:exploded", "ok"]
    assert second[1].energy == first[0].energy == -1.5
    assert second[1].structure == first[0].structure
    assert not second[0].ok


def test_a_referee_goes_on_where_the_crystal_may_end_near_its_hull(tmp_path, monkeypatch):
    """Further off its energy counts as it is; what either potential cannot do has none."""
    from oracles.relax import RelaxConfig, Relaxed

    asked = []

    class Judge:
        def energies(self, structures):
            asked.append(len(structures))
            return np.array([0.1, 0.9, np.nan])

    def relax(structures, potential, _):
        if not isinstance(potential, Judge):
            return [*(Relaxed("ok", s, -3.0, 7) for s in structures[:3]), Relaxed("failed:exploded")]
        asked.append(len(structures))
        return [Relaxed("not-converged", structures[0], 0.02, 5)]

    monkeypatch.setattr("oracles.relax.relax", relax)
    crystals = [alloy("Mg", "Mg", "Ag", "Ag", c=1.1 + 0.1 * i) for i in range(4)]
    referee = Referee(Judge(), RelaxConfig(), Hull([HullEntry("Mg", 0.0), HullEntry("Ag", 0.0)], KIND), 0.3)
    answers = RelaxingOracle(None, RelaxConfig(), tmp_path / "answers.jsonl", referee)(crystals)
    assert asked == [3, 1]
    assert [answer.status for answer in answers] == ["not-converged", "ok", "failed:no-energy", "failed:exploded"]
    assert [answer.energy for answer in answers[:2]] == [0.02, 0.9]
    assert [answer.steps for answer in answers] == [12, 7, 7, 0]
    assert [answer.ok for answer in answers] == [True, True, False, False]


def test_summary_has_means_with_standard_errors_over_systems():
    def outcome(system, method, curve):
        queries = [{"status": "ok", "verdict": "new"}] * len(curve)
        return Outcome(system, method, 0, {"0.1": curve}, queries, 1.0)

    runs = [outcome("A-B", "random", [0, 0, 1, 1]), outcome("A-C", "random", [0, 1, 1, 1])]
    runs += [outcome("A-B", "ours", [1, 2, 3, 4]), outcome("A-C", "ours", [1, 1, 2, 2])]
    rows = {row["method"]: row for row in summarise(runs)}
    assert rows["ours"]["ef"] == pytest.approx(3.0)
    assert rows["ours"]["ef_se"] == pytest.approx(1.0)  # of 4 and 2
    assert rows["ours"]["af"] == pytest.approx(2.5)  # of 3 / 1 and 2 / 1
    assert rows["random"]["af"] == rows["random"]["ef"] == 1
    alone = summarise(runs[2:])[0]
    assert np.isnan(alone["af"])  # nothing to compare with
    assert np.isnan(alone["ef"])
    assert alone["msun"] == pytest.approx(0.75)
    json.dumps(rows)


def test_ours_is_compared_with_each_method_over_all_systems_and_in_each():
    def outcome(system, method, found):
        return Outcome(system, method, 0, {"0.1": [0, 1, 2, found]}, [{"status": "ok", "verdict": "new"}] * 4, 1.0)

    runs = [outcome(system, "ours", n) for system, n in (("A-B", 4), ("A-C", 2), ("B-C", 3))]
    runs += [outcome(system, "random", n) for system, n in (("A-B", 1), ("A-C", 0), ("B-C", 2))]
    runs += [outcome(system, "generator_ranking", n) for system, n in (("A-B", 4), ("A-C", 3), ("B-C", 2))]
    found = pooled(runs)["0.1"]
    assert found["ours"] == {"found": 9, "queries": 12}
    chance, ranking = found["ours_over_random"], found["ours_over_generator_ranking"]
    assert chance["pooled"][0] == pytest.approx(3.0)  # 9 of 12 over 3 of 12
    assert chance["pooled"][1] > 1
    each = [(4.5 / 4.5) / (1.5 / 4.5), (2.5 / 4.5) / (0.5 / 4.5), (3.5 / 4.5) / (2.5 / 4.5)]
    assert chance["over_systems"][0] == pytest.approx(np.prod(each) ** (1 / 3))
    assert [chance[name] for name in ("more", "as_many", "fewer", "sooner")] == [3, 0, 0, 3]
    assert [ranking[name] for name in ("more", "as_many", "fewer", "sooner")] == [1, 1, 1, 1]
    json.dumps(found)


def test_the_ranking_may_go_by_a_hull_that_is_not_the_referees():
    """Where another potential judges, its energies and those of the pool must not meet on one hull."""
    crystals = pool()
    other = Hull([HullEntry("Mg", 0.0), HullEntry("Ag", 0.0)], KIND)
    referee = Hull(hull().phases({"Mg", "Ag"}), EnergyType("referee", "none", "none"))
    chosen = Ranking(crystals, other).propose(Episode(referee, None, (0.1,)), 12)
    energies = [energy(candidate) for candidate in chosen]  # distances, on a hull of two elements at 0
    assert energies == sorted(energies)
    assert len(energies) > 2


@pytest.mark.slow
def test_a_whole_run_with_a_referee_of_another_potential(tmp_path):
    """CHGNet draws up the list, EMT judges on a hull of its own, whose gold-copper phases CHGNet's energies are not."""
    config = HullConfig(
        systems=("Au-Cu",), methods=("ours", "generator_ranking"), budget=3, batch=2, pool=16, screened=6, max_atoms=4,
        potential="chgnet", oracle="ase.calculators.emt:EMT", oracle_steps=3, tolerances=(0.1,),
    )  # fmt: skip
    record = run(tmp_path / "out", config)
    found = {row["method"]: row for row in record["results"]}
    queries = pd.read_csv(tmp_path / "out" / "queries.csv")
    assert set(found) == {"ours", "generator_ranking"}
    assert len(queries) == 6
    assert not (queries[queries["method"] == "ours"]["verdict"] == "known").all()
    emt = load_potential("ase.calculators.emt:EMT")
    (path,) = (tmp_path / "out" / "relaxed").iterdir()
    answers = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for answer in answers:
        if answer["energy"] is not None:
            structure = Structure.from_dict(answer["structure"])
            assert emt.energies([structure])[0] == pytest.approx(answer["energy"], abs=1e-4)
    assert record["pooled"]["0.1"]["ours"]["queries"] == 3
    assert run(tmp_path / "out", config)["results"] == record["results"]  # nothing is played again


def test_wrong_settings_are_named():
    with pytest.raises(ConfigError, match="methods among ours"):
        HullConfig(methods=("luck",))
    with pytest.raises(ConfigError, match="at least 1"):
        HullConfig(budget=0)


def test_a_setting_within_a_section_leaves_what_the_benchmark_sets_there():
    config = settings_of(HullConfig, ["relax.max_steps=100", "relax.retry=BFGS"])
    assert config.relax == replace(HullConfig().relax, max_steps=100, retry="BFGS")
    assert config.relax.max_contraction != RelaxConfig().max_contraction


def test_a_key_of_a_mapping_leaves_its_other_keys():
    shares = RealConfig().share
    assert settings_of(RealConfig, ["share.random=2"]).share == {**shares, "random": 2.0}
