"""`discovery-loop benchmark rl`: does fine-tuning find more stable, unique, new crystals, and at what cost?

Every arm learns with the same number of reward evaluations, then draws fresh samples, which are judged unrelaxed by the
potential of the reward and, where one is given, by another potential with a hull of its own. Every arm and seed is a
file: a killed benchmark resumes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.harness import write_benchmark
from flows.benchmarks.rl.arms import Laboratory, SupervisedConfig, read_samples, run_arm
from flows.benchmarks.rl.chemistry import chemistry
from flows.benchmarks.rl.dynamics import PROTOCOL as DYNAMICS
from flows.benchmarks.rl.dynamics import dynamics, tally
from flows.benchmarks.rl.hull import JudgeConfig
from flows.benchmarks.rl.judge import PROTOCOL, counts, drift, judged
from flows.benchmarks.rl.relaxed import COLUMN as RELAXED
from flows.benchmarks.rl.relaxed import PROTOCOL as RELAXING
from flows.benchmarks.rl.relaxed import SECOND, Relaxing, relaxed
from flows.benchmarks.rl.variants import (
    BASE,
    BEST_OF_N,
    PAPER,
    RECIPE,
    REWARD,
    SUPERVISED,
    TUNED,
    VARIANTS,
    check_names,
)
from flows.journal import same_settings
from flows.progress import of_stage
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, write_text
from loop.stability import LEVELS, METASTABLE
from oracles.opinion import OpinionConfig
from oracles.properties.phonons import PhononConfig

if TYPE_CHECKING:
    from flows.benchmarks.rl.judge import Samples

Cell = tuple[str, int]
INDEPENDENT = "independent_e_above_hull"


@dataclass(frozen=True)
class RLConfig:
    """Settings of the benchmark.

    Attributes:
        variants: arms that run with every seed.
        ablations: arms that run with the first `ablation_seeds` seeds.
        seeds: how many, from `seed` on.
        ablation_seeds: how many for the ablations.
        seed: the first.
        samples: fresh samples that are judged, per arm and seed.
        checkpoint: folder of the base; none: the one that is shipped.
        judge: the independent potential.
        judged: arms that the independent potential judges.
        judge_samples: samples of each of them that it sees, the first ones.
        relaxed: samples of each judged arm that are relaxed with the default potential, the first ones; 0: none.
        second: potential that judges the relaxed ones on its own hull, as sevennet; none: only the default one.
        second_below: distance from the default potential's hull (eV/atom) up to which it is asked.
        phonons: relaxed samples of each judged arm that are M.S.U.N. whose phonons are computed, by the last potential
            asked, the first ones; 0: none.
        displacing: how these are displaced.
        recipe: settings of the fine-tuning.
        supervised: settings of the supervised baseline.
    """

    variants: tuple[str, ...] = (BASE, TUNED, BEST_OF_N, SUPERVISED)
    ablations: tuple[str, ...] = (
        PAPER,
        "group-baseline",
        "no-novelty",
        "no-guards",
        "surrogate",
        "surrogate-penalty",
    )
    seeds: int = 3
    ablation_seeds: int = 1
    seed: int = 0
    samples: int = 1000
    checkpoint: Path | None = None
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    judged: tuple[str, ...] = (BASE, TUNED, BEST_OF_N, SUPERVISED)
    judge_samples: int = 1000
    relaxed: int = 0
    second: str | None = None
    second_below: float = 0.2
    phonons: int = 0
    displacing: PhononConfig = field(default_factory=PhononConfig)
    recipe: RecipeOverrides = field(default_factory=lambda: RecipeOverrides())
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)

    def __post_init__(self) -> None:
        """Check names and numbers."""
        check_names((*self.variants, *self.ablations, *self.judged))
        if BASE not in self.variants:
            raise ConfigError("the base must be among the variants: all others are compared with it.")
        counts_from_zero = (self.ablation_seeds, self.relaxed, self.phonons)
        if min(self.seeds, self.samples, self.judge_samples) < 1 or min(counts_from_zero) < 0:
            raise ConfigError(
                "seeds, samples and judge_samples must be positive, ablation_seeds, relaxed and phonons not negative."
            )
        for name, wanted in (("second", self.second is not None), ("phonons", self.phonons > 0)):
            if wanted and not self.relaxed:
                raise ConfigError(f"{name} looks at relaxed crystals: set relaxed, the number of samples.")
        if not self.second_below >= METASTABLE:
            raise ConfigError(f"expected second_below of at least {METASTABLE:g} eV/atom, got {self.second_below}")

    @property
    def cells(self) -> list[Cell]:
        """Every arm and seed, in the order in which they run: what matters most first."""
        seeds = range(self.seed, self.seed + self.seeds)
        main = [(name, seed) for seed in seeds for name in self.variants]
        extra = [name for name in self.ablations if name not in self.variants]
        return main + [(name, seed) for seed in seeds[: self.ablation_seeds] for name in extra]


@dataclass(frozen=True)
class RecipeOverrides:
    """What may be changed of the recipe: its cost, its strength, and what keeps its chemistry."""

    iterations: int = RECIPE.iterations
    batch_size: int = RECIPE.batch_size
    minibatch_size: int = RECIPE.minibatch_size
    learning_rate: float = RECIPE.learning_rate
    tilt_learning_rate: float = RECIPE.tilt_learning_rate
    space_group_learning_rate: float = RECIPE.space_group_learning_rate
    space_group_anchor: float = RECIPE.space_group_anchor
    kl_weight: float = RECIPE.kl_weight
    element_limit: float | None = RECIPE.element_limit
    repeat_discount: float = RECIPE.repeat_discount
    keep_classes: float = RECIPE.keep_classes
    prototype_limit: float = RECIPE.prototype_limit
    replay_evenly: bool = RECIPE.replay_evenly
    average_last: float = RECIPE.average_last


def run(output: Path, config: RLConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run every arm and seed that is not there yet, judge, and write ``record.json``, tables and figures.

    Raises:
        ConfigError: the folder holds arms with other settings, or the judge cannot be run.
    """
    from flows.build import Builder
    from flows.config import CampaignConfig

    make_folder(output)
    _same_settings(output, config)
    campaign = CampaignConfig()
    section = campaign.generator.model_copy(update={"checkpoint": config.checkpoint})
    builder = Builder(campaign.model_copy(update={"generator": section}))
    lab = Laboratory(
        builder, replace(RECIPE, **asdict(config.recipe)), config.samples, output, supervised=config.supervised
    )
    about: dict[Cell, dict[str, Any]] = {}
    for done, (name, seed) in enumerate(config.cells):
        if progress is not None:
            progress("arms", done, len(config.cells), {})
        about[name, seed] = run_arm(lab, name, seed, progress)
    return report(output, config, builder, about, progress)


