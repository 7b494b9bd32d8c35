"""Fine-tuning: the objective's figures, baselines, learning a toy reward, exact resume, another reference refused."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from pymatgen.symmetry.groups import sg_symbol_from_int_number

from generator import train_state
from generator.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from generator.constraints.conditions import Sampling
from generator.model import ModelConfig
from generator.policy import CrystalFormerGenerator, PolicyConfig
from generator.rl.config import BEFORE, FinetuneConfig, adapted
from generator.rl.dpo import Dpo, dpo_objective, ranked_pairs
from generator.rl.drift import UNLIMITED
from generator.rl.loop import Finetuner, LogitBias
from generator.rl.policy_gradient import baselines
from generator.rl.ppo import Ppo, clip_fraction, ppo_objective
from generator.rl.raft import Raft
from generator.rl.reinforce import Reinforce
from loop.contracts import Generator
from loop.errors import CheckpointError
from tests.test_generator_likelihood import SMALL, random_model

# one thing at a time: what the recipe adds is switched on where it is tested
PLAIN = {
    "algorithm": Ppo(ratio="crystal"),
    "tilt_learning_rate": 0.0,
    "space_group_learning_rate": 0.03,
    "kl_weight": 0.1,
}
PLAIN |= {"space_group_anchor": 0.5, "repeat_discount": 1.0, "element_limit": None}
CONFIG = FinetuneConfig(
    iterations=5,
    batch_size=32,
    epochs=2,
    minibatch_size=32,
    learning_rate=1.2e-2,
    space_groups=(221, 225),
    limits=UNLIMITED,  # a toy reward is to be hacked
    **PLAIN,
)


GROUPS_ALONE = {"iterations": 8, "epochs": 1, "learning_rate": 1e-6}  # the network stays as it is


def light_elements(candidates):
    """Toy reward: the share of light elements among the sites' species."""
    values = [0.0 if c is None else np.mean([e.Z <= 40 for e in c.structure.composition]) for c in candidates]
    return np.array(values), [{"heavy": 1 - v} for v in values]


def centring(group: int) -> int:
    """Lattice points in the conventional cell, by the first letter of the symbol."""
    return {"P": 1, "A": 2, "C": 2, "I": 2, "F": 4, "R": 3}[sg_symbol_from_int_number(group)[0]]


@pytest.fixture
def base(tmp_path) -> Checkpoint:
    model = random_model(ModelConfig(**(SMALL | {"layers": 1}), dropout=0.0), scale=0.15).float()
    with torch.no_grad():
        model.head.bias[model.rows["letter"].start] += 4  # small crystals, quick tests
    save_checkpoint(model, tmp_path / "base")
    return load_checkpoint(tmp_path / "base")


def tuner_of(base: Checkpoint, config=CONFIG, seed=3) -> Finetuner:
    return Finetuner(copy.deepcopy(base.model), base.model, config, seed=seed, reference_checksum=base.checksum)


def run(tuner: Finetuner, folder=None, reward=light_elements):
    return tuner.run(reward, name="t", round=1, progress=None, folder=folder)


def test_objective_of_the_reference():
    """Reference figures of the published update, with the KL term's gradient stopped (as the paper says)."""
    logp = torch.tensor([-10.0, -12.0, -9.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-10.1, -11.5, -9.0], dtype=torch.float64)
    log_ratio = logp.detach() - torch.tensor([-10.5, -12.2, -8.0], dtype=torch.float64)
    assert log_ratio.mean().item() == pytest.approx(-0.1)
    advantage = torch.tensor([1.0, -0.5, 0.2], dtype=torch.float64) - 0.1 * log_ratio
    objective = ppo_objective(logp, old, advantage, 0.2)
    objective.backward()
    assert objective.item() == pytest.approx(0.3113042, abs=1e-7)
    np.testing.assert_allclose(logp.grad.numpy(), [0.3499709, 0.0, 0.1], atol=1e-7)


