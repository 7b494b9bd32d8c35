"""The ledger's database: its tables, and how a path or a URL becomes an engine."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, make_url
from sqlalchemy.exc import SQLAlchemyError

from loop.errors import StoreError
from loop.io.disk import ADVICE

SCHEMA_VERSION = 2  # 2: table `structures`; a ledger of version 1 is brought up to date when it is opened
BUSY_SECONDS = 60.0  # how long a writer waits for another one

TABLES = sa.MetaData()
META = sa.Table("loop_meta", TABLES, sa.Column("key", sa.String(64), primary_key=True), sa.Column("value", sa.Text))
EVENTS = sa.Table(
    "events",
    TABLES,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("campaign", sa.String(128), nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("stage", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("time", sa.Float, nullable=False),
)
CANDIDATES = sa.Table(
    "candidates",
    TABLES,
    sa.Column("campaign", sa.String(128), primary_key=True),
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("value", sa.Text, nullable=False),  # Candidate as JSON: structure, origin, round
)
EVALUATIONS = sa.Table(
    "evaluations",
    TABLES,
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
STRUCTURES = sa.Table(
    "structures",
    TABLES,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(64), nullable=False),  # id of the first description of this crystal
    sa.Column("family", sa.String(256), nullable=False, index=True),  # what equal crystals share; "" for none
    sa.Column("value", sa.Text),  # Identity as JSON, of first descriptions
)


def as_url(where: str | Path) -> URL:
    """A file path or a database URL as SQLAlchemy's URL.

    Raises:
        StoreError: it is neither.
    """
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


def check_file(path: Path, create: bool) -> bool:
    """Make the folder of an SQLite file; returns whether the file can only be read, which is enough to look.

    Raises:
        StoreError: the file is absent or empty though it should be there, or cannot be read; or it should be made, and
            cannot be written.
    """
    if not create and not path.exists():
        raise StoreError(f"There is no ledger {path}: expected a campaign.db made by `discovery-loop run`.")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The folder {path.parent} cannot be made: {error.strerror or error}") from error
    if path.is_dir():
        raise StoreError(f"The ledger {path} is a folder, expected a file.")
    if not create and path.stat().st_size == 0:
        raise StoreError(f"The ledger {path} is empty: what it held is lost. Put a copy of it in its place.")
    writable = os.access(path.parent, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))
    if create and not writable:
        raise StoreError(f"The ledger {path} cannot be written: SQLite needs write access to the file and its folder.")
    if path.exists() and not os.access(path, os.R_OK):
        raise StoreError(f"The ledger {path} cannot be read: ask its owner for access.")
    return not writable


def engine(url: URL, read_only: bool = False) -> sa.Engine:
    """An engine; SQLite's writers wait for each other, and what they wrote survives a power cut."""
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, pool_pre_ping=True)
    if read_only:
        return sa.create_engine("sqlite://", creator=lambda: _look(Path(url.database or "")), poolclass=sa.NullPool)
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


def _look(path: Path) -> sqlite3.Connection:
    """A connection to a file that cannot be written, nor anything beside it.

    While somebody else writes there, what is not yet in the file itself is read from the log beside it. Where there is
    no log nobody writes, and SQLite is told so: else it would try to make one.
    """
    options = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
    return sqlite3.connect(f"file:{quote(str(path.absolute()))}?{options}", uri=True, timeout=BUSY_SECONDS)


HINTS = {
    "malformed": "it is damaged: put a copy of it in its place, or try SQLite's own `sqlite3 FILE .recover`",
    "not a database": "it is damaged or no ledger: put a copy of it in its place",
    "disk is full": ADVICE,
    "locked": "another process holds it: wait for it, then try again",
    "unable to open": "where folder and file can only be read, copy the folder (with campaign.db-wal) to look at it",
    "readonly": "the file and its folder can only be read",
}


def reason(error: BaseException) -> str:
    """First line of the driver's message, and what it means.

    Drivers do not repeat passwords, but SQLAlchemy's own text may hold data.
    """
    original = getattr(error, "orig", None) or error
    line = (str(original).strip().splitlines() or [type(original).__name__])[0]
    hint = next((hint for words, hint in HINTS.items() if words in line), "")
    return f"{line} ({hint})" if hint else line
