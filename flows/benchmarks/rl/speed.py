"""`discovery-loop benchmark rl-speed`: the cost of an iteration, and the reward against the published scheme.

The published scheme is rewritten here: for each structure one call of an ASE calculator, a scan of all known phases
for those of its chemical system, and a new PhaseDiagram of pymatgen. Both sides take the same crystals, one after the
other in small portions, so that whatever else the machine does hits both; CPU seconds are what is compared.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.clock import torch_threads
from loop.contracts import Progress
from loop.io.files import make_folder

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from flows.build import Builder

# wall seconds of the original's PPO update alone (JAX, CPU, batch 100, fp64, 2 log-probability passes and 5 steps),
# measured by this project on 2 cores for its small network (321,831 parameters) and its default one (4,833,575)
ORIGINAL_UPDATE = {"small": 8.0, "default": 189.8}
BATCH = 100
PORTION = 5  # structures of the slow side between two portions of the fast side
PROTOCOL = "CPU seconds of one fine-tuning iteration, and of the batched reward against the published one-by-one scheme"


@dataclass(frozen=True)
class RLSpeed:
    """Settings of the benchmark.

    Attributes:
        crystals: judged by the batched reward.
        slow: the first of them that the published scheme judges, too.
        checkpoint: folder of the network that is tuned; none: the one that is shipped.
        threads: of torch in an iteration; all else runs on one.
        seed: of what is drawn.
    """

    crystals: int = 300
    slow: int = 20
    checkpoint: Path | None = None
    threads: int = 2
    seed: int = 0


def run(output: Path, config: RLSpeed | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """Time both, and write ``record.json``.

    Raises:
        CheckpointError: the checkpoint cannot be read.
    """
    from flows.benchmarks.harness import write_benchmark
    from flows.build import Builder
    from flows.config import CampaignConfig

    config = config or RLSpeed()
    make_folder(output)
    tell: Progress = progress or (lambda *_: None)
    campaign = CampaignConfig()
    builder = Builder(campaign)
    tell("rl-speed", 0, 2, {})
    results: dict[str, Any] = {"reward": reward_speed(builder, config.crystals, config.slow, config.seed)}
    tell("rl-speed", 1, 2, {})
    if config.checkpoint is not None:
        section = campaign.generator.model_copy(update={"checkpoint": config.checkpoint})
        builder = Builder(campaign.model_copy(update={"generator": section}))
    results["iteration"] = iteration_speed(builder, config.seed, config.threads)
    settings = {"crystals": config.crystals, "slow": config.slow, "threads": config.threads, "seed": config.seed}
    record = {"benchmark": "rl-speed", "protocol": PROTOCOL, "settings": settings, "results": results}
    return write_benchmark(output, record)


def reward_speed(builder: Builder, crystals: int, slow: int, seed: int) -> dict[str, float]:
    """CPU seconds per crystal of energy and hull distance: batched with cached hulls, and the published scheme."""
    drawn = [candidate.structure for candidate in builder.generator.propose(2 * crystals, seed=seed, round=0)]
    reasons = builder.config.validity(drawn)
    valid = [s for s, reason in zip(drawn, reasons, strict=True) if reason is None][:crystals]
    published = Published(builder)
    builder.screen.judge([valid[0]])  # loads what is loaded once
    published([valid[0]])
    ours = theirs = 0.0
    found: list[float] = []
    expected: list[float] = []
    portions = [valid[k : k + PORTION] for k in range(0, min(slow, len(valid)), PORTION)]
    shares = np.array_split(np.arange(len(valid)), max(1, len(portions)))
    for portion, share in zip(portions, shares, strict=True):
        seconds, above = timed(lambda s: builder.screen.judge(s)[0], [valid[k] for k in share])
        ours, found = ours + seconds, [*found, *above]
        seconds, above = timed(published, portion)
        theirs, expected = theirs + seconds, [*expected, *above]
    difference = np.abs(np.array(found)[: len(expected)] - np.array(expected))
    each, each_published = ours / len(valid), theirs / len(expected)
    return {
        "crystals": len(valid),
        "published_crystals": len(expected),
        "cpu_ms_a_crystal": 1000 * each,
        "published_cpu_ms_a_crystal": 1000 * each_published,
        "ratio": each_published / each,
        "largest_difference_ev_per_atom": float(np.nanmax(difference)),
    }


class Published:
    """Energies above the hull one structure at a time, as CrystalFormer-RL v0.4.2 computes its reward."""

    def __init__(self, builder: Builder) -> None:
        from chgnet.model.dynamics import CHGNetCalculator
        from pymatgen.analysis.phase_diagram import PDEntry
        from pymatgen.core import Composition

        references = builder.measuring.table
        self.calculator = CHGNetCalculator(use_device="cpu")
        energies = references.energies_of(relaxed=False).tolist()  # as the crystals that are judged
        pairs = [(Composition(f), energy) for f, energy in zip(references.formulas, energies, strict=True)]
        self.entries = [PDEntry(composition, energy * composition.num_atoms) for composition, energy in pairs]

    def __call__(self, structures: Sequence[Structure]) -> list[float]:
        """eV/atom."""
        return [self.one(structure) for structure in structures]

    def one(self, structure: Structure) -> float:
        """Calculator, scan, phase diagram."""
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram

        atoms = structure.to_ase_atoms()
        atoms.calc = self.calculator
        energy = float(atoms.get_potential_energy())
        elements = set(structure.composition.elements)
        rivals = [entry for entry in self.entries if set(entry.composition.elements) <= elements]
        above = PhaseDiagram(rivals).get_e_above_hull(PDEntry(structure.composition, energy), allow_negative=True)
        return float("nan") if above is None else float(above)


def timed(work: Callable[[list[Structure]], Any], structures: list[Structure]) -> tuple[float, Any]:
    """CPU seconds and result."""
    began = time.process_time()
    result = work(structures)
    return time.process_time() - began, result


def iteration_speed(builder: Builder, seed: int, threads: int) -> dict[str, Any]:
    """Seconds of one iteration after a first one, batch 100: drawing, reward, update (2 passes of 2 minibatches)."""
    from flows.benchmarks.rl.variants import RECIPE
    from generator.rl.loop import Finetuner

    config = replace(RECIPE, batch_size=BATCH, minibatch_size=BATCH // 2, iterations=2)
    base = builder.generator.base
    tuner = Finetuner(copy.deepcopy(base.model), base.model, config, seed=seed, reference_checksum=base.checksum)
    reward = builder.reward_for(0)
    with torch_threads(threads):
        tuner.iterate(reward, "speed", 0)
        began, wall = time.process_time(), time.perf_counter()
        row = tuner.iterate(reward, "speed", 0)
        cpu, wall = time.process_time() - began, time.perf_counter() - wall
    parameters = sum(parameter.numel() for parameter in base.model.parameters())
    parts = {name: row[f"seconds_{name}"] for name in ("sample", "reward", "update")}
    ratios = {f"original_{name}_update_over_iteration": seconds / cpu for name, seconds in ORIGINAL_UPDATE.items()}
    ratios |= {f"original_{name}_update_over_wall": seconds / wall for name, seconds in ORIGINAL_UPDATE.items()}
    return {
        "parameters": parameters,
        "threads": threads,
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "wall_parts": parts,
        **ratios,
    }