def test_baselines():
    rewards, groups = np.array([1.0, 2.0, 6.0, 3.0]), np.array([2, 2, 225, 225])
    np.testing.assert_allclose(baselines(rewards, groups, "leave-one-out", 0.0), [11 / 3, 10 / 3, 2, 3])
    np.testing.assert_allclose(baselines(rewards, groups, "moving-average", 0.5), 0.5)
    expected = [(2 + 11 / 3) / 2, (1 + 10 / 3) / 2, (3 + 2) / 2, (6 + 3) / 2]
    np.testing.assert_allclose(baselines(rewards, groups, "space-group", 0.0), expected)


def test_moving_average_of_the_reference(base):
    """Means -1, -0.8, -0.5 give baselines -1, -0.99, -0.9655."""
    means, seen = iter((-1.0, -0.8, -0.5)), []
    tuner = tuner_of(
        base,
        replace(
            CONFIG, iterations=3, batch_size=8, kl_weight=0.0, algorithm=Ppo(ratio="crystal", baseline="moving-average")
        ),
    )
    assert tuner.config.algorithm.baseline_decay == 0.95

    def spread(candidates):
        seen.append(tuner.now.average)
        return next(means) + np.linspace(-0.1, 0.1, len(candidates)), [{} for _ in candidates]

    run(tuner, reward=spread)
    np.testing.assert_allclose([*seen[1:], tuner.now.average], [-1, -0.99, -0.9655])


WAYS = {
    "raft": {"algorithm": Raft()},
    "crystals": {},
    "parts": {"algorithm": Ppo(baseline="space-group"), "tilt_learning_rate": 0.1},
    "reinforce": {"algorithm": Reinforce(), "epochs": 1},
    "dpo": {"algorithm": Dpo(beta=0.1), "epochs": 3},
}


@pytest.mark.parametrize("way", WAYS)
def test_learns_a_toy_reward(base, way):
    rows = run(tuner_of(base, replace(CONFIG, iterations=10, kl_weight=0.01, **WAYS[way])))
    first, last = (np.mean([row["reward"] for row in part]) for part in (rows[:3], rows[-3:]))
    assert last > first + 0.1
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert rows[-1]["kl"] > 0.05


def test_kl_term_holds_the_policy(base):
    """With a heavy KL term and the same number of updates the policy stays nearer to the base."""
    runs = [run(tuner_of(base, replace(CONFIG, iterations=7, kl_weight=w))) for w in (0.0, 5.0)]
    free, held = (np.mean([row["kl"] for row in rows[-3:]]) for rows in runs)
    assert free > 0.1
    assert held < 0.7 * free


def test_preference_objective_of_the_reference():
    """Reference figures of the published DPO loss: z = (0.7, 0.3), loss 0.6685096 at beta 0.1."""
    chosen, rejected = torch.tensor([-10 + 10.5, -20 + 20.5]), torch.tensor([-11 + 10.8, -19 + 19.2])
    assert (chosen - rejected).tolist() == pytest.approx([0.7, 0.3], abs=1e-5)
    assert -dpo_objective(chosen, rejected, 0.1).item() == pytest.approx(0.6685096, abs=1e-6)
    better, worse = ranked_pairs(torch.tensor([0.1, 0.9, 0.1, 0.4, 0.1]))
    assert better.tolist() == [1, 3]
    assert set(worse.tolist()) <= {0, 2, 4}
    assert [len(part) for part in ranked_pairs(torch.zeros(6))] == [0, 0]


def test_clipping_by_parts():
    """At the sampling policy both clip nothing and have the score function's gradient; beyond, each part by itself."""
    old, advantage = torch.tensor([[-1.0, -2.0], [-3.0, -1.0]]), torch.tensor([1.0, -2.0])
    logp = old.clone().requires_grad_(True)
    ppo_objective(logp, old, advantage, 0.2).backward()
    np.testing.assert_allclose(logp.grad.numpy(), [[0.5, 0.5], [-1.0, -1.0]])
    moved = (old + torch.tensor([[0.5, 0.0], [0.0, 0.0]])).requires_grad_(True)
    ppo_objective(moved, old, advantage, 0.2).backward()
    np.testing.assert_allclose(moved.grad.numpy(), [[0.0, 0.5], [-1.0, -1.0]])  # only the part that went too far


