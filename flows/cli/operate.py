"""Verbs that operate the installation: up, down, doctor, benchmark."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Environment, Json, Trust
from flows.console import emit, note, progress


def up(
    port: Annotated[
        int | None,
        typer.Option(min=1024, max=65535, help="Port of the server on the loopback address. Default: 4200."),
    ] = None,
    json: Json = False,
) -> None:
    """Start a Prefect server, work pool, deployments and a worker on this machine; print the address of the UI."""
    from flows import server

    here = server.up(port, note)
    text = (
        f"Prefect is up: {here.url}\n"
        f"start a campaign:  PREFECT_API_URL={here.api} prefect deployment run discovery-loop/quickstart --watch\n"
        f"its results:       {Path.cwd() / 'results'}\n"
        "end it:            discovery-loop down"
    )
    emit({"url": here.url, "api": here.api, "home": str(here.home)}, json, text)


def down(json: Json = False) -> None:
    """End what `up` started. A campaign that is running is interrupted; `discovery-loop resume` continues it."""
    from flows import server

    ended = server.down()
    emit({"ended": ended}, json, "Prefect is down" if ended else "nothing was running")


def doctor(
    potential: Annotated[
        str | None, typer.Option(help="Check this one instead: chgnet, sevennet, mace:NAME, mace:PATH, module:Class.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Of the potential: cpu or cuda.")] = None,
    trust: Trust = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Check the installation: versions, threads, checkpoint, potential, Prefect, disk. Exit code 1 on a failure.

    With --potential: the conformance suite on a potential of your own (derivatives, invariances, batches, refusals).
    """
    from flows.doctor import examine, examine_potential

    with progress() as report:
        if potential is None:
            checks = examine(report)
        else:
            checks = examine_potential(potential, device=device, trust=trust, environment=environment)
    marks = {"ok": "[ok]  ", "absent": "[--]  ", "failed": "[FAIL]"}
    text = "\n".join(f"{marks[check.state]} {check.name:<14} {check.text}" for check in checks)
    emit({check.name: {"state": check.state, "text": check.text} for check in checks}, json, text)
    if any(check.state == "failed" for check in checks):
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (up, down, doctor):
        app.command(rich_help_panel="Operate")(verb)
