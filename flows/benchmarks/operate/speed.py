"""discovery-loop benchmark overhead and scale: what orchestration costs, and how labels spread over workers.

Labels of the sleeping oracle cost no core, so that what is measured is the engine: ledger, claims, Dask, Prefect.
Before, a campaign runs that is not counted: what is imported once takes seconds. Seconds on the wall depend on what
else the machine does (`load`: processes that want a core, mean of a minute); those of the processor are this process's.
`scale --oracle chgnet` labels small crystals by the default label of that potential (relaxation, distance above the
hull, bulk modulus). Crystals are made by ion substitution. Each worker labels one crystal before, which is not counted
either (`start_s`): there it loads the oracle. Lists are compared without the seconds that labels cost. `ideal_s` are
the processor seconds of the first cluster's workers (`workers_cpu_s`), divided by the workers that have a core.
"""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
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
from flows.dask_oracle import Build, DaskOracle
from flows.provenance import cores
from loop.campaign import Campaign, Components
from loop.errors import ConfigError
from loop.running import InTurn
from loop.settings import CampaignSettings
from loop.stages import Labelled
from loop.store import Store
from loop.tiers import key_of

Say = Callable[[str], None]
SLEEPING, CHGNET = ORACLES = ("sleeping", "chgnet")
COST = "cost_seconds"  # the one column of a ranked list that no two runs share


@dataclass(frozen=True)
class ScaleBenchmark:
    """How many labels on how many workers.

    Raises:
        ConfigError: there is no such oracle.
    """

    labels: int = 1000
    seconds: float = 0.5  # of one label of the sleeping oracle
    workers: tuple[int, ...] = (1, 2, 4)
    oracle: str = SLEEPING  # or chgnet

    def __post_init__(self) -> None:
        """Check the oracle."""
        if self.oracle not in ORACLES:
            raise ConfigError(f"oracle: expected {' or '.join(ORACLES)}, got {self.oracle!r}")


@dataclass(frozen=True)
class OverheadBenchmark:
    """How many labels of how many seconds, with and without Prefect."""

    labels: int = 100
    seconds: float = 2.0
    prefect: bool = True


def run_scale(output: Path, config: ScaleBenchmark, say: Say = lambda _: None) -> dict[str, Any]:
    """Label on clusters of different sizes; returns the record, which is written."""
    rows: list[dict[str, Any]] = []
    lists = set()
    with TemporaryDirectory() as name:
        warm_up(Path(name) / "warm")
        for workers in config.workers:
            folder = Path(name) / str(workers)
            folder.mkdir()
            ranked, row = on_workers(config, workers, folder)
            lists.add(without_cost(ranked))
            rows.append({"workers": workers, **row})
            say(f"{workers} workers: {row['label_stage_s']:.1f} s")
    for row in rows:
        sleeps = config.oracle == SLEEPING
        ideal = config.labels * config.seconds if sleeps else rows[0]["workers_cpu_s"]
        row["ideal_s"] = ideal / (row["workers"] if sleeps else min(row["workers"], cores()))
        row["share_of_ideal"] = row["ideal_s"] / row["label_stage_s"]
        row["speed_up"] = rows[0]["label_stage_s"] / row["label_stage_s"]
    asked: dict[str, Any] = {"oracle": config.oracle, "labels": config.labels}
    asked |= {"seconds_per_label": config.seconds} if config.oracle == SLEEPING else {}
    results = {**asked, "identical_lists": len(lists) == 1}
    record = {"benchmark": "scale", "protocol": __doc__, "settings": asked, "results": {**results, "rows": rows}}
    return write_benchmark(output, record)


def on_workers(config: ScaleBenchmark, workers: int, folder: Path) -> tuple[str, dict[str, Any]]:
    """Run the campaign on a cluster of its own; returns its ranked list, and what the stage of labels took."""
    settings = CampaignSettings(name="scale", rounds=0, pool=2 * config.labels, budget=config.labels)
    build, made = parts(config, folder)
    with scale.connected(scale.Scale(workers=workers), folder) as client:
        client.wait_for_workers(workers)
        spread = DaskOracle(build, key_of(made.oracle), client, str(folder / "campaign.db"))
        began = time.perf_counter()
        spread.evaluate(made.generator.propose(workers, seed=settings.seed + 1, round=0))  # each loads the oracle
        start, before = time.perf_counter() - began, len(calls(folder / "calls"))
        worked = workers_cpu(client)
        ranked, took = campaign(settings, folder, replace(made, oracle=spread))
        row = took | {"workers_cpu_s": workers_cpu(client) - worked, "start_s": start}
    return ranked, row | ({"calls": len(calls(folder / "calls")) - before} if config.oracle == SLEEPING else {})


def parts(config: ScaleBenchmark, folder: Path) -> tuple[Build, Components]:
    """What makes the oracle on a worker, and the campaign's parts with that oracle in this process."""
    if config.oracle == SLEEPING:
        oracle = SleepingOracle(folder / "calls", config.seconds)
        return partial(replace, oracle), components(oracle, draw=perovskite)
    from flows.benchmarks.operate.real_parts import relaxed_components

    return relaxed_components()


def workers_cpu(client: Any) -> float:
    """Processor seconds of a cluster's workers until now."""
    return sum(client.run(time.process_time).values())


def without_cost(ranked: str) -> str:
    """A ranked list without the seconds that labels cost."""
    rows = list(csv.DictReader(io.StringIO(ranked)))
    return repr([{name: value for name, value in row.items() if name != COST} for row in rows])


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
            made = components(Alone(sleeping), draw=perovskite)
            _, took = campaign(settings, folder, made, prefect=engine == "prefect")
            row = {"engine": engine, **took, "ideal_s": ideal, "overhead": took["label_stage_s"] / ideal - 1}
            rows.append(row | {"calls": len(calls(sleeping.log))})
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
    settings: CampaignSettings, folder: Path, made: Components, *, prefect: bool = False
) -> tuple[str, dict[str, Any]]:
    """Run a campaign; returns its ranked list, and of its stages of labels the seconds (wall, processor) and labels."""
    runner = as_tasks() if prefect else InTurn()
    spent: dict[str, Any] = {}

    def drive() -> None:
        wall = cpu = 0.0
        before, statuses = cpu_seconds(), Counter[str]()
        for step in running.steps():
            if isinstance(step.record, Labelled):
                wall, cpu = wall + step.seconds, cpu + cpu_seconds() - before
                statuses.update(step.record.statuses)
            before = cpu_seconds()
        spent.update({"label_stage_s": wall, "label_stage_cpu_s": cpu, "load": load() or 0.0})
        spent.update({"labels": running.history.paid, "statuses": dict(statuses)})

    with (
        Store(folder / "campaign.db") as store,
        Campaign(settings, made, store, folder, runner=runner) as running,
    ):
        in_flow(drive) if prefect else drive()
    return (folder / "ranked.csv").read_text(), spent