def test_clip_fraction_is_of_what_is_clipped_and_of_all_minibatches(base):
    """Parts: one ratio of four is beyond 0.8 to 1.2; crystals: one of two."""
    old = torch.log(torch.tensor([[0.5, 0.5], [0.5, 0.5]]))
    logp = torch.log(torch.tensor([[0.75, 0.5], [0.55, 0.5]]))
    assert clip_fraction(logp, old, 0.2) == pytest.approx(0.25)
    assert clip_fraction(logp.sum(1), old.sum(1), 0.2) == pytest.approx(0.5)
    moves = replace(CONFIG, iterations=1, epochs=2, minibatch_size=8, algorithm=Ppo(ratio="crystal", target_kl=1e9))
    logged, seen = run(tuner_of(base, moves))[0]["clip_fraction"], []
    tuner, step = tuner_of(base, moves), Finetuner.step

    def watching(self, objective):
        seen.append(1)
        return step(self, objective)

    tuner.step = watching.__get__(tuner)
    run(tuner)
    assert len(seen) == 8
    # the first minibatch moves nothing yet and clips nothing: a mean over 8 of multiples of 1/8
    assert 0 < logged < 1 - 1 / 8
    assert logged * 64 == pytest.approx(round(logged * 64), abs=1e-4)


def test_kl_coefficient_adapts():
    assert adapted(0.1, 3.0, None) == 0.1
    assert adapted(0.1, 2.2, 2.0) == pytest.approx(0.11)
    assert adapted(0.1, 50.0, 2.0) == pytest.approx(0.12)  # at most a fifth
    assert adapted(0.1, -1.0, 2.0) == pytest.approx(0.08)


def test_tilt_moves_letters_and_elements_only(base):
    policy = copy.deepcopy(base.model)
    tilt, before = LogitBias(policy), policy.head.bias.detach().clone()
    policy.head.bias.grad = torch.ones_like(before)
    tilt.take_gradient()
    with torch.no_grad():
        tilt.value -= tilt.value.grad
    tilt.fold()
    moved = (policy.head.bias - before).detach()
    at = np.zeros(len(before), bool)
    for name in ("letter", "element"):
        at[policy.rows[name]] = True
    np.testing.assert_allclose(moved.numpy(), -at.astype(float))
    assert not tilt.value.any()


def test_the_kl_term_keeps_space_groups_spread(base):
    """A reward for one of two groups takes p(g) there; the KL term holds it at p_base exp(A / w)."""

    def cubic(candidates):
        return np.array([float(c is not None and c.origin.space_group == 225) for c in candidates]), [{}] * len(
            candidates
        )

    shares = []
    for weight in (0.0, 3.0):
        config = replace(CONFIG, **GROUPS_ALONE, space_group_learning_rate=0.3)
        tuner = tuner_of(base, replace(config, space_group_anchor=weight, kl_weight=0.0))
        shares.append(run(tuner, reward=cubic)[-1]["group_share"])
    assert shares[0] > 0.8
    assert 0.5 < shares[1] < 0.8


def test_early_stop(base):
    rows = run(
        tuner_of(
            base,
            replace(CONFIG, iterations=2, epochs=4, minibatch_size=16, algorithm=Ppo(ratio="crystal", target_kl=0.0)),
        )
    )
    assert all(row["updates"] == 2 for row in rows)  # one pass of two minibatches


EVERYTHING = {
    "algorithm": Ppo(self_imitation=0.1, replay=8, baseline="moving-average"),
    "tilt_learning_rate": 0.02,
    "repeat_discount": 0.5,
    "element_limit": 2.0,
    "kl_target": 0.5,
    "limits": replace(UNLIMITED, max_element_ratio=1e6),
}


