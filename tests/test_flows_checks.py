"""`validate` refuses what `run` would refuse, and says which key it is."""

from __future__ import annotations

import copy
import json
import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from flows import build, preflight, yaml_core
from flows.checks import METRICS, problems, refuse
from flows.cli import app
from flows.config import CampaignConfig, read_config
from flows.configfile import validate
from loop.errors import ConfigError
from tests.test_flows_campaign import fakes, leave_figures_out, run, write_config  # noqa: F401


def validated(*overrides: str):
    arguments = [part for override in overrides for part in ("--set", override)]
    return CliRunner().invoke(app, ["validate", "smoke", *arguments])


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    def loads(*_, **__):
        raise AssertionError("something heavy was loaded")

    monkeypatch.setattr(build.Builder, "measuring", property(loads))
    monkeypatch.setattr("generator.checkpoint.load_checkpoint", loads)


@pytest.mark.usefixtures("nothing_is_loaded")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("generator.checkpoint=/nope", "generator.checkpoint: no checkpoint in /nope"),
        ("generator.device=cuda", "generator.device: cuda was asked for, but this machine shows no CUDA devices"),
        ("oracle.mlip.device=cuda:1", "oracle.mlip.device: cuda:1 was asked for"),
        ("oracle.screen=chgnett", "oracle.screen.potential: There is no potential 'chgnett'"),
        ("oracle.mlip.potential=seven", "oracle.mlip.potential: There is no potential 'seven'"),
        ("oracle.second_opinion=emt+mp2020", "oracle.second_opinion.potential: There is no potential 'emt'"),
        ("oracle.screen={device: gpu}", "oracle.screen.device: expected cpu or cuda, got 'gpu'"),
        ("oracle.screen={references: /nope.csv}", "oracle.screen.references: there is no /nope.csv"),
        ("oracle.mlip.device=gpu", "oracle.mlip.device: expected cpu or cuda, got 'gpu'"),
        ("generator.proposals.sampling.space_groups=[231]", "sampling: space groups must lie in 1..230, got"),
        (
            "generator.proposals.space_groups=[231]",
            "generator.proposals.space_groups.0: expected at least 1 and at most",
        ),
        ("generator.finetune.space_groups=[0]", "generator.finetune: space groups must lie in 1..230"),
        ("generator.proposals.max_atoms=0", "generator.proposals.max_atoms: expected at least 1, got 0"),
        ("campaign.budget=100", "campaign.budget: expected at most campaign.pool, which is 32, got 100"),
        ("campaign.baseline_budget=33", "campaign.baseline_budget: expected at most campaign.pool"),
        ("campaign.max_calls=2", "campaign.max_calls: 2 calls end within the baseline round"),
        ("campaign.name=a/b", "campaign.name: name must have no '/'"),
        ("campaign.name=..", "campaign.name: name must have no '.' at its start"),
        ("campaign.threshold=100", "campaign.threshold: expected at least -5 and at most 5, got 100"),
        ("campaign.threshold=.nan", "campaign.threshold: expected at least -5 and at most 5, got nan"),
        ("campaign.seed=-1", "campaign.seed: expected at least 0"),
        ("campaign.stop_below={validty: 0.1}", "campaign.stop_below.validty: no report holds such a number"),
        ("campaign.rounds=true", "campaign.rounds: expected a number, got true"),
        ("oracle.mlip.lowest=0.2", "oracle.mlip.lowest: 0.2 eV/atom refuses all"),
        ("oracle.mlip.references=/nope.csv", "oracle.mlip.references: there is no /nope.csv"),
        ("novelty.reference=/nope.npz", "novelty.reference: there is no /nope.npz"),
        ("surrogate.known=/nope.csv", "surrogate.known: there is no /nope.csv"),
        (
            "generator.proposals.sampling.require=[Po]",
            "generator.proposals: Po must occur, but validity.radioactive drops",
        ),
        (
            "generator.finetune.sampling.elements=[He, Ne]",
            "generator.finetune: every element that may occur is dropped",
        ),
        (
            "generator.proposals.sampling.chemical_system=Li-Be-B-C-N-O-F",
            "7 elements must occur, but validity.max_elements",
        ),
        ("oracle.mlip.relax.max_expansion=1", "oracle.mlip.relax.max_expansion: expected above 1"),
        (
            "surrogate.gp.properties=[{name: e_above_hull, unit: meV}, {name: bulk_modulus, unit: GPa}]",
            "surrogate.gp.properties.0: e_above_hull is measured in eV/atom, got the unit 'meV'",
        ),
        ("selection.feasible=1.5", "selection: selection expects feasible"),
    ],
)
def test_settings_are_refused_before_anything_is_loaded(setting, said):
    done = validated(setting)
    assert done.exit_code == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "oracle.mlip.potential=nope:Calculator",
            "oracle.mlip: The ASE calculator 'nope:Calculator' with {} cannot be made",
        ),
        ("oracle.mlip.potential=ase.calculators.emt.EMT", "Did you mean 'ase.calculators.emt:EMT'?"),
        ("oracle.mlip.potential=ase.calculators.emt:EMT", "crystals as drawn need a cheap potential of their own"),
        ("oracle.mlip.potential=chgnet:9", "oracle.mlip: There is no CHGNet '9'"),
        ("generator.proposals.sampling.elements=[Ra, O]", "asks for Ra, which the potential"),
        (
            "generator.finetune.sampling.elements=[Ra, O]",
            "generator.finetune.sampling asks for Ra, which the potential",
        ),
        (
            "generator.proposals.sampling={n_atoms: 1, space_groups: [227]}",
            "generator.proposals: no crystal in space group 227 fulfils",
        ),
        (
            "generator.finetune.sampling={n_atoms: 1, space_groups: [227]}",
            "generator.proposals: no crystal in space group 227 fulfils",
        ),
    ],
)
def test_parts_that_cannot_be_made_are_refused(setting, said):
    done = validated(setting)
    assert done.exit_code == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_will_run_elsewhere_is_not_looked_for():
    here = CliRunner().invoke(app, ["validate", "single-gpu"])
    assert here.exit_code == 1
    assert "--elsewhere" in here.stderr
    there = CliRunner().invoke(app, ["validate", "single-gpu", "--elsewhere", "--json"])
    assert there.exit_code == 0, there.stderr
    assert json.loads(there.stdout)["campaign"] == "single-gpu"
    wrong = CliRunner().invoke(app, ["validate", "single-gpu", "--elsewhere", "--set", "campaign.name=a/b"])
    assert wrong.exit_code == 1


