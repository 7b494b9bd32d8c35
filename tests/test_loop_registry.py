"""Parts by name: ours and those of installed packages, and one clear message where a package is broken."""

from __future__ import annotations

import json

import numpy as np
import pytest

from flows.config import read_config
from flows.doctor import registered
from flows.preflight import missing_parts
from flows.registry import GENERATORS, ORACLES, registries, with_names
from loop.errors import ConfigError
from loop.reward import PropertyReward, RewardConfig, RewardInputs, Term
from loop.reward_sources import REWARDS
from loop.validity import ValidityRules
from loop.values import Candidate
from oracles.potentials.loading import load_potential
from surrogates.acquisition import AcquisitionConfig, PoolAcquisition
from tests.fakes import FakeSurrogate, rocksalt
from tests.packages import install

CODE = """
from dataclasses import dataclass
import numpy as np
from loop.registry import GeneratorKind, OracleKind
from loop.reward_sources import Judged, RewardKind
from oracles.potentials.loading import load_potential
from surrogates.acquisition import AcquisitionKind
from tests.fakes import FakeGenerator, FakeOracle

@dataclass(frozen=True)
class Options:
    bias: float = 0.25
    tries: int = 3

class Toy(FakeOracle):
    name = "toy@1"

def length(request):
    return lambda candidates: Judged(np.array([c.structure.lattice.a for c in candidates]))

def broken(request):
    return 1 / 0

def last(request):
    return list(range(len(request.candidates)))[::-1][: request.k]

ORACLE = OracleKind(lambda options: Toy(), lambda options: ("e_above_hull", "bulk_modulus"), Options)
GENERATOR = GeneratorKind(lambda request: FakeGenerator(request.options.bias), Options)
LENGTH = RewardKind(length, ("length",))
LAST = AcquisitionKind(last)
NUMBER = 3

def emt(request):
    return load_potential("ase.calculators.emt:EMT")
"""
ENTRIES = {
    "oracles": {"toy": "toys:ORACLE", "gone": "toys:NOTHING", "number": "toys:NUMBER"},
    "generators": {"toy": "toys:GENERATOR", "bomb": "toys:broken"},
    "acquisitions": {"last": "toys:last"},
    "rewards": {"length": "toys:LENGTH", "bomb": "toys:broken"},
    "potentials": {"toy": "toys:emt"},
}


@pytest.fixture
def toys(tmp_path, monkeypatch):
    install(tmp_path, "my-toys", "toys", CODE, ENTRIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "toys", raising=False)
    return tmp_path


def test_ours_are_registered_as_any_package_s(toys):
    for sort, registry in registries().items():
        assert registry.names()[: len(registry.ours)] == registry.ours
        for entry in registry.entries()[: len(registry.ours)]:
            assert isinstance(registry.load(entry), registry.kind)
        assert set(ENTRIES[sort]) <= set(registry.names())


def test_parts_of_a_package_are_chosen_by_name_and_their_options_checked(toys):
    settings = {"generator.kind": "toy", "generator.options": {"bias": 0.5}, "oracle.label": "toy"}
    settings |= {"selection.strategy": "last", "selection.options": {}}
    config = read_config("smoke", settings)
    assert config.oracle.kind == "toy"
    assert config.generator.options == {"bias": 0.5, "tries": 3}  # written out: what a campaign was run with
    assert (ORACLES.options("toy", config.oracle.options).tries, config.generator.chosen_options.bias) == (3, 0.5)
    with pytest.raises(ConfigError, match=r"generator\.options: .*options\.bia: unknown key; did you mean 'bias'\?"):
        read_config("smoke", {**settings, "generator.options": {"bia": 1}})
    with pytest.raises(ConfigError, match=r"options\.tries: expected a valid integer.*got 'many'"):
        read_config("smoke", {**settings, "oracle.options": {"tries": "many"}})
    with pytest.raises(ConfigError, match=r"generator\.kind: expected one of crystalformer.*did you mean 'toy'"):
        read_config("smoke", {"generator.kind": "toyy"})
    with pytest.raises(ConfigError, match=r"oracle\.options: of the kind 'mlip' they stand under oracle\.mlip"):
        read_config("smoke", {"oracle.options": {"potential": "chgnet"}})
    with pytest.raises(ConfigError, match=r"oracle\.kind: 'handoff' hands crystals to people"):
        read_config("smoke", {"oracle.kind": "handoff"})
    with pytest.raises(ConfigError, match="nothing measures it"):
        read_config("smoke", {**settings, "goal": {"maximise": "volume"}})


