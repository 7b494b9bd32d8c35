"""The cheap potential of a campaign: it rewards, screens and describes unrelaxed crystals, on a hull of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pymatgen.core import Structure

from loop.errors import EnergyTypeError
from loop.hull import Hull
from loop.screening import HullScreen
from oracles.potentials.base import Potential
from oracles.potentials.loading import PotentialConfig, potential_of
from oracles.references.table import References, load_references, shipped_for


@dataclass(frozen=True)
class ScreenConfig(PotentialConfig):
    """Which potential judges unrelaxed crystals, thousands per round."""

    references: str | None = None
    """Table of reference phases; none: the one that ships for the potential."""


@dataclass(frozen=True, eq=False)
class CheapPotential:
    """A potential with its reference phases.

    Raises:
        EnergyTypeError: they do not belong together.
    """

    potential: Potential
    references: References

    def __post_init__(self) -> None:
        """Check that energies can be compared."""
        if self.potential.energy_type != self.references.energy_type:
            raise EnergyTypeError(
                f"oracle.screen: {self.potential.name} gives energies of type {self.potential.energy_type}, the "
                f"reference phases hold {self.references.energy_type}: choose references made with this potential "
                "(discovery-loop hull build)."
            )

    @classmethod
    def of(cls, config: ScreenConfig) -> CheapPotential:
        """Load what the settings name.

        Raises:
            DiscoveryLoopError: see `load_potential` and `load_references`.
        """
        potential = potential_of(config)
        try:
            table = load_references(config.references) if config.references else shipped_for(potential.energy_type)
        except EnergyTypeError as error:
            raise EnergyTypeError(f"oracle.screen: {error}") from error
        return cls(potential, table)

    @cached_property
    def hull(self) -> Hull:
        """The hull of the reference phases as they stand: it judges crystals that are not relaxed either."""
        return self.references.hull(relaxed=False)

    @property
    def key(self) -> str:
        """What features computed with it depend on."""
        return f"{self.potential.energy_type}|{self.references.checksum}|as they stand"

    @property
    def screen(self) -> HullScreen:
        """Energies above the hull of unrelaxed crystals."""
        return HullScreen(self.potential.energies, self.potential.energy_type, self.hull)

    def above_hull(self, structures: Sequence[Structure], energies: np.ndarray) -> np.ndarray:
        """Energies above the hull (n,) of crystals whose energies (n,), eV/atom, it has computed already."""
        compositions = [structure.composition for structure in structures]
        found = self.hull.batch(compositions, energies, self.potential.energy_type)
        return np.array([result.e_above_hull for result in found])
