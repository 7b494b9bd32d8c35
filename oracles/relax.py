"""Relaxation of many crystals at once: cell and positions, with a stated convergence and a named outcome for each.

Optimisers and cell filter are ASE's. The crystals take their steps together, so that a potential sees batches; one that
computes in processes of its own gets each crystal by itself, so that none waits for the steps of another.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.optimize import BFGS, FIRE, LBFGS
from ase.units import GPa
from pymatgen.core import Structure

from loop.errors import ConfigError
from loop.values import NOT_CONVERGED, OK, TIMEOUT, failed
from oracles.potentials.base import ROUND_OFF, Potential, SinglePoint
from oracles.potentials.calculator import as_results, to_atoms, to_structure
from oracles.potentials.cell_filter import CellFilter
from oracles.symmetry import Group, find_group, reduced

if TYPE_CHECKING:
    from ase.optimize.optimize import Optimizer

OPTIMIZERS: dict[str, type[Optimizer]] = {"FIRE": FIRE, "LBFGS": LBFGS, "BFGS": BFGS}
# Crystals of diatomic molecules are so soft that 0.5 GPa leaves up to 0.03 eV/atom open (solid H2 by CHGNet): they end
# where they started. Tightly converged, all packings of H2 end within 0.004 eV/atom of each other.
MOLECULES = frozenset(("H", "N", "O", "F", "Cl", "Br", "I"))
MOLECULAR_FMAX, MOLECULAR_SMAX = 0.02, 0.02  # eV/A, GPa
PATIENCE = 10.0  # times the limit of processor time that may pass on the clock of a busy machine
COLLAPSED = {failed("overlap"), failed("volume")}  # what a guard says of a crystal that fell into itself


@dataclass(frozen=True)
class RelaxConfig:
    """How crystals are relaxed."""

    fmax: float = 0.05
    """Largest force on an atom at convergence, eV/A."""
    smax: float = 0.5
    """Largest stress at convergence, GPa; 0.5 costs some 1e-4 eV/atom. Pure H, N, O, F, Cl, Br, I: at most 0.02."""
    max_steps: int = 200
    """Largest number of steps."""
    time_limit: float = 300.0
    """Processor seconds per crystal, of one thread; ten times as many on the clock. A busy machine changes no label."""
    optimizer: str = "BFGS"
    """FIRE, LBFGS or BFGS."""
    retry: str | None = "FIRE"
    """Optimiser of a second try from the start, where the first ends in no crystal; none: no second try."""
    relax_cell: bool = True
    """Relax the cell, too."""
    keep_symmetry: bool = True
    """Stay within the space group that the crystal has to 1e-4 A; several times as fast with CHGNet."""
    batch_size: int = 16
    """Crystals that take their steps together; a potential in processes of its own takes each by itself."""
    max_expansion: float = 3.0
    """A crystal has exploded when its volume is this many times its start."""
    max_contraction: float = 3.0
    """A crystal has collapsed when its start is this many times its volume."""
    standardise: bool = True
    """Compute in the primitive cell, which is quicker; the relaxed crystal has the cell and axes as given anyway."""

    def __post_init__(self) -> None:
        """Check values."""
        for name in (self.optimizer, self.retry or self.optimizer):
            if name not in OPTIMIZERS:
                raise ConfigError(f"Unknown optimizer {name!r}, expected one of {', '.join(OPTIMIZERS)}.")
        for name in ("fmax", "smax", "time_limit", "batch_size"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} of a relaxation must be positive, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Relaxed:
    """Outcome of one relaxation.

    `status` is ``ok``, ``not-converged``, ``timeout``, ``failed:exploded``, ``failed:volume-collapse``, or what the
    potential said of the crystal as it came, e.g. ``failed:unsupported-element``. With ``not-converged`` and
    ``timeout`` the last structure is given with its energy; a failure has none.
    """

    status: str
    structure: Structure | None = None  # in the cell that came: its axes, its number of atoms, their order
    energy: float = float("nan")  # eV/atom
    steps: int = 0
    max_force: float = float("nan")  # eV/A
    max_stress: float = float("nan")  # GPa
    seconds: float = 0.0
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether it converged."""
        return self.status == OK


