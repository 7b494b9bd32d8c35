"""Starting and ending the local Prefect; the whole of it in a test marked `server`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psutil
import pytest
from typer.testing import CliRunner

from flows import server
from flows.cli import app
from flows.config import stored_config
from flows.report_server import Handler, address_of

# leaves at the second signal only, as Prefect's worker does, and has a child that leaves at the first
STUBBORN = """
import signal, subprocess, sys, time
seen = []
def handler(*_):
    seen.append(1)
    if len(seen) > 1: sys.exit(0)
signal.signal(signal.SIGTERM, handler)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
while True: time.sleep(0.05)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("DISCOVERY_LOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def entry_of(pid: int) -> dict[str, float]:
    return {"pid": pid, "started": psutil.Process(pid).create_time()}


def test_end_takes_the_whole_family():
    process = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    assert server.end(entry_of(process.pid))
    assert process.wait(5) == 0
    process.stdout.close()
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_end_leaves_a_stranger_with_the_same_id_alone():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        entry = entry_of(process.pid) | {"started": time.time() - 5000}
        assert not server.end(entry)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert not server.end(entry_of(os.getpid()) | {"pid": 2**22 + 1})


def test_down_without_anything(home):
    done = CliRunner().invoke(app, ["down"])
    assert done.exit_code == 0
    assert "nothing was running" in done.stdout


def test_up_refuses_a_port_that_is_taken(home):
    with socket.socket() as listener:
        listener.bind((server.HOST, 0))
        listener.listen()
        port = listener.getsockname()[1]
        done = CliRunner().invoke(app, ["up", "--port", str(port)])
    assert done.exit_code == 1
    assert f"port {port} of 127.0.0.1 is taken" in done.stderr


def test_up_says_that_another_port_does_nothing_where_it_is_up(home, monkeypatch):
    server.local().state.write_text(json.dumps({"port": 4321}))
    monkeypatch.setattr(server, "healthy", lambda _: True)
    monkeypatch.setattr(server, "mend", lambda *_: None)
    said: list[str] = []
    assert server.up(4400, said.append).port == 4321
    assert said == ["it is up on port 4321 already, so --port 4400 does nothing: run discovery-loop down first"]
    assert server.up(None, said.append).port == server.up(4321, said.append).port == 4321
    assert len(said) == 1


def test_a_process_that_leaves_is_told_with_its_last_line(home, tmp_path):
    log = tmp_path / "x.log"
    log.write_text("first\nTypeError: no such thing\n\n")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    process.wait()
    with pytest.raises(server.ServerError, match=r"the server ended with code 3: TypeError: no such thing"):
        server.wait_for(lambda: False, process, log, "the server")


def test_torn_state_is_no_state(home):
    server.local().state.write_text('{"port": 42')
    assert server.recorded() is None
    server.local().state.write_text(json.dumps({"port": 4321}))
    assert server.recorded() == server.local(4321)


def test_deployments_name_the_flow_and_valid_presets():
    import yaml

    from flows.configfile import presets

    deployments = yaml.safe_load(server.definition().read_text())["deployments"]
    assert {item["entrypoint"] for item in deployments} == {"flows.discovery:discovery_loop"}
    named = {item["name"]: item.get("parameters", {}).get("config") for item in deployments}
    assert set(presets()) == {config for config in named.values() if config}
    assert named["quickstart"] == "quickstart"
    for item in deployments:  # also on a worker that `up` did not start
        environment = item["work_pool"]["job_variables"]["env"]
        assert environment == {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(server.HEARTBEAT)}


def test_the_form_has_one_input_for_what_may_be_left_out():
    """Prefect's own shows a choice of types with None among them, and calls it 'Property is type "None"'."""
    from prefect.utilities.callables import parameter_schema

    from flows.discovery import discovery_loop

    shown = parameter_schema(discovery_loop).model_dump()["properties"]
    assert sum("anyOf" in kind for kind in shown.values()) == 8
    plain = {name: server.plain_input(kind) for name, kind in shown.items()}
    assert plain["goal"]["$ref"] == "#/definitions/RunGoal"  # its inputs: test_flows_run_form.py
    assert {name: kind["type"] for name, kind in plain.items() if name != "goal"} == {
        "config": "string", "results": "string", "rounds": "integer", "budget": "integer", "seed": "integer",
        "elements": "array", "required": "array", "overrides": "object",
    }  # fmt: skip
    assert plain["rounds"]["minimum"] == 1
    assert "default" not in plain["rounds"]  # an empty input would be sent as None, which the server refuses
    assert plain["config"] == shown["config"]
    either = {"anyOf": [{"type": "integer"}, {"type": "string"}, {"type": "null"}]}
    assert server.plain_input(either) == either


def test_the_form_names_each_preset():
    from flows.configfile import presets
    from flows.discovery import discovery_loop

    assert all(name in discovery_loop.description for name in presets())


def test_a_server_whose_database_is_locked_is_asked_again(monkeypatch):
    class Busy(BaseHTTPRequestHandler):
        asked = 0

        def do_POST(self):
            Busy.asked += 1
            self.send_response(503 if Busy.asked < 3 else 200)
            self.end_headers()
            self.wfile.write(b'{"fine": true}')

        def log_message(self, *_):
            pass

    monkeypatch.setattr(server, "BUSY_WAITS", (0.01, 0.01))
    with ThreadingHTTPServer((server.HOST, 0), Busy) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        here = server.Local(server.Path("/nowhere"), httpd.server_port)
        assert server.call(here, "flow_runs/filter", {}) == {"fine": True}
        assert Busy.asked == 3
        Busy.asked = -10
        with pytest.raises(server.ServerError, match="503"):
            server.call(here, "flow_runs/filter", {})
        httpd.shutdown()


def test_reports_are_served_and_nothing_else(tmp_path, monkeypatch):
    folder = tmp_path / "results" / "mine"
    folder.mkdir(parents=True)
    for name in ("report.html", "campaign.db", "ranked.csv"):
        (folder / name).write_text(f"this is {name}")
    (tmp_path / "secret.html").write_text("outside")
    (tmp_path / "results" / "link.html").symlink_to(tmp_path / "secret.html")
    with ThreadingHTTPServer((server.HOST, 0), partial(Handler, directory=str(tmp_path / "results"))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        base = f"http://{server.HOST}:{httpd.server_port}"
        monkeypatch.setenv("DISCOVERY_LOOP_REPORTS", f"{base} {tmp_path / 'results'}")
        address = address_of(folder / "report.html")
        assert address == f"{base}/mine/report.html"
        assert urllib.request.urlopen(address).read() == b"this is report.html"
        assert urllib.request.urlopen(f"{base}/mine/ranked.csv").status == 200
        for refused in ("mine/campaign.db", "mine/", "", "../secret.html", "%2e%2e/secret.html", "link.html"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{base}/{refused}")
        httpd.shutdown()
    assert address_of(tmp_path / "elsewhere" / "report.html") is None
    monkeypatch.delenv("DISCOVERY_LOOP_REPORTS")
    assert address_of(folder / "report.html") is None


@pytest.mark.server
def test_up_runs_a_deployment_and_down_leaves_nothing(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind((server.HOST, 0))
        port = probe.getsockname()[1]
    try:
        up = CliRunner().invoke(app, ["up", "--port", str(port), "--json"])
        assert up.exit_code == 0, up.stderr
        again = CliRunner().invoke(app, ["up", "--json"])
        assert json.loads(again.stdout)["url"] == json.loads(up.stdout)["url"]
        tiny = {"campaign.rounds": 1, "campaign.pool": 12, "campaign.budget": 2, "campaign.baseline_budget": 2}
        tiny |= {"generator.finetune.iterations": 1, "generator.finetune.batch_size": 8}
        here = server.local(port)
        options = ["-p", f"overrides={json.dumps(tiny)}", "--watch"]
        with pytest.raises(server.ServerError, match=r"goal\.minimise"):  # nothing is made of nonsense
            server.prefect(here, "deployment", "run", "discovery-loop/smoke", "-p", 'goal={"minimise": "gold"}')
        assert server.call(here, "flow_runs/filter", {}) == []
        options += ["-p", 'goal={"minimise": "volume", "stable": 0.2}']
        server.prefect(here, "deployment", "run", "discovery-loop/smoke", *options)
        assert (tmp_path / "results" / "smoke" / "ranked.csv").exists()
        ran = stored_config(tmp_path / "results" / "smoke").campaign
        assert (ran.objective, ran.goal, ran.threshold) == ("volume", "minimise", 0.2)
        pids = [entry["pid"] for entry in server.read_state(here.state)["processes"].values()]
    finally:
        down = CliRunner().invoke(app, ["down"])
    assert "Prefect is down" in down.stdout
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
    assert not server.taken(port)


@pytest.mark.server
def test_a_killed_worker_leaves_no_run_running(home, tmp_path, monkeypatch):
    """Case 91. kill -9 of worker and flow: `up` marks the run crashed and starts a worker; `down` cancels the next."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind((server.HOST, 0))
        port = probe.getsockname()[1]
    here = server.local(port)

    def runs():
        return {run["name"]: run["state_type"] for run in server.call(here, "flow_runs/filter", {})}

    def start_one():
        server.prefect(here, "deployment", "run", "discovery-loop/smoke")
        deadline = time.monotonic() + 120
        while "RUNNING" not in runs().values() and time.monotonic() < deadline:
            time.sleep(1)
        assert list(runs().values()).count("RUNNING") == 1

    try:
        assert CliRunner().invoke(app, ["up", "--port", str(port)]).exit_code == 0
        assert len(server.call(here, "automations/filter", {})) == 1
        start_one()
        worker = psutil.Process(server.read_state(here.state)["processes"]["worker"]["pid"])
        for process in [*worker.children(recursive=True), worker]:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs([worker], timeout=10)
        again = CliRunner().invoke(app, ["up"])
        assert again.exit_code == 0, again.stderr
        assert "the worker has died" in again.stderr
        assert sorted(runs().values()) == ["CRASHED"]
        assert len(server.call(here, "automations/filter", {})) == 1
        start_one()
    finally:
        CliRunner().invoke(app, ["down"])
    server_again = CliRunner().invoke(app, ["up", "--port", str(port)])
    try:
        assert server_again.exit_code == 0, server_again.stderr
        assert "RUNNING" not in runs().values()
        assert sorted(runs().values())[0] in ("CANCELLED", "CRASHED")
    finally:
        CliRunner().invoke(app, ["down"])


@pytest.mark.server
def test_a_cancelled_run_leaves_no_process(home, tmp_path, monkeypatch):
    """Case 91: `flow-run cancel` ends the run's process; the worker stays."""
    monkeypatch.chdir(tmp_path)
    with socket.socket() as probe:
        probe.bind((server.HOST, 0))
        port = probe.getsockname()[1]
    here = server.local(port)

    def wait_for(done, seconds=240):
        deadline = time.monotonic() + seconds
        while not done() and time.monotonic() < deadline:
            time.sleep(1)
        return done()

    def states():
        return [run["state_type"] for run in server.call(here, "flow_runs/filter", {})]

    try:
        assert CliRunner().invoke(app, ["up", "--port", str(port)]).exit_code == 0
        worker = psutil.Process(server.read_state(here.state)["processes"]["worker"]["pid"])
        before = {child.pid for child in worker.children(recursive=True)}
        server.prefect(here, "deployment", "run", "discovery-loop/smoke")
        assert wait_for(lambda: states() == ["RUNNING"])
        started = [child for child in worker.children(recursive=True) if child.pid not in before]
        assert started
        server.prefect(here, "flow-run", "cancel", server.call(here, "flow_runs/filter", {})[0]["id"])
        assert wait_for(lambda: states() == ["CANCELLED"])
        assert psutil.wait_procs(started, timeout=120)[1] == []
        assert worker.is_running()
    finally:
        CliRunner().invoke(app, ["down"])
