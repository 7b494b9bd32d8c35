"""What a long command has finished, beside its output, so that a killed one resumes instead of starting over.

Each finished crystal is a line of ``<output>.partial.jsonl``, on disk before the next one is begun. The first line says
with what settings. Once the output is complete the file is deleted.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from loop.errors import ConfigError, InputError
from loop.io.disk import writing
from loop.io.files import make_folder, write_text

ENDING = ".partial.jsonl"


class Journal:
    """Finished results by key; a context manager that deletes the file when left without an error.

    Args:
        output: what the command writes in the end.
        settings: everything that changes a result, JSON-ready.

    Raises:
        InputError: the file was begun with other settings, belongs to a running process, or cannot be written.
    """

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        self.path = output.with_name(output.name + ENDING)
        self.done: dict[str, dict[str, Any]] = {}
        make_folder(output.parent)
        try:
            self._file = self.path.open("a+b")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise InputError(f"{output} is being written by another process: wait, or choose another name.") from error
        except OSError as error:
            raise InputError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        try:
            self._read(json.loads(json.dumps({"settings": settings}, default=str)))
        except BaseException:
            self._file.close()
            raise
        self.found = len(self.done)

    def write(self, key: str, result: dict[str, Any]) -> None:
        """Keep a result; it is on disk when this returns."""
        self.done[key] = result
        self._append({"key": key, "result": result})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()
        if kind is None:
            self.path.unlink(missing_ok=True)

    def _read(self, head: dict[str, Any]) -> None:
        self._file.seek(0)
        lines = self._file.read().split(b"\n")
        kept = 0  # bytes of whole lines
        for number, line in enumerate(lines[:-1]):  # what follows the last line feed was torn by a kill
            try:
                entry = json.loads(line)
            except ValueError:
                break
            if number == 0 and entry != head:
                raise InputError(
                    f"{self.path} holds unfinished results with other settings (or of another potential): repeat that "
                    "command to continue with them, delete the file, or choose another output."
                )
            if number > 0:
                self.done[entry["key"]] = entry["result"]
            kept += len(line) + 1
        self._file.truncate(kept)
        if kept == 0:
            self._append(head)

    def _append(self, entry: dict[str, Any]) -> None:
        with writing(self.path):
            self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())


def same_settings(path: Path, settings: Mapping[str, Any], output: Path, holds: str, *, exact: bool = False) -> None:
    """Refuse to continue in a folder what was begun with other settings, and keep these beside it.

    Args:
        path: JSON file that keeps them.
        settings: those on which what is in the folder depends.
        output: the folder, as the user named it.
        holds: what it holds, up to the names of the settings: "arms with other settings of".
        exact: settings that are kept and exist no more count as changed, too.

    Raises:
        ConfigError: names the settings that differ.
    """
    ours = json.loads(json.dumps(settings, default=str))
    if path.exists():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in ({**theirs, **ours} if exact else ours) if ours.get(key) != theirs.get(key)]
        if changed:
            raise ConfigError(f"{output} holds {holds} {', '.join(changed)}: choose another folder")
    write_text(path, json.dumps(ours, indent=1) + "\n")
