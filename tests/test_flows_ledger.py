"""What resume, run, status, report and export say of ledgers that are gone, torn, held, or can only be read."""

from __future__ import annotations

import errno
import json
import os
import socket
import sqlite3
import time
from contextlib import closing

import pytest
from safetensors import SafetensorError

from flows import plain
from flows.ledger import worked_on
from loop import database
from loop.errors import InputError
from loop.io import disk, files
from loop.workers import worker_id
from tests.test_flows_campaign import fakes, leave_figures_out, run, write_config  # noqa: F401

VERBS = (["status"], ["export", "--output", "out.csv"], ["report"])


@pytest.fixture
def results(tmp_path, fakes, monkeypatch):  # noqa: F811
    """A finished campaign on the fakes; the working folder lies beside it."""
    leave_figures_out(monkeypatch)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    folder = tmp_path / "r"
    assert run("run", write_config(tmp_path / "c.yaml", rounds=1), "--results", folder).exit_code == 0
    return folder


def remove_ledger(folder):
    for path in folder.glob("campaign.db*"):
        path.unlink()


def contents(folder):
    return {
        str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"
    }


@pytest.mark.parametrize("kind", ["gone", "empty", "another"])
@pytest.mark.parametrize("verb", ["resume", "run"])
def test_no_campaign_begins_over_the_results_of_another(results, kind, verb, fakes):  # noqa: F811
    """Case 68."""
    remove_ledger(results)
    if kind == "empty":
        (results / "campaign.db").touch()
    if kind == "another":
        other = write_config(results.parent / "o.yaml", name="other", rounds=0)
        assert run("run", other, "--results", results.parent / "o").exit_code == 0
        for path in (results.parent / "o").glob("campaign.db*"):
            path.rename(results / path.name)
    paid, before = len(fakes["oracle"].evaluated), contents(results)
    arguments = ["resume", results] if verb == "resume" else ["run", results.parent / "c.yaml", "--results", results]
    done = run(*arguments)
    assert done.exit_code == 1
    said = {"gone": "There is no ledger", "empty": "is empty", "another": "holds no campaign 'fake' (there are: other)"}
    assert said[kind] in done.stderr
    assert "still holds results (ranked.csv" in done.stderr
    assert len(fakes["oracle"].evaluated) == paid
    after = contents(results)
    assert {name: after.get(name) for name in before if "-wal" not in name} == {
        name: data for name, data in before.items() if "-wal" not in name
    }
    assert run("status", results).exit_code == 1


def test_resume_without_a_ledger_or_results_is_refused_too(tmp_path, fakes):  # noqa: F811
    write_config(tmp_path / "config.yaml")
    done = run("resume", tmp_path)
    assert done.exit_code == 1
    assert "There is no ledger" in done.stderr
    assert not (tmp_path / "campaign.db").exists()


def test_a_run_may_begin_beside_its_own_configuration(tmp_path, fakes, monkeypatch):  # noqa: F811
    leave_figures_out(monkeypatch)
    config = write_config(tmp_path / "config.yaml", rounds=0)
    assert run("run", config, "--results", tmp_path).exit_code == 0


def test_resume_does_not_advise_to_resume(results):
    done = run("resume", results, "--set", "campaign.seed=3")
    assert done.exit_code == 1
    assert "campaign.seed was 0, now 3" in done.stderr
    assert "Leave these as they were" in done.stderr
    assert "discovery-loop resume" not in done.stderr


@pytest.mark.parametrize("verb", [*VERBS, ["resume"]])
def test_a_torn_ledger_is_said_to_be_damaged(results, verb):
    """Case 67."""
    with closing(sqlite3.connect(results / "campaign.db")) as ledger:
        ledger.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = results / "campaign.db"
    path.write_bytes(path.read_bytes()[:60000])
    done = run(verb[0], results, *verb[1:])
    assert done.exit_code == 1
    assert "it is damaged" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_database_at_all(results):
    remove_ledger(results)
    (results / "campaign.db").write_text("no database" * 1000)
    assert "it is damaged or no ledger" in run("status", results).stderr


