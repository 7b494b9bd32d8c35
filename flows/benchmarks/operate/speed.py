"""discovery-loop benchmark overhead and scale: what orchestration costs, and how labels spread over workers.

Labels of the sleeping oracle cost no core, so that what is measured is the engine: ledger, claims, Dask, Prefect.
Before, a campaign runs that is not counted: what is imported once takes seconds. Seconds on the wall depend on what
else the machine does (`load`: processes that want a core, mean of a minute); those of the processor are this process's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flows import scale
from flows.benchmarks.clock import cpu_seconds, load
from flows.benchmarks.harness import write_benchmark
from flows.benchmarks.operate.own_server import prefect_server
from flows.benchmarks.operate.resume import as_tasks, in_flow, warm_up
from flows.benchmarks.operate.world import SleepingOracle, calls, components, perovskite
from flows.dask_oracle import DaskOracle
from loop.campaign import Campaign
from loop.contracts import Oracle
from loop.running import InTurn
from loop.settings import CampaignSettings
from loop.stages import Labelled
from loop.store import Store
from loop.tiers import key_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class ScaleBenchmark:
    """How many labels on how many workers."""

    labels: int = 1000
    seconds: float = 0.5  # of one label
    workers: tuple[int, ...] = (1, 2, 4)


@dataclass(frozen=True)
class OverheadBenchmark:
    """How many labels of how many seconds, with and without Prefect."""

    labels: int = 100
    seconds: float = 2.0
    prefect: bool = True


def run_scale(output: Path, config: ScaleBenchmark, say: Say = lambda _: None) -> dict[str, Any]:
    """Label on clusters of different sizes; returns the record, which is written."""
    settings = CampaignSettings(name="scale", rounds=0, pool=2 * config.labels, budget=config.labels)
    rows: list[dict[str, Any]] = []
    lists = set()
    with TemporaryDirectory() as name:
        warm_up(Path(name) / "warm")
        for workers in config.workers:
            folder = Path(name) / str(workers)
            folder.mkdir()
            oracle = SleepingOracle(folder / "calls", config.seconds)
            with scale.connected(scale.Scale(workers=workers), folder) as client:
                client.wait_for_workers(workers)
                spread = DaskOracle(partial(replace, oracle), key_of(oracle), client, str(folder / "campaign.db"))
                ranked, took = campaign(settings, folder, spread)
            lists.add(ranked)
            ideal = config.labels * config.seconds / workers
            row = {"workers": workers, **took, "ideal_s": ideal, "share_of_ideal": ideal / took["label_stage_s"]}
            rows.append(row | {"labels": len(calls(oracle.log))})
            say(f"{workers} workers: {took['label_stage_s']:.1f} s, ideal {ideal:.1f} s")
    for row in rows:
        row["speed_up"] = rows[0]["label_stage_s"] / row["label_stage_s"]
    asked = {"labels": config.labels, "seconds_per_label": config.seconds}
    results = {**asked, "identical_lists": len(lists) == 1}
    record = {"benchmark": "scale", "protocol": __doc__, "settings": asked, "results": {**results, "rows": rows}}
    return write_benchmark(output, record)


def run_overhead(output: Path, config: OverheadBenchmark, say: Say = lambda _: None) -> dict[str, Any]:
    """The stage of labels of one campaign, plain and under Prefect, against the sleep alone."""
    settings = CampaignSettings(name="overhead", rounds=0, pool=2 * config.labels, budget=config.labels, chunk=4)
    ideal, rows = config.labels * config.seconds, []
    with TemporaryDirectory() as name, prefect_server(Path(name), config.prefect):
        warm_up(Path(name) / "warm")
        for engine in ("plain", "prefect") if config.prefect else ("plain",):
            folder = Path(name) / engine
            folder.mkdir()
            sleeping = SleepingOracle(folder / "calls", config.seconds)
            _, took = campaign(settings, folder, Alone(sleeping), prefect=engine == "prefect")
            row = {"engine": engine, **took, "ideal_s": ideal, "overhead": took["label_stage_s"] / ideal - 1}
            rows.append(row | {"labels": len(calls(sleeping.log))})
            say(f"{engine}: {took['label_stage_s']:.1f} s, ideal {ideal:.1f} s")
    asked = {"labels": config.labels, "seconds_per_label": config.seconds}
    results = {**asked, "rows": rows}
    record = {"benchmark": "overhead", "protocol": __doc__, "settings": asked, "results": results}
    return write_benchmark(output, record)


class Alone:
    """An oracle that works on one label at a time, whatever asks side by side: as one machine would."""

    def __init__(self, oracle: SleepingOracle) -> None:
        from threading import Lock

        self._oracle, self._lock = oracle, Lock()
        self.name, self.settings_hash = oracle.name, oracle.settings_hash

    def evaluate(self, candidates: Any) -> Any:
        """In turn."""
        with self._lock:
            return self._oracle.evaluate(candidates)


def campaign(
    settings: CampaignSettings, folder: Path, oracle: Oracle, *, prefect: bool = False
) -> tuple[str, dict[str, float]]:
    """Run a campaign; returns its ranked list, and the seconds (wall, processor) of its stages of labels."""
    runner = as_tasks() if prefect else InTurn()
    spent: dict[str, float] = {}

    def drive() -> None:
        wall = cpu = 0.0
        before = cpu_seconds()
        for step in made.steps():
            if step.stage == Labelled.stage:
                wall, cpu = wall + step.seconds, cpu + cpu_seconds() - before
            before = cpu_seconds()
        spent.update({"label_stage_s": wall, "label_stage_cpu_s": cpu, "load": load() or 0.0})

    with (
        Store(folder / "campaign.db") as store,
        Campaign(settings, components(oracle, draw=perovskite), store, folder, runner=runner) as made,
    ):
        in_flow(drive) if prefect else drive()
    return (folder / "ranked.csv").read_text(), spent
