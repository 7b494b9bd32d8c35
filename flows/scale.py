"""Where labels are computed when one process is not enough: a Dask cluster, by the key `scale` of the configuration.

Dask itself and not Prefect's task runner for it: compute nodes then need no way to the Prefect server, which listens on
the loopback address only, and campaigns without Prefect scale by the same key. What does not change: the ledger, the
claims and the results.
"""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from flows.threads import THREADS
from loop.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

LOOPBACK = "127.0.0.1"
LOCAL, SLURM = "local", "slurm"
CONNECT_SECONDS = 30.0  # for a scheduler that runs already
LOOK_SECONDS = 5.0  # between two looks at the workers of this machine
KEYS = ("_job_key", "_job_cert", "_job_ca_file")  # files that dask-jobqueue's cluster holds open
CERTIFICATES = ".dask"  # in the results: keys of one run's connections, which the jobs of a cluster have to read
# a worker holds the label that it computes and no other, so that its end costs that label alone; no web pages, and no
# profile of 100 samples a second that only they would show
SETTINGS = {
    "distributed.scheduler.worker-saturation": 1.0,
    "distributed.scheduler.http.routes": [],
    "distributed.worker.http.routes": [],
    "distributed.worker.profile.enabled": False,
    "distributed.nanny.http.routes": [],
    "distributed.deploy.lost-worker-timeout": "60s",  # Dask's 15 s end workers that a busy machine starts slowly
    "distributed.admin.large-graph-warning-threshold": "1GB",
}


class Scale(BaseModel):
    """A Dask cluster whose workers label."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dask: str = Field(
        LOCAL, description="local: this machine; slurm: jobs; or the address of a scheduler that runs, tcp://HOST:8786"
    )
    workers: int = Field(2, ge=1, description="workers, each with one label at a time; of slurm: jobs")
    cores: int = Field(1, ge=1, description="of one worker: threads of a potential, processes of a DFT calculation")
    gpus: int = Field(0, ge=0, description="of one worker")
    memory: str = Field("4GB", description="of one job")
    queue: str | None = Field(None, description="Slurm's partition")
    account: str | None = Field(None, description="Slurm's account")
    walltime: str = Field("24:00:00", description="of one job; jobs that end are replaced")
    interface: str | None = Field(None, description="network over which jobs and campaign talk, as ib0; none: the main")
    directives: list[str] = Field(default_factory=list, description="further #SBATCH lines, as --constraint=a100")
    setup: list[str] = Field(default_factory=list, description="shell lines of a job before its worker starts")

    @property
    def address(self) -> str | None:
        """Of a scheduler that somebody else started."""
        return None if self.dask in (LOCAL, SLURM) else self.dask

    @property
    def here(self) -> bool:
        """Whether all workers certainly run on this machine."""
        return self.dask == LOCAL


def problems(scale: Scale | None) -> Iterator[str]:
    """What is wrong with the section, and what it needs that is not installed."""
    if scale is None:
        return
    if scale.address is not None and "://" not in scale.address:
        yield f"scale.dask: expected local, slurm or an address such as tcp://HOST:8786, got {scale.dask!r}"
    missing = [name for name in ("distributed", *(["dask_jobqueue"] if scale.dask == SLURM else [])) if absent(name)]
    if missing:
        yield f"scale: {' and '.join(missing)} is not installed: pip install 'discovery-loop[dask]'"


def absent(module: str) -> bool:
    """Whether a module is not installed; does not import it."""
    from importlib.util import find_spec

    return find_spec(module) is None


@contextmanager
def connected(scale: Scale, directory: Path) -> Iterator[Client]:
    """A client of the cluster, which is started where it does not run yet and ended on leaving.

    Args:
        scale: what is asked for.
        directory: the campaign's; jobs leave their logs there.

    Raises:
        ConfigError: Dask is missing, the scheduler does not answer, or jobs cannot be submitted.
    """
    if wrong := list(problems(scale)):
        raise ConfigError("; ".join(wrong))
    import dask.config
    from distributed import Client

    logging.getLogger("distributed").setLevel(logging.ERROR)  # it tells of every worker that comes and goes
    with dask.config.set(SETTINGS):
        cluster = started(scale, directory)
        try:
            client = Client(cluster or scale.address, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, TimeoutError, ValueError) as error:
            raise ConfigError(
                f"scale.dask: no scheduler answers at {scale.dask} ({error}): start one (dask scheduler), or ask for "
                "local or slurm"
            ) from error
        ended = Event()
        try:
            if scale.here:
                Thread(target=keep_complete, args=(cluster, scale.workers, ended), daemon=True).start()
            yield client
        finally:
            ended.set()
            client.close()
            if cluster is not None:
                cluster.close()
                close_keys(cluster)


def close_keys(cluster: Any) -> None:
    """Close, and so delete, the key files of Slurm's jobs: dask-jobqueue leaves them to the garbage collector."""
    for name in KEYS:
        if (file := getattr(cluster, name, None)) is not None:
            file.close()


