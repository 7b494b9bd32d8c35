from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from loop.errors import StoreError
from loop.store import OracleKey, Store
from loop.values import Candidate, Cost, Evaluation, Quantity, failed
from loop.workers import worker_id, worker_is_alive
from tests.crystals import nacl, rutile
from tests.fakes import FakeGenerator

KEY = OracleKey("oracle@1", "settings")


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "campaign.db") as opened:
        yield opened


def label(structure_id: str, status: str = "ok") -> Evaluation:
    properties = {"energy": Quantity(-1.5, "eV/atom", 0.1)}
    return Evaluation(structure_id, KEY.oracle, KEY.settings, status, properties, cost=Cost(2.0, "cpu", 4))


def test_events_come_back_in_order_and_whole(store):
    for number in range(3):
        store.append("one", number, "propose", "done", {"number": number, "nested": {"low": float("inf")}})
    store.append("two", 0, "label", "done", {})
    events = store.events("one")
    assert [(event.round, event.payload["number"]) for event in events] == [(0, 0), (1, 1), (2, 2)]
    assert events[0].payload["nested"] == {"low": float("inf")}
    assert store.campaigns() == ["one", "two"]


def test_candidates_keep_their_first_origin(store):
    first, second = FakeGenerator().propose(2, seed=0, round=1)
    store.add_candidates("one", [first, second, first])
    store.add_candidates("one", [Candidate(first.structure, round=7)])
    kept = store.candidates("one")
    assert set(kept) == {first.id, second.id}
    assert kept[first.id].to_dict() == first.to_dict()
    assert store.candidates("two") == {}


def test_a_label_is_claimed_once_and_never_again_when_finished(store, tmp_path):
    other = Store(tmp_path / "campaign.db")
    assert store.claim(["a", "b", "a"], KEY, campaign="one") == ["a", "b"]
    assert other.claim(["a", "b", "c"], KEY) == ["c"]
    store.finish([label("a"), label("b", failed("exploded"))])
    assert other.claim(["a", "b"], KEY) == []  # a failure is kept, too
    assert other.claim(["b"], OracleKey("oracle@1", "other settings")) == ["b"]
    found = other.evaluations(["a", "b", "c"], KEY)
    assert found == {"a": label("a"), "b": label("b", failed("exploded"))}
    assert other.evaluations(["a", "b"], OracleKey("oracle@1", "other settings")) == {}
    assert other.evaluations(["a", "b"], OracleKey("oracle@2", "settings")) == {}
    assert other.paid("one") == 2


def test_only_the_holder_may_finish_or_release(store, tmp_path):
    other = Store(tmp_path / "campaign.db")
    store.claim(["a"], KEY)
    with pytest.raises(StoreError, match="was not claimed here"):
        other.finish([label("a")])
    other.release(["a"], KEY)
    assert other.claim(["a"], KEY) == []
    store.release(["a"], KEY)
    assert other.claim(["a"], KEY) == ["a"]


def test_finish_is_all_or_nothing(store):
    store.claim(["a"], KEY)
    with pytest.raises(StoreError):
        store.finish([label("a"), label("never claimed")])
    assert store.evaluations(["a"], KEY) == {}


