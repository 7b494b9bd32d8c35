"""What `benchmark resume` kills, and what became of it: scenarios, outcomes, the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from loop.io.files import write_text

LABELS, SLURM = ("here", "processes", "dask"), "slurm"


@dataclass(frozen=True)
class Scenario:
    """Where a campaign runs, and what is killed."""

    ledger: str  # sqlite or postgresql
    engine: str  # plain or prefect
    labels: str  # here, processes, dask or slurm
    victim: str  # engine, worker or ledger


@dataclass(frozen=True)
class ResumeBenchmark:
    """How much is killed: as many as `kills` at least, and at least one campaign of each scenario."""

    kills: int = 200
    database: str | None = None  # URL of a PostgreSQL database on this machine; None: SQLite alone
    prefect: bool = True
    seed: int = 0
    minutes: float = float("inf")
    labels: tuple[str, ...] = LABELS  # where labels are computed; slurm needs a Slurm whose nodes are this machine

    @property
    def scenarios(self) -> list[Scenario]:
        """All that make sense: without workers none can be killed, and only PostgreSQL has a process."""
        ledgers = ("sqlite", "postgresql") if self.database else ("sqlite",)
        engines = ("plain", "prefect") if self.prefect else ("plain",)
        every = (Scenario(*names) for names in product(ledgers, engines, self.labels, ("engine", "worker", "ledger")))
        return [item for item in every if not (
            (item.victim == "worker" and item.labels == "here") or (item.victim == "ledger" and item.ledger == "sqlite")
        )]  # fmt: skip


@dataclass
class Outcome:
    """What became of one campaign."""

    scenario: Scenario
    kills: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0
    labels: int = 0
    paid_twice: int = 0
    lost: int = 0
    same_list: bool = False


def summary(outcomes: Sequence[Outcome], config: ResumeBenchmark, seconds: float) -> dict[str, Any]:
    """The record: what was killed, and what became of it."""
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    where = Counter[str]()
    for outcome in outcomes:
        for name, value in asdict(outcome.scenario).items():
            where[f"{name}: {value}"] += len(outcome.kills)
    labels, made = sum(outcome.labels for outcome in outcomes), sum(outcome.calls for outcome in outcomes)
    return {
        "settings": {**asdict(config), "database": bool(config.database)},
        "seconds": seconds,
        "results": {
            "kills": len(kills),
            "campaigns": len(outcomes),
            "campaigns_with_the_same_list": sum(outcome.same_list for outcome in outcomes),
            "labels": labels,
            "labels_paid_twice": sum(outcome.paid_twice for outcome in outcomes),
            "labels_lost": sum(outcome.lost for outcome in outcomes),
            "calls_cut_off": made - labels,
            "kills_by_stage": dict(sorted(Counter(kill["stage"] for kill in kills).items())),
            "kills_by_place": dict(sorted(where.items())),
        },
    }


def write_kills(output: Path, outcomes: Sequence[Outcome]) -> None:
    """One line a kill."""
    lines = ["campaign,ledger,engine,labels,victim,stage,after_s,labels_held,same_list"]
    for number, outcome in enumerate(outcomes):
        place = ",".join(asdict(outcome.scenario).values())
        for kill in outcome.kills:
            held = len(kill["held"])
            lines.append(f"{number},{place},{kill['stage']},{kill['after_s']},{held},{outcome.same_list}")
    write_text(output / "kills.csv", "\n".join(lines) + "\n")
