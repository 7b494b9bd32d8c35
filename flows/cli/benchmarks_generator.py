"""Benchmarks of the generator: sampling, training, learning, preparation, conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.records import Json, Output, Seed, Settings, print_record, settings_of
from flows.console import progress

Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint folder.")]
OwnData = Annotated[Path | None, typer.Option("--data", help="CSV with a cif column. Default: samples of our own.")]


def sampling(
    output: Output,
    checkpoint: Checkpoint = None,
    batch: Annotated[int, typer.Option(min=1, help="Crystals drawn at once.")] = 64,
    repetitions: Annotated[int, typer.Option(min=1, help="How often each is timed.")] = 5,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Crystals a second at the published sizes, against the original; a checkpoint is timed, too."""
    from flows.benchmarks.generator.sampling import run

    with progress() as report:
        record = run(output, checkpoint=checkpoint, batch=batch, repetitions=repetitions, seed=seed, progress=report)
    print_record(record, output, json)


def training(
    output: Output,
    data: OwnData = None,
    steps: Annotated[int, typer.Option(min=2, help="Steps that are timed; a quarter at the large size.")] = 20,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch.")] = 2,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Seconds of a training step at batch 100, both published sizes, against the original."""
    from flows.benchmarks.generator.training import run

    with progress() as report:
        record = run(output, data, steps=steps, threads=threads, seed=seed, progress=report)
    print_record(record, output, json)


def learning(
    output: Output,
    train: Annotated[Path, typer.Option(help="Crystals to draw the training set from.")],
    held_out: Annotated[Path, typer.Option(help="Crystals to draw the held-out set from.")],
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Fifteen minutes of training at the small size, against the original; resumes where it was cut off."""
    from flows.benchmarks.generator.learning import LearningConfig, run

    with progress() as report:
        record = run(train, held_out, output, settings_of(LearningConfig, settings), report)
    print_record(record, output, json)


def preparation(
    output: Output,
    data: OwnData = None,
    n: Annotated[int, typer.Option("--n", min=100, help="CIFs.")] = 1000,
    broken: Annotated[int, typer.Option(min=0, help="How many of them are no valid CIFs.")] = 20,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """CIFs a second that become tokens, on two workers, with broken ones among them."""
    from flows.benchmarks.generator.preparation import run

    with progress() as report:
        record = run(output, data, n=n, broken=broken, seed=seed, progress=report)
    print_record(record, output, json)


def conditions(
    output: Output,
    checkpoint: Checkpoint = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Crystals of each condition.")] = 1000,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Whether every sample keeps the conditions that were asked for."""
    from flows.benchmarks.generator.conditions import run

    with progress() as report:
        record = run(output, n=n, seed=seed, checkpoint=checkpoint, progress=report)
    print_record(record, output, json)


def register(app: typer.Typer) -> None:
    """Add them to ``discovery-loop benchmark``."""
    for verb in (sampling, training, learning, preparation, conditions):
        app.command()(verb)
