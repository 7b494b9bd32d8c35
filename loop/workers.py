"""Processes by name, so that another process of the same host can see whether one still lives."""

from __future__ import annotations

import os
import socket
import uuid

import psutil


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
        same = bool(abs(process.create_time() - float(started)) < 1.0)
        return same and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
