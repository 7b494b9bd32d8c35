"""Reports in the browser: a web server on the loopback address that serves what a report consists of, nothing else."""

from __future__ import annotations

import os
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

REPORTS_VARIABLE = "DISCOVERY_LOOP_REPORTS"  # of a worker: address of the server, space, folder that it serves
HOST = "127.0.0.1"
GIVEN_OUT = (".html", ".cif", ".csv", ".json", ".svg", ".png")  # never the ledger, a policy or a log


class Handler(SimpleHTTPRequestHandler):
    """GET of the files of a report; no listing of folders."""

    def send_head(self):  # type: ignore[no-untyped-def]  # noqa: ANN201
        """Refuse everything but `GIVEN_OUT` inside the folder."""
        path, root = Path(self.translate_path(self.path)).resolve(), Path(self.directory).resolve()
        if path.suffix.lower() not in GIVEN_OUT or root not in path.parents or not path.is_file():
            self.send_error(404, "no such report")
            return None
        return super().send_head()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def address_of(report: Path) -> str | None:
    """Where a report can be opened in the browser; None where nobody serves it."""
    base, _, root = os.environ.get(REPORTS_VARIABLE, "").partition(" ")
    try:
        return f"{base}/{report.resolve().relative_to(Path(root).resolve()).as_posix()}" if base else None
    except ValueError:
        return None


def main() -> None:
    """Serve ``FOLDER`` at ``PORT`` until the process is ended."""
    folder, port = sys.argv[1:]
    ThreadingHTTPServer((HOST, int(port)), partial(Handler, directory=folder)).serve_forever()


if __name__ == "__main__":
    main()
