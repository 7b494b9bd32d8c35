"""What crosses the rooms: frozen values with a JSON round trip.

Units: energies eV/atom, lengths Angstrom, moduli GPa, times seconds.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
from pymatgen.core import Structure

from loop.errors import StoreError

OK = "ok"
NOT_CONVERGED = "not-converged"
TIMEOUT = "timeout"
NEW, KNOWN, DUPLICATE = "new", "known", "duplicate"  # what a crystal is beside those known and those seen before


def failed(kind: str) -> str:
    """Status of an evaluation that produced no label, e.g. ``failed:exploded``."""
    return f"failed:{kind}"


def structure_id(structure: Structure) -> str:
    """Content id: hash of lattice (1e-4 A), species and fractional coordinates (1e-4), sites sorted.

    The same stored crystal always gets the same id; equality up to symmetry is the business of `loop.novelty`.
    """
    lattice = np.round(structure.lattice.matrix, 4) + 0.0
    sites = sorted(
        (site.species_string, *(np.round(np.mod(site.frac_coords, 1.0), 4) % 1.0 + 0.0).tolist()) for site in structure
    )
    text = json.dumps([lattice.tolist(), sites], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Origin:
    """Where a candidate comes from."""

    source: str  # "policy", "base", "file", ...
    space_group: int | None = None  # asked of the generator
    policy: str | None = None  # version (checksum) of the policy that drew it
    logp: float | None = None  # nats, log-probability under that policy
    parent: str | None = None  # id of a crystal it was derived from
    label: str | None = None  # the id of the row in the input file


@dataclass(frozen=True)
class Candidate:
    """A crystal under consideration. `structure` is never mutated."""

    structure: Structure
    origin: Origin = Origin("file")
    round: int = 0

    @cached_property
    def id(self) -> str:
        """Content id of the structure."""
        return structure_id(self.structure)

    @property
    def formula(self) -> str:
        """Reduced formula."""
        return self.structure.composition.reduced_formula

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"structure": self.structure.as_dict(), "origin": asdict(self.origin), "round": self.round}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(Structure.from_dict(data["structure"]), Origin(**data["origin"]), data["round"])


PRODUCT = "*"  # between the names of two properties: their product is a property, too


@dataclass(frozen=True)
class EnergyType:
    """What an energy is. Only energies of one type may meet in a hull."""

    method: str  # "CHGNet", "MACE", "DFT", ...
    functional: str  # "PBE", "r2SCAN", ...
    corrections: str  # "MP2020", "none", ...
    checksum: str = ""  # of the model's weights, or of the DFT settings

    def __str__(self) -> str:
        """Short text for tables: method/functional/corrections/checksum[:8]."""
        return "/".join(part for part in (self.method, self.functional, self.corrections, self.checksum[:8]) if part)


@dataclass(frozen=True)
class Quantity:
    """A number with its unit and, where known, one standard deviation."""

    value: float
    unit: str
    std: float | None = None


@dataclass(frozen=True)
class Cost:
    """What an evaluation took."""

    seconds: float
    device: str = "cpu"
    cores: int = 1


@dataclass(frozen=True)
class Evaluation:
    """The outcome of one oracle on one candidate. A failure is a value, never an exception.

    `status` is ``ok``, ``not-converged``, ``timeout`` or ``failed:<kind>``. `properties` holds named quantities, e.g.
    ``energy`` (eV/atom), ``e_above_hull`` (eV/atom), ``bulk_modulus`` (GPa), ``max_force`` (eV/A), ``steps``.
    """

    candidate_id: str
    oracle: str  # name@version
    settings: str  # hash of the settings
    status: str
    properties: dict[str, Quantity] = field(default_factory=dict)
    energy_type: EnergyType | None = None
    structure: Structure | None = None  # relaxed
    space_group: int | None = None  # before, with symprec 0.1 unless `properties` says otherwise
    space_group_relaxed: int | None = None
    decomposition: dict[str, float] = field(default_factory=dict)  # reference id or formula -> fraction of atoms
    cost: Cost = Cost(0.0)
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether the label can be used."""
        return self.status == OK

    def value(self, name: str) -> float:
        """Value of a property, or of a product as ``band_gap*dielectric_electronic``; NaN if it was not measured."""
        if PRODUCT in name:
            return math.prod(self.value(factor) for factor in name.split(PRODUCT))
        quantity = self.properties.get(name)
        return float("nan") if quantity is None else quantity.value

    def with_properties(self, **properties: Quantity) -> Self:
        """A copy with more properties."""
        return replace(self, properties={**self.properties, **properties})

    def joined(self, more: Evaluation) -> Self:
        """With the properties of another evaluation of the same crystal by the same oracle.

        Raises:
            StoreError: a property is there already.
        """
        twice = sorted(self.properties.keys() & more.properties.keys())
        if twice:
            raise StoreError(f"The label of {self.candidate_id} by {self.oracle} holds {', '.join(twice)} already.")
        return replace(
            self,
            properties={**self.properties, **more.properties},
            energy_type=self.energy_type or more.energy_type,
            structure=self.structure if self.structure is not None else more.structure,
            message="; ".join(filter(None, (self.message, more.message))),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        data = {name: getattr(self, name) for name in ("candidate_id", "oracle", "settings", "status", "message")}
        data |= {name: getattr(self, name) for name in ("space_group", "space_group_relaxed", "decomposition")}
        data["properties"] = {name: asdict(quantity) for name, quantity in self.properties.items()}
        data["energy_type"] = asdict(self.energy_type) if self.energy_type else None
        data["structure"] = self.structure.as_dict() if self.structure else None
        data["cost"] = asdict(self.cost)
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        data = dict(data)
        data["properties"] = {name: Quantity(**quantity) for name, quantity in data["properties"].items()}
        data["energy_type"] = EnergyType(**data["energy_type"]) if data["energy_type"] else None
        data["structure"] = Structure.from_dict(data["structure"]) if data["structure"] else None
        data["cost"] = Cost(**data["cost"])
        return cls(**data)


@dataclass(frozen=True)
class Prediction:
    """Means and standard deviations of m named properties for n candidates: arrays of shape (n, m), float64."""

    mean: np.ndarray
    std: np.ndarray
    names: tuple[str, ...]
    units: tuple[str, ...]

    def __post_init__(self) -> None:
        """Check shapes."""
        shape = (len(self.mean), len(self.names))
        if self.mean.shape != shape or self.std.shape != shape or len(self.units) != len(self.names):
            raise ValueError(
                f"Prediction needs mean and std of shape (n, {len(self.names)}) for {self.names=} and as many units, "
                f"got {self.mean.shape=}, {self.std.shape=}, {self.units=}"
            )

    def column(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of one property, each of shape (n,)."""
        if name not in self.names:
            raise KeyError(f"no prediction of {name!r}; there are {self.names}")
        index = self.names.index(name)
        return self.mean[:, index], self.std[:, index]


@dataclass(frozen=True)
class RoundReport:
    """What one round did: counts (the funnel), metrics, seconds of each stage."""

    round: int
    funnel: dict[str, int]
    metrics: dict[str, float]
    seconds: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_dict`."""
        return cls(**data)
