"""Potentials by name: what is registered, ASE calculators, and MP2020 corrections on top."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from loop.errors import ConfigError
from oracles.potentials.base import POTENTIALS, Potential, PotentialRequest
from oracles.potentials.corrections import SUFFIX, CorrectedPotential


@dataclass(frozen=True)
class PotentialConfig:
    """Which potential, and how it is loaded."""

    potential: str = "chgnet"
    """Potential: chgnet, sevennet, mace:MODEL, or an ASE calculator as module:Class."""
    device: str | None = None
    """cpu or cuda; none: the potential's default."""
    dtype: str | None = None
    """float32 or float64; none: the potential's default."""
    trust: bool = False
    """Allow a model file that is a pickle, which may run code when it is loaded."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of an ASE calculator."""
    environment: str | None = None
    """Overlay or interpreter that has the potential's packages."""


def potential_of(config: PotentialConfig, workers: int = 1) -> Potential:
    """The potential that settings name; `workers`: its processes, where it runs in such.

    Raises:
        DiscoveryLoopError: see `load_potential`.
    """
    return load_potential(
        config.potential, device=config.device, dtype=config.dtype, trust=config.trust, options=config.options,
        environment=config.environment, workers=workers,
    )  # fmt: skip


def load_potential(
    name: str = "chgnet",
    *,
    device: str | None = None,
    dtype: str | None = None,
    trust: bool = False,
    options: Mapping[str, Any] | None = None,
    environment: str | None = None,
    workers: int = 1,
) -> Potential:
    """Load a potential.

    Args:
        name: ``chgnet`` (0.3.0) or ``chgnet:r2scan``; ``mace:<foundation name>``, e.g. ``mace:medium-mpa-0``, fetched
            once by mace-torch; ``mace:<path>`` or a path that ends in ``.model`` or ``.pt``; ``sevennet``, MP2020
            corrections included, from its overlay; ``module:Class`` of an ASE calculator, e.g.
            ``ase.calculators.emt:EMT``; or what an installed package adds. With ``+mp2020`` behind it, MP2020
            corrections are added to uncorrected PBE(+U) energies, e.g. ``mace:medium+mp2020``.
        device: ``cpu`` or ``cuda``; by default CUDA where there is one.
        dtype: ``float32`` or ``float64``; by default what the model's authors advise (CHGNet float32, MACE float64).
        trust: allow a MACE file from a path. Such files are pickles, which can run any code when loaded.
        options: keyword arguments of an ASE calculator.
        environment: where the packages of SevenNet or of an ASE calculator are: name of an overlay
            (``discovery-loop potential install``), or path of an interpreter. It then runs in worker processes.
        workers: how many of these.

    Raises:
        ConfigError: no such potential, or it cannot be loaded here.
        PotentialError: its worker process cannot load it.
    """
    if dtype not in (None, "float32", "float64"):
        raise ConfigError(f"dtype of a potential must be float32 or float64, got {dtype!r}.")
    request = PotentialRequest(uncorrected(name), device, dtype, trust, dict(options or {}), environment, workers)
    potential = loaded(request)
    return potential if request.name == name else CorrectedPotential(potential)


def uncorrected(name: str) -> str:
    """A potential's name without the MP2020 corrections that it asks for."""
    return name[: -len(SUFFIX)] if name.lower().endswith(SUFFIX) else name


def registered_kind(request: PotentialRequest) -> str:
    """The registered name behind a request, found without loading anything: files are MACE's, all else is ASE's.

    Raises:
        ConfigError: there is no such potential.
    """
    name, kind = request.name, request.kind
    if kind not in POTENTIALS:
        is_file = request.environment is None and name.endswith((".model", ".pt"))
        kind = "mace" if is_file else "ase"
    if kind == "ase" and not request.rest and request.environment is None:
        module, _, last = name.rpartition(".")
        meant = f"Did you mean '{module}:{last}'? " if module else ""
        raise ConfigError(
            f"There is no potential {name!r}. {meant}Expected one of {', '.join(POTENTIALS.names())}, 'chgnet:r2scan', "
            "'mace:<foundation name or path>' or an ASE calculator as 'module:Class', e.g. "
            "'ase.calculators.emt:EMT'."
        )
    return kind


def loaded(request: PotentialRequest) -> Potential:
    """What a request asks for, by the registered name before its colon; else an ASE calculator.

    Raises:
        DiscoveryLoopError: see `load_potential`.
    """
    kind = registered_kind(request)
    options = POTENTIALS.get(kind).options
    if options is not None:
        request = replace(request, options=POTENTIALS.options(kind, request.options))
    with POTENTIALS.blaming(kind):
        return POTENTIALS.get(kind).load(request)
