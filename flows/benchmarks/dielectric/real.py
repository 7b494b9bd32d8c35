"""`discovery-loop benchmark dielectric-dft`: the arms on crystals that nobody has computed, with DFT as the judge.

Stages, each kept in the folder: surrogates of published gaps and constants; a policy tuned for both; candidates,
relaxed and near the hull; then turns, in each of which every arm spends its share. Every DFT call is a line of
`calls.jsonl`, paid for once whichever arm asks, and a killed run resumes after the last of them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flows.benchmarks.dielectric.arms import CLOSED, GP, PAPER, RANDOM, Arm, Lesson, cost_of, labelled, surrogate_for
from flows.benchmarks.dielectric.proposals import ProposalConfig, Studio
from flows.journal import same_settings
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder
from loop.values import Candidate, Evaluation
from oracles.dft.oracle import HULL, DftConfig, DftOracle
from surrogates.features import FeatureExtractor
from surrogates.properties import GPConfig
from surrogates.two_steps import Costs

if TYPE_CHECKING:
    import pandas as pd

FREE = ("turns", "learning_turns", "dft.resources", "dft.time_limit")  # what a resumed run may change
PROPERTIES: dict[str, tuple[Literal["gap", "dielectric"], ...]] = {
    "gap": ("gap",),
    "dielectric": ("gap", "dielectric"),
    "both": ("gap", "dielectric"),
}


@dataclass(frozen=True)
class RealConfig:
    """Settings of the run.

    Attributes:
        proposals: where the candidates come from.
        dft: preset, limits and resources; properties are those of the steps.
        costs: of the two steps, for the choice; what they really cost is recorded.
        turns: of all arms.
        learning_turns: after which the closed loop ends; the others do not depend on it. None: all.
        share: evaluations of a turn by arm, each worth a gap and a constant.
        percentile: of the published merits, above which a crystal counts.
        lesson_gaps: crystals without a constant whose gaps are in the lesson, beside all that have both.
        anions: of which a candidate must hold one, its charges in balance: metals have no constant. Empty: any.
        gp: settings of the processes.
        seed: of chance.
    """

    proposals: ProposalConfig = field(default_factory=ProposalConfig)
    dft: DftConfig = field(default_factory=lambda: DftConfig(preset="test", max_atoms=6, time_limit=1200.0))
    costs: Costs = field(default_factory=Costs)
    turns: int = 10
    learning_turns: int | None = None
    share: dict[str, float] = field(default_factory=lambda: {CLOSED: 3.0, PAPER: 1.0, RANDOM: 1.0})
    percentile: float = 99.0
    lesson_gaps: int = 0
    anions: tuple[str, ...] = ("N", "O", "F", "S", "Cl", "Se", "Br", "I")
    gp: GPConfig = GP
    seed: int = 0

    def __post_init__(self) -> None:
        """Check numbers."""
        if self.turns < 1 or not self.share or min(self.share.values()) <= 0:
            raise ConfigError(f"expected turns >= 1 and positive shares, got {self.turns} and {self.share}")
        if self.learning_turns is not None and self.learning_turns < 1:
            raise ConfigError(f"expected learning_turns >= 1, or none for all turns, got {self.learning_turns}")


@dataclass
class Lab:
    """The run's DFT, its calls, and what they found."""

    config: RealConfig
    pool: Sequence[Candidate]
    path: Path
    progress: Progress | None = None

    @cached_property
    def calls(self) -> list[dict[str, Any]]:
        """All calls so far, in order."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines]

    @cached_property
    def oracles(self) -> dict[str, DftOracle]:
        """By step. A gap keeps its density, for the constant that may follow.

        In the run's own folder: a density that an earlier run had left would cost nothing, and seconds would mislead.
        """
        scratch = self.config.dft.resources.scratch or str((self.path.parent / "work" / "dft").resolve())
        resources = replace(self.config.dft.resources, keep=True, scratch=scratch)
        return {
            step: DftOracle(replace(self.config.dft, properties=wanted, resources=resources))
            for step, wanted in PROPERTIES.items()
        }

    def accepts(self, candidate: Candidate) -> bool:
        """Whether DFT takes it."""
        return self.oracles["both"].accepts(candidate.structure)

    def measure(self, arm: str, turn: int, row: int, step: str) -> dict[str, Any]:
        """One call, computed unless an arm has paid for it before."""
        candidate = self.pool[row]
        call = {"arm": arm, "turn": turn, "id": candidate.id, "formula": candidate.formula, "step": step}
        if self.progress is not None:
            self.progress(f"{arm} {turn} {candidate.formula} {step}", len(self.calls), 0, {})
        call |= self._known(candidate.id, step) or _told(self.oracles[step].evaluate([candidate])[0])
        self.calls.append(call)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(call) + "\n")
        return call

    def _known(self, key: str, step: str) -> dict[str, Any] | None:
        """What an earlier call found, where it answers the question: its values, at no further cost."""
        wanted = ("band_gap",) if step == "gap" else ("band_gap", "dielectric_electronic")
        for call in self.calls:
            if call["id"] == key and (call["status"] != "ok" or all(name in call for name in wanted)):
                asked = ("arm", "turn", "id", "formula", "step", "seconds")
                return {k: v for k, v in call.items() if k not in asked} | {"seconds": 0.0, "paid_by": call["arm"]}
        return None


def _told(evaluation: Evaluation) -> dict[str, Any]:
    """What is kept of a DFT label."""
    values = {name: round(quantity.value, 6) for name, quantity in evaluation.properties.items()}
    about = {"status": evaluation.status, "message": evaluation.message, "space_group": evaluation.space_group_relaxed}
    return about | values | {"seconds": round(evaluation.cost.seconds, 1), "energy_type": str(evaluation.energy_type)}


def run(data: Path, output: Path, config: RealConfig | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """All stages that are not done; returns and writes ``record.json``.

    Raises:
        ConfigError: the folder holds a run with other settings.
        EngineError: there is no DFT engine.
        InputError: the table cannot be used, or no candidate is left.
    """
    from flows.benchmarks.dielectric.record import write

    config = config or RealConfig()
    make_folder(output / "work")
    _same_settings(output, config)
    studio = Studio(config.proposals, data, output / "work", progress)
    errors = studio.surrogates[1]
    table, pool = as_read(studio.candidates())
    lab = Lab(config, pool, output / "calls.jsonl", progress)
    takes = np.array([lab.accepts(one) and is_ionic(one, config.anions) for one in lab.pool])
    table = table[takes].reset_index(drop=True)
    lab.pool = [candidate for candidate, taken in zip(lab.pool, takes, strict=True) if taken]
    lesson, threshold = lesson_of(studio, config)
    extractor = studio.builder.extractor(studio.folder / "features")
    predictions = spend(lab, extractor, lesson, threshold)
    return write(output, config, lab, table, predictions, {"threshold": threshold, "held_out": errors})


def as_read(table: pd.DataFrame) -> tuple[pd.DataFrame, list[Candidate]]:
    """A table with the ids of its crystals as they were read (a file rounds), by which calls go; and candidates."""
    pool = [Candidate(structure) for structure in table["structure"]]
    return table.assign(id=[candidate.id for candidate in pool]), pool


def is_ionic(candidate: Candidate, anions: Sequence[str]) -> bool:
    """Whether a crystal holds an anion and common oxidation states can balance, by SMACT with alloys refused."""
    from smact.screening import smact_validity

    elements = {element.symbol for element in candidate.structure.composition.elements}
    if not anions:
        return True
    balanced = smact_validity(
        candidate.formula, use_pauling_test=True, include_alloys=False, oxidation_states_set="smact14"
    )
    return bool(elements & set(anions)) and bool(balanced)


def lesson_of(studio: Studio, config: RealConfig) -> tuple[Lesson, float]:
    """Published labels of the train split, and the merit above which a crystal counts."""
    drawn = studio.tables.draw(config.lesson_gaps, 0, train=True)
    gaps, constants = drawn.labels[:, 0], np.exp(drawn.labels[:, 1])
    merits = (gaps * constants)[np.isfinite(constants)]
    labels = [
        labelled(candidate, gap if np.isfinite(gap) else None, constant if np.isfinite(constant) else None)
        for candidate, gap, constant in zip(drawn.candidates, gaps.tolist(), constants.tolist(), strict=True)
    ]
    return Lesson(drawn.candidates, labels), float(np.percentile(merits, config.percentile))


def spend(lab: Lab, extractor: FeatureExtractor, lesson: Lesson, threshold: float) -> pd.DataFrame:
    """Let every arm spend its share, turn by turn.

    Returns what was predicted of the pool: by the tables alone (turn 0), then by each turn of the closed loop.
    """
    import pandas as pd

    config = lab.config
    said: dict[int, pd.DataFrame] = {}
    before = surrogate_for(extractor, config.gp)  # what the tables alone teach
    arms = {name: Arm(name, lab.pool, threshold, config.costs, config.seed) for name in config.share}
    rows = {candidate.id: row for row, candidate in enumerate(lab.pool)}
    last = {CLOSED: config.turns if config.learning_turns is None else config.learning_turns}
    for turn in range(config.turns):
        for name, arm in arms.items():
            if turn >= last.get(name, config.turns):
                continue
            mine = [call for call in lab.calls if call["arm"] == name and call["turn"] == turn]
            if turn == 0:
                if not len(before.labels):
                    before.fit(lesson.candidates, lesson.evaluations)
                arm.look(before)
                arm.plan()
            elif name == CLOSED:
                arm.learn(surrogate_for(extractor, config.gp), lesson)
                arm.plan()
            if turn not in said and (turn == 0 or name == CLOSED):  # at first, all arms expect the same
                frame = pd.DataFrame(arm.merit, columns=["merit", "std"])
                said[turn] = frame.assign(turn=turn, id=list(rows))
            spent = 0.0
            for call in mine:  # of a run that was killed
                arm.take(rows[call["id"]], call["step"], call.get("band_gap"), call.get("dielectric_electronic"))
                spent += cost_of(call["step"], config.costs)
            limit = config.share[name] * config.costs.both
            while spent < limit - 1e-9 and (step := arm.next_step()) is not None:
                call = lab.measure(name, turn, *step)
                arm.take(*step, call.get("band_gap"), call.get("dielectric_electronic"))
                spent += cost_of(step[1], config.costs)
    return pd.concat(said.values(), ignore_index=True)


def _same_settings(output: Path, config: RealConfig) -> None:
    """Refuse a folder that holds a run with other settings."""
    from flows.config import flatten

    ours = flatten(json.loads(json.dumps(asdict(config), default=str)))
    free = FREE if config.dft.references else (*FREE, *(f"dft.{name}" for name in HULL))  # of no use without a hull
    ours = {key: value for key, value in ours.items() if not key.startswith(free)}
    same_settings(output / "settings.json", ours, output, "a run with other", exact=True)