def report(
    output: Path, config: RLConfig, builder: Any, about: dict[Cell, dict[str, Any]], progress: Progress | None
) -> dict[str, Any]:
    """Judge what the arms drew, and write everything."""
    from flows.benchmarks.rl.summary import draw_curves, draw_shares, summarise, table

    samples = {cell: read_samples(output, *cell) for cell in about}
    independent = _independent(output, config, builder, samples, progress)
    base = {seed: samples[BASE, seed].rows for name, seed in samples if name == BASE}
    phases = of_stage(progress, "competing phases")
    opinion = None if config.second is None else builder.opinion(OpinionConfig(config.second), LEVELS, phases)
    relaxing = Relaxing(builder, opinion, config.second_below)
    cells = []
    for (name, seed), drawn in samples.items():
        row = {"variant": name, "seed": seed, **counts(drawn.rows), **drift(drawn.rows, base.get(seed, drawn.rows))}
        row |= chemistry(drawn)
        if INDEPENDENT in drawn.rows:
            seen = drawn.rows.head(config.judge_samples)
            row |= {f"independent_{key}": value for key, value in counts(seen, INDEPENDENT).items()}
        if config.relaxed and name in config.judged:
            row |= _after_relaxation(output, config, relaxing, (name, seed), drawn, progress)
        told = about[name, seed]
        row |= {key: told.get(key) for key in ("evaluations", "finds", "trained_on", "stopped")}
        cells.append(row | {"cpu_seconds": told["cpu_seconds"]["learn"]})
    record = {
        "benchmark": "rl",
        "results": summarise(cells),
        "independent_judge": independent,
        "protocol": {
            "judging": PROTOCOL,
            "relaxed": RELAXING,
            "dynamics": DYNAMICS,
            "novelty": builder.novelty.protocol(),
        },
        "cells": cells,
        "about": {name: VARIANTS[name].about for name in {cell[0] for cell in about} if name in VARIANTS},
        "settings": _plain(config),
        "recipe": asdict(replace(RECIPE, **asdict(config.recipe))),
        "reward": asdict(REWARD),
        "base": builder.generator.base.checksum,
    }
    write_benchmark(output, record)
    write_text(output / "table.csv", table(record["results"]))
    draw_curves(about, output / "curves.png")
    draw_shares(record["results"], output / "shares.png")
    return record


