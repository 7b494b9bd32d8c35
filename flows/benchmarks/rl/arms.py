"""One arm of the benchmark with one seed: learn, draw fresh samples, judge them. A killed one resumes."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.rl.judge import Samples, Tally, judge, upgraded
from flows.benchmarks.rl.variants import BASE, BEST_OF_N, REWARD, SUBSTITUTION, SUPERVISED, VARIANTS
from loop.io.crystals import read_crystals, write_crystals
from loop.io.files import make_folder, write_text
from loop.reward import PropertyReward, RewardConfig, RewardInputs
from loop.stability import METASTABLE, within
from loop.validity import ValidityRules

if TYPE_CHECKING:
    from flows.build import Builder
    from flows.surrogate import AnyCampaignSurrogate
    from generator.model import CrystalFormer
    from generator.rl.config import FinetuneConfig
    from generator.sample import Sample
    from loop.contracts import Progress
    from loop.values import Candidate

CHUNK = 256
CURVE = ["iteration", "reward", "valid", "known", "unique", "kl", "element_ratio", "group_share", "group_entropy"]
CURVE += [
    "entropy",
    "mean_e_above_hull",
    "clip_fraction",
    "approx_kl",
    "seconds_sample",
    "seconds_reward",
    "seconds_update",
]
FRESH, LABELLED = (
    1000,
    5000,
)  # added to an arm's seed for that of its fresh samples, and of what a surrogate learns from


@dataclass(frozen=True)
class SupervisedConfig:
    """Supervised fine-tuning on stable samples, the paper's baseline (there lr 1e-5, 55 epochs on 10,000 samples)."""

    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 1e-4
    space_group_learning_rate: float = 0.03


@dataclass(frozen=True)
class Pool:
    """Scored samples of the base: tokens, candidates, rewards (n,), E_hull (eV/atom, (n,)), distinct finds."""

    drawn: Sample
    candidates: list[Candidate | None]
    rewards: np.ndarray
    above: np.ndarray
    finds: int


@dataclass(frozen=True)
class Laboratory:
    """What all arms share."""

    builder: Builder
    recipe: FinetuneConfig
    samples: int  # fresh, to be judged
    folder: Path
    labels: int = 192  # relaxed samples of the base that a surrogate learns from
    supervised: SupervisedConfig = SupervisedConfig()
    pools: dict[int, Pool] = field(default_factory=dict)  # of seeds, shared by the baselines

    @property
    def evaluations(self) -> int:
        """Reward evaluations that learning may cost."""
        return self.recipe.iterations * self.recipe.batch_size

    def reward(
        self,
        config: RewardConfig = REWARD,
        validity: ValidityRules | None = None,
        surrogate: AnyCampaignSurrogate | None = None,
    ) -> Tally:
        """A reward that counts its finds."""
        builder = self.builder
        rules = validity or builder.config.validity
        return Tally(PropertyReward(config, RewardInputs(rules, builder.novelty, builder.screen, surrogate)))

    def surrogate(self, seed: int) -> AnyCampaignSurrogate:
        """Of the relaxed distance from the hull, learned once a seed from `labels` relaxed samples of the base."""
        from oracles.mlip import PotentialOracle

        made, path = self.builder.surrogate, self.folder / "work" / f"surrogate-{seed}"
        if path.exists():
            made.load(path)
            return made
        measuring = self.builder.measuring
        oracle = PotentialOracle(measuring.potential, measuring.references, replace(measuring.config, bulk=None))
        drawn = [c for c in draw(self.base, 2 * self.labels, seed + LABELLED) if c is not None]
        reasons = self.builder.config.validity([candidate.structure for candidate in drawn])
        valid = [c for c, reason in zip(drawn, reasons, strict=True) if reason is None][: self.labels]
        made.fit(valid, oracle.evaluate(valid))
        make_folder(path.parent)
        made.save(path)
        return made

    @cached_property
    def base(self) -> CrystalFormer:
        """The frozen base."""
        return self.builder.generator.base.model


