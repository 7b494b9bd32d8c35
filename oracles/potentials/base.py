"""Interatomic potentials behind one interface: CHGNet (embedded default), MACE, SevenNet, any ASE calculator, others.

Which name means which is a registry: packages add potentials by entry points of ``discovery_loop.potentials``.

Units: energies eV/atom, forces eV/A, stress eV/A^3 in ASE's sign convention (positive under tension, so that a crystal
squeezed by its cell has a negative trace). Crystals go in and out as pymatgen structures, never as tensors.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import atomic_numbers, covalent_radii
from pymatgen.core import Structure

from loop.errors import ConfigError, UnsupportedElementError
from loop.registry import NoOptions, Registry
from loop.values import OK, EnergyType, failed
from oracles.guards import Limits, Verdict, check, unsupported
from oracles.symmetry import Group, find_group, primitive

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

ROUND_OFF = 1e-4  # A: what primitive cells may smooth away; the energy does not notice
ATOMS_IN_BATCH = 128  # beyond this a batch no longer fits the processor's caches and gets slower (measured)
ATOMS_ON_GPU = 2048  # a guess, not measured; crystals of a batch that does not fit its memory are computed singly


@dataclass(frozen=True)
class SinglePoint:
    """What a potential says of one crystal as it stands. NaN and None where the status is not ``ok``."""

    status: str = OK
    energy: float = float("nan")  # eV/atom
    forces: np.ndarray | None = None  # (n, 3) eV/A
    stress: np.ndarray | None = None  # (3, 3) eV/A^3, positive under tension
    features: np.ndarray | None = None  # (d,) invariant, mean over atoms
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether there is an energy."""
        return self.status == OK


@dataclass(frozen=True)
class PotentialInfo:
    """Where a potential comes from and what its numbers mean."""

    name: str
    energy_type: EnergyType
    elements: frozenset[str]
    citation: str
    licence: str
    device: str = "cpu"
    dtype: str = "float64"


class Potential(ABC):
    """A potential with its provenance. Never changes a structure, never raises for one."""

    def __init__(self, about: PotentialInfo, limits: Limits | None = None) -> None:
        self.about = about
        self.limits = limits or Limits()

    @property
    def name(self) -> str:
        """Name it was loaded by."""
        return self.about.name

    @property
    def energy_type(self) -> EnergyType:
        """Type of its energies, weights' checksum included."""
        return self.about.energy_type

    @property
    def elements(self) -> frozenset[str]:
        """Symbols of the elements it knows."""
        return self.about.elements

    @abstractmethod
    def compute(
        self, structures: Sequence[Structure], groups: Sequence[Group], *, gradients: bool
    ) -> list[SinglePoint]:
        """Evaluate one batch of checked crystals; may raise.

        A group that is not trivial allows to make use of it. Forces and stress are averaged over it afterwards.
        """

    @abstractmethod
    def calculator(self) -> Calculator:
        """The same potential for ASE."""

    @cached_property
    def width(self) -> int:
        """Length of its descriptors, 0 where it has none; seen on a simple cubic crystal of a known element."""
        for symbol in sorted(self.elements):
            edge = 2 * float(covalent_radii[atomic_numbers[symbol]])
            point = self.single_points([Structure(np.eye(3) * edge, [symbol], [[0, 0, 0]])], gradients=False)[0]
            if point.ok:
                return 0 if point.features is None else len(point.features)
        return 0

    @property
    def in_processes(self) -> bool:
        """Whether it computes in worker processes of its own, so that callers need not spread it over others."""
        return False

    @property
    def lanes(self) -> int:
        """Crystals that it computes side by side, each by itself; 0: batches are what makes it fast."""
        return 0

    def processor_seconds(self) -> float:
        """Processor time so far of the thread that asks, with that of other processes that computed for it.

        Of several that computed side by side the longest counts: it is never more than what passed on the clock.
        """
        return time.thread_time()

    def close(self) -> None:  # noqa: B027  (most potentials start nothing)
        """End what it started, such as worker processes; it may be used again."""

    def require(self, structure: Structure) -> None:
        """Refuse a crystal with elements that the potential does not know.

        Raises:
            UnsupportedElementError: names them.
        """
        unknown = unsupported(structure, self.elements)
        if unknown:
            raise UnsupportedElementError(
                f"{structure.formula} holds {', '.join(unknown)}, which {self.name} does not know; "
                "leave these elements out or choose another potential."
            )

    def check(self, structure: Structure) -> Verdict:
        """Whether this crystal can be computed at all."""
        return check(structure, self.elements, self.limits)

    def single_points(
        self,
        structures: Sequence[Structure],
        *,
        gradients: bool = True,
        batch_size: int = 16,
        groups: Sequence[Group] | None = None,
    ) -> list[SinglePoint]:
        """Evaluate crystals as they stand, in batches of similar size.

        Args:
            structures: any; what cannot be computed gets a status.
            gradients: also forces and stress (about three times the time).
            batch_size: most crystals in a batch; batches hold at most `ATOMS_IN_BATCH` atoms as well (`ATOMS_ON_GPU`
                there), or one crystal.
            groups: symmetry of each crystal, which must have it exactly (`oracles.symmetry.find_group`). It makes
                CHGNet several times as fast, and keeps forces and stress from breaking it by round-off.

        Returns:
            One result a crystal, in order.
        """
        results = [
            SinglePoint(status=verdict.status, message=verdict.message) for verdict in map(self.check, structures)
        ]
        sound = [index for index, result in enumerate(results) if result.ok]
        every = [Group.trivial(len(structure)) for structure in structures] if groups is None else groups
        most = ATOMS_ON_GPU if self.about.device.startswith("cuda") else ATOMS_IN_BATCH
        for batch in _batches(sound, [len(structure) for structure in structures], batch_size, most):
            points = self._attempt([structures[i] for i in batch], [every[i] for i in batch], gradients)
            for index, point in zip(batch, points, strict=True):
                results[index] = point
        return results

    def _attempt(self, structures: Sequence[Structure], groups: Sequence[Group], gradients: bool) -> list[SinglePoint]:
        """Evaluate a batch; on an error one by one, so that only the culprit fails."""
        try:
            points = self.compute(structures, groups, gradients=gradients)
            return [_judged(_symmetric(*each)) for each in zip(points, groups, structures, strict=True)]
        except Exception as error:  # whatever a model or a calculator raises is this crystal's failure, not the run's
            if len(structures) == 1:
                return [SinglePoint(status=failed("error"), message=f"{type(error).__name__}: {error}")]
        pairs = zip(structures, groups, strict=True)
        return [self._attempt([structure], [group], gradients)[0] for structure, group in pairs]

    def energies_and_descriptors(
        self, structures: Sequence[Structure], *, batch_size: int = 16
    ) -> tuple[np.ndarray, np.ndarray]:
        """Energies (n,) in eV/atom and descriptors (n, d) from one forward pass, NaN for what cannot be computed.

        Both are properties of the crystal and not of its cell, so each is computed in its primitive cell, and with its
        symmetry.
        """
        cells = [primitive(s, ROUND_OFF) if self.check(s).ok else s for s in structures]
        groups = [find_group(cell, ROUND_OFF) if self.check(cell).ok else Group.trivial(len(cell)) for cell in cells]
        points = self.single_points(cells, gradients=False, batch_size=batch_size, groups=groups)
        width = next((len(point.features) for point in points if point.features is not None), None)
        descriptors = np.full((len(points), self.width if width is None else width), np.nan)
        for row, point in zip(descriptors, points, strict=True):
            if point.features is not None:
                row[:] = point.features
        return np.array([point.energy for point in points], dtype=float), descriptors

    def energies(self, structures: Sequence[Structure], *, batch_size: int = 16) -> np.ndarray:
        """Energies in eV/atom, shape (n,), NaN for what cannot be computed."""
        return self.energies_and_descriptors(structures, batch_size=batch_size)[0]

    def descriptors(self, structures: Sequence[Structure], *, batch_size: int = 16) -> np.ndarray:
        """Invariant features (n, d), d = 0 for potentials that have none."""
        return self.energies_and_descriptors(structures, batch_size=batch_size)[1]


