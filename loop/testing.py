"""Whether parts keep their contracts: one suite per contract of `loop.contracts`, for packages' own parts as for ours.

    from loop.testing import check_oracle, failures
    assert not failures(check_oracle(MyOracle(), candidates))

Each check compares numbers: seeds repeat, results come in order and one per candidate, a crystal's result does not
depend on its neighbours in a batch, failures are values, what is saved is what is loaded, nothing is changed, units are
those of `loop.properties`. Potentials have theirs in `oracles.potentials.conformance`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from loop.contracts import Acquisition, Generator, Oracle, Reward, Surrogate
from loop.findings import (
    Cut,
    CutOff,
    Finding,
    alike,
    close,
    failures,
    ids,
    overlapping,
    refuses,
    require,
    run_checks,
    same,
    untouched,
)
from loop.properties import spec_of
from loop.reward_sources import RewardSource
from loop.values import Candidate, Evaluation, failed

__all__ = ["Finding", "check_acquisition", "check_generator", "check_oracle", "check_reward", "check_reward_source",
           "check_surrogate", "failures"]  # fmt: skip


def check_generator(
    make: Callable[[], Generator],
    reward: Reward,
    folder: Path,
    *,
    n: int = 6,
    log_prob: Callable[[Generator, Sequence[Candidate]], np.ndarray] | None = None,
) -> list[Finding]:
    """The suite of `Generator`.

    Args:
        make: gives a fresh generator each time, always the same one.
        reward: to learn from.
        folder: to save into.
        n: crystals to draw.
        log_prob: log-probabilities (n,) in nats of what a generator proposed last, computed another way; needed where
            it claims any (`Origin.logp`).
    """

    def drawn(generator: Generator, seed: int = 5) -> list[Candidate]:
        return generator.propose(n, seed=seed, round=1)

    def proposals() -> str:
        found = drawn(make())
        require(0 < len(found) <= n, f"asked for {n} crystals, it gave {len(found)}")
        require(all(isinstance(c, Candidate) and c.round == 1 for c in found), "expected candidates of the round asked")
        sound = all(np.isfinite(c.structure.lattice.matrix).all() and c.structure.volume > 0 for c in found)
        require(sound, "a crystal has no cell")
        return f"{len(found)} of {n}"

    def seeds() -> None:
        same(ids(drawn(make())), ids(drawn(make())), "the same seed on a fresh generator")
        require(ids(drawn(make())) != ids(drawn(make(), 6)), "another seed gives the same crystals")

    def purity() -> None:
        generator = make()
        same(ids(drawn(generator)), ids(drawn(generator)), "the same seed asked twice")

    def likelihood() -> str:
        generator = make()
        found = drawn(generator)
        claimed = [c.origin.logp for c in found]
        if all(value is None for value in claimed):
            return "claims no likelihood"
        require(log_prob is not None, "it claims a likelihood: give `log_prob` to compare with")
        assert log_prob is not None
        close(np.array(claimed, dtype=float), log_prob(generator, found), "the likelihood claimed", atol=1e-3)
        return f"{len(found)} crystals, as claimed"

    def learning() -> str:
        first, second = make(), make()
        rows, again = (g.learn(reward, seed=3, round=1) for g in (first, second))
        needed = {"iteration", "reward", "kl"}
        require(all(needed <= set(row) for row in rows), f"each row of metrics needs {sorted(needed)}")
        close([row["reward"] for row in rows], [row["reward"] for row in again], "rewards with the same seed")
        same(ids(drawn(first)), ids(drawn(second)), "proposals after learning with the same seed")
        return f"{len(rows)} iterations"

    def resuming() -> str:
        whole, cut, rest = make(), make(), make()
        rows = whole.learn(reward, seed=3, round=1, checkpoint=folder / "whole")
        try:
            cut.learn(Cut(reward, len(rows) // 2 + 1), seed=3, round=1, checkpoint=folder / "cut")
        except CutOff:
            pass
        else:
            require(not rows, "the reward was asked less often than there are iterations")
        after = rest.learn(reward, seed=3, round=1, checkpoint=folder / "cut")
        require(len(after) == len(rows), f"cut off and resumed it has {len(after)} rows, uncut {len(rows)}")
        same(ids(drawn(rest)), ids(drawn(whole)), "proposals after a cut-off and resumed learning")
        return f"cut off after {len(rows) // 2} of {len(rows)} iterations"

    def saving() -> None:
        generator, other = make(), make()
        generator.learn(reward, seed=4, round=1)
        generator.save(folder / "saved")
        other.load(folder / "saved")
        same(ids(drawn(other)), ids(drawn(generator)), "proposals of what was saved and loaded")
        refuses(lambda: other.load(folder / "nothing"))

    return run_checks(
        {"proposals": proposals, "seeds": seeds, "purity": purity, "likelihood": likelihood, "learning": learning,
         "resuming": resuming, "saving": saving}
    )  # fmt: skip


def check_surrogate(
    make: Callable[[], Surrogate],
    candidates: Sequence[Candidate],
    evaluations: Sequence[Evaluation],
    pool: Sequence[Candidate],
    folder: Path,
) -> list[Finding]:
    """The suite of `Surrogate`.

    Args:
        make: gives a fresh surrogate each time, always the same one.
        candidates: labelled ones, at least 8.
        evaluations: their labels, all usable, in order.
        pool: others.
        folder: to save into.
    """

    def fitted() -> Surrogate:
        surrogate = make()
        surrogate.fit(candidates, evaluations)
        return surrogate

    whole = fitted()

    def prediction() -> str:
        found = whole.predict(pool)
        require(
            found.mean.shape == (len(pool), len(found.names)), f"expected a row per candidate, got {found.mean.shape}"
        )
        require(bool(np.isfinite(found.mean).all() and (found.std > 0).all()), "expected finite means and std above 0")
        return f"{len(pool)} candidates, {', '.join(found.names)}"

    def units() -> str:
        found = whole.predict(pool)
        labelled = {name: q.unit for e in evaluations for name, q in e.properties.items()}
        for name, unit in zip(found.names, found.units, strict=True):
            require(labelled.get(name, unit) == unit, f"{name} in {unit}, labelled in {labelled.get(name)}")
        return ", ".join(found.units)

    def order() -> None:
        found, back = whole.predict(pool), whole.predict(pool[::-1])
        close(found.mean, back.mean[::-1], "means of the pool the other way round")
        close(found.std, back.std[::-1], "standard deviations of the pool the other way round")

    def batches() -> None:
        found, single = whole.predict(pool), [whole.predict([candidate]) for candidate in pool]
        close(found.mean, np.concatenate([one.mean for one in single]), "means one by one", rtol=1e-4)
        close(found.std, np.concatenate([one.std for one in single]), "standard deviations one by one", rtol=1e-4)

    def learning() -> str:
        found = whole.predict(candidates)
        told = []
        for name in found.names:
            labels = np.array([evaluation.value(name) for evaluation in evaluations])
            there = np.isfinite(labels)
            if there.sum() < 2:
                continue
            error = np.abs(found.column(name)[0] - labels)[there].mean()
            spread = np.abs(labels[there] - labels[there].mean()).mean()
            require(error <= spread, f"{name}: off by {error:.3g} on its own labels, their mean by {spread:.3g}")
            told.append(f"{name} {error:.3g} of {spread:.3g}")
        return "mean error on its own labels: " + "; ".join(told)

    def repeatability() -> None:
        close(whole.predict(pool).mean, fitted().predict(pool).mean, "means of a second fit")

    def failed_labels() -> None:
        bad = Evaluation(pool[0].id, evaluations[0].oracle, evaluations[0].settings, failed("exploded"))
        surrogate = make()
        surrogate.fit([*candidates, pool[0]], [*evaluations, bad])
        close(whole.predict(pool).mean, surrogate.predict(pool).mean, "means with a failed label among the others")

    def saving() -> None:
        whole.save(folder / "surrogate")
        other = make()
        other.load(folder / "surrogate")
        found, again = whole.predict(pool), other.predict(pool)
        close(found.mean, again.mean, "means of what was saved and loaded")
        close(found.std, again.std, "standard deviations of what was saved and loaded")
        refuses(lambda: other.load(folder / "nothing"))

    def inputs() -> None:
        untouched([*candidates, *pool], lambda: fitted().predict(pool))

    return run_checks(
        {"prediction": prediction, "units": units, "order": order, "batches": batches, "learning": learning,
         "repeatability": repeatability, "failed labels": failed_labels, "saving": saving, "inputs": inputs}
    )  # fmt: skip


def check_acquisition(acquisition: Acquisition, surrogate: Surrogate, candidates: Sequence[Candidate]) -> list[Finding]:
    """The suite of `Acquisition`, on a surrogate that is fitted and a pool of at least 6 different crystals."""
    k = len(candidates) // 2

    def chosen(pool: Sequence[Candidate] = candidates, k: int = k, seed: int = 0) -> list[int]:
        return list(acquisition.select(pool, surrogate, k, seed=seed))

    def indices() -> str:
        found = chosen()
        require(len(found) == k == len(set(found)), f"expected {k} distinct indices, got {found}")
        require(all(isinstance(i, int) and 0 <= i < len(candidates) for i in found), f"no index of the pool: {found}")
        return f"{k} of {len(candidates)}"

    def small_pools() -> None:
        require(sorted(chosen(candidates[:2], k=5)) == [0, 1], "of a pool that is too small, expected all of it")
        require(chosen(k=0) == [], "for k = 0, expected nothing")

    def seeds() -> None:
        same(chosen(), chosen(), "the same seed asked twice")

    def order() -> str:
        if chosen() != chosen(seed=1):
            return "draws by its seed"
        back = [candidates[::-1][i].id for i in chosen(candidates[::-1])]
        require(set(back) == {candidates[i].id for i in chosen()}, "the pool the other way round: other crystals")
        return "does not matter"

    def inputs() -> None:
        before = surrogate.predict(candidates).mean
        untouched(candidates, chosen)
        close(before, surrogate.predict(candidates).mean, "the surrogate's predictions afterwards")

    return run_checks(
        {"indices": indices, "small pools": small_pools, "seeds": seeds, "order": order, "inputs": inputs}
    )


def check_oracle(
    oracle: Oracle, candidates: Sequence[Candidate], *, hopeless: Candidate | None = None
) -> list[Finding]:
    """The suite of `Oracle`.

    Args:
        oracle: any.
        candidates: at least 2 different crystals that it can measure.
        hopeless: one that it cannot; by default atoms on top of each other.
    """
    bad = hopeless or overlapping(candidates[0])
    found = oracle.evaluate(candidates)

    def identity() -> str:
        require("@" in oracle.name and bool(oracle.settings_hash), "expected a name@version and a hash of settings")
        own = {(e.oracle, e.settings) for e in found}
        require(own == {(oracle.name, oracle.settings_hash)}, f"its evaluations say {own}")
        return f"{oracle.name}, settings {oracle.settings_hash}"

    def one_per_candidate() -> None:
        same([e.candidate_id for e in found], ids(candidates), "ids of evaluations and of candidates")
        require(oracle.evaluate([]) == [], "for no candidate, expected no evaluation")
        wrong = [f"{e.candidate_id} {e.status}: {e.message}" for e in found if not e.ok]
        require(not wrong, "; ".join(wrong))

    def order() -> None:
        alike(found, oracle.evaluate(candidates[::-1])[::-1], "the other way round")

    def batches() -> None:
        alike(found, [oracle.evaluate([candidate])[0] for candidate in candidates], "one by one")

    def repeatability() -> None:
        alike(found, oracle.evaluate(candidates), "asked again")

    def failures_are_values() -> str:
        mixed = oracle.evaluate([candidates[0], bad, *candidates[1:]])
        require(len(mixed) == len(candidates) + 1, f"expected {len(candidates) + 1} evaluations, got {len(mixed)}")
        require(not mixed[1].ok, "a crystal that cannot be measured has a label")
        require(bool(mixed[1].message), "a failure without a message")
        alike(found, [mixed[0], *mixed[2:]], "beside a failure")
        return f"{mixed[1].status}: {mixed[1].message}"

    def units() -> str:
        told = {}
        for evaluation in found:
            for name, quantity in evaluation.properties.items():
                wanted = spec_of(name).unit or quantity.unit
                require(quantity.unit == wanted, f"{name} is in {quantity.unit}, expected {wanted}")
                require(bool(np.isfinite(quantity.value)), f"{name} is {quantity.value}: leave out what is unknown")
                told[name] = quantity.unit
            if "energy" in evaluation.properties:
                require(evaluation.energy_type is not None, "an energy without its type")
        return ", ".join(f"{name} {unit}" for name, unit in sorted(told.items()))

    def crystals() -> None:
        for candidate, evaluation in zip(candidates, found, strict=True):
            if evaluation.structure is not None:
                formula = evaluation.structure.composition.reduced_formula
                require(formula == candidate.formula, f"{candidate.formula} came back as {formula}")

    def inputs() -> None:
        untouched([*candidates, bad], lambda: oracle.evaluate([*candidates, bad]))

    return run_checks(
        {"identity": identity, "one per candidate": one_per_candidate, "order": order, "batches": batches,
         "repeatability": repeatability, "failures are values": failures_are_values, "units": units,
         "crystals": crystals, "inputs": inputs}
    )  # fmt: skip


def check_reward_source(source: RewardSource, candidates: Sequence[Candidate]) -> list[Finding]:
    """The suite of `RewardSource`, on at least 3 different crystals."""

    def table(pool: Sequence[Candidate]) -> np.ndarray:
        """Values, standard deviations and masks, a row per crystal."""
        judged = source(pool)
        masks = [*judged.refused.values(), *judged.abstained.values()]
        columns = [judged.values, judged.std, *masks]
        require(all(np.shape(c) == (len(pool),) for c in columns), f"expected arrays of shape ({len(pool)},)")
        require(all(np.asarray(mask).dtype == bool for mask in masks), "expected masks of true and false")
        return np.column_stack([np.asarray(column, dtype=float) for column in columns])

    def shapes() -> str:
        found = table(candidates)
        require(bool((np.nan_to_num(found[:, 1]) >= 0).all()), "a standard deviation below 0")
        require(bool(np.isfinite(found[:, 0]).any()), "not one crystal has a value")
        return f"values from {np.nanmin(found[:, 0]):.3g} to {np.nanmax(found[:, 0]):.3g}"

    def order() -> None:
        close(table(candidates), table(candidates[::-1])[::-1], "the other way round")

    def batches() -> None:
        close(table(candidates), np.vstack([table([candidate]) for candidate in candidates]), "one by one", rtol=1e-4)

    def repeatability() -> None:
        close(table(candidates), table(candidates), "asked again")

    def inputs() -> None:
        untouched(candidates, lambda: source(candidates))

    return run_checks(
        {"shapes": shapes, "order": order, "batches": batches, "repeatability": repeatability, "inputs": inputs}
    )


def check_reward(make: Callable[[], Reward], candidates: Sequence[Candidate]) -> list[Finding]:
    """The suite of `Reward`, on at least 3 different crystals; `make` gives a fresh one each time."""
    batch = [*candidates, None]

    def shapes() -> str:
        rewards, rows = make()(batch)
        require(
            np.shape(rewards) == (len(batch),) and len(rows) == len(batch), "expected a reward and a row per sample"
        )
        require(bool(np.isfinite(rewards).all()), "a reward is not finite")
        return f"{rewards.min():.3g} to {rewards.max():.3g}"

    def no_crystal() -> None:
        rewards, _ = make()(batch)
        require(rewards[-1] == rewards.min(), "a sample that is no crystal is rewarded above one that is")

    def order() -> None:
        close(make()(batch)[0], make()(batch[::-1])[0][::-1], "the other way round")

    def memory() -> None:
        reward = make()
        close(reward(batch)[0], reward(batch)[0], "the same batch again")

    def inputs() -> None:
        untouched(candidates, lambda: make()(batch))

    return run_checks({"shapes": shapes, "no crystal": no_crystal, "order": order, "memory": memory, "inputs": inputs})
