"""Verbs of ``discovery-loop benchmark`` that measure operation: resume, overhead, scale, growth."""

from __future__ import annotations

from typing import Annotated

import typer

from flows.cli.records import Json, Output, Seed, print_record
from flows.console import note
from loop.errors import ConfigError


def resume(
    output: Output,
    kills: Annotated[int, typer.Option(min=1, help="SIGKILLs to send in all.")] = 200,
    database: Annotated[
        str | None, typer.Option(help="URL of an empty PostgreSQL database on this machine, ${VAR} allowed.")
    ] = None,
    prefect: Annotated[bool, typer.Option(help="Also under Prefect, on a server of its own.")] = True,
    minutes: Annotated[float, typer.Option(help="Begin no further campaign after this time.")] = float("inf"),
    labels: Annotated[
        list[str] | None,
        typer.Option(help="here, processes, dask, slurm (on this machine); repeatable. Default: all but slurm."),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Campaigns killed at random moments must end in the list of one that was not; no label lost or paid twice."""
    from flows.benchmarks.operate.kills import LABELS, SLURM, ResumeBenchmark
    from flows.benchmarks.operate.resume import run
    from flows.configfile import expand_environment

    url = None if database is None else expand_environment(database)
    places = tuple(labels or LABELS)
    if unknown := sorted({*places} - {*LABELS, SLURM}):
        raise ConfigError(f"--labels: expected {', '.join(LABELS)} or {SLURM}, got {', '.join(unknown)}")
    record = run(output, ResumeBenchmark(kills, url, prefect, seed, minutes, places), note)
    print_record(record, output, json)


def overhead(
    output: Output,
    labels: Annotated[int, typer.Option(min=1, help="Labels.")] = 100,
    seconds: Annotated[float, typer.Option(help="Of one label.")] = 2.0,
    prefect: Annotated[bool, typer.Option(help="Also under Prefect, on a server of its own.")] = True,
    json: Json = False,
) -> None:
    """What orchestration adds to the seconds of the labels."""
    from flows.benchmarks.operate.speed import OverheadBenchmark, run_overhead

    print_record(run_overhead(output, OverheadBenchmark(labels, seconds, prefect), note), output, json)


def scale(
    output: Output,
    labels: Annotated[int, typer.Option(min=1, help="Labels.")] = 1000,
    seconds: Annotated[float, typer.Option(help="Of one label of the sleeping oracle.")] = 0.5,
    workers: Annotated[list[int] | None, typer.Option(help="Repeatable. Default: 1, 2, 4.")] = None,
    oracle: Annotated[
        str, typer.Option(help="sleeping, or chgnet: small crystals relaxed, on the hull, with bulk modulus.")
    ] = "sleeping",
    json: Json = False,
) -> None:
    """Labels on 1, 2 and 4 Dask workers: the same list, and how much faster."""
    from flows.benchmarks.operate.speed import ScaleBenchmark, run_scale

    config = ScaleBenchmark(labels, seconds, tuple(workers or (1, 2, 4)), oracle)
    print_record(run_scale(output, config, note), output, json)


def growth(
    output: Output,
    rounds: Annotated[int, typer.Option(min=1, help="After the baseline round.")] = 9,
    pool: Annotated[int, typer.Option(min=1, help="Candidates of each round.")] = 1000,
    budget: Annotated[int, typer.Option(min=1, help="Labels of each round.")] = 200,
    minutes: Annotated[float, typer.Option(help="Begin no further round after this time.")] = float("inf"),
    real: Annotated[bool, typer.Option(help="Generator, screen, features and surrogate that ship.")] = False,
    json: Json = False,
) -> None:
    """What each stage of one long campaign takes, round by round: seconds, memory, and how they grow."""
    from flows.benchmarks.operate.growth import GrowthBenchmark, run

    print_record(run(output, GrowthBenchmark(rounds, pool, budget, minutes, real), note), output, json)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (resume, overhead, scale, growth):
        app.command()(verb)
