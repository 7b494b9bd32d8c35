"""Monitors and guards of the fine-tuning: each limit ends a run, repeats and over-represented elements cost."""

import copy
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from generator.model import ModelConfig
from generator.representation.sequence import Crystals
from generator.representation.tokens import CrystalBatch
from generator.rl.config import FinetuneConfig
from generator.rl.dpo import Dpo
from generator.rl.drift import (
    PSEUDO_SHARE,
    DriftLimits,
    drift,
    element_ratios,
    element_shares,
    keys,
    over_represented,
    running_shares,
)
from generator.rl.lessons import Lessons
from generator.rl.loop import Finetuner
from generator.rl.ppo import Ppo
from generator.rl.raft import Raft
from generator.rl.replay import ReplayBuffer
from generator.rl.rollout import policy_log_prob
from generator.rl.strata import (
    CLASSES,
    LIFT,
    STRATA,
    aims,
    better_half,
    capped,
    chances,
    class_shares,
    classes,
    prototypes,
    strata,
    stratum_shares,
    weights,
)
from loop.errors import ConfigError
from tests.test_generator_likelihood import SMALL, random_model


def batch_of(*crystals):
    """Crystals as (space group, letters, elements), with the same coordinates and cell."""
    n = len(crystals)
    W, A = np.zeros((n, 5), np.int8), np.zeros((n, 5), np.int8)
    for row, (_, letters, elements) in enumerate(crystals):
        W[row, : len(letters)], A[row, : len(elements)] = letters, elements
    G = np.array([crystal[0] for crystal in crystals], np.int16)
    return CrystalBatch(G, W, A, np.zeros((n, 5, 3)), np.ones((n, 6)))


SALT, LAMP, HOT = (225, (1, 2), (11, 17)), (221, (1, 2), (57, 5)), (216, (1, 3), (94, 8))


def test_numbers_of_a_batch():
    batch = batch_of(SALT, SALT, LAMP, HOT)
    p = np.zeros(230)
    p[[224, 220]] = 0.75, 0.25
    found = drift(batch, element_ratios(element_shares(batch), np.zeros(119)), p)
    assert found["unique"] == 0.75
    assert found["f_block"] == 0.5  # lanthanum and plutonium
    assert found["radioactive"] == 0.25
    assert found["group_share"] == 0.75
    assert found["group_entropy"] == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert found["element_ratio"] == pytest.approx((0.5 + 0.002) / 0.002)


def test_keys_tell_elements_letters_and_groups_apart():
    found = keys(batch_of(SALT, SALT, (225, (1, 2), (17, 11)), (221, (1, 2), (11, 17)), (225, (1, 3), (11, 17))))
    assert found[0] == found[1]
    assert len(set(found)) == 4


BREACHES = {
    "max_kl": {"kl": 60.0},
    "min_entropy": {"entropy": 1.0},
    "min_valid": {"valid": 0.1},
    "min_unique": {"unique": 0.4},
    "max_known": {"known": 0.95},
    "max_replay": {"replay": 0.95},
    "max_element_ratio": {"element_ratio": 25.0},
    "max_f_block": {"f_block": 0.95},
    "max_radioactive": {"radioactive": 0.6},
    "max_group_share": {"group_share": 0.95},
    "min_group_entropy": {"group_entropy": 0.1},
}
HEALTHY = {"kl": 1.0, "entropy": 20.0, "valid": 0.8, "unique": 0.95, "known": 0.2, "replay": 0.1, "element_ratio": 2.0}
HEALTHY |= {"f_block": 0.4, "radioactive": 0.05, "group_share": 0.2, "group_entropy": 3.0}


@pytest.mark.parametrize("limit", BREACHES)
def test_each_limit_ends_a_run(limit):
    limits = replace(DriftLimits(window=2), min_entropy=5.0)
    assert limits.passed([HEALTHY] * 5) is None
    bad = HEALTHY | BREACHES[limit]
    assert limits.passed([HEALTHY, bad]) is None or limit in ("max_kl", "max_element_ratio")
    assert limit in limits.passed([HEALTHY, bad, bad])
    assert replace(limits, **{limit: None}).passed([bad, bad]) is None
    assert limits.passed([bad]) is None  # a window is not full
    (metric,) = BREACHES[limit]
    assert limits.passed([{k: v for k, v in HEALTHY.items() if k != metric}] * 2) is None  # no number, no verdict


def test_every_limit_is_tested():
    assert set(asdict(DriftLimits())) == {*BREACHES, "window"}


@pytest.fixture(scope="module")
def base():
    model = random_model(ModelConfig(**SMALL, dropout=0.0), scale=0.15).float()
    with torch.no_grad():
        model.head.bias[model.rows["letter"].start] += 3  # small crystals, quick tests
    return model


