"""Errors that grow along a coordinate: intervals follow, and cover what they promise at both ends."""

from __future__ import annotations

import numpy as np
import pytest

from surrogates.calibration import ENOUGH, SPREADS, ResidualScale, conformal_factor


def world(n: int, seed: int):
    """Normal errors of standard deviation 0.01 + 0.1 x where 0.05 is stated for all."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, n)
    return x, rng.normal(0, 0.01 + 0.1 * x), np.full(n, 0.05)


def test_intervals_cover_at_both_ends():
    x, y, std = world(400, 0)
    spread = ResidualScale.fit(x, y, np.zeros(400), std)
    factor = conformal_factor(y, np.zeros(400), std * spread(x))
    new_x, new_y, new_std = world(20_000, 1)
    inside = np.abs(new_y) <= 1.645 * new_std * factor * spread(new_x)
    alike = np.abs(new_y) <= 1.645 * new_std * conformal_factor(y, np.zeros(400), std)
    for low in (0.0, 0.25, 0.5, 0.75):
        part = (new_x >= low) & (new_x < low + 0.25)
        assert inside[part].mean() == pytest.approx(0.9, abs=0.06)
    assert alike[new_x < 0.25].mean() > 0.99  # one factor for all is far too wide where errors are small
    assert alike[new_x > 0.75].mean() < 0.85


def test_same_size_everywhere_leaves_deviations_as_they_are():
    rng = np.random.default_rng(0)
    x, y = rng.uniform(0, 1, 2000), rng.normal(0, 0.05, 2000)
    spread = ResidualScale.fit(x, y, np.zeros(2000), np.full(2000, 0.05))
    assert spread(np.linspace(0.05, 0.95, 7)) == pytest.approx(np.ones(7), abs=0.15)


def test_it_never_falls_and_stays_within_bounds():
    x, y, std = world(60, 2)
    y[np.argmax(x)] = 50.0
    sizes = ResidualScale.fit(x, y, np.zeros(60), std)(np.linspace(-1, 2, 50))
    assert (np.diff(sizes) >= 0).all()
    assert sizes.min() >= SPREADS[0]
    assert sizes.max() <= SPREADS[1]


@pytest.mark.parametrize("case", ["few", "constant", "exact"])
def test_where_nothing_can_be_learnt_it_is_one(case):
    n = ENOUGH - 1 if case == "few" else 40
    x, y, std = world(n, 3)
    x, y = (np.ones(n), y) if case == "constant" else (x, np.zeros(n) if case == "exact" else y)
    assert ResidualScale.fit(x, y, np.zeros(n), std)(np.array([-1.0, 0.5, 9.0])).tolist() == [1.0, 1.0, 1.0]