def run_arm(lab: Laboratory, name: str, seed: int, progress: Progress | None = None) -> dict[str, Any]:
    """Samples and findings of an arm, made once: ``NAME-SEED.json`` and ``NAME-SEED.csv.gz`` in the cells' folder."""
    path = lab.folder / "cells" / f"{name}-{seed}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    make_folder(path.parent)
    began = time.process_time()
    about, candidates = _produce(lab, name, seed, progress)
    learned = time.process_time() - began
    samples = judge(candidates, lab.builder)
    _write_samples(samples, path.with_suffix(".csv.gz"))
    before = about.pop("cpu_before", 0.0)  # of a run that was killed
    about |= {"variant": name, "seed": seed, "cpu_seconds": {"learn": round(before + learned, 1)}}
    about["cpu_seconds"]["judge"] = round(time.process_time() - began - learned, 1)
    write_text(path, json.dumps(about, indent=1) + "\n")
    return about


def _produce(
    lab: Laboratory, name: str, seed: int, progress: Progress | None
) -> tuple[dict[str, Any], list[Candidate | None]]:
    if name == BASE:
        return {"evaluations": 0, "finds": 0}, draw(lab.base, lab.samples, seed + FRESH)
    if name == BEST_OF_N:
        return _best_of_n(lab, seed)
    if name == SUPERVISED:
        return _supervised(lab, seed)
    if name == SUBSTITUTION:
        return {"evaluations": 0, "finds": 0}, _substituted(lab.samples, seed + FRESH)
    return _tuned(lab, name, seed, progress)


def draw(model: CrystalFormer, n: int, seed: int) -> list[Candidate | None]:
    """Crystals of a policy at temperature 1, None where a sample is no crystal."""
    from generator.draw import draw as draw_samples
    from generator.rl.rollout import to_candidates

    drawn = draw_samples(model, n, np.random.default_rng(seed)).sample
    return to_candidates(drawn, policy="", round=0)


def _tuned(
    lab: Laboratory, name: str, seed: int, progress: Progress | None
) -> tuple[dict[str, Any], list[Candidate | None]]:
    """Reinforcement; state and final policy are kept beside: a killed run resumes, `generate` can draw more."""
    from generator.checkpoint import save_checkpoint
    from generator.rl.loop import Finetuner

    variant = VARIANTS[name]
    config, reward_config = variant.settings(lab.recipe)
    # equal numbers of evaluations, whatever the batch size
    iterations = max(1, round(lab.evaluations / config.batch_size))
    config = replace(config, iterations=iterations)
    reward = lab.reward(reward_config, variant.validity, lab.surrogate(seed) if variant.asks_surrogate else None)
    base = lab.builder.generator.base
    policy = copy.deepcopy(base.model)
    tuner = Finetuner(policy, base.model, config, seed=seed, reference_checksum=base.checksum)
    folder = lab.folder / "work" / f"{name}-{seed}"
    tally, began, before = folder / "tally.json", time.process_time(), 0.0
    if tally.exists():
        kept = json.loads(tally.read_text(encoding="utf-8"))
        reward.evaluations, reward.found, before = kept["evaluations"], set(kept["found"]), kept["cpu"]

    def report(_: str, done: int, total: int, row: dict[str, float]) -> None:
        cpu = before + time.process_time() - began
        write_text(tally, json.dumps({"evaluations": reward.evaluations, "found": sorted(reward.found), "cpu": cpu}))
        if progress is not None:
            progress(f"{name} {seed}", done, total, {"reward": row["reward"], "kl": row["kl"]})

    make_folder(folder)
    rows = tuner.run(reward, name=name, round=1, progress=report, folder=folder)
    about = {
        "evaluations": reward.evaluations,
        "finds": len(reward.found),
        "curve": [_short(row) for row in rows],
        "guards": dict(reward.reward.counts),
        "failures": dict(reward.reward.failures),
        "stopped": rows[-1].get("stopped", ""),
        "cpu_before": before,
    }
    save_checkpoint(policy, folder / "checkpoint", {"base": base.checksum, "version": f"{name}-{seed}"})
    return about, draw(policy, lab.samples, seed + FRESH)


