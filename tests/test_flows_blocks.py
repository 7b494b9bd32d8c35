"""The goal, the space and the budget of a campaign, said once: every section agrees, and contradictions are named."""

from __future__ import annotations

import pytest

from flows import configfile
from flows.blocks import BUDGET, SpaceBlock
from flows.checks import problems
from flows.config import CampaignConfig, read_config
from flows.overrides import give_way
from loop.errors import ConfigError

LITHIUM = """\
campaign: {name: lithium, pool: 64}
goal:
  stable: {e_above_hull: 0.05}
  maximise: bulk_modulus
space: {required: [Li], allowed: [Li, O, F], max_atoms: 20, space_groups: [225, 227]}
budget: {rounds: 5, label: 24, baseline: 30, dft: 3, hours: 2}
"""
SOLAR = """\
goal:
  stable: {e_above_hull: 0.05}
  target: {dft_band_gap: 1.34, within: [1.1, 1.6]}
budget: {dft: 2}
"""


def read(tmp_path, text, **overrides):
    (tmp_path / "c.yaml").write_text(text)
    return read_config(tmp_path / "c.yaml", {key.replace("__", "."): value for key, value in overrides.items()})


def test_every_section_follows(tmp_path):
    config = read(tmp_path, LITHIUM)
    campaign, selection = config.campaign, config.selection
    assert (campaign.threshold, campaign.stability) == (0.05, "e_above_hull")
    assert (campaign.objective, campaign.goal, campaign.rounds, campaign.budget) == ("bulk_modulus", "maximise", 5, 24)
    assert (campaign.baseline_budget, campaign.max_hours) == (30, 2)
    assert [(item.name, item.goal) for item in selection.objectives] == [("bulk_modulus", "maximise")]
    bounds = [(item.name, item.at_most, item.at_least) for item in selection.constraints]
    assert ("e_above_hull", 0.05, None) in bounds
    assert ("e_above_hull", None, -0.5) in bounds  # the guard stays
    assert ("e_above_hull", 0.1, None) not in bounds
    assert [(term.property, term.goal, term.source) for term in config.reward.terms] == [
        ("e_above_hull", "minimise", "hull"),
        ("bulk_modulus", "maximise", "surrogate"),
    ]
    assert config.reward.terms[1].low == pytest.approx(15.6, abs=0.1)  # GPa: ln K = 4.35 +- 2 * 0.8
    assert config.reward.terms[1].high == pytest.approx(383.8, abs=0.1)
    assert config.oracle.dft.best == 3
    assert problems(config, elsewhere=True) == []


def test_the_space_holds_for_proposals_and_fine_tuning_alike(tmp_path):
    generator = read(tmp_path, LITHIUM).generator
    for conditions in (generator.proposals.conditions, generator.finetune.conditions):
        assert conditions.require == ("Li",)
        assert conditions.elements == ("Li", "O", "F")
        assert (conditions.max_atoms, conditions.space_groups) == (20, (225, 227))
    assert generator.proposals.conditions == generator.finetune.conditions


@pytest.mark.parametrize(
    "space",
    [
        {"required": ["Li"]},
        {"allowed": ["Li", 8]},
        {"forbidden": ["Tl"]},
        {"chemical_system": "Sr-Ti-O"},
        {"formula": "SrTiO3"},
        {"space_groups": [221]},
        {"max_atoms": 12},
        {"n_atoms": 5},
        {"max_elements": 3},
        {"sites": ["a:Ti"]},
    ],
    ids=lambda space: next(iter(space)),
)
def test_each_condition_reaches_both(space):
    config = configfile.validate(CampaignConfig, {"space": space}, "c.yaml")
    plain = configfile.validate(CampaignConfig, {}, "c.yaml").generator
    assert config.generator.proposals.conditions == config.generator.finetune.conditions
    assert config.generator.proposals.conditions != plain.proposals.conditions
    assert set(SpaceBlock.model_fields) >= set(space)


def test_a_window_reaches_all_five_places(tmp_path):
    config = read(tmp_path, SOLAR)
    assert (config.campaign.goal, config.campaign.target, config.campaign.window) == ("target", 1.34, (1.1, 1.6))
    assert [(o.name, o.goal, o.target) for o in config.selection.objectives] == [("dft_band_gap", "target", 1.34)]
    bounds = {(item.name, item.at_most, item.at_least) for item in config.selection.constraints}
    assert bounds == {
        ("e_above_hull", 0.05, None),
        ("e_above_hull", None, -0.5),
        ("dft_band_gap", None, 1.1),
        ("dft_band_gap", 1.6, None),
    }
    assert [(t.property, t.goal, t.low, t.high) for t in config.reward.terms][1] == ("dft_band_gap", "range", 1.1, 1.6)
    assert "dft_band_gap" in [item.name for item in config.surrogate.gp.properties]
    assert config.oracle.dft.best == 2


