from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import BaseModel, ConfigDict

from flows import configfile
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
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        configfile.load(Config, tmp_path / "c.yaml")


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
