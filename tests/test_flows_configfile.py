from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from flows import configfile
from flows.config import read_config
from loop.errors import ConfigError


@dataclass(frozen=True)
class Relax:
    fmax: float = 0.05
    steps: int = 100

    __pydantic_config__ = ConfigDict(extra="forbid")


class Oracle(BaseModel):
    model_config = ConfigDict(extra="forbid")
    potential: str = "chgnet"
    relax: Relax = field(default_factory=Relax)


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    oracle: Oracle = Oracle()


def load(tmp_path: Path, text: str, **overrides) -> Config:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    return configfile.load(Config, path, {key.replace("__", "."): value for key, value in overrides.items()})


def test_reads_and_overrides(tmp_path):
    config = load(tmp_path, "name: a\noracle: {relax: {fmax: 0.1}}\n", oracle__relax__steps=7)
    assert config.oracle.relax == Relax(0.1, 7)


def test_round_trip(tmp_path):
    config = load(tmp_path, "name: é\noracle: {potential: mace}\n")
    configfile.dump(config, tmp_path / "d.yaml")
    assert configfile.load(Config, tmp_path / "d.yaml") == config


def test_unknown_key_gets_a_suggestion(tmp_path):
    with pytest.raises(
        ConfigError, match=r"oracle\.potental: unknown key; did you mean 'potential'\? \(known here: potential, relax\)"
    ):
        load(tmp_path, "name: a\noracle: {potental: x}\n")


def test_unknown_key_of_a_dataclass_gets_a_suggestion(tmp_path):
    with pytest.raises(ConfigError, match=r"oracle\.relax\.fmx: unknown key; did you mean 'fmax'\?"):
        load(tmp_path, "name: a\noracle: {relax: {fmx: 1}}\n")


def test_all_problems_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "oracle: {relax: {steps: many}}\n")
    text = str(caught.value)
    assert "2 problems" in text
    assert "name: missing" in text
    assert "oracle.relax.steps: expected a valid integer" in text
    assert "got 'many'" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [a\n", r"no valid YAML at line 2"),
        ("- a\n- b\n", r"expected `key: value` lines, got list"),
        ("name: a\noracle: 3\n", r"oracle: expected .* got 3"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, text)


def test_binary_file(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR")
    with pytest.raises(ConfigError, match="is no valid YAML"):
        configfile.load(Config, tmp_path / "c.yaml")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
def test_text_as_editors_save_it(tmp_path, encoding):
    (tmp_path / "c.yaml").write_bytes("name: Zürich\n".encode(encoding))
    assert configfile.read_mapping(tmp_path / "c.yaml") == {"name": "Zürich"}


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("space: {chemical_system: Li-Qq}", ["space.chemical_system: 'Qq' is no element"]),
        ("space: {max_elements: 0}", ["space.max_elements: max_elements must be at least 1, got 0"]),
        ("space: {max_elements: 0, max_atoms: 4}", ["space.max_elements: max_elements must be at least 1, got 0"]),
        ("budget: {rounds: -3}", ["budget.rounds: rounds must be at least 0, got -3"]),
        (
            "space: {max_elements: 3}\ngenerator: {proposals: {sampling: {temperature: -1}}}",
            ["generator.proposals.sampling: temperature must be positive"],  # the user's own section
        ),
    ],
)
def test_problems_of_a_block_are_told_where_the_user_wrote_it(tmp_path, text, lines):
    """Blocks are written out into sections that the user never saw; what is said once is one problem."""
    (tmp_path / "c.yaml").write_text(f"campaign: {{name: a}}\n{text}\n")
    with pytest.raises(ConfigError) as caught:
        read_config(tmp_path / "c.yaml")
    told = str(caught.value).removeprefix(f"{tmp_path / 'c.yaml'}: ").splitlines()
    assert [line[: len(start)] for line, start in zip(told, lines, strict=True)] == lines


def test_absent_file_names_the_presets():
    assert {"quickstart", "smoke"} <= set(configfile.presets())
    with pytest.raises(ConfigError, match=r"no such file, and no preset of that name \(presets: .*quickstart"):
        configfile.load(Config, "nowhere.yaml")


def test_settings_from_the_command_line():
    assert configfile.parse_settings(["a.b=3", "c=[1, x]", "d=", "e=x=y"]) == {
        "a.b": 3,
        "c": [1, "x"],
        "d": None,
        "e": "x=y",
    }
    with pytest.raises(ConfigError, match="key=value"):
        configfile.parse_settings(["rounds"])


def test_override_below_a_value(tmp_path):
    with pytest.raises(ConfigError, match=r"name\.x: 'name' holds a value"):
        load(tmp_path, "name: a\n", name__x=1)


def test_environment(monkeypatch):
    monkeypatch.setenv("LEDGER_PASSWORD", "s3cret")
    assert configfile.expand_environment("postgresql://u:${LEDGER_PASSWORD}@h/d") == "postgresql://u:s3cret@h/d"
    with pytest.raises(ConfigError, match="NOT_THERE"):
        configfile.expand_environment("${NOT_THERE}")