def test_several_objectives(tmp_path):
    config = read(tmp_path, "goal: {maximise: [bulk_modulus, dft_band_gap], minimise: volume}\nbudget: {dft: 1}\n"
                  "surrogate: {gp: {properties: [{name: e_above_hull, unit: eV/atom}, {name: bulk_modulus, unit: GPa}, "
                  "{name: dft_band_gap, unit: eV}, {name: volume, unit: A^3/atom}]}}\n"
                  "reward: {terms: [{property: bulk_modulus, goal: maximise, low: 0, high: 300}]}\n")  # fmt: skip
    assert [(goal.name, goal.kind) for goal in config.campaign.goals] == [
        ("bulk_modulus", "maximise"),
        ("dft_band_gap", "maximise"),
        ("volume", "minimise"),
    ]
    assert len(config.selection.objectives) == 3
    assert len(config.reward.terms) == 1  # what a section says stays


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("campaign: {threshold: 0.1}", r"goal\.stable says 0\.05, campaign\.threshold says 0\.1: keep one"),
        ("campaign: {objective: volume}", r"goal\.maximise says 'bulk_modulus', campaign\.objective says 'volume'"),
        ("campaign: {goal: minimise}", r"goal\.maximise says 'maximise', campaign\.goal says 'minimise'"),
        (
            "campaign: {budget: 8, rounds: 1}",
            r"budget\.rounds says 5, campaign\.rounds says 1.*; budget\.label says 24",
        ),
        (
            "generator: {finetune: {sampling: {require: [Na]}}}",
            r"space\.required says \['Li'\], generator\.finetune\.samp",
        ),
        (
            "generator: {proposals: {max_atoms: 10}}",
            r"space\.max_atoms says 20, generator\.proposals\.max_atoms says 10",
        ),
        (
            "selection: {constraints: [{name: e_above_hull, at_most: 0.2}]}",
            r"goal\.stable says e_above_hull at most 0\.05",
        ),
        ("oracle: {dft: {best: 1}}", r"budget\.dft says 3, oracle\.dft\.best says 1"),
        (
            "selection: {objectives: [{name: bulk_modulus, goal: minimise}]}",
            r"campaign says maximise bulk modulus \(GPa\), selection\.objectives minimise bulk_modulus",
        ),
        (
            "reward: {terms: [{property: bulk_modulus, goal: minimise, low: 0, high: 300}]}",
            r"campaign says maximise bulk modulus \(GPa\), reward\.terms minimise bulk_modulus",
        ),
    ],
)
def test_a_contradiction_names_both_places(tmp_path, section, said):
    text = LITHIUM.replace("campaign: {name: lithium, pool: 64}\n", "")
    with pytest.raises(ConfigError, match=said):
        read(tmp_path, f"{text}{section}\n")


def test_the_same_twice_is_no_contradiction(tmp_path):
    once = read(tmp_path, LITHIUM)
    more = "generator: {proposals: {sampling: {require: [Li]}}, finetune: {space_groups: [225, 227]}}\n"
    more += "oracle: {dft: {best: 3}}\n"
    twice = read(tmp_path, LITHIUM + more, campaign__threshold=0.05)
    assert twice.generator.proposals.conditions == once.generator.proposals.conditions
    assert twice.campaign == once.campaign


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("goal: {maximise: hardness}", "the usual range of 'hardness' is not known: say how it is rewarded"),
        ("goal: {stable: {a: 1, b: 2}}", "goal: stable: expected one property"),
        ("goal: {stabel: {e_above_hull: 0.1}}", "goal.stabel: unknown key; did you mean 'stable'?"),
        ("goal: {}", "goal: expected stable, maximise, minimise or target"),
        ("goal: {target: {band_gap: 1, volume: 2}}", "goal.target: expected one property"),
        ("space: {required: Li}", "space.required: expected a list, as [Li]"),
        ("space: {required: [Xx]}", "'Xx' is no element"),
        ("budget: {label: many}", "budget.label: expected a valid integer"),
        ("budget: {label: 0}", "budget must be at least 1, got 0"),
        ("budget: 3", "budget: expected a section"),
    ],
)
def test_a_block_that_is_none_says_so(tmp_path, text, said):
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text + "\n")
    assert said in str(refused.value)


def test_what_is_kept_is_read_again_alike(tmp_path):
    config = read(tmp_path, LITHIUM)
    configfile.dump(config, tmp_path / "config.yaml")
    again = read_config(tmp_path / "config.yaml")
    assert again.model_dump() == config.model_dump()
    assert "space:" not in (tmp_path / "config.yaml").read_text().splitlines()


