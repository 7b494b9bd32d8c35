"""A Prefect server, a work pool, the deployments and a worker on this machine: `up` starts them, `down` ends them.

All of it lives in a Prefect home of its own under `flows.paths.state_dir` and listens on the loopback address only. No
flow run is left "Running" that nobody works on: `down` cancels what it interrupts, `up` marks what a dead worker left
behind as crashed, and an automation does so for a flow process that stops sending heartbeats.
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
from flows.report_server import REPORTS_VARIABLE
from loop.errors import DiscoveryLoopError

HOST = "127.0.0.1"
PORT = 4200
POOL, WORKER = "local", "discovery-loop"
HEARTBEAT = 30  # s, the shortest that Prefect takes
SILENCE = (
    3 * HEARTBEAT
)  # s without a heartbeat after which a run has crashed; less marks healthy runs on a busy machine
START_SECONDS = 300.0  # a first start makes a database; 7 s on an idle machine, over 120 s where a dozen jobs run
STOP_SECONDS = 15.0
BUSY_WAITS = (1.0, 2.0, 4.0, 8.0)  # s, while its SQLite database is locked


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
        ours |= {"PREFECT_SERVER_API_PORT": str(self.port), "PREFECT_CLI_COLORS": "false"}
        ours |= {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT), REPORTS_VARIABLE: f"{self.reports} {results()}"}
        return {**os.environ, **ours}

    @property
    def reports(self) -> str:
        """Address below which reports of the results folder are served."""
        return f"http://{HOST}:{self.port + 1}"


def local(port: int = PORT) -> Local:
    """The set-up of this user."""
    home = state_dir() / "prefect"
    home.mkdir(parents=True, exist_ok=True)
    return Local(home, port)


def results() -> Path:
    """Folder of the results of a worker that is started now: below the present folder, as for `run`."""
    return Path.cwd() / "results"


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


def up(port: int | None = None, say: Callable[[str], None] = lambda _: None) -> Local:
    """Start what is not running yet and wait until it is healthy.

    Args:
        port: of the server; None: that of the one that runs, else `PORT`.
        say: told what is done.

    Raises:
        ServerError: the port is taken, or a part does not come up; what was started is ended again.
    """
    running = recorded()
    if running and healthy(running.api):
        if port not in (None, running.port):
            say(
                f"it is up on port {running.port} already, so --port {port} does nothing: run discovery-loop down first"
            )
        mend(running, say)
        return running
    down()
    port = PORT if port is None else port
    here = local(port)
    for wanted in (port, port + 1):  # the server, and the reports
        if taken(wanted):
            raise ServerError(f"port {wanted} of {HOST} is taken by another program: end it, or choose one with --port")
    try:
        say("starting the Prefect server ...")
        server = start(here, "server", "prefect", "server", "start", "--host", HOST, "--port", str(port))
        wait_for(lambda: healthy(here.api), server, here.home / "server.log", "the Prefect server")
        say("creating the work pool and the deployments ...")
        make_pool(here)
        deploy(here)
        settle(here, "CRASHED", "the machine or the worker was gone; a new run of the same results folder continues it")
        watch_heartbeats(here)
        start_reports(here)
        start_worker(here, say)
    except BaseException:
        down()
        raise
    return here


def mend(here: Local, say: Callable[[str], None]) -> None:
    """Start again what has died of a set-up whose server answers.

    Raises:
        ServerError: a part does not come up.
    """
    entries = read_state(here.state).get("processes", {})
    if not alive(entries.get("worker")):
        say("the worker has died")
        if "reports" in entries:  # of the folder that the dead worker was started in
            end(entries["reports"])
        start_reports(here)
        settle(here, "CRASHED", "the worker died; a new run of the same results folder continues it")
        start_worker(here, say)


def start_worker(here: Local, say: Callable[[str], None]) -> None:
    """Start a worker and wait until it reports."""
    say("starting a worker ...")
    worker = start(here, "worker", "prefect", "worker", "start", "--pool", POOL, "--name", WORKER, "--limit", "1")
    wait_for(lambda: worker_online(here), worker, here.home / "worker.log", "the worker")


def start_reports(here: Local) -> None:
    """Serve the reports below ``results`` of the present folder."""
    start(here, "reports", "flows.report_server", str(results()), str(here.port + 1))


def down() -> bool:
    """End the worker with its flow runs, then the server. Returns whether anything was running."""
    here = recorded() or local()
    entries = read_state(here.state).get("processes", {})
    ended = [end(entries["worker"])] if "worker" in entries else []
    if any(name in entries for name in ("worker", "server")) and healthy(here.api):
        settle(here, "CANCELLED", "ended by `discovery-loop down`; a new run of the same results folder continues it")
    ended += [end(entries[name]) for name in ("reports", "server") if name in entries]
    here.state.unlink(missing_ok=True)
    return any(ended)


def settle(here: Local, state: str, message: str) -> list[str]:
    """Give runs that nobody works on their end: those that still count as active; returns their names."""
    active = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
    found = call(here, "flow_runs/filter", {"flow_runs": active})
    tasks = call(here, "task_runs/filter", {"task_runs": active})
    ended = {"state": {"type": state, "name": state.capitalize(), "message": message}, "force": True}
    for kind, runs in (("task_runs", tasks), ("flow_runs", found)):
        for run in runs:
            call(here, f"{kind}/{run['id']}/set_state", ended)
    return [str(run["name"]) for run in found]


def watch_heartbeats(here: Local) -> None:
    """Register the automation that marks a run as crashed when its process has been silent for `SILENCE`."""
    name = "discovery-loop: crashed without a heartbeat"
    ends = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed", "Paused")]
    beat = "prefect.flow-run.heartbeat"
    body = {
        "name": name,
        "description": "A killed process or a lost machine cannot report its end.",
        "trigger": {
            "type": "event",
            "match": {"prefect.resource.id": ["prefect.flow-run.*"]},
            "after": [beat],
            "expect": [beat, *ends],
            "for_each": ["prefect.resource.id"],
            "posture": "Proactive",
            "threshold": 1,
            "within": SILENCE,
        },
        "actions": [{"type": "change-flow-run-state", "state": "CRASHED", "message": f"silent for {SILENCE} s"}],
    }
    if not any(known["name"] == name for known in call(here, "automations/filter", {})):
        call(here, "automations/", body)


def call(here: Local, path: str, body: dict[str, Any], *, method: str = "POST") -> Any:
    """Ask the API; returns what it answers.

    Raises:
        ServerError: it refuses, or does not answer.
    """
    request = urllib.request.Request(
        f"{here.api}/{path}",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
        method=method,
    )
    for wait in (*BUSY_WAITS, 0.0):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read() or "null")
        except (OSError, ValueError) as error:
            busy = isinstance(error, urllib.error.HTTPError) and error.code == 503
            if not wait or not busy:
                raise ServerError(f"the Prefect server does not answer at /{path}: {error}") from error
            time.sleep(wait)
    raise AssertionError  # the last wait is none


def start(here: Local, name: str, module: str, *arguments: str) -> subprocess.Popen[bytes]:
    """Start ``python -m MODULE ARGUMENTS`` in the background and record it."""
    with (here.home / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(  # a session of its own: Ctrl-C in this terminal must not reach it
            [sys.executable, "-m", module, *arguments],
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


def alive(entry: dict[str, float] | None) -> bool:
    """Whether a recorded process still runs."""
    try:
        process = psutil.Process(int(entry["pid"])) if entry else None
        if process is None or process.status() == psutil.STATUS_ZOMBIE:
            return False
        return abs(process.create_time() - entry["started"]) <= 1.0 if entry else False
    except psutil.NoSuchProcess:
        return False


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
    try:
        workers = call(here, f"work_pools/{POOL}/workers/filter", {})
    except ServerError:
        return False
    return any(worker.get("status") == "ONLINE" for worker in workers)


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


def deploy(here: Local) -> None:
    """Create or renew the deployments, with forms that people can fill in.

    Prefect shows a parameter that may be None as a choice of types; the form then has one empty input for it instead.
    """
    prefect(here, "--no-prompt", "deploy", "--all", "--prefect-file", str(definition()))
    for deployment in call(here, "deployments/filter", {}):
        body = {"parameter_openapi_schema": plain_inputs(deployment["parameter_openapi_schema"])}
        call(here, f"deployments/{deployment['id']}", body, method="PATCH")


def plain_inputs(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema of a form, or of a group of inputs in it, with one input for each parameter."""
    plain = {name: plain_input(shown) for name, shown in schema.get("properties", {}).items()}
    groups = {name: plain_inputs(group) for name, group in schema.get("definitions", {}).items()}
    return schema | {"properties": plain} | ({"definitions": groups} if groups else {})


def plain_input(shown: dict[str, Any]) -> dict[str, Any]:
    """The schema of a parameter without None among its types; what is left empty is not sent as None then."""
    some = [kind for kind in shown.get("anyOf", ()) if kind.get("type") != "null"]
    if len(some) != 1 or len(some) == len(shown["anyOf"]):
        return shown
    return {key: value for key, value in shown.items() if key not in ("anyOf", "default")} | some[0]


def make_pool(here: Local) -> None:
    """Create the work pool unless it is there."""
    try:
        with urllib.request.urlopen(f"{here.api}/work_pools/{POOL}", timeout=10):
            return
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise ServerError(f"the Prefect server answers {error.code} at /work_pools/{POOL}") from error
    prefect(here, "work-pool", "create", POOL, "--type", "process")
