"""Verbs of potentials whose packages do not fit this environment: potential install, potential list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Json
from flows.console import emit, progress

if TYPE_CHECKING:
    from oracles.potentials.base import Potential as LoadedPotential


def load(
    name: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    trust: bool = False,
    environment: str | None = None,
) -> LoadedPotential:
    """A potential for a verb; one that runs in worker processes gets one per core.

    Raises:
        ConfigError: no such potential, or it cannot be loaded here.
        PotentialError: its worker process cannot load it.
    """
    from flows.provenance import cores
    from oracles.potentials.loading import load_potential

    return load_potential(name, device=device, dtype=dtype, trust=trust, environment=environment, workers=cores())


def install(
    name: Annotated[str, typer.Argument(help="sevennet, or a name of your own for the packages that follow.")],
    packages: Annotated[
        list[str] | None, typer.Argument(help="PACKAGE==VERSION ..., all of them: pip adds no dependencies.")
    ] = None,
    json: Json = False,
) -> None:
    """Install a potential's packages into a folder of their own, in front of this environment's for its workers alone.

    Nothing that this program imports is touched. What is there already in these versions is not installed again.
    """
    from oracles.potentials import overlay

    with progress() as report:
        wanted = overlay.resolve(name, packages or ())
        report.log(f"installing {' '.join(wanted.packages)}" if overlay.problem(wanted) else "it is there already")
        folder = overlay.install(wanted)
    use = f"--potential {name}" if name in overlay.KNOWN else f"--potential module:Class --environment {name}"
    emit({"overlay": name, "folder": str(folder), "use": use}, json)


def list_overlays(json: Json = False) -> None:
    """Which overlays there are, and whether they can be used."""
    from oracles.potentials import overlay

    states = {name: overlay.problem(known) or "ok" for name, known in overlay.KNOWN.items()}
    states |= {name: "ok" for name in overlay.installed() if name not in states}
    about = {name: overlay.KNOWN[name].about if name in overlay.KNOWN else "your own" for name in states}
    text = "\n".join(f"{name:<12} {state:<14} {about[name]}" for name, state in states.items())
    emit({name: {"state": state, "about": about[name]} for name, state in states.items()}, json, text)


def register(app: typer.Typer) -> None:
    """Add the verbs below `potential`."""
    potentials = typer.Typer(no_args_is_help=True, help="Potentials that need packages of their own: install, list.")
    potentials.command("install")(install)
    potentials.command("list")(list_overlays)
    app.add_typer(potentials, name="potential", rich_help_panel="Operate")
