"""Every implementation of a contract passes its suite, and each check of a suite has been seen to fail."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
import torch

import oracles.dft.oracle as dft
from flows.known_labels import KnownLabels
from flows.parallel import ParallelOracle
from flows.surrogate import CampaignSurrogate
from generator.checkpoint import Checkpoint
from generator.likelihood import Crystals, log_prob
from generator.model import ModelConfig
from generator.policy import CrystalFormerGenerator, PolicyConfig
from generator.rl.config import FinetuneConfig
from loop.errors import CheckpointError
from loop.findings import failures
from loop.novelty import NoveltyIndex
from loop.reward import STABILITY, PropertyReward, RewardConfig, RewardInputs, Term
from loop.reward_sources import ELEMENTS, HULL, SURROGATE, Judged, RewardRequest
from loop.testing import (
    check_acquisition,
    check_generator,
    check_oracle,
    check_reward,
    check_reward_source,
    check_surrogate,
)
from loop.values import Candidate, Evaluation, Prediction, Quantity
from surrogates.acquisition import ACQUISITIONS, AcquisitionConfig, PoolAcquisition
from surrogates.features import FeatureExtractor
from surrogates.gp import GPSurrogate
from surrogates.product import ProductSurrogate
from surrogates.properties import BULK_MODULUS, E_ABOVE_HULL, GPConfig, Property
from surrogates.utility import Objective
from tests.crystals import nacl, perovskite
from tests.fakes import (
    ANIONS,
    CATIONS,
    FakeAcquisition,
    FakeGenerator,
    FakeOracle,
    FakeReward,
    FakeSurrogate,
    best_length,
    e_above_hull,
    rocksalt,
)
from tests.test_generator_likelihood import SMALL, random_model
from tests.test_generator_rl import light_elements
from tests.test_generator_substitution import made as substitution
from tests.test_oracles_dft import ENGINE, GROUND, PLAY, script
from tests.test_oracles_mlip import candidates as alloys
from tests.test_oracles_mlip import oracle, table  # noqa: F401  (fixtures)

PAIRS = [(cation, anion) for cation in CATIONS for anion in ANIONS if anion != "Se"]
TWO = GPConfig(properties=(E_ABOVE_HULL, BULK_MODULUS), max_fit=24, maxiter=15)


def world(n, start=0):
    rng = np.random.default_rng(start)
    pairs = [PAIRS[(start + 7 * i) % len(PAIRS)] for i in range(n)]
    return [Candidate(rocksalt(*p, best_length(rocksalt(*p)) * (1 + 0.2 * rng.normal()))) for p in pairs]


SELENIDE = Candidate(rocksalt("Na", "Se", 6.0))
LABELLED, POOL = world(24), world(7, start=3)
LABELS = FakeOracle().evaluate(LABELLED)


# generators -----------------------------------------------------------------------------------------------------------


def crystalformer():
    torch.manual_seed(0)
    base = Checkpoint(_model(), "a" * 64, {})
    tuning = FinetuneConfig(iterations=2, batch_size=8, minibatch_size=4, space_groups=(221, 225))
    return CrystalFormerGenerator(base, PolicyConfig(space_groups=(221, 225)), tuning)


@functools.lru_cache
def _model():
    model = random_model(ModelConfig(**(SMALL | {"layers": 1}), dropout=0.0), scale=0.15).float()
    with torch.no_grad():
        model.head.bias[model.rows["letter"].start] += 4  # small crystals, quick tests
    return model


def recomputed(generator, _):
    drawn = generator.last_draw.sample.batch
    with torch.no_grad():
        return log_prob(generator.policy, Crystals.from_batch(drawn, generator.policy.head.weight)).total.cpu().numpy()


GENERATORS = {"crystalformer": crystalformer, "substitution": substitution, "fake": FakeGenerator}


@pytest.mark.parametrize("name", GENERATORS)
def test_generators(name, tmp_path):
    reward = FakeReward() if name == "fake" else light_elements
    found = check_generator(GENERATORS[name], reward, tmp_path, log_prob=recomputed)
    assert failures(found) == []
    assert {finding.name for finding in found} == {*GENERATOR_FAULTS}


class BrokenGenerator(FakeGenerator):
    """The fake with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.asked, self.luck = fault, 0, np.random.default_rng()

    def propose(self, n, *, seed, round):
        self.asked += 1
        seed = {"seeds": int(self.luck.integers(1_000_000)), "purity": seed + self.asked}.get(self.fault, seed)
        found = super().propose(n + (self.fault == "proposals"), seed=seed, round=round)
        if self.fault == "likelihood":
            return [dataclasses.replace(c, origin=dataclasses.replace(c.origin, logp=-1.0)) for c in found]
        return found

    def learn(self, reward, *, seed, round, progress=None, checkpoint=None):
        rows = super().learn(reward, seed=seed, round=round, progress=progress, checkpoint=checkpoint)
        if self.fault == "learning":
            self.bias += self.luck.normal()
        return rows

    def load(self, path):
        if self.fault != "saving":
            super().load(path)


