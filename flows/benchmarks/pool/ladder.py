"""`discovery-loop benchmark ladder`: does the surrogate of the step between two fidelities find the best sooner?

Crystals have a cheap value each, and a costly one that is hidden until it is paid for. What is measured next is decided
by rank of the cheap value, by chance, or by `surrogates.steps`. All spend the same: what counts is the share of the
best by the costly value that was found, on average over the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.harness import files_of, write_benchmark
from loop.contracts import Progress
from loop.errors import ConfigError, InputError
from loop.io.files import make_folder, sha256, write_text
from loop.validity import ValidityRules
from loop.values import Candidate
from surrogates.features import FeatureExtractor
from surrogates.properties import Property
from surrogates.steps import Steps, selected_for_tier
from surrogates.utility import Objective, bind

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

RANK, RANDOM, OURS = "rank", "random", "ours"
STRATEGIES = (RANDOM, RANK, OURS)
MOSS = 95.0  # eV: n^4 E_gap (Moss, Phys. Status Solidi B 131, 415 (1985))
RESAMPLES = 2000


@dataclass(frozen=True)
class Task:
    """Two fidelities of a property.

    Attributes:
        prop: the costly one.
        objective: what is wanted of it.
        columns: of the table, without which a row does not take part.
        high: costly values from the columns; NaN leaves a row out.
        low: cheap values from the columns; None: a potential computes them from the crystals (bulk moduli).
    """

    prop: Property
    objective: Objective
    columns: tuple[str, ...]
    high: Callable[[pd.DataFrame], np.ndarray]
    low: Callable[[pd.DataFrame], np.ndarray] | None


def _insulators(frame: pd.DataFrame) -> np.ndarray:
    """Gaps in eV; NaN for metals and for dielectric constants that are none."""
    gap, epsilon = frame["band_gap"].to_numpy(float), frame["eps_electronic"].to_numpy(float)
    return np.where((gap > 0.1) & (epsilon >= 1) & (epsilon < 30), gap, np.nan)


def _total(frame: pd.DataFrame) -> np.ndarray:
    total = frame["eps_total"].to_numpy(float)
    return np.where(np.isfinite(_insulators(frame)) & (total < 200), total, np.nan)


_EPSILON = Property("dear", "1", "log", prior_mean=1.6, prior_std=0.6)
TASKS: dict[str, Task] = {
    # the electronic part of the dielectric constant, and with the ions' (DFPT, both from one source)
    "dielectric_total": Task(
        Property("dear", "1", "log", prior_mean=2.5, prior_std=0.8), Objective("dear"),
        ("eps_total", "eps_electronic", "band_gap"), _total, lambda frame: frame["eps_electronic"].to_numpy(float),
    ),
    # Moss's rule from the PBE gap, and DFPT
    "dielectric_electronic": Task(
        _EPSILON, Objective("dear"), ("eps_electronic", "band_gap"),
        lambda frame: np.where(np.isfinite(_insulators(frame)), frame["eps_electronic"].to_numpy(float), np.nan),
        lambda frame: np.sqrt(MOSS / _insulators(frame)),
    ),
    # the same two, for a value in the middle: of high-index glasses
    "dielectric_target": Task(
        _EPSILON, Objective("dear", "target", 6.0), ("eps_electronic", "band_gap"),
        lambda frame: np.where(np.isfinite(_insulators(frame)), frame["eps_electronic"].to_numpy(float), np.nan),
        lambda frame: np.sqrt(MOSS / _insulators(frame)),
    ),
    # an equation of state by the potential, and published PBE moduli
    "bulk_modulus": Task(
        Property("dear", "GPa", "log", prior_mean=4.35, prior_std=0.8), Objective("dear"), ("log10_k_vrh",),
        lambda frame: 10 ** frame["log10_k_vrh"].to_numpy(float), None,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class LadderConfig:
    """Settings of the benchmark.

    Attributes:
        tasks: keys of `TASKS`.
        seeds: campaigns of each strategy on each task.
        crystals: of each task, drawn once from the table; `pool` of them, drawn by the seed, are a campaign's.
        pool: crystals of a campaign.
        max_atoms: of the cell.
        top: share of the pool that is looked for, best costly values first.
        initial: crystals measured first, by rank in all strategies but chance.
        batch: crystals measured together.
        budget: what may be spent, in mean costs of the pool's crystals.
        cost_slope: a measurement costs the number of electrons to this power.
        potential: of the cheap bulk moduli.
    """

    tasks: tuple[str, ...] = tuple(TASKS)
    seeds: int = 10
    crystals: int = 800
    pool: int = 300
    max_atoms: int = 12
    top: float = 0.05
    initial: int = 6
    batch: int = 6
    budget: float = 40.0
    cost_slope: float = 2.0
    potential: str = "chgnet"

    def __post_init__(self) -> None:
        """Check values."""
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown:
            raise ConfigError(f"unknown tasks: {', '.join(unknown)}; there are {', '.join(TASKS)}")
        if min(self.seeds, self.initial, self.batch) < 1 or self.pool <= self.initial or self.budget <= 0:
            raise ConfigError(f"expected positive seeds, initial, batch and budget, and a larger pool, got {self}")


@dataclass(frozen=True)
class World:
    """Crystals with both fidelities."""

    candidates: list[Candidate]
    low: np.ndarray  # (n,)
    high: np.ndarray  # (n,)
    cost: np.ndarray  # (n,) in means

    def part(self, rows: np.ndarray) -> World:
        """Some of them; costs in their mean."""
        cost = self.cost[rows]
        return World([self.candidates[row] for row in rows], self.low[rows], self.high[rows], cost / cost.mean())


def run(data: Path, output: Path, config: LadderConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        data: CSV with a `cif` column and the tasks' columns.
        output: folder of record.json, campaigns.csv and the features' cache.
        config: settings.
        progress: called after each campaign.

    Raises:
        InputError: the table cannot be used.
    """
    import pandas as pd

    make_folder(output)
    extractor, rows = FeatureExtractor(cache=output / "features"), []
    for name in config.tasks:
        world = load(data, name, config)
        features = extractor(world.candidates)
        for seed in range(config.seeds):
            chosen = np.random.default_rng(seed).permutation(len(world.low))[: config.pool]
            part = world.part(chosen)
            for strategy in STRATEGIES:
                found = simulate(part, features[chosen], extractor.groups, TASKS[name], strategy, seed, config)
                rows.append({"task": name, "seed": seed, "strategy": strategy, **found})
            if progress is not None:
                progress(f"ladder {name}", seed + 1, config.seeds, {})
    frame = pd.DataFrame(rows)
    write_text(output / "campaigns.csv", frame.to_csv(index=False, lineterminator="\n", float_format="%.5g"))
    record = {
        "benchmark": "ladder",
        "protocol": f"pools of {config.pool} crystals with a cheap value each; the costly value costs electrons to the "
        f"power {config.cost_slope:g} and is paid for until {config.budget:g} mean costs are spent; area: share of the "
        f"best {config.top:.0%} by the costly value that was found, averaged over the budget; differences are paired "
        "by seed, with 95 % bootstrap intervals over seeds",
        "settings": asdict(config),
        "data": {"file": data.name, "sha256": sha256(data)},
        "results": summary(frame),
        "files": files_of([output / "campaigns.csv"]),
    }
    return write_benchmark(output, record)


