"""Running the DFT engine: is it there, and a calculation in bounds of time, memory and cores."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import psutil

from loop.errors import ConfigError, EngineError

WORKER = Path(__file__).with_name("worker.py")
INSTALL = (
    "apt-get install g++ libxc-dev libopenblas-dev libopenmpi-dev openmpi-bin && pip install 'discovery-loop[dft]'"
)
POLL = 0.2  # s between looks at a calculation
PATIENCE = 10.0  # times the limit of processor time that may pass on the clock of a busy machine
PROBE_SECONDS = 120.0
MOST_CORES = 8  # by default: small cells have few k-points to share out
_PROBE = """
import json, re
from pathlib import Path
import gpaw
from gpaw import setup_paths
from gpaw.cgpaw import have_mpi
names = [file.name for path in setup_paths for file in Path(path).glob("*.PBE*")]
found = {match.group(1) for name in names if (match := re.match(r"([A-Z][a-z]?)\\.PBE", name))}
try:
    from importlib.metadata import version
    data = version("gpaw-data")
except Exception:
    data = "unknown"
print(json.dumps({"version": gpaw.__version__, "data": data, "mpi": bool(have_mpi), "elements": sorted(found)}))
"""

Ending = Literal["done", "timeout", "memory", "crashed"]


@dataclass(frozen=True)
class Resources:
    """What a calculation may take.

    Raises:
        ConfigError: a value is out of its range.
    """

    cores: int = 0
    """MPI processes; 0: one per core of this process, at most 8."""
    memory_gib: float = 8.0
    """Memory of all processes of a calculation together, GiB."""
    python: str | None = None
    """Interpreter that has GPAW; none: the one that runs this."""
    mpiexec: str = "mpiexec"
    """Command that starts MPI processes."""
    scratch: str | None = None
    """Folder for work files; none: the machine's temporary folder."""
    keep: bool = False
    """Keep the density of a calculation without the dielectric constant, for one that asks for it later."""

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.cores < 0 or not self.memory_gib > 0:
            raise ConfigError(f"DFT: expected cores >= 0 and memory_gib > 0, got {self.cores} and {self.memory_gib}.")

    @property
    def processes(self) -> int:
        """MPI processes of one calculation."""
        free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return self.cores or min(free, MOST_CORES)

    @property
    def interpreter(self) -> str:
        """Interpreter that has GPAW."""
        return self.python or sys.executable


@dataclass(frozen=True)
class Engine:
    """A GPAW that runs."""

    version: str
    data: str  # version of the PAW data sets
    mpi: bool
    elements: frozenset[str]  # with a PBE data set