GENERATOR_FAULTS = ["proposals", "seeds", "purity", "likelihood", "learning", "resuming", "saving"]


class Forgetful(FakeGenerator):
    """Cut off, it forgets what it had learned, but not that it had."""

    def learn(self, reward, *, seed, round, progress=None, checkpoint=None):
        rows = super().learn(reward, seed=seed, round=round, progress=progress, checkpoint=checkpoint)
        if self.calls < self.iterations:
            self.bias = 0.3
        return rows


@pytest.mark.parametrize("fault", GENERATOR_FAULTS)
def test_each_fault_of_a_generator_is_found(fault, tmp_path):
    make = Forgetful if fault == "resuming" else functools.partial(BrokenGenerator, fault)
    found = check_generator(make, FakeReward(), tmp_path, log_prob=lambda _, c: np.full(len(c), -2.0))
    assert fault in [finding.name for finding in found if not finding.passed]


# surrogates -----------------------------------------------------------------------------------------------------------


def campaign_surrogate():
    before = world(4, start=11)
    known = KnownLabels(before, FakeOracle().evaluate(before))
    return CampaignSurrogate(FeatureExtractor(), TWO, lambda: POOL, known)


FACTORS = (Property("epsilon", "1", "log", prior_mean=1.6, prior_std=0.6), Property("gap", "eV", prior_mean=3.0))
SURROGATES = {
    "gp": lambda: GPSurrogate(FeatureExtractor(), TWO),
    "product": lambda: ProductSurrogate(
        FeatureExtractor(), GPConfig(properties=FACTORS, max_fit=24, maxiter=15), Property("merit", "eV")
    ),
    "campaign": campaign_surrogate,
    "fake": FakeSurrogate,
}


def merits(candidates):
    """A gap that falls with the cell, and a constant that goes against it."""
    gaps = [8.0 - c.structure.volume / len(c.structure) / 7 for c in candidates]
    values = [{"epsilon": Quantity(float(np.exp(1.5 + 0.05 * g)), "1"), "gap": Quantity(g, "eV")} for g in gaps]
    return [Evaluation(c.id, "t@1", "t", "ok", v) for c, v in zip(candidates, values, strict=True)]


@pytest.mark.parametrize("name", SURROGATES)
def test_surrogates(name, tmp_path):
    labels = merits(LABELLED) if name == "product" else LABELS
    found = check_surrogate(SURROGATES[name], LABELLED, labels, POOL, tmp_path)
    assert failures(found) == []
    assert {finding.name for finding in found} == {*SURROGATE_FAULTS}


