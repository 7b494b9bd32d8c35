"""`discovery-loop benchmark hull`: closed-loop discovery on phase diagrams, after MADE (arXiv 2601.20996).

Each method has a budget of oracle queries in a chemical system whose known phases are given. What counts is how many
new crystals near the hull it finds, and how soon.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.crystals import CONTRACTION, random_crystals
from flows.benchmarks.harness import files_of, write_benchmark
from flows.benchmarks.hull.methods import (
    GENERATOR,
    METHODS,
    OURS,
    RANDOM,
    RANKING,
    InOrder,
    Method,
    Ours,
    Pool,
    Ranking,
    distances,
    kind_of,
)
from flows.benchmarks.hull.world import Episode, Outcome, Referee, RelaxingOracle, hull_of
from flows.benchmarks.workers import spread
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, write_text
from loop.values import Candidate
from oracles.relax import RelaxConfig

if TYPE_CHECKING:
    from collections.abc import Callable

    from loop.hull import Hull
    from loop.known import KnownCrystals
    from oracles.potentials.base import Potential

# the ternary intermetallic systems of the published benchmark
SYSTEMS: tuple[str, ...]
SYSTEMS = ("Mg-Sn-Sr", "Au-K-Tb", "Co-Mg-Na", "Hf-Ni-Zr", "Co-Dy-W", "Ga-Pt-Tm", "Ga-Ho-Lu", "Al-Li-V", "Al-V-Zn")
SYSTEMS += ("Co-Pd-Tl",)
PROTOCOL = (
    "Start: every reference phase of the system, with the oracle's energy. A query relaxes one crystal with the "
    "oracle; failures count. The hull takes up each relaxed crystal. A discovery is a relaxed crystal that no known "
    "crystal and no earlier query equals, within the tolerance of the present hull. What counts against the budget "
    "are queries; single points of the pool with `potential`, which `generator_ranking` and `ours` use, do not. Where "
    "the oracle is another potential: its hull is on demand; `potential` relaxes each crystal before the oracle does, "
    "and what lies further above the oracle's hull than `near` is not relaxed on (its energy counts as it is); the "
    "two methods choose among `screened` crystals that `potential` has relaxed, which does not count against the "
    "budget, the ranking by the distance from that potential's hull. `pooled`: discoveries a query over all episodes "
    "together; ratios with the interval of the Bayesian bootstrap over queries, and as geometric mean over systems. "
    "Published: ORB-v3 as oracle, ranking by another potential (MACE-MP-0, relaxing), novelty against the starting "
    "phases only, thirty systems, five episodes each."
)


@dataclass(frozen=True)
class HullConfig:
    """Settings of the benchmark.

    Attributes:
        systems: chemical systems.
        methods: of `flows.benchmarks.hull.methods.METHODS`.
        seeds: episodes of each method in each system.
        first_seed: of these episodes.
        tolerances: eV/atom from the hull that count as stable. `ours` plays an episode for each.
        budget: queries of an episode.
        batch: queries between two looks at the answers, of the methods that look.
        pool: crystals that the generator draws.
        max_atoms: of a primitive cell, for all methods; 20 as published.
        potential: ranks and describes crystals as drawn; it must be the one of the shipped reference phases.
        oracle: another potential, which judges on its own hull; it relaxes on what `potential` has relaxed, where that
            may end near. None: `potential` is the oracle.
        screened: crystals of the pool that `potential` relaxes where another is the oracle, the lowest as drawn;
            `generator_ranking` and `ours` choose among these.
        near: eV/atom above the other oracle's hull by its energy of what `potential` has relaxed; what lies further off
            is not relaxed on.
        oracle_steps: limit of steps of the other oracle's relaxations.
        relax: settings of relaxations.
        workers: processes, of one thread each; they share a GPU.
    """

    systems: tuple[str, ...] = SYSTEMS
    methods: tuple[str, ...] = METHODS
    seeds: int = 1
    first_seed: int = 0
    tolerances: tuple[float, ...] = (0.1, 0.01)
    budget: int = 50
    batch: int = 5
    pool: int = 512
    max_atoms: int = 20
    potential: str = "chgnet"
    oracle: str | None = None
    screened: int = 256
    near: float = 0.3
    oracle_steps: int = 50
    relax: RelaxConfig = field(default_factory=lambda: RelaxConfig(max_contraction=CONTRACTION, retry=None))
    workers: int = 1

    def __post_init__(self) -> None:
        unknown = [name for name in self.methods if name not in METHODS]
        if unknown or not self.systems:
            raise ConfigError(f"expected systems and methods among {', '.join(METHODS)}, got {self.systems}, {unknown}")
        if min(self.seeds, self.budget, self.batch, self.pool, self.workers) < 1 or self.max_atoms < 2:
            raise ConfigError("expected seeds, budget, batch, pool and workers of at least 1, max_atoms of at least 2")


def run(output: Path, config: HullConfig | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Run the benchmark; episodes and relaxations that `output` holds already are not done again.

    Args:
        output: folder for record.json, summary.csv, curves.csv and figures.
        config: settings.
        progress: called after each episode.

    Returns:
        The record, as in record.json.

    Raises:
        EnergyTypeError: the potential is not that of the reference phases.
    """
    from flows.benchmarks.hull.summary import PUBLISHED, draw, pooled, summarise, tables

    config = config or HullConfig()
    make_folder(output / "episodes")
    began = time.perf_counter()
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    wanted = [Share(s, seed, m) for seed in seeds for s in config.systems for m in _shares(config)]
    done: dict[Share, list[Outcome]] = {}
    for share, episodes in spread(_episodes, (output, config), wanted, config.workers):
        done[share] = episodes
        if progress is not None:
            found = {f"{o.method} {t}": float(curve[-1]) for o in episodes for t, curve in o.curves.items()}
            progress("hull", len(done), len(wanted), found)
    outcomes = [outcome for share in wanted for outcome in done[share]]
    summary = summarise(outcomes)
    for name, frame in tables(outcomes, summary).items():
        write_text(output / f"{name}.csv", frame.to_csv(index=False, lineterminator="\n"))
    figure = draw(outcomes, output / "discoveries.png")
    record = {
        "benchmark": "hull",
        "protocol": PROTOCOL,
        "settings": asdict(config),
        "results": summary,
        "pooled": pooled(outcomes),
        "published": PUBLISHED,
        "seconds_this_run": round(time.perf_counter() - began, 1),
        "files": files_of([*sorted(output.glob("*.csv")), figure]),
    }
    return write_benchmark(output, record)


