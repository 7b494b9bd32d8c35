"""`discovery-loop benchmark pool`: does the selection find the best crystals of a real pool sooner than chance?

Labels of a table of crystals are hidden until a strategy asks for them. Strategies begin with the same random labels;
what counts is how many labels they need to find half of the pool's top 1 %.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.benchmarks.harness import files_of, write_benchmark
from flows.benchmarks.pool.simulation import FOREST, RANDOM, Campaign, Engine, Outcome, settings_of, simulate, taught
from flows.benchmarks.pool.summary import summarise, tables
from flows.benchmarks.pool.tasks import TASKS, Pool, load_pool
from flows.benchmarks.workers import spread
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, sha256, write_text
from loop.validity import ValidityRules
from surrogates.acquisition import ACQUISITIONS, FORMER
from surrogates.features import FeatureExtractor, default_blocks

STRATEGIES = (RANDOM, FOREST, "greedy", "ucb", "thompson", "logcei", "qlogei")
DESCRIPTORS = 64  # of CHGNet


@dataclass(frozen=True)
class SimulatedCampaigns:
    """Settings of campaigns on a table whose labels are hidden.

    Attributes:
        tasks: keys of `TASKS`.
        strategies: keys of `surrogates.acquisition.ACQUISITIONS`, or ``forest_greedy``.
        seeds: campaigns of each strategy on each task.
        pool_size: crystals of a pool, drawn at random from those with the label that are valid; None takes all.
        pool_seed: of that draw.
        validity: crystals that a campaign would not take are in no pool: noble gases, say, whose gaps are the largest.
        initial: random labels at the start of a campaign.
        batch: labels per round.
        shadow: share of a batch that chance picks; see `pool_simulation.Campaign`.
        workers: processes, of one thread each.
        potential: its frozen descriptors join the features, except where it was trained on the label; ``none``: never.
        engine: settings of surrogate and selection.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    strategies: tuple[str, ...] = STRATEGIES
    seeds: int = 10
    pool_size: int | None = 2000
    pool_seed: int = 0
    validity: ValidityRules = field(default_factory=ValidityRules)
    initial: int = 20
    batch: int = 20
    shadow: float = 0.1
    workers: int = 1
    potential: str = "chgnet"
    engine: Engine = field(default_factory=Engine)


@dataclass(frozen=True)
class PoolConfig(SimulatedCampaigns):
    """Settings of the benchmark.

    Attributes:
        known: labelled crystals of other formulas, of which all strategies but chance know from the start: what a
            campaign has from the Materials Project, say. They do not count as labels.
        budget: labels of a campaign.
    """

    known: int = 0
    budget: int = 240

    def __post_init__(self) -> None:
        object.__setattr__(self, "strategies", tuple(FORMER.get(name, name) for name in self.strategies))
        unknown = [task for task in self.tasks if task not in TASKS]
        unknown += [name for name in self.strategies if name not in (*ACQUISITIONS.names(), FOREST)]
        if unknown:
            known = f"tasks: {', '.join(TASKS)}; strategies: {', '.join((*ACQUISITIONS.names(), FOREST))}"
            raise ConfigError(f"unknown: {', '.join(unknown)}; {known}")
        if min(self.seeds, self.initial, self.batch, self.workers) < 1 or self.budget <= self.initial or self.known < 0:
            raise ConfigError(
                "expected seeds, initial, batch and workers of at least 1, a budget above `initial` and no negative "
                f"`known`, got {self.seeds=}, {self.initial=}, {self.batch=}, {self.workers=}, {self.budget=}, "
                f"{self.known=}"
            )


