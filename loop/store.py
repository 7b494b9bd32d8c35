"""The ledger: append-only events, candidates, and evaluations that are never paid for twice.

SQLite in WAL mode by default, PostgreSQL (or anything SQLAlchemy knows) by URL. Several processes, campaigns and
machines may share one ledger. An evaluation is keyed by (crystal, oracle, settings hash): it is *claimed* before it
starts and *finished* with its result, in one transaction each, so a process that dies leaves a claim that others take
over, and never a half label. Candidates that describe one crystal (`loop.identity`) share its key: that of the first
description that the ledger met. Callers keep to their own ids throughout.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from loop import database as db
from loop.errors import StoreError
from loop.identity import Identity, find
from loop.values import Candidate, Evaluation
from loop.workers import worker_id, worker_is_alive

FOREIGN_CLAIM_SECONDS = 24 * 3600.0  # then a claim from another machine, whose processes nobody here sees, is given up
_BATCH = 400  # rows per statement: below SQLite's oldest limit of 999 bound variables
_CLAIMED = "claimed"
_IDENTITY_LOCK = 7140613  # any number: two processes must not both meet a crystal for the first time


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


@dataclass(frozen=True)
class OracleCost:
    """What a campaign paid to one oracle."""

    oracle: str
    labels: int
    usable: int  # of them with status ok
    seconds: float
    core_hours: float


class Store:
    """A ledger. Thread-safe; open it once per process.

    Args:
        where: a file path (SQLite), or a database URL such as ``postgresql+psycopg://user:password@host/name``.
        create: make file and tables if absent; else their absence is an error, and read access is enough to look.
        worker: the `worker_id` of another store object, in whose name this one writes; None: its own.

    Raises:
        StoreError: the file is damaged, the folder not writable, the schema of another version, the server
            unreachable.
    """

    def __init__(self, where: str | Path, *, create: bool = True, worker: str | None = None) -> None:
        self.url = db.as_url(where)
        self.worker = worker or worker_id()
        path = Path(self.url.database) if self._is_sqlite and self.url.database else None
        self._read_only = path is not None and db.check_file(path, create)
        try:
            self._engine = db.engine(self.url, self._read_only)
        except (SQLAlchemyError, ImportError) as error:
            raise StoreError(f"The ledger {self.name} cannot be used: {db.reason(error)}") from error
        try:
            self._open_schema(create)
        except BaseException:  # a connection left open would be inherited by processes that are forked later
            self._engine.dispose()
            raise

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
            connection.execute(db.EVENTS.insert(), {**row, "payload": json.dumps(payload), "time": time.time()})

    def events(self, campaign: str) -> list[Event]:
        """All events of a campaign, in the order of writing."""
        query = sa.select(db.EVENTS).where(db.EVENTS.c.campaign == campaign).order_by(db.EVENTS.c.id)
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
                connection.execute(sa.select(db.EVENTS.c.campaign).distinct().order_by(db.EVENTS.c.campaign)).scalars()
            )

    # candidates -------------------------------------------------------------------------------------------------------

    def add_candidates(self, campaign: str, candidates: Sequence[Candidate]) -> None:
        """Keep candidates; one that the campaign has already keeps its first origin and round."""
        unique = {candidate.id: candidate for candidate in candidates}
        self._identify(unique)
        rows = [
            {"campaign": campaign, "id": key, "round": candidate.round, "value": json.dumps(candidate.to_dict())}
            for key, candidate in unique.items()
        ]
        with self._write() as connection:
            for chunk in _chunks(rows):
                connection.execute(self._insert_new(db.CANDIDATES), chunk)

    def candidates(self, campaign: str) -> dict[str, Candidate]:
        """All candidates that a campaign kept, by id."""
        query = sa.select(db.CANDIDATES.c.id, db.CANDIDATES.c.value).where(db.CANDIDATES.c.campaign == campaign)
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
        keys, got = self.keys(ids), set()
        with self._write() as connection:
            for structure_id in sorted(set(keys.values())):  # all in one order: two workers cannot wait for each other
                row = {"structure_id": structure_id, "oracle": key.oracle, "settings": key.settings, **mine}
                insert = self._insert_new(db.EVALUATIONS).returning(db.EVALUATIONS.c.structure_id)
                if connection.execute(insert, row).first() is not None:
                    got.add(structure_id)
                    continue
                where = _where(structure_id, key)
                held = connection.execute(sa.select(db.EVALUATIONS).where(where).with_for_update()).mappings().one()
                if held["status"] == _CLAIMED and _is_stale(held["worker"], held["claimed"], now):
                    connection.execute(db.EVALUATIONS.update().where(where).values(**mine))
                    got.add(structure_id)
        # of several descriptions of one crystal the first one asked for computes it
        first = {key: name for name, key in reversed(keys.items())}
        return [name for name, key in keys.items() if key in got and first[key] == name]

    def finish(self, evaluations: Sequence[Evaluation]) -> None:
        """Write results of claimed evaluations, all or none.

        Raises:
            StoreError: one of them is not claimed by this store object (its claim was taken over, or never made).
        """
        keys = self.keys([evaluation.candidate_id for evaluation in evaluations])
        with self._write() as connection:
            for evaluation in evaluations:
                where = _where(keys[evaluation.candidate_id], OracleKey(evaluation.oracle, evaluation.settings))
                done = {"status": evaluation.status, "finished": time.time(), "value": json.dumps(evaluation.to_dict())}
                claimed = sa.and_(where, db.EVALUATIONS.c.status == _CLAIMED, db.EVALUATIONS.c.worker == self.worker)
                if connection.execute(db.EVALUATIONS.update().where(claimed).values(**done)).rowcount != 1:
                    raise StoreError(
                        f"The label of {evaluation.candidate_id} by {evaluation.oracle} was not claimed here, "
                        "or another one took the claim over; it is not written a second time."
                    )

    def extend(self, evaluations: Sequence[Evaluation]) -> None:
        """Add to finished evaluations what was measured later; what is there stays. All or none.

        Raises:
            StoreError: one of them is not finished, or holds a property already.
        """
        keys = self.keys([evaluation.candidate_id for evaluation in evaluations])
        with self._write() as connection:
            for more in evaluations:
                where = _where(keys[more.candidate_id], OracleKey(more.oracle, more.settings))
                query = sa.select(db.EVALUATIONS.c.value).where(where).with_for_update()
                text = connection.execute(query).scalar()
                if text is None:
                    raise StoreError(f"There is no label of {more.candidate_id} by {more.oracle} to add to.")
                whole = Evaluation.from_dict(self._json(text)).joined(more)
                connection.execute(db.EVALUATIONS.update().where(where).values(value=json.dumps(whole.to_dict())))

    def release(self, ids: Sequence[str], key: OracleKey) -> None:
        """Give claims back unfinished (what this store object does not hold is left alone)."""
        held = sa.and_(db.EVALUATIONS.c.status == _CLAIMED, db.EVALUATIONS.c.worker == self.worker)
        with self._write() as connection:
            for structure_id in self.keys(ids).values():
                connection.execute(db.EVALUATIONS.delete().where(sa.and_(_where(structure_id, key), held)))

    def evaluations(self, ids: Sequence[str], key: OracleKey) -> dict[str, Evaluation]:
        """Finished evaluations of these structures, by structure id; the unfinished are absent."""
        found: dict[str, Evaluation] = {}
        table, keys = db.EVALUATIONS.c, self.keys(ids)
        with self._read() as connection:
            for chunk in _chunks(list(dict.fromkeys(keys.values()))):
                query = sa.select(table.structure_id, table.value).where(
                    table.oracle == key.oracle,
                    table.settings == key.settings,
                    table.value.is_not(None),
                    table.structure_id.in_(chunk),
                )
                for structure_id, value in connection.execute(query):
                    found[structure_id] = Evaluation.from_dict(self._json(value))
        return {name: replace(found[key], candidate_id=name) for name, key in keys.items() if key in found}

    def keys(self, ids: Sequence[str]) -> dict[str, str]:
        """Key of the crystal behind each id, in their order; an id never kept as a candidate is its own key."""
        keys = {structure_id: structure_id for structure_id in ids}
        with self._read() as connection:
            for chunk in _chunks(list(keys)):
                query = sa.select(db.STRUCTURES.c.id, db.STRUCTURES.c.key).where(db.STRUCTURES.c.id.in_(chunk))
                keys |= {row.id: row.key for row in connection.execute(query)}
        return keys

    def paid(self, campaign: str, key: OracleKey | None = None) -> int:
        """Finished evaluations, of one oracle or all, that a campaign paid for (those found in the ledger are free)."""
        table = db.EVALUATIONS.c
        query = sa.select(sa.func.count()).where(table.campaign == campaign, table.value.is_not(None))
        if key is not None:
            query = query.where(table.oracle == key.oracle, table.settings == key.settings)
        with self._read() as connection:
            return int(connection.execute(query).scalar_one())

    def costs(self, campaign: str) -> list[OracleCost]:
        """What a campaign paid, oracle by oracle; an evaluation's seconds count on each of its cores."""
        table = db.EVALUATIONS.c
        query = sa.select(table.value).where(table.campaign == campaign, table.value.is_not(None))
        with self._read() as connection:
            paid = [Evaluation.from_dict(self._json(value)) for value in connection.execute(query).scalars()]
        tiers: dict[str, list[Evaluation]] = {}
        for evaluation in paid:
            tiers.setdefault(evaluation.oracle, []).append(evaluation)
        return [
            OracleCost(
                oracle=oracle,
                labels=len(labels),
                usable=sum(label.ok for label in labels),
                seconds=sum(label.cost.seconds for label in labels),
                core_hours=sum(label.cost.seconds * label.cost.cores for label in labels) / 3600,
            )
            for oracle, labels in sorted(tiers.items())
        ]

    # internals --------------------------------------------------------------------------------------------------------

    def _identify(self, candidates: dict[str, Candidate]) -> None:
        """Note which crystal each candidate is: one that the ledger has met, or a new one."""
        known = self._identified(list(candidates))
        identities = {name: Identity.of(c.structure) for name, c in candidates.items() if name not in known}
        if not identities:
            return
        with self._write() as connection:
            if not self._is_sqlite:  # SQLite's write transactions are alone anyway
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_IDENTITY_LOCK)))
            for name, identity in identities.items():
                key = None if identity is None else self._met(connection, identity)
                row = {"id": name, "key": key or name, "family": "", "value": None}
                if identity is not None and key is None:
                    row |= {"family": identity.family, "value": identity.to_json()}
                connection.execute(self._insert_new(db.STRUCTURES), row)

    def _identified(self, ids: list[str]) -> set[str]:
        with self._read() as connection:
            queries = [sa.select(db.STRUCTURES.c.id).where(db.STRUCTURES.c.id.in_(chunk)) for chunk in _chunks(ids)]
            return {name for query in queries for name in connection.execute(query).scalars()}

    def _met(self, connection: Connection, identity: Identity) -> str | None:
        """Key of an equal crystal in the ledger."""
        query = sa.select(db.STRUCTURES.c.key, db.STRUCTURES.c.value).where(db.STRUCTURES.c.family == identity.family)
        rows = connection.execute(query.order_by(db.STRUCTURES.c.key)).all()
        return find(identity, ((key, Identity(**self._json(value))) for key, value in rows if value))

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
            raise StoreError(f"The ledger {self.name} cannot be read: {db.reason(error)}") from error

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(loop_write=True) as connection, connection.begin():
                yield connection
        except DBAPIError as error:
            raise StoreError(f"The ledger {self.name} cannot be written: {db.reason(error)}") from error

    def _json(self, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise StoreError(f"The ledger {self.name} holds a damaged row: {error}") from error

    def _open_schema(self, create: bool) -> None:
        with self._read() as connection:
            names = set(sa.inspect(connection).get_table_names())
        if db.META.name not in names:
            if names & set(db.TABLES.tables) or not create:
                raise StoreError(f"{self.name} is no ledger of discovery-loop: its table {db.META.name!r} is missing.")
            with self._write() as connection:
                self._make_tables(connection)
                version = {"key": "schema_version", "value": str(db.SCHEMA_VERSION)}
                connection.execute(self._insert_new(db.META), version)
        if self._schema_version() == "1":
            self._upgrade()
        if (found := self._schema_version()) != str(db.SCHEMA_VERSION):
            raise StoreError(
                f"The ledger {self.name} has schema version {found}, this program writes version {db.SCHEMA_VERSION}: "
                "use the program version that made it, or a new ledger."
            )

    def _make_tables(self, connection: Connection) -> None:
        """Make what is absent; two processes may do this at once: every statement is "if not exists"."""
        for table in db.TABLES.sorted_tables:
            connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))

    def _schema_version(self) -> str | None:
        with self._read() as connection:
            return connection.execute(sa.select(db.META.c.value).where(db.META.c.key == "schema_version")).scalar()

    def _upgrade(self) -> None:
        """From version 1 to 2: what was kept stays under its own id, so that no label changes hands."""
        if self._read_only:
            raise StoreError(f"The ledger {self.name} is of an older version and can only be read: copy it first.")
        with self._write() as connection:
            self._make_tables(connection)
            kept = sa.select(db.CANDIDATES.c.id, db.CANDIDATES.c.value).distinct()
            for name, value in connection.execute(kept).all():
                identity = Identity.of(Candidate.from_dict(self._json(value)).structure)
                row = {"id": name, "key": name, "family": "", "value": None}
                if identity is not None:
                    row |= {"family": identity.family, "value": identity.to_json()}
                connection.execute(self._insert_new(db.STRUCTURES), row)
            newest = db.META.update().where(db.META.c.key == "schema_version").values(value=str(db.SCHEMA_VERSION))
            connection.execute(newest)


def _where(structure_id: str, key: OracleKey) -> sa.ColumnElement[bool]:
    table = db.EVALUATIONS.c
    return sa.and_(table.structure_id == structure_id, table.oracle == key.oracle, table.settings == key.settings)


def _is_stale(worker: str, claimed: float, now: float) -> bool:
    alive = worker_is_alive(worker)
    return now - claimed > FOREIGN_CLAIM_SECONDS if alive is None else not alive


def _chunks(rows: list[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]
