"""Whether this installation can do what it promises; each check is a line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flows.provenance import cores, versions
from loop.errors import ConfigError, DiscoveryLoopError, EngineError

if TYPE_CHECKING:
    from loop.contracts import Progress
    from loop.registry import Registry

LEAST_DISK_GIB = 2.0
MOLECULAR_CORNERS = ("H", "N")  # of the published crystals no molecule: the worst corners that there have been


@dataclass(frozen=True)
class Check:
    """One line: ``failed`` ends with exit code 1, ``absent`` is an optional part that is not there."""

    name: str
    state: Literal["ok", "absent", "failed"]
    text: str


def examine(progress: Progress | None = None) -> list[Check]:
    """Run all checks; a check that breaks is a failed check."""
    checks: list[Callable[[], Check]] = [
        packages, threads, gpu, checkpoint, known_crystals, potential, references, overlays, mace, dft, prefect, disk
    ]  # fmt: skip
    done: list[Check] = []
    for check in checks:
        done.append(attempt(check))
        if progress:
            progress("checks", len(done), len(checks), {})
    return [*done, *registered()]


def registered() -> list[Check]:
    """A line per sort of part: the names that can be asked for, and which distributions offer them."""
    from flows.registry import registries

    return [_registered(registry) for registry in registries().values()]


def _registered(registry: Registry[Any]) -> Check:
    """The names of one registry by distribution, and which of them cannot be used."""
    from loop.registry import distribution

    found: dict[str, list[str]] = {}
    broken: list[str] = []
    entries = registry.entries()
    for entry in entries:
        found.setdefault(distribution(entry), []).append(entry.name)
        twice = sorted({distribution(other) for other in entries if other.name == entry.name})
        if len(twice) > 1:
            broken.append(f"{entry.name!r} is registered by {' and '.join(twice)}: uninstall one of them")
        try:
            registry.load(entry)
        except ConfigError as error:
            broken.append(str(error))
    text = "; ".join(f"{', '.join(names)} ({owner})" for owner, names in found.items())
    return Check(registry.sort, "failed" if broken else "ok", "; ".join([text, *dict.fromkeys(broken)]))


def examine_potential(
    name: str, *, device: str | None = None, trust: bool = False, environment: str | None = None
) -> list[Check]:
    """The conformance suite on a potential of the user's choice.

    Raises:
        ConfigError: it cannot be loaded.
    """
    from oracles.potentials.conformance import conformance
    from oracles.potentials.loading import load_potential

    findings = conformance(load_potential(name, device=device, trust=trust, environment=environment))
    return [Check(finding.name, "ok" if finding.passed else "failed", finding.text) for finding in findings]


def attempt(check: Callable[[], Check]) -> Check:
    """A check's result; what it raises is its failure."""
    name = check.__name__.replace("_", " ")
    try:
        return check()
    except DiscoveryLoopError as error:
        return Check(name, "failed", str(error))
    except Exception as error:
        return Check(name, "failed", f"{type(error).__name__}: {error}")


def packages() -> Check:
    """All packages are installed."""
    found = versions()
    absent = [name for name, version in found.items() if version == "absent"]
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    return Check("packages", "failed" if absent else "ok", text)


def threads() -> Check:
    """Thread limits."""
    import torch

    limits = [
        f"{name}={os.environ.get(name)}" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    ]
    return Check("threads", "ok", f"{cores()} cores, torch uses {torch.get_num_threads()}; {' '.join(limits)}")


def gpu() -> Check:
    """CUDA."""
    import torch

    if not torch.cuda.is_available():
        return Check("gpu", "absent", "no CUDA device; everything runs on the CPU")
    return Check("gpu", "ok", torch.cuda.get_device_name(0))


def checkpoint() -> Check:
    """The shipped generator draws a crystal."""
    from flows.tables.generation import generate
    from generator.checkpoint import load_checkpoint
    from generator.constraints.conditions import Sampling

    loaded = load_checkpoint()
    drawn = generate(loaded, 1, 0, Sampling())
    size = sum(parameter.numel() for parameter in loaded.model.parameters())
    text = f"{size:,} parameters, sha256 {loaded.checksum[:12]}; drew {drawn.candidates[0].formula}"
    return Check("checkpoint", "ok", text)


def known_crystals() -> Check:
    """The novelty reference."""
    from loop.known import KnownCrystals

    return Check("known crystals", "ok", f"{len(KnownCrystals.shipped()):,} fingerprints")


def potential() -> Check:
    """The default potential gives the energies that it should."""
    from oracles.potentials.canary import check_canary
    from oracles.potentials.loading import load_potential

    loaded = load_potential()
    check_canary(loaded)
    return Check("potential", "ok", f"{loaded.energy_type}, canary energies right; {len(loaded.elements)} elements")


def references() -> Check:
    """The reference phases of the default potential; their corners, the molecular ones computed again."""
    from flows.corners import examine
    from oracles.potentials.loading import load_potential
    from oracles.references.table import load_references

    table = load_references()  # refuses stored corners that lie above stored prototypes
    found = examine(table, load_potential(), MOLECULAR_CORNERS, largest=1)
    text = f"{len(table):,} phases of type {table.energy_type}, {table.provenance['relaxed']:,} of them relaxed; "
    if found.too_high:
        wrong = ", ".join(f"{element} by {excess:.3f} eV/atom" for element, excess in found.too_high.items())
        return Check("references", "failed", f"{text}corners lie above their lowest prototypes: {wrong}")
    computed = ", ".join(MOLECULAR_CORNERS)
    return Check("references", "ok", f"{text}corners right ({computed} computed again; `hull check` computes all)")


def overlays() -> Check:
    """Potentials whose packages are apart from this environment's."""
    from oracles.potentials.overlay import KNOWN, problem

    states = {name: problem(overlay) for name, overlay in KNOWN.items()}
    text = ", ".join(f"{name} {state or 'ok'}" for name, state in states.items())
    if not any(states.values()):
        return Check("overlays", "ok", text)
    return Check(
        "overlays", "absent", f"{text}; discovery-loop potential install {next(n for n in states if states[n])}"
    )


def mace() -> Check:
    """MACE foundation models, which are fetched once."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mace"
    models = sorted(path.name for path in folder.glob("*") if path.is_file()) if folder.is_dir() else []
    if not models:
        return Check("mace models", "absent", "none fetched; mace:NAME fetches one where there is internet")
    return Check("mace models", "ok", ", ".join(models))


def dft() -> Check:
    """The DFT engine."""
    import sys

    from oracles.dft.process import INSTALL, find_engine

    try:
        engine = find_engine(sys.executable)
    except EngineError:
        return Check("dft engine", "absent", f"the potential is the highest tier here; to have DFT: {INSTALL}")
    parallel = "with MPI" if engine.mpi and shutil.which("mpiexec") else "one process per crystal (no MPI)"
    return Check("dft engine", "ok", f"GPAW {engine.version}, {len(engine.elements)} elements, {parallel}")


def prefect() -> Check:
    """Prefect's server can be built with the FastAPI that is installed."""
    from prefect.server.api.server import create_app

    create_app()
    found = versions()
    return Check(
        "prefect", "ok", f"prefect {found['prefect']} with fastapi {found['fastapi']}: the server's app builds"
    )


def disk() -> Check:
    """Room for results."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    text = f"{free:.1f} GiB free in {Path.cwd()}"
    return Check("disk", "ok" if free >= LEAST_DISK_GIB else "failed", text)