@dataclass(frozen=True)
class PotentialRequest:
    """What a potential is loaded by; see `load_potential`."""

    name: str  # all of it, as "mace:medium"
    device: str | None = None
    dtype: str | None = None
    trust: bool = False
    options: Any = field(default_factory=dict)  # instance of the kind's options; a mapping where it declares none
    environment: str | None = None
    workers: int = 1

    @property
    def kind(self) -> str:
        """What stands before the colon, in lower case."""
        return self.name.partition(":")[0].lower()

    @property
    def rest(self) -> str:
        """What stands behind the colon: a model, a version, a path."""
        return self.name.partition(":")[2]


@dataclass(frozen=True)
class PotentialKind:
    """What an entry point of ``discovery_loop.potentials`` leads to, or its `load` alone.

    Attributes:
        load: makes the potential; raises `loop.errors.ConfigError` for what it cannot do.
        options: frozen dataclass of its settings; None: any, for `load` to judge.
    """

    load: Callable[[PotentialRequest], Potential]
    options: type | None = NoOptions


POTENTIALS = Registry(
    "potentials",
    PotentialKind,
    {
        "chgnet": "oracles.potentials.chgnet:POTENTIAL",
        "sevennet": "oracles.potentials.sevennet:POTENTIAL",
        "mace": "oracles.potentials.mace:POTENTIAL",
        "ase": "oracles.potentials.ase:POTENTIAL",
    },
)


def refuse_environment(request: PotentialRequest) -> None:
    """For potentials that run in this process.

    Raises:
        ConfigError: another environment is asked for.
    """
    if request.environment is not None:
        raise ConfigError(
            f"In another environment ({request.environment}) a potential is named as an ASE calculator, module:Class, "
            f"such as mace.calculators:MACECalculator with its options; got {request.name!r}."
        )


def resolve_device(device: str | None) -> str:
    """The device asked for, or CUDA where there is one.

    Raises:
        ConfigError: CUDA was asked for and there is none.
    """
    import torch

    if device is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"The device {device!r} was asked for, but torch sees no CUDA device: use 'cpu'.")
    return device


def _symmetric(point: SinglePoint, group: Group, structure: Structure) -> SinglePoint:
    """A result with forces and stress averaged over the group."""
    if len(group) < 2 or point.forces is None or point.stress is None:
        return point
    forces, stress = group.symmetrise(point.forces, point.stress, structure.lattice.matrix)
    return replace(point, forces=forces, stress=stress)


def _judged(point: SinglePoint) -> SinglePoint:
    """A result without finite numbers is a failure."""
    arrays = [array for array in (point.energy, point.forces, point.stress) if array is not None]
    if point.ok and not all(np.isfinite(array).all() for array in arrays):
        return SinglePoint(status=failed("not-finite"), message="the potential gave NaN or infinity")
    return point


def _batches(indices: Sequence[int], sizes: Sequence[int], batch_size: int, most: int) -> Iterator[list[int]]:
    """Indices in batches of similar size, at most `most` atoms each."""
    batch: list[int] = []
    atoms = 0
    for index in sorted(indices, key=lambda i: sizes[i]):
        if batch and (len(batch) >= batch_size or atoms + sizes[index] > most):
            yield batch
            batch, atoms = [], 0
        batch.append(index)
        atoms += sizes[index]
    if batch:
        yield batch