def relax(
    structures: Sequence[Structure],
    potential: Potential,
    config: RelaxConfig = RelaxConfig(),
    progress: Callable[[int, int], None] | None = None,
    finished: Callable[[int, Relaxed], None] | None = None,
) -> list[Relaxed]:
    """Relax crystals.

    Args:
        structures: any; they are not changed. What cannot be computed gets a status.
        potential: gives energies, forces and stress.
        config: convergence and limits.
        progress: called with the number of crystals done and their total.
        finished: called with the index and outcome of each crystal, as soon as it is done.

    Returns:
        One outcome a crystal, in order.
    """
    results: dict[int, Relaxed] = {}
    with closing((_side_by_side if potential.lanes else _together)(structures, potential, config)) as outcomes:
        for index, outcome in outcomes:
            results[index] = outcome
            if finished is not None:
                finished(index, outcome)
            if progress is not None:
                progress(len(results), len(structures))
    return [results[index] for index in range(len(structures))]


def _together(
    structures: Sequence[Structure], potential: Potential, config: RelaxConfig
) -> Generator[tuple[int, Relaxed]]:
    """Relax in batches: all crystals under way take a step, those that are done make room for the next."""
    waiting = sorted(range(len(structures)), key=lambda index: -len(structures[index]))
    running: dict[int, _Run] = {}
    while waiting or running:
        while waiting and len(running) < config.batch_size:
            index = waiting.pop()  # the smallest first, neighbours in size together
            running[index] = _Run(structures[index], config, potential)
        _step(list(running.values()), potential)
        for index, run in list(running.items()):
            if run.result is not None:
                del running[index]
                yield index, run.result


def _side_by_side(
    structures: Sequence[Structure], potential: Potential, config: RelaxConfig
) -> Generator[tuple[int, Relaxed]]:
    """Relax each crystal by itself, as many side by side as the potential has processes.

    What comes of a crystal then does not depend on the others, not even by round-off.
    """
    largest_first = sorted(range(len(structures)), key=lambda index: -len(structures[index]))  # short ones fill the end
    stop = threading.Event()

    def relaxed(structure: Structure) -> Relaxed | None:
        run = _Run(structure, config, potential)
        while run.result is None and not stop.is_set():
            _step([run], potential)
        return run.result

    pool = ThreadPoolExecutor(potential.lanes)
    try:
        jobs = {pool.submit(relaxed, structures[index]): index for index in largest_first}
        for job in as_completed(jobs):
            outcome = job.result()
            assert outcome is not None  # only after `stop` is there none
            yield jobs[job], outcome
    finally:
        stop.set()  # whoever asked has gone: nothing is relaxed to its end in vain
        pool.shutdown(cancel_futures=True)


def _step(runs: Sequence[_Run], potential: Potential) -> None:
    """Evaluate crystals once, together, and let each take a step."""
    began, worked = time.perf_counter(), potential.processor_seconds()
    groups = [run.group for run in runs]
    points = potential.single_points([run.structure for run in runs], batch_size=len(runs), groups=groups)
    size = sum(len(run.structure) for run in runs) or 1
    seconds, work = time.perf_counter() - began, potential.processor_seconds() - worked
    for run, point in zip(runs, points, strict=True):
        began, worked = time.perf_counter(), time.thread_time()
        run.advance(point, seconds * len(run.structure) / size, work * len(run.structure) / size)
        run.seconds += time.perf_counter() - began
        run.work += time.thread_time() - worked


def of_crystal(config: RelaxConfig, structure: Structure) -> RelaxConfig:
    """The settings for one crystal: tighter where it is one of molecules alone, be it a candidate or a reference."""
    symbols = {element.symbol for element in structure.composition}
    if len(symbols) > 1 or not symbols <= MOLECULES:
        return config
    return replace(config, fmax=min(config.fmax, MOLECULAR_FMAX), smax=min(config.smax, MOLECULAR_SMAX))


