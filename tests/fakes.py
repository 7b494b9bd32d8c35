"""Analytic stand-ins for the four contracts: a one-dimensional world whose optimum is known, for tests of the loop.

Rocksalt crystals of two elements with a lattice parameter `a`. A pair is the more stable the closer `a` is to the sum
of its radii; the bulk modulus rises with the sum of atomic numbers. The policy is a Gaussian of `a` around the optimum
with a bias that learning removes.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from loop.campaign import Components
from loop.contracts import Progress, Reward
from loop.errors import CheckpointError
from loop.novelty import NoveltyIndex
from loop.values import OK, Candidate, Cost, EnergyType, Evaluation, Origin, Prediction, Quantity, failed

CATIONS = ("Li", "Na", "K", "Rb", "Mg", "Ca", "Sr", "Ba")
FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
ANIONS = ("F", "Cl", "Br", "O", "S", "Se")


def rocksalt(cation: str = "Na", anion: str = "Cl", a: float = 5.64) -> Structure:
    """Conventional cell; `Structure.from_spacegroup` takes a hundred times as long."""
    return Structure(Lattice.cubic(a), np.repeat([cation, anion], 4), [*FCC, *(FCC + 0.5)])


def best_length(structure: Structure) -> float:
    """Lattice parameter (A) at which a rocksalt pair is stable in this world."""
    return 2.0 * float(sum(Element(str(e)).atomic_radius for e in structure.composition))


def e_above_hull(structure: Structure) -> float:
    """eV/atom in this world: quadratic in the misfit of the lattice parameter."""
    return (structure.volume ** (1 / 3) / best_length(structure) - 1) ** 2 * 10


def bulk_modulus(structure: Structure) -> float:
    """GPa in this world."""
    return float(sum(Element(str(e)).Z for e in structure.composition))


def _read(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"there is no {path}")
    return json.loads(path.read_text())


class FakeGenerator:
    """Draws rocksalt pairs with a misfit of `bias`, which every iteration of learning halves."""

    def __init__(self, bias: float = 0.4, iterations: int = 2, fail_at: int | None = None) -> None:
        self.bias = bias
        self.iterations = iterations
        self.fail_at = fail_at  # iteration counted over the life of this object
        self.calls = 0

    def propose(self, n: int, *, seed: int, round: int) -> list[Candidate]:
        rng = np.random.default_rng(seed)
        made = []
        for _ in range(n):
            pair = [str(rng.choice(CATIONS)), str(rng.choice(ANIONS))]
            start = rocksalt(*pair)
            length = best_length(start) * (1 + self.bias + 0.1 * rng.normal())
            start.scale_lattice(length**3)
            made.append(Candidate(start, Origin("policy", 225, f"bias{self.bias:.4f}"), round))
        return made

    def learn(
        self,
        reward: Reward,
        *,
        seed: int,
        round: int,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> list[dict[str, Any]]:
        file = checkpoint / "state.json" if checkpoint else None
        rows: list[dict[str, Any]] = []
        if file and file.exists():
            state = json.loads(file.read_text())
            self.bias, rows = state["bias"], state["rows"]
        for iteration in range(len(rows), self.iterations):
            if self.calls == self.fail_at:
                raise KeyboardInterrupt
            self.calls += 1
            rewards, _ = reward(self.propose(8, seed=seed + iteration, round=round))
            self.bias /= 2
            rows.append(
                {
                    "iteration": iteration,
                    "reward": float(np.mean(rewards)) if len(rewards) else 0.0,
                    "kl": 0.1 * (iteration + 1),
                }
            )
            if file:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"bias": self.bias, "rows": rows}))
            if progress:
                progress("finetune", iteration + 1, self.iterations, rows[-1])
        return rows

    def save(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "policy.json").write_text(json.dumps({"bias": self.bias}))

    def load(self, path: Path) -> None:
        self.bias = _read(path / "policy.json")["bias"]


class FakeSurrogate:
    """A straight line through (misfit squared, label) for stability, and one through Z for the modulus."""

    names = ("e_above_hull", "bulk_modulus")
    units = ("eV/atom", "GPa")

    def __init__(self) -> None:
        self.slopes = [0.0, 0.0]

    def fit(
        self,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        *,
        picked_at_random: Collection[str] = (),
    ) -> dict[str, float]:
        pairs = [(c, e) for c, e in zip(candidates, evaluations, strict=True) if e.ok]
        candidates, evaluations = zip(*pairs, strict=True)
        X = self._features(candidates)
        y = np.array([[evaluation.value(name) for name in self.names] for evaluation in evaluations])
        self.slopes = (np.sum(X * y, axis=0) / np.sum(X * X, axis=0)).tolist()
        return {"labels": float(len(y))}

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        mean = self._features(candidates) * np.array(self.slopes)
        return Prediction(mean, np.full_like(mean, 0.05), self.names, self.units)

    @staticmethod
    def _features(candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([[e_above_hull(c.structure) / 10 + 1e-9, bulk_modulus(c.structure)] for c in candidates])

    def save(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / "slopes.json").write_text(json.dumps(self.slopes))

    def load(self, path: Path) -> None:
        self.slopes = _read(path / "slopes.json")


class FakeAcquisition:
    """Greedy: lowest predicted energy above the hull."""

    def select(self, candidates: Sequence[Candidate], surrogate: FakeSurrogate, k: int, *, seed: int) -> list[int]:
        mean, _ = surrogate.predict(candidates).column("e_above_hull")
        return np.argsort(mean, kind="stable")[:k].tolist()


class FakeOracle:
    """The world's truth; selenides fail, and the `fail_at`-th evaluation kills the process."""

    name = "fake@1"
    settings_hash = "0" * 8

    def __init__(self, fail_at: int | None = None) -> None:
        self.fail_at = fail_at
        self.evaluated: list[str] = []

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        return [self._evaluate(candidate) for candidate in candidates]

    def _evaluate(self, candidate: Candidate) -> Evaluation:
        if len(self.evaluated) == self.fail_at:
            raise KeyboardInterrupt
        self.evaluated.append(candidate.id)
        made = {"candidate_id": candidate.id, "oracle": self.name, "settings": self.settings_hash, "cost": Cost(0.5)}
        if "Se" in candidate.formula:
            return Evaluation(**made, status=failed("exploded"), message="volume grew by a factor of 9")
        properties = {
            "e_above_hull": Quantity(e_above_hull(candidate.structure), "eV/atom"),
            "energy": Quantity(e_above_hull(candidate.structure) - 3, "eV/atom"),
            "bulk_modulus": Quantity(bulk_modulus(candidate.structure), "GPa"),
        }
        relaxed = candidate.structure.copy()
        relaxed.scale_lattice(best_length(relaxed) ** 3)
        return Evaluation(
            **made,
            status=OK,
            properties=properties,
            energy_type=EnergyType("fake", "PBE", "none"),
            structure=relaxed,
            space_group=225,
            space_group_relaxed=225,
            decomposition={candidate.formula: 1.0},
        )


class FakeReward:
    """Minus the energy above the hull; -100 for no crystal. Counts what lies far above it."""

    def __init__(self) -> None:
        self.counts = {"far-above": 0}

    def __call__(self, candidates: Sequence[Candidate | None]) -> tuple[np.ndarray, list[dict[str, float]]]:
        rewards = np.array([-100.0 if c is None else -e_above_hull(c.structure) for c in candidates])
        self.counts["far-above"] += int((rewards < -0.5).sum())
        return rewards, [{"stability": float(value)} for value in rewards]


def fake_components(generator: FakeGenerator | None = None, oracle: FakeOracle | None = None) -> Components:
    """Everything a campaign needs; runs in milliseconds."""
    return Components(
        generator=generator or FakeGenerator(),
        surrogate=FakeSurrogate(),
        acquisition=FakeAcquisition(),
        oracle=oracle or FakeOracle(),
        reward_for=lambda _: FakeReward(),
        novelty=NoveltyIndex(),
        validity=lambda structures: ["too-big" if s.volume > 1000 else None for s in structures],
        screen=lambda candidates: np.array([e_above_hull(c.structure) for c in candidates]),
    )
