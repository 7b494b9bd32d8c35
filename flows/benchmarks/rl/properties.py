"""`discovery-loop benchmark rl-properties`: two conflicting properties at once, and how much of the gain is retrieval.

A wide gap and a high dielectric constant exclude each other, roughly by Moss' rule. The reward is the product of both
desirabilities, by surrogates less their uncertainty, and of that of the energy above the hull. Arms learn with and
without reward for novelty; fresh samples are judged by the surrogates and by predictors that the reward does not know.
Every arm and seed is a file: a killed benchmark resumes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flows.benchmarks.harness import write_benchmark
from flows.benchmarks.rl.arms import Laboratory, read_samples, run_arm
from flows.benchmarks.rl.hull import JudgeConfig
from flows.benchmarks.rl.judge import PROTOCOL as JUDGING
from flows.benchmarks.rl.judge import Tally, drift
from flows.benchmarks.rl.properties_front import PROTOCOL, SEEN_BY, counting, shares, summarise_fronts
from flows.benchmarks.rl.properties_models import (
    EPS,
    GAP,
    NAMES,
    IndependentPredictors,
    LearningConfig,
    PropertyBuilder,
    Tables,
    TableSurrogate,
    train_surrogates,
)
from flows.benchmarks.rl.run import RecipeOverrides
from flows.benchmarks.rl.variants import BASE, RECIPE, REWARD, TUNED, VARIANTS, check_names
from flows.journal import same_settings
from loop import reward as rewards
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, write_text
from loop.reward import PropertyReward, RewardConfig, Term
from loop.values import Candidate

if TYPE_CHECKING:
    from flows.surrogate import AnyCampaignSurrogate
    from generator.rl.config import FinetuneConfig
    from loop.validity import ValidityRules

UNREWARDED = "no-novelty"  # as the paper's: known crystals earn as new ones do
# 0 at a metal and at vacuum, 1 at 6 eV and at a constant of 10: no crystal has both
TERMS = (
    # worth 1 up to 0.05 eV/atom, 0.8 at 0.1, 0.5 at 0.2: the merit is to choose among what is stable enough
    Term("e_above_hull", "minimise", low=0.05, high=1.0, shape=4.0, source="hull"),
    Term(GAP.name, "maximise", low=0.0, high=6.0),
    Term(EPS.name, "maximise", low=0.0, high=float(np.log(10.0))),
)
KAPPA = 1.0  # standard deviations that a surrogate's prediction is discounted by


@dataclass(frozen=True)
class PropertiesConfig:
    """Settings of the benchmark.

    Attributes:
        variants: arms, the base among them.
        seeds: how many, from `seed` on.
        seed: the first.
        samples: fresh samples that are judged, per arm and seed.
        draws: bootstrap samples behind an interval.
        checkpoint: folder of the base; none: the one that is shipped.
        judge: MEGNet's folder and an interpreter that can run it; its `data` is not looked at.
        learning: what the predictors learn from.
        recipe: settings of the fine-tuning.
    """

    variants: tuple[str, ...] = (BASE, TUNED, UNREWARDED)
    seeds: int = 3
    seed: int = 0
    samples: int = 1000
    draws: int = 1000
    checkpoint: Path | None = None
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    learning: LearningConfig = field(default_factory=LearningConfig)
    recipe: RecipeOverrides = field(default_factory=RecipeOverrides)

    def __post_init__(self) -> None:
        """Check names and numbers."""
        check_names(self.variants)
        if BASE not in self.variants:
            raise ConfigError("the base must be among the variants: all others are compared with it.")
        if min(self.seeds, self.samples, self.draws) < 1:
            raise ConfigError("seeds, samples and draws must be positive.")

    @property
    def recipe_config(self) -> FinetuneConfig:
        """Settings of the fine-tuning."""
        return replace(RECIPE, **asdict(self.recipe))

    @property
    def cells(self) -> list[tuple[str, int]]:
        """Every arm and seed, seed by seed."""
        return [(name, seed) for seed in range(self.seed, self.seed + self.seeds) for name in self.variants]


@dataclass(frozen=True)
class PropertyLaboratory(Laboratory):
    """A laboratory whose reward is that of the two properties."""

    tables: TableSurrogate | None = None

    def reward(
        self,
        config: RewardConfig = REWARD,
        validity: ValidityRules | None = None,
        surrogate: AnyCampaignSurrogate | None = None,
    ) -> Tally:
        """As the variant has it, with other terms."""
        builder = self.builder
        judges = rewards.RewardInputs(
            validity or builder.config.validity, builder.novelty, builder.screen, surrogate or self.tables
        )
        return Tally(PropertyReward(reward_of(config), judges))


def reward_of(config: RewardConfig) -> RewardConfig:
    """A variant's reward with the terms of this benchmark; known crystals earn only where the variant says so."""
    return replace(config, terms=TERMS, kappa=KAPPA, known_factor=config.known_factor or 0.0)


