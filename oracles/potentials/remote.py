"""A potential whose packages do not fit this environment, computed by worker processes in another one.

The workers run `oracles.potentials.worker`, by this interpreter with an overlay in front of its packages, or by another
interpreter. They are started when they are needed, killed when they hang, and replaced when they die: what a dead one
was computing is computed again, crystal by crystal if need be, so that only a crystal that kills its worker is lost.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import LifoQueue
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Structure

from loop.errors import ConfigError, PotentialError
from loop.values import failed
from oracles.potentials import worker as protocol
from oracles.potentials.base import Potential, PotentialInfo, SinglePoint
from oracles.potentials.overlay import require
from oracles.symmetry import Group

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
START_SECONDS = 300.0  # a cold disk and a large package
TRIES = 3  # of a chunk whose worker died: the death may have been another process's doing
LONELY = "an atom has no neighbour within the potential's cutoff, where it knows nothing of it"
AT_ONCE = 2  # workers that start together, for a start takes seconds; others when there is work for them
SHARES = 3  # chunks of a batch for each worker: the last one to finish keeps the others waiting less


class WorkerDiedError(Exception):
    """A worker ended, or had to be ended, before it answered."""


@dataclass(frozen=True)
class Place:
    """Where workers run.

    Args:
        job: first message to each: backend, and what that one needs.
        python: interpreter.
        path: folder in front of its packages.
        workers: processes side by side.
        threads: of each.
        time_limit: seconds after which a batch counts as hung.
    """

    job: Mapping[str, Any]
    python: str = sys.executable
    path: Path | None = None
    workers: int = 1
    threads: int = 1
    time_limit: float = 900.0
    environment: Mapping[str, str] = field(default_factory=dict)  # further variables


class Worker:
    """One process. Used by one thread at a time.

    Raises:
        PotentialError: it cannot be started, or cannot load its potential.
        WorkerDiedError: it ended as it started.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the worker)
        try:
            self._process = subprocess.Popen(
                [place.python, str(Path(protocol.__file__))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, env=_environment(place),
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise PotentialError(f"The worker of a potential cannot be started by {place.python}: {error}") from error
        self._finalizer = weakref.finalize(self, _end, self._process, self._errors)
        self.about, _ = self.ask({**place.job, "threads": place.threads}, limit=START_SECONDS)
        if "error" in self.about:
            self.close()
            raise PotentialError(str(self.about["error"]))

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    def is_alive(self) -> bool:
        """Whether it still runs: an idle one may have been killed."""
        return self._process.poll() is None

    def ask(
        self, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, *, limit: float
    ) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Send a message and wait for its answer.

        Raises:
            WorkerDiedError: there is none within `limit` seconds.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        late = threading.Timer(limit, self._process.kill)
        late.daemon = True
        late.start()
        try:
            protocol.send(self._process.stdin, message, arrays)
            return protocol.receive(self._process.stdout)
        except (EOFError, OSError, ValueError) as error:
            reason = f"no answer within {limit:g} s" if late.finished.is_set() else self._last_words()
            self.close()
            raise WorkerDiedError(reason) from error
        finally:
            late.cancel()

    def close(self) -> None:
        """End it; calling it twice is fine."""
        self._finalizer()

    def _last_words(self) -> str:
        _stop(self._process)
        self._errors.seek(0)
        lines = [line for line in self._errors.read()[-4000:].decode(errors="replace").splitlines() if line.strip()]
        return (lines or [f"exit code {self._process.returncode}"])[-1][:300]


class RemotePotential(Potential):
    """A potential in worker processes.

    Args:
        about: provenance; `elements` of it may be empty where the worker knows them.
        place: where and how the workers run.

    Raises:
        PotentialError: a worker cannot be started, or cannot load the potential.
    """

    def __init__(self, about: PotentialInfo, place: Place) -> None:
        at_once = min(place.workers, AT_ONCE)
        with ThreadPoolExecutor(at_once) as pool:
            started = [pool.submit(Worker, place) for _ in range(at_once)]
        try:
            workers = [each.result() for each in started]  # what they cannot do is said before anything is spent
        except WorkerDiedError as error:
            raise PotentialError(f"The worker of {about.name} ended as it started: {error}") from error
        first = workers[0]
        elements = frozenset(first.about.get("elements", ())) or about.elements
        super().__init__(PotentialInfo(**{**vars(about), "elements": elements}))
        self.versions: dict[str, str] = first.about.get("versions", {})
        self._place = place
        self._spent = threading.local()
        self._idle: LifoQueue[Worker | None] = LifoQueue()  # None: not started, or dead; those that run come first
        for worker in (*[None] * (place.workers - at_once), *workers):
            self._idle.put(worker)

    @property
    def in_processes(self) -> bool:
        """True."""
        return True

    @property
    def lanes(self) -> int:
        """Its processes; on a GPU 0, which wants batches.

        On a processor a batch gains nothing (SevenNet: 0.22 s a crystal of 4 atoms in a batch of eight, 0.24 s alone).
        """
        return self._place.workers if self.about.device == "cpu" else 0

    def compute(
        self,
        structures: Sequence[Structure],
        groups: Sequence[Group],  # noqa: ARG002  (the worker's features are tensors)
        *,
        gradients: bool,
    ) -> list[SinglePoint]:
        """Evaluate one batch, its chunks side by side."""
        crystals = [_crystal(structure) for structure in structures]
        chunks = _chunks([len(structure) for structure in structures], self._place.workers)
        done: list[SinglePoint | None] = [None] * len(crystals)
        took: list[list[float]] = [[] for _ in chunks]

        def work(chunk: list[int], spent: list[float]) -> list[SinglePoint]:
            return self._chunk([crystals[i] for i in chunk], gradients, spent)

        with ThreadPoolExecutor(self._place.workers) as pool:
            for chunk, points in zip(chunks, pool.map(work, chunks, took), strict=True):
                for index, point in zip(chunk, points, strict=True):
                    done[index] = point
        self._spent.seconds = self._spent_here() + max(map(sum, took), default=0.0)
        return [point for point in done if point is not None]

    def processor_seconds(self) -> float:
        """Of this thread and of the workers for it, see `Potential.processor_seconds`."""
        return super().processor_seconds() + self._spent_here()

    def _spent_here(self) -> float:
        """Processor seconds of workers for this thread."""
        return float(getattr(self._spent, "seconds", 0.0))

    def calculator(self) -> Calculator:
        """An ASE calculator of the same evaluation."""
        from oracles.potentials.calculator import PotentialCalculator

        return PotentialCalculator(self)

    def close(self) -> None:
        """End the workers that are idle; they start again when they are needed."""
        for worker in [self._idle.get() for _ in range(self._place.workers)]:
            if worker is not None:
                worker.close()
            self._idle.put(None)

    def _chunk(self, crystals: list[protocol.Crystal], gradients: bool, spent: list[float]) -> list[SinglePoint]:
        """One chunk by one worker; again after its worker died; at last, as after an error, crystal by crystal."""
        kind, message = "", ""
        for _ in range(TRIES):
            try:
                return self._ask(crystals, gradients, spent)
            except WorkerDiedError as error:
                kind, message = "crashed", f"the worker process died: {error}"
            except _ComputeError as error:
                kind, message = "error", str(error)
                break
        if len(crystals) == 1:
            return [SinglePoint(status=failed(kind), message=message)]
        return [self._chunk([crystal], gradients, spent)[0] for crystal in crystals]

    def _ask(self, crystals: list[protocol.Crystal], gradients: bool, spent: list[float]) -> list[SinglePoint]:
        worker, alive = self._idle.get(), None
        try:
            if worker is None or not worker.is_alive():
                worker = Worker(self._place)
            message, arrays = worker.ask(
                {"gradients": gradients}, protocol.pack(crystals), limit=self._place.time_limit
            )
            alive = worker
        finally:
            self._idle.put(alive)
        if "error" in message:
            raise _ComputeError(message["error"])
        spent.append(message["processor_seconds"])
        return _points(crystals, arrays)


def place_in(environment: str, job: Mapping[str, Any], workers: int) -> Place:
    """Workers in the environment that a user named: an interpreter's path, else the name of an overlay.

    Raises:
        ConfigError: there is no such overlay.
    """
    if "/" in environment or Path(environment).is_file():
        return Place(job, environment, workers=workers)
    return Place(job, path=require(environment), workers=workers)


def package_folder(python: str, name: str) -> Path:
    """Where another interpreter has a package; it is not imported for that.

    Raises:
        ConfigError: it has none, or is no interpreter.
    """
    code = f"import importlib.util as u; s = u.find_spec({name!r}); print(s.submodule_search_locations[0] if s else '')"
    try:
        asked = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=START_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"expected an interpreter of Python at {python}: {error}") from error
    if not asked.stdout.strip():
        raise ConfigError(f"The interpreter {python} has no package {name}: {asked.stderr.strip()[-200:] or 'none'}")
    return Path(asked.stdout.strip())


class _ComputeError(Exception):
    """The potential raised an error."""


def _crystal(structure: Structure) -> protocol.Crystal:
    numbers = np.array([species.Z for species in structure.species], dtype=np.int64)
    return numbers, np.array(structure.cart_coords), np.array(structure.lattice.matrix)


def _chunks(sizes: Sequence[int], workers: int) -> list[list[int]]:
    """Indices in chunks of about equal numbers of atoms, some for each worker; one chunk for one worker."""
    if workers == 1:
        return [list(range(len(sizes)))]
    chunks: list[list[int]] = [[] for _ in range(min(len(sizes), SHARES * workers))]
    loads = [0] * len(chunks)
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        lightest = loads.index(min(loads))
        chunks[lightest].append(index)
        loads[lightest] += sizes[index]
    return chunks


def _points(crystals: list[protocol.Crystal], arrays: Mapping[str, np.ndarray]) -> list[SinglePoint]:
    sizes = [len(numbers) for numbers, _, _ in crystals]
    forces = np.split(arrays["forces"], np.cumsum(sizes)[:-1]) if "forces" in arrays else [None] * len(sizes)
    stress, features = arrays.get("stress"), arrays.get("features")
    lonely = arrays.get("lonely", np.zeros(len(sizes), dtype=bool))
    return [
        SinglePoint(
            energy=float(arrays["energy"][index]) / sizes[index],
            forces=forces[index],
            stress=None if stress is None else stress[index],
            features=None if features is None else features[index],
        )
        if not lonely[index]
        else SinglePoint(status=failed("isolated-atoms"), message=LONELY)
        for index in range(len(sizes))
    ]


def _environment(place: Place) -> dict[str, str]:
    """The parent's, with bounded threads and the overlay in front."""
    threads = dict.fromkeys(THREADS, str(place.threads))
    path = [str(place.path)] if place.path else []
    path += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    return {**os.environ, **threads, **place.environment, "PYTHONPATH": os.pathsep.join(path)}


def _end(process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
    """End a worker, and close all that connects to it."""
    _stop(process)
    if process.stdout:
        process.stdout.close()
    errors.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Wait until a worker has left: by itself when its input ends, unless it is computing."""
    with contextlib.suppress(OSError):
        if process.stdin:
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.5)
    if process.poll() is None:
        process.kill()
        process.wait()