def started(scale: Scale, directory: Path) -> Any:
    """The cluster of `scale`; None where somebody else runs it."""
    if scale.dask == SLURM:
        return slurm(scale, directory)
    return local(scale) if scale.here else None


def local(scale: Scale) -> Any:
    """Workers of this machine, on the loopback address; one that dies is replaced by its nanny, see `keep_complete`."""
    from distributed import Nanny, Scheduler, SpecCluster

    common = {"host": LOOPBACK, "dashboard": False}
    mine = {**common, "nthreads": 1, "memory_limit": 0, "silence_logs": logging.CRITICAL}
    workers = {
        number: {"cls": Nanny, "options": {**mine, "env": environment(scale, number)}}
        for number in range(scale.workers)
    }
    scheduler = {"cls": Scheduler, "options": {**common, "port": 0, "dashboard_address": f"{LOOPBACK}:0"}}
    return SpecCluster(scheduler=scheduler, workers=workers, silence_logs=logging.CRITICAL)


def keep_complete(cluster: Any, workers: int, ended: Event) -> None:
    """Replace the nannies that gave up because their worker died while it started, until the cluster is ended."""
    from distributed.core import Status

    async def replace() -> None:
        for name, nanny in list(cluster.workers.items()):
            if nanny.status in (Status.closed, Status.failed):
                del cluster.workers[name]
        cluster.scale(workers)  # starts what is missing

    while not ended.wait(LOOK_SECONDS):
        cluster.loop.add_callback(replace)


def environment(scale: Scale, number: int) -> dict[str, str]:
    """Of a local worker: its threads, and its own GPUs where it needs some."""
    found = dict.fromkeys(THREADS, str(scale.cores))
    if scale.gpus:
        devices = visible_gpus()
        if len(devices) < scale.gpus:
            raise ConfigError(f"scale.gpus: a worker needs {scale.gpus}, this machine shows {len(devices)}")
        first = number * scale.gpus
        found["CUDA_VISIBLE_DEVICES"] = ",".join(devices[(first + i) % len(devices)] for i in range(scale.gpus))
    return found


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES takes them."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name for name in said.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def slurm(scale: Scale, directory: Path) -> Any:
    """Jobs of Slurm, one worker each. Connections are encrypted, with keys of this run alone."""
    from dask_jobqueue import SLURMCluster
    from distributed.security import Security

    logs, keys = directory / "scale", directory / CERTIFICATES
    logs.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(keys, ignore_errors=True)  # of a run that was killed; those of this run go with the cluster's object
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    gpus = [f"--gres=gpu:{scale.gpus}"] if scale.gpus else []
    try:
        cluster = SLURMCluster(
            queue=scale.queue, account=scale.account, walltime=scale.walltime, cores=scale.cores, processes=1,
            memory=scale.memory, interface=scale.interface, job_name="discovery-loop", log_directory=str(logs),
            job_extra_directives=[*gpus, *scale.directives], python=sys.executable,
            job_script_prologue=[*(f"export {name}={scale.cores}" for name in THREADS), *scale.setup],
            worker_extra_args=["--nthreads", "1"], security=Security.temporary(),
            shared_temp_directory=str(keys.resolve()),
            scheduler_options={"dashboard": False, "dashboard_address": f"{LOOPBACK}:0"}, silence_logs=logging.CRITICAL,
        )  # fmt: skip
        cluster.adapt(minimum_jobs=scale.workers, maximum_jobs=scale.workers)  # a job that ends is replaced
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"scale.dask: no jobs can be submitted to Slurm: {error}") from error
    return cluster
