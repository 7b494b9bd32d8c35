"""A product of two properties as a goal: said once, measured, predicted from two sides, ranked; and the preset."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from flows.build import Builder
from flows.checks import problems
from flows.config import CampaignConfig, read_config
from flows.goals import measured_properties
from flows.surrogate import CampaignProductSurrogate, campaign_surrogate
from loop.campaign import Campaign
from loop.errors import ConfigError
from loop.properties import heading, spec_of
from loop.settings import CampaignSettings
from loop.store import Store
from loop.tiers import Tier
from loop.values import OK, Candidate, Cost, Evaluation, Quantity
from surrogates.acquisition import AcquisitionConfig, PoolAcquisition
from surrogates.features import FeatureExtractor
from surrogates.properties import E_ABOVE_HULL, GPConfig, Property, default_property
from surrogates.utility import Constraint, Objective
from tests.fakes import fake_components, rocksalt

MERIT = "dft_band_gap*dft_dielectric_electronic"
ENGINE = {"oracle.dft.resources.python": "python"}


def test_a_product_is_a_property():
    evaluation = Evaluation("a", "t@1", "t", OK, {"gap": Quantity(7.0, "eV"), "constant": Quantity(2.5, "1")})
    assert evaluation.value("gap*constant") == 17.5
    assert np.isnan(evaluation.value("gap*missing"))
    assert spec_of(MERIT).unit == "eV"
    assert heading(MERIT) == "dft band gap × dft electronic dielectric constant (eV)"
    prior = default_property(MERIT)
    assert (prior.unit, prior.scale) == ("eV", "linear")
    assert default_property("dft_band_gap*nothing") is None


def test_the_preset_asks_for_gap_times_constant_and_the_front_of_both():
    config = read_config("dielectric", ENGINE)
    assert [goal.name for goal in config.campaign.goals] == [MERIT, "dft_band_gap", "dft_dielectric_electronic"]
    assert config.campaign.threshold == 0.1
    names = [prop.name for prop in config.surrogate.gp.properties]
    assert {"e_above_hull", "dft_band_gap", "dft_dielectric_electronic", MERIT} <= set(names)
    assert [item.name for item in config.selection.objectives] == [MERIT]
    assert {item.name: item.at_most for item in config.selection.constraints if item.at_most}["e_above_hull"] == 0.1
    assert config.oracle.dft.min_gap == 1.0
    assert {"Fe", "Lu"} <= set(config.generator.proposals.conditions.exclude)
    assert problems(config, elsewhere=True) == []
    assert "dft_band_gap" in measured_properties(config)


def test_a_goal_of_one_product_predicts_its_factors_too():
    goal = {"stable": {"e_above_hull": 0.1}, "maximise": MERIT}
    config = CampaignConfig.model_validate({"goal": goal, "oracle": {"dft": {}}})
    names = [prop.name for prop in config.surrogate.gp.properties]
    assert names.count(MERIT) == names.count("dft_band_gap") == 1
    assert [term.property for term in config.reward.terms] == ["e_above_hull", MERIT]
    with pytest.raises(ConfigError, match="nothing measures it"):
        read_config("smoke", {"campaign.objective": "handoff_band_gap*bulk_modulus"})


def test_a_product_without_its_factors_is_refused_before_a_run():
    alone = [{"name": "e_above_hull", "unit": "eV/atom", "scale": "soft"}, {"name": MERIT, "unit": "eV"}]
    asked = {"campaign.objective": MERIT, "oracle.dft": {}, "surrogate.gp.properties": alone}
    config = read_config("smoke", asked)
    assert any("two properties that are predicted, too" in line for line in problems(config, elsewhere=True))


GAP, CONSTANT = (
    Property("dft_band_gap", "eV", prior_mean=3.0),
    Property("dft_dielectric_electronic", "1", "log", None, 1.5),
)
WHOLE = GPConfig((replace(E_ABOVE_HULL, offset=None), GAP, CONSTANT, Property(MERIT, "eV")), forest=False, maxiter=10)


def labelled(n, seed=0):
    rng = np.random.default_rng(seed)
    crystals = [Candidate(rocksalt("Na", "Cl", float(a))) for a in rng.uniform(4.5, 7.0, n)]
    found = []
    for crystal in crystals:
        gap = 9 - crystal.structure.lattice.a + rng.normal(0, 0.1)
        values = {"e_above_hull": Quantity(0.02 * gap, "eV/atom"), "dft_band_gap": Quantity(gap, "eV"),
                  "dft_dielectric_electronic": Quantity(1 + 6 / gap, "1")}  # fmt: skip
        found.append(Evaluation(crystal.id, "t@1", "t", OK, values))
    return crystals, found


def test_the_campaigns_surrogate_predicts_everything_and_the_product_from_two_sides(tmp_path):
    crystals, found = labelled(60)
    surrogate = campaign_surrogate(FeatureExtractor(), WHOLE)
    assert isinstance(surrogate, CampaignProductSurrogate)
    surrogate.fit(crystals[:40], found[:40])
    new = crystals[40:]
    posterior = surrogate.predict(new)
    assert posterior.names == tuple(prop.name for prop in WHOLE.properties)
    for name in posterior.names:
        told = np.array([evaluation.value(name) for evaluation in found[40:]])
        assert np.abs(posterior.column(name)[0] - told).mean() < 0.2 * told.std() + 0.15, name
    joint = surrogate.joint(new)
    assert joint.covariance.shape == (4, len(new), len(new))
    std = np.sqrt(np.diagonal(joint.covariance[-1]))
    assert std == pytest.approx(surrogate.marginal(new)[1][:, -1])
    config = AcquisitionConfig(objectives=(Objective(MERIT),), constraints=(Constraint("e_above_hull", at_most=0.1),))
    assert len(PoolAcquisition(config).select(new, surrogate, 4, seed=0)) == 4
    surrogate.save(tmp_path / "fit")
    again = campaign_surrogate(FeatureExtractor(), WHOLE)
    again.load(tmp_path / "fit")
    assert again.predict(new).mean == pytest.approx(posterior.mean)


def test_labels_without_dft_teach_stability_alone():
    crystals, found = labelled(30)
    bare = [replace(e, properties={"e_above_hull": e.properties["e_above_hull"]}) for e in found[:20]]
    surrogate = campaign_surrogate(FeatureExtractor(), WHOLE)
    metrics = surrogate.fit(crystals, [*bare, *found[20:]])
    assert (metrics["e_above_hull/labels"], metrics["dft_band_gap/labels"]) == (30.0, 10.0)
    assert np.isfinite(surrogate.labels[:, -1]).sum() == 10


def test_known_labels_teach_a_campaign_its_factors(tmp_path):
    from loop.io.crystals import write_crystals

    crystals, found = labelled(20)
    columns = pd.DataFrame(
        {f"{name} ({unit})": [e.value(name) for e in found] for name, unit in ((GAP.name, "eV"), (CONSTANT.name, "1"))}
    )
    write_crystals(tmp_path / "known.csv", [c.id for c in crystals], [c.structure for c in crystals], columns)
    known = {"surrogate.known": str(tmp_path / "known.csv")}
    surrogate = Builder(read_config("dielectric", {**ENGINE, **known})).surrogate
    assert len(surrogate._known.candidates) == len({c.id for c in crystals})


class Dft:
    """Gap and constant of every crystal; no constant for small gaps."""

    name, settings_hash = "dft@1", "2" * 8

    def evaluate(self, candidates):
        return [self._one(candidate) for candidate in candidates]

    def _one(self, candidate):
        gap = candidate.structure.volume / len(candidate.structure) / 5
        values = {"band_gap": Quantity(gap, "eV")}
        if gap > 4:
            values["dielectric_electronic"] = Quantity(1 + 20 / gap**1.5, "1")
        return Evaluation(candidate.id, self.name, self.settings_hash, OK, values, cost=Cost(10.0))


def test_a_campaign_ranks_by_the_product_that_dft_found(tmp_path):
    settings = CampaignSettings(name="merit", rounds=1, pool=24, budget=6, seed=1, objective=MERIT)
    parts = replace(fake_components(), tiers=(Tier("dft", Dft(), best=4),))
    with Campaign(settings, parts, Store(tmp_path / "campaign.db"), tmp_path) as campaign:
        campaign.run()
    table = pd.read_csv(tmp_path / "ranked.csv")
    both = table[table["dft_dielectric_electronic"].notna()]
    assert len(both) > 1
    assert both[MERIT].to_numpy() == pytest.approx(
        (both["dft_band_gap"] * both["dft_dielectric_electronic"]).to_numpy()
    )
    finds = table[(table["group"] == "find") & table[MERIT].notna()]
    assert finds[MERIT].is_monotonic_decreasing
    assert table[table["dft_dielectric_electronic"].isna()][MERIT].isna().all()
