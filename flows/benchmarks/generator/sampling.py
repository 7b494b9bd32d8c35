"""How many crystals a second the sampler draws, against the original at the same sizes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.clock import load, timed, torch_threads
from flows.benchmarks.generator.original import MEASURED_ON, SAMPLING, SAMPLING_FLOAT32, SIZES
from flows.benchmarks.harness import write_benchmark
from flows.provenance import cores
from loop.contracts import Progress
from loop.io.files import make_folder

if TYPE_CHECKING:
    from generator.checkpoint import Checkpoint
    from generator.model import CrystalFormer

PROTOCOL = (
    "One thread. Crystals a second are of CPU seconds (this process, all of it: network, masks, random numbers, "
    "log-probabilities), median of the repetitions; `two_cores` is twice that, since crystals are drawn independently: "
    "two processes draw two batches. Weights: of the checkpoint given, else random ones of the published architecture; "
    "space groups from the shipped p(g). The original spends the same time whatever the number of sites: 105 network "
    "calls per crystal. `full` lets no crystal stop before all slots are filled, the worst case, in a quarter of the "
    "batch. The original's rate is per wall second on two cores, at batch 100."
)


def run(
    output: Path,
    *,
    checkpoint: Path | None = None,
    batch: int = 64,
    repetitions: int = 5,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Time both published sizes and the shipped network, and write ``record.json``.

    Args:
        output: folder.
        checkpoint: an imported checkpoint, timed as `imported`.
        batch: crystals drawn at once.
        repetitions: of each.
        seed: of weights and crystals.
        progress: told of each network.

    Raises:
        CheckpointError: `checkpoint` is none.
    """
    from generator.checkpoint import load_checkpoint

    make_folder(output)
    shipped = load_checkpoint()
    before = load()
    results: dict[str, Any] = {}
    with torch_threads(1):
        networks = _networks(shipped, checkpoint, seed)
        for done, (name, model) in enumerate(networks.items()):
            if progress is not None:
                progress("sampling", done, len(networks), {})
            results[name] = _measure(model, shipped, batch, repetitions, seed) | _ratios(name)
            _compare(results[name])
    record = {
        "benchmark": "sampling",
        "protocol": PROTOCOL,
        "original": MEASURED_ON,
        "settings": {"batch": batch, "repetitions": repetitions, "seed": seed, "dtype": "float32"},
        "units": {
            "crystals_per_second": "1/s of one core",
            "two_cores": "1/s",
            "original_per_second": "1/s, two cores",
        },
        "results": results,
        "load": [before, load()],
        "cores": cores(),
    }
    return write_benchmark(output, record)


def _networks(shipped: Checkpoint, checkpoint: Path | None, seed: int) -> dict[str, CrystalFormer]:
    import torch

    from generator.checkpoint import load_checkpoint
    from generator.model import CrystalFormer, ModelConfig

    networks = {}
    for name, sizes in SIZES.items():
        torch.manual_seed(seed)
        networks[name] = CrystalFormer(ModelConfig.published(**sizes)).eval()
    published = networks["published"].config
    own: dict[str, Any] = {name: getattr(published, name) for name in ("layers", "heads", "head_size", "width")}
    torch.manual_seed(seed)
    networks["published_own_layout"] = CrystalFormer(ModelConfig(**own)).eval()
    networks["shipped"] = shipped.model
    if checkpoint is not None:
        networks["imported"] = load_checkpoint(checkpoint).model
    return networks


def _measure(model: CrystalFormer, shipped: Checkpoint, batch: int, repetitions: int, seed: int) -> dict[str, Any]:
    """Times and sizes of what is drawn."""
    from generator.sample import draw_space_groups, sample

    rng = np.random.default_rng(seed)
    groups = draw_space_groups(shipped.model, batch, rng)
    sites: list[float] = []

    def draw() -> None:
        sites.append(float(sample(model, groups, rng).batch.num_sites.mean()))

    times = timed({"sampled": draw}, repetitions)
    worst = max(1, batch // 4)
    times |= timed({"full": partial(draw_full, model, groups[:worst], rng)}, 1, warm_up=False)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "mean_sites": float(np.mean(sites)),
        "full_sites": model.config.slots - 1,
        **{name: time.summary() for name, time in times.items()},
        "crystals_per_second": batch / float(np.median(times["sampled"].cpu)),
        "crystals_per_second_full": worst / float(np.median(times["full"].cpu)),
    }


def draw_full(model: CrystalFormer, groups: np.ndarray, rng: np.random.Generator) -> int:
    """Draw crystals that fill all slots, in group 1, whose only position may be used again and again."""
    import torch

    from generator.sample import sample

    # The stop letter is the first of the letters' rows; its bias is out of reach while this runs.
    rows, bias = model.rows["letter"], model.head.bias
    before = bias.detach().clone()
    with torch.no_grad():
        bias[rows.start] = -1e4
        drawn = sample(model, np.ones_like(groups), rng)
        bias.copy_(before)
    return int(drawn.batch.num_sites.min())


def _ratios(name: str) -> dict[str, float]:
    size = {"imported": "published", "published_own_layout": "published"}.get(name, name)
    if size not in SAMPLING:
        return {}
    return {"original_per_second": SAMPLING[size], "original_per_second_float32": SAMPLING_FLOAT32[size]}


def _compare(row: dict[str, Any]) -> None:
    """Ratios to the original: one core against its two, and two against two."""
    row["two_cores"] = 2 * row["crystals_per_second"]
    if "original_per_second" in row:
        row["ratio_one_core"] = row["crystals_per_second"] / row["original_per_second"]
        row["ratio"] = row["two_cores"] / row["original_per_second"]
        row["ratio_full"] = 2 * row["crystals_per_second_full"] / row["original_per_second"]
        row["ratio_to_its_float32"] = row["two_cores"] / row["original_per_second_float32"]
