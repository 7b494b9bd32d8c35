"""What a campaign would do and take, before it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from flows.config import MLIP, CampaignConfig
from flows.known_labels import read_known_labels
from flows.provenance import cores
from flows.registry import GENERATORS

if TYPE_CHECKING:
    from generator.policy import CrystalFormerGenerator
    from loop.contracts import Reward

PROBE = 32  # crystals drawn and scored to estimate times
PROBE_LABELS = 2


def forecast(config: CampaignConfig) -> dict[str, Any]:
    """Counts: rounds, crystals drawn and scored, oracle calls at most, known labels.

    Raises:
        InputError: the known labels cannot be used.
    """
    settings = config.campaign
    calls = settings.round0_budget + settings.rounds * settings.budget
    return {
        "campaign": settings.name,
        "rounds": f"{settings.rounds} after the baseline round",
        **_learning(config),
        "crystals_proposed": (settings.rounds + 1) * settings.pool,
        "oracle_calls": calls if settings.max_calls is None else min(calls, settings.max_calls),
        "oracle": config.oracle.mlip.potential if config.oracle.kind == MLIP else config.oracle.kind,
        **_tiers(config),
        **_known(config),
    }


def _learning(config: CampaignConfig) -> dict[str, Any]:
    """Crystals that are rewarded; how many the generator of another package needs is not known beforehand."""
    finetune, own = config.generator.finetune, config.generator.kind == "crystalformer"
    if not own and GENERATORS.get(config.generator.kind).learns:
        return {}
    return {"reward_evaluations": own * config.campaign.rounds * finetune.iterations * finetune.batch_size}


def _known(config: CampaignConfig) -> dict[str, Any]:
    """What surrogates are trained on beside the campaign's labels."""
    if config.surrogate.known is None:
        return {}
    known = read_known_labels(config.surrogate.known, config.surrogate.gp.properties)
    told = f"rows that are unreadable: {known.unreadable}, without a value: {known.empty}"
    if known.contradicting:
        names = ", ".join(known.contradicting[:3])
        told += f"; {len(known.contradicting)} with different values, whose mean is learned: {names}"
    return {"known_labels": f"{len(known.candidates)} crystals ({told})"}


def _tiers(config: CampaignConfig) -> dict[str, Any]:
    """Calls of costlier oracles, at most."""
    rounds, oracle = config.campaign.rounds + 1, config.oracle
    found: dict[str, Any] = {}
    if oracle.dft is not None:
        found |= {"dft_calls": rounds * oracle.dft.best, "dft": f"GPAW, preset {oracle.dft.preset}"}
    if oracle.handoff is not None:
        found["handed_out"] = rounds * oracle.handoff.best
    if oracle.second_opinion is not None:
        found["second_opinion"] = f"{oracle.second_opinion.potential}, on what is stable"
    return found


def measured(config: CampaignConfig) -> dict[str, Any]:
    """Minutes that the stages would take on this machine, from a probe of each: a rough guess.

    The probe draws, scores and learns from a few crystals, and labels two; relaxations differ by a factor of ten.
    """
    from flows import build
    from generator.policy import CrystalFormerGenerator

    plan, builder = forecast(config), build.Builder(config)
    generator, reward = builder.proposer, builder.reward_for(0)
    drawn = generator.propose(PROBE, seed=0, round=0)
    valid = [c for c in drawn if builder.config.validity.reason(c.structure) is None][:PROBE_LABELS] or drawn[:1]
    builder.labelling.evaluate(valid[:1])
    work: dict[str, Callable[[], object]] = {
        "propose": lambda: generator.propose(PROBE, seed=1, round=0),
        "screen": lambda: builder.screen(drawn),
        "label": lambda: builder.labelling.evaluate(valid),
    }
    tuning = 0.0
    if isinstance(generator, CrystalFormerGenerator) and plan.get("reward_evaluations"):
        tuning = config.campaign.rounds * learning_seconds(generator, reward)
    seconds = {name: timed(job) for name, job in work.items()}
    side_by_side = min(builder.workers, config.campaign.chunk)
    minutes = {
        "finetune": tuning / 60,
        "propose_and_select": plan["crystals_proposed"] * (seconds["propose"] + 2 * seconds["screen"]) / PROBE / 60,
        "label": plan["oracle_calls"] * seconds["label"] / len(valid) / side_by_side / 60,
    }
    minutes["total"] = sum(minutes.values())
    return {"cores": cores(), "minutes_estimated": {name: round(value, 1) for name, value in minutes.items()}}


def learning_seconds(generator: CrystalFormerGenerator, reward: Reward) -> float:
    """Seconds of one round's fine-tuning: what it begins with, and its iterations, from one and from two of them.

    A single iteration as the measure of all counted the beginning with each of them, which is most of a small campaign.
    """
    wanted, least = generator.finetune, min(PROBE, generator.finetune.batch_size)
    part = min(wanted.minibatch_size, max(1, least // 2))

    def run(iterations: int) -> float:
        generator.finetune = replace(wanted, iterations=iterations, batch_size=least, minibatch_size=part)
        return timed(lambda: generator.learn(reward, seed=iterations, round=0))

    run(1)  # warms up
    once, twice = run(1), run(2)
    each = max(twice - once, 0.0)
    generator.finetune = wanted
    return max(once - each, 0.0) + wanted.iterations * each * wanted.batch_size / least


def timed(job: Callable[[], object]) -> float:
    """Seconds that a job takes."""
    began = time.monotonic()
    job()
    return time.monotonic() - began
