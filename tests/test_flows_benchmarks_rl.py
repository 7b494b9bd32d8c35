"""The benchmark of fine-tuning: counting, intervals, and an independent hull on an invented chemistry."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from flows.benchmarks.rl import dynamics as dynamics_module
from flows.benchmarks.rl.arms import _produce
from flows.benchmarks.rl.chemistry import chemistry
from flows.benchmarks.rl.dynamics import dynamics, tally
from flows.benchmarks.rl.hull import Energies, IndependentHull, JudgeConfig, Phases, fitted_elements
from flows.benchmarks.rl.judge import Samples, Tally, _group, counts, drift
from flows.benchmarks.rl.relaxed import COLUMN as RELAXED
from flows.benchmarks.rl.relaxed import SECOND, Relaxing, relaxed
from flows.benchmarks.rl.run import RLConfig, _after_relaxation
from flows.benchmarks.rl.summary import draw_curves, draw_shares, summarise, table, told
from flows.benchmarks.rl.variants import RECIPE, VARIANTS
from flows.evaluation import report
from generator.rl.strata import class_of
from loop.errors import ConfigError
from loop.io.cif_writer import to_cif
from loop.novelty import NoveltyIndex
from loop.values import OK, Candidate, EnergyType, Evaluation, Origin, Quantity
from oracles.mlip import MlipConfig, PotentialOracle
from oracles.potentials.loading import load_potential
from oracles.properties.phonons import PhononConfig
from oracles.references.crystals import load_reference_crystals
from oracles.references.table import References
from oracles.relax import RelaxConfig, relax
from tests.fakes import FCC, rocksalt

FORMATION = {"NaCl": -2.0, "KCl": -1.8, "NaBr": -1.5, "KBr": -1.6}  # eV/atom
OWN = {"Na": -1.3, "K": -1.1, "Cl": -1.8, "Br": -1.6}  # the judge's elements, which it gets wrong
TRUE = {"Na": -1.0, "K": -1.0, "Cl": -2.0, "Br": -1.7}  # those that go with its compounds


def rows(n=10):
    """Ten samples: 8 structure-valid, 6 metastable, of which one is known, one a copy, and one breaks other rules."""
    good = [True] * 8 + [False] * 2
    return pd.DataFrame(
        {
            "formula": [f"X{i}" for i in range(n)],
            "space_group": [225] * 5 + [221] * 5,
            "elements": ["Na Cl"] * 4 + ["La B"] * 4 + ["Pu"] * 2,
            "structure_valid": good,
            "composition_valid": [True] * n,
            "valid": good,
            "accepted": [*good[:7], False, False, False],
            "sparse_hull": [False] * n,
            "unique": [True, True, False, True, True, True, True, True, False, False],
            "new": [False, *good[1:]],
            "known": [True] + [False] * 9,
            "replay": [True] + [False] * 9,
            "e_above_hull": [0.0, 0.05, 0.05, -0.01, 0.3, -0.9, 0.09, 0.1, 0.0, np.nan],
        }
    )


def test_counts():
    found = counts(rows())
    assert (found["stable"], found["metastable"]) == (2, 6)
    assert (found["sun"], found["msun"], found["accepted_msun"]) == (1, 4, 3)
    assert counts(rows().assign(sparse_hull=True))["metastable"] == 0
    unbalanced = [True, False, *[True] * 8]  # of five that are metastable, unique and new or known
    assert counts(rows().assign(composition_valid=unbalanced))["msun"] == 3
    assert (found["structure_valid"], found["unique"], found["known"]) == (8, 7, 1)


def test_drift_names_the_element():
    base = rows().assign(elements="Na Cl")
    found = drift(rows(), base, smallest=1)
    assert found["element"] in ("La", "B")
    assert found["element_ratio"] == pytest.approx(5.0)
    assert (found["f_block"], found["radioactive"], found["single_element"]) == pytest.approx((0.6, 0.2, 0.2))
    assert found["largest_group_share"] == 0.5


def test_chemistry_tells_classes_apart():
    copper = Structure(Lattice.cubic(3.6), ["Cu"] * 4, FCC)
    forms = [rocksalt("Na", "Cl")] * 4 + [rocksalt("K", "Br")] * 2 + [copper] * 3 + [None]
    found = chemistry(Samples(forms, rows()))
    assert (found["share_halides"], found["share_others"], found["share_intermetallics"]) == (0.4, 0.4, 0.2)
    assert (found["share_oxides"], found["chemical_systems"]) == (0.0, 2)
    assert (found["msun_share_halides"], found["msun_share_others"]) == (0.5, 0.5)
    assert "msun_share_oxides" not in found
    assert found["largest_prototype"] == pytest.approx(6 / 9)  # rock salt
    assert found["largest_prototype_msun"] == 0.5  # rows 1 and 3 are rock salt, 6 and 7 copper
    assert (class_of(["Mg", "O"]), class_of(["Al", "Ni"]), class_of(["S", "F"])) == (
        "oxides",
        "intermetallics",
        "halides",
    )


def cell(variant, seed, sun, **more):
    names = ("structure_valid", "composition_valid", "valid", "accepted", "unique", "known", "replay")
    one = dict.fromkeys((*names, "stable", "metastable", "sun", "accepted_msun"), 50)
    one |= {"variant": variant, "seed": seed, "samples": 100, "msun": sun, "element": "O"}
    one |= dict.fromkeys(("element_ratio", "f_block", "radioactive", "single_element"), 1.0)
    one |= {"largest_group_share": 0.2, "group_entropy": 3.0, "stopped": "", "cpu_seconds": 1.0}
    return one | {"evaluations": 0, "finds": 0} | more


def test_summary_compares_with_the_base():
    cells = [
        cell("base", 0, 20),
        cell("base", 1, 20),
        cell("tuned", 0, 50, evaluations=100, finds=30),
        cell("tuned", 1, 60),
    ]
    cells[2]["share_oxides"], cells[3]["share_oxides"] = 0.1, 0.3
    found = summarise(cells)
    assert found["tuned"]["share_oxides"] == pytest.approx(0.2)
    assert found["tuned"]["msun"]["value"] == pytest.approx(0.55)
    assert found["tuned"]["msun"]["low"] < 0.55 < found["tuned"]["msun"]["high"]
    assert found["tuned"]["msun_seeds"] == [0.5, 0.6]
    assert found["tuned"]["msun_ratio"]["value"] == pytest.approx(2.75)
    assert found["tuned"]["msun_ratio"]["low"] > 1.5
    assert found["tuned"]["yield"] == pytest.approx((30 + 100) / 300)
    assert "independent_msun" not in found["tuned"]
    assert table(found).splitlines()[2].startswith("tuned,2,200,50.0")


def test_summary_has_intervals_for_classes():
    """40 oxides of 200 in the base, 10 of them M.S.U.N., against 20 and 15: half the share, three times the finds."""
    oxides = [(0.2, 0.25), (0.2, 0.25), (0.1, 1.0), (0.1, 0.5)]
    cells = [cell(name, seed, 20) for name in ("base", "tuned") for seed in (0, 1)]
    for one, (share, finds) in zip(cells, oxides, strict=True):
        one |= {"share_oxides": share, "msun_share_oxides": finds, "f_block": 0.3, "share_halides": 0.0}
    found = summarise(cells)["tuned"]["chemistry"]
    assert found["oxides"]["share"]["value"] == pytest.approx(0.1)
    assert found["oxides"]["share"]["low"] < 0.1 < found["oxides"]["share"]["high"]
    assert found["oxides"]["share_ratio"]["value"] == pytest.approx(0.5)
    assert found["oxides"]["msun"]["value"] == pytest.approx(0.75)
    assert found["oxides"]["msun_ratio"]["value"] == pytest.approx(3.0)
    assert found["oxides"]["share_seeds"] == [0.1, 0.1]
    assert found["f_block"]["share_ratio"]["value"] == pytest.approx(1.0)
    assert "msun" not in found["halides"]  # nothing was drawn, so nothing is said
    assert "share_oxides" in table(summarise(cells)).splitlines()[0]


def test_figures(tmp_path):
    summary = summarise([cell("base", 0, 20), cell("tuned", 0, 50)])
    draw_shares(summary, tmp_path / "shares.png")
    draw_curves({("tuned", 0): {"curve": [{"iteration": 0, "reward": 0.1, "kl": 0.0}]}}, tmp_path / "curves.png")
    draw_curves({("base", 0): {}}, tmp_path / "none.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "shares.png"]


def test_tally_counts_distinct_finds():
    above = [0.05, 0.05, 0.2, -0.9, 0.0, np.nan]
    known = [0, 0, 0, 0, 1, 0]
    crystals = [Candidate(rocksalt("Na"), Origin("policy", 225))] * 2 + [
        Candidate(rocksalt(cation), Origin("policy", 225)) for cation in ("K", "Li", "Rb", "Cs")
    ]
    components = [{"e_above_hull": e, "known": float(k)} for e, k in zip(above, known, strict=True)]
    tally = Tally(lambda candidates: (np.zeros(len(candidates)), components))
    tally(crystals)
    assert tally.evaluations == 6
    assert tally.found == {"NaCl 225"}


def test_the_group_is_that_asked_for_else_that_of_the_crystal():
    """A substituted crystal asks for none; it counted as group 0, so one group seemed to make up the whole sample."""
    salt = rocksalt("Na", "Cl", 5.64)
    asked = Candidate(salt, Origin("policy", space_group=1))
    assert [_group(each) for each in (asked, Candidate(salt), None)] == [1, 225, 0]


def test_relaxed_samples_are_judged_as_they_end(tmp_path, monkeypatch):
    """Stretched copper and gold fall back to the elements' own energies; an overlap is no crystal; all by ASE's EMT."""
    potential = load_potential("ase.calculators.emt:EMT")
    metals = {name: Structure(Lattice.cubic(a), [name] * 4, FCC) for name, a in (("Cu", 3.59), ("Au", 4.06))}
    minima = [outcome.energy for outcome in relax(list(metals.values()), potential, RelaxConfig(fmax=1e-3, smax=0.01))]
    kind, none = potential.energy_type, np.zeros(2, bool)
    references = References(tuple(metals), np.array(minima), ("a", "b"), none, kind, "checksum", {})
    oracle = PotentialOracle(potential, references, MlipConfig(bulk=None))
    builder = SimpleNamespace(measuring=oracle, novelty=NoveltyIndex())
    wide = [metals["Cu"].copy(), metals["Cu"].copy(), metals["Au"].copy()]
    for structure, factor in zip(wide, (1.1, 1.08, 1.1), strict=True):
        structure.scale_lattice(structure.volume * factor)
    frame = rows().head(5).assign(structure_valid=[True, True, True, False, True], e_above_hull=9.0)
    samples = Samples([*wide, wide[0], metals["Au"]], frame)
    relaxing, path = Relaxing(builder), tmp_path / "relaxed.csv"
    found = relaxed(samples, 4, relaxing, path)
    assert found[RELAXED][:3].tolist() == pytest.approx([0, 0, 0], abs=2e-3)
    assert np.isnan(found[RELAXED][3])
    assert found["structure_valid"].tolist() == [True, True, True, False]
    assert found["unique"].tolist() == [True, False, True, False]  # both coppers end alike
    assert counts(found, RELAXED)["metastable"] == 3
    builder.measuring = None  # from the file now
    pd.testing.assert_frame_equal(relaxed(samples, 4, relaxing, path), found)

    asked = []

    class Second:
        """Copper is metastable, gold is not."""

        name, settings_hash = "other", "0" * 8

        def evaluate(self, candidates, progress=None):
            if progress is not None:
                progress(len(candidates), len(candidates))
            asked.extend(candidate.formula for candidate in candidates)
            above = [{"Cu": 0.05, "Au": 0.15}[candidate.formula] for candidate in candidates]
            return [
                Evaluation(c.id, "other", "0" * 8, OK, {"e_above_hull": Quantity(e, "eV/atom")}, kind)
                for c, e in zip(candidates, above, strict=True)
            ]

    stages = []
    judges = Relaxing(SimpleNamespace(measuring=oracle, novelty=NoveltyIndex()), Second())

    class Killed(Second):
        """Ctrl-C once copper is judged."""

        def evaluate(self, candidates, progress=None):
            if candidates[0].formula == "Au":
                raise KeyboardInterrupt
            return super().evaluate(candidates, progress)

    monkeypatch.setattr(report, "OPINIONS", 1)
    monkeypatch.setattr(report, "cores", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        relaxed(samples, 4, replace(judges, opinion=Killed()), path)
    assert asked == ["Cu"]
    twice = relaxed(samples, 4, judges, path, lambda *told: stages.append(told))
    assert ("relaxed", 3, 3) in stages
    assert stages[-1] == ("second opinion", 2, 2)
    assert asked == ["Cu", "Au"]  # copper once; neither the copy nor the overlap
    np.testing.assert_array_equal(twice[SECOND], [0.05, np.nan, 0.15, np.nan])
    assert counts(twice, SECOND)["msun"] == 1
    again = SimpleNamespace(measuring=oracle, novelty=NoveltyIndex())
    relaxed(samples, 4, Relaxing(again, Second()), path)
    assert len(asked) == 2  # from the file
    relaxed(samples, 4, Relaxing(again, Second(), below=0.3), path)
    assert len(asked) == 4  # another question
    # an arm's counts, and the phonons of what is M.S.U.N. by the last potential asked: copper
    (tmp_path / "cells").mkdir()
    config = RLConfig(relaxed=4, second="other", phonons=5, displacing=PhononConfig(min_length=4.5))
    judges = Relaxing(SimpleNamespace(measuring=oracle, novelty=NoveltyIndex()), Second())
    judges.opinion.potential, judges.opinion.config = potential, oracle.config
    row = _after_relaxation(tmp_path, config, judges, ("base", 0), samples, None)
    assert (row["relaxed_metastable"], row["second_metastable"], row["second_msun"]) == (3, 1, 1)
    assert (row["phonons"], row["dynamically_stable"], row["phonons_failed"]) == (1, 1, 0)
    assert pd.read_csv(tmp_path / "cells" / "base-0.phonons.csv")["sample"].tolist() == [0]


def test_phonons_tell_a_minimum_from_a_saddle_point(tmp_path, monkeypatch):
    """Stretched copper relaxes to its minimum; bcc copper, which symmetry holds, is none by EMT (Bain's path)."""
    potential = load_potential("ase.calculators.emt:EMT")
    kind = potential.energy_type
    references = References(("Cu",), np.array([0.0]), ("a",), np.zeros(1, bool), kind, "checksum", {})
    oracle = PotentialOracle(potential, references, MlipConfig(bulk=None))
    relaxing = Relaxing(SimpleNamespace(measuring=oracle))
    crystals = {
        3: Structure(Lattice.cubic(3.7), ["Cu"] * 4, FCC),
        7: Structure(Lattice.cubic(2.9), ["Cu"] * 2, [[0, 0, 0], [0.5, 0.5, 0.5]]),
        8: Structure(Lattice.cubic(3.2), ["W"], [[0, 0, 0]]),  # EMT does not know it
    }
    path, told = tmp_path / "phonons.csv", []
    found = dynamics(crystals, relaxing, PhononConfig(min_length=4.5), path, lambda *done: told.append(done))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert found["sample"].tolist() == [3, 7, 8]
    assert found["status"].tolist() == [OK, OK, "failed:unsupported-element"]
    assert found["dynamically_stable"].tolist()[:2] == [True, False]
    assert found["lowest_frequency"][0] > 1 > -0.5 > found["lowest_frequency"][1]
    assert tally(found) == {"phonons": 2, "dynamically_stable": 1, "phonons_failed": 1}
    again = dynamics(crystals, relaxing, PhononConfig(min_length=4.5), path)  # from the file
    assert tally(again) == tally(found)
    assert not list(tmp_path.glob("*.partial.jsonl"))
    monkeypatch.setattr(dynamics_module, "_from_end", None)  # none is computed again
    more = dict(list(crystals.items())[:2])
    assert tally(dynamics(more, relaxing, PhononConfig(min_length=4.5), path))["dynamically_stable"] == 1
    monkeypatch.undo()
    coarse = dynamics(crystals, relaxing, PhononConfig(min_length=0), path)  # Gamma alone: other settings, so computed
    assert coarse["status"].tolist() == ["failed:phonons", "failed:phonons", "failed:unsupported-element"]


def test_dynamically_stable_ones_are_pooled_over_seeds():
    one = cell("base", 0, 20, phonons=8, dynamically_stable=6, phonons_failed=1)
    two = cell("base", 1, 20, phonons=4, dynamically_stable=3, phonons_failed=0)
    entry = summarise([one, two])["base"]
    assert (entry["phonons"], entry["phonons_failed"]) == (12, 1)
    assert entry["dynamically_stable"]["value"] == 0.75
    assert "dynamically_stable_percent" in table({"base": entry}).splitlines()[0]
    lines = {line.split("  ")[0]: line for line in told({"base": entry}).splitlines()}
    assert lines["samples"].split() == ["samples", "200"]
    assert lines["M.S.U.N., reward's potential (%)"].endswith("20.0 (15 to 26)")  # Wilson of 40 of 200
    assert lines["dynamically stable (%)"].endswith("75.0 (47 to 91)")  # of 9 of 12
    assert not any("second" in line for line in lines)  # no other potential was asked


def test_a_second_judge_needs_relaxed_samples():
    with pytest.raises(ConfigError, match="set relaxed"):
        RLConfig(second="sevennet")
    with pytest.raises(ConfigError, match="phonons looks at relaxed crystals: set relaxed"):
        RLConfig(phonons=5)
    with pytest.raises(ConfigError, match="second_below of at least"):
        RLConfig(relaxed=10, second="sevennet", second_below=0.05)


def test_fitted_elements_reproduce_formation_energies():
    compositions = [rocksalt(name[:-2], name[-2:]).composition.fractional_composition for name in FORMATION]
    energies = np.array([sum(TRUE[e.symbol] * x for e, x in c.items()) for c in compositions])
    energies += list(FORMATION.values())
    alone = fitted_elements(compositions, energies, np.array(list(FORMATION.values())), {"Na": TRUE["Na"]})
    assert alone == pytest.approx(TRUE)
    pulled = fitted_elements(compositions, energies, np.full(4, np.nan), OWN)
    assert pulled == pytest.approx(OWN)  # nothing published: their own


class FakeEnergies:
    """The judge: compounds on the scale of `TRUE`, elements off by `OWN`; a stretched crystal costs its square."""

    config = JudgeConfig(model="fake")

    def __init__(self):
        self.seen = []

    def __call__(self, structures, report=None):
        self.seen += [structure.composition.reduced_formula for structure in structures]
        return np.array([self.of(structure) for structure in structures])

    def of(self, structure):
        formula = structure.composition.reduced_formula
        if len(structure.composition) == 1:
            return OWN[structure.elements[0].symbol]
        shares = structure.composition.fractional_composition
        elements = sum(TRUE[e.symbol] * x for e, x in shares.items())
        return elements + FORMATION[formula] + (structure.lattice.a - 5.64) ** 2


def test_independent_hull(tmp_path):
    crystals = {"NaCl": rocksalt("Na"), "KCl": rocksalt("K"), "NaBr": rocksalt("Na", "Br"), "KBr": rocksalt("K", "Br")}
    crystals |= {f"{symbol}": rocksalt(symbol, symbol) for symbol in OWN}
    ids = [f"mp-{k}" for k in range(len(crystals))]
    formation = [FORMATION.get(name, 0.0) for name in crystals]
    cifs = [to_cif(crystal) for crystal in crystals.values()]
    path = tmp_path / "known.csv"
    pd.DataFrame({"material_id": ids, "cif": cifs, "formation_energy_per_atom": formation}).to_csv(path, index=False)
    kind = EnergyType("default", "PBE", "none")
    references = References(
        tuple(crystals), np.array(formation), tuple(ids), np.zeros(len(ids), bool), kind, "checksum", {}
    )
    hull = IndependentHull(FakeEnergies(), Phases(references, [path]))
    samples = [rocksalt("Na", a=5.94), rocksalt("K", a=5.64), rocksalt("Na", a=7.0)]
    assert hull.judge(samples) == pytest.approx([0.09, 0.0, 1.36**2], abs=1e-3)
    assert hull.about["samples"] == 3
    assert hull.about["looked_at_closely"] == 2


def judge_script(tmp_path, body):
    script = tmp_path / "python"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    return script


def test_energies_are_cached_and_may_be_missing(tmp_path):
    """The interpreter gets script, model, input, output."""
    python = judge_script(tmp_path, f'echo run >> {tmp_path}/runs; echo "[-3.5, null]" > "$4"')
    config = JudgeConfig(model=tmp_path / "model", python=python)
    crystals = [rocksalt("Na"), rocksalt("K")]
    energies = Energies(config, tmp_path / "cache.json")(crystals)
    np.testing.assert_array_equal(energies, [-3.5, np.nan])
    again = Energies(config, tmp_path / "cache.json")(crystals[::-1])
    np.testing.assert_array_equal(again, [np.nan, -3.5])
    assert (tmp_path / "runs").read_text() == "run\n"
    assert len(json.loads((tmp_path / "cache.json").read_text())) == 2


def test_a_judge_that_cannot_run_says_why(tmp_path):
    python = judge_script(tmp_path, "echo 'no module named matgl' >&2; exit 1")
    config = JudgeConfig(model=tmp_path / "model", python=python)
    with pytest.raises(ConfigError, match="no module named matgl"):
        Energies(config, tmp_path / "cache.json")([rocksalt()])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ("base", "x")}, "no such variant: x"),
        ({"variants": ("tuned",)}, "the base"),
        ({"seeds": 0}, "positive"),
    ],
)
def test_nonsense_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        RLConfig(**changes)


def test_variants_differ_from_the_recipe_and_run_as_often():
    for name, variant in VARIANTS.items():
        config, _ = variant.settings(RECIPE)
        assert (config == RECIPE) == (not variant.finetune), name
    assert RLConfig(seeds=2, ablation_seeds=1).cells[:5] == [
        ("base", 0), ("tuned", 0), ("best-of-n", 0), ("supervised", 0), ("base", 1)
    ]  # fmt: skip


def test_ion_substitution_is_an_arm_that_costs_no_reward():
    about, drawn = _produce(SimpleNamespace(samples=4), "substitution", 1, None)
    known = load_reference_crystals()
    assert about == {"evaluations": 0, "finds": 0}
    assert len(drawn) == 4
    for candidate in drawn:
        parent = known.known(candidate.origin.parent)
        assert parent.formula != candidate.structure.composition.reduced_formula
        assert known.n_atoms(parent.id) == len(candidate.structure)
    again = _produce(SimpleNamespace(samples=4), "substitution", 1, None)[1]
    assert [one.id for one in again] == [one.id for one in drawn]
    other = _produce(SimpleNamespace(samples=4), "substitution", 2, None)[1]
    assert [one.id for one in other] != [one.id for one in drawn]
