"""discovery-loop benchmark growth: what each stage of one long campaign takes, round by round.

10,000 crystals proposed and 2,000 labels by default. Labels, proposals and surrogate are made up and take no time: what
is measured is the engine (ledger, novelty, prototypes, ranking, report), processor seconds of this process, since other
jobs of the machine stretch those on the wall. With `real` they are the shipped generator (two iterations of 64 crystals
a round), CHGNet's screen and features, Gaussian processes with forests and BoTorch's selection; labels are CHGNet's
energies of the crystals as drawn. Candidates are what is left of the proposals without the invalid, the known and the
repeated. Peak memory is that of the process during the stage. `later_to_earlier` compares the mean of the last third of
the rounds with that of the first third after the baseline; what grows linearly with rounds stays below
`rounds_later_to_earlier`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from flows.benchmarks.clock import load
from flows.benchmarks.harness import write_benchmark
from flows.benchmarks.operate.resume import warm_up
from flows.benchmarks.operate.world import SleepingOracle, calls, components, perovskite
from flows.outcome import write_results
from loop.campaign import Campaign, Components
from loop.settings import STAGES, CampaignSettings
from loop.stages import Proposed
from loop.store import Store

WRITE = "results"  # what a finished campaign writes: ranked list, crystals, report
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux

Say = Callable[[str], None]
Row = dict[str, Any]


@dataclass(frozen=True)
class GrowthBenchmark:
    """How long the campaign is."""

    rounds: int = 9  # after the baseline round
    pool: int = 1000  # candidates of each round
    budget: int = 200  # labels of each round
    minutes: float = float("inf")  # begin no further round after this time, but the first
    real: bool = False  # generator, screen, features and surrogate that ship


def run(output: Path, config: GrowthBenchmark, say: Say = lambda _: None) -> dict[str, Any]:
    """Run the campaign, and write what its stages took; returns the record."""
    with TemporaryDirectory() as name:
        warm_up(Path(name) / "warm")
        folder = Path(name) / "campaign"
        folder.mkdir()
        rows = list(watched(config, folder, say))
        labels, size = len(calls(folder / "calls")), (folder / "campaign.db").stat().st_size
    stages = {stage: growth([row for row in rows if row["stage"] == stage]) for stage in STAGES}
    done = max(row["round"] for row in rows[:-1])
    third = max(1, done // 3)
    expected = float(np.mean(range(done - third + 1, done + 1)) / np.mean(range(1, third + 1)))
    results = {
        "rounds": done,
        "proposed": config.pool * (done + 1),
        "candidates": sum(row.get("candidates", 0) for row in rows),
        "labels": labels,
        "ledger_mib": size / 2**20,
        "rounds_later_to_earlier": expected,
        "stages": stages,
        "writing_results": rows[-1],
        "load": load(),
        "rows": rows[:-1],
    }
    record = {"benchmark": "growth", "protocol": __doc__, "settings": asdict(config), "results": results}
    return write_benchmark(output, record)


@contextmanager
def parts(config: GrowthBenchmark, folder: Path) -> Iterator[tuple[CampaignSettings, Components]]:
    """Settings and parts of the campaign: those that ship, or made-up ones."""
    settings = CampaignSettings(name="growth", rounds=config.rounds, pool=config.pool, budget=config.budget)
    if not config.real:
        yield settings, components(SleepingOracle(folder / "calls", 0.0), draw=perovskite)
        return
    from flows.benchmarks.operate.real_parts import GOAL, real_components

    chosen = replace(settings, **GOAL)
    with real_components(chosen, folder) as made:
        yield chosen, made


def watched(config: GrowthBenchmark, folder: Path, say: Say) -> Iterator[Row]:
    """Seconds and memory of each stage of each round, then of the results."""
    with (
        parts(config, folder) as (settings, made),
        Store(folder / "campaign.db") as store,
        Campaign(settings, made, store, folder) as campaign,
    ):
        began = time.monotonic()
        while not campaign.finished:
            round, stage = campaign.history.next_stage
            if round > 1 and stage == STAGES[0] and time.monotonic() - began > 60 * config.minutes:
                break
            row = {"round": round, "stage": stage, **spent(lambda: campaign.run_stage(round, stage))}  # noqa: B023
            made_of = campaign.history.done[round, stage].record
            yield row | ({"candidates": len(made_of.verdicts)} if isinstance(made_of, Proposed) else {})
            if stage == STAGES[-1]:
                say(f"round {round} of {settings.rounds}: {campaign.history.paid} labels")
        yield {"stage": WRITE, **spent(lambda: write_results(campaign.history, folder))}


def spent(work: Callable[[], object]) -> dict[str, float | None]:
    """What a piece of work takes: seconds (processor, wall) and the peak of the memory (GiB)."""
    with suppress(OSError):
        RESET.write_text("5")  # begins the peak again
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"cpu_s": time.process_time() - cpu, "wall_s": time.perf_counter() - wall, "peak_gib": peak()}


def peak() -> float | None:
    """Largest memory of this process since the last reset, GiB; None where the system does not tell."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    return None


def growth(rows: Sequence[Row]) -> Row:
    """One stage, summed up over its rounds; the baseline round is in the sum alone."""
    later = [row["cpu_s"] for row in rows if row["round"] > 0]
    third = max(1, len(later) // 3)
    peaks = [row["peak_gib"] for row in rows if row["peak_gib"] is not None]
    return {
        "cpu_s": sum(row["cpu_s"] for row in rows),
        "wall_s": sum(row["wall_s"] for row in rows),
        "last_round_cpu_s": rows[-1]["cpu_s"],
        "later_to_earlier": float(np.mean(later[-third:]) / max(np.mean(later[:third]), 1e-6)) if later else None,
        "peak_gib": max(peaks, default=None),
    }
