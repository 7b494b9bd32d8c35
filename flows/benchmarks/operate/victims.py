"""Processes that `benchmark resume` kills: of workers here, of Slurm's jobs, of the database."""

from __future__ import annotations

from contextlib import suppress
from multiprocessing.process import BaseProcess

import psutil
import sqlalchemy as sa

from loop.database import as_url

WORKER = "distributed.cli.dask_worker"  # how the jobs of dask-jobqueue call theirs


def workers_of(process: BaseProcess) -> list[int]:
    """Processes that label for a campaign's process."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [member.pid for member in family if "spawn_main" in command_of(member)]


def command_of(process: psutil.Process) -> str:
    """How a process was called; nothing where it has ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def backends(url: str) -> list[int]:
    """Processes of the database that serve a campaign."""
    engine = sa.create_engine(as_url(url), poolclass=sa.NullPool)
    query = "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    query += " and backend_type = 'client backend'"
    with suppress(sa.exc.SQLAlchemyError), engine.connect() as connection:
        return list(connection.execute(sa.text(query)).scalars())
    return []


def workers_of_jobs(process: BaseProcess) -> list[int]:
    """Dask workers in Slurm's jobs on this machine that belong to a campaign's process: they know its scheduler."""
    ports = listening(process)
    every = [(member.pid, command_of(member)) for member in psutil.process_iter()]
    return [pid for pid, command in every if WORKER in command and any(f":{port} " in command for port in ports)]


def listening(process: BaseProcess) -> set[int]:
    """Ports at which a campaign's process listens."""
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid).net_connections()
        return {item.laddr.port for item in found if item.status == psutil.CONN_LISTEN}
    return set()
