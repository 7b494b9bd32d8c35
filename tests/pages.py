"""The pages of the documentation, and their commands run as a reader runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
PLUGIN = "docs/extending.md"  # its package has to be installed: tests/test_plugin.py runs it

# Beginnings of commands that cannot run where tests run, and why. All others run; these are parsed by test_readme.
ELSEWHERE = {
    "sudo apt-get install": "changes the operating system",
    "pip install": "needs a package index",
    "discovery-loop dft -i": "needs GPAW; tests marked dft run it",
    "discovery-loop run quickstart-dft": "needs GPAW; the line before validates it",
    "discovery-loop benchmark dft": "needs GPAW, and hours",
    "discovery-loop benchmark dielectric": "needs crystals with dielectric constants, which do not ship, and hours",
    "discovery-loop dft-inputs -i crystals.csv -o vasp": "needs atomate2",
    "prefect server start": "a server in the background that nothing ends; `discovery-loop up` starts the same",
    "prefect work-pool create": "needs that server",
    "prefect --no-prompt deploy": "needs that server",
    "prefect worker start": "works until it is ended",
}
COMMANDS = {
    "discovery-loop": f'exec "{sys.executable}" -m flows.cli "$@"',
    "prefect": f'exec "{sys.executable}" -m prefect "$@"',
    "python": f'exec "{sys.executable}" "$@"',
    # tests run within `make test`, and `make run` takes six minutes: targets and recipes are read, the recipes not run
    "make": f'unset MAKEFLAGS MFLAGS MAKELEVEL; exec "{shutil.which("make")}" --dry-run --directory "{ROOT}" "$@"',
}


def fences(page: str) -> list[tuple[str, str]]:
    """Language and text of each block of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(r"^```([^\n]*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def blocks(page: str, *languages: str) -> list[str]:
    """Texts of a page's blocks in these languages, in order."""
    return [block for language, block in fences(page) if language in languages]


def lines(block: str) -> list[str]:
    """The commands of a block, continued lines joined."""
    return block.replace("\\\n", " ").splitlines()


def runnable(block: str) -> str:
    """A block without what only runs elsewhere."""
    return "\n".join(line for line in lines(block) if not line.startswith(tuple(ELSEWHERE))) + "\n"


def shell(place: Path, *packages: Path) -> dict[str, str]:
    """Environment of a shell with this tree and packages of other folders installed; its commands lie in ``place``."""
    place.mkdir()
    for name, line in COMMANDS.items():
        (place / name).write_text(f"#!/bin/sh\n{line}\n")
        (place / name).chmod(0o755)
    path = os.pathsep.join([str(place), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *packages)))}


def walk(page: str, folder: Path, env: dict[str, str], *languages: str) -> str:
    """Run a page's blocks in order in one folder, as a reader types them; returns what they print."""
    told = ""
    for language, block in fences(page):
        if language not in languages:
            continue
        command = (
            [sys.executable, "-c", block]
            if language == "python"
            else ["bash", "-euo", "pipefail", "-c", runnable(block)]
        )
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, f"{page}:\n{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        told += done.stdout + done.stderr
    return told