def _after_relaxation(
    output: Path, config: RLConfig, relaxing: Relaxing, cell: Cell, drawn: Samples, progress: Progress | None
) -> dict[str, Any]:
    """What the relaxed samples of an arm and seed count, by one potential or two, and their phonons."""
    name = "-".join(map(str, cell))
    tell = None if progress is None else partial(_tell, progress, f"{cell[0]} {cell[1]}")
    seen = relaxed(drawn, config.relaxed, relaxing, output / "cells" / f"{name}.relaxed.csv", tell)
    row: dict[str, Any] = {f"relaxed_{key}": value for key, value in counts(seen, RELAXED).items()}
    last = RELAXED
    if config.second is not None:
        # where its hull is thin, the second judge gives no distance
        seen, last = seen.assign(sparse_hull=False), SECOND
        row |= {f"second_{key}": value for key, value in counts(seen, SECOND).items()}
    if config.phonons:
        chosen = np.flatnonzero(judged(seen, last)["msun"])[: config.phonons]
        crystals = {int(i): s for i in chosen if (s := drawn.structures[i]) is not None}
        told = None if tell is None else partial(tell, "phonons")
        row |= tally(dynamics(crystals, relaxing, config.displacing, output / "cells" / f"{name}.phonons.csv", told))
    return row


def _tell(progress: Progress, cell: str, stage: str, done: int, total: int) -> None:
    progress(f"{stage} {cell}", done, total, {})


def _independent(
    output: Path, config: RLConfig, builder: Any, samples: dict[Cell, Samples], progress: Progress | None
) -> dict[str, Any]:
    """Let another potential judge; its distances become a column of the rows."""
    from flows.benchmarks.rl.hull import Energies, IndependentHull, Phases

    if config.judge.model is None:
        return {"present": False, "note": "no independent judge: give its model and python, and the known crystals"}
    cells = [cell for cell in samples if cell[0] in config.judged]
    where: list[tuple[Cell, int]] = []
    for cell in cells:
        good = samples[cell].rows["structure_valid"].to_numpy(dtype=bool)[: config.judge_samples]
        where += [(cell, int(row)) for row in np.flatnonzero(good)]
    crystals = [s for cell, row in where if (s := samples[cell].structures[row]) is not None]
    hull = IndependentHull(
        Energies(config.judge, output / "judge_cache.json"), Phases(builder.measuring.table, config.judge.data)
    )
    above = hull.judge(crystals, of_stage(progress, "judge"))
    for cell in cells:
        column = np.full(len(samples[cell].rows), np.nan)
        column[[row for at, row in where if at == cell]] = above[[k for k, (at, _) in enumerate(where) if at == cell]]
        samples[cell].rows[INDEPENDENT] = column
    default = np.concatenate([samples[cell].rows["e_above_hull"].to_numpy(dtype=float) for cell in cells])
    second = np.concatenate([samples[cell].rows[INDEPENDENT].to_numpy(dtype=float) for cell in cells])
    both = np.isfinite(default) & np.isfinite(second)
    agree = (default[both] <= 0.1) == (second[both] <= 0.1)
    about = {"present": True, "potential": str(hull.kind), "arms": list(config.judged), **hull.about}
    difference = float(np.median(np.abs(default[both] - second[both])))
    return about | {"median_difference_ev_per_atom": difference, "agree_on_stable": float(agree.mean())}


def _plain(config: RLConfig) -> dict[str, Any]:
    """Settings for the record, without paths."""
    data = asdict(config)
    data["judge"] = {"model": None if config.judge.model is None else config.judge.model.name}
    return data | {"checkpoint": "shipped" if config.checkpoint is None else "given"}


def _same_settings(output: Path, config: RLConfig) -> None:
    """Refuse arms that were made with other settings."""
    free = (
        "judge",
        "judged",
        "judge_samples",
        "relaxed",
        "second",
        "second_below",
        "phonons",
        "displacing",
        "variants",
        "ablations",
        "seeds",
        "ablation_seeds",
        "seed",
    )
    ours = {key: value for key, value in _plain(config).items() if key not in free}
    same_settings(output / "arms.json", ours, output, "arms with other settings of")
