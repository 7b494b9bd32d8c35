"""Ion substitution: conditions are kept, charges are kept, seeds repeat."""

from __future__ import annotations

import json

import pytest
from pymatgen.core import Composition, Lattice, Structure
from typer.testing import CliRunner

from flows.cli import app
from generator.constraints.conditions import ConditionError, Sampling
from generator.substitution import SubstitutionConfig, SubstitutionGenerator, _charges, _targets
from loop.contracts import Generator
from loop.errors import CheckpointError, ConfigError
from loop.io.crystals import read_crystals
from tests.crystals import nacl, perovskite, rutile, spinel

BRASS = Structure(Lattice.cubic(2.95), ["Cu", "Zn"], [[0, 0, 0], [0.5] * 3])
KNOWN = {"mp-1": nacl(), "mp-2": perovskite(), "mp-3": rutile(), "mp-4": spinel(), "mp-5": BRASS}


class Crystals:
    def structure(self, id):
        return KNOWN[id].copy()


def made(config=None, **conditions) -> SubstitutionGenerator:
    formulas = [structure.composition.reduced_formula for structure in KNOWN.values()]
    return SubstitutionGenerator(list(KNOWN), formulas, Crystals(), Sampling(**conditions), config)


def test_it_is_a_generator_and_seeds_repeat():
    generator = made()
    assert isinstance(generator, Generator)
    first = generator.propose(20, seed=3, round=1)
    assert [c.id for c in first] == [c.id for c in made().propose(20, seed=3, round=1)]
    assert [c.id for c in first] != [c.id for c in generator.propose(20, seed=4, round=1)]
    assert len(first) == 20
    assert {c.origin.source for c in first} == {"substitution"}
    assert {c.round for c in first} == {1}
    assert generator.learn(lambda _: None, seed=0, round=1) == []


def test_each_child_is_its_parent_with_other_ions_of_the_same_charges():
    for child in made().propose(60, seed=0, round=0):
        parent = KNOWN[child.origin.parent]
        assert len(child.structure) == len(parent)
        assert child.structure.frac_coords == pytest.approx(parent.frac_coords)
        own = {s.specie.symbol: t.specie.symbol for s, t in zip(parent, child.structure, strict=True)}
        assert 1 <= sum(a != b for a, b in own.items()) <= 2
        assert len(set(own.values())) == len(own)  # no two elements become one
        assert child.structure.is_valid(0.5)
        assert 0.2 < child.structure.volume / parent.volume < 5
        if child.origin.parent != "mp-5":
            assert Composition(child.formula).oxi_state_guesses(all_oxi_states=True), child.formula


def test_likely_ions_are_preferred():
    assert _charges("NaCl") == {"Na": 1, "Cl": -1}
    ions = _targets("NaCl", "Na")
    assert max(ions, key=ions.get) in ("K", "Li", "Ag", "Rb")
    assert "Mg" not in ions  # never with one charge
    metals = _targets("CuZn", "Cu")
    assert metals["Ag"] == max(metals.values())
    assert metals["Ni"] > 100 * metals.get("Cl", 0)


@pytest.mark.parametrize(
    "conditions",
    [
        {"elements": ["Li", "Na", "K", "F", "Cl", "O", "Ti", "Mg", "Ba"]},
        {"require": ["Ba"]},
        {"require": ["Ba", "S"]},
        {"exclude": ["O", "Na"]},
        {"chemical_system": "Ca-Ti-O"},
        {"formula": "MgTiO3"},
        {"formula": "SrTiO3", "exclude": ["H"]},
        {"max_atoms": 6},
        {"n_atoms": 5},
        {"max_elements": 2},
        {"space_groups": [221, 136]},
    ],
)
def test_conditions_are_kept(conditions):
    sampling, generator = Sampling(**conditions), made(**conditions)
    found = generator.propose(10, seed=1, round=0)
    assert found or conditions.get("formula") == "SrTiO3"  # the parent itself is no child
    for child in found:
        numbers = {site.specie.Z for site in child.structure}
        assert numbers <= sampling.allowed
        assert sampling.required <= numbers
        assert len(child.structure) <= (sampling.atom_limit or 100)
        assert sampling.n_atoms in (None, len(child.structure))
        assert len(numbers) <= (sampling.max_elements or 9)
        assert not sampling.formula or Composition(child.formula) == Composition(sampling.formula)
        assert not sampling.space_groups or child.structure.get_space_group_info()[1] in sampling.space_groups


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ConditionError, match="temperature, sites"):
        made(temperature=2.0, sites=["c"])
    with pytest.raises(ConfigError, match="can become"):
        made(formula="LiFePO4")
    with pytest.raises(ConfigError, match="max_changes"):
        SubstitutionConfig(max_changes=0)


def test_saved_state_is_told_from_another(tmp_path):
    made().save(tmp_path / "a")
    made().load(tmp_path / "a")
    with pytest.raises(CheckpointError, match="other settings"):
        made(max_elements=2).load(tmp_path / "a")
    with pytest.raises(CheckpointError, match="expected the settings"):
        made().load(tmp_path / "nothing")


def test_generate_by_substitution_starts_from_the_shipped_crystals(tmp_path):
    def run(name, *more):
        arguments = ["generate", "--method", "substitution", "--n", "8", "--seed", "5", "--require", "Li",
                     "--output", str(tmp_path / name), "--json", *more]  # fmt: skip
        return CliRunner().invoke(app, arguments)

    done = run("a.csv")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["written"] == 8
    run("b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    table = read_crystals(tmp_path / "a.csv")
    assert all("Li" in structure.composition for structure in table.structures)
    assert all(parent.startswith("mp-") for parent in table.frame["parent"])
    refused = run("c.csv", "--temperature", "2")
    assert refused.exit_code == 1
    assert "temperature" in refused.output
    assert not (tmp_path / "c.csv").exists()
