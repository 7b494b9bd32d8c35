"""Files that a killed process cannot leave half written, and the one-writer lock of a campaign folder."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from loop.errors import InputError, StoreError
from loop.io.disk import writing
from loop.values import Candidate
from loop.workers import worker_id, worker_is_alive

MARK = ".discovery-loop.json"  # in a folder: what this program wrote there
INDEX = "crystals.csv"  # of a folder of crystals: file, id and the other columns


def make_folder(path: Path) -> Path:
    """Make a folder that can be written.

    Raises:
        InputError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {path} cannot be made: {error.strerror or error}.") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"The folder {path} cannot be written: choose another one, or change its permissions.")
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all: a temporary beside it, flushed to disk, then renamed."""
    make_folder(path.parent)
    temporary = path.with_name(_temporary_name(path))
    try:
        with writing(path), temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with writing(path):
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """`write_bytes` in UTF-8."""
    write_bytes(path, text.encode())


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write a folder, which appears under its name only when complete and replaces an older one.

    For folders that are this program's own; for those that a user names, see `write_marked_folder`.
    """
    path = path.resolve()
    temporary, old = path.with_name(_temporary_name(path)), path.with_name(f".{path.name}.old")
    for leftover in (*_left_by_the_dead(path), old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        make_folder(temporary)
        with writing(path):
            fill(temporary)
            if path.exists():
                path.replace(old)
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def write_marked_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """`write_folder` with a mark that lists the files and their checksums, by which a later call knows them.

    Raises:
        InputError: an older folder holds something that this program did not write, which would be lost.
    """
    check_replaceable(path)

    def filled(folder: Path) -> None:
        fill(folder)
        files = {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}
        (folder / MARK).write_text(json.dumps({"written_by": "discovery-loop", "files": files}) + "\n")

    write_folder(path, filled)


def check_replaceable(path: Path) -> None:
    """Refuse to replace a folder that holds anything but what `write_marked_folder` put there.

    Raises:
        InputError: names what would be lost.
    """
    if path.exists() and not path.is_dir():
        raise InputError(f"{path} is a file, expected the name of a folder to write")
    known = marked_files(path)
    files = [file for file in sorted(path.rglob("*")) if not file.is_dir()] if path.is_dir() else []
    foreign = [str(file.relative_to(path)) for file in files if not _is_known(file, path, known)]
    if foreign:
        raise InputError(
            f"{path} holds files that this program did not write, or that were changed since "
            f"({', '.join(foreign[:3])}); they would be lost: give a new or empty folder"
        )


def _is_known(file: Path, folder: Path, known: dict[str, str]) -> bool:
    name = str(file.relative_to(folder))
    return (name == MARK and bool(known)) or (name in known and file.is_file() and sha256(file) == known[name])


def marked_files(folder: Path) -> dict[str, str]:
    """Files of a folder that `write_marked_folder` wrote, with their checksums; none without a mark."""
    try:
        return dict(json.loads((folder / MARK).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _temporary_name(path: Path) -> str:
    """Short, however long the name: a name that the file system takes can be written."""
    return f".{hashlib.sha256(path.name.encode()).hexdigest()[:12]}.{os.getpid()}.tmp"


def _left_by_the_dead(path: Path) -> list[Path]:
    """Half-written folders of this name whose writers no longer run, and this process's own."""
    start = _temporary_name(path).split(".")[1]
    found = [(item, item.name.split(".")[2]) for item in path.parent.glob(f".{start}.*.tmp")]
    return [
        item for item, pid in found if pid == str(os.getpid()) or not (pid.isdigit() and psutil.pid_exists(int(pid)))
    ]


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(what: Any) -> str:
    """Checksum of anything that JSON can hold, whatever the order of its keys; other things count as their text."""
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def write_candidates(path: Path, candidates: Sequence[Candidate]) -> None:
    """Keep candidates in a gzipped file of JSON lines."""
    lines = "".join(json.dumps(candidate.to_dict(), separators=(",", ":")) + "\n" for candidate in candidates)
    write_bytes(path, gzip.compress(lines.encode(), compresslevel=5, mtime=0))


def read_candidates(path: Path) -> list[Candidate]:
    """Inverse of `write_candidates`.

    Raises:
        StoreError: the file is missing or damaged.
    """
    try:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            return [Candidate.from_dict(json.loads(line)) for line in file]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"The pool {path} is missing or damaged ({error}): the campaign folder must hold what its ledger says. "
            "Restore the file, or start a new campaign on the same ledger (no label is paid for twice)."
        ) from error


@dataclass(frozen=True)
class Holder:
    """The process that holds the lock of a folder, or died with it."""

    host: str
    pid: str
    since: float  # seconds since the epoch
    alive: bool | None  # None: a process of another host, which nobody here sees


def holder(folder: Path) -> Holder | None:
    """Who works in a campaign folder, or was killed while it did; None where nobody holds it."""
    try:
        return _held(json.loads((folder / ".lock").read_text(encoding="utf-8") or "null"))
    except (OSError, ValueError, TypeError):
        return None  # never locked, or torn: its writer died while writing it


def _held(text: dict[str, Any] | None) -> Holder | None:
    if not isinstance(text, dict) or str(text.get("owner")).count("|") < 3:
        return None
    host, pid = str(text["owner"]).split("|")[:2]
    return Holder(host, pid, float(text.get("since", 0.0)), worker_is_alive(str(text["owner"])))


class FolderLock:
    """One writer a folder. The lock of a dead process is taken over, that of a living one is an error.

    Args:
        folder: the campaign folder; the lock is ``.lock`` in it.

    Raises:
        StoreError: another process writes here.
    """

    def __init__(self, folder: Path) -> None:
        self.path = make_folder(folder) / ".lock"
        self.owner = worker_id()
        with writing(self.path), self.path.open("a+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # held only while looking: two newcomers cannot both take over
            self._refuse_if_held(holder(folder))
            file.truncate(0)
            file.write(json.dumps({"owner": self.owner, "since": time.time()}))
        self._finalizer = weakref.finalize(self, _unlock, self.path, self.owner)

    def _refuse_if_held(self, found: Holder | None) -> None:
        if found is None or found.alive is False:
            return
        hint = "wait for it or stop it" if found.alive else f"if that machine no longer works on it, delete {self.path}"
        raise StoreError(
            f"The campaign in {self.path.parent} is being written by process {found.pid} on {found.host}: {hint}."
        )

    def release(self) -> None:
        """Let others write; calling it twice is fine."""
        self._finalizer()


def _unlock(path: Path, owner: str) -> None:
    try:
        with path.open("r+", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if owner in file.read():
                file.truncate(0)
    except OSError:
        pass  # the folder is gone: so is the lock
