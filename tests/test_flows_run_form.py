"""The goal in Prefect's run form: what the form offers, what is refused before a run is made, and what follows."""

import pytest
from pydantic import ValidationError

from flows import configfile
from flows.config import CampaignConfig, read_config
from flows.configfile import presets, set_key
from flows.goals import measured_properties
from flows.run_form import Measured, RunGoal
from loop.errors import ConfigError
from surrogates.properties import default_property

pytest.importorskip("prefect")

MEASURED = Measured.__args__
WINDOW = {"target": "dft_band_gap", "value": 1.34, "lower": 1.1, "upper": 1.6}
NONSENSE = {  # what belongs to which key of the form
    "goal.maximise": [{"maximise": "hardness"}, {"maximise": 3}, {"maximise": ["volume"]}],
    "goal.stable": [{"stable": 9}, {"stable": -1}, {"stable": "low"}, {"stable": True}],
    "goal.lower": [{"target": "volume", "lower": "x", "upper": 3}],
    "goal": [
        {"target": "volume"}, {"value": 3.0}, {"lower": 1.0, "upper": 2.0}, {"target": "volume", "lower": 1.0},
        {"target": "volume", "upper": 1.0}, {"wish": "gold"}, "gold", 3,
    ],
}  # fmt: skip
NO_CRYSTAL = [
    {"target": "volume", "lower": 3.0, "upper": 2.0},
    {"target": "volume", "value": 9.0, "lower": 1.0, "upper": 2.0},
    {"target": "bulk_modulus", "value": -3.0},
    {"target": "dft_band_gap", "lower": -3.0, "upper": -1.0},
    {"maximise": "volume", "minimise": "volume"},
]


def form():
    """The schema that `up` gives to the server."""
    from prefect.utilities.callables import parameter_schema

    from flows import server
    from flows.discovery import discovery_loop

    return server.plain_inputs(parameter_schema(discovery_loop).model_dump())


def test_the_form_offers_properties_and_has_one_input_for_each():
    shown = form()["definitions"]["RunGoal"]["properties"]
    assert {name: kind["type"] for name, kind in shown.items()} == {
        "stable": "number", "maximise": "string", "minimise": "string", "target": "string",
        "value": "number", "lower": "number", "upper": "number",
    }  # fmt: skip
    assert all("anyOf" not in kind and "default" not in kind for kind in shown.values())
    assert tuple(shown["maximise"]["enum"]) == MEASURED
    assert (shown["stable"]["minimum"], shown["stable"]["maximum"]) == (-0.2, 2.0)


def test_the_form_says_what_each_input_is_and_in_which_unit():
    shown = form()["definitions"]["RunGoal"]["properties"]
    assert all(len(kind["description"]) > 20 for kind in shown.values())
    assert shown["upper"]["title"] == "Upper end of the target's window"
    for name in MEASURED:
        assert name in shown["value"]["description"]
    assert "THz: lowest_frequency;" in shown["value"]["description"]


def test_the_form_asks_for_what_before_how_much():
    places = {name: shown["position"] for name, shown in form()["properties"].items()}
    order = ["config", "results", "goal", "elements", "required", "rounds", "budget", "seed", "overrides"]
    assert sorted(places, key=places.__getitem__) == order


def test_a_target_without_value_is_refused_in_words():
    """The schema's choice of two was told as: {'target': 'volume'} is not valid under any of the given schemas."""
    from prefect.utilities.schema_tools import ValidationError as Refused
    from prefect.utilities.schema_tools import validate

    with pytest.raises(Refused, match=r"'value \(or lower and upper\) of the target' is a required property"):
        validate({"goal": {"target": "volume"}}, form(), raise_on_error=True)


def test_elements_are_chosen_from_a_list():
    for name in ("elements", "required"):
        assert {"Li", "O", "U"} < set(form()["properties"][name]["items"]["enum"])


@pytest.mark.parametrize("name", MEASURED)
def test_what_is_offered_is_predicted_and_measured(name):
    assert default_property(name) is not None
    everything = {"oracle": {"mlip": {"elastic": {}, "phonons": {}}, "dft": {}}}
    assert name in measured_properties(CampaignConfig.model_validate(everything))


@pytest.mark.parametrize(("key", "goal"), [(key, goal) for key, goals in NONSENSE.items() for goal in goals])
def test_the_server_refuses_nonsense_by_its_key(key, goal):
    from prefect.utilities.schema_tools import ValidationError as Refused
    from prefect.utilities.schema_tools import validate

    with pytest.raises(Refused, match=rf"'{key}(\.\w+)?'"):
        validate({"goal": goal}, form(), raise_on_error=True)
    with pytest.raises(ValidationError):
        RunGoal.model_validate(goal)


@pytest.mark.parametrize("goal", NO_CRYSTAL)
def test_what_no_crystal_has_is_refused(goal):
    with pytest.raises(ValidationError, match=r"no crystal has|outside its window|rising numbers|each property once"):
        RunGoal(**goal)


