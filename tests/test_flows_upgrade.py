"""Settings of version 0.1 are read as what they meant, with one line of advice."""

import pytest

from flows.config import CampaignConfig, check_same, read_config, stored_config
from flows.upgrade import upgraded
from generator.rl.ppo import Ppo
from generator.rl.raft import Raft
from loop.errors import ConfigError

OLD = {  # as version 0.1 wrote every option, those that the algorithm never read among them
    "algorithm": "ppo",
    "iterations": 7,
    "clip": 0.1,
    "ratio": "crystal",
    "kl_stop": 0.4,
    "baseline": "moving-average",
    "baseline_decay": 0.9,
    "standardise": False,
    "dpo_beta": 0.1,
    "replay": 0,
    "replay_weight": 0.1,
}


def config_of(tmp_path, finetune, overrides=None):
    import yaml

    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"generator": {"finetune": finetune}}))
    return read_config(tmp_path / "c.yaml", overrides).generator.finetune


def test_flat_options_move_below_their_algorithm(tmp_path, capsys):
    config = config_of(tmp_path, OLD)
    expected = Ppo(
        clip=0.1,
        ratio="crystal",
        target_kl=0.4,
        baseline="moving-average",
        baseline_decay=0.9,
        normalize_advantage=False,
    )
    assert config.algorithm == expected
    assert config.iterations == 7
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "is read as algorithm: {kind: ppo, clip: 0.1" in line


def test_imitation_is_raft(tmp_path):
    assert config_of(tmp_path, {"algorithm": "imitation", "replay": 99, "clip": 0.3}).algorithm == Raft(replay=99)
    assert config_of(tmp_path, {"replay": 12}).algorithm == Raft(replay=12)
    assert config_of(tmp_path, {"algorithm": "ppo"}, {"generator.finetune.clip": 0.3}).algorithm == Ppo(clip=0.3)


def test_todays_form_is_left_alone_and_told_nothing(tmp_path, capsys):
    for algorithm in ("ppo", {"kind": "ppo"}):
        assert config_of(tmp_path, {"algorithm": algorithm}).algorithm == Ppo()
    assert config_of(tmp_path, {}).algorithm == Raft()
    assert capsys.readouterr().err == ""
    assert upgraded({"generator": 3}) == ({"generator": 3}, [])


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [({"kind": "raft", "clip": 0.1}, "clip: unknown key"), ("pppo", "raft"), ({"kind": "ppo", "clip": 2.0}, "clip in")],
)
def test_an_option_that_the_algorithm_does_not_have_is_refused(tmp_path, algorithm, message):
    with pytest.raises(ConfigError, match=message):
        config_of(tmp_path, {"algorithm": algorithm})


def test_options_of_ion_substitution_stand_with_those_of_any_generator(tmp_path, capsys):
    import yaml

    old = {"kind": "substitution", "substitution": {"max_atoms": 8}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"generator": old}))
    config = read_config(tmp_path / "c.yaml").generator
    assert (config.chosen_options.max_atoms, config.options["max_changes"]) == (8, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "generator.substitution is read as generator.options" in line
    written = {"generator": {"kind": "crystalformer", "substitution": {"max_atoms": 20}}}  # as version 0.1 wrote it
    assert upgraded(written) == ({"generator": {"kind": "crystalformer"}}, [])


def test_a_campaign_begun_before_a_key_existed_goes_on_without_what_it_does(tmp_path):
    """Its settings hold every key that there was; one that is missing had no effect."""
    import yaml

    settings = CampaignConfig().model_dump(mode="json")
    assert settings["generator"]["finetune"].pop("keep_classes") == 1.0
    assert settings["generator"]["finetune"].pop("prototype_limit") == 0.1
    assert settings["generator"]["finetune"].pop("replay_evenly") is True
    assert settings["generator"]["finetune"].pop("average_last") == 0.25
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    stored = stored_config(tmp_path)
    tuning = stored.generator.finetune
    assert (tuning.keep_classes, tuning.prototype_limit, tuning.replay_evenly) == (0.0, 1.0, False)
    assert tuning.average_last == 0.0
    check_same(stored, tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"keep_classes was 0.0, now 1.0.*discovery-loop resume"):
        check_same(CampaignConfig(), tmp_path)
    assert stored_config(tmp_path, {"generator.finetune.keep_classes": 0.3}).generator.finetune.keep_classes == 0.3
    settings["generator"]["finetune"] |= {
        "keep_classes": 1.0,
        "prototype_limit": 0.1,
        "replay_evenly": True,
        "average_last": 0.25,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert stored_config(tmp_path).generator.finetune == CampaignConfig().generator.finetune
