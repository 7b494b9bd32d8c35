"""`discovery-loop benchmark dielectric`: the arms on crystals whose gaps and constants are published, but hidden.

A split by formula makes the lesson and the pool; a second world keeps whole chemistries (fluorides, say) out of the
lesson, for a generator proposes what the tables lack. Costs are counted in calls: a gap is one, a constant some more.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.dielectric.arms import (
    ARMS,
    GP,
    PAPER,
    RANDOM,
    Arm,
    Lesson,
    cost_of,
    labelled,
    surrogate_for,
)
from flows.benchmarks.harness import write_benchmark
from flows.benchmarks.pool.tasks import candidate_of
from flows.benchmarks.rl.properties_models import EPS_RANGE, INSULATING
from flows.benchmarks.workers import spread
from flows.journal import same_settings
from loop.contracts import Progress
from loop.errors import ConfigError, InputError
from loop.io.files import make_folder, sha256, write_text
from loop.validity import ValidityRules
from loop.values import Candidate
from surrogates.features import FeatureExtractor
from surrogates.properties import GPConfig
from surrogates.two_steps import Costs

if TYPE_CHECKING:
    pass

COLUMNS = ("cif", "band_gap", "eps_electronic")
PROTOCOL = (
    "Crystals with a published PBE gap above 0.1 eV and an electronic dielectric constant from 1 to 30 are split by "
    "formula into a lesson, whose labels every arm knows, and a pool, whose labels are hidden; world `unseen`: of the "
    "anion families named in the settings the lesson holds none, and the pool nothing else. Merit: gap times constant. "
    "A crystal counts whose merit lies above the 99th percentile of the lesson's. An evaluation is what gap and "
    "constant of one crystal cost together; the closed loop may spend it on gaps alone. Intervals, 95 %: bootstrap "
    "over seeds; differences are paired by seed."
)
RANDOM_SPLIT, UNSEEN = "random", "unseen"


@dataclass(frozen=True)
class DielectricConfig:
    """Settings of the benchmark.

    Attributes:
        seeds: campaigns of each arm in each world, from `seed` on.
        seed: the first.
        arms: keys of `ARMS`.
        worlds: ``random`` or ``unseen``.
        families: anions of which the lesson of the world ``unseen`` holds no compound; half of them a seed, by chance.
        lesson: crystals whose labels are known from the start, at most.
        evaluations: budget of an arm, each worth a gap and a constant.
        rounds: times that it is retrained, the budget spread evenly.
        costs: of the two steps.
        percentile: of the lesson's merits, above which a crystal counts.
        potential: whose frozen descriptors are among the features; ``none``: no potential.
        workers: processes.
        gp: settings of the processes.
    """

    seeds: int = 10
    seed: int = 0
    arms: tuple[str, ...] = tuple(ARMS)
    worlds: tuple[str, ...] = (RANDOM_SPLIT, UNSEEN)
    families: tuple[str, ...] = ("F", "Cl", "Br", "I", "S", "Se", "Te", "N", "P")
    lesson: int = 800
    evaluations: int = 40
    rounds: int = 5
    costs: Costs = field(default_factory=Costs)
    percentile: float = 99.0
    potential: str = "chgnet"
    workers: int = 1
    gp: GPConfig = GP

    def __post_init__(self) -> None:
        """Check names and numbers."""
        unknown = [name for name in self.arms if name not in ARMS]
        unknown += [name for name in self.worlds if name not in (RANDOM_SPLIT, UNSEEN)]
        if unknown:
            raise ConfigError(f"unknown: {', '.join(unknown)}; arms: {', '.join(ARMS)}; worlds: random, unseen")
        if min(self.seeds, self.rounds, self.workers) < 1 or self.evaluations < self.rounds or self.lesson < 50:
            raise ConfigError(
                "expected seeds, rounds and workers >= 1, evaluations >= rounds and lesson >= 50, got "
                f"{self.seeds=}, {self.rounds=}, {self.workers=}, {self.evaluations=}, {self.lesson=}"
            )


@dataclass(frozen=True, eq=False)
class Hidden:
    """n crystals with published labels, and what makes worlds of them."""

    candidates: list[Candidate]
    gaps: np.ndarray  # (n,), eV
    constants: np.ndarray  # (n,)

    @classmethod
    def read(cls, path: Path, rules: ValidityRules | None = None) -> Hidden:
        """All usable crystals of a table such as `mp_le20.csv.gz`, each once, that a campaign would take.

        Raises:
            InputError: a column is missing, or there are fewer than 200.
        """
        from loop.io.crystals import read_frame

        frame, _ = read_frame(path)
        missing = [name for name in COLUMNS if name not in frame]
        if missing:
            raise InputError(f"expected the columns {', '.join(COLUMNS)} in {path}, it lacks {', '.join(missing)}")
        gaps, constants = (frame[name].to_numpy(float) for name in COLUMNS[1:])
        sound = (gaps > INSULATING) & (constants >= EPS_RANGE[0]) & (constants < EPS_RANGE[1])
        rules = rules or ValidityRules()
        found: dict[str, tuple[Candidate, int]] = {}
        for row in np.flatnonzero(sound).tolist():
            candidate = candidate_of(frame["cif"].iloc[row])
            if candidate is not None and rules.reason(candidate.structure) is None:
                found.setdefault(candidate.id, (candidate, row))
        if len(found) < 200:
            raise InputError(f"expected at least 200 crystals with gap and constant in {path}, found {len(found)}")
        rows = [row for _, row in found.values()]
        return cls([candidate for candidate, _ in found.values()], gaps[rows], constants[rows])

    @property
    def merits(self) -> np.ndarray:
        """Gap times constant (n,), eV."""
        return self.gaps * self.constants

    def world(self, kind: str, seed: int, config: DielectricConfig) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the lesson and of the pool; no formula is in both."""
        rng = np.random.default_rng(seed)
        formulas = np.array([candidate.formula for candidate in self.candidates])
        if kind == UNSEEN:
            away = set(rng.permutation(config.families)[: len(config.families) // 2].tolist())
            pool = np.array([bool(away & _symbols(candidate)) for candidate in self.candidates])
        else:
            names = rng.permutation(np.unique(formulas))
            taken = set(names[: len(names) // 3].tolist())
            pool = np.array([name not in taken for name in formulas])
        lesson = rng.permutation(np.flatnonzero(~pool))[: config.lesson]
        return np.sort(lesson), np.flatnonzero(pool)


def _symbols(candidate: Candidate) -> set[str]:
    return {element.symbol for element in candidate.structure.composition.elements}


@dataclass(frozen=True)
class Cell:
    """One campaign: an arm in a world with a seed."""

    arm: str
    world: str
    seed: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.world}-{self.arm}-{self.seed}"


def run(
    data: Path, output: Path, config: DielectricConfig | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Run every arm, world and seed that `output` does not hold yet; write record, tables and figure.

    Raises:
        ConfigError: the folder holds campaigns with other settings.
        InputError: the table cannot be used.
    """
    from flows.benchmarks.dielectric.summary import curves_table, draw, summarise
    from flows.benchmarks.pool.run import extractor_of

    config = config or DielectricConfig()
    make_folder(output / "cells")
    _same_settings(output, config, data)
    hidden = Hidden.read(data)
    extractor = extractor_of("dielectric", output / "features", config.potential)
    extractor(hidden.candidates, progress)
    seeds = range(config.seed, config.seed + config.seeds)
    cells = [Cell(arm, world, seed) for seed in seeds for world in config.worlds for arm in config.arms]
    done = {cell: json.loads(path.read_text()) for cell in cells if (path := _path(output, cell)).exists()}
    todo = [cell for cell in cells if cell not in done]
    for cell, found in spread(_one, (hidden, extractor.detached(), config), todo, config.workers):
        write_text(_path(output, cell), json.dumps(found) + "\n")
        done[cell] = found
        if progress is not None:
            progress(cell.name, len(done), len(cells), {"best": found["best"][-1], "above": found["above"][-1]})
    outcomes = {cell: done[cell] for cell in cells}
    summary = summarise(outcomes, config)
    write_text(output / "curves.csv", curves_table(outcomes, config))
    draw(outcomes, config, output / "curves.png")
    record = {
        "benchmark": "dielectric",
        "protocol": PROTOCOL,
        "arms": {name: ARMS[name] for name in config.arms},
        "results": summary,
        "settings": asdict(config),
        "crystals": len(hidden.candidates),
        "data": {"file": data.name, "sha256": sha256(data)},
    }
    return write_benchmark(output, record)


def _path(output: Path, cell: Cell) -> Path:
    return output / "cells" / f"{cell.name}.json"


def _one(shared: tuple[Hidden, FeatureExtractor, DielectricConfig], cell: Cell) -> dict[str, Any]:
    return simulate(*shared, cell)


def simulate(hidden: Hidden, extractor: FeatureExtractor, config: DielectricConfig, cell: Cell) -> dict[str, Any]:
    """One campaign.

    Returns:
        After each step ``cost`` (evaluations), ``best`` merit (eV) so far and crystals ``above`` the threshold; and
        what was measured, in order.
    """
    began = time.perf_counter()
    known, rows = hidden.world(cell.world, cell.seed, config)
    threshold = float(np.percentile(hidden.merits[known], config.percentile))
    pool = [hidden.candidates[row] for row in rows]
    lesson = Lesson(
        [hidden.candidates[row] for row in known],
        [labelled(hidden.candidates[r], float(hidden.gaps[r]), float(hidden.constants[r])) for r in known],
    )
    arm = Arm(cell.arm, pool, threshold, config.costs, cell.seed)
    surrogate = surrogate_for(extractor, config.gp)
    cost, budget = 0.0, config.evaluations * config.costs.both
    history: dict[str, list[Any]] = {"cost": [], "best": [], "above": [], "row": [], "step": []}
    for turn in range(config.rounds):
        if cell.arm != RANDOM and (turn == 0 or cell.arm != PAPER):
            arm.learn(surrogate, lesson)
        if turn == 0 or cell.arm not in (PAPER, RANDOM):
            arm.plan()
        while cost < budget * (turn + 1) / config.rounds - 1e-9 and (step := arm.next_step()) is not None:
            row, kind = step
            arm.take(row, kind, float(hidden.gaps[rows[row]]), float(hidden.constants[rows[row]]))
            cost += cost_of(kind, config.costs)
            merits = list(arm.merits().values())
            history["cost"].append(cost / config.costs.both)
            history["best"].append(max(merits, default=0.0))
            history["above"].append(sum(merit > threshold for merit in merits))
            history["row"].append(int(rows[row]))
            history["step"].append(kind)
    there = hidden.merits[rows]
    about = {"threshold": threshold, "pool": len(rows), "lesson": len(known), "best_there": float(there.max())}
    about |= {"above_there": int((there > threshold).sum()), "seconds": round(time.perf_counter() - began, 1)}
    return history | about


def _same_settings(output: Path, config: DielectricConfig, data: Path) -> None:
    """Refuse campaigns that were made with other settings."""
    free = ("arms", "worlds", "seeds", "seed", "workers")
    ours = {key: value for key, value in asdict(config).items() if key not in free} | {"data": sha256(data)}
    same_settings(output / "cells" / "settings.json", ours, output, "campaigns with other")