def test_a_reward_source_and_a_strategy_of_a_package_are_used(toys):
    candidates = [Candidate(rocksalt(a=a)) for a in (5.0, 6.0)]
    term = Term("length", "maximise", 4.0, 6.0, source="length")
    rewards, rows = PropertyReward(RewardConfig(terms=(term,)), RewardInputs(ValidityRules()))(candidates)
    np.testing.assert_allclose(rewards, [0.5, 1.0])
    assert [row["length"] for row in rows] == [5.0, 6.0]
    with pytest.raises(ConfigError, match="gives 'length', not 'width'"):
        Term("width", "maximise", 4.0, 6.0, source="length")
    surrogate = FakeSurrogate()
    chosen = PoolAcquisition(AcquisitionConfig(strategy="last")).select(candidates, surrogate, 1, seed=0)
    assert chosen == [1]
    assert load_potential("toy").energy_type == load_potential("ase.calculators.emt:EMT").energy_type


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone", "my-toys 1.0 .toys:NOTHING. raises AttributeError"),
        ("number", "leads to int .toys:NUMBER.: expected"),
    ],
)
def test_a_broken_package_is_named(toys, name, message):
    with pytest.raises(ConfigError, match=message):
        ORACLES.get(name)
    line = next(check for check in registered() if check.name == "oracles")
    assert line.state == "failed"
    assert "mlip, dft, handoff (discovery-loop); gone, number, toy (my-toys 1.0)" in line.text


def test_what_a_package_raises_while_a_part_is_made_is_one_message(toys):
    term = Term("x", "maximise", 0.0, 1.0, source="bomb")
    with pytest.raises(ConfigError, match=r"'bomb' of discovery_loop\.rewards is broken: the package my-toys 1\.0"):
        PropertyReward(RewardConfig(terms=(term,)), RewardInputs(ValidityRules()))
    config = read_config("smoke", {"generator.kind": "bomb", "oracle.kind": "toy"})
    (line,) = [line for line in missing_parts(config) if "bomb" in line]
    assert "ZeroDivisionError: division by zero" in line


def test_two_packages_with_one_name_are_refused_and_named(toys, tmp_path):
    install(tmp_path, "other", "others", CODE, {"oracles": {"toy": "others:ORACLE", "mlip": "others:ORACLE"}})
    with pytest.raises(ConfigError, match=r"'toy' of .* is registered by my-toys 1\.0 and other 1\.0: uninstall one"):
        ORACLES.get("toy")
    line = next(check for check in registered() if check.name == "oracles")
    assert "'mlip' is registered by discovery-loop and other 1.0" in line.text


def test_the_schema_knows_names_and_options(toys):
    from flows.config import CampaignConfig

    schema = json.loads(json.dumps(with_names(CampaignConfig.model_json_schema())))
    kinds = schema["$defs"]["GeneratorSection"]
    assert kinds["properties"]["kind"]["enum"] == ["crystalformer", "substitution", "bomb", "toy"]
    pairs = [(item["if"]["properties"]["kind"]["const"], item["then"]["properties"]) for item in kinds["allOf"]]
    options = {name: then["options"] for name, then in pairs}
    assert set(options["toy"]["properties"]) == {"bias", "tries"}
    assert set(options["substitution"]["properties"]) > {"max_atoms"}
    assert schema["$defs"]["OracleSection"]["properties"]["kind"]["enum"] == ["mlip", "dft", "toy"]
    assert "length" in schema["$defs"]["Term"]["properties"]["source"]["enum"]


def test_without_packages_there_are_ours_alone():
    assert GENERATORS.names() == ["crystalformer", "substitution"]
    assert REWARDS.names() == ["hull", "surrogate", "elements"]
    assert all(check.state == "ok" for check in registered())