def _short(row: dict[str, Any]) -> dict[str, float]:
    return {name: round(float(row[name]), 4) for name in CURVE if name in row}


def scored_pool(lab: Laboratory, seed: int) -> Pool:
    """As many samples of the base as learning costs evaluations."""
    if seed not in lab.pools:
        lab.pools.clear()
        lab.pools[seed] = _score_pool(lab, seed)
    return lab.pools[seed]


def _score_pool(lab: Laboratory, seed: int) -> Pool:
    from generator.draw import draw as draw_samples
    from generator.rl.rollout import to_candidates

    drawn = draw_samples(lab.base, lab.evaluations, np.random.default_rng(seed)).sample
    candidates = to_candidates(drawn, policy="", round=0)
    reward = lab.reward(RewardConfig(terms=REWARD.terms, known_factor=0.5, duplicate_factor=0.5))
    rewards, above = [], []
    for start in range(0, len(candidates), CHUNK):
        values, rows = reward(candidates[start : start + CHUNK])
        rewards.append(values)
        above.append([row.get("e_above_hull", np.nan) for row in rows])
    return Pool(drawn, candidates, np.concatenate(rewards), np.concatenate(above), len(reward.found))


def _substituted(n: int, seed: int) -> list[Candidate | None]:
    """Known crystals with other ions, as `generate --method substitution` draws them."""
    from flows.models import substitution
    from generator.constraints.conditions import Sampling

    drawn = substitution(Sampling()).propose(n, seed=seed, round=0)
    return [*drawn, *[None] * (n - len(drawn))]


def _best_of_n(lab: Laboratory, seed: int) -> tuple[dict[str, Any], list[Candidate | None]]:
    """The budget spent on the base's samples: the best of them by reward, as many as other arms draw afresh."""
    pool = scored_pool(lab, seed)
    best = np.argsort(-pool.rewards, kind="stable")[: lab.samples]
    return {"evaluations": lab.evaluations, "finds": pool.finds}, [pool.candidates[index] for index in best]


def _supervised(lab: Laboratory, seed: int) -> tuple[dict[str, Any], list[Candidate | None]]:
    """Maximum likelihood on the stable ones of the base's samples."""
    import torch

    from generator.likelihood import log_prob
    from generator.representation.sequence import Crystals

    config = lab.supervised
    pool = scored_pool(lab, seed)
    chosen = pool.drawn.batch[np.flatnonzero(within(pool.above, METASTABLE))]
    policy = copy.deepcopy(lab.base)
    policy.space_group_logits.requires_grad_(True)
    groups = [
        {"params": list(policy.parameters()), "lr": config.learning_rate},
        {"params": [policy.space_group_logits], "lr": config.space_group_learning_rate},
    ]
    optimizer, rng = torch.optim.Adam(groups), np.random.default_rng(seed)
    for _ in range(config.epochs):
        for rows in np.array_split(rng.permutation(len(chosen)), max(1, len(chosen) // config.batch_size)):
            crystals = Crystals.from_batch(chosen[rows], policy.head.weight)
            loss = -log_prob(policy, crystals).joint.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
    policy.space_group_logits.requires_grad_(False)
    about = {"evaluations": lab.evaluations, "finds": pool.finds, "trained_on": len(chosen)}
    return about, draw(policy, lab.samples, seed + FRESH)


def _write_samples(samples: Samples, path: Path) -> None:
    """Findings with the crystals, an empty `cif` where a sample is none."""
    write_crystals(path, [str(row) for row in range(len(samples.rows))], samples.structures, samples.rows)


def read_samples(folder: Path, name: str, seed: int) -> Samples:
    """What `run_arm` wrote."""
    table = read_crystals(folder / "cells" / f"{name}-{seed}.csv.gz")
    frame = table.frame.infer_objects()
    texts = {name: frame[name].fillna("") for name in ("elements", "formula")}
    return Samples(list(table.structures), upgraded(frame.assign(**texts)))