def simulate(
    world: World,
    features: np.ndarray,
    groups: dict[str, np.ndarray],
    task: Task,
    strategy: str,
    seed: int,
    config: LadderConfig,
) -> dict[str, float]:
    """One campaign: ``area`` and ``found`` (shares of the best), ``measured`` and ``best`` (costly value)."""
    goals = bind([task.objective], [], [task.prop])
    cheap, dear = (goals.values(task.prop.to_scale(values)[:, None])[:, 0] for values in (world.low, world.high))
    ranking = np.argsort(-cheap, kind="stable")
    if strategy == RANDOM:
        ranking = np.random.default_rng(seed).permutation(len(ranking))
    n = len(ranking)
    top = set(np.argsort(-dear, kind="stable")[: max(1, round(config.top * n))].tolist())
    empty = np.full(n, np.nan)
    size = world.cost ** (1 / config.cost_slope)
    steps = Steps(features, world.low, empty.copy(), empty.copy(), size, np.ones(n))
    spent, area, order = 0.0, 0.0, list[int]()
    while spent < config.budget and len(order) < n:
        k = config.batch if order else config.initial
        left = [int(row) for row in ranking if row not in set(order)]
        by_ours = strategy == OURS and order
        for row in selected_for_tier(steps, groups, task.prop, task.objective, k) if by_ours else left[:k]:
            cost = min(float(world.cost[row]), config.budget - spent)
            area += cost * len(top & set(order)) / len(top)  # what is found while this one is being paid for
            spent += float(world.cost[row])
            if spent > config.budget:
                break
            order.append(row)
            steps.high[row], steps.cost[row] = world.high[row], world.cost[row]
    found = len(top & set(order)) / len(top)
    best = world.high[order[int(np.argmax(dear[order]))]] if order else float("nan")
    return {"area": area / config.budget, "found": found, "measured": len(order), "best": float(best)}


