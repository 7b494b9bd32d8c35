"""Goals, properties and stability: each said once, and what follows from them."""

import math
import re

import numpy as np
import pytest

from loop.errors import ConfigError
from loop.goal import Goal
from loop.properties import heading, spec_of
from loop.settings import CampaignSettings
from loop.stability import IMPLAUSIBLE, METASTABLE, ON_HULL, is_suspect, sun_flags, within

GAPS = [8.5, 5.1, 3.0, 1.34, 0.2, 1.58]
SOLAR = Goal("dft_band_gap", "target", 1.34, (1.1, 1.6))


@pytest.mark.parametrize(
    ("goal", "order"),
    [
        (Goal("band_gap"), [8.5, 5.1, 3.0, 1.58, 1.34, 0.2]),
        (Goal("band_gap", "minimize"), [0.2, 1.34, 1.58, 3.0, 5.1, 8.5]),
        (SOLAR, [1.34, 1.58, 0.2, 3.0, 5.1, 8.5]),
        (Goal("band_gap", "target", 1.34), [1.34, 1.58, 0.2, 3.0, 5.1, 8.5]),
        (Goal("band_gap", "target", window=(4.0, 6.0)), [5.1, 3.0, 1.58, 8.5, 1.34, 0.2]),
    ],
)
def test_values_are_ordered_by_the_goal(goal, order):
    assert sorted([*GAPS, math.nan], key=goal.badness)[:-1] == order
    assert sorted(GAPS, key=goal.score, reverse=True) == order
    assert goal.score(math.nan) == -math.inf


def test_what_lies_in_the_window_comes_before_what_is_nearer_to_the_target():
    goal = Goal("band_gap", "target", 1.1, (1.0, 3.0))
    assert sorted([0.95, 2.9], key=goal.badness) == [2.9, 0.95]


def test_goals_that_make_no_sense_are_refused():
    for wrong in ({"kind": "target"}, {"target": 1.0}, {"kind": "best"}, {"kind": "target", "window": (2.0, 1.0)}):
        with pytest.raises(ConfigError):
            Goal("band_gap", **wrong)
    with pytest.raises(ConfigError, match="outside its window"):
        Goal("band_gap", "target", 3.0, (1.0, 2.0))


@pytest.mark.parametrize(
    ("name", "target", "window"),
    [
        ("bulk_modulus", -3.0, None), ("bulk_modulus", 0.0, None), ("bulk_modulus", None, (-5.0, 0.0)),
        ("dft_band_gap", 99.0, None), ("poisson_ratio", None, (0.6, 0.9)), ("band_gap*volume", -1.0, None),
        ("band_gap", math.nan, None),
    ],
)  # fmt: skip
def test_a_target_that_no_crystal_can_have_is_refused(name, target, window):
    with pytest.raises(ConfigError, match=f"no crystal has this .*{re.escape(name)} is "):
        Goal(name, "target", target, window)


def test_a_window_may_reach_beyond_what_is_possible():
    assert Goal("band_gap", "target", window=(-1.0, 0.5)).window == (-1.0, 0.5)
    assert Goal("energy", "target", -9.0).target == -9.0
    assert Goal("hardness", "target", -9.0).target == -9.0  # nothing is known of it


def test_a_goal_is_said_with_its_unit():
    assert SOLAR.text() == "dft band gap (eV): target 1.34, window 1.1 to 1.6"
    assert Goal("shear_modulus").text() == "maximise shear modulus (GPa)"
    assert Goal("hardness").text("HV") == "maximise hardness (HV)"


def test_settings_of_earlier_ledgers_are_read():
    old = CampaignSettings().to_dict()
    for name in ("goal", "target", "window", "also"):
        del old[name]
    assert CampaignSettings.from_dict(old | {"maximise": False}).wanted == Goal("bulk_modulus", "minimise")
    assert CampaignSettings.from_dict(old | {"maximise": True}) == CampaignSettings()
    with pytest.raises(ConfigError, match="contradicts"):
        CampaignSettings.from_dict({"maximise": False, "goal": "maximise"})
    there_and_back = CampaignSettings(goal="target", window=(1.0, 2.0), also=(Goal("energy", "minimise"),))
    assert CampaignSettings.from_dict(there_and_back.to_dict()) == there_and_back


def test_properties_of_costlier_oracles_are_the_same_property():
    assert heading("dft_band_gap") == "dft band gap (eV)"
    assert heading("dielectric_total") == "static dielectric constant"
    assert spec_of("lab_shear_modulus").unit == "GPa"
    assert spec_of("hardness", "HV").heading == "hardness (HV)"
    assert not spec_of("shear_modulus").allows(-751.0)
    assert spec_of("dft_band_gap").allows(0.0)
    assert not spec_of("bulk_modulus").allows(1e12)


def test_the_one_count_of_sun_crystals():
    above = np.array([-0.5, -0.1, 0.0, 0.05, 0.1, 0.11, math.nan, 0.0])
    yes, sparse = np.ones(8, bool), np.arange(8) == 7
    flags = sun_flags(above, valid=yes, unique=yes, new=yes, sparse=sparse)
    assert flags["sun"].tolist() == [False, True, True, *[False] * 5]
    assert flags["msun"].tolist() == [False, True, True, True, True, False, False, False]
    for name in ("valid", "unique", "new"):
        assert not sun_flags(above, **({"valid": yes, "unique": yes, "new": yes} | {name: ~yes}))["msun"].any()
    assert within(above, METASTABLE)[7]  # nothing is said of the hull
    assert ON_HULL < METASTABLE
    assert is_suspect(-0.353)
    assert is_suspect(-0.254)
    assert not is_suspect(IMPLAUSIBLE)
