"""`discovery-loop benchmark gate`: how good are the final candidates when only a part of a pool is labelled?

The question of Surrogate-Gated Generation (arXiv 2606.28578, which states 9 % below the exhaustive oracle at a fifth of
its calls): the mean of the best 20 found, against the mean of the best 20 of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from flows.benchmarks.harness import files_of, write_benchmark
from flows.benchmarks.pool.run import PoolConfig, SimulatedCampaigns, campaigns, extractor_of
from flows.benchmarks.pool.simulation import RANDOM, Outcome
from flows.benchmarks.pool.tasks import TASKS, Pool, load_pool
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, sha256, write_text
from loop.metrics import bootstrap_mean

FINAL = 20  # candidates in the final list
PROTOCOL = (
    f"Mean utility of the best {FINAL} labelled against that of the best {FINAL} of the pool; the shortfall is their "
    "difference over the latter's size. 95 % bootstrap intervals over seeds."
)
WITHOUT_WINDOW = tuple(name for name, task in TASKS.items() if not task.constraints)


@dataclass(frozen=True)
class GateConfig(SimulatedCampaigns):
    """Settings of the benchmark.

    Attributes:
        shares: of the calls of exhaustive labelling.
        budget: labels of a campaign; None: the largest share. With that of the pool benchmark and its folder as output,
            its campaigns serve here.
    """

    shares: tuple[float, ...] = (0.1, 0.2)
    budget: int | None = None
    tasks: tuple[str, ...] = WITHOUT_WINDOW  # in a window the best 20 are all alike
    strategies: tuple[str, ...] = (RANDOM, "greedy", "ucb")

    def of(self, pool: Pool) -> PoolConfig:
        """Campaigns that reach the largest share of the pool.

        Raises:
            ConfigError: the budget does not reach it.
        """
        needed = round(max(self.shares) * len(pool.candidates))
        budget = needed if self.budget is None else self.budget
        if budget < needed:
            raise ConfigError(f"a budget of at least {needed} labels is needed for the shares {self.shares}")
        shared = {item.name: getattr(self, item.name) for item in fields(SimulatedCampaigns)}
        return PoolConfig(**{**shared, "tasks": (pool.task,)}, budget=budget)


def run(data: Path, output: Path, config: GateConfig | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Run the benchmark; finished campaigns in `output` are not run again. Writes record.json and summary.csv.

    Raises:
        InputError: the table cannot be used.
    """
    import pandas as pd

    config = config or GateConfig()
    make_folder(output)
    rows: list[dict[str, Any]] = []
    for task in config.tasks:
        pool = load_pool(data, task, config.pool_size, config.pool_seed, config.validity)
        extractor = extractor_of(task, output / "features", config.potential)
        extractor(pool.candidates, progress)
        outcomes = campaigns(pool, extractor, output / "campaigns", config.of(pool), progress)
        rows += summarise(task, pool.utilities(), outcomes, config.shares)
    write_text(output / "summary.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    record = {
        "benchmark": "gate",
        "protocol": PROTOCOL,
        "settings": asdict(config),
        "data": {"file": data.name, "sha256": sha256(data)},
        "results": rows,
        "files": files_of([output / "summary.csv"]),
    }
    return write_benchmark(output, record)


def summarise(
    task: str, utilities: np.ndarray, outcomes: Sequence[Outcome], shares: Sequence[float]
) -> list[dict[str, Any]]:
    """One row a strategy and share of calls."""
    grouped: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        grouped.setdefault(outcome.campaign.strategy, []).append(outcome)
    return [_row(task, utilities, strategy, own, share) for strategy, own in grouped.items() for share in shares]


def _row(task: str, utilities: np.ndarray, strategy: str, own: Sequence[Outcome], share: float) -> dict[str, Any]:
    calls = round(share * len(utilities))
    found = bootstrap_mean([shortfall(utilities, outcome.order[:calls]) for outcome in own])
    head = {"task": task, "strategy": strategy, "share_of_calls": share, "calls": calls, "seeds": len(own)}
    return head | {"shortfall": found.value, "shortfall_low": found.low, "shortfall_high": found.high}


def shortfall(utilities: np.ndarray, labelled: Sequence[int]) -> float:
    """How far the best `FINAL` labelled stay behind the best of all, relative to these; 0 is as good.

    Args:
        utilities: higher is better, shape (n,).
        labelled: rows that were labelled.
    """
    best = np.sort(utilities)[-FINAL:].mean()
    found = np.sort(utilities[np.asarray(labelled, dtype=int)])[-FINAL:].mean()
    return float((best - found) / abs(best))
