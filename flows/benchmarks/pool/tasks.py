"""What the pool benchmark asks for, and the crystals it hides the labels of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from flows.benchmarks.crystals import candidate_of
from loop.errors import ConfigError, InputError
from loop.validity import ValidityRules
from loop.values import OK, Candidate, Evaluation, Quantity
from surrogates.properties import Property
from surrogates.utility import Constraint, Objective, bind

if TYPE_CHECKING:
    import pandas as pd

TOP_SHARE = 0.01  # of the pool: what a campaign is to find, unless the task says otherwise


@dataclass(frozen=True)
class Task:
    """A hidden label and what is wanted of it.

    Attributes:
        prop: the property, its unit and model scale; its prior is a round guess that 20 labels outweigh.
        objective: what is wanted.
        columns: of the table, without which a row does not take part.
        constraints: bounds on it. Where there are some, the crystals that keep them are what is sought; else the
            best `TOP_SHARE` of the pool.
        label: from a row's columns to the label, vectorised; NaN leaves a row out.
        parts: properties, named as their columns, whose product the label is; an oracle tells them apart.
        leaks: a potential trained on Materials Project energies knows the label: none describes the crystals.
    """

    prop: Property
    objective: Objective
    columns: tuple[str, ...]
    label: Callable[[pd.DataFrame], np.ndarray]
    constraints: tuple[Constraint, ...] = ()
    parts: tuple[Property, ...] = ()
    leaks: bool = False


def _column(name: str) -> Callable[[pd.DataFrame], np.ndarray]:
    return lambda frame: frame[name].to_numpy(float)


def _formation_energy(frame: pd.DataFrame) -> np.ndarray:
    """Rows of the 2018-19 release alone: between releases formation energies differ by 0.04 eV/atom."""
    values = frame["formation_energy_per_atom"].to_numpy(float)
    return np.where(frame["formation_energy_source"].isin(["mb", "megnet"]), values, np.nan)


def _dielectric(frame: pd.DataFrame) -> np.ndarray:
    """Electronic dielectric constant times gap (eV), the figure of merit of CrystalFormer-RL; insulators alone."""
    epsilon, gap = frame["eps_electronic"].to_numpy(float), frame["band_gap"].to_numpy(float)
    return np.where((gap > 0.1) & (epsilon >= 1) & (epsilon < 30), epsilon * gap, np.nan)


def _gap(goal: Objective, *constraints: Constraint) -> Task:
    prop = Property("band_gap", "eV", prior_mean=1.0, prior_std=1.5)
    return Task(prop, goal, ("band_gap",), _column("band_gap"), constraints)


def _window(low: float, target: float, high: float) -> Task:
    """Gaps (eV) that keep to a window, the nearer to the target the better."""
    return _gap(
        Objective("band_gap", "target", target),
        Constraint("band_gap", at_least=low),
        Constraint("band_gap", at_most=high),
    )


TASKS: dict[str, Task] = {
    "bulk_modulus": Task(
        Property("bulk_modulus", "GPa", "log", prior_mean=4.35, prior_std=0.8),
        Objective("bulk_modulus"),
        ("log10_k_vrh",),
        lambda frame: 10 ** frame["log10_k_vrh"].to_numpy(float),
    ),
    "band_gap_max": _gap(Objective("band_gap")),
    # 1.34 eV: the optimum of a single-junction solar cell (Ruehle, Sol. Energy 130, 139 (2016)). The best 1 % would be
    # those within some 0.02 eV of it, which no surrogate can tell from the rest. The window holds 5 % of all crystals,
    # and is about as wide as a surrogate's error: the hardest of the tasks (`taught` says how hard).
    "band_gap_window": _window(1.1, 1.34, 1.6),
    # Between gallium oxide (4.9 eV) and diamond (5.5 eV), power electronics' next semiconductors (Tsao et al., Adv.
    # Electron. Mater. 4, 1600501 (2018)); some 3 % of all crystals, a few errors of a surrogate away from most.
    "band_gap_wide": _window(4.5, 5.0, 5.5),
    "formation_energy": Task(
        Property("formation_energy", "eV/atom", prior_mean=-1.0, prior_std=1.0),
        Objective("formation_energy", "minimise"),
        ("formation_energy_per_atom", "formation_energy_source"),
        _formation_energy,
        leaks=True,
    ),
    "dielectric": Task(
        Property("figure_of_merit", "eV", prior_mean=12.0, prior_std=5.0),
        Objective("figure_of_merit"),
        ("eps_electronic", "band_gap"),
        _dielectric,
        parts=(
            Property("eps_electronic", "1", "log", prior_mean=1.6, prior_std=0.6),
            Property("band_gap", "eV", prior_mean=3.0, prior_std=1.8),
        ),
    ),
}


@dataclass(frozen=True)
class Pool:
    """Crystals of one task and the labels that it hides."""

    task: str
    candidates: list[Candidate]
    labels: np.ndarray  # (n,), own unit
    parts: np.ndarray | None = None  # (n, parts of the task)
    known: Pool | None = None  # crystals of other formulas, whose labels are known from the start
    top: frozenset[int] = field(init=False)  # rows of what is sought

    def __post_init__(self) -> None:
        rows = np.argsort(-self.utilities(), kind="stable")[: max(1, round(TOP_SHARE * len(self.labels)))]
        task = TASKS[self.task]
        if task.constraints:
            goals = bind([task.objective], task.constraints, [task.prop])
            rows = np.flatnonzero(goals.kept(task.prop.to_scale(self.labels)[:, None]))
        object.__setattr__(self, "top", frozenset(rows.tolist()))

    @property
    def described(self) -> list[Candidate]:
        """The crystals of the pool, then the known ones."""
        return [*self.candidates, *(self.known.candidates if self.known else [])]

    def utilities(self) -> np.ndarray:
        """Labels as higher is better, shape (n,)."""
        objective = TASKS[self.task].objective
        if objective.goal == "target":
            return -np.abs(self.labels - float(objective.target or 0.0))
        return self.labels if objective.goal == "maximise" else -self.labels

    def evaluate(self, row: int) -> Evaluation:
        """What an oracle would answer."""
        task = TASKS[self.task]
        values = {task.prop.name: Quantity(float(self.labels[row]), task.prop.unit)}
        if self.parts is not None:
            pairs = zip(task.parts, self.parts[row], strict=True)
            values |= {part.name: Quantity(float(value), part.unit) for part, value in pairs}
        return Evaluation(self.candidates[row].id, "table@1", "published", OK, values)


def load_pool(
    data: Path, task: str, size: int | None, seed: int, rules: ValidityRules | None = None, known: int = 0
) -> Pool:
    """The crystals that have a task's label and that a campaign would take, or some of them, drawn by seed.

    Args:
        data: table of crystals.
        task: a key of `TASKS`.
        size: crystals wanted; None takes all.
        seed: of the draw.
        rules: what a campaign takes; None: its defaults.
        known: further crystals, of formulas that the pool does not hold, whose labels are known from the start.

    Raises:
        ConfigError: the task is not known.
        InputError: the table lacks the task's columns, or has fewer than 200 such crystals, or too few known ones.
    """
    from loop.io.crystals import read_frame

    if task not in TASKS:
        raise ConfigError(f"no task {task!r}; there are {', '.join(TASKS)}")
    frame, _ = read_frame(data)
    missing = [name for name in TASKS[task].columns if name not in frame]
    if missing:
        raise InputError(f"task {task!r} needs the columns {', '.join(missing)}, which {data} lacks")
    labels = TASKS[task].label(frame)
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(np.isfinite(labels)))
    reader = _Reader(frame, TASKS[task], labels, rules or ValidityRules())
    drawn = reader.first(rows.tolist(), len(rows) if size is None else size)
    if len(drawn) < 200:
        raise InputError(
            f"expected at least 200 valid crystals with the label of {task!r} in {data}, found {len(drawn)}"
        )
    if known == 0:
        return reader.pool(task, drawn)
    taken = frozenset(candidate.formula for candidate, _ in drawn)
    rest = rows[~np.isin(rows, [row for _, row in drawn])]
    others = reader.first(rest.tolist(), known, without=taken)
    if len(others) < known:
        raise InputError(f"expected {known} known crystals beside the pool of {task!r} in {data}, found {len(others)}")
    return reader.pool(task, drawn, known=reader.pool(task, others))


@dataclass(frozen=True)
class _Reader:
    """A table whose rows become pools."""

    frame: pd.DataFrame
    task: Task
    labels: np.ndarray
    rules: ValidityRules

    def first(
        self, rows: Sequence[int], wanted: int, without: frozenset[str] = frozenset()
    ) -> list[tuple[Candidate, int]]:
        """The first `wanted` valid crystals among some rows, each once, with their rows, in the table's order."""
        unique: dict[str, tuple[Candidate, int]] = {}
        for row in rows:
            if len(unique) == wanted:
                break
            candidate = candidate_of(self.frame["cif"].iloc[row])
            if candidate is None or candidate.formula in without or self.rules.reason(candidate.structure):
                continue
            unique.setdefault(candidate.id, (candidate, row))
        return sorted(unique.values(), key=lambda pair: pair[1])

    def pool(self, task: str, drawn: list[tuple[Candidate, int]], known: Pool | None = None) -> Pool:
        """Crystals with their labels."""
        rows = [row for _, row in drawn]
        names = [part.name for part in self.task.parts]
        parts = self.frame[names].to_numpy(float)[rows] if names else None
        return Pool(task, [candidate for candidate, _ in drawn], self.labels[rows], parts, known)
