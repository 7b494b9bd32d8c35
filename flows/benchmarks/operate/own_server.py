"""A Prefect server of a benchmark's own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def prefect_server(folder: Path, wanted: bool) -> Iterator[None]:
    """A Prefect server of this benchmark's own, on the loopback address."""
    if not wanted:
        yield
        return
    from flows import server

    with socket.socket() as probe:
        probe.bind((server.HOST, 0))
        port = probe.getsockname()[1]
    here = server.Local(folder / "server", port)
    here.home.mkdir(parents=True)
    before = os.environ.copy()
    process = server.start(here, "server", "prefect", "server", "start", "--host", server.HOST, "--port", str(port))
    try:
        server.wait_for(lambda: server.healthy(here.api), process, here.home / "server.log", "the Prefect server")
        os.environ.update({"PREFECT_HOME": str(here.home), "PREFECT_API_URL": here.api})
        os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.end(server.read_state(here.state)["processes"]["server"])
