"""Candidates for DFT: drawn by a policy tuned for gap and constant, relaxed, near the hull, and no known crystal.

Every stage leaves a file: a killed run resumes.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from flows.benchmarks.rl.properties import reward_of
from flows.benchmarks.rl.properties_models import (
    LearningConfig,
    PropertyBuilder,
    Tables,
    TableSurrogate,
    train_surrogates,
)
from flows.benchmarks.rl.variants import REWARD
from generator.constraints.conditions import Sampling
from loop.contracts import Progress
from loop.errors import InputError
from loop.io.files import make_folder, write_text
from loop.reward import PropertyReward, RewardInputs
from loop.stability import IMPLAUSIBLE, METASTABLE
from loop.values import Candidate, Evaluation
from oracles.symmetry import primitive

if TYPE_CHECKING:
    from flows.config import CampaignConfig
    from oracles.mlip import PotentialOracle

# open f shells are no matter for PBE, and a magnet would double the cost and take the kernel beyond RPA away
F_ELEMENTS = ("Ce", "Pr", "Nd", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Th", "U")
CHUNK = 32  # crystals relaxed between two writes
MAGNETIC = ("V", "Cr", "Mn", "Fe", "Co", "Ni")


@dataclass(frozen=True)
class ProposalConfig:
    """Where the candidates come from.

    Attributes:
        seed: of tuning and draws.
        iterations: of the fine-tuning, of `batch` crystals each.
        batch: crystals of an iteration.
        samples: drawn from the tuned policy.
        max_atoms: of the primitive cell, of what the policy learns from and draws.
        largest: candidate that is kept, in atoms of the primitive cell: DFT pays by the third power of it.
        exclude: elements that do not occur.
        e_above_hull: eV/atom, highest, relaxed, by the potential that labels.
        potential: that labels; CHGNet rewards, screens and describes.
        learning: what the surrogates of the reward learn from.
    """

    seed: int = 0
    iterations: int = 40
    batch: int = 128
    samples: int = 3000
    max_atoms: int = 8
    largest: int = 6
    exclude: tuple[str, ...] = (*F_ELEMENTS, *MAGNETIC)
    e_above_hull: float = METASTABLE
    potential: str = "chgnet"
    learning: LearningConfig = field(default_factory=LearningConfig)

    def campaign(self) -> CampaignConfig:
        """The settings of the parts: generator, potentials, novelty."""
        from flows.config import CampaignConfig
        from generator.policy import PolicyConfig
        from generator.rl.config import FinetuneConfig

        config = CampaignConfig()
        conditions = Sampling(exclude=self.exclude, max_atoms=self.max_atoms)
        tuning = FinetuneConfig(
            iterations=self.iterations,
            batch_size=self.batch,
            learning_rate=2e-4,
            keep_classes=0.0,
            average_last=0.0,
            sampling=conditions,
        )
        policy = PolicyConfig(sampling=conditions)
        generator = config.generator.model_copy(update={"finetune": tuning, "proposals": policy})
        mlip = replace(config.oracle.mlip, potential=self.potential, bulk=None)
        oracle = config.oracle.model_copy(update={"mlip": mlip, "workers": 1})
        return config.model_copy(update={"generator": generator, "oracle": oracle})


@dataclass(frozen=True, eq=False)
class Studio:
    """What makes candidates, with its files in a folder."""

    config: ProposalConfig
    data: Path
    folder: Path
    progress: Progress | None = None

    @cached_property
    def builder(self) -> PropertyBuilder:
        """Generator, potentials, novelty."""
        return PropertyBuilder(self.config.campaign())

    @cached_property
    def tables(self) -> Tables:
        """Published labels."""
        return Tables.read(self.data)

    @cached_property
    def surrogates(self) -> tuple[TableSurrogate, dict[str, Any]]:
        """Those of the reward, and their errors on held-out formulas."""
        return train_surrogates(self.builder, self.tables, self.config.learning, self.folder, self.progress)

    def tuned(self, name: str = "tuned", known_factor: float = 0.0) -> Path:
        """The checkpoint of a tuned policy; by default a known crystal earns nothing.

        Args:
            name: of the checkpoint.
            known_factor: of the reward of a known crystal or of a copy; 1 as in the paper, which looks at neither.
        """
        path = self.folder / name
        if path.exists():
            return path
        reward = replace(reward_of(REWARD), known_factor=known_factor, duplicate_factor=known_factor)
        judges = RewardInputs(
            self.builder.config.validity, self.builder.novelty, self.builder.screen, self.surrogates[0]
        )
        self.builder.__dict__.pop("generator", None)  # a policy that has learned nothing yet
        generator, state = self.builder.generator, self.folder / f"{name}-state"
        make_folder(state)
        rows = generator.learn(
            PropertyReward(reward, judges), seed=self.config.seed, round=1, progress=self.progress, checkpoint=state
        )
        keys = ("iteration", "reward", "valid", "known", "unique", "kl", "mean_e_above_hull")
        curve = [{key: round(float(row[key]), 4) for key in keys if key in row} for row in rows]
        write_text(self.folder / f"{name}.json", json.dumps(curve, indent=1) + "\n")
        generator.save(path)
        return path

    def candidates(self) -> pd.DataFrame:
        """Relaxed candidates, one row each: id, formula, E_hull, and the crystal under ``structure``.

        Raises:
            InputError: none is left.
        """
        from loop.io.crystals import read_crystals

        path = self.folder / "candidates.csv.gz"
        if not path.exists():
            self._make(path)
        table = read_crystals(path)
        return table.frame.assign(structure=pd.Series(table.structures, dtype=object))

    def _make(self, path: Path) -> None:
        from loop.io.crystals import write_crystals

        checkpoint = self.tuned()
        generator = self.builder.generator
        generator.load(checkpoint)
        drawn = generator.propose(self.config.samples, seed=self.config.seed + 1000, round=1)
        funnel: Counter[str] = Counter(drawn=len(drawn))
        chosen = self._new(self._valid(drawn, funnel), funnel, "as drawn")
        above = self.builder.screen(chosen)
        near = [c for c, value in zip(chosen, above, strict=True) if value < 1.0]  # eV/atom; NaN is far
        funnel["within 1 eV/atom as drawn"] = len(near)
        kept = self._kept(self._relaxed(near), funnel)
        write_text(self.folder / "funnel.json", json.dumps(funnel, indent=1) + "\n")
        if not kept:
            raise InputError(f"none of {len(drawn)} crystals is new and near the hull: {dict(funnel)}")
        rows = [{"formula": relaxed.formula, "e_above_hull": above} for relaxed, above in kept]
        write_crystals(path, [relaxed.id for relaxed, _ in kept], [c.structure for c, _ in kept], pd.DataFrame(rows))

    def _valid(self, drawn: list[Candidate], funnel: Counter[str]) -> list[Candidate]:
        reasons = self.builder.config.validity([candidate.structure for candidate in drawn])
        valid = [candidate for candidate, reason in zip(drawn, reasons, strict=True) if reason is None]
        funnel["valid"] = len(valid)
        small = [
            candidate
            for candidate in valid
            if len(candidate.structure.composition) > 1
            and len(primitive(candidate.structure, 0.05)) <= self.config.largest
        ]
        funnel["compounds that are small enough"] = len(small)
        return small

    def _new(self, candidates: list[Candidate], funnel: Counter[str], name: str) -> list[Candidate]:
        verdicts = self.builder.novelty.judge([c.structure for c in candidates], [c.id for c in candidates])
        funnel.update(f"{verdict.kind} {name}" for verdict in verdicts)
        return [c for c, verdict in zip(candidates, verdicts, strict=True) if verdict.kind == "new"]

    def _relaxed(self, candidates: list[Candidate]) -> list[Evaluation]:
        """Labels of the potential, kept as they come."""
        path, oracle = self.folder / "relaxed.jsonl", self._oracle()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        done = {e.candidate_id: e for e in (Evaluation.from_dict(json.loads(line)) for line in lines)}
        missing = [candidate for candidate in candidates if candidate.id not in done]
        for start in range(0, len(missing), CHUNK):
            found = oracle.evaluate(missing[start : start + CHUNK])
            with path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(evaluation.to_dict()) + "\n" for evaluation in found)
            done |= {evaluation.candidate_id: evaluation for evaluation in found}
            if self.progress is not None:
                self.progress("relax", start + len(found), len(missing), {})
        return [done[candidate.id] for candidate in candidates]

    def _oracle(self) -> PotentialOracle:
        return self.builder.measuring

    def _kept(self, labels: list[Evaluation], funnel: Counter[str]) -> list[tuple[Candidate, float]]:
        """Relaxed crystals near the hull, new once more, small enough, each once."""
        funnel.update(f"label {label.status}" for label in labels)
        near: list[Candidate] = []
        heights: dict[str, float] = {}
        for label in labels:
            above = label.value("e_above_hull")
            if label.ok and label.structure is not None and IMPLAUSIBLE <= above <= self.config.e_above_hull:
                cell = primitive(label.structure, 0.05)
                if len(cell) <= self.config.largest:
                    near.append(Candidate(cell))
                    heights[near[-1].id] = above
        funnel["near the hull"] = len(near)
        return [(candidate, heights[candidate.id]) for candidate in self._new(near, funnel, "relaxed")]
