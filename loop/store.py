"""The ledger: append-only events, candidates, and evaluations that are never paid for twice.

SQLite in WAL mode by default, PostgreSQL (or anything SQLAlchemy knows) by URL. Several processes, campaigns and
machines may share one ledger. An evaluation is keyed by (structure id, oracle, settings hash): it is *claimed* before
it starts and *finished* with its result, in one transaction each, so a process that dies leaves a claim that others
take over, and never a half label.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil
import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from loop.errors import StoreError
from loop.values import Candidate, Evaluation

SCHEMA_VERSION = 1
BUSY_SECONDS = 60.0  # how long a writer waits for another one
FOREIGN_CLAIM_SECONDS = (
    24 * 3600.0
)  # a claim from another machine, whose processes cannot be looked up, is given up then
_BATCH = 400  # rows per statement: below SQLite's oldest limit of 999 bound variables

_TABLES = sa.MetaData()
_META = sa.Table("loop_meta", _TABLES, sa.Column("key", sa.String(64), primary_key=True), sa.Column("value", sa.Text))
_EVENTS = sa.Table(
    "events",
    _TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("campaign", sa.String(128), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("stage", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
)
_CANDIDATES = sa.Table(
    "candidates",
    _TABLES,
    sa.Column("campaign", sa.String(128), primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("value", sa.Text, nullable=False),  # Candidate as JSON: structure, origin, round
)
_EVALUATIONS = sa.Table(
    "evaluations",
    _TABLES,
    sa.Column("structure_id", sa.String(64), primary_key=True),
    sa.Column("oracle", sa.String(128), primary_key=True),
    sa.Column("settings", sa.String(64), primary_key=True),
    sa.Column("status", sa.String(64), nullable=False),  # "claimed", then the status of the Evaluation
    sa.Column("worker", sa.String(256), nullable=False),
    sa.Column("campaign", sa.String(128), nullable=False),  # who pays
    sa.Column("claimed", sa.Float, nullable=False),
    sa.Column("finished", sa.Float),
    sa.Column("value", sa.Text),  # Evaluation as JSON
)
_CLAIMED = "claimed"


@dataclass(frozen=True)
class Event:
    """One line of the ledger."""

    campaign: str
    round: int
    stage: str
    kind: str
    payload: dict[str, Any]
    time: float  # seconds since the epoch


@dataclass(frozen=True)
class OracleKey:
    """What, besides the structure, identifies an evaluation."""

    oracle: str  # name@version
    settings: str  # hash of everything that changes the result


def worker_id() -> str:
    """``host|pid|start time|random``: enough for another process of the same host to see whether this one lives."""
    return f"{socket.gethostname()}|{os.getpid()}|{psutil.Process().create_time():.2f}|{uuid.uuid4().hex[:8]}"


def worker_is_alive(worker: str) -> bool | None:
    """Whether the process behind a `worker_id` still runs; None if it belongs to another host."""
    host, pid, started, _ = worker.rsplit("|", 3)
    if host != socket.gethostname():
        return None
    try:
        process = psutil.Process(int(pid))
        # a pid may be given to a new process, which then started later; a zombie does no work
        return abs(process.create_time() - float(started)) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Store:
    """A ledger. Thread-safe; open it once per process.

    Args:
        where: a file path (SQLite), or a database URL such as ``postgresql+psycopg://user:password@host/name``.
        create: make the file and the tables if they are absent; else their absence is an error.

    Raises:
        StoreError: the file is damaged, the folder not writable, the schema of another version, the server
            unreachable.
    """

    def __init__(self, where: str | Path, *, create: bool = True) -> None:
        self.url = _as_url(where)
        self.worker = worker_id()
        path = Path(self.url.database) if self._is_sqlite and self.url.database else None
        if path is not None:
            _check_file(path, create)
        try:
            self._engine = _engine(self.url)
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(f"The ledger {self.name} cannot be used: {_reason(error)}") from error
        self._open_schema(create)

    @property
    def name(self) -> str:
        """The URL without its password, or the file path."""
        return str(self.url.database) if self._is_sqlite else self.url.render_as_string(hide_password=True)

    @property
    def _is_sqlite(self) -> bool:
        return self.url.get_backend_name() == "sqlite"

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # events -----------------------------------------------------------------------------------------------------------

    def append(self, campaign: str, round: int, stage: str, kind: str, payload: dict[str, Any]) -> None:
        """Write one event; it is on disk when this returns."""
        row = {"campaign": campaign, "round": round, "stage": stage, "kind": kind}
        with self._write() as connection:
            connection.execute(_EVENTS.insert(), {**row, "payload": json.dumps(payload), "time": time.time()})

    def events(self, campaign: str) -> list[Event]:
        """All events of a campaign, in the order of writing."""
        query = sa.select(_EVENTS).where(_EVENTS.c.campaign == campaign).order_by(_EVENTS.c.id)
        with self._read() as connection:
            rows = connection.execute(query).mappings().all()
        return [
            Event(row["campaign"], row["round"], row["stage"], row["kind"], self._json(row["payload"]), row["time"])
            for row in rows
        ]

    def campaigns(self) -> list[str]:
        """Names of the campaigns in this ledger."""
        with self._read() as connection:
            return list(
                connection.execute(sa.select(_EVENTS.c.campaign).distinct().order_by(_EVENTS.c.campaign)).scalars()
            )

    # candidates -------------------------------------------------------------------------------------------------------

    def add_candidates(self, campaign: str, candidates: Sequence[Candidate]) -> None:
        """Keep candidates; one that the campaign has already keeps its first origin and round."""
        unique = {candidate.id: candidate for candidate in candidates}
        rows = [
            {"campaign": campaign, "id": key, "round": candidate.round, "value": json.dumps(candidate.to_dict())}
            for key, candidate in unique.items()
        ]
        with self._write() as connection:
            for chunk in _chunks(rows):
                connection.execute(self._insert_new(_CANDIDATES), chunk)

    def candidates(self, campaign: str) -> dict[str, Candidate]:
        """All candidates that a campaign kept, by id."""
        query = sa.select(_CANDIDATES.c.id, _CANDIDATES.c.value).where(_CANDIDATES.c.campaign == campaign)
        with self._read() as connection:
            rows = connection.execute(query).all()
        return {key: Candidate.from_dict(self._json(value)) for key, value in rows}

    # evaluations ------------------------------------------------------------------------------------------------------

    def claim(self, ids: Sequence[str], key: OracleKey, *, campaign: str = "") -> list[str]:
        """Reserve evaluations for this store object; returns the ids it got, which it must `finish` or `release`.

        Not given: what is finished already (failures included: they are retried only under other settings) and what
        a living process has claimed. Claims of dead processes of this host are taken over; those of other hosts after
        `FOREIGN_CLAIM_SECONDS`.
        """
        now = time.time()
        mine = {"worker": self.worker, "campaign": campaign, "claimed": now, "status": _CLAIMED}
        got = set()
        with self._write() as connection:
            for structure_id in sorted(set(ids)):  # all in one order: two workers cannot wait for each other
                row = {"structure_id": structure_id, "oracle": key.oracle, "settings": key.settings, **mine}
                insert = self._insert_new(_EVALUATIONS).returning(_EVALUATIONS.c.structure_id)
                if connection.execute(insert, row).first() is not None:
                    got.add(structure_id)
                    continue
                where = _where(structure_id, key)
                held = connection.execute(sa.select(_EVALUATIONS).where(where).with_for_update()).mappings().one()
                if held["status"] == _CLAIMED and _is_stale(held["worker"], held["claimed"], now):
                    connection.execute(_EVALUATIONS.update().where(where).values(**mine))
                    got.add(structure_id)
        return [structure_id for structure_id in dict.fromkeys(ids) if structure_id in got]

    def finish(self, evaluations: Sequence[Evaluation]) -> None:
        """Write results of claimed evaluations, all or none.

        Raises:
            StoreError: one of them is not claimed by this store object (its claim was taken over, or never made).
        """
        with self._write() as connection:
            for evaluation in evaluations:
                where = _where(evaluation.candidate_id, OracleKey(evaluation.oracle, evaluation.settings))
                done = {"status": evaluation.status, "finished": time.time(), "value": json.dumps(evaluation.to_dict())}
                claimed = sa.and_(where, _EVALUATIONS.c.status == _CLAIMED, _EVALUATIONS.c.worker == self.worker)
                if connection.execute(_EVALUATIONS.update().where(claimed).values(**done)).rowcount != 1:
                    raise StoreError(
                        f"The label of {evaluation.candidate_id} by {evaluation.oracle} was not claimed here, "
                        "or another one took the claim over; it is not written a second time."
                    )

    def release(self, ids: Sequence[str], key: OracleKey) -> None:
        """Give claims back unfinished (what this store object does not hold is left alone)."""
        held = sa.and_(_EVALUATIONS.c.status == _CLAIMED, _EVALUATIONS.c.worker == self.worker)
        with self._write() as connection:
            for structure_id in ids:
                connection.execute(_EVALUATIONS.delete().where(sa.and_(_where(structure_id, key), held)))

    def evaluations(self, ids: Sequence[str], key: OracleKey) -> dict[str, Evaluation]:
        """Finished evaluations of these structures, by structure id; the unfinished are absent."""
        found: dict[str, Evaluation] = {}
        table = _EVALUATIONS.c
        with self._read() as connection:
            for chunk in _chunks(list(dict.fromkeys(ids))):
                query = sa.select(table.structure_id, table.value).where(
                    table.oracle == key.oracle,
                    table.settings == key.settings,
                    table.value.is_not(None),
                    table.structure_id.in_(chunk),
                )
                for structure_id, value in connection.execute(query):
                    found[structure_id] = Evaluation.from_dict(self._json(value))
        return found

    def paid(self, campaign: str) -> int:
        """How many finished evaluations a campaign paid for itself (those it found in the ledger cost nothing)."""
        table = _EVALUATIONS.c
        query = sa.select(sa.func.count()).where(table.campaign == campaign, table.value.is_not(None))
        with self._read() as connection:
            return int(connection.execute(query).scalar_one())

    # internals --------------------------------------------------------------------------------------------------------

    def _insert_new(self, table: sa.Table) -> Any:
        """INSERT that leaves an existing row alone."""
        if self._is_sqlite:
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        return insert(table).on_conflict_do_nothing()

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except DBAPIError as error:
            raise StoreError(f"The ledger {self.name} cannot be read: {_reason(error)}") from error

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(loop_write=True) as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise StoreError(f"The ledger {self.name} cannot be written: {_reason(error)}") from error

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise StoreError(f"The ledger {self.name} holds a damaged row: {error}") from error

    def _open_schema(self, create: bool) -> None:
        with self._read() as connection:
            names = set(sa.inspect(connection).get_table_names())
        if _META.name not in names:
            if names & set(_TABLES.tables) or not create:
                raise StoreError(f"{self.name} is no ledger of discovery-loop: its table {_META.name!r} is missing.")
            with self._write() as connection:  # two processes may do this at once: every statement is "if not exists"
                for table in _TABLES.sorted_tables:
                    connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
                    for index in table.indexes:
                        connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))
                version = {"key": "schema_version", "value": str(SCHEMA_VERSION)}
                connection.execute(self._insert_new(_META), version)
        with self._read() as connection:
            found = connection.execute(sa.select(_META.c.value).where(_META.c.key == "schema_version")).scalar()
        if found != str(SCHEMA_VERSION):
            raise StoreError(
                f"The ledger {self.name} has schema version {found}, this program writes version {SCHEMA_VERSION}: "
                "use the program version that made it, or a new ledger."
            )


def _as_url(where: str | Path) -> URL:
    text = str(where)
    if "://" not in text:
        return URL.create("sqlite", database=str(Path(text).expanduser()))
    try:
        return make_url(text)
    except SQLAlchemyError:
        # the text may hold a password: it is not repeated
        raise StoreError(
            "The ledger's URL cannot be read: expected sqlite:///path or postgresql+psycopg://user:password@host/name."
        ) from None


def _check_file(path: Path, create: bool) -> None:
    if not path.exists() and not create:
        raise StoreError(f"There is no ledger {path}: expected a campaign.db made by `discovery-loop run`.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder {path.parent} cannot be made: {error.strerror or error}") from error
    if path.is_dir():
        raise StoreError(f"The ledger {path} is a folder, expected a file.")
    if not os.access(path.parent, os.W_OK) or (path.exists() and not os.access(path, os.R_OK | os.W_OK)):
        raise StoreError(f"The ledger {path} cannot be written: SQLite needs write access to the file and its folder.")


def _engine(url: URL) -> sa.Engine:
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": BUSY_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a label may have cost hours: it survives a power cut as well

    @sa.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # a writer takes the lock at once: upgrading a read transaction would fail instead of waiting
        write = connection.get_execution_options().get("loop_write")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _reason(error: BaseException) -> str:
    """First line of the driver's message; drivers do not repeat passwords, but SQLAlchemy's own text may hold data."""
    original = getattr(error, "orig", None) or error
    return (str(original).strip().splitlines() or [type(original).__name__])[0]


def _where(structure_id: str, key: OracleKey) -> sa.ColumnElement[bool]:
    table = _EVALUATIONS.c
    return sa.and_(table.structure_id == structure_id, table.oracle == key.oracle, table.settings == key.settings)


def _is_stale(worker: str, claimed: float, now: float) -> bool:
    alive = worker_is_alive(worker)
    return now - claimed > FOREIGN_CLAIM_SECONDS if alive is None else not alive


def _chunks(rows: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]