class BrokenSurrogate(FakeSurrogate):
    """The fake with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.luck = fault, np.random.default_rng()

    def fit(self, candidates, evaluations, *, picked_at_random=()):
        if self.fault == "inputs":
            candidates[0].structure.translate_sites([0], [0.1, 0, 0])
        metrics = super().fit(candidates, evaluations, picked_at_random=picked_at_random)
        if self.fault == "learning":
            self.slopes = [-5 * slope for slope in self.slopes]
        if self.fault == "repeatability":
            self.slopes[0] *= 1 + self.luck.random()
        if self.fault == "failed labels" and not all(evaluation.ok for evaluation in evaluations):
            self.slopes[0] *= 2
        return metrics

    def predict(self, candidates):
        found = super().predict(candidates)
        mean = found.mean.copy()
        if self.fault == "order":
            mean[0] += 1
        if self.fault == "batches":
            mean += len(mean)
        std = np.zeros_like(mean) if self.fault == "prediction" else found.std
        units = ("meV/atom", "GPa") if self.fault == "units" else found.units
        return Prediction(mean, std, found.names, units)

    def load(self, path):
        if self.fault != "saving":
            super().load(path)


SURROGATE_FAULTS = ["prediction", "units", "order", "batches", "learning", "repeatability", "failed labels", "saving"]
SURROGATE_FAULTS += ["inputs"]


@pytest.mark.parametrize("fault", SURROGATE_FAULTS)
def test_each_fault_of_a_surrogate_is_found(fault, tmp_path):
    labelled = world(8)
    found = check_surrogate(lambda: BrokenSurrogate(fault), labelled, FakeOracle().evaluate(labelled), POOL, tmp_path)
    assert fault in [finding.name for finding in found if not finding.passed]


# acquisitions ---------------------------------------------------------------------------------------------------------


@functools.lru_cache
def fitted():
    surrogate = GPSurrogate(FeatureExtractor(), TWO)
    surrogate.fit(LABELLED, LABELS)
    return surrogate


def acquisition(name):
    if name == "fake":
        return FakeAcquisition()
    both = (Objective("bulk_modulus"), Objective("e_above_hull", "minimise"))
    objectives = both if name == "qlognehvi" else both[:1]
    return PoolAcquisition(AcquisitionConfig(strategy=name, objectives=objectives, samples=16))


@pytest.mark.parametrize("name", [*ACQUISITIONS.ours, "fake"])
def test_acquisitions(name):
    found = check_acquisition(acquisition(name), fitted(), POOL)
    assert failures(found) == []
    assert {finding.name for finding in found} == {*ACQUISITION_FAULTS}


class BrokenAcquisition(FakeAcquisition):
    """The fake with one fault."""

    def __init__(self, fault):
        self.fault, self.luck = fault, np.random.default_rng()

    def select(self, candidates, surrogate, k, *, seed):
        if self.fault == "inputs":
            candidates[0].structure.translate_sites([0], [0.1, 0, 0])
        if self.fault == "order":
            return list(range(len(candidates)))[:k]
        if self.fault == "seeds":
            return self.luck.permutation(len(candidates)).tolist()[:k]
        found = super().select(candidates, surrogate, k, seed=seed)
        return {"indices": found[:1] * k, "small pools": (found * 9)[:k]}.get(self.fault, found)


ACQUISITION_FAULTS = ["indices", "small pools", "seeds", "order", "inputs"]


@pytest.mark.parametrize("fault", ACQUISITION_FAULTS)
def test_each_fault_of_an_acquisition_is_found(fault):
    surrogate = FakeSurrogate()
    surrogate.fit(LABELLED, LABELS)
    found = check_acquisition(BrokenAcquisition(fault), surrogate, world(8, start=5))
    assert fault in [finding.name for finding in found if not finding.passed]


# oracles --------------------------------------------------------------------------------------------------------------


def test_fake_oracle():
    found = check_oracle(FakeOracle(), POOL, hopeless=SELENIDE)
    assert failures(found) == []
    assert {finding.name for finding in found} == {*ORACLE_FAULTS}


def test_potential_oracle(oracle):  # noqa: F811
    assert failures(check_oracle(oracle, alloys())) == []


def test_parallel_oracle():
    parallel = ParallelOracle(FakeOracle, 2)
    try:
        assert failures(check_oracle(parallel, POOL[:3], hopeless=SELENIDE)) == []
    finally:
        parallel.close()


def test_dft_oracle(monkeypatch, tmp_path):
    monkeypatch.setattr(dft, "find_engine", lambda _: ENGINE)
    script(monkeypatch, tmp_path, PLAY.replace("GROUND", repr(GROUND)).replace("EXTRA", "pass"))
    resources = dft.Resources(cores=1, scratch=str(tmp_path / "scratch"))
    made = dft.DftOracle(dft.DftConfig(resources=resources, time_limit=30.0))
    assert failures(check_oracle(made, [Candidate(nacl()), Candidate(perovskite())])) == []


class BrokenOracle(FakeOracle):
    """The fake with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.calls = fault, 0

    def evaluate(self, candidates):
        self.calls += 1
        if self.fault == "inputs":
            candidates[0].structure.translate_sites([0], [0.1, 0, 0])
        if self.fault == "failures are values" and any("Se" in c.formula for c in candidates):
            raise RuntimeError("exploded")
        found = super().evaluate(candidates)
        if self.fault == "one per candidate":
            return [evaluation for evaluation in found if evaluation.ok][1:]
        return [self.spoiled(e, i, len(found)) for i, e in enumerate(found)]

    def spoiled(self, evaluation, index, n):
        if self.fault == "identity":
            return dataclasses.replace(evaluation, oracle="another@1")
        if not evaluation.ok:
            return evaluation
        if self.fault == "crystals":
            return dataclasses.replace(evaluation, structure=rocksalt("Cs", "I"))
        extra = {"order": index, "batches": n, "repeatability": self.calls}.get(self.fault, 0)
        modulus = evaluation.value("bulk_modulus") + extra
        return evaluation.with_properties(bulk_modulus=Quantity(modulus, "Mbar" if self.fault == "units" else "GPa"))


