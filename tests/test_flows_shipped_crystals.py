"""hull build without files of the user's; a campaign that proposes by ion substitution."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.build import Builder
from flows.cli import app
from flows.config import CampaignConfig
from flows.forecast import forecast
from flows.tables.generation import finetune
from flows.tables.shipped_crystals import shipped_crystals
from generator.substitution import SubstitutionGenerator
from loop.errors import ConfigError, InputError
from oracles.references.crystals import load_reference_crystals


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DISCOVERY_LOOP_HOME", str(tmp_path / "home"))


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_hull_of_any_potential_needs_no_data(tmp_path):
    output = tmp_path / "t.csv"
    done = run("hull", "build", "--chemical-system", "Cu-Au", "--potential", "ase.calculators.emt:EMT",
               "--output", output, "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    table = pd.read_csv(output, keep_default_na=False)
    crystals = load_reference_crystals()
    expected = {str(crystals.known(id).formula) for id in crystals.in_system(["Cu", "Au"])}
    assert expected <= set(table["formula"])
    assert {"Cu", "Au"} <= set(table["formula"])  # gold is of the test split: from its prototype
    assert json.loads(done.stdout)["phases"] == len(table)


def test_files_and_what_ships_are_not_mixed(tmp_path):
    done = run("hull", "build", "--chemical-system", "Cu-Au", "mine.csv", "--output", tmp_path / "t.csv")
    assert done.exit_code == 1
    assert "leave it out, or the files" in done.output
    done = run("hull", "build", "--energies", "e", "--output", tmp_path / "t.csv")
    assert done.exit_code == 1
    assert "give at least one" in done.output
    with pytest.raises(InputError, match="element symbols"):
        shipped_crystals("Cu-Xx")


def test_the_source_is_written_once_and_the_same(tmp_path):
    first = shipped_crystals("Na-Cl")
    text = first.read_bytes()
    assert shipped_crystals("Cl-Na") == first
    first.unlink()
    assert shipped_crystals("Na-Cl").read_bytes() == text


def test_a_campaign_proposes_by_ion_substitution(tmp_path):
    section = {"kind": "substitution", "proposals": {"max_atoms": 4, "sampling": {"require": ["Mg"]}}}
    config = CampaignConfig.model_validate({"generator": section})
    generator = Builder(config).proposer
    assert isinstance(generator, SubstitutionGenerator)
    found = generator.propose(5, seed=0, round=0)
    assert all("Mg" in c.structure.composition and len(c.structure) <= 4 for c in found)
    assert forecast(config)["reward_evaluations"] == 0
    with pytest.raises(ConfigError, match="learns nothing"):
        finetune(config, tmp_path / "tuned", resume=False)
