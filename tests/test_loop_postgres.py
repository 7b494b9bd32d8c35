"""The ledger on a real PostgreSQL server from Debian's packages. Run with ``pytest -m server``."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from loop.errors import StoreError
from loop.store import OracleKey, Store
from loop.values import Evaluation
from tests.test_loop_store import WORKER, described_twice

pytestmark = pytest.mark.server
KEY = OracleKey("oracle@1", "settings")


def binaries() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def as_server_user(command: list[str]) -> list[str]:
    """PostgreSQL refuses to run as root."""
    return ["runuser", "-u", "postgres", "--", *command] if getpass.getuser() == "root" else command


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    pytest.importorskip("psycopg")
    folder = binaries()
    if folder is None or (getpass.getuser() == "root" and shutil.which("runuser") is None):
        pytest.skip("PostgreSQL is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = tmp_path_factory.mktemp("postgres")
    for parent in (data, *data.parents[:2]):
        parent.chmod(0o755)
    if getpass.getuser() == "root":
        shutil.chown(data, "postgres")
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "cwd": "/"}
    subprocess.run(as_server_user([f"{folder}/initdb", "-D", f"{data}/db", "-U", "tester", "-A", "trust"]), **quiet)
    options = f"-p {port} -k {data} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [f"{folder}/pg_ctl", "-D", f"{data}/db", "-l", f"{data}/log"]
    subprocess.run(as_server_user([*control, "-w", "-o", options, "start"]), **quiet)
    yield f"postgresql+psycopg://tester:hunter2@127.0.0.1:{port}/postgres"
    subprocess.run(as_server_user([*control, "-m", "immediate", "stop"]), **quiet)


def test_claims_labels_and_events(url):
    with Store(url) as store, Store(url) as other:
        store.append("one", 0, "propose", "done", {"low": float("inf"), "none": float("nan")})
        assert store.events("one")[0].payload["low"] == float("inf")
        assert store.claim(["a", "b"], KEY, campaign="one") == ["a", "b"]
        assert other.claim(["b", "c"], KEY) == ["c"]
        store.finish([Evaluation("a", KEY.oracle, KEY.settings, "ok")])
        store.release(["b"], KEY)
        assert other.claim(["a", "b"], KEY) == ["b"]
        assert set(other.evaluations(["a", "b"], KEY)) == {"a"}
        assert other.paid("one") == 1
        assert "hunter2" not in store.name


def test_two_processes_and_a_kill_lose_and_repeat_nothing(url):
    command = [sys.executable, "-c", WORKER, url]
    root = Path(__file__).parents[1]
    victim, other = (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ) for _ in range(2)
    )
    begun = [victim.stdout.readline().strip() for _ in range(5)]
    victim.send_signal(signal.SIGKILL)
    begun += victim.communicate()[0].split()
    done = other.communicate(timeout=120)[0].split()
    with Store(url) as store:
        ids = {f"s{number}" for number in range(40)}
        torn = ids - set(store.evaluations(sorted(ids), KEY))
        assert len(torn) <= 1
        assert len(set(begun) & set(done)) <= 1
        assert set(store.claim(sorted(torn), KEY)) == torn


def test_two_descriptions_of_a_crystal_share_one_label_whoever_comes_first(url):
    """Two processes meet the same crystal for the first time at once: one key comes out, and one claim."""
    script = (
        "import sys\nfrom loop.store import OracleKey, Store\nfrom tests.test_loop_store import described_twice\n"
        "store, mine = Store(sys.argv[1]), described_twice()[int(sys.argv[2])]\n"
        "sys.stdin.readline()\nstore.add_candidates(f'twice{sys.argv[2]}', [mine])\n"
        "print(len(store.claim([mine.id], OracleKey('twice@1', 'settings'))), flush=True)\nsys.stdin.readline()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parents[1]}
    both = [subprocess.Popen([sys.executable, "-c", script, url, str(index)], **pipes) for index in (0, 1)]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    assert sorted(process.stdout.readline().strip() for process in both) == ["0", "1"]  # both alive: no claim is stale
    for process in both:
        process.communicate("end\n", timeout=60)
    with Store(url) as store:
        assert len(set(store.keys([candidate.id for candidate in described_twice()]).values())) == 1


def test_an_unreachable_server_is_one_clear_message(url):
    dead = url.rpartition(":")[0] + ":1/postgres"  # nothing listens there
    with pytest.raises(StoreError, match="cannot be read") as caught:
        Store(dead)
    assert "hunter2" not in str(caught.value)
