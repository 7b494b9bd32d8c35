"""How fast the parts are on this machine, with what the package ships, in one process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flows.benchmarks.harness import write_benchmark
from loop.contracts import Progress
from loop.io.files import make_folder

CRYSTALS = 512  # drawn, scored
TRAINING_BATCH = 100
LABELS = 16
PROTOCOL = "each part once after one warm-up, in one process, with what the package ships; wall time"


def run(output: Path, *, seed: int = 0, progress: Progress | None = None) -> dict[str, Any]:
    """Time each part after one warm-up, and write ``record.json``.

    Raises:
        InputError: the folder cannot be written.
    """
    from flows import build
    from flows.config import CampaignConfig

    make_folder(output)
    builder = build.Builder(CampaignConfig())
    results: dict[str, dict[str, float]] = {}
    names = ("sampling", "training", "reward", "hull", "labels")
    for done, name in enumerate(names):
        if progress is not None:
            progress("speed", done, len(names), {})
        results[name] = MEASURES[name](builder, seed)
    record = {"benchmark": "speed", "protocol": PROTOCOL, "settings": {"seed": seed}, "results": results}
    return write_benchmark(output, record)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the second of two runs, and its result."""
    work()
    began = time.perf_counter()
    result = work()
    return time.perf_counter() - began, result


def _sampling(builder: Any, seed: int) -> dict[str, float]:
    seconds, drawn = timed(lambda: builder.generator.propose(CRYSTALS, seed=seed, round=0))
    return {"crystals": len(drawn), "crystals_per_second": CRYSTALS / seconds}


def _training(builder: Any, seed: int) -> dict[str, float]:
    """Forward, backward and update of a copy of the shipped network on crystals that it drew."""
    import copy

    import torch

    from generator.draw import draw
    from generator.likelihood import log_prob
    from generator.representation.sequence import Crystals

    model = copy.deepcopy(builder.generator.base.model)
    batch = draw(model, TRAINING_BATCH, np.random.default_rng(seed)).sample.batch
    crystals = Crystals.from_batch(batch, model.head.weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model.train()

    def step() -> None:
        loss = -log_prob(model, crystals).total.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    seconds, _ = timed(step)
    return {"batch": TRAINING_BATCH, "steps_per_second": 1 / seconds, "crystals_per_second": TRAINING_BATCH / seconds}


def _reward(builder: Any, seed: int) -> dict[str, float]:
    drawn = builder.generator.propose(CRYSTALS, seed=seed + 1, round=0)
    reward = builder.reward_for(0)
    seconds, _ = timed(lambda: reward(drawn))
    return {"crystals": len(drawn), "crystals_per_minute": 60 * len(drawn) / seconds}


def _hull(builder: Any, seed: int) -> dict[str, float]:
    drawn = builder.generator.propose(CRYSTALS, seed=seed + 2, round=0)
    compositions = [candidate.structure.composition for candidate in drawn]
    energies = np.zeros(len(drawn))
    hull, kind = builder.measuring.hull, builder.measuring.potential.energy_type
    seconds, _ = timed(lambda: hull.batch(compositions, energies, kind))
    return {"compositions": len(drawn), "distances_per_minute_warm": 60 * len(drawn) / seconds}


def _labels(builder: Any, seed: int) -> dict[str, float]:
    """Relaxation, hull and equation of state of valid crystals, in one process; no warm-up."""
    drawn = builder.generator.propose(4 * LABELS, seed=seed + 3, round=0)
    reasons = builder.config.validity([candidate.structure for candidate in drawn])
    valid = [candidate for candidate, reason in zip(drawn, reasons, strict=True) if reason is None][:LABELS]
    began = time.perf_counter()
    evaluations = builder.measuring.evaluate(valid)
    seconds = time.perf_counter() - began
    good = sum(evaluation.ok for evaluation in evaluations)
    return {"labels": len(valid), "usable": good, "labels_per_minute": 60 * len(valid) / seconds}


MEASURES: dict[str, Callable[[Any, int], dict[str, float]]] = {
    "sampling": _sampling,
    "training": _training,
    "reward": _reward,
    "hull": _hull,
    "labels": _labels,
}