def load(data: Path, name: str, config: LadderConfig) -> World:
    """Crystals of a task with both fidelities.

    Raises:
        InputError: the table lacks a column, or has too few crystals.
    """
    import pandas as pd

    from oracles.references.table import structure_of

    task = TASKS[name]
    try:
        frame = pd.read_csv(data, keep_default_na=False, na_values=[""])
        frame = frame.dropna(subset=["cif", *task.columns])
        high = task.high(frame)
        low = np.full(len(frame), np.nan) if task.low is None else task.low(frame)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{data}: expected a CSV with the columns cif, {', '.join(task.columns)}: {error}") from error
    usable = np.flatnonzero(np.isfinite(task.prop.to_scale(high)) & (np.isfinite(low) | (task.low is None)))
    candidates, rows, rules = list[Candidate](), list[int](), ValidityRules()
    for row in np.random.default_rng(0).permutation(usable):
        structure, _ = structure_of(frame["cif"].iloc[row])
        if structure is not None and len(structure) <= config.max_atoms and rules([structure])[0] is None:
            candidates.append(Candidate(structure))
            rows.append(int(row))
        if len(rows) == config.crystals:
            break
    if len(rows) <= config.initial:
        raise InputError(f"{data} has {len(rows)} crystals for {name}, expected more than {config.initial}")
    cheap = low[rows] if task.low is not None else _moduli([c.structure for c in candidates], config.potential)
    good = np.isfinite(task.prop.to_scale(cheap))
    electrons = np.array([float(sum(c.structure.atomic_numbers)) for c in candidates])
    cost = (electrons / electrons.mean()) ** config.cost_slope
    return World(candidates, cheap, high[rows], cost).part(np.flatnonzero(good))


def _moduli(structures: Sequence[Structure], potential: str) -> np.ndarray:
    """Bulk moduli (n,) in GPa at the potential's own minimum, NaN where there is none."""
    from oracles.potentials.loading import load_potential
    from oracles.properties.bulk import bulk_moduli
    from oracles.relax import relax

    loaded = load_potential(potential)
    relaxed = relax(list(structures), loaded)
    found = iter(bulk_moduli([each.structure for each in relaxed if each.ok and each.structure], loaded))
    return np.array([next(found).value if each.ok and each.structure else np.nan for each in relaxed])


def summary(frame: pd.DataFrame) -> dict[str, Any]:
    """By task: mean area and found of each strategy, and ours against the others with 95 % intervals."""
    result: dict[str, Any] = {}
    for task, rows in frame.groupby("task", sort=False):
        area = rows.pivot_table(index="seed", columns="strategy", values="area")
        means = rows.groupby("strategy")[["area", "found", "measured"]].mean()
        told: dict[str, Any] = {name: means.loc[name].round(4).to_dict() for name in STRATEGIES}
        for other in (RANK, RANDOM):
            told[f"ours - {other}"] = _interval((area[OURS] - area[other]).to_numpy())
        result[str(task)] = told
    return result


def _interval(differences: np.ndarray) -> dict[str, float]:
    rng = np.random.default_rng(0)
    means = differences[rng.integers(0, len(differences), (RESAMPLES, len(differences)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(differences.mean()), "low": float(low), "high": float(high)}
