"""Packages that disagree with this program's: installed into a folder of their own, for one worker process alone.

An *overlay* is a folder filled by ``pip install --no-deps --target``, which stands in front of the environment's own
packages on the path of a worker (`oracles.potentials.remote`). The main process never imports from it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loop.errors import ConfigError, PotentialError
from loop.io.files import make_folder, sha256, write_text

VARIABLE = "DISCOVERY_LOOP_OVERLAYS"  # a folder for all overlays, such as one that the users of a cluster share
STAMP = "overlay.json"  # what was installed, written last
PIP_SECONDS = 1800.0
LEAKS = ("PIP_CONSTRAINT", "PIP_REQUIREMENT", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PYTHONPATH")  # the user's own
_NAME = re.compile(r"[a-z][a-z0-9_.-]*")


@dataclass(frozen=True)
class Overlay:
    """What an overlay holds."""

    name: str
    packages: tuple[str, ...]  # as pip takes them, all versions pinned
    files: dict[str, str] = field(default_factory=dict)  # path in the folder -> its sha256, checked before each use
    about: str = ""

    def __post_init__(self) -> None:
        """Check the name, which becomes a folder's."""
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"expected a name of an overlay in lower case, such as sevennet, got {self.name!r}")


L3I5 = "sevenn/pretrained_potentials/SevenNet_l3i5/checkpoint_l3i5.pth"
MF0 = "sevenn/pretrained_potentials/SevenNet_MF_0/checkpoint_sevennet_mf_0.pth"
# The one place that says which versions; matscipy, opt-einsum-fx and ninja are also mace-torch's, in the same versions.
SEVENNET = Overlay(
    "sevennet",
    (
        "sevenn==0.13.0", "e3nn==0.6.0", "torch-geometric==2.7.0", "matscipy==1.3.1", "braceexpand==0.1.7",
        "opt-einsum-fx==0.1.4", "xxhash==4.1.0", "ninja==1.13.2",
    ),
    {
        L3I5: "a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",
        MF0: "81791329b37d445f46b531578c182c41792d98c7814222c9e5dde276402225fd",
    },
    "SevenNet-l3i5 and SevenNet-MF-0, universal potentials (MIT)",
)  # fmt: skip
KNOWN = {overlay.name: overlay for overlay in (SEVENNET,)}


def folder(name: str) -> Path:
    """Where an overlay is, or would be installed: in $DISCOVERY_LOOP_OVERLAYS, else in the environment.

    In the user's data folder where the environment cannot be written and its owner installed none.
    """
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).resolve() / name
    own = Path(sys.prefix) / "share" / "discovery-loop" / "overlays" / name
    base = os.environ.get("XDG_DATA_HOME")
    user = Path(base) if base else Path.home() / ".local" / "share"
    fallback = user / "discovery-loop" / "overlays" / name
    if (own / STAMP).is_file() or (_writable(own) and not (fallback / STAMP).is_file()):
        return own
    return fallback


def _writable(path: Path) -> bool:
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    return os.access(there, os.W_OK | os.X_OK)


def resolve(name: str, packages: Sequence[str] = ()) -> Overlay:
    """An overlay that this program knows, or one of the user's own packages.

    Raises:
        ConfigError: an unknown name without packages, or a package without its version.
    """
    if packages:
        if loose := [item for item in packages if "==" not in item and "/" not in item]:
            raise ConfigError(f"expected each package as PACKAGE==VERSION or a path, got {', '.join(loose)}")
        return Overlay(name, tuple(packages))
    if name not in KNOWN:
        raise ConfigError(
            f"There is no overlay {name!r}: expected one of {', '.join(KNOWN)}, or a name of your own with the "
            "packages to install, all of them, since pip adds no dependencies here."
        )
    return KNOWN[name]


def install(overlay: Overlay) -> Path:
    """Install an overlay, unless it is there in these versions; an older one is replaced once the new one is complete.

    Returns:
        Its folder.

    Raises:
        PotentialError: pip failed, or a file is not the one that was pinned.
    """
    target = folder(overlay.name)
    if not problem(overlay):
        return target
    make_folder(target.parent)
    fresh = target.with_name(f".{overlay.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        _pip(overlay, fresh)
        _check_files(overlay, fresh)
        write_text(fresh / STAMP, json.dumps(_stamp(overlay), indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        fresh.replace(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def _pip(overlay: Overlay, target: Path) -> None:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--no-warn-conflicts", "--target", str(target), *overlay.packages]
    environment = {name: value for name, value in os.environ.items() if name not in LEAKS}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_SECONDS, env=environment, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise PotentialError(f"pip could not install the overlay {overlay.name}: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()[-1:]
        raise PotentialError(
            f"pip could not install the overlay {overlay.name} ({' '.join(overlay.packages)}): "
            f"{' '.join(lines) or 'no message'}"
        )


def problem(overlay: Overlay) -> str:
    """Why an overlay cannot be used as it is; empty where it can. Its files' checksums are compared each time."""
    target = folder(overlay.name)
    if not (target / STAMP).is_file():
        return "not installed"
    try:
        stamp = json.loads((target / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "its stamp is damaged"
    if overlay.packages and stamp != _stamp(overlay):
        return "made for other versions"
    try:
        _check_files(overlay, target)
    except PotentialError as error:
        return str(error)
    return ""


def require(name: str) -> Path:
    """The folder of an overlay that is installed and sound.

    Raises:
        ConfigError: it is not; says how to install it.
    """
    target = folder(name)
    if name not in KNOWN:
        if not (target / STAMP).is_file():
            raise ConfigError(
                f"There is no overlay {name!r}: install it by `discovery-loop potential install {name} "
                f"PACKAGE==VERSION ...`, or name one of {', '.join(KNOWN)}, or an interpreter's path."
            )
        return target
    if trouble := problem(KNOWN[name]):
        raise ConfigError(
            f"The overlay {name!r} cannot be used ({trouble}): install it by `discovery-loop potential install {name}`."
        )
    return target


def installed() -> list[str]:
    """Names of the overlays that are there."""
    return sorted({stamp.parent.name for stamp in folder("x").parent.glob(f"[a-z]*/{STAMP}")})


def _stamp(overlay: Overlay) -> dict[str, object]:
    """Compiled packages fit one version of Python on one platform."""
    tag = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    return {"packages": list(overlay.packages), "python": tag}


def _check_files(overlay: Overlay, target: Path) -> None:
    for name, expected in overlay.files.items():
        found = sha256(target / name) if (target / name).is_file() else "nothing"
        if found != expected:
            raise PotentialError(f"{name} has sha256 {found[:16]}, expected {expected[:16]}: not the pinned package's")