def test_the_server_takes_what_makes_sense():
    from prefect.utilities.schema_tools import validate

    for goal in ({}, {"stable": 0.05}, {"maximise": "volume", "minimise": "bulk_modulus"}, WINDOW):
        validate({"goal": goal, "elements": ["Li", "O"]}, form(), raise_on_error=True)
        RunGoal.model_validate(goal)


@pytest.mark.parametrize("preset", presets())
@pytest.mark.parametrize("goal", [{}, {"minimise": "volume"}, {"maximise": "volume", "stable": 0.2}])
def test_every_deployment_follows_the_goal_of_its_form(preset, goal):
    """Objective, selection and reward are of the goal that was asked for; what was not asked for is as configured."""
    before, config = read_config(preset), read_config(preset, RunGoal(**goal).settings())
    assert config.campaign.threshold == goal.get("stable", before.campaign.threshold)
    kind = next((kind for kind in ("minimise", "maximise") if kind in goal), None)
    if kind is None:
        assert config == before
        return
    assert [(item.name, item.kind) for item in config.campaign.goals] == [("volume", kind)]
    assert [(item.name, item.goal) for item in config.selection.objectives] == [("volume", kind)]
    rewarded = {(term.property, term.goal) for term in config.reward.terms} - {("e_above_hull", "minimise")}
    taught = any(term.property != "e_above_hull" for term in before.reward.terms) or preset == "smoke"
    assert rewarded == ({("volume", kind)} if taught else set())  # where stability alone teaches, it stays so


def test_a_window_reaches_selection_and_reward():
    config = read_config("quickstart-dft", RunGoal(**WINDOW).settings())
    assert (config.campaign.wanted.target, config.campaign.wanted.window) == (1.34, (1.1, 1.6))
    bounds = [(item.name, item.at_least, item.at_most) for item in config.selection.constraints]
    assert {("dft_band_gap", 1.1, None), ("dft_band_gap", None, 1.6)} <= set(bounds)
    assert ("dft_band_gap", "range", 1.1, 1.6) in [(t.property, t.goal, t.low, t.high) for t in config.reward.terms]


def test_a_goal_replaces_what_sections_of_a_file_say(tmp_path):
    text = """
campaign: {objective: volume, goal: target, target: 20, window: [15, 30], stability: e_above_hull, threshold: 0.3}
reward: {terms: [{property: volume, goal: range, low: 15, high: 30}]}
"""
    (tmp_path / "c.yaml").write_text(text)
    config = read_config(tmp_path / "c.yaml", RunGoal(minimise="volume", stable=0.1).settings())
    assert (config.campaign.wanted.kind, config.campaign.window, config.campaign.threshold) == ("minimise", None, 0.1)
    assert [term.goal for term in config.reward.terms if term.property == "volume"] == ["minimise"]


def test_a_goal_replaces_what_a_written_out_file_says(tmp_path):
    """As in the config.yaml of results: every section stands there, the selection's constraints among them."""
    configfile.dump(read_config("quickstart-dft", RunGoal(**WINDOW).settings()), tmp_path / "config.yaml")
    config = read_config(tmp_path / "config.yaml", RunGoal(maximise="bulk_modulus", stable=0.2).settings())
    asked = {(item.name, item.at_least, item.at_most) for item in config.selection.constraints}
    assert asked == {("e_above_hull", None, 0.2), ("e_above_hull", -0.5, None)}
    assert [(term.property, term.goal) for term in config.reward.terms] == [
        ("e_above_hull", "minimise"), ("bulk_modulus", "maximise"),
    ]  # fmt: skip
    again = read_config(tmp_path / "config.yaml", RunGoal(target="dft_band_gap", lower=3, upper=4).settings())
    asked = {(item.name, item.at_least, item.at_most) for item in again.selection.constraints}
    assert {("dft_band_gap", 3.0, None), ("dft_band_gap", None, 4.0), ("e_above_hull", None, 0.05)} <= asked
    assert not {("dft_band_gap", 1.1, None), ("dft_band_gap", None, 1.6)} & asked
    assert (again.campaign.target, again.campaign.window) == (None, (3.0, 4.0))


def test_a_goal_in_american_spelling_replaces_too():
    config = read_config("quickstart", {"goal.minimize": "bulk_modulus"})
    assert [(item.name, item.kind) for item in config.campaign.goals] == [("bulk_modulus", "minimise")]


def test_what_the_campaign_does_not_measure_is_refused_under_the_key_of_the_form():
    with pytest.raises(ConfigError, match=r"goal\.maximise 'shear_modulus': nothing measures it"):
        read_config("quickstart", RunGoal(maximise="shear_modulus").settings())
    settings = RunGoal(maximise="shear_modulus").settings() | {"oracle.mlip.elastic": {}}
    assert read_config("quickstart", settings).campaign.objective == "shear_modulus"


def test_settings_are_dotted_keys():
    data: dict = {}
    for key, value in RunGoal(**WINDOW, stable=0.05).settings().items():
        set_key(data, key, value)
    assert data["goal"]["stable"] == {"e_above_hull": 0.05}
    assert data["goal"]["target"] == {"name": "dft_band_gap", "value": 1.34, "within": (1.1, 1.6)}