def run(data: Path, output: Path, config: PoolConfig | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Run the benchmark; campaigns that `output` holds already, with the same settings, are not run again.

    Args:
        data: CSV with a `cif` column and the labels' columns (those of ../docs or of any Materials Project table:
            `log10_k_vrh`, `band_gap`, `formation_energy_per_atom`, `formation_energy_source`, `eps_electronic`).
        output: folder for record.json, summary.csv, curves.csv, calibration.csv and figures.
        config: settings.
        progress: called after each campaign.

    Returns:
        The record, as in record.json.

    Raises:
        InputError: the table cannot be used.
    """
    from flows.benchmarks.pool.figures import draw

    config = config or PoolConfig()
    make_folder(output)
    outcomes: dict[str, list[Outcome]] = {}
    sizes: dict[str, dict[str, int]] = {}
    reach: dict[str, float] = {}
    for task in config.tasks:
        pool = load_pool(data, task, config.pool_size, config.pool_seed, config.validity, config.known)
        extractor = extractor_of(task, output / "features", config.potential)
        extractor(pool.described, progress)
        outcomes[task] = campaigns(pool, extractor, output / "campaigns", config, progress)
        sizes[task] = {"pool": len(pool.candidates), "top": len(pool.top), "known": config.known}
        reach[task] = taught(pool, extractor)
    summary = summarise(outcomes, sizes)
    for name, frame in tables(outcomes, summary).items():
        write_text(output / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
    figures = draw(outcomes, sizes, output)
    record = {
        "benchmark": "pool",
        "protocol": "labels hidden until asked for; target: half of the top 1 %; chance is its expectation n/N; "
        "af_taught: of a forest that ranks each fifth of the pool knowing the labels of the other four",
        "settings": asdict(config),
        "data": {"file": data.name, "sha256": sha256(data)},
        "pools": {task: {**size, "af_taught": reach[task]} for task, size in sizes.items()},
        "results": summary,
        "files": files_of([*sorted(output.glob("*.csv")), *figures]),
    }
    return write_benchmark(output, record)


def extractor_of(task: str, cache: Path, potential: str) -> FeatureExtractor:
    """Features of a task's crystals, kept on disk: those of a frozen potential among them where it is no leak."""
    if potential == "none" or TASKS[task].leaks:
        return FeatureExtractor(cache=cache)
    from oracles.potentials.loading import load_potential

    loaded = load_potential(potential)
    blocks = default_blocks(loaded.energies_and_descriptors, key=str(loaded.energy_type), size=DESCRIPTORS)
    return FeatureExtractor(blocks, cache)


def campaigns(
    pool: Pool, extractor: FeatureExtractor, folder: Path, config: PoolConfig, progress: Progress | None
) -> list[Outcome]:
    """All campaigns of a task, those on disk read back, the others run side by side."""
    make_folder(folder)
    wanted = [
        Campaign(strategy, seed, config.initial, config.batch, config.budget, config.shadow)
        for seed in range(config.seeds)
        for strategy in config.strategies
    ]
    paths = {campaign: folder / f"{_key(pool, extractor, campaign, config.engine)}.json" for campaign in wanted}
    done = {
        campaign: Outcome.from_dict(json.loads(path.read_text(encoding="utf-8")))
        for campaign, path in paths.items()
        if path.exists()
    }
    todo = [campaign for campaign in wanted if campaign not in done]
    shared = (pool, extractor.detached(), config.engine)
    for campaign, outcome in spread(_one, shared, todo, config.workers):
        write_text(paths[campaign], json.dumps(outcome.to_dict()))
        done[campaign] = outcome
        if progress is not None:
            progress(f"pool {pool.task}", len(done), len(wanted), {campaign.strategy: outcome.found[-1]})
    return [done[campaign] for campaign in wanted]


def _one(shared: tuple[Pool, FeatureExtractor, Engine], campaign: Campaign) -> Outcome:
    pool, extractor, engine = shared
    return simulate(pool, campaign, extractor, engine)


def _key(pool: Pool, extractor: FeatureExtractor, campaign: Campaign, engine: Engine) -> str:
    """Name of a campaign's file: readable, and a hash of everything that changes its outcome."""
    ids = "".join(candidate.id for candidate in pool.described)
    ours = "" if campaign.strategy in (RANDOM, FOREST) else repr(settings_of(pool, campaign, engine))
    parts = [pool.task, ids, extractor.key, repr(campaign), ours]
    digest = hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]
    return f"{pool.task}-{campaign.strategy}-{campaign.seed}-{digest}"
