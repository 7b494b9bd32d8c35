"""discovery-loop benchmark relaxation: crystals relaxed together against ASE one by one, same weights, same end.

The baseline is what a user would write: the chgnet package's own calculator, ASE's optimiser and Frechet cell filter,
crystal after crystal. It starts from the same primitive cells. All variants take each chunk of crystals in turn, in one
process, so that whatever else the machine does hits all of them. A killed run resumes: finished chunks are kept.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.oracles.relaxation_summary import BASELINE, summarise
from loop.contracts import Progress
from loop.errors import InputError
from loop.io.files import make_folder, write_text
from loop.values import NOT_CONVERGED, OK, failed

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    from oracles.potentials.base import Potential
    from oracles.relax import RelaxConfig

ROWS = "rows.jsonl"
OURS, FREE = "batched", "batched-without-symmetry"
TOO_LARGE = 3.0  # times the volume of the start, as in RelaxConfig
PROTOCOL = (
    "Crystals drawn by the shipped checkpoint (temperature 1, no guard), the first that CHGNet can compute at all and "
    "that have at most `max_atoms` atoms in the primitive cell, where that is given. "
    "`batched`: relax() with its defaults but for the limit of steps. `batched-without-symmetry`: the same, symmetry "
    "not made use of. `batched-*`: without symmetry and second try, by the optimiser of the baseline `ase-*`, so that "
    "both ought to go the same way. `ase-*`: the chgnet package's CHGNetCalculator, ASE's optimiser and "
    "FrechetCellFilter, one by one, from the same primitive cells. "
    "Converged: largest force and largest stress component both below the stated "
    "bounds, for all. One process, one thread each. What counts is processor time of the process on `cpu`, and wall "
    "time on `cuda`; both are given. Not counted: "
    "drawing crystals, loading models, primitive cells of the baseline."
)


@dataclass(frozen=True)
class RelaxationBenchmark:
    """What is compared."""

    n: int = 200  # crystals
    chunk: int = 16  # crystals that each variant takes in turn; also what relax() sees at once
    seed: int = 0  # of the drawing
    max_atoms: int | None = None  # of the primitive cell; None: whatever comes
    device: str = "cpu"  # of all variants; cpu or cuda
    max_steps: int = 500  # of every variant
    optimizers: tuple[str, ...] = ("LBFGS",)  # of ASE; of those that relax() offers, LBFGS is ASE's fastest here
    minutes: float = float("inf")  # no further chunk is begun after this; the next call continues


def run(output: Path, config: RelaxationBenchmark = RelaxationBenchmark(), progress: Progress | None = None) -> dict:
    """Relax with every variant and write ``record.json``, ``crystals.csv`` and ``speed.png``.

    Raises:
        InputError: the folder holds rows of another protocol.
    """
    from oracles.potentials.loading import load_potential
    from oracles.relax import RelaxConfig

    began = time.monotonic()
    make_folder(output)
    settings = RelaxConfig(max_steps=config.max_steps, batch_size=config.chunk)
    rows = _finished(output, config, settings)
    potential = load_potential("chgnet", device=config.device)
    crystals = _crystals(config, potential)
    measure = _variants(potential, settings, config.optimizers)
    done = {(row["crystal"], row["variant"]) for row in rows}
    for start, size, name in _units(len(crystals), config.chunk, list(measure)):
        if (start, name) in done:
            continue
        if time.monotonic() - began > 60 * config.minutes:
            break
        rows += _append(output / ROWS, _measured(crystals[start:][:size], start, name, measure[name]))
        if progress is not None:
            progress("crystals", start + size, len(crystals), {})
    return summarise(output, rows, {"settings": asdict(config), "relax": asdict(settings), "protocol": PROTOCOL})


def _units(crystals: int, chunk: int, variants: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """First crystal, number of crystals and variant of each piece of work: chunks together, the baselines singly."""
    for start in range(0, crystals, chunk):
        size = min(chunk, crystals - start)
        for name in variants:
            alone = name.startswith(BASELINE)
            yield from ((first, 1, name) for first in range(start, start + size)) if alone else [(start, size, name)]


def _append(path: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _finished(output: Path, config: RelaxationBenchmark, settings: RelaxConfig) -> list[dict[str, Any]]:
    """Rows of the pieces of work that are done; the file is cut back to them."""
    kept = ("chunk", "seed", "n", "max_atoms", "device")
    what = {"config": {name: getattr(config, name) for name in kept}, "relax": asdict(settings)}
    stamp, path = json.dumps(what, sort_keys=True), output / "protocol.json"
    if path.exists() and path.read_text(encoding="utf-8") != stamp:
        raise InputError(f"{output} holds a comparison with other settings: delete it, or choose another folder.")
    write_text(path, stamp)
    rows: list[dict[str, Any]] = []
    if (output / ROWS).exists():
        for line in (output / ROWS).read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # torn by a kill
                break
    sizes = Counter((row["crystal"] // config.chunk, row["variant"]) for row in rows)
    last = (config.n - 1) // config.chunk
    full = {
        key
        for key, size in sizes.items()
        if size == (config.chunk if key[0] < last else config.n - last * config.chunk)
    }
    rows = [
        r for r in rows if r["variant"].startswith(BASELINE) or (r["crystal"] // config.chunk, r["variant"]) in full
    ]
    write_text(output / ROWS, "".join(json.dumps(row) + "\n" for row in rows))
    return rows


def _crystals(config: RelaxationBenchmark, potential: Potential) -> list[Structure]:
    """The first crystals of a draw that the potential can compute, and that are small enough.

    Raises:
        InputError: too few of those drawn are.
    """
    from flows.tables.generation import generate
    from generator.checkpoint import load_checkpoint
    from generator.constraints.conditions import Sampling
    from oracles.potentials.base import ROUND_OFF
    from oracles.symmetry import primitive

    drawn = generate(load_checkpoint(), 2 * config.n + 64, config.seed, Sampling())
    sound = [c.structure for c in drawn.candidates if potential.check(c.structure).ok]
    if config.max_atoms is not None:
        sound = [crystal for crystal in sound if len(primitive(crystal, ROUND_OFF)) <= config.max_atoms]
    if len(sound) < config.n:
        raise InputError(
            f"Of {len(drawn.candidates)} crystals drawn only {len(sound)} can be computed and have at most "
            f"{config.max_atoms} atoms, expected {config.n}: allow more atoms, or compare fewer crystals."
        )
    return sound[: config.n]


Variant = Callable[[Sequence["Structure"]], list[dict[str, Any]]]


def _variants(potential: Potential, settings: RelaxConfig, optimizers: Sequence[str]) -> dict[str, Variant]:
    calculator = _chgnet_calculator(potential.about.device)
    variants: dict[str, Variant] = {
        OURS: lambda crystals: _together(crystals, potential, settings),
        FREE: lambda crystals: _together(crystals, potential, replace(settings, keep_symmetry=False)),
    }
    for optimizer in optimizers:
        variants[f"{BASELINE}{optimizer}"] = partial(_one_by_one, calculator, replace(settings, optimizer=optimizer))
    for optimizer in optimizers:
        alike = replace(settings, optimizer=optimizer, keep_symmetry=False, retry=None)
        variants[f"{OURS}-{optimizer}"] = partial(_together, potential=potential, settings=alike)
    return variants


def _measured(crystals: Sequence[Structure], start: int, name: str, variant: Variant) -> list[dict[str, Any]]:
    """One row per crystal, each with its share of the chunk's seconds."""
    cpu, wall = time.process_time(), time.perf_counter()
    found = variant(crystals)  # energies are numbers of Python by then: a GPU has nothing left to do
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    shares = {"variant": name, "cpu_seconds": cpu / len(found), "wall_seconds": wall / len(found)}
    return [{"crystal": start + index, **row, **shares} for index, row in enumerate(found)]