def test_run_refuses_before_it_makes_a_folder(tmp_path, fakes):  # noqa: F811
    config = write_config(tmp_path / "c.yaml", budget=50)
    for extra in ([], ["--dry-run"]):
        done = run("run", config, "--results", tmp_path / "r", *extra)
        assert done.exit_code == 1
        assert "campaign.budget: expected at most campaign.pool" in done.stderr
        assert not (tmp_path / "r").exists()


def test_an_earlier_campaign_may_have_what_a_new_one_may_not(tmp_path, fakes, monkeypatch):  # noqa: F811
    leave_figures_out(monkeypatch)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build, "problems", lambda _: [])
        assert run("run", write_config(tmp_path / "c.yaml", name="a/b"), "--results", tmp_path / "r").exit_code == 0
    assert run("resume", tmp_path / "r").exit_code == 0
    assert run("status", tmp_path / "r").exit_code == 0


def test_stop_rules_may_name_what_reports_hold(tmp_path, fakes):  # noqa: F811
    from flows.plain import open_history

    with pytest.MonkeyPatch.context() as patched:
        leave_figures_out(patched)
        assert run("run", write_config(tmp_path / "c.yaml", rounds=1), "--results", tmp_path / "r").exit_code == 0
    with open_history(tmp_path / "r") as history:
        assert set(history.reports()[-1].metrics) >= METRICS


EVERYTHING = {
    "campaign": {"max_calls": 30, "max_hours": 5.0, "patience": 2},
    "oracle": {"dft": {}, "handoff": {}, "screen": {}, "mlip": {"elastic": {}, "phonons": {}}},
    "generator": {"proposals": {"guard": {}, "max_atoms": 20}, "finetune": {"kl_target": 2.0}},
}
FREE = {"options", "settings", "bias", "stop_below", "stop_above"}  # whose keys are not ours


def full() -> dict[str, Any]:
    """A valid configuration with every section."""
    return json.loads(json.dumps(validate(CampaignConfig, EVERYTHING, "all").model_dump(mode="json")))


def places(data: Any, path: tuple = ()) -> list[tuple]:
    """Path of each key and list element."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for name, value in items for place in ((*path, name), *places(value, (*path, name)))]


WHOLE = full()
PLACES = places(WHOLE)


def at(data: Any, path: tuple) -> Any:
    for name in path:
        data = data[name]
    return data


def wrong_values(value: Any) -> list[Any]:
    """Values that are certainly wrong where this one stands."""
    if isinstance(value, bool):
        return ["perhaps", 7, [True], {"a": 1}]
    if isinstance(value, int | float):
        return ["many", True, [1], {"a": 1}, math.nan, -1e30, 1e30]
    if isinstance(value, str):
        return [["a"], {"a": 1}, 3.5]
    return [3, True, "text"] if isinstance(value, dict) else [3, True, {"a": 1}]


@st.composite
def malformed(draw) -> tuple[dict[str, Any], str]:
    """A configuration with one thing wrong, and the key that is wrong."""
    data, path = copy.deepcopy(WHOLE), draw(st.sampled_from(PLACES))
    owner, name = at(data, path[:-1]), path[-1]
    if isinstance(name, str) and not FREE & set(path[:-1]) and draw(st.booleans()):
        cut = draw(st.integers(0, len(name) - 1))
        typo = draw(st.sampled_from([name[:cut] + name[cut + 1 :] + "zz", name[:cut] + "q" + name[cut:], name.upper()]))
        owner[typo] = owner.pop(name)
        return data, typo
    if owner[name] is not None:
        owner[name] = draw(st.sampled_from(wrong_values(owner[name])))
    else:
        owner[name] = {"a": {"b": object.__name__}}
    return data, next(part for part in reversed(path) if isinstance(part, str))


@pytest.mark.usefixtures("nothing_is_loaded")
@settings(
    max_examples=500, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(malformed())
def test_whatever_is_wrong_is_refused_by_its_key(case):
    data, key = case
    with pytest.raises(ConfigError) as refused:
        refuse(problems(validate(CampaignConfig, yaml_core.read(yaml_core.write(data)), "c.yaml")))
    assert key in str(refused.value)


@pytest.mark.usefixtures("nothing_is_loaded")
def test_what_is_right_is_taken():
    config = validate(CampaignConfig, yaml_core.read(yaml_core.write(WHOLE)), "c.yaml")
    assert problems(config, elsewhere=True) == []
    for preset in ("quickstart", "smoke", "single-gpu", "hpc", "quickstart-dft", "dielectric"):
        assert problems(read_config(preset), elsewhere=True) == []
    assert preflight.check(read_config("single-gpu"), elsewhere=True) is None


def test_a_hull_on_demand_is_no_file_that_is_missing():
    assert validated("oracle.mlip.references=demand").exit_code == 0
    assert "there is no demanded" in validated("oracle.mlip.references=demanded").output