CONFIG = FinetuneConfig(iterations=6, batch_size=16, minibatch_size=16, epochs=1, space_groups=(221, 225))


def tuned(base, config, reward):
    tuner = Finetuner(copy.deepcopy(base), base, config, seed=1, reference_checksum="a")
    return tuner, tuner.run(reward, name="t", round=1, progress=None, folder=None)


def test_a_drifting_run_stops_and_says_why(base):
    limits = DriftLimits(window=2, max_element_ratio=None)
    all_invalid = lambda candidates: (np.zeros(len(candidates)), [{"guard_invalid": 1.0}] * len(candidates))  # noqa: E731
    tuner, rows = tuned(base, replace(CONFIG, limits=limits), all_invalid)
    assert len(rows) == 2
    assert rows[-1]["stopped"] == tuner.now.stopped == "valid 0 is below min_valid 0.2"
    assert "stopped" not in rows[0]


def test_repeats_are_discounted_within_and_across_batches():
    memory = ReplayBuffer(0)
    rewards = np.array([1.0, 1.0, 0.5, -1.0, 0.0])
    np.testing.assert_allclose(memory.discounted(rewards, list("aabaa"), 0.5), [1.0, 0.5, 0.5, -1.0, 0.0])
    np.testing.assert_allclose(memory.discounted(rewards[:3], list("abc"), 0.5), [0.25, 0.5, 0.5])


def test_the_best_are_kept_once_each():
    memory = ReplayBuffer(2)
    batch = batch_of(SALT, LAMP, SALT, HOT)
    memory.keep(batch, np.array([0.5, 0.9, 0.6, 0.0]), keys(batch))
    assert memory.best_rewards.tolist() == [0.9, 0.6]
    memory.keep(batch_of(HOT), np.array([0.7]), keys(batch_of(HOT)))
    assert memory.best_rewards.tolist() == [0.9, 0.7]
    assert memory.best.G.tolist() == [221, 216]
    other = ReplayBuffer(2)
    memory.learn_from(np.array([1, 1, 1]))
    other.restore({}, memory.learned, memory.best_keys, memory.tensors())
    assert other.best.A.tolist() == memory.best.A.tolist()
    assert memory.freshness.tolist() == other.freshness.tolist() == [1.0, 1 / 16]
    memory.discounted(np.ones(2), [memory.best_keys[0]] * 2, 0.2)  # drawn twice
    assert memory.freshness.tolist() == [1 / 2, 1 / 16]


def test_over_represented_elements_cost():
    batch, ratios = batch_of(SALT, LAMP), np.ones(119)
    ratios[57], ratios[17] = 6.0, 1.5
    np.testing.assert_allclose(over_represented(batch, ratios, 3.0), [1.0, 0.5])


def rising(candidates):
    """A reward that says nothing of the crystals, the same in each batch."""
    return np.linspace(0.1, 0.2, len(candidates)), [{}] * len(candidates)


def test_replay_pulls_towards_the_best(base):
    """The same crystals, with and without self-imitation: what was kept becomes likelier by it."""
    config = replace(CONFIG, iterations=3, learning_rate=3e-3, kl_weight=0.0, limits=DriftLimits(99))
    tuners = [tuned(base, replace(config, algorithm=Ppo(replay=4, self_imitation=w)), rising)[0] for w in (0.0, 1.0)]
    assert tuners[0].replay.best is None  # nothing is kept where nothing is imitated
    crystals = Crystals.from_batch(tuners[1].replay.best, base.head.weight)
    without, with_ = (t.log_prob(crystals).sum().item() for t in tuners)
    assert with_ > without


def test_raft_learns_the_better_half(base):
    """Maximum likelihood of the remembered crystals that are not below the mean; the others are left alone."""
    config = replace(CONFIG, iterations=6, epochs=4, learning_rate=3e-3, kl_weight=0.0, limits=DriftLimits(99))
    config = replace(config, keep_classes=0.0)  # of all, whatever their classes
    tuner, rows = tuned(base, config, rising)
    memory = tuner.replay
    np.testing.assert_array_equal(memory.good, np.flatnonzero(memory.best_rewards >= np.mean(memory.best_rewards)))
    assert 0 < len(memory.good) < len(memory.best)
    gains = []
    for chosen in (memory.good, np.setdiff1d(np.arange(len(memory.best)), memory.good)):
        crystals = Crystals.from_batch(memory.best[chosen], base.head.weight)
        ours, before = (
            policy_log_prob(m, crystals, config.conditions, with_groups=True).sum(1).mean().item()
            for m in (tuner.policy, base)
        )
        gains.append(ours - before)
    assert gains[0] > gains[1] + 0.5
    assert rows[-1]["updates"] == 4