def _together(crystals: Sequence[Structure], potential: Potential, settings: RelaxConfig) -> list[dict[str, Any]]:
    from oracles.relax import relax

    outcomes = relax(crystals, potential, settings)
    return [_row(o.status, o.energy, o.steps, o.structure) for o in outcomes]


def _row(status: str, energy: float, steps: int, structure: Structure | None) -> dict[str, Any]:
    kept = None if structure is None else structure.as_dict()
    return {"status": status, "energy": energy, "steps": steps, "structure": kept}


def _chgnet_calculator(device: str) -> Calculator:
    """The package's own calculator, silent."""
    import contextlib
    import io

    from chgnet.model.dynamics import CHGNetCalculator

    with contextlib.redirect_stdout(io.StringIO()):
        return CHGNetCalculator(use_device=device, on_isolated_atoms="error")


def _one_by_one(calculator: Calculator, settings: RelaxConfig, crystals: Sequence[Structure]) -> list[dict[str, Any]]:
    from oracles.potentials.base import ROUND_OFF
    from oracles.symmetry import primitive

    cells = [primitive(crystal, ROUND_OFF) for crystal in crystals]
    return [_ase(cell, calculator, settings) for cell in cells]


def _ase(cell: Structure, calculator: Calculator, settings: RelaxConfig) -> dict[str, Any]:
    """One crystal down to the common convergence, as one would write it with ASE."""
    from ase.filters import FrechetCellFilter
    from ase.units import GPa

    from oracles.potentials.calculator import to_atoms, to_structure
    from oracles.relax import OPTIMIZERS

    atoms = to_atoms(cell)
    atoms.calc = calculator
    volume = atoms.get_volume()
    with _quiet():
        system: Any = FrechetCellFilter(atoms)
        optimizer = OPTIMIZERS[settings.optimizer](system, logfile=None)
        try:
            for steps in range(settings.max_steps + 1):
                force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
                stress = float(np.abs(atoms.get_stress()).max() / GPa)
                calm = force <= settings.fmax and stress <= settings.smax
                if calm or steps == settings.max_steps:
                    energy = float(atoms.get_potential_energy()) / len(atoms)
                    return _row(OK if calm else NOT_CONVERGED, energy, steps, to_structure(atoms))
                optimizer.step()
                if not 1 / TOO_LARGE < atoms.get_volume() / volume < TOO_LARGE:
                    return _row(failed("volume"), float("nan"), steps, None)
        except Exception as error:  # isolated atoms, or steps that left the numbers
            return _row(failed(type(error).__name__), float("nan"), 0, None)
    raise AssertionError("unreachable")


@contextmanager
def _quiet() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
