"""Seconds of one training step at batch 100, against the original at the same sizes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.clock import cpu_seconds, load, torch_threads
from flows.benchmarks.generator.original import MEASURED_ON, SIZES, TRAINING, TRAINING_CPU
from flows.benchmarks.harness import write_benchmark
from flows.provenance import cores
from loop.contracts import Progress
from loop.errors import InputError
from loop.io.files import make_folder, sha256

if TYPE_CHECKING:
    from generator.representation.tokens import CrystalBatch

BATCH = 100
PROTOCOL = (
    "One step: forward, backward, clipping and update by AdamW, dropout 0.1, float32, batches of 100 "
    "crystals of similar length as `discovery-loop pretrain` forms them. Steps of an epoch differ: the mean is taken, "
    "over batches spread evenly from the shortest to the longest of an epoch, after a warm-up. CPU seconds of this "
    "process against CPU seconds of the original's process (`ratio_cpu`: the same work on the same kind of core), and "
    "wall seconds with the threads in `settings` against those of the original on two cores (`ratio_wall`: on an idle "
    "machine only). `published`: the original's layout "
    "and loss; `own`: the free layout and the exact likelihood at the same sizes."
)


def run(
    output: Path,
    data: Path | None = None,
    *,
    steps: int = 20,
    threads: int = 2,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time both sizes in both layouts, and write ``record.json``.

    Args:
        output: folder.
        data: crystals, or tokens of `generator.data.Prepared`; by default samples of the shipped checkpoint.
        steps: of the small size; the published size takes a quarter of them.
        threads: of torch; the original had two cores.
        seed: of weights and batches.
        progress: told of each size.

    Raises:
        InputError: fewer than 1,000 crystals.
    """
    make_folder(output)
    batch = crystals_of(data, seed, progress)
    if len(batch) < 10 * BATCH:
        raise InputError(f"expected at least {10 * BATCH} crystals to form batches of, found {len(batch)}")
    before = load()
    results: dict[str, Any] = {}
    with torch_threads(threads):
        for done, size in enumerate(SIZES):
            if progress is not None:
                progress("training", done, len(SIZES), {})
            n = steps if size == "small" else max(4, steps // 4)
            results[size] = _measure(size, batch, n, seed)
    record = {
        "benchmark": "training",
        "protocol": PROTOCOL,
        "original": MEASURED_ON,
        "settings": {"batch": BATCH, "steps": steps, "threads": threads, "seed": seed, "dtype": "float32"},
        "crystals": {
            "source": "samples of the shipped checkpoint" if data is None else data.name,
            "sha256": None if data is None else sha256(data),
            "number": len(batch),
            "mean_sites": float(batch.num_sites.mean()),
        },
        "units": {"cpu_seconds": "s per step", "wall_seconds": "s per step"},
        "results": results,
        "load": [before, load()],
        "cores": cores(),
    }
    return write_benchmark(output, record)


def crystals_of(data: Path | None, seed: int, progress: Progress | None) -> CrystalBatch:
    """Tokens of a file of crystals, or samples of the shipped checkpoint."""
    from generator.data import Prepared, prepare

    if data is not None:
        return Prepared.load(data).batch if data.suffix == ".npz" else prepare(data, progress=progress).batch
    from generator.checkpoint import load_checkpoint
    from generator.draw import draw

    return draw(load_checkpoint().model, 3200, np.random.default_rng(seed)).sample.batch


def _measure(size: str, batch: CrystalBatch, steps: int, seed: int) -> dict[str, Any]:
    """Both layouts in turns over the same batches."""
    from dataclasses import replace

    from generator.model import ModelConfig
    from generator.schedule import batches

    published = ModelConfig.published(**SIZES[size])
    layouts = {
        "published": (published, "published"),
        "own": (replace(ModelConfig(), **_sizes(published)), "exact"),
    }
    learners = {name: Learner(config, definition, batch, seed) for name, (config, definition) in layouts.items()}
    cuts = [rows for rows in batches(batch.num_sites, BATCH, np.random.default_rng(seed)) if len(rows) == BATCH]
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in layouts}
    cuts.sort(key=lambda rows: float(batch.num_sites[rows].mean()))
    spread = np.linspace(0, len(cuts) - 1, steps + 2)[1:-1].round().astype(int)
    used = [cuts[k] for k in (len(cuts) // 2, *spread)]  # a warm-up, then short, middling and long ones alike
    for rows in used:
        for name, learner in learners.items():
            times[name].append(learner.step(rows))
    found: dict[str, Any] = {
        "parameters": {name: sum(p.numel() for p in learner.model.parameters()) for name, learner in learners.items()},
        "mean_sites": float(np.mean([batch.num_sites[rows].mean() for rows in used[1:]])),
        "original_wall_seconds": TRAINING[size],
        "original_cpu_seconds": TRAINING_CPU[size],
        "steps": len(used) - 1,
    }
    for name in layouts:
        wall, cpu = np.array(times[name][1:]).mean(0)
        found[name] = {
            "cpu_seconds": float(cpu),
            "wall_seconds": float(wall),
            "ratio_cpu": TRAINING_CPU[size] / float(cpu),
            "ratio_wall": TRAINING[size] / float(wall),
        }
    return found


def _sizes(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in ("layers", "heads", "head_size", "width")}


class Learner:
    """A network and its optimiser."""

    def __init__(self, config: Any, definition: Any, batch: CrystalBatch, seed: int) -> None:
        import torch

        from generator.model import CrystalFormer
        from generator.representation.sequence import Crystals

        torch.manual_seed(seed)
        self.model, self.definition = CrystalFormer(config).train(), definition
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.crystals = Crystals.from_batch(batch, self.model.head.weight)

    def step(self, rows: np.ndarray) -> tuple[float, float]:
        """One update; wall and CPU seconds."""
        import time

        import torch

        from generator.likelihood import log_prob

        wall, cpu = time.perf_counter(), cpu_seconds()
        loss = -log_prob(self.model, self.crystals[torch.as_tensor(rows)], definition=self.definition).total.mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return time.perf_counter() - wall, cpu_seconds() - cpu
