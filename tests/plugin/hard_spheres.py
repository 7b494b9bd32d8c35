from dataclasses import dataclass

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from loop.errors import CheckpointError, ConfigError
from loop.registry import GeneratorKind, OracleKind
from loop.reward_sources import Judged
from loop.values import OK, Candidate, Evaluation, Origin, Quantity, failed


def packing(structure):
    return sum(4 / 3 * np.pi * float(site.specie.atomic_radius) ** 3 for site in structure) / structure.volume
def packing_source(request):  # the reward term: a value for each crystal as drawn, in order
    return lambda candidates: Judged(np.array([packing(candidate.structure) for candidate in candidates]))

@dataclass(frozen=True)
class Spheres:  # the oracle's options
    best: float = 0.5  # packing fraction of the most stable crystal
class SpheresOracle:
    def __init__(self, options):
        self.name, self.settings_hash, self.best = "spheres@1", f"best={options.best}", options.best
    def evaluate(self, candidates):  # one evaluation per candidate; a failure is a value, never an exception
        return [self.label(candidate.id, candidate.structure) for candidate in candidates]
    def label(self, id, structure):
        if not structure.is_valid(0.5):
            return Evaluation(id, self.name, self.settings_hash, failed("overlap"), message="atoms closer than 0.5 A")
        above, modulus = 10 * (packing(structure) - self.best) ** 2, 200 * packing(structure)
        found = {"e_above_hull": Quantity(above, "eV/atom"), "bulk_modulus": Quantity(modulus, "GPa")}
        return Evaluation(id, self.name, self.settings_hash, OK, found, structure=structure)
ORACLE = OracleKind(SpheresOracle, lambda options: ("e_above_hull", "bulk_modulus"), Spheres)

class RocksaltGenerator:  # draws packing fractions around a mean, and learning moves the mean
    def __init__(self, request):
        self.mean, asked = 0.4, request.conditions
        pairs = [(c, a) for c in ("Li", "Na", "K", "Mg", "Ca", "Sr") for a in ("F", "Cl", "Br", "O", "S")]
        self.pairs = [pair for pair in pairs if asked.required <= {Element(e).Z for e in pair} <= asked.allowed]
        if not self.pairs:
            raise ConfigError("no rocksalt pair has the elements that are asked for")
    def propose(self, n, *, seed, round):
        rng = np.random.default_rng(seed)
        return [Candidate(self.rocksalt(rng), Origin("rocksalt", 225), round) for _ in range(n)]
    def rocksalt(self, rng):
        pair, fraction = self.pairs[rng.integers(len(self.pairs))], np.clip(rng.normal(self.mean, 0.05), 0.1, 0.9)
        crystal = Structure(Lattice([[0, 1, 1], [1, 0, 1], [1, 1, 0]]), pair, [[0, 0, 0], [0.5, 0.5, 0.5]])
        return crystal.scale_lattice(crystal.volume * packing(crystal) / fraction)
    def learn(self, reward, *, seed, round, progress=None, checkpoint=None):
        drawn = self.propose(32, seed=seed, round=round)
        rewards, before = reward(drawn)[0], self.mean
        self.mean = float(np.mean([packing(drawn[i].structure) for i in np.argsort(-rewards)[:8]]))
        return [{"iteration": 0, "reward": float(np.mean(rewards)), "kl": (self.mean - before) ** 2 / (2 * 0.05**2)}]
    def save(self, path):
        path.mkdir(parents=True, exist_ok=True)
        (path / "mean.txt").write_text(str(self.mean))
    def load(self, path):
        if not (path / "mean.txt").is_file():
            raise CheckpointError(f"{path} holds no mean.txt")
        self.mean = float((path / "mean.txt").read_text())
GENERATOR = GeneratorKind(RocksaltGenerator)
