"""YAML as version 1.2 reads it, and what people write into a campaign's file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows import configfile, yaml_core
from flows.cli import app
from flows.config import read_config
from loop.errors import ConfigError

CASES = Path(__file__).parent / "cases"


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("014", 14),
        ("0225", 225),
        ("089", 89),
        ("0o17", 15),
        ("0x1F", 31),
        ("1e-3", 1e-3),
        ("-.5", -0.5),
        ("1:30", "1:30"),
        ("No", "No"),
        ("yes", "yes"),
        ("on", "on"),
        ("2026-11-01", "2026-11-01"),
        ("1_000", "1_000"),
        ("true", True),
        ("~", None),
        ("", None),
    ],
)
def test_plain_words_are_read_as_yaml_1_2_says(text, value):
    found = yaml_core.read(f"a: {text}\n")["a"]
    assert found == value
    assert type(found) is type(value)


WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"])) | st.sampled_from(["014", "no", "1e5", "1:30", "<<"])
NUMBERS = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False)


def nested(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "No", "014", "x #1"]), inner)


@given(st.recursive(NUMBERS | WORDS, nested, max_leaves=8))
def test_what_is_written_is_read_back(value):
    text = yaml_core.write({"value": value})
    assert yaml_core.read(text) == {"value": value}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", r"line 3, column 1: 'a' is given twice, at lines 1 and 3"),
        ("campaign: {budget: 4,\n  budget: 400}\n", r"'budget' is given twice, at lines 1 and 2"),
        ("oracle: {workers: 1}\ncampaign: {}\noracle: {workers: 2}\n", r"'oracle' is given twice, at lines 1 and 3"),
        ("a: {b: 1, b: 1}\n", "at line 1: keep one"),
        ("? [a]\n: 1\n", "expected a word as key"),
        ("a: !!int x\n", "does not fit its tag"),
        ("a: !!python/object:os.system {}\n", "could not determine a constructor"),
        ("[" * 3000, "nested too deep"),
        ("a: " + "9" * 5000 + "\n", "got 5000 digits"),
        ("", "holds no settings"),
        ("# nothing but a remark\n", "holds no settings"),
        ("{}\n", "holds no settings"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(tmp_path, text, said):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        configfile.read_mapping(tmp_path / "c.yaml")


def test_merged_keys_may_be_overruled(tmp_path):
    (tmp_path / "c.yaml").write_text("x: &x {p: 1, q: 1}\ny: {<<: *x, p: 2}\n")
    assert configfile.read_mapping(tmp_path / "c.yaml")["y"] == {"p": 2, "q": 1}


def test_a_setting_given_twice_is_refused():
    with pytest.raises(ConfigError, match=r"--set a\.b is given twice"):
        configfile.parse_settings(["a.b=1", "a.b=2"])


def test_numbers_of_old_fashion(tmp_path):
    """Case 60: space groups 14 and 225, seed 123; 1:30 is no number of seconds."""
    text = (CASES / "60_yaml_octal_sexagesimal" / "c.yaml").read_text()
    with pytest.raises(ConfigError, match=r"oracle\.mlip\.relax\.time_limit: expected a valid number, .*got '1:30'"):
        read_config(CASES / "60_yaml_octal_sexagesimal" / "c.yaml")
    (tmp_path / "c.yaml").write_text(text.replace("1:30", "90"))
    config = read_config(tmp_path / "c.yaml")
    assert config.campaign.seed == 123
    assert config.generator.proposals.sampling.space_groups == (14, 225)


def test_norway():
    """Case 58: No is nobelium, NO is nitrogen monoxide."""
    elements = read_config(CASES / "58_yaml_norway" / "elements.yaml").generator.proposals.sampling.elements
    assert elements == ("N", "Y", "No")
    assert read_config(CASES / "58_yaml_norway" / "formula.yaml").generator.proposals.sampling.formula == "NO"


@pytest.mark.parametrize(
    "name", ["mine", "2026-11-01", "007", "no", "a: b", "x #1", "Überblick", "1e5", '"', "~", "[a]"]
)
def test_init_writes_what_validate_accepts(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = run("init", name)
    assert made.exit_code == 0, made.stderr
    assert read_config(f"{name}.yaml").campaign.name == name
    assert yaml.safe_load((tmp_path / f"{name}.yaml").read_text())["campaign"]["name"] == name  # by YAML 1.1, too


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a/b", "no '/'"),
        ("..", "no '.' at its start"),
        (" x", "no space at its ends"),
        ("", "1 to 128 characters"),
        ("x" * 129, "1 to 128 characters"),
        ("晶" * 100, "at most 200 bytes"),
        ("a\nb", "no line breaks"),
        ("a\u2028b", "no line breaks"),
    ],
)
def test_init_refuses_a_name_that_can_be_no_folder(name, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = run("init", name, "--output", "c.yaml")
    assert refused.exit_code == 1
    assert why in refused.stderr
    assert not (tmp_path / "c.yaml").exists()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("generator: {finetune: {sampling: {require: Li}}}", r"require: expected a list, as \[Li\], got 'Li'"),
        ("campaign: {name: 007}", r"campaign\.name: expected text, got the number 7: put it in quotes"),
        ("oracle: 3", r"oracle: expected a section of `key: value` lines, got 3"),
        ("oracle: {mlip: {relax: [1]}}", r"oracle\.mlip\.relax: expected a section"),
        ("campaign: {shadow_share: 2}", r"campaign: shadow_share must be"),
        (
            "campaign: {rounds: many}\nnovelty: {reference: 3}",
            r"(?s)2 problems.*campaign\.rounds:.*\n  novelty\.reference: .*, or expected a path, got 3",
        ),
        ("campaign: {maximise: true, maximize: false}", "maximize and maximise are one key in two spellings"),
        ("generator: {proposals: {sampling: {elements: [0]}}}", "0 is no element"),
    ],
)
def test_messages_name_the_key_and_what_to_write(tmp_path, section, said):
    (tmp_path / "c.yaml").write_text(section + "\n")
    with pytest.raises(ConfigError, match=said):
        read_config(tmp_path / "c.yaml")


def test_both_spellings_are_understood(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "campaign: {maximize: false}\n"
        "reward: {terms: [{property: bulk_modulus, goal: minimize, low: 0, high: 300}]}\n"
        "selection: {objectives: [{name: bulk_modulus, goal: minimize}]}\n"
    )
    config = read_config(
        tmp_path / "c.yaml", {"generator.finetune.algorithm": "ppo", "generator.finetune.standardize": False}
    )
    assert config.campaign.goal == "minimise"
    assert config.reward.terms[0].goal == "minimise"
    assert config.selection.objectives[0].goal == "minimise"
    assert config.generator.finetune.algorithm.normalize_advantage is False


def test_false_for_nobelium_is_explained():
    """A bare No becomes false where YAML 1.1 reads it, as in other programs' JSON."""
    with pytest.raises(ConfigError, match='put "No" in quotes'):
        read_config("smoke", {"generator.proposals.sampling.elements": ["N", False]})


def test_the_stored_configuration_is_json_ready(tmp_path):
    config = read_config("quickstart", {"campaign.name": "no"})
    configfile.dump(config, tmp_path / "config.yaml")
    said = {"goal": None, "space": None, "budget": None}  # the blocks are written out into the sections
    stored = read_config(tmp_path / "config.yaml")
    assert stored.model_dump() == config.model_copy(update=said).model_dump()
    assert json.loads(json.dumps(config.model_dump(mode="json")))["campaign"]["name"] == "no"
