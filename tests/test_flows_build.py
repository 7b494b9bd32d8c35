"""Opening a campaign: its settings stand in the folder from the start, and only once it could begin for good."""

from contextlib import contextmanager

import pytest

from flows import build
from flows.config import CONFIG_FILE, CampaignConfig, read_config
from loop.errors import CheckpointError, ConfigError, EnergyTypeError
from loop.settings import CampaignSettings
from tests.fakes import FakeGenerator, FakeOracle, fake_components

AU_CU = (("Cu", 3.6), ("Au", 4.06))


def config(seed: int = 0) -> CampaignConfig:
    return CampaignConfig(campaign=CampaignSettings(name="c", seed=seed, rounds=1, pool=8, budget=2))


def use(monkeypatch, load):
    """Let the parts of a campaign be what `load` gives."""

    @contextmanager
    def parts(*_):
        yield load()

    monkeypatch.setattr(build, "components", parts)


def test_settings_are_there_before_anything_slow(tmp_path, monkeypatch):
    class Killed(BaseException):
        """As a kill, nothing of ours may catch it."""

    def load():
        assert read_config(tmp_path / CONFIG_FILE) == config()
        raise Killed

    use(monkeypatch, load)
    with pytest.raises(Killed), build.open_campaign(config(), tmp_path):
        pass
    use(monkeypatch, lambda: fake_components(FakeGenerator(), FakeOracle()))
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
    use(monkeypatch, lambda: fake_components(FakeGenerator(), FakeOracle()))
    with pytest.raises(ValueError, match="later"), build.open_campaign(config(seed=1), tmp_path):
        raise ValueError("later")
    with pytest.raises(ConfigError, match=r"campaign\.seed was 1"), build.open_campaign(config(), tmp_path):
        pass


def test_the_cheap_potential_is_apart_from_the_one_that_labels(tmp_path):
    """EMT labels copper and gold on its own hull; CHGNet screens, describes and rewards on its hull."""
    import pandas as pd
    from pymatgen.core import Lattice, Structure

    from loop.values import Candidate, Origin
    from oracles.potentials.loading import load_potential
    from oracles.references.table import write_references

    emt = load_potential("ase.calculators.emt:EMT")
    fcc = {symbol: Structure.from_spacegroup(225, Lattice.cubic(a), [symbol], [[0, 0, 0]]) for symbol, a in AU_CU}
    energies = emt.energies(list(fcc.values()))
    rows = {"formula": list(fcc), "energy_per_atom": energies, "id": list(fcc), "held_out": 0}
    write_references(tmp_path / "emt.csv", pd.DataFrame(rows), emt)
    mlip = {"potential": "ase.calculators.emt:EMT", "references": str(tmp_path / "emt.csv")}
    mlip |= {"abstain_when_sparse": False}
    apart = CampaignConfig.model_validate({"oracle": {"mlip": mlip, "screen": {"potential": "chgnet"}, "workers": 1}})
    builder = build.Builder(apart)
    gold = Structure.from_spacegroup(221, Lattice.cubic(3.75), ["Au", "Cu"], [[0, 0, 0], [0, 0.5, 0.5]])
    candidate = Candidate(gold, Origin("base", 221, "x", 0.0), 0)
    (label,) = builder.oracle.evaluate([candidate])
    assert label.ok
    assert label.energy_type == emt.energy_type
    screened = builder.screen([candidate])
    chgnet = builder.cheap.potential
    assert builder.cheap.references.energy_type == chgnet.energy_type != emt.energy_type
    assert screened[0] == pytest.approx(builder.cheap.above_hull([gold], chgnet.energies([gold]))[0])
    together = build.Builder(CampaignConfig.model_validate({"oracle": {"mlip": mlip, "workers": 1}}))
    assert together.cheap.potential is together.measuring.potential


def test_a_cheap_potential_with_the_references_of_another_is_refused():
    screen = {"potential": "ase.calculators.emt:EMT"}
    with pytest.raises(EnergyTypeError, match=r"oracle\.screen"):
        _ = build.Builder(CampaignConfig.model_validate({"oracle": {"screen": screen}})).cheap
