"""Verbs of ``discovery-loop benchmark``: each writes a record, tables and figures into a folder."""

from __future__ import annotations

from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.benchmarks.harness import BENCHMARKS, Benchmark
from flows.cli import benchmarks_generator, benchmarks_operate, benchmarks_oracles
from flows.cli.records import Json, Output, Seed, Settings, print_record, settings_of
from flows.console import progress
from loop.errors import ConfigError

Data = Annotated[list[Path], typer.Option("--data", help="CSV with a cif column and labels. Repeatable.")]

app = typer.Typer(no_args_is_help=True, help="Measure this installation and its methods; records go to a folder.")
benchmarks_generator.register(app)
benchmarks_oracles.register(app)
benchmarks_operate.register(app)


@app.command()
def speed(output: Output, seed: Seed = 0, json: Json = False) -> None:
    """Throughput of sampling, likelihood, reward, hull and relaxation here; needs no data."""
    from flows.benchmarks.speed import run

    with progress() as report:
        record = run(output, seed=seed, progress=report)
    print_record(record, output, json)


@app.command()
def references(
    output: Output,
    data: Data,
    n: Annotated[int, typer.Option("--n", min=1, help="Crystals to relax.")] = 500,
    unrelaxed: Annotated[bool, typer.Option("--unrelaxed", help="Single points only.")] = False,
    former: Annotated[Path | None, typer.Option(help="table.csv of an earlier run, to compare with.")] = None,
    potential: Annotated[
        str, typer.Option(help="One without a table of all phases, such as sevennet, judges by its hull on demand.")
    ] = "chgnet",
    exact: Annotated[
        int | None,
        typer.Option(min=1, help="With a hull on demand, how many get the distance itself, the others bounds. All."),
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Energies above the hull of held-out crystals against the published ones."""
    from flows.benchmarks.oracles import references, references_on_demand
    from flows.cli.potential import load

    with progress() as report:
        if potential == "chgnet":
            record = references.run(output, n, data, not unrelaxed, seed=seed, former=former, progress=report)
        elif unrelaxed:
            raise ConfigError("expected --unrelaxed with chgnet alone: a hull on demand holds relaxed phases")
        else:
            record = references_on_demand.run(
                output, n, data, load(potential), exact=exact, seed=seed, former=former, progress=report
            )
    print_record(record, output, json)


Table = Annotated[Path, typer.Option("--data", help="CSV with a cif column and labels.")]
Seeds = Annotated[int | None, typer.Option(min=1, help="Campaigns for each strategy, or in each system.")]


def verb_of(benchmark: Benchmark) -> Callable[..., None]:
    """The verb of a benchmark of the list, with the options that it has."""

    def verb(
        output: Output,
        data: Path | None = None,
        seeds: int | None = None,
        settings: list[str] | None = None,
        json: bool = False,
    ) -> None:
        with progress() as report:
            chosen = settings_of(benchmark.settings, settings, seeds)
            record = benchmark.run(*([data] if benchmark.data else []), output, chosen, report)
        print_record(record, output, json)

    options: dict[str, Any] = {"output": Output}
    options |= {"data": Table} if benchmark.data else {}
    options |= {"seeds": Seeds} if benchmark.seeds else {}
    options |= {"settings": Settings, "json": Json}
    defaults = {"seeds": None, "settings": None, "json": False}
    verb.__signature__ = Signature(  # type: ignore[attr-defined]
        [
            Parameter(name, Parameter.KEYWORD_ONLY, default=defaults.get(name, Parameter.empty), annotation=kind)
            for name, kind in options.items()
        ]
    )
    verb.__annotations__ = options
    return verb


for benchmark in BENCHMARKS:
    app.command(benchmark.name, help=benchmark.help)(verb_of(benchmark))


@app.command()
def rl(
    output: Output,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each main arm.")] = None,
    judge_model: Annotated[Path | None, typer.Option(help="Folder of a matgl potential, for a second opinion.")] = None,
    judge_python: Annotated[Path | None, typer.Option(help="Python that has matgl 2.0.4; else this one.")] = None,
    data: Annotated[list[Path] | None, typer.Option(help="CSV of the known crystals, for the second hull.")] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Fine-tuning: stable, unique, new crystals of base, tuned policy, equal-cost baselines and ablations."""
    from flows.benchmarks.rl.run import RLConfig, run
    from flows.benchmarks.rl.summary import told

    judge = {"judge": {"model": judge_model, "python": judge_python, "data": data or []}} if judge_model else {}
    with progress() as report:
        record = run(output, settings_of(RLConfig, settings, seeds, judge), report)
    print_record(record, output, json, told(record["results"]))


@app.command("rl-properties")
def rl_properties(
    output: Output,
    data: Table,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of each arm.")] = None,
    judge_model: Annotated[Path | None, typer.Option(help="Folder of MEGNet for gaps, for a second opinion.")] = None,
    judge_python: Annotated[
        Path | None, typer.Option(help="Python that has matgl 2.0.4 with dgl; else this one.")
    ] = None,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Fine-tuning for a wide gap and a high dielectric constant: Pareto fronts, and retrieval."""
    from flows.benchmarks.rl.properties import PropertiesConfig, run

    judge = {"judge": {"model": judge_model, "python": judge_python}} if judge_model else {}
    with progress() as report:
        record = run(data, output, settings_of(PropertiesConfig, settings, seeds, judge), report)
    print_record(record, output, json)


@app.command("dielectric-dft")
def dielectric_dft(
    output: Output,
    data: Table,
    python: Annotated[str | None, typer.Option(help="Interpreter that has GPAW. Default: this one.")] = None,
    cores: Annotated[int, typer.Option(min=0, help="MPI processes of a calculation; 0: one per core.")] = 0,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """The same with DFT as judge of crystals that nobody has computed: tune, propose, relax, compute. Resumes."""
    from flows.benchmarks.dielectric.real import RealConfig, run

    usual = {"dft.resources.python": python, "dft.resources.cores": cores}
    with progress() as report:
        record = run(data, output, settings_of(RealConfig, settings, usual=usual), report)
    print_record(record, output, json)


@app.command("rl-speed")
def rl_speed(
    output: Output,
    crystals: Annotated[int, typer.Option(min=1, help="Crystals that the batched reward judges.")] = 300,
    slow: Annotated[int, typer.Option(min=1, help="The first of them, judged by the published scheme, too.")] = 20,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Tuned instead of the shipped one, e.g. of another size.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="Threads of torch in an iteration.")] = 2,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Seconds of a fine-tuning iteration, and the reward against the published one-by-one scheme."""
    from flows.benchmarks.rl.speed import RLSpeed, run

    config = RLSpeed(crystals, slow, checkpoint, threads, seed)
    with progress() as report:
        record = run(output, config, report)
    print_record(record, output, json)


@app.command()
def novelty(
    output: Output,
    data: Annotated[Path, typer.Option("--data", help="CSV of the crystals behind the shipped fingerprints.")],
    crystals: Annotated[int, typer.Option(min=1, help="Crystals to distort.")] = 1000,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs of polymorphs.")] = 2000,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """How often distorted known crystals look new, and polymorphs look known."""
    from flows.benchmarks.harness import write_benchmark
    from flows.benchmarks.oracles.novelty import measure
    from flows.tables.outputs import check_folder

    check_folder(output)
    record = write_benchmark(output, measure(data, crystals, pairs, seed))
    print_record(record, output, json)


@app.command()
def dft(
    output: Output,
    preset: Annotated[
        list[str] | None, typer.Option(help="test, fast or converged. Repeatable. Default: test.")
    ] = None,
    crystal: Annotated[list[str] | None, typer.Option(help="Formula, e.g. Si. Repeatable. Default: all eight.")] = None,
    measured: Annotated[
        list[str] | None,
        typer.Option("--property", help="gap, dielectric or lattice (relaxes the cell). Default: gap and dielectric."),
    ] = None,
    python: Annotated[str | None, typer.Option(help="Interpreter that has GPAW. Default: this one.")] = None,
    cores: Annotated[int, typer.Option(min=0, help="MPI processes; 0: one per core.")] = 0,
    time_limit: Annotated[float, typer.Option(help="Seconds for one crystal.")] = 3600.0,
    json: Json = False,
) -> None:
    """Band gaps, dielectric constants and lattice parameters of eight crystals against published PBE values."""
    from flows.benchmarks.oracles.dft import USUAL, run
    from oracles.dft.oracle import DftConfig
    from oracles.dft.process import Resources

    config = DftConfig(resources=Resources(cores=cores, python=python), time_limit=time_limit)
    with progress() as report:
        record = run(output, preset or ["test"], config, names=crystal, measured=measured or USUAL, progress=report)
    print_record(record, output, json)


def register(parent: typer.Typer) -> None:
    """Add the verbs."""
    parent.add_typer(app, name="benchmark", rich_help_panel="Operate")
