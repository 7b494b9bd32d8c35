"""SevenNet-l3i5, a universal potential whose checkpoint comes in the wheel of `sevenn`, run in worker processes.

It learned uncorrected PBE(+U) energies of the Materials Project, so MP2020 corrections are added, as to the energies of
the hulls that it is compared with. The checkpoint is a pickle, which could run any code when it is loaded: it comes
from a pinned package, and its sha256 is compared with the one written in `oracles.potentials.overlay` before every
load.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from loop.errors import ConfigError
from loop.io.files import sha256
from loop.values import EnergyType
from oracles.potentials.base import Potential, PotentialInfo, PotentialKind, PotentialRequest, resolve_device
from oracles.potentials.corrections import CorrectedPotential
from oracles.potentials.overlay import L3I5, SEVENNET, require
from oracles.potentials.remote import RemotePotential, package_folder, place_in

CHECKSUM = SEVENNET.files[L3I5]
ENERGIES = EnergyType("SevenNet-l3i5", "PBE(+U)", "MP2020", CHECKSUM)
CITATION = "Park et al., J. Chem. Theory Comput. 20, 4857 (2024), doi 10.1021/acs.jctc.4c00190; SevenNet-l3i5"
VARIANTS = ("l3i5", "l3i5-raw")


def load_sevennet(
    variant: str, *, device: str | None, dtype: str | None, environment: str | None = None, workers: int = 1
) -> Potential:
    """Load SevenNet.

    Args:
        variant: ``l3i5`` with MP2020 corrections, or ``l3i5-raw`` without.
        device: ``cpu`` or ``cuda``.
        dtype: by default float32, in which it was trained.
        environment: path of an interpreter that has `sevenn`; by default this one with the overlay ``sevennet``.
        workers: processes side by side, one thread each.

    Raises:
        ConfigError: no such variant, or the overlay is not installed.
        PotentialError: the worker cannot load it.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"There is no SevenNet {variant!r}: expected one of {', '.join(VARIANTS)}.")
    where, precision = resolve_device(device), dtype or "float32"
    environment = environment or SEVENNET.name
    overlay = environment == SEVENNET.name
    checkpoint = require(SEVENNET.name) / L3I5 if overlay else _checkpoint_of(environment)
    about = PotentialInfo(
        name="sevennet:l3i5-raw",
        energy_type=replace(ENERGIES, corrections="none"),
        elements=frozenset(),  # the worker tells
        citation=CITATION,
        licence="MIT",
        device=where,
        dtype=precision,
    )
    job = {"backend": "sevennet", "checkpoint": str(checkpoint), "device": where, "dtype": precision}
    plain = RemotePotential(about, place_in(environment, job, workers))
    return plain if variant == "l3i5-raw" else CorrectedPotential(plain, name="sevennet")


def _checkpoint_of(python: str) -> Path:
    """The checkpoint of the `sevenn` that an interpreter has, compared with the pinned checksum.

    Raises:
        ConfigError: there is none, or it is another one.
    """
    path = package_folder(python, "sevenn").parent / L3I5
    found = sha256(path) if path.is_file() else "nothing"
    if found != CHECKSUM:
        raise ConfigError(
            f"expected the SevenNet-l3i5 checkpoint of {SEVENNET.packages[0]} in the packages of {python}, found "
            f"{found[:16]}: install {SEVENNET.packages[0]} there, or leave the interpreter out"
        )
    return path


def _requested(request: PotentialRequest) -> Potential:
    return load_sevennet(
        request.rest or VARIANTS[0],
        device=request.device,
        dtype=request.dtype,
        environment=request.environment,
        workers=request.workers,
    )


POTENTIAL = PotentialKind(_requested)
