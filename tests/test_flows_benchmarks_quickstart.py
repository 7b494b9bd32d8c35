"""Campaigns over several seeds: the arms are compared within seeds, and nothing that is done is done again."""

from __future__ import annotations

import json
import math

import numpy as np
import pandas as pd
import pytest

from flows.benchmarks.quickstart import QuickstartConfig, run, summary
from loop.errors import ConfigError
from loop.goal import Goal
from loop.metrics import paired_ratio, pooled_ratio, student_mean
from loop.settings import ARMS, BASELINE, ENGINE, SHADOW

TINY = ("campaign.pool=32", "campaign.budget=4", "campaign.baseline_budget=3", "campaign.rounds=1", "oracle.workers=1")
TINY += ("generator.finetune.iterations=1", "generator.finetune.batch_size=8")


def rows(seed, arm, finds, labels, objective=100.0):
    made = {"seed": seed, "arm": arm, "status": "ok", "prototype": "A_cF4_225_a"}
    hits = [i < finds for i in range(labels)]
    return [{**made, "stable": hit, "find": hit, "objective": objective + i} for i, hit in enumerate(hits)]


def table(*parts):
    return pd.DataFrame([row for part in parts for row in part])


def test_arms_are_compared_within_seeds():
    """A seed whose space is rich for both arms does not look like a gain."""
    labels = table(
        rows(0, ENGINE, 18, 20), rows(0, SHADOW, 9, 10), rows(0, BASELINE, 5, 10),
        rows(1, ENGINE, 4, 40), rows(1, SHADOW, 1, 10), rows(1, BASELINE, 1, 10),
    )  # fmt: skip
    told = summary(labels, Goal("bulk_modulus"))
    found = told[f"finds per label, {ENGINE} over {SHADOW}"]
    assert found["pooled"]["value"] == pytest.approx(1.0)  # 22 of 60 against 10 of 20 would say 0.73
    assert found["pooled"]["low"] < 1 < found["pooled"]["high"]
    assert found["seeds"] == 2
    assert told[ENGINE]["finds"] == 22
    assert told[ENGINE]["rate"]["value"] == pytest.approx(22 / 60)
    assert told["timed_out"] == 0


@pytest.mark.parametrize(("goal", "sign"), [(Goal("bulk_modulus"), 1), (Goal("bulk_modulus", "minimise"), -1)])
def test_the_objective_is_compared_among_finds_in_the_sense_of_the_goal(goal, sign):
    labels = table(
        rows(0, ENGINE, 2, 9, 150), rows(0, SHADOW, 2, 4, 100), rows(0, BASELINE, 0, 4),
        rows(1, ENGINE, 2, 9, 130), rows(1, SHADOW, 2, 4, 110), rows(1, BASELINE, 3, 4),
        rows(2, ENGINE, 2, 9, 900), rows(2, SHADOW, 0, 4, 110), rows(2, BASELINE, 3, 4),
    )  # fmt: skip
    told = summary(labels, goal)[f"objective of finds, {ENGINE} minus {SHADOW}"]
    assert told["seeds"] == 2  # chance found nothing with the third
    assert told["over seeds"]["value"] == pytest.approx(sign * 35)
    assert told["pooled"]["value"] == pytest.approx(sign * (np.mean([150, 151, 130, 131, 900, 901]) - 105.5))


def test_a_label_that_ran_out_of_time_is_told():
    late = {"seed": 0, "arm": ENGINE, "status": "timeout", "prototype": "", "stable": False, "find": False}
    labels = table(rows(0, ENGINE, 1, 2), [{**late, "objective": math.nan}])
    assert summary(labels, Goal("bulk_modulus"))["timed_out"] == 1


def test_pooled_ratio_of_one_campaign_is_the_relative_risk():
    from scipy.stats.contingency import relative_risk

    risk = relative_risk(24, 36, 3, 12)
    interval = risk.confidence_interval(0.95)
    found = pooled_ratio([((24, 36), (3, 12))])
    assert (found.value, found.low, found.high) == pytest.approx((risk.relative_risk, interval.low, interval.high))
    assert math.isnan(pooled_ratio([((0, 5), (1, 5))]).value)
    assert math.isnan(pooled_ratio([((3, 5), (0, 0))]).value)


def test_intervals_of_ratios_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    rates = rng.uniform(0.15, 0.35, (1500, 5))
    hits = rng.binomial(36, 2 * rates), rng.binomial(12, rates)
    for ratio, least in ((pooled_ratio, 0.93), (paired_ratio, 0.92)):
        found = [ratio([((a, 36), (b, 12)) for a, b in zip(*pair, strict=True)]) for pair in zip(*hits, strict=True)]
        assert least < np.mean([x.low <= 2 <= x.high for x in found]) < 0.98, ratio.__name__


def test_one_seed_gives_no_interval_over_seeds():
    assert student_mean([3.0]).value == 3.0
    assert math.isnan(student_mean([3.0]).low)
    assert math.isnan(student_mean([]).value)
    assert math.isnan(paired_ratio([((3, 5), (1, 5))]).low)


def test_campaigns_are_run_once(tmp_path):
    """A real campaign; a second seed is added to the first, which is not run again."""
    done = run(tmp_path, QuickstartConfig("smoke", TINY, seeds=1))
    first = (tmp_path / "seed-0" / "campaign.db").read_bytes()
    both = run(tmp_path, QuickstartConfig("smoke", TINY, seeds=2))
    assert (tmp_path / "seed-0" / "campaign.db").read_bytes() == first
    assert both["results"]["campaigns"][0] == done["results"]["campaigns"][0]
    assert [told["seed"] for told in both["results"]["campaigns"]] == [0, 1]
    labels = pd.read_csv(tmp_path / "labels.csv")
    paid = {ENGINE: 6, SHADOW: 2, BASELINE: 6}
    assert {arm: both["results"][arm]["labels"] for arm in ARMS} == paid == labels.arm.value_counts().to_dict()
    ranked = pd.concat(pd.read_csv(tmp_path / f"seed-{seed}" / "ranked.csv") for seed in (0, 1))
    assert labels.find.sum() == (ranked.group == "find").sum()
    assert json.loads((tmp_path / "record.json").read_text())["results"] == both["results"]
    with pytest.raises(ConfigError, match=r"campaign\.pool was 32, now 18"):
        run(tmp_path, QuickstartConfig("smoke", (*TINY[1:], "campaign.pool=18"), seeds=1))


@pytest.mark.parametrize("wrong", [{"seeds": 0}, {"first_seed": -1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ConfigError, match="at least one seed"):
        QuickstartConfig(**wrong)