class _Run:
    """One crystal on its way down."""

    def __init__(self, structure: Structure, config: RelaxConfig, potential: Potential) -> None:
        sound = potential.check(structure).ok
        self._way = reduced(structure, ROUND_OFF) if sound and config.standardise else None
        self.structure = structure if self._way is None else self._way.primitive
        keep = sound and config.keep_symmetry
        self.group = find_group(self.structure, ROUND_OFF) if keep else Group.trivial(len(self.structure))
        self.config = config = of_crystal(config, structure) if sound else config
        self.seconds, self.work, self.steps = 0.0, 0.0, 0
        self.result: Relaxed | None = None
        self._start, self._volume = self.structure, self.structure.volume
        self._kind, self._most, self._first_try = config.optimizer, config.max_steps, ""
        self._optimizer: Optimizer | None = None

    @property
    def _late(self) -> bool:
        """Whether its time is over. The clock alone decides where next to nothing is computed: a worker that waits."""
        return self.work > self.config.time_limit or self.seconds > PATIENCE * self.config.time_limit

    def advance(self, point: SinglePoint, seconds: float, work: float) -> None:
        """Take note of an evaluation with its time by the clock and of a processor; move on where it is not the end."""
        self.seconds += seconds
        self.work += work
        if not point.ok or point.forces is None or point.stress is None:
            self._fail(point)
            return
        force = float(np.linalg.norm(point.forces, axis=1).max())
        stress = float(np.abs(point.stress).max() / GPa)
        calm = force <= self.config.fmax and (stress <= self.config.smax or not self.config.relax_cell)
        status = OK if calm else NOT_CONVERGED
        if not calm and self._late:
            status = TIMEOUT
        if calm or status == TIMEOUT or self.steps >= self._most:
            structure = self.structure if self._way is None else self._way.restored(self.structure)
            reached = (status, structure, point.energy, self.steps, force, stress, self.seconds)
            self.result = Relaxed(*reached, message=self._first_try)
        else:
            self._move(point)

    def _move(self, point: SinglePoint) -> None:
        if self._optimizer is None:
            self._atoms = to_atoms(self.structure)
            system: Any = CellFilter(self._atoms) if self.config.relax_cell else self._atoms
        self._atoms.calc = SinglePointCalculator(self._atoms, **as_results(point, len(self._atoms)))
        if self._optimizer is None:
            self._optimizer = OPTIMIZERS[self._kind](system, logfile=None)
        try:
            with np.errstate(all="ignore"):
                self._optimizer.step()
        except (ValueError, ArithmeticError, np.linalg.LinAlgError) as error:  # a step that left the numbers
            self._end("exploded", f"{type(error).__name__}: {error}")
            return
        self.steps += 1
        volume = self._atoms.get_volume()
        if not np.isfinite(self._atoms.positions).all() or not volume < self._volume * self.config.max_expansion:
            self._end("exploded", f"{volume / self._volume:.3g} times the volume of the start after {self.steps} steps")
        elif volume * self.config.max_contraction < self._volume:
            self._end(
                "volume-collapse", f"{volume / self._volume:.3g} times the volume of the start after {self.steps} steps"
            )
        else:
            self.structure = to_structure(self._atoms)

    def _fail(self, point: SinglePoint) -> None:
        """End with what the potential said; a crystal that was sound when it came has collapsed or flown apart."""
        if self.steps == 0:
            self.result = Relaxed(point.status, seconds=self.seconds, message=point.message)
        else:
            kind = "volume-collapse" if point.status in COLLAPSED else "exploded"
            self._end(kind, f"after {self.steps} steps {point.status}: {point.message}")

    def _end(self, kind: str, message: str) -> None:
        """End as no crystal, or start over with the other optimiser: steps and seconds are counted on."""
        if self.config.retry in (None, self._kind) or self._late:
            text = "; ".join(filter(None, (self._first_try, message)))
            self.result = Relaxed(failed(kind), steps=self.steps, seconds=self.seconds, message=text)
            return
        self._first_try = f"{self._kind} ended with {kind}, {message}"
        self._kind, self._most = str(self.config.retry), self.steps + self.config.max_steps
        self.structure, self._optimizer = self._start, None
