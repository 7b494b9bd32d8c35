"""`discovery-loop benchmark selection`: time and memory to choose a batch from a large pool of cached features."""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flows.benchmarks.harness import write_benchmark
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder
from loop.values import OK, Candidate, Evaluation, Origin, Quantity

PROTOCOL = (
    "A pool of distinct crystals (draws of the shipped generator, each at many volumes) whose features lie in the "
    "cache on disk. Timed in a process of its own: features from the cache, predictions, choice of a batch by the "
    "campaign's default surrogate and selection. Content ids are given: a pool has them from its search for copies. "
    "The surrogate was fitted before, to made-up labels: values do not change the time. Peak memory is that of the "
    "process, crystals included."
)
COPIES_WITHIN = 0.02  # relative change of the cell lengths between the copies of one draw


@dataclass(frozen=True)
class SelectionConfig:
    """Settings of the benchmark.

    Attributes:
        pool: candidates.
        batch: how many are chosen.
        labels: behind the surrogate.
        draws: crystals drawn from the generator, of which the pool holds copies at other volumes.
        potential: whose descriptors are among the features; ``none``: no potential.
        seed: of the draws and of the choice.
    """

    pool: int = 100_000
    batch: int = 64
    labels: int = 500
    draws: int = 500
    potential: str = "chgnet"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.batch, self.draws) < 1 or self.pool < self.labels + self.batch:
            raise ConfigError(f"expected a pool larger than labels and batch together, got {self}")


def run(output: Path, config: SelectionConfig | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Prepare a pool, choose from it in a fresh process, and write ``record.json``."""
    config = config or SelectionConfig()
    make_folder(output)
    results: dict[str, Any] = {}
    for done, work in enumerate((prepare, choose)):
        if progress is not None:
            progress("selection", done, 2, {})
        results = in_process(work, output, config)
    record = {
        "benchmark": "selection",
        "protocol": PROTOCOL,
        "settings": asdict(config),
        "results": results,
    }
    return write_benchmark(output, record)


def in_process(work: Callable[[Path, SelectionConfig], dict[str, Any]], output: Path, config: SelectionConfig) -> Any:
    """What a function returns in a process of its own, with its ``peak_gib`` added.

    Raises:
        RuntimeError: the process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, output, config))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise RuntimeError(f"{work.__name__} died: its error is above") from None
    finally:
        process.join()


def _answer(pipe: Any, work: Callable[[Path, SelectionConfig], dict[str, Any]], output: Path, config: Any) -> None:
    result = work(output, config)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    pipe.send(result | {"peak_gib": round(peak, 3)})


def prepare(output: Path, config: SelectionConfig) -> dict[str, Any]:
    """Write the pool's features and a fitted surrogate into the folder."""
    from surrogates.features import add_to_cache

    extractor = _extractor(None, config)
    drawn = _draws(config)
    rows = extractor([Candidate(structure) for structure in drawn])
    rng = np.random.default_rng(config.seed)
    table = rows[np.arange(config.pool) % len(drawn)]
    table *= 1 + 0.05 * rng.standard_normal(table.shape)
    add_to_cache(output / "features", extractor, [_id(i) for i in range(config.pool)], table)
    surrogate = _surrogate(_extractor(output / "features", config))
    labelled = candidates(config, drawn, config.labels)
    surrogate.adapt(labelled)
    surrogate.fit(labelled, _labels(labelled, rng))
    surrogate.save(output / "surrogate")
    return {}


def choose(output: Path, config: SelectionConfig) -> dict[str, Any]:
    """Load the surrogate and choose, timed stage by stage (s): wall time and processor time."""
    from flows.config import CampaignConfig
    from surrogates.acquisition import PoolAcquisition

    pool = candidates(config, _draws(config), config.pool)[config.labels :]
    stages: dict[str, tuple[float, float]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        began, used = time.perf_counter(), time.process_time()
        result = work()
        stages[name] = (time.perf_counter() - began, time.process_time() - used)
        return result

    extractor = timed("read_cache", lambda: _extractor(output / "features", config))
    surrogate = _surrogate(extractor)
    timed("load_surrogate", lambda: surrogate.load(output / "surrogate"))
    timed("features", lambda: extractor(pool))
    timed("predictions", lambda: surrogate.predict(pool))
    acquisition = PoolAcquisition(CampaignConfig().selection)
    chosen = timed("choice", lambda: acquisition.select(pool, surrogate, config.batch, seed=config.seed))
    return {
        "chosen": len(set(chosen)),
        "pool": len(pool),
        "strategy": acquisition.config.strategy,
        "features": len(extractor.names),
        "wall_seconds": round(sum(wall for wall, _ in stages.values()), 2),
        "cpu_seconds": round(sum(cpu for _, cpu in stages.values()), 2),
        "stages": {name: {"wall": round(wall, 2), "cpu": round(cpu, 2)} for name, (wall, cpu) in stages.items()},
    }


def candidates(config: SelectionConfig, drawn: Sequence[Any], n: int) -> list[Candidate]:
    """The first n of the pool: copies of the draws with cells scaled by up to `COPIES_WITHIN`."""
    from pymatgen.core import Lattice, Structure

    factors = np.linspace(1 - COPIES_WITHIN, 1 + COPIES_WITHIN, 1 + config.pool // len(drawn))
    made = []
    for i in range(n):
        base = drawn[i % len(drawn)]
        lattice = Lattice(base.lattice.matrix * factors[i // len(drawn)])
        candidate = Candidate(Structure(lattice, base.species, base.frac_coords), Origin("benchmark"))
        candidate.__dict__["id"] = _id(i)
        made.append(candidate)
    return made


def _id(i: int) -> str:
    """As long as a content id."""
    return f"{i:016x}"


def _draws(config: SelectionConfig) -> list[Any]:
    """Crystals of the shipped generator, without two of one content."""
    from flows.models import load_model
    from flows.tables.generation import generate
    from generator.constraints.conditions import Sampling

    made = generate(load_model(None, "cpu", "float32"), config.draws, config.seed, Sampling()).candidates
    return [candidate.structure for candidate in {candidate.id: candidate for candidate in made}.values()]


def _extractor(cache: Path | None, config: SelectionConfig) -> Any:
    from surrogates.features import FeatureExtractor, default_blocks

    if config.potential == "none":
        return FeatureExtractor(cache=cache)
    from oracles.potentials.loading import load_potential

    potential = load_potential(config.potential)
    blocks = default_blocks(potential.energies_and_descriptors, key=str(potential.energy_type))
    return FeatureExtractor(blocks, cache)


def _surrogate(extractor: Any) -> Any:
    from flows.config import CampaignConfig
    from surrogates.gp import GPSurrogate

    return GPSurrogate(extractor, CampaignConfig().surrogate.gp)


def _labels(labelled: list[Candidate], rng: np.random.Generator) -> list[Evaluation]:
    """Made-up labels: softer and less stable with volume, with scatter."""
    made = []
    for candidate in labelled:
        volume = candidate.structure.volume / len(candidate.structure)
        modulus = float(np.exp(6.0 - 0.5 * np.log(volume) + 0.2 * rng.standard_normal()))
        above = float(abs(0.005 * volume + 0.05 * rng.standard_normal()))
        values = {"bulk_modulus": Quantity(modulus, "GPa"), "e_above_hull": Quantity(above, "eV/atom")}
        made.append(Evaluation(candidate.id, "made-up@1", "none", OK, values))
    return made
