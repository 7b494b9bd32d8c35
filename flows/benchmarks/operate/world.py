"""A small world to operate campaigns in: real crystals, a made-up truth, and stages that take as long as they are told.

Rocksalt pairs (48 crystals), or cubic perovskites (some 30,000) where thousands are labelled, with a lattice parameter.
They are the more stable the closer it is to twice the sum of the atomic radii, and the bulk modulus rises with the sum
of atomic numbers. Time passes by sleeping, which costs no core.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from loop.campaign import Components
from loop.contracts import Acquisition, Oracle, Progress, Reward, Surrogate
from loop.novelty import NoveltyIndex
from loop.values import OK, Candidate, Cost, EnergyType, Evaluation, Origin, Prediction, Quantity

CATIONS = ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "Ba")
ANIONS = ("F", "Cl", "Br", "O", "S", "Se")
FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
METALS = tuple(element.symbol for element in Element if element.is_metal and 3 <= element.Z <= 83 and element.Z != 61)
PEROVSKITE = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
UNIT = {"e_above_hull": "eV/atom", "bulk_modulus": "GPa"}


def crystal(cation: str, anion: str, misfit: float) -> Structure:
    """A rocksalt pair whose lattice parameter is off by a share `misfit`."""
    length = best_length((cation, anion)) * (1 + misfit)
    return Structure(Lattice.cubic(length), [cation] * 4 + [anion] * 4, [*FCC, *(FCC + 0.5)])


Draw = Callable[[np.random.Generator, float], Structure]
"""A crystal at random whose lattice parameter is off by a share."""


def pair(rng: np.random.Generator, misfit: float) -> Structure:
    """One of the 48 rocksalt pairs."""
    return crystal(str(rng.choice(CATIONS)), str(rng.choice(ANIONS)), misfit)


def perovskite(rng: np.random.Generator, misfit: float) -> Structure:
    """One of some 30,000 cubic perovskites ABX3."""
    a, b = rng.choice(METALS, size=2, replace=False)
    x = str(rng.choice(ANIONS))
    length = best_length((a, b, x)) * (1 + misfit)
    return Structure(Lattice.cubic(length), [a, b, x, x, x], PEROVSKITE)


def best_length(elements: Sequence[str]) -> float:
    """Lattice parameter (A) at which a pair is stable."""
    return 2.0 * sum(float(Element(element).atomic_radius or 0.0) for element in elements)


def truth(structure: Structure) -> dict[str, float]:
    """Energy above the hull (eV/atom) and bulk modulus (GPa)."""
    elements = [str(element) for element in structure.composition]
    misfit = structure.volume ** (1 / 3) / best_length(elements) - 1
    return {"e_above_hull": 10 * misfit**2, "bulk_modulus": float(sum(Element(element).Z for element in elements))}


def calls(log: Path, start: int = 0) -> list[str]:
    """Ids of the candidates for which an oracle began to work, from a byte of its log on."""
    return log.read_text(encoding="utf-8")[start:].split() if log.exists() else []


@dataclass
class SleepingOracle:
    """Knows the truth and takes its time; writes the id of each candidate that it begins with into a file.

    Args:
        log: that file.
        seconds: of one label.
    """

    log: Path
    seconds: float
    name: str = "sleeping@1"
    settings_hash: str = "0" * 8

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """One evaluation per candidate, in order."""
        return [self._evaluate(candidate) for candidate in candidates]

    def _evaluate(self, candidate: Candidate) -> Evaluation:
        handle = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.write(handle, f"{candidate.id}\n".encode())  # one write: whole lines from several processes
        os.close(handle)
        time.sleep(self.seconds)
        return Evaluation(
            candidate.id, self.name, self.settings_hash, OK,
            {name: Quantity(value, UNIT[name]) for name, value in truth(candidate.structure).items()},
            EnergyType("made up", "none", "none"), candidate.structure, cost=Cost(self.seconds),
        )  # fmt: skip


class World:
    """Generator, surrogate, acquisition and reward of this world; each call takes `seconds` longer.

    The policy draws crystals around the truth with a bias that each iteration of learning halves.
    """

    names, units = tuple(UNIT), tuple(UNIT.values())

    def __init__(self, seconds: float, draw: Draw = pair) -> None:
        self.seconds, self.draw, self.bias, self.slopes = seconds, draw, 0.4, [1.0, 1.0]

    # generator

    def propose(self, n: int, *, seed: int, round: int) -> list[Candidate]:
        """Draw crystals."""
        time.sleep(self.seconds)
        rng = np.random.default_rng(seed)
        misfits = self.bias + 0.1 * rng.normal(size=n)
        return [Candidate(self.draw(rng, misfit), Origin("policy"), round) for misfit in misfits]

    def learn(
        self, reward: Reward, *, seed: int, round: int, progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Two iterations; the state lies in the checkpoint after each."""
        file = None if checkpoint is None else checkpoint / "state.json"
        rows: list[dict[str, Any]] = []
        if file is not None and file.exists():
            state = json.loads(file.read_text())
            self.bias, rows = state["bias"], state["rows"]
        for iteration in range(len(rows), 2):
            rewards, _ = reward(self.propose(8, seed=seed + iteration, round=round))
            self.bias /= 2
            rows.append({"iteration": iteration, "reward": float(np.mean(rewards)), "kl": 0.1 * (iteration + 1)})
            if file is not None:
                file.parent.mkdir(parents=True, exist_ok=True)
                temporary = file.with_suffix(".new")
                temporary.write_text(json.dumps({"bias": self.bias, "rows": rows}))
                temporary.replace(file)
            if progress is not None:
                progress("finetune", iteration + 1, 2, rows[-1])
        return rows

    def save(self, path: Path) -> None:
        """Write policy and surrogate."""
        path.mkdir(parents=True, exist_ok=True)
        (path / "world.json").write_text(json.dumps({"bias": self.bias, "slopes": self.slopes}))

    def load(self, path: Path) -> None:
        """Take them over."""
        state = json.loads((path / "world.json").read_text())
        self.bias, self.slopes = state["bias"], state["slopes"]

    # surrogate

    def fit(
        self,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        *,
        picked_at_random: Collection[str] = (),
    ) -> dict[str, float]:
        """Least squares through the origin, over what was measured."""
        time.sleep(self.seconds)
        x = self._features(candidates)
        y = np.array([[evaluation.value(name) for name in self.names] for evaluation in evaluations])
        measured = np.isfinite(y)
        self.slopes = ((x * y).sum(0, where=measured) / (x * x).sum(0, where=measured)).tolist()
        return {"picked_at_random": float(len(picked_at_random))}

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """A line through the origin."""
        mean = self._features(candidates) * np.array(self.slopes)
        return Prediction(mean, np.full_like(mean, 0.05), self.names, self.units)

    @staticmethod
    def _features(candidates: Sequence[Candidate]) -> np.ndarray:
        found = np.array([[truth(c.structure)[name] for name in UNIT] for c in candidates])
        return found.reshape(-1, len(UNIT)) + 1e-9