def test_many_threads_and_connections_share_the_work_without_overlap(tmp_path):
    ids, got = [f"s{number}" for number in range(60)], []
    stores = [Store(tmp_path / "campaign.db") for _ in range(3)]

    def work(mine: Store, start: int) -> None:
        for number in range(start, start + 60):
            got.extend(mine.claim([ids[number % 60]], KEY))

    threads = [threading.Thread(target=work, args=(mine, 7 * place)) for place, mine in enumerate(stores * 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(ids)


def described_twice() -> tuple[Candidate, Candidate]:
    """One crystal as a primitive cell and as a moved supercell."""
    moved = nacl().copy()
    moved.translate_sites(list(range(len(moved))), [0.1, 0.2, 0.3])
    return Candidate(nacl()), Candidate(moved * (1, 1, 2), round=1)


def test_two_descriptions_of_a_crystal_share_one_label(store, tmp_path):
    one, two = described_twice()
    assert one.id != two.id
    store.add_candidates("one", [one])
    other = Store(tmp_path / "campaign.db")
    other.add_candidates("two", [two, Candidate(rutile())])
    assert other.keys([one.id, two.id]) == {one.id: one.id, two.id: one.id}
    assert store.claim([two.id, one.id], KEY, campaign="one") == [two.id]  # either may compute it, only one does
    assert other.claim([one.id], KEY) == []
    store.finish([label(two.id)])
    found = other.evaluations([one.id, two.id, Candidate(rutile()).id], KEY)
    assert found == {one.id: label(one.id), two.id: label(two.id)}
    assert other.claim([one.id, two.id], KEY) == []
    assert other.paid("one") == 1
    assert other.claim([one.id], OracleKey(KEY.oracle, "other settings")) == [one.id]
    other.release([two.id], OracleKey(KEY.oracle, "other settings"))
    assert store.claim([one.id], OracleKey(KEY.oracle, "other settings")) == [one.id]


def test_a_failure_is_tried_again_only_under_other_settings(store):
    one, two = described_twice()
    store.add_candidates("one", [one, two])
    store.claim([one.id], KEY)
    store.finish([label(one.id, failed("exploded"))])
    assert store.evaluations([two.id], KEY)[two.id].status == "failed:exploded"
    assert store.claim([one.id, two.id], KEY) == []
    assert store.claim([two.id], OracleKey(KEY.oracle, "longer")) == [two.id]


def test_costs_are_told_by_oracle(store):
    store.claim(["a", "b"], KEY, campaign="one")
    store.claim(["c"], KEY, campaign="two")
    store.finish([label("a"), label("b", failed("exploded")), label("c")])
    (cost,) = store.costs("one")  # each label: 2 seconds on 4 cores
    assert (cost.oracle, cost.labels, cost.usable, cost.seconds) == (KEY.oracle, 2, 1, 4.0)
    assert cost.core_hours == pytest.approx(16 / 3600)
    assert store.costs("none") == []


def test_a_ledger_of_the_first_version_is_brought_up_to_date(tmp_path):
    path = tmp_path / "campaign.db"
    one, two = described_twice()
    with Store(path) as old:
        old.add_candidates("one", [one])
        old.claim([one.id], KEY, campaign="one")
        old.finish([label(one.id)])
    with sqlite3.connect(path) as connection:  # version 1 had all but this
        connection.execute("DROP TABLE structures")
        connection.execute("UPDATE loop_meta SET value = '1'")
    with Store(path, create=False) as store:
        assert store.evaluations([one.id], KEY) == {one.id: label(one.id)}
        store.add_candidates("two", [two])
        assert store.evaluations([two.id], KEY) == {two.id: label(two.id)}
    with Store(path) as again:
        assert again.paid("one") == 1


WORKER = """
import sys, time
from loop.store import OracleKey, Store
from loop.values import Evaluation
key = OracleKey("oracle@1", "settings")
store = Store(sys.argv[1])
for number in range(40):
    for structure_id in store.claim([f"s{number}"], key, campaign="one"):
        print(structure_id, flush=True)
        time.sleep(0.02)
        store.finish([Evaluation(structure_id, key.oracle, key.settings, "ok")])
"""


def test_two_processes_and_a_kill_lose_and_repeat_nothing(tmp_path):
    path = tmp_path / "campaign.db"
    Store(path).close()
    command = [sys.executable, "-c", WORKER, str(path)]
    root = Path(__file__).parents[1]
    victim, other = (subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(2))
    begun = [victim.stdout.readline().strip() for _ in range(5)]
    victim.send_signal(signal.SIGKILL)
    begun += victim.communicate()[0].split()
    done = other.communicate(timeout=120)[0].split()
    with Store(path) as store:
        ids = {f"s{number}" for number in range(40)}
        torn = ids - set(store.evaluations(sorted(ids), KEY))
        assert len(torn) <= 1  # at most the one it was at
        assert len(set(begun) & set(done)) <= 1  # which the other one may have taken over and computed again
        assert set(store.claim(sorted(torn), KEY)) == torn  # free for the taking
        assert store.paid("one") == 40 - len(torn)


def test_claims_of_other_machines_end_after_a_day(store, tmp_path, monkeypatch):
    store.worker = "elsewhere|1|0.00|abcd"
    store.claim(["a"], KEY)
    other = Store(tmp_path / "campaign.db")
    assert other.claim(["a"], KEY) == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    assert other.claim(["a"], KEY) == ["a"]


def test_a_reused_process_number_is_not_taken_for_the_old_process():
    mine = worker_id()
    assert worker_is_alive(mine)
    host, pid, started, nonce = mine.split("|")
    assert worker_is_alive(f"{host}|{pid}|{float(started) - 100:.2f}|{nonce}") is False
    assert worker_is_alive(f"elsewhere|{pid}|{started}|{nonce}") is None


@pytest.mark.parametrize(
    ("where", "message"),
    [
        pytest.param("garbage.db", "cannot be read: file is not a database", id="damaged"),
        pytest.param("foreign.db", "is no ledger", id="foreign"),
        pytest.param("newer.db", "schema version 99", id="newer"),
        pytest.param("folder", "is a folder", id="folder"),
        pytest.param("garbage.db/x/campaign.db", "cannot be made", id="no-folder"),
        pytest.param("postgresql+nodriver://user:hunter2@host/name", r"user:\*\*\*@host", id="driver"),
        pytest.param("user:hunter2@://name", "expected sqlite:///path", id="url"),
    ],
)
def test_what_cannot_be_opened_is_one_clear_message_without_a_password(tmp_path, where, message):
    (tmp_path / "garbage.db").write_bytes(b"no database" * 1000)
    (tmp_path / "folder").mkdir()
    for name, statement in {
        "foreign.db": "CREATE TABLE events (x)",
        "newer.db": "CREATE TABLE loop_meta (key, value)",
    }.items():
        with sqlite3.connect(tmp_path / name) as connection:
            connection.execute(statement)
            if name == "newer.db":
                connection.execute("INSERT INTO loop_meta VALUES ('schema_version', '99')")
    with pytest.raises(StoreError, match=message) as caught:
        Store(where if "://" in where else tmp_path / where)
    assert "hunter2" not in str(caught.value)


def test_a_missing_ledger_is_not_made_when_it_should_exist(tmp_path):
    with pytest.raises(StoreError, match="There is no ledger"):
        Store(tmp_path / "campaign.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_ledger_that_is_refused_leaves_no_connection_open(tmp_path):
    """A process that is forked with an SQLite connection believes to hold its locks: others then delete its WAL."""
    import gc

    import psutil

    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute("create table something (a)")
        other.commit()
    gc.disable()
    try:
        with pytest.raises(StoreError, match="is no ledger"):
            Store(path, create=False)
        assert not [file for file in psutil.Process().open_files() if file.path.startswith(str(path))]
    finally:
        gc.enable()
