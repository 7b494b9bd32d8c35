"""Packages as an installer leaves them in a folder: a module and its metadata, entry points included."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def install(folder: Path, name: str, module: str, code: str, entries: Mapping[str, Mapping[str, str]]) -> None:
    """Put version 1.0 of a package into a folder; `entries`: names and targets by group, without its prefix."""
    (folder / f"{module}.py").write_text(code, encoding="utf-8")
    info = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    lines = [
        line
        for group, targets in entries.items()
        for line in (f"[discovery_loop.{group}]", *(f"{name} = {target}" for name, target in targets.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
