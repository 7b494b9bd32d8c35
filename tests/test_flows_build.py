"""Opening a campaign: its settings stand in the folder from the start, and only once it could begin for good."""

from contextlib import contextmanager

import pytest

from flows import build
from flows.config import CONFIG_FILE, CampaignConfig, read_config
from loop.errors import CheckpointError, ConfigError
from loop.settings import CampaignSettings
from tests.fakes import FakeGenerator, FakeOracle, fake_parts


def config(seed: int = 0) -> CampaignConfig:
    return CampaignConfig(campaign=CampaignSettings(name="c", seed=seed, rounds=1, pool=8, budget=2))


def use(monkeypatch, load):
    """Let the parts of a campaign be what `load` gives."""

    @contextmanager
    def parts(*_):
        yield load()

    monkeypatch.setattr(build, "parts", parts)


def test_settings_are_there_before_anything_slow(tmp_path, monkeypatch):
    class Killed(BaseException):
        """As a kill, nothing of ours may catch it."""

    def load():
        assert read_config(tmp_path / CONFIG_FILE) == config()
        raise Killed

    use(monkeypatch, load)
    with pytest.raises(Killed), build.open_campaign(config(), tmp_path):
        pass
    use(monkeypatch, lambda: fake_parts(FakeGenerator(), FakeOracle()))
    with build.open_campaign(read_config(tmp_path / CONFIG_FILE), tmp_path) as campaign:
        campaign.run()
    assert campaign.finished


def test_what_could_not_begin_may_begin_with_other_settings(tmp_path, monkeypatch):
    def load():
        raise CheckpointError("no such checkpoint")

    use(monkeypatch, load)
    with pytest.raises(CheckpointError), build.open_campaign(config(), tmp_path):
        pass
    assert not (tmp_path / CONFIG_FILE).exists()
    use(monkeypatch, lambda: fake_parts(FakeGenerator(), FakeOracle()))
    with pytest.raises(ValueError, match="later"), build.open_campaign(config(seed=1), tmp_path):
        raise ValueError("later")
    with pytest.raises(ConfigError, match=r"campaign\.seed was 1"), build.open_campaign(config(), tmp_path):
        pass
