"""Where this program keeps its own things: error logs, the local Prefect server's home."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def state_dir() -> Path:
    """A writable folder: $DISCOVERY_LOOP_HOME, else the user's XDG state folder, else a temporary one."""
    chosen = os.environ.get("DISCOVERY_LOOP_HOME")
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = Path(chosen) if chosen else Path(base) / "discovery-loop"
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        writable = False
    else:
        writable = os.access(path, os.W_OK)
    if not writable:
        path = Path(tempfile.gettempdir()) / f"discovery-loop-{os.getuid()}"
        path.mkdir(mode=0o700, exist_ok=True)
    return path
