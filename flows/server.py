"""A Prefect server, a work pool, the deployments and a worker on this machine: `up` starts them, `down` ends them.

All of it lives in a Prefect home of its own under `flows.paths.state_dir` and listens on the loopback address only.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from flows.paths import state_dir
from loop.errors import DiscoveryLoopError

HOST = "127.0.0.1"
PORT = 4200
POOL = "local"
START_SECONDS = 120.0  # a first start makes a database; measured 7 s on an idle machine
STOP_SECONDS = 15.0


class ServerError(DiscoveryLoopError):
    """The local Prefect server or worker does not come up."""


@dataclass(frozen=True)
class Local:
    """The local set-up: where it lives and where it listens."""

    home: Path
    port: int = PORT

    @property
    def url(self) -> str:
        """Address of the UI."""
        return f"http://{HOST}:{self.port}"

    @property
    def api(self) -> str:
        """Address of the API."""
        return f"{self.url}/api"

    @property
    def state(self) -> Path:
        """What was started: process ids and the port."""
        return self.home / "up.json"

    def environment(self) -> dict[str, str]:
        """Environment of everything that is started here."""
        ours = {"PREFECT_HOME": str(self.home), "PREFECT_API_URL": self.api, "PREFECT_SERVER_API_HOST": HOST}
        return {**os.environ, **ours, "PREFECT_SERVER_API_PORT": str(self.port), "PREFECT_CLI_COLORS": "false"}


def local(port: int = PORT) -> Local:
    """The set-up of this user."""
    home = state_dir() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    return Local(home, port)


def definition() -> Path:
    """The file with the deployments: in the checkout, or beside this module in an installed package.

    Raises:
        ServerError: it is in neither place.
    """
    here = Path(__file__).resolve().parent
    for path in (here.parent / "prefect.yaml", here / "prefect.yaml"):
        if path.is_file():
            return path
    raise ServerError(f"prefect.yaml is missing beside {here}: install discovery-loop again")


def up(port: int = PORT, say: Callable[[str], None] = lambda _: None) -> Local:
    """Start what is not running yet and wait until it is healthy.

    Raises:
        ServerError: the port is taken, or a part does not come up; what was started is ended again.
    """
    running = recorded()
    if running and healthy(running.api):
        return running
    down()
    here = local(port)
    if taken(port):
        raise ServerError(f"port {port} of {HOST} is taken by another program: end it, or choose one with --port")
    try:
        say("starting the Prefect server ...")
        server = start(here, "server", ["server", "start", "--host", HOST, "--port", str(port)])
        wait_for(lambda: healthy(here.api), server, here.home / "server.log", "the Prefect server")
        say("creating the work pool and the deployments ...")
        make_pool(here)
        prefect(here, "--no-prompt", "deploy", "--all", "--prefect-file", str(definition()))
        say("starting a worker ...")
        worker = start(here, "worker", ["worker", "start", "--pool", POOL, "--name", "discovery-loop", "--limit", "1"])
        wait_for(lambda: worker_online(here), worker, here.home / "worker.log", "the worker")
    except BaseException:
        down()
        raise
    return here


def down() -> bool:
    """End the worker with its flow runs, then the server. Returns whether anything was running."""
    path = local().state
    entries = read_state(path).get("processes", {})
    ended = [end(entries[name]) for name in ("worker", "server") if name in entries]
    path.unlink(missing_ok=True)
    return any(ended)


def start(here: Local, name: str, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Start ``prefect ARGUMENTS`` in the background and record it."""
    with (here.home / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # a session of its own: Ctrl-C in this terminal must not reach it
            [sys.executable, "-m", "prefect", *arguments],
            env=here.environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    state = read_state(here.state)
    state["port"] = here.port
    entry = {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
    state.setdefault("processes", {})[name] = entry
    here.state.write_text(json.dumps(state), encoding="utf-8")
    return process


def end(entry: dict[str, float]) -> bool:
    """End a recorded process and all of its children; a process id that was given to another program is left alone."""
    try:
        process = psutil.Process(int(entry["pid"]))
        if abs(process.create_time() - entry["started"]) > 1.0:
            return False
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return False
    for member in reversed(family):  # flow runs first: they report their end while the server still listens
        signal_quietly(member.terminate)
    if family[1:]:
        psutil.wait_procs(family[1:], timeout=STOP_SECONDS)
    _, alive = psutil.wait_procs([process], timeout=2.0)
    for member in alive:  # Prefect 3.8's worker only leaves at the second signal
        signal_quietly(member.terminate)
    _, alive = psutil.wait_procs(family, timeout=STOP_SECONDS)
    for member in alive:
        signal_quietly(member.kill)
    psutil.wait_procs(alive, timeout=STOP_SECONDS)
    return True


def signal_quietly(send: Callable[[], None]) -> None:
    """Send a signal to a process that may have left."""
    with contextlib.suppress(psutil.NoSuchProcess):
        send()


def read_state(path: Path) -> dict[str, Any]:
    """What was started, or nothing where the file is absent or torn."""
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}


def recorded() -> Local | None:
    """The set-up that a state file tells of."""
    state = read_state(local().state)
    return local(int(state["port"])) if "port" in state else None


def taken(port: int) -> bool:
    """Whether something listens at a port of the loopback address."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


def healthy(api: str) -> bool:
    """Whether a Prefect server answers."""
    try:
        with urllib.request.urlopen(f"{api}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def worker_online(here: Local) -> bool:
    """Whether the pool has a worker that reports."""
    request = urllib.request.Request(
        f"{here.api}/work_pools/{POOL}/workers/filter",
        data=b"{}",
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return any(worker.get("status") == "ONLINE" for worker in json.load(answer))
    except (OSError, ValueError):
        return False


def wait_for(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, what: str) -> None:
    """Wait until something is ready.

    Raises:
        ServerError: its process left, or it takes too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if ready():
            return
        if process.poll() is not None:
            raise ServerError(f"{what} ended with code {process.returncode}: {last_line(log)} (log: {log})")
        time.sleep(0.5)
    raise ServerError(f"{what} was not ready after {START_SECONDS:.0f} s: {last_line(log)} (log: {log})")


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote nothing"


def prefect(here: Local, *arguments: str) -> str:
    """Run a Prefect command against the local server.

    Raises:
        ServerError: it failed.
    """
    command = [sys.executable, "-m", "prefect", *arguments]
    done = subprocess.run(command, env=here.environment(), capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise ServerError(f"`prefect {' '.join(arguments)}` failed: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout


def make_pool(here: Local) -> None:
    """Create the work pool unless it is there."""
    try:
        with urllib.request.urlopen(f"{here.api}/work_pools/{POOL}", timeout=10):
            return
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise ServerError(f"the Prefect server answers {error.code} at /work_pools/{POOL}") from error
    prefect(here, "work-pool", "create", POOL, "--type", "process")
