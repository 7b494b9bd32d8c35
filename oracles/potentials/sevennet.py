"""SevenNet, universal potentials whose checkpoints come in the wheel of `sevenn`, run in worker processes.

SevenNet-l3i5 learned uncorrected PBE(+U) energies of the Materials Project, so MP2020 corrections are added, as to the
energies of the hulls that it is compared with. SevenNet-MF-0 learned these and r2SCAN energies, each with a head of its
own. Checkpoints are pickles, which could run any code when they are loaded: they come from a pinned package, and their
sha256 is compared with the one written in `oracles.potentials.overlay` before every load.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from loop.errors import ConfigError
from loop.io.files import sha256
from loop.values import EnergyType
from oracles.potentials.base import Potential, PotentialInfo, PotentialKind, PotentialRequest, resolve_device
from oracles.potentials.corrections import CorrectedPotential, load_scheme
from oracles.potentials.overlay import L3I5, MF0, SEVENNET, require
from oracles.potentials.remote import RemotePotential, package_folder, place_in

PBE, R2SCAN = "PBE(+U)", "r2SCAN"
ENERGIES = EnergyType("SevenNet-l3i5", PBE, "MP2020", SEVENNET.files[L3I5])
CITATION = "Park et al., J. Chem. Theory Comput. 20, 4857 (2024), doi 10.1021/acs.jctc.4c00190; SevenNet-l3i5"
FIDELITIES = "Kim et al., J. Am. Chem. Soc. 147, 1042 (2025), doi 10.1021/jacs.4c14455; SevenNet-MF-0, multi-fidelity"


@dataclass(frozen=True)
class Variant:
    """A checkpoint of the package, and which of its heads answers."""

    name: str  # of the potential
    method: str
    file: str  # in the packages
    citation: str
    functional: str = PBE
    head: str | None = None  # None: it has one alone
    corrected: bool = True  # with MP2020 corrections


_MF0 = ("SevenNet-MF-0", MF0, FIDELITIES)
VARIANTS = {
    "l3i5": Variant("sevennet", "SevenNet-l3i5", L3I5, CITATION),
    "l3i5-raw": Variant("sevennet:l3i5-raw", "SevenNet-l3i5", L3I5, CITATION, corrected=False),
    "mf-0": Variant("sevennet:mf-0", *_MF0, head="PBE"),
    "mf-0-r2scan": Variant("sevennet:mf-0-r2scan", *_MF0, R2SCAN, "R2SCAN", corrected=False),
}


def load_sevennet(
    variant: str, *, device: str | None, dtype: str | None, environment: str | None = None, workers: int = 1
) -> Potential:
    """Load SevenNet.

    Args:
        variant: ``l3i5`` with MP2020 corrections, or ``l3i5-raw`` without; ``mf-0``, the PBE head of SevenNet-MF-0 with
            MP2020 corrections, or ``mf-0-r2scan``, its r2SCAN head, which takes none.
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
    chosen = VARIANTS[variant]
    where, precision = resolve_device(device), dtype or "float32"
    environment = environment or SEVENNET.name
    overlay = environment == SEVENNET.name
    checkpoint = require(SEVENNET.name) / chosen.file if overlay else _checkpoint_of(environment, chosen)
    about = PotentialInfo(
        name=chosen.name,
        energy_type=EnergyType(chosen.method, chosen.functional, "none", SEVENNET.files[chosen.file]),
        elements=frozenset(),  # the worker tells
        citation=chosen.citation,
        licence="MIT",
        device=where,
        dtype=precision,
    )
    job = {"backend": "sevennet", "checkpoint": str(checkpoint), "device": where, "dtype": precision}
    job |= {"head": chosen.head} if chosen.head else {}
    with ThreadPoolExecutor(1) as pool:  # the workers, too, take seconds to start
        reading = pool.submit(load_scheme) if chosen.corrected else None
        plain = RemotePotential(about, place_in(environment, job, workers))
    if reading is None:
        return plain
    reading.result()
    return CorrectedPotential(plain, name=chosen.name)


def _checkpoint_of(python: str, variant: Variant) -> Path:
    """The checkpoint of the `sevenn` that an interpreter has, compared with the pinned checksum.

    Raises:
        ConfigError: there is none, or it is another one.
    """
    path = package_folder(python, "sevenn").parent / variant.file
    found = sha256(path) if path.is_file() else "nothing"
    if found != SEVENNET.files[variant.file]:
        raise ConfigError(
            f"expected the {variant.method} checkpoint of {SEVENNET.packages[0]} in the packages of {python}, found "
            f"{found[:16]}: install {SEVENNET.packages[0]} there, or leave the interpreter out"
        )
    return path


def _requested(request: PotentialRequest) -> Potential:
    return load_sevennet(
        request.rest or "l3i5",
        device=request.device,
        dtype=request.dtype,
        environment=request.environment,
        workers=request.workers,
    )


POTENTIAL = PotentialKind(_requested)