def test_nothing_rewarded_moves_nothing(base):
    nothing = lambda candidates: (np.zeros(len(candidates)), [{}] * len(candidates))  # noqa: E731
    tuner, rows = tuned(base, replace(CONFIG, iterations=2, limits=DriftLimits(99)), nothing)
    assert [row["updates"] for row in rows] == [0, 0]
    assert all(torch.equal(a, b) for a, b in zip(tuner.policy.parameters(), base.parameters(), strict=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 0},
        {"kl_weight": -1.0},
        {"repeat_discount": 1.5},
        {"element_limit": -1.0},
        {"keep_classes": 1.2},
    ],
)
def test_nonsense_is_refused(changes):
    with pytest.raises(ConfigError, match=next(iter(changes))):
        FinetuneConfig(**changes)


@pytest.mark.parametrize(
    ("kind", "option"),
    [(Raft, {"replay": 0}), (Ppo, {"clip": 0.0}), (Ppo, {"target_kl": -1.0}), (Dpo, {"beta": 0.0})],
)
def test_nonsense_options_of_an_algorithm_are_refused(kind, option):
    with pytest.raises(ConfigError, match=next(iter(option))):
        kind(**option)


OXIDE, FLUORIDE = (225, (1, 2), (12, 8)), (225, (1, 2), (3, 9))
NITRIDE, ALLOY = (216, (1, 3), (31, 7)), (221, (1, 2), (29, 79))
CLASSIFIED = {"oxides": OXIDE, "halides": FLUORIDE, "pnictides": NITRIDE, "intermetallics": ALLOY}


def test_classes_are_those_of_the_most_electronegative_element():
    batch = batch_of(*CLASSIFIED.values(), (225, (1, 2), (57, 16)), (225, (1, 2), (22, 6)), (225, (1,), (10,)))
    assert [CLASSES[i] for i in classes(batch)] == [*CLASSIFIED, "chalcogenides", "others", "intermetallics"]
    assert (strata(batch) % 2).tolist() == [0, 0, 0, 0, 1, 0, 0]  # lanthanum
    assert class_shares(batch)["share_oxides"] == pytest.approx(1 / 7)
    assert stratum_shares(batch).sum() == pytest.approx(1)


def test_decorations_are_one_prototype():
    found = prototypes(batch_of(OXIDE, FLUORIDE, NITRIDE, (225, (2, 1), (11, 17))))
    assert found.tolist() == ["225 1 2", "225 1 2", "216 1 3", "225 1 2"]


def test_each_class_is_judged_by_itself_and_weighs_what_the_reference_gives_it():
    """Alloys earn ten times what oxides do, and are three in four: half of the learning is still of oxides."""
    batch = batch_of(*[ALLOY] * 3, OXIDE)
    of_row, rewards = strata(batch), np.array([10.0, 10.0, 10.0, 1.0])
    assert better_half(rewards, of_row).tolist() == [0, 1, 2, 3]
    shares = stratum_shares(batch_of(ALLOY, OXIDE))
    assert weights(of_row, shares, np.ones(4)) == pytest.approx([1 / 6, 1 / 6, 1 / 6, 1 / 2])


def test_a_part_may_go_to_what_pays_best():
    """Two of four alloys pay best; seven tenths of the half that the reference gives oxides stay with the one oxide."""
    batch, rewards = batch_of(*[ALLOY] * 4, OXIDE), np.array([10.0, 10.0, 6.0, 6.0, 1.0])
    of_row, shares = strata(batch), stratum_shares(batch_of(ALLOY, OXIDE))
    halves = {1.0: [0.25, 0.25, 0, 0, 0.5], 0.7: [0.325, 0.325, 0, 0, 0.35], 0.0: [0.5, 0.5, 0, 0, 0]}
    for kept, wanted in halves.items():
        assert chances(of_row, rewards, shares, kept, np.ones(5)) == pytest.approx(np.array(wanted))
    fresh = np.array([1.0, 1 / 3, 1.0, 1.0, 1 / 9])  # within a class alone: there is but one oxide
    assert chances(of_row, rewards, shares, 1.0, fresh) == pytest.approx(np.array([0.375, 0.125, 0, 0, 0.5]))


def test_no_prototype_is_learned_from_beyond_its_cap():
    """What is over goes to all others in proportion, which may bring a second one to its cap."""
    given, kinds = np.array([0.3, 0.3, 0.24, 0.1, 0.06]), np.array([0, 0, 1, 2, 3])
    found = capped(given, kinds, np.array([0.2, 0.4, 1.0, 1.0]))
    assert found == pytest.approx(np.array([0.1, 0.1, 0.4, 0.25, 0.15]))  # 0.24 would have become 0.48
    assert capped(given, kinds, np.ones(4)) == pytest.approx(given)
    # too few kinds for their caps: in proportion to these
    assert capped(given, kinds, np.array([0.1, 0.1, 0.1, 0.2])) == pytest.approx(np.array([0.1, 0.1, 0.2, 0.2, 0.4]))


