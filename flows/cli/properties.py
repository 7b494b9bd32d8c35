"""Verbs of properties that are derivatives of the energy: elastic, phonons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.options import Device, Environment, Input, Json, Output, Potential, Trust
from flows.cli.potential import load
from flows.console import emit, progress

if TYPE_CHECKING:
    from oracles.properties.elastic import ElasticConfig
    from oracles.properties.phonons import PhononConfig

Relaxed = Annotated[bool, typer.Option("--relaxed", help="The crystals are at this potential's minima already.")]
Dtype = Annotated[str | None, typer.Option(help="float32 or float64. Default: what the potential's authors advise.")]


def elastic(
    input: Input,
    output: Output,
    potential: Potential = "chgnet",
    clamped: Annotated[bool, typer.Option("--clamped", help="Keep the atoms where the strain puts them.")] = False,
    relaxed: Relaxed = False,
    device: Device = None,
    dtype: Dtype = None,
    trust: Trust = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Elastic tensors and moduli (GPa): Voigt-Reuss-Hill averages, anisotropy, mechanical stability.

    A crystal whose tensor is not positive definite is `unstable` and has no moduli.

    Crystals are relaxed first. Finished ones are kept beside the output: repeat the command, and a killed one resumes.
    """
    from oracles.properties.elastic import ElasticConfig

    config = ElasticConfig(relax_ions=not clamped)
    loading = {"name": potential, "device": device, "dtype": dtype, "trust": trust, "environment": environment}
    _measure(input, output, config, relaxed, loading, json)


def phonons(
    input: Input,
    output: Output,
    potential: Potential = "chgnet",
    min_length: Annotated[float, typer.Option(min=0, help="Least length of the supercell, A. 0: Gamma only.")] = 9.0,
    max_atoms: Annotated[int, typer.Option(min=1, help="Most atoms of the supercell.")] = 200,
    displacement: Annotated[float, typer.Option(help="Of the atoms, A.")] = 0.03,
    tolerance: Annotated[float, typer.Option(help="Imaginary frequencies up to this count as noise, THz.")] = 0.3,
    relaxed: Relaxed = False,
    device: Device = None,
    dtype: Dtype = None,
    trust: Trust = False,
    environment: Environment = None,
    json: Json = False,
) -> None:
    """Dynamic stability: lowest phonon frequency (THz, imaginary as negative) at the supercell's wave vectors.

    Crystals are relaxed first. Finished ones are kept beside the output: repeat the command, and a killed one resumes.
    """
    from oracles.properties.phonons import PhononConfig

    config = PhononConfig(min_length, max_atoms, displacement, tolerance)
    loading = {"name": potential, "device": device, "dtype": dtype, "trust": trust, "environment": environment}
    _measure(input, output, config, relaxed, loading, json)


def _measure(
    input: Path, output: Path, config: ElasticConfig | PhononConfig, relaxed: bool, loading: dict[str, Any], json: bool
) -> None:
    from flows.cli.oracles import fail_if_none_ok, tell_resumed
    from flows.journal import Journal
    from flows.tables.columns import read_input, write_output
    from flows.tables.outputs import check_crystals
    from flows.tables.properties import Derivatives, property_table
    from flows.tables.screening import statuses_of
    from oracles.properties.elastic import tight
    from oracles.relax import RelaxConfig

    check_crystals(output, input)
    what = Derivatives(config, None if relaxed else tight(RelaxConfig()))
    with progress() as report:
        table = read_input(input)
        loaded = load(**loading)
        with Journal(output, what.settings(loaded)) as journal:
            tell_resumed(journal, report)
            frame = property_table(table, loaded, what, report, journal)
            write_output(output, table, frame)
    summary: dict[str, Any] = {"rows": len(frame), "statuses": statuses_of(frame)}
    for name in ("mechanically_stable", "dynamically_stable"):
        if name in frame:
            summary[name] = int((frame[name] == True).sum())  # noqa: E712  (rows that failed hold NaN)
    emit({**summary, "potential": str(loaded.energy_type), "output": str(output)}, json)
    fail_if_none_ok(frame)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (elastic, phonons):
        app.command(rich_help_panel="Oracles and surrogates")(verb)