def run(data: Path, output: Path, config: PropertiesConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train the surrogates, run every arm and seed that is not there yet, judge, and write record, table and figure.

    Raises:
        ConfigError: the folder holds arms with other settings, or MEGNet cannot be run.
        InputError: the table lacks a column.
    """
    from flows.config import CampaignConfig

    make_folder(output)
    _same_settings(output, config)
    campaign = CampaignConfig()
    section = campaign.generator.model_copy(update={"checkpoint": config.checkpoint})
    builder = PropertyBuilder(campaign.model_copy(update={"generator": section}))
    tables = Tables.read(data)
    surrogate, held_out = train_surrogates(builder, tables, config.learning, output / "work", progress)
    lab = PropertyLaboratory(builder, config.recipe_config, config.samples, output, tables=surrogate)
    about = {}
    for done, (name, seed) in enumerate(config.cells):
        if progress is not None:
            progress("arms", done, len(config.cells), {})
        about[name, seed] = run_arm(lab, name, seed, progress)
    judges = IndependentPredictors.train(tables, config.learning, config.judge, output / "work", progress)
    arms = {
        name: [_judged(lab, judges, name, seed, progress) for n, seed in about if n == name] for name in config.variants
    }
    return report(output, config, builder, arms, about, held_out | judges.about)


def _judged(
    lab: PropertyLaboratory, judges: IndependentPredictors, name: str, seed: int, progress: Progress | None
) -> pd.DataFrame:
    """Samples of an arm with what each predictor says of those that count."""
    drawn = read_samples(lab.folder, name, seed)
    rows = drawn.rows.copy()
    wanted = np.flatnonzero(counting(rows)).tolist()
    crystals = [s for row in wanted if (s := drawn.structures[row]) is not None]
    told = judges(crystals, progress)
    if crystals and lab.tables is not None:
        predictions = lab.tables.predict([Candidate(structure) for structure in crystals])
        told |= {name: predictions.column(name)[0] for name in NAMES}
        told |= {f"{name}_std": predictions.column(name)[1] for name in NAMES}
    for column in (*{c for columns in SEEN_BY.values() for c in columns}, *(f"{name}_std" for name in NAMES)):
        if column in told or not column.startswith("megnet") or judges.megnet is not None:
            rows[column] = np.nan
            rows.loc[wanted, column] = told.get(column, np.nan)
    return rows


def report(
    output: Path,
    config: PropertiesConfig,
    builder: PropertyBuilder,
    arms: dict[str, list[pd.DataFrame]],
    about: dict[tuple[str, int], dict[str, Any]],
    predictors: dict[str, Any],
) -> dict[str, Any]:
    """Fronts, their numbers, and everything else into files."""
    from flows.benchmarks.rl.properties_figure import draw_fronts, table
    from flows.benchmarks.rl.summary import draw_curves

    drifts = [
        {"variant": name, "seed": config.seed + place, **drift(rows, arms[BASE][place])}
        for name, frames in arms.items()
        for place, rows in enumerate(frames)
    ]
    keys = ("variant", "seed", "evaluations", "stopped", "cpu_seconds", "guards")
    summary = {"shares": shares(arms), "fronts": summarise_fronts(arms, config.draws)}
    record = {
        "benchmark": "rl-properties",
        "results": summary,
        "predictors": predictors,
        "drift": drifts,
        "runs": [{key: told.get(key) for key in keys} for told in about.values()],
        "protocol": {"fronts": PROTOCOL, "judging": JUDGING, "novelty": builder.novelty.protocol()},
        "about": {name: VARIANTS[name].about for name in config.variants if name in VARIANTS},
        "settings": _plain(config),
        "recipe": asdict(config.recipe_config),
        "reward": asdict(reward_of(REWARD)),
        "base": builder.generator.base.checksum,
    }
    written = write_benchmark(output, record)
    write_text(output / "table.csv", table(summary))
    draw_fronts(arms, output / "fronts.png")
    draw_curves(about, output / "curves.png")
    return written


def _plain(config: PropertiesConfig) -> dict[str, Any]:
    """Settings for the record, without paths."""
    data = asdict(config)
    data["judge"] = {"model": None if config.judge.model is None else config.judge.model.name}
    return data | {"checkpoint": "shipped" if config.checkpoint is None else "given"}


def _same_settings(output: Path, config: PropertiesConfig) -> None:
    """Refuse arms that were made with other settings."""
    free = ("judge", "variants", "seeds", "seed", "draws")
    ours = {key: value for key, value in _plain(config).items() if key not in free} | {
        "reward": asdict(reward_of(REWARD))
    }
    same_settings(output / "arms.json", ours, output, "arms with other settings of")