@pytest.mark.parametrize("verb", VERBS)
def test_a_locked_ledger_is_read(results, verb):
    """Case 67."""
    with closing(sqlite3.connect(results / "campaign.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        done = run(verb[0], results, *verb[1:])
    assert done.exit_code == 0, done.stderr


def test_a_lock_of_another_host_is_not_taken_over(results):
    """Case 66."""
    lock = {"owner": "otherhost|4242|1|x", "since": 1.0}
    (results / ".lock").write_text(json.dumps(lock))
    done = run("resume", results)
    assert done.exit_code == 1
    assert f"delete {results / '.lock'}" in done.stderr
    assert json.loads((results / ".lock").read_text()) == lock
    at_work = json.loads(run("status", results, "--json").stdout)["at_work"]
    assert "process 4242 on otherhost" in at_work
    assert "cannot be seen" in at_work


def test_status_says_who_works_on_a_campaign(tmp_path):
    """Case 65."""
    assert worked_on(tmp_path, finished=True) == "nobody"
    assert worked_on(tmp_path, finished=False) == f"nobody; to continue: discovery-loop resume {tmp_path}"
    lock = files.FolderLock(tmp_path)
    here = worked_on(tmp_path, finished=False)
    assert here.startswith(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-')}")
    dead = worker_id().split("|")
    dead[2] = "1.00"  # a process of this number that began at another time
    (tmp_path / ".lock").write_text(json.dumps({"owner": "|".join(dead), "since": time.time()}))
    text = worked_on(tmp_path, finished=False)
    assert text.startswith(f"nobody: process {os.getpid()}, at work since")
    assert f"discovery-loop resume {tmp_path}" in text
    (tmp_path / ".lock").write_text('{"owner": "torn')
    assert worked_on(tmp_path, finished=True) == "nobody"
    lock.release()


@pytest.mark.parametrize("text", ["", "campaign: {", "campaign: 3\n", "campaign: {rounds: 1}\n"])
def test_a_damaged_configuration_is_one_message(results, text):
    (results / "config.yaml").write_text(text)
    for verb in VERBS:
        done = run(verb[0], results, *verb[1:])
        assert done.exit_code == 1
        assert "config.yaml" in done.stderr
        assert "unexpected" not in done.stderr


@pytest.fixture
def read_only(results, monkeypatch):
    """Nothing in the results folder can be written, as on a read-only file system."""
    real = os.access

    def access(path, mode, **options):
        inside = str(os.fspath(path)).startswith(str(results))
        return real(path, mode, **options) and not (inside and mode & os.W_OK)

    monkeypatch.setattr(os, "access", access)
    for path in [results, *results.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)  # holds for all but root
    yield results
    for path in [results, *results.rglob("*")]:
        path.chmod(path.stat().st_mode | 0o200)


@pytest.mark.parametrize("log", [False, True])
def test_a_campaign_that_can_only_be_read_can_be_looked_at(read_only, log):
    """Case 69."""
    if log:  # somebody else is writing, and not all is in the file itself
        writer = sqlite3.connect(read_only / "campaign.db", isolation_level=None)
        writer.execute("PRAGMA wal_autocheckpoint=0")
        writer.execute("INSERT INTO loop_meta VALUES ('x', 'y')")
        with closing(database._look(read_only / "campaign.db")) as found:
            assert found.execute("SELECT value FROM loop_meta WHERE key = 'x'").fetchall() == [("y",)]
    before = contents(read_only)
    for verb in VERBS:
        done = run(verb[0], read_only, *verb[1:])
        assert done.exit_code == 0, done.stderr
    assert contents(read_only) == before
    refused = run("resume", read_only)
    assert refused.exit_code == 1
    assert "cannot be written" in refused.stderr
    if log:
        writer.close()


def test_a_file_without_a_log_is_opened_as_one_that_nobody_writes(tmp_path):
    path = tmp_path / "a #b?c%20d é" / "x.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as made:
        made.execute("CREATE TABLE t (x)")
    with closing(database._look(path)) as found, pytest.raises(sqlite3.OperationalError, match="readonly"):
        found.execute("INSERT INTO t VALUES (1)")
    assert [item.name for item in path.parent.iterdir()] == ["x.db"]


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["OSError", "quota", "safetensors"])
@pytest.mark.parametrize("where", ["save", "learn", "write_results"])
def test_a_full_disk_is_one_message_and_costs_nothing(tmp_path, fakes, monkeypatch, error, where):  # noqa: F811
    """Case 69."""
    from tests.fakes import FakeGenerator

    leave_figures_out(monkeypatch)
    config, results = write_config(tmp_path / "c.yaml", rounds=1), tmp_path / "r"

    def full(*_, **__):
        raise error

    with pytest.MonkeyPatch.context() as patched:
        owner = plain if where == "write_results" else FakeGenerator
        patched.setattr(owner, where, full)
        cut = run("run", config, "--results", results)
    assert cut.exit_code == 1
    assert cut.stderr.count("error:") == 1
    assert "the disk is full" in cut.stderr
    assert "unexpected" not in cut.stderr
    assert not list(results.rglob("*.tmp"))
    kept = len(fakes["oracle"].evaluated)
    assert run("resume", results).exit_code == 0
    assert len(fakes["oracle"].evaluated) == 8
    assert kept <= 8


def test_a_full_ledger_says_so(tmp_path, fakes, monkeypatch):  # noqa: F811
    leave_figures_out(monkeypatch)
    config, results = write_config(tmp_path / "c.yaml", rounds=1), tmp_path / "r"
    real = database.sa.create_engine

    def small(*arguments, **options):
        made = real(*arguments, **options)
        database.sa.event.listen(made, "connect", lambda c, _: c.execute("PRAGMA max_page_count=20"))
        return made

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database.sa, "create_engine", small)
        cut = run("run", config, "--results", results)
    assert cut.exit_code == 1
    assert "the disk is full" in cut.stderr
    assert run("resume", results).exit_code == 0
    assert len(set(fakes["oracle"].evaluated)) == 8


@pytest.mark.parametrize("error", FULL, ids=["OSError", "quota", "safetensors"])
def test_writers_leave_nothing_half_written(tmp_path, error, monkeypatch):
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "a").write_text("before")

    def fill(folder):
        (folder / "a").write_text("half")
        raise error

    with pytest.raises(InputError, match=r"whole cannot be written: .*the disk is full"):
        files.write_folder(tmp_path / "whole", fill)
    assert (tmp_path / "whole" / "a").read_text() == "before"
    monkeypatch.setattr(os, "fsync", lambda _: fill(tmp_path / "whole" / ".."))
    (tmp_path / "a").unlink(missing_ok=True)
    with pytest.raises(InputError, match=r"b\.txt cannot be written: .*the disk is full"):
        files.write_text(tmp_path / "b.txt", "text")
    assert not (tmp_path / "b.txt").exists()
    assert not [item for item in tmp_path.iterdir() if item.name.endswith(".tmp")]


def test_what_is_no_full_disk_keeps_its_own_message(tmp_path):
    assert not disk.is_full(OSError(errno.EACCES, "Permission denied"))
    assert not disk.is_full(ValueError("shape mismatch"), tmp_path)
    with pytest.raises(ValueError, match="shape"), disk.writing(tmp_path / "x"):
        raise ValueError("shape mismatch")
    with pytest.raises(InputError, match="cannot be written: Permission denied"), disk.writing(tmp_path / "x"):
        raise OSError(errno.EACCES, "Permission denied")
