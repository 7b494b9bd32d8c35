"""Batches are diverse: no prototype has more than its share while there is anything else."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from pymatgen.core import Lattice, Structure

from loop.errors import ConfigError
from loop.prototypes import prototype
from loop.selection import choose
from loop.settings import ENGINE, SHADOW, CampaignSettings
from loop.values import Candidate
from tests.fakes import rocksalt

SETTINGS = CampaignSettings(seed=3, shadow_share=0.0)


def caesium_chloride(cation, anion, a):
    return Structure(Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.5, 0.5, 0.5]])


def zincblende(cation, anion, a):
    return Structure.from_spacegroup("F-43m", Lattice.cubic(a), [cation, anion], [[0, 0, 0], [0.25, 0.25, 0.25]])


POOL = [
    Candidate(make(cation, "Cl", a))
    for make, a in ((rocksalt, 5.6), (caesium_chloride, 3.6), (zincblende, 6.0))
    for cation in ("Li", "Na", "K", "Rb", "Cs", "Ag")
]


class InOrder:
    """The first of the pool are the best."""

    def __init__(self):
        self.asked = []

    def select(self, candidates, surrogate, k, *, seed):
        self.asked.append((len(candidates), k))
        return list(range(k))


def picked(share, budget=8, pool=POOL, **settings):
    acquisition = InOrder()
    made = replace(SETTINGS, prototype_share=share, **settings)
    return choose(pool, made, 1, budget, (acquisition, None)), acquisition


def test_no_prototype_has_more_than_its_share():
    arms, _ = picked(0.5)
    kinds = Counter(prototype(POOL[index].structure) for index in arms)
    assert sorted(kinds.values()) == [4, 4]
    assert list(arms) == [0, 1, 2, 3, 6, 7, 8, 9]  # the best of each, in order
    arms, _ = picked(0.25)
    assert list(arms) == [0, 1, 6, 7, 12, 13, 2, 3]  # three prototypes fill six places; the rest is the next best


def test_all_of_one_where_that_is_allowed():
    arms, acquisition = picked(1.0)
    assert list(arms) == list(range(8))
    assert acquisition.asked == [(18, 8)]


def test_a_pool_of_one_prototype_is_chosen_from_as_before():
    arms, _ = picked(0.25, pool=POOL[:6], budget=4)
    assert list(arms) == [0, 1, 2, 3]


def test_chance_is_left_alone():
    arms, _ = picked(0.25, shadow_share=0.5)
    again, _ = picked(1.0, shadow_share=0.5)
    assert [i for i, arm in arms.items() if arm == SHADOW] == [i for i, arm in again.items() if arm == SHADOW]
    assert list(arms.values()).count(ENGINE) == 4


def test_shares_that_make_no_sense_are_refused():
    with pytest.raises(ConfigError, match="prototype_share"):
        replace(SETTINGS, prototype_share=0.0)