@lru_cache(maxsize=8)
def find_engine(interpreter: str) -> Engine:
    """Ask an interpreter for its GPAW.

    Raises:
        EngineError: there is none, or it does not start.
    """
    try:
        asked = subprocess.run(
            [interpreter, "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, env=_environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"The DFT engine cannot be started by {interpreter}: {error}") from error
    if asked.returncode != 0:
        reason = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        raise EngineError(
            f"There is no working DFT engine: `import gpaw` in {interpreter} says {reason!r}. Install it by\n"
            f"  {INSTALL}\nor name an interpreter that has it (dft: resources: python). All but DFT works without."
        )
    found = json.loads(asked.stdout.splitlines()[-1])
    if not found["elements"]:
        raise EngineError(f"GPAW {found['version']} has no PBE data sets: pip install gpaw-data")
    return Engine(found["version"], found["data"], found["mpi"], frozenset(found["elements"]))


@dataclass(frozen=True)
class Outcome:
    """How a calculation ended."""

    ending: Ending
    seconds: float  # on the clock
    message: str = ""
    work: float = 0.0  # s of a processor, for each of its processes


def run_worker(folder: Path, resources: Resources, engine: Engine, seconds: float) -> Outcome:
    """Run the job in a folder until it ends, or its time or memory is used up.

    Time is what its processes computed, each of them, so that a busy machine ends nothing; ten times as much on the
    clock ends what computes nothing, such as one that waits for ever.

    Whatever way this is left, no process of the calculation is: should this process be killed, the pipe to the worker
    closes, and the worker ends by itself.
    """
    began = time.monotonic()
    with (folder / "stderr.txt").open("wb") as errors, (folder / "stdout.txt").open("wb") as output:
        process = subprocess.Popen(
            command(folder, resources, engine), stdin=subprocess.PIPE, stdout=output, stderr=errors, cwd=folder,
            env=_environment(), start_new_session=True,
        )  # fmt: skip
        try:
            ending, work = _watch(process, resources, seconds)
        finally:
            _end(process)
    taken = time.monotonic() - began
    messages = {
        "timeout": f"not done after {work:.0f} s of computing, {taken:.0f} s on the clock",
        "memory": f"more than {resources.memory_gib:g} GiB of memory",
        "crashed": _last_line(folder / "stderr.txt"),
    }
    return Outcome(ending, taken, messages.get(ending, ""), work)


def command(folder: Path, resources: Resources, engine: Engine) -> list[str]:
    """Command line of a calculation.

    Raises:
        EngineError: several processes are asked for without MPI.
    """
    alone = [resources.interpreter, str(WORKER), str(folder)]
    if resources.processes == 1:
        return alone
    launcher = shutil.which(resources.mpiexec)
    if engine.mpi and launcher:
        parallel = [resources.interpreter, "-m", "gpaw", "python", str(WORKER), str(folder)]
        return [launcher, "-n", str(resources.processes), *parallel]
    if resources.cores:  # asked for, not merely possible
        missing = f"the command {resources.mpiexec}" if engine.mpi else "a GPAW built with MPI"
        raise EngineError(f"DFT on {resources.cores} cores needs {missing}: install it, or set cores: 1.")
    return alone


def _watch(process: subprocess.Popen[bytes], resources: Resources, seconds: float) -> tuple[Ending, float]:
    """How a calculation ends, and the processor time of each of its processes, s."""
    deadline, spent = time.monotonic() + PATIENCE * seconds, dict[int, float]()
    while process.poll() is None:
        memory = 0
        for pid, resident, computed in _processes(process.pid):
            memory += resident
            spent[pid] = computed  # of those that ended meanwhile the last that was seen
        work = sum(spent.values()) / resources.processes
        if work > seconds or time.monotonic() > deadline:
            return "timeout", work
        if memory > resources.memory_gib * 2**30:
            return "memory", work
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(POLL)
    return "done" if process.returncode == 0 else "crashed", sum(spent.values()) / resources.processes


def _processes(pid: int) -> list[tuple[int, int, float]]:
    """Of a process and its descendants: pid, resident bytes (pages that they share count once each), processor s."""
    found = []
    with contextlib.suppress(psutil.Error):
        for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                found.append((process.pid, process.memory_info().rss, times.user + times.system))
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a calculation with all its processes: politely, for a launcher must clean up, then not."""
    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        descendants = psutil.Process(process.pid).children(recursive=True)
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3.0)
    for left in descendants:  # MPI puts its processes into groups of their own
        with contextlib.suppress(psutil.Error):
            left.kill()
    if process.stdin:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _environment() -> dict[str, str]:
    """One thread per process, and what Open MPI needs to run anywhere."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    # more processes than cores, not tied to cores: the machine may be shared, and MPI's own count wrong in a container
    mpi = {"OMPI_MCA_rmaps_base_oversubscribe": "1", "OMPI_MCA_hwloc_base_binding_policy": "none"}
    mpi["OMPI_MCA_mpi_yield_when_idle"] = "1"  # spinning processes would starve the others of a busy machine
    if os.geteuid() == 0:  # in containers
        mpi |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return {**os.environ, **threads, **mpi, "MPLBACKEND": "agg"}


def _last_line(path: Path) -> str:
    lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "the engine ended without a word"
