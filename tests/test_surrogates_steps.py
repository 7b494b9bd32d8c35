"""Steps between fidelities: the posterior learns where the cheaper oracle errs, and what climbs is worth its price."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from surrogates.properties import Property
from surrogates.steps import StepModel, Steps, costs, probability_at_most, selected_for_tier
from surrogates.utility import Objective

GAP = Property("dft_band_gap", "eV", prior_mean=1.0, prior_std=1.5)
GROUPS = {"kind": np.array([0])}
LARGEST = Objective("dft_band_gap")


def pool(n=60, seed=0):
    """Of two kinds of crystals the cheaper oracle gets one right, and the other 1.5 eV too high."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 2
    low = rng.uniform(0, 4, n)
    truth = low - 1.5 * kind + rng.normal(0, 0.05, n)
    empty = np.full(n, np.nan)
    return Steps(kind[:, None].astype(float), low, empty, empty, np.full(n, 100.0), np.ones(n)), truth


def measured(steps, truth, rows, cost=1.0):
    high, spent = steps.high.copy(), steps.cost.copy()
    high[rows], spent[rows] = truth[rows], cost
    return replace(steps, high=high, cost=spent)


def test_the_posterior_learns_where_the_cheaper_oracle_errs():
    steps, truth = pool()
    rows = np.arange(16)
    mean, std = StepModel(steps, GROUPS, GAP).predict(measured(steps, truth, rows).high, fit=True)
    unseen = np.arange(16, 60)
    assert np.abs(mean - truth)[unseen].mean() < 0.2  # of the cheaper values 0.75
    assert np.mean(np.abs(mean - truth)[unseen] < 2 * std[unseen]) > 0.85


def test_what_is_chosen_is_no_longer_the_best_by_the_cheaper_value():
    steps, truth = pool()
    rows = np.arange(16)
    chosen = selected_for_tier(measured(steps, truth, rows), GROUPS, GAP, LARGEST, 4)
    assert len(set(chosen)) == 4
    assert not set(chosen) & set(rows.tolist())
    best_low = [row for row in np.argsort(-steps.low) if row not in rows][:4]
    assert truth[chosen].mean() > truth[best_low].mean() + 0.3
    assert max(truth[chosen]) == max(truth[16:])


@pytest.mark.parametrize("seed", [0, 2])
def test_beside_a_record_that_nothing_can_beat_the_best_of_the_rest_go_up(seed):
    steps, truth = pool(seed=seed)
    low, known = steps.low.copy(), truth.copy()
    low[0] = known[0] = 12.0
    seen = measured(replace(steps, low=low), known, np.arange(16))
    chosen = selected_for_tier(seen, GROUPS, GAP, LARGEST, 6)
    assert sorted(chosen) == sorted(16 + np.argsort(-truth[16:])[:6])


def test_what_is_of_no_use_or_dear_comes_last():
    steps, truth = pool()
    seen = measured(steps, truth, np.arange(16))
    useless = selected_for_tier(seen, GROUPS, GAP, LARGEST, 1)[0]
    useful = steps.useful.copy()
    useful[useless] = 0.0
    assert selected_for_tier(replace(seen, useful=useful), GROUPS, GAP, LARGEST, 44).index(useless) == 43
    dear = selected_for_tier(seen, GROUPS, GAP, LARGEST, 1)[0]
    size = steps.size.copy()
    size[dear] = 1e4
    assert selected_for_tier(replace(seen, size=size), GROUPS, GAP, LARGEST, 1)[0] != dear
    assert selected_for_tier(replace(seen, size=size), GROUPS, GAP, LARGEST, 1, by_cost=False)[0] == dear


def test_failures_cost_and_teach_nothing():
    steps, truth = pool()
    seen = measured(steps, np.where(np.arange(60) == 3, np.nan, truth), np.arange(16))
    assert 3 not in selected_for_tier(seen, GROUPS, GAP, LARGEST, 60)


def test_targets_are_met_by_what_is_expected():
    steps, truth = pool()
    seen = measured(steps, truth, np.arange(16))
    chosen = selected_for_tier(seen, GROUPS, GAP, Objective("dft_band_gap", "target", 1.34), 3)
    assert np.abs(truth[chosen] - 1.34).max() < 0.4


def test_nothing_measured_and_no_cheaper_value():
    steps, _ = pool()
    assert selected_for_tier(steps, GROUPS, GAP, LARGEST, 1, by_cost=False)[0] == np.argmax(steps.low)
    blind = replace(steps, low=np.full(60, np.nan))
    assert len(selected_for_tier(blind, GROUPS, GAP, LARGEST, 3)) == 3


def test_costs_are_a_power_of_the_size():
    steps, truth = pool()
    size = np.geomspace(10, 1000, 60)
    none = costs(replace(steps, size=size))
    assert none[-1] / none[0] == pytest.approx(100.0**2)
    cubic = costs(replace(measured(steps, truth, np.arange(60), size**3), size=size))
    assert cubic[-1] / cubic[0] == pytest.approx(100.0**3, rel=0.7)


def test_probabilities_of_stability():
    found = probability_at_most(np.array([-0.5, 0.05, 0.5, np.nan]), 0.05, 0.03)
    assert found == pytest.approx([1.0, 0.5, 0.0, 0.0], abs=1e-6)