RUNS = {"plain": {}, "everything": EVERYTHING, "dpo": {"algorithm": Dpo()}, "raft": {"algorithm": Raft()}}
RUNS["unevenly"] = {"algorithm": Raft(), "replay_evenly": False}
RUNS["averaged"] = {"algorithm": Raft(), "average_last": 0.75}  # killed when the mean holds one of three


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_resumed_equals_uninterrupted(base, tmp_path, changes):
    config = replace(CONFIG, iterations=4, minibatch_size=16, **changes)

    whole = tuner_of(base, config)
    rows = run(whole, reward=light_elements)

    class KilledError(Exception):
        pass

    calls = []

    def killing(candidates):
        calls.append(1)
        if len(calls) == 3:
            raise KilledError
        return light_elements(candidates)

    with pytest.raises(KilledError):
        run(tuner_of(base, config), tmp_path, killing)
    resumed = tuner_of(base, config)
    again = run(resumed, tmp_path, light_elements)
    timeless = [[{k: v for k, v in row.items() if "seconds" not in k} for row in each] for each in (again, rows)]
    assert timeless[0] == timeless[1]
    for a, b in zip(whole.policy.parameters(), resumed.policy.parameters(), strict=True):
        assert torch.equal(a, b)


def weights_after_each(tuner: Finetuner) -> list[dict[str, torch.Tensor]]:
    """Filled while the tuner runs: all its weights after each iteration."""
    seen, iterate = [], tuner.iterate

    def watched(*args):
        row = iterate(*args)
        seen.append({name: value.detach().clone() for name, value in tuner.policy.state_dict().items()})
        return row

    tuner.iterate = watched
    return seen


def assert_mean(policy, states):
    for name, value in policy.state_dict().items():
        if value.is_floating_point():
            expected = torch.stack([state[name] for state in states]).double().mean(0)
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=2e-6)


def test_a_run_ends_with_the_mean_of_its_last_weights(base, tmp_path):
    config = replace(CONFIG, iterations=5, algorithm=Raft(), average_last=0.5, tilt_learning_rate=0.05)
    tuner = tuner_of(base, config)
    states = weights_after_each(tuner)
    run(tuner, tmp_path)
    assert_mean(tuner.policy, states[2:])  # half of five, rounded up
    for name in ("head.weight", "head.bias", "space_group_logits"):
        assert (states[2][name] - states[4][name]).abs().max() > 1e-4  # not the same thing anyway
    finished = tuner_of(base, config)  # a finished one is not averaged twice
    run(finished, tmp_path)
    assert_mean(finished.policy, states[2:])
    longer = tuner_of(base, replace(config, iterations=8))  # learned on from the last weights; those before 5 are out
    more = weights_after_each(longer)
    run(longer, tmp_path)
    assert_mean(longer.policy, more)
    last = tuner_of(base, replace(config, average_last=0.0))
    states = weights_after_each(last)
    run(last)
    assert_mean(last.policy, states[-1:])


@pytest.mark.parametrize("keep_classes", [0.0, 0.7])
def test_crystals_are_learned_from_evenly_where_asked_for(base, keep_classes):
    """The first crystals of a buffer that grows are chosen at every update; evenly, later ones catch up."""
    config = replace(CONFIG, iterations=8, minibatch_size=16, epochs=4, algorithm=Raft(), keep_classes=keep_classes)

    def most(evenly):
        tuner = tuner_of(base, replace(config, replay_evenly=evenly))
        run(tuner, reward=light_elements)
        times = tuner.replay.learned.values()
        return max(times) / np.mean(list(times))

    assert most(evenly=True) < 0.8 * most(evenly=False)


