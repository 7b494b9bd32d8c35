"""Crystals near the hull per relaxation, given a chemical system: what is drawn, judged and counted."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Composition, Lattice, Structure

from flows.benchmarks.generator.prompts import (
    MASKS,
    METHODS,
    PROMPT,
    RANDOM,
    Judges,
    PromptsConfig,
    drawn_systems,
    judged,
    offered,
    part_name,
    summary,
    ternaries,
)
from generator.checkpoint import load_checkpoint
from generator.rl.strata import class_of
from loop.errors import ConfigError, InputError
from loop.hull import Hull, HullEntry
from loop.metrics import rate_ratio
from loop.values import OK, Evaluation, Quantity
from oracles.potentials.loading import load_potential

OXIDES, ALLOYS = ["Ca-O-Ti", "Mg-O-Si", "Ba-O-Zr"], ["Al-Cu-Mg", "Cu-Pd-Zn", "Fe-Ni-Ti", "Hf-Ni-Zr"]


def ordered(one, other, a):
    return Structure(Lattice.cubic(a), [one, other], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_at_most_half_of_the_systems_are_intermetallic():
    for seed in range(6):
        found = drawn_systems(OXIDES + ALLOYS, 4, seed)
        assert len(set(found)) == 4
        assert sum(class_of(one.split("-")) == "intermetallics" for one in found) <= 2
    assert drawn_systems(OXIDES + ALLOYS, 4, 0) == drawn_systems(OXIDES + ALLOYS, 4, 0)
    assert len({tuple(drawn_systems(OXIDES + ALLOYS, 4, seed)) for seed in range(6)}) > 1
    with pytest.raises(InputError, match="expected 8 ternary systems"):
        drawn_systems(OXIDES + ALLOYS, 8, 0)


def test_systems_are_those_of_the_test_split(tmp_path):
    cells = [
        Structure(Lattice.cubic(4), ["Sr", "Ti", "O", "O", "O"], [[0, 0, 0], *np.eye(3) / 2 + 0.2, [0.5, 0.5, 0.1]]),
        ordered("Na", "Cl", 3.5),
        Structure(Lattice.cubic(5), ["K", "Mg", "F"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]),
    ]
    table = pd.DataFrame({"cif": [one.to(fmt="cif") for one in cells], "split": ["test", "test", "train"]})
    table.assign(material_id=["a", "b", "c"]).to_csv(tmp_path / "data.csv", index=False)
    assert ternaries(tmp_path / "data.csv") == ["O-Sr-Ti"]
    table.drop(columns="split").to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(InputError, match="no column split"):
        ternaries(tmp_path / "other.csv")


def test_each_method_offers_crystals_of_all_elements():
    loaded = load_checkpoint(None)
    found = {method: offered("O-Sr-Ti", method, 3, loaded, 5, 12) for method in METHODS}
    for crystals in found.values():
        assert len(crystals) == 3
        assert all({str(e) for e in one.structure.composition} == {"Sr", "Ti", "O"} for one in crystals)
        assert all(len(one.structure.get_primitive_structure()) <= 12 for one in crystals)
    formulas = {method: [one.structure.formula for one in crystals] for method, crystals in found.items()}
    assert formulas[PROMPT] != formulas[MASKS]  # the network is told, and draws others


class Judge:
    """Says 0.05 eV/atom of everything, and notes what it was asked."""

    name = "judge@1"

    def __init__(self):
        self.asked = []

    def evaluate(self, candidates):
        self.asked += [candidate.formula for candidate in candidates]
        return [
            Evaluation(one.id, self.name, "x", OK, {"e_above_hull": Quantity(0.05, "eV/atom")}, structure=one.structure)
            for one in candidates
        ]


def test_the_judge_is_asked_about_what_relaxed_near_the_hull():
    emt, judge = load_potential("ase.calculators.emt:EMT"), Judge()
    near, far = ordered("Cu", "Pd", 3.0), ordered("Cu", "Ag", 3.1)
    kind = emt.energy_type
    height = {"CuPd": 0.1, "CuAg": 0.4}
    from oracles.relax import relax

    ends = relax([near, far], emt, PromptsConfig().relax)
    entries = [HullEntry(symbol, 10.0, symbol) for symbol in ("Cu", "Pd", "Ag")]
    entries += [
        HullEntry(formula, end.energy - height[formula], formula) for formula, end in zip(height, ends, strict=True)
    ]
    first, second, crystals = judged([far, near], Judges(emt, Hull(entries, kind), judge), PromptsConfig())
    assert first == pytest.approx([0.4, 0.1], abs=1e-6)
    assert judge.asked == ["CuPd"]
    assert np.isnan(second[0])
    assert second[1] == 0.05
    assert crystals[0] is None
    assert crystals[1].composition == Composition("CuPd")


def test_shares_and_ratios_are_counted_per_relaxation():
    rows = [
        {"system": system, "method": method, "found": int(k < hits), "new": int(k < hits // 2)}
        for system, counts in {"Ca-O-Ti": (6, 3, 1), "Al-Cu-Mg": (4, 3, 0)}.items()
        for method, hits in zip(METHODS, counts, strict=True)
        for k in range(10)
    ]
    found = summary(pd.DataFrame(rows))
    assert found["all"][PROMPT]["found"] == 10
    assert found["all"][PROMPT]["new"] == 5
    assert found["all"][MASKS]["share"] == pytest.approx(6 / 20)
    assert found["all"]["prompt_over_masks"]["found"]["ratio"] == pytest.approx(10 / 6)
    assert found["all"]["prompt_over_random"]["found"]["ratio"] == pytest.approx(10.0)
    expected = rate_ratio((10, 20), (1, 20))
    assert found["all"]["prompt_over_random"]["found"]["ratio_95"] == pytest.approx([expected.low, expected.high])
    assert found["all"]["prompt_over_masks"]["within_systems"]["ratio"] == pytest.approx(10 / 6)
    assert found["oxides"]["systems"] == ["Ca-O-Ti"]
    assert found["intermetallics"][RANDOM]["found"] == 0


def test_what_was_judged_by_other_settings_is_not_taken_up():
    """Else a run with another judge in the same folder would record the former one's verdicts as its own."""
    given = ("O-Sr-Ti", 0, PromptsConfig(), "weights", "judge")
    others = [
        ("O-Sr-Ti", 0, PromptsConfig(judge="mace:small"), "weights", "judge"),
        ("O-Sr-Ti", 0, PromptsConfig(near=0.5), "weights", "judge"),
        ("O-Sr-Ti", 1, PromptsConfig(), "weights", "judge"),
        ("O-Sr-Ti", 0, PromptsConfig(), "others", "judge"),
        ("O-Sr-Ti", 0, PromptsConfig(), "weights", "other"),
    ]
    assert len({part_name(*each) for each in (given, *others)}) == 6
    assert part_name(*given) == part_name("O-Sr-Ti", 0, PromptsConfig(systems=24), "weights", "judge")


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="near of at least"):
        PromptsConfig(near=0.05)
