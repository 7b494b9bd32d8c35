"""How many CIFs a second become tokens, with rows among them that are no crystals."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from flows.benchmarks.clock import cpu_seconds, load
from flows.benchmarks.generator.original import MEASURED_ON, PREPARATION
from flows.benchmarks.harness import write_benchmark
from flows.provenance import cores
from loop.contracts import Progress
from loop.errors import InputError
from loop.io.files import make_folder, sha256, write_text

# Rows that the original's pipeline would abort on, and what ours calls them.
BROKEN: dict[str, str] = {
    "unreadable": "this is no CIF",
    "disordered": """data_x
_symmetry_space_group_name_H-M 'P 1'
_cell_length_a 4\n_cell_length_b 4\n_cell_length_c 4
_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90
loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
 Na Na1 0 0 0 0.5
 Cl Cl1 0.5 0.5 0.5 1
""",
}
PROTOCOL = (
    "CIF texts to tokens by `generator.data.prepare` with 2 worker processes, started before the clock; canonical "
    "descriptions. Among the crystals are rows that are no CIF and rows with partial occupancies: each must be counted "
    "and listed, and nothing may stop. `crystals_per_second` is per wall second; `by_cpu` is what 2 free cores give: "
    "2 divided by the CPU seconds per crystal (this process and its workers)."
)


def run(
    output: Path,
    data: Path | None = None,
    *,
    n: int = 1000,
    broken: int = 20,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Prepare n CIFs with broken ones among them, and write ``record.json`` and ``failures.csv``.

    Args:
        output: folder.
        data: CSV with a cif column; by default samples of the shipped checkpoint as CIFs.
        n: CIFs in all.
        broken: of them no crystals.
        seed: which rows are taken, and where the broken ones stand.
        progress: told of stages.

    Raises:
        InputError: there are fewer crystals than asked for.
    """
    import pandas as pd

    from generator.data import prepare

    make_folder(output)
    texts = _texts(data, n - broken, seed)
    source = output / "cifs.csv.gz"
    expected = _write(source, texts, broken, seed)
    warm = output / "warm.csv"
    _write(warm, texts[:210], 0, seed)
    before = load()
    prepare(warm, workers=2)  # starts the workers, which live on
    cpu = _with_workers()
    wall = time.perf_counter()
    prepared = prepare(source, workers=2, progress=progress)
    wall, cpu = time.perf_counter() - wall, _with_workers() - cpu
    found = prepared.failures_by_kind()
    failures = pd.DataFrame([asdict(failure) for failure in prepared.failures])
    write_text(output / "failures.csv", failures.to_csv(index=False, lineterminator="\n"))
    for path in (warm, source):
        path.unlink()
    results = {
        "rows": n,
        "crystals": len(prepared.batch),
        "failures": found,
        "broken_rows_planted": expected,
        "all_planted_found": all(found.get(kind, 0) >= count for kind, count in expected.items()),
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "crystals_per_second": n / wall,
        "crystals_per_second_by_cpu": 2 * n / cpu,
        "original_per_second": PREPARATION,
        "ratio": n / wall / PREPARATION,
        "ratio_by_cpu": 2 * n / cpu / PREPARATION,
    }
    record = {
        "benchmark": "preparation",
        "protocol": PROTOCOL,
        "original": MEASURED_ON,
        "settings": {"n": n, "broken": broken, "seed": seed, "workers": 2},
        "source": "samples of the shipped checkpoint" if data is None else {"file": data.name, "sha256": sha256(data)},
        "results": results,
        "load": [before, load()],
        "cores": cores(),
    }
    return write_benchmark(output, record)


def _with_workers() -> float:
    """CPU seconds of this process, its finished children, and its living ones."""
    import psutil

    total = cpu_seconds()
    for child in psutil.Process().children(recursive=True):
        try:
            times = child.cpu_times()
        except psutil.Error:  # it ended meanwhile, and counts among the finished
            continue
        total += times.user + times.system
    return total


def _texts(data: Path | None, n: int, seed: int) -> list[str]:
    """CIFs of n crystals."""
    if data is None:
        from generator.checkpoint import load_checkpoint
        from generator.constraints.guard import Guard
        from generator.draw import draw
        from generator.representation.tokens import detokenize_all
        from loop.io.cif_writer import to_cif

        drawn = draw(load_checkpoint().model, n, np.random.default_rng(seed), guard=Guard())
        return [to_cif(structure) for structure in detokenize_all(drawn.sample.batch) if structure is not None]
    from loop.io.crystals import CIF_COLUMN, read_frame

    frame, _ = read_frame(data)
    if len(frame) < n:
        raise InputError(f"expected at least {n} crystals in {data}, found {len(frame)}")
    return frame[CIF_COLUMN].iloc[np.sort(np.random.default_rng(seed).permutation(len(frame))[:n])].tolist()


def _write(path: Path, texts: list[str], broken: int, seed: int) -> dict[str, int]:
    """A CSV of CIFs with broken rows at random places; how many of each kind were planted."""
    import pandas as pd

    kinds = [list(BROKEN)[k % len(BROKEN)] for k in range(broken)]
    rows = [*texts, *(BROKEN[kind] for kind in kinds)]
    order = np.random.default_rng(seed).permutation(len(rows))
    pd.DataFrame({"id": np.arange(len(rows)), "cif": [rows[i] for i in order]}).to_csv(path, index=False)
    return {kind: kinds.count(kind) for kind in BROKEN}