def test_potentials_by_their_names(tmp_path):
    oracle = read(tmp_path, "oracle: {screen: chgnet, label: mace:medium-mpa-0}\n").oracle
    assert (oracle.screen.potential, oracle.mlip.potential) == ("chgnet", "mace:medium-mpa-0")
    with pytest.raises(ConfigError, match=r"oracle\.label says 'a', oracle\.mlip\.potential says 'b'"):
        read(tmp_path, "oracle: {label: a, mlip: {potential: b}}\n")
    with pytest.raises(ConfigError, match=r"oracle\.label: expected text, got the number 3"):
        read(tmp_path, "oracle: {label: 3}\n")


def test_american_spelling_and_the_command_line(tmp_path):
    (tmp_path / "c.yaml").write_text("goal: {minimize: bulk_modulus}\n")
    config = read_config(tmp_path / "c.yaml", {"budget.label": 5, "space.required": ["O"]})
    assert (config.campaign.goal, config.campaign.budget) == ("minimise", 5)
    assert config.generator.finetune.sampling.require == ("O",)


def test_budgets_name_settings_that_there_are(tmp_path):
    every = dict.fromkeys(BUDGET, 2)
    config = configfile.validate(CampaignConfig, {"budget": every}, "c.yaml")
    assert (config.campaign.max_calls, config.campaign.max_hours, config.oracle.handoff.best) == (2, 2, 2)


def test_the_quickstart_says_its_goal_once_and_the_sections_follow():
    config = read_config("quickstart")
    assert (config.campaign.objective, config.campaign.threshold) == ("bulk_modulus", 0.05)
    assert ("e_above_hull", 0.05) in [(item.name, item.at_most) for item in config.selection.constraints]
    assert (config.campaign.rounds, config.campaign.budget, config.campaign.baseline_budget) == (3, 16, 24)
    assert (config.oracle.screen.potential, config.oracle.mlip.potential) == ("chgnet", "sevennet")


def test_an_override_replaces_what_a_block_of_the_file_says():
    """Who says --set campaign.rounds=1 of a preset with budget.rounds means it; in one file the two contradict."""
    config = read_config("smoke", {"campaign.rounds": 1, "campaign.budget": 3, "campaign.threshold": 0.2})
    assert (config.campaign.rounds, config.campaign.budget, config.campaign.threshold) == (1, 3, 0.2)
    other = read_config("smoke", {"campaign.objective": "volume", "campaign.goal": "minimise"}).campaign
    assert (other.objective, other.goal, other.threshold) == ("volume", "minimise", 0.1)
    written = {"goal": {"maximise": "volume"}, "budget": {"rounds": 2}}
    assert give_way(written, {"campaign.objective": "volume", "seed": 1}) == {"budget": {"rounds": 2}}
    assert give_way(written, {"budget.rounds": 3}) == written


RELAX = {"fmax": 0.03, "smax": 0.3, "max_steps": 500}
LARGE = {"finetune": {"iterations": 100, "batch_size": 500, "minibatch_size": 250}}
SECTIONS = {  # the presets as they would be without blocks
    "smoke": {
        "campaign": {"name": "smoke", "seed": 0, "rounds": 2, "pool": 32, "budget": 4, "baseline_budget": 6,
                     "shadow_share": 0.25},
        "generator": {"finetune": {"iterations": 3, "batch_size": 24, "minibatch_size": 12}},
        "oracle": {"mlip": {"relax": {"max_steps": 100}, "bulk": {"points": 5}}},
    },
    "single-gpu": {
        "campaign": {"name": "single-gpu", "seed": 0, "rounds": 10, "pool": 10000, "budget": 400,
                     "baseline_budget": 400, "shadow_share": 0.1, "chunk": 64, "patience": 4, "max_hours": 24},
        "generator": {"device": "cuda", **LARGE},
        "oracle": {"mlip": {"device": "cuda", "relax": {**RELAX, "time_limit": 300, "batch_size": 64}}},
    },
    "hpc": {
        "campaign": {"name": "hpc", "seed": 0, "rounds": 20, "pool": 20000, "budget": 2000, "baseline_budget": 1000,
                     "shadow_share": 0.05, "chunk": 128, "patience": 5, "max_hours": 160},
        "generator": LARGE,
        "oracle": {"workers": 0, "mlip": {"relax": {**RELAX, "time_limit": 600}}},
    },
}  # fmt: skip


@pytest.mark.parametrize("preset", SECTIONS)
def test_presets_in_blocks_are_what_they_were_in_sections(preset):
    before = CampaignConfig.model_validate(SECTIONS[preset])
    assert read_config(preset).model_dump() == before.model_dump()