def test_a_class_that_is_drawn_too_seldom_is_learned_from_more():
    shares, drawn = stratum_shares(batch_of(ALLOY, OXIDE)), np.zeros(STRATA)
    assert aims(shares, shares) == pytest.approx(shares)
    alloys, oxides = np.flatnonzero(shares)
    drawn[[alloys, oxides]] = 0.6 - PSEUDO_SHARE, 0.4 - PSEUDO_SHARE
    assert aims(shares, drawn)[[alloys, oxides]] == pytest.approx(np.array([0.16, 0.36]) / 0.52)
    drawn[[alloys, oxides]] = 0.998, 0.0  # hardly any: a ratio without bound, but for the limit
    assert aims(shares, drawn)[[alloys, oxides]] == pytest.approx(np.array([1 / LIFT, LIFT]) / (LIFT + 1 / LIFT))


def test_what_the_policy_draws_too_much_of_is_learned_from_less():
    """Of a buffer that is rock salt by half, a fifth may be; where the policy draws two fifths of it, a tenth."""
    replay = ReplayBuffer(99)
    salts = [(225, (1, 2), (metal, 9)) for metal in (3, 11, 19, 37, 55)]
    others = [
        (221, (1, 2), (29, 79)),
        (216, (1, 3), (31, 7)),
        (194, (1, 3), (30, 8)),
        (229, (1,), (74,)),
        (227, (1,), (6,)),
    ]
    batch = batch_of(*salts, *others)
    replay.keep(batch, np.ones(10), keys(batch))
    config = replace(CONFIG, keep_classes=1.0, prototype_limit=0.2, minibatch_size=50)
    wanted, salt = stratum_shares(batch), replay.best.G == 225
    for drawn, share in (({}, 0.2), ({"225 1 2": 0.4}, 0.1)):
        lessons = Lessons(replay, config)
        lessons.choose(np.random.default_rng(0), wanted, drawn)
        rows = np.concatenate([lessons.choose(np.random.default_rng(i), wanted, drawn) for i in range(40)])
        assert salt[rows].mean() == pytest.approx(share, abs=0.03)
    free = Lessons(replay, replace(config, prototype_limit=1.0))
    rows = np.concatenate([free.choose(np.random.default_rng(i), wanted, {}) for i in range(40)])
    assert salt[rows].mean() == pytest.approx(0.5, abs=0.05)


def test_running_shares_of_names():
    first = running_shares({}, np.array(["a", "a", "b", "b"]))
    assert first == {"a": 0.5, "b": 0.5}
    second = running_shares(first, np.array(["a", "a", "c", "a"]))
    assert second == pytest.approx({"a": 0.525, "b": 0.45, "c": 0.025})
    assert running_shares({"rare": 0.001}, np.array(["a"])) == {"a": pytest.approx(0.1)}


def favours_intermetallics(candidates):
    """A hundred times as much for crystals without a non-metal."""
    metal = [c is not None and all(e.is_metal for e in c.structure.composition) for c in candidates]
    return np.where(metal, 1.0, 0.01), [{}] * len(candidates)


def test_raft_by_class_learns_from_every_class(base):
    """What is learned from holds the classes as is aimed at, where otherwise it would be one class alone."""
    config = replace(CONFIG, iterations=4, batch_size=32, kl_weight=0.0, limits=DriftLimits(99), keep_classes=1.0)
    config = replace(config, prototype_limit=1.0)
    tuner, rows = tuned(base, config, favours_intermetallics)
    best = tuner.replay.best
    aim = aims(tuner.stratum_shares, np.array(tuner.now.strata))
    drawn = [strata(best[tuner.lessons.choose(tuner.rng, aim, {})]) for _ in range(20)]
    there = np.isin(np.arange(STRATA), strata(best))  # strata without a crystal leave their share to the others
    wanted = np.where(there, aim, 0.0) / aim[there].sum()
    found = np.bincount(np.concatenate(drawn), minlength=STRATA) / sum(map(len, drawn))
    np.testing.assert_allclose(found, wanted, atol=0.12)
    best_half = tuner.replay.best_rewards[tuner.replay.good]
    assert best_half.min() > 0.1  # without classes all that is learned from is metal
    assert sum(rows[-1][f"share_{name}"] for name in CLASSES) == pytest.approx(1)
