"""Verbs of ``discovery-loop benchmark`` that measure the oracles: relaxation, elasticity, robustness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.options import Potential, Trust
from flows.cli.records import Json, Output, Seed, Settings, print_record, settings_of
from flows.console import progress

Minutes = Annotated[float, typer.Option(help="Begin nothing after this time; repeat the command, and it resumes.")]
FOREVER = float("inf")


def relaxation(
    output: Output,
    n: Annotated[int, typer.Option("--n", min=1, help="Crystals to draw and relax.")] = 200,
    chunk: Annotated[int, typer.Option(min=1, help="Crystals relaxed together; on a GPU some 200.")] = 16,
    max_atoms: Annotated[int | None, typer.Option(min=1, help="Of the primitive cell. Default: any.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda, for all variants.")] = "cpu",
    optimizer: Annotated[
        list[str] | None, typer.Option(help="Of ASE: LBFGS (default), FIRE, BFGS. Repeatable.")
    ] = None,
    minutes: Minutes = FOREVER,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Batched relaxation against ASE one by one with the same CHGNet: speed, and how often both agree."""
    from flows.benchmarks.oracles.relaxation import RelaxationBenchmark, run

    optimizers = tuple(optimizer or ("LBFGS",))
    config = RelaxationBenchmark(n, chunk, seed, max_atoms, device, optimizers=optimizers, minutes=minutes)
    with progress() as report:
        record = run(output, config, report)
    print_record(record, output, json)


def elasticity(
    output: Output,
    potential: Potential = "chgnet",
    data: Annotated[Path | None, typer.Option("--data", help="Published moduli: choose the size of strains.")] = None,
    others: Annotated[int, typer.Option(min=2, help="Crystals of that table to choose it on.")] = 40,
    trust: Trust = False,
    json: Json = False,
) -> None:
    """Elastic constants and phonons of 16 textbook crystals against published values."""
    from flows.benchmarks.oracles.elasticity import run

    with progress() as report:
        chosen = None if data is None else (data, others)
        record = run(output, potential, trust=trust, others=chosen, progress=report)
    print_record(record, output, json)


def robustness(
    output: Output,
    n: Annotated[int, typer.Option("--n", min=1, help="Damaged inputs.")] = 10_000,
    minutes: Minutes = FOREVER,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Damaged and absurd inputs through reading, symmetry, relaxation and hull: each outcome must have a name."""
    from flows.benchmarks.oracles.robustness import RobustnessBenchmark, run

    with progress() as report:
        record = run(output, RobustnessBenchmark(n, seed=seed, minutes=minutes), report)
    print_record(record, output, json)


def dft_hull(
    output: Output,
    input: Annotated[Path | None, typer.Option("--input", "-i", help="Further crystals, such as finds.")] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter that has GPAW. Default: this one.")] = None,
    cores: Annotated[int, typer.Option(min=0, help="MPI processes of a calculation; 0: one per core.")] = 0,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Distances above DFT's own hull and the order of polymorphs, with all competing phases by DFT. Resumes."""
    from flows.benchmarks.oracles.dft_hull import DftHullConfig, run

    usual = {"dft.resources.python": python, "dft.resources.cores": cores}
    with progress() as report:
        record = run(output, settings_of(DftHullConfig, settings, usual=usual), input, report)
    print_record(record, output, json)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (relaxation, elasticity, robustness):
        app.command()(verb)
    app.command("dft-hull")(dft_hull)