@dataclass(frozen=True)
class Share:
    """What one process plays in one go: methods that ask about the same crystals, so that each is relaxed once."""

    system: str
    seed: int
    methods: tuple[str, ...]


def _shares(config: HullConfig) -> list[tuple[str, ...]]:
    """Methods that choose from the generator's pool, and the random generator, whose crystals are its own."""
    parts = [tuple(m for m in config.methods if m != RANDOM), tuple(m for m in config.methods if m == RANDOM)]
    return [part for part in parts if part]


def _episodes(shared: tuple[Path, HullConfig], share: Share) -> list[Outcome]:
    """All episodes of a share, those on disk read back."""
    output, config = shared
    outcomes, setting = [], None
    for method in share.methods:
        for tolerances in [(t,) for t in config.tolerances] if method == OURS else [config.tolerances]:
            tag = "" if method != OURS else f"-{tolerances[0]:g}"
            path = output / "episodes" / f"{share.system}-{method}{tag}-{share.seed}.json"
            if path.exists():
                outcomes.append(Outcome(**json.loads(path.read_text(encoding="utf-8"))))
                continue
            setting = setting or _Setting(share, output, config)
            outcome = setting.play(method, tolerances)
            write_text(path, json.dumps(asdict(outcome)))
            outcomes.append(outcome)
    return outcomes