def test_wrong_reference_and_settings_are_refused(base, tmp_path):
    run(tuner_of(base, replace(CONFIG, iterations=1)), tmp_path)
    other = Finetuner(copy.deepcopy(base.model), base.model, CONFIG, seed=3, reference_checksum="0" * 64)
    with pytest.raises(CheckpointError, match="tuned against the base"):
        run(other, tmp_path)
    with pytest.raises(CheckpointError, match="other settings of algorithm"):
        run(tuner_of(base, replace(CONFIG, algorithm=Ppo(ratio="crystal", clip=0.3))), tmp_path)
    (tmp_path / "finetune.safetensors").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        run(tuner_of(base), tmp_path)


def test_a_state_of_before_a_setting_goes_on_without_what_it_does(base, tmp_path):
    config, path = replace(CONFIG, iterations=1, **BEFORE), tmp_path / "finetune.safetensors"
    run(tuner_of(base, config), tmp_path)
    text, tensors = train_state.read(path)
    text["config"] = {key: value for key, value in text["config"].items() if key not in BEFORE}
    train_state.write(path, tensors, text)
    with pytest.raises(CheckpointError, match="other settings of average_last"):
        run(tuner_of(base, replace(config, average_last=0.5)), tmp_path)
    assert len(run(tuner_of(base, replace(config, iterations=2)), tmp_path)) == 2


def test_bad_reward_is_an_error(base):
    with pytest.raises(ValueError, match="finite"):
        run(tuner_of(base), reward=lambda c: (np.full(len(c), np.nan), [{} for _ in c]))


def test_generator_contract(base, tmp_path):
    generator = CrystalFormerGenerator(base, PolicyConfig(sampling=Sampling(elements=(8, 12))), CONFIG)
    assert isinstance(generator, Generator)
    proposed = generator.propose(30, seed=1, round=0)
    assert [c.id for c in proposed] == [c.id for c in generator.propose(30, seed=1, round=0)]
    assert all({e.Z for e in c.structure.composition} <= {8, 12} for c in proposed)
    assert {c.origin.source for c in proposed} == {"base"}
    assert proposed[0].origin.logp < 0
    small = CrystalFormerGenerator(base, PolicyConfig(max_atoms=12), CONFIG)
    assert all(len(c.structure) / centring(c.origin.space_group) <= 12 for c in small.propose(60, seed=1, round=0))

    generator = CrystalFormerGenerator(base, PolicyConfig(), replace(CONFIG, iterations=2))
    rows = generator.learn(light_elements, seed=0, round=1, checkpoint=tmp_path / "learn")
    assert {"iteration", "reward", "kl", "mean_heavy"} <= rows[0].keys()
    after = generator.propose(20, seed=2, round=1)
    assert after[0].origin.source == "policy"
    generator.save(tmp_path / "policy")
    other = CrystalFormerGenerator(base, PolicyConfig())
    other.load(tmp_path / "policy")
    assert [c.id for c in other.propose(20, seed=2, round=1)] == [c.id for c in after]
    stranger = Checkpoint(base.model, "f" * 64, {})
    with pytest.raises(CheckpointError, match="tuned from the base"):
        CrystalFormerGenerator(stranger).load(tmp_path / "policy")


def test_space_groups_are_learned(base):
    """A reward for one of two groups moves p(g) there, and leaves it alone where it is not to be learned."""

    def cubic(candidates):
        values = [float(c is not None and c.origin.space_group == 225) for c in candidates]
        return np.array(values), [{} for _ in values]

    learned, fixed = (
        tuner_of(
            base,
            replace(
                CONFIG,
                **GROUPS_ALONE,
                learn_space_groups=learn,
                space_group_learning_rate=0.3,
                space_group_anchor=0.0,
                kl_weight=0.0,
            ),
        )
        for learn in (True, False)
    )
    rows = run(learned, reward=cubic)
    assert np.mean([row["reward"] for row in rows[-3:]]) > np.mean([row["reward"] for row in rows[:3]]) + 0.1
    run(fixed, reward=cubic)
    assert torch.equal(fixed.policy.space_group_logits, base.model.space_group_logits)