class Nearest:
    """Acquisition: the lowest predicted energy above the hull."""

    def select(
        self,
        candidates: Sequence[Candidate],
        surrogate: Surrogate,
        k: int,
        *,
        seed: int,  # noqa: ARG002
    ) -> list[int]:
        """Indices, best first."""
        mean, _ = surrogate.predict(candidates).column("e_above_hull")
        return np.argsort(mean, kind="stable")[:k].tolist()


class Stability:
    """Reward: minus the energy above the hull."""

    counts: Mapping[str, int] = {}

    def __call__(self, candidates: Sequence[Candidate | None]) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Rewards, and what they consist of."""
        rewards = np.array([-1.0 if c is None else -truth(c.structure)["e_above_hull"] for c in candidates])
        return rewards, [{"stability": float(value)} for value in rewards]


def everything(structures: Sequence[Structure]) -> list[str | None]:
    """All crystals are valid."""
    return [None] * len(structures)


def components(oracle: Oracle, seconds: float = 0.0, draw: Draw = pair) -> Components:
    """What a campaign of this world consists of; policy and surrogate are objects of their own."""
    nearest: Acquisition = Nearest()
    return Components(
        generator=World(seconds, draw),
        surrogate=World(seconds, draw),
        acquisition=nearest,
        oracle=oracle,
        reward_for=lambda _: Stability(),
        novelty=NoveltyIndex(),
        validity=everything,
    )