ORACLE_FAULTS = ["identity", "one per candidate", "order", "batches", "repeatability", "failures are values", "units"]
ORACLE_FAULTS += ["crystals", "inputs"]


@pytest.mark.parametrize("fault", ORACLE_FAULTS)
def test_each_fault_of_an_oracle_is_found(fault):
    found = check_oracle(BrokenOracle(fault), world(4, start=9), hopeless=SELENIDE)
    assert fault in [finding.name for finding in found if not finding.passed]


# rewards --------------------------------------------------------------------------------------------------------------


class World:
    """A hull of the fakes' world."""

    def judge(self, structures):
        return np.array([e_above_hull(s) for s in structures]), np.zeros(len(structures), dtype=bool)


def request(term):
    judges = RewardInputs(lambda s: [None] * len(s), NoveltyIndex(), World(), fitted())
    return RewardRequest(term, None, RewardConfig(terms=(term,)), judges)


SOURCES = {
    "hull": (HULL, STABILITY),
    "surrogate": (SURROGATE, Term("bulk_modulus", "maximise", 0.0, 100.0)),
    "elements": (ELEMENTS, Term("scarcity", "minimise", 0.0, 9000.0, source="elements")),
}


@pytest.mark.parametrize("name", SOURCES)
def test_reward_sources(name):
    kind, term = SOURCES[name]
    found = check_reward_source(kind.build(request(term)), POOL)
    assert failures(found) == []
    assert {finding.name for finding in found} == {*SOURCE_FAULTS}


SOURCE_FAULTS = ["shapes", "order", "batches", "repeatability", "inputs"]


@pytest.mark.parametrize("fault", SOURCE_FAULTS)
def test_each_fault_of_a_reward_source_is_found(fault):
    calls = []

    def source(candidates):
        calls.append(len(candidates))
        if fault == "inputs":
            candidates[0].structure.translate_sites([0], [0.1, 0, 0])
        values = np.array([e_above_hull(c.structure) for c in candidates])
        extra = {"order": np.arange(len(values)), "batches": len(values), "repeatability": len(calls)}.get(fault, 0)
        return Judged((values + extra)[:1] if fault == "shapes" else values + extra)

    found = check_reward_source(source, world(4, start=2))
    assert fault in [finding.name for finding in found if not finding.passed]


def property_reward():
    terms = tuple(term for _, term in SOURCES.values())
    return PropertyReward(RewardConfig(terms=terms), dataclasses.replace(request(STABILITY).inputs))


@pytest.mark.parametrize("make", [property_reward, FakeReward])
def test_rewards(make):
    found = check_reward(make, POOL)
    assert failures(found) == []
    assert {finding.name for finding in found} == {*REWARD_FAULTS}


REWARD_FAULTS = ["shapes", "no crystal", "order", "memory", "inputs"]


class BrokenReward(FakeReward):
    """The fake with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.calls = fault, 0

    def __call__(self, candidates):
        self.calls += 1
        if self.fault == "inputs":
            next(c for c in candidates if c is not None).structure.translate_sites([0], [0.1, 0, 0])
        rewards, rows = super().__call__(candidates)
        none = np.array([c is None for c in candidates])
        rewards = rewards + {"order": np.arange(len(rewards)), "memory": self.calls}.get(self.fault, 0)
        rewards = np.where(none & (self.fault == "no crystal"), 1.0, rewards)
        return (rewards * np.nan if self.fault == "shapes" else rewards), rows


@pytest.mark.parametrize("fault", REWARD_FAULTS)
def test_each_fault_of_a_reward_is_found(fault):
    found = check_reward(lambda: BrokenReward(fault), world(4, start=2))
    assert fault in [finding.name for finding in found if not finding.passed]


def test_what_a_part_raises_is_a_failure_of_the_check():
    class Raising(FakeOracle):
        def evaluate(self, candidates):
            raise CheckpointError("gone") if len(candidates) == 1 else ValueError("many")

    with pytest.raises(ValueError, match="many"):  # not even once
        check_oracle(Raising(), POOL)
    blank = FakeSurrogate()
    blank.names = ("volume",)
    found = check_acquisition(FakeAcquisition(), blank, POOL)
    assert "seeds: raises ValueError" in " ".join(failures(found))
