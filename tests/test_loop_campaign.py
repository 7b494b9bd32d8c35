from __future__ import annotations

import pytest

from loop.campaign import Campaign
from loop.settings import CampaignSettings
from loop.store import Store
from tests.fakes import FakeOracle, fake_parts

SETTINGS = CampaignSettings(name="test", rounds=2, pool=24, budget=6, chunk=2, seed=1)


def run(tmp_path, settings=SETTINGS, **parts):
    with Store(tmp_path / "campaign.db") as store, Campaign(settings, fake_parts(**parts), store, tmp_path) as campaign:
        campaign.run()
        return campaign.history, campaign.parts.oracle


def test_a_campaign_learns_and_is_reported(tmp_path):
    history, oracle = run(tmp_path)
    reports = history.reports()
    assert [report.round for report in reports] == [0, 1, 2]
    assert reports[-1].metrics["hit_rate"] > reports[0].metrics["hit_rate"]
    assert len(oracle.evaluated) == len(set(oracle.evaluated)) == history.paid == 18
    arms = [label.pick.arm for label in history.labels()]
    assert arms.count("baseline") == 6
    assert arms.count("shadow") == 4
    assert arms.count("engine") == 8
    print((tmp_path / "ranked.csv").read_text()[:800], reports[-1])


@pytest.mark.parametrize("label", [0, 3, 7, 13, 17])
def test_killed_while_labelling_ends_as_if_it_had_not(tmp_path, label):
    whole, _ = run(tmp_path / "whole")
    oracle = FakeOracle(fail_at=label)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", oracle=oracle)
    cut, later = run(tmp_path / "cut")
    assert (tmp_path / "cut/ranked.csv").read_text() == (tmp_path / "whole/ranked.csv").read_text()
    lost = len(oracle.evaluated) + len(later.evaluated) - whole.paid
    assert lost < SETTINGS.chunk
    assert cut.paid == whole.paid