class _Setting:
    """What the methods of a share have in common; the pool is drawn when it is first needed."""

    def __init__(self, share: Share, output: Path, config: HullConfig) -> None:
        from loop.known import KnownCrystals
        from oracles.potentials.loading import load_potential
        from oracles.references.table import load_references

        self.system, self.seed, self.config = share.system, share.seed, config
        self.potential: Potential = load_potential(config.potential)
        self.references = load_references()
        referee = None
        if config.oracle is not None:
            judge, phases = load_potential(config.oracle), output / "phases.db"
            settings = replace(config.relax, max_steps=config.oracle_steps)
            referee = Referee(judge, settings, hull_of(share.system.split("-"), judge, phases), config.near)
        self.hull: Hull = self.references.hull() if referee is None else referee.hull
        self.known: KnownCrystals = KnownCrystals.shipped()
        self.features = output / "features" / f"{share.system}-{share.seed}"
        make_folder(output / "relaxed")
        source = RANDOM if RANDOM in share.methods else GENERATOR
        file = output / "relaxed" / f"{share.system}-{source}-{share.seed}.jsonl"  # no two processes write to it
        self.oracle = RelaxingOracle(self.potential, config.relax, file, referee)
        self._pool: Pool | None = None

    def play(self, name: str, tolerances: tuple[float, ...]) -> Outcome:
        """One episode."""
        began = time.perf_counter()
        method = self._method(name, tolerances[0])
        episode = Episode(self.hull, self.known, tolerances)
        while (left := self.config.budget - len(episode.queries)) > 0:
            chosen = method.propose(episode, min(left, self.config.batch if name in (OURS, RANKING) else left))
            if not chosen:  # nothing left to ask: the curve stays where it is
                for curve in episode.curves.values():
                    curve += [curve[-1] if curve else 0] * left
                break
            for candidate, answer in zip(chosen, self.oracle(chosen), strict=True):
                method.observe(candidate, answer, episode.take(candidate, answer))
        return Outcome.of((self.system, name, self.seed), episode, time.perf_counter() - began)

    def _method(self, name: str, tolerance: float) -> Method:
        rng = np.random.default_rng(self.seed)
        elements = self.system.split("-")
        if name == RANDOM:
            return InOrder(random_crystals(elements, self.config.budget, self.config.max_atoms, self.seed))
        if name == GENERATOR:
            order = rng.permutation(len(self.pool.candidates))
            return InOrder([self.pool.candidates[i] for i in order])
        own = self.config.oracle is None  # the potential judges itself, crystals as drawn
        if name == RANKING:
            return Ranking(self.offered, None if own else self.references.hull())
        return Ours(self._new(), self._extractor(), tolerance, self.known if own else None, apart=own)

    @property
    def offered(self) -> Pool:
        """What ranking and ours choose among."""
        return self.pool if self.config.oracle is None else self.screened

    @property
    def pool(self) -> Pool:
        """Crystals of at least two elements that the shipped generator draws in the system."""
        if self._pool is None:
            from flows.models import load_model
            from flows.tables.generation import generate
            from generator.constraints.conditions import Sampling

            model = load_model(None, "cpu", "float32")
            sampling = Sampling(elements=tuple(self.system.split("-")), max_atoms=self.config.max_atoms)
            drawn: list[Candidate] = []
            part = 0
            while len(drawn) < self.config.pool:
                seed = np.random.SeedSequence((self.seed, part)).generate_state(1)[0]
                made = generate(model, self.config.pool, int(seed), sampling).candidates
                drawn += [candidate for candidate in made if len(candidate.structure.composition) > 1]
                part += 1
            drawn = drawn[: self.config.pool]
            self._pool = Pool(tuple(drawn), self.potential.energies([c.structure for c in drawn]))
        return self._pool

    @cached_property
    def screened(self) -> Pool:
        """Those of the pool that lie lowest as drawn, one of each formula and symmetry, relaxed by `potential`."""
        from oracles.relax import relax

        pool, as_drawn = self.pool, self.references.hull(relaxed=False)
        usable = np.flatnonzero(np.isfinite(pool.energies))
        above = distances(as_drawn, [pool.candidates[i] for i in usable], pool.energies[usable])
        chosen: dict[tuple[str, int], Candidate] = {}
        for i in usable[np.argsort(above, kind="stable")]:
            chosen.setdefault(kind_of(pool.candidates[i]), pool.candidates[i])
        few = list(chosen.values())[: self.config.screened]
        outcomes = relax([candidate.structure for candidate in few], self.potential, self.config.relax)
        kept = [each for each in outcomes if each.structure is not None and np.isfinite(each.energy)]
        candidates = tuple(Candidate(each.structure) for each in kept if each.structure is not None)
        return Pool(candidates, np.array([each.energy for each in kept]))

    def _new(self) -> Pool:
        """What a campaign would let into its pool: valid and neither known nor a copy."""
        from loop.novelty import NoveltyIndex
        from loop.validity import ValidityRules
        from loop.values import NEW

        rules, pool = ValidityRules(radioactive=True), self.offered
        valid = [i for i, candidate in enumerate(pool.candidates) if rules.reason(candidate.structure) is None]
        structures = [pool.candidates[i].structure for i in valid]
        verdicts = NoveltyIndex(self.known).judge(structures, [str(i) for i in valid], quick=True)
        kept = [i for i, verdict in zip(valid, verdicts, strict=True) if verdict.kind == NEW]
        return Pool(tuple(pool.candidates[i] for i in kept), pool.energies[kept])

    def _extractor(self) -> Any:
        from surrogates.features import FeatureExtractor, default_blocks

        relaxed = self.config.oracle is not None
        kind, hull = self.potential.energy_type, self.references.hull(relaxed=relaxed)

        def above(structures: Sequence[Any], energies: np.ndarray) -> np.ndarray:
            return distances(hull, [Candidate(structure) for structure in structures], energies)

        describe: Callable = self.potential.energies_and_descriptors
        key = f"{kind}|{self.references.checksum}|{'relaxed' if relaxed else 'as they stand'}"
        return FeatureExtractor(default_blocks(describe, above, key=key), self.features)
