"""What a campaign would do and take, before it runs."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

from flows.config import CampaignConfig
from flows.provenance import cores

PROBE = 24  # crystals drawn and scored to estimate times
PROBE_LABELS = 2


def forecast(config: CampaignConfig) -> dict[str, Any]:
    """Counts: rounds, crystals drawn and scored, oracle calls at most."""
    settings, finetune = config.campaign, config.generator.finetune
    calls = settings.round0_budget + settings.rounds * settings.budget
    return {
        "campaign": settings.name,
        "rounds": f"{settings.rounds} after the baseline round",
        "reward_evaluations": settings.rounds * finetune.iterations * finetune.batch_size,
        "crystals_proposed": (settings.rounds + 1) * settings.pool,
        "oracle_calls": calls if settings.max_calls is None else min(calls, settings.max_calls),
        "oracle": config.oracle.mlip.potential,
    }


def measured(config: CampaignConfig) -> dict[str, Any]:
    """Minutes that the stages would take on this machine, from a probe of each: a rough guess.

    Relaxations differ by a factor of ten from crystal to crystal, and the probe labels two.
    """
    from flows import build

    builder = build.Builder(config)
    parts, workers = builder.parts(), builder.workers
    try:
        clock = [time.monotonic()]
        drawn = parts.generator.propose(PROBE, seed=0, round=0)
        clock.append(time.monotonic())
        if parts.screen is not None:
            parts.screen(drawn)
        clock.append(time.monotonic())
        reasons = parts.validity([candidate.structure for candidate in drawn])
        valid = [candidate for candidate, reason in zip(drawn, reasons, strict=True) if reason is None]
        chosen = (valid or drawn)[:PROBE_LABELS]
        builder.measuring.evaluate(chosen)
        clock.append(time.monotonic())
    finally:
        builder.close()
    draw, score, label = (later - sooner for sooner, later in pairwise(clock))
    plan = forecast(config)
    learn = plan["reward_evaluations"] * (draw + score) / PROBE
    propose = plan["crystals_proposed"] * (draw + 2 * score) / PROBE
    labels = plan["oracle_calls"] * label / max(1, len(chosen)) / min(workers, config.campaign.chunk)
    minutes = {"finetune": learn / 60, "propose_and_select": propose / 60, "label": labels / 60}
    total = sum(minutes.values())
    shown = {name: round(value, 1) for name, value in {**minutes, "total": total}.items()}
    return {"cores": cores(), "minutes_estimated": shown}
