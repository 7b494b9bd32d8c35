"""Whether the corners of a hull are the lowest crystals of their elements."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.progress import of_stage
from loop.contracts import Progress
from loop.errors import EnergyTypeError, InputError
from oracles.references.element_prototypes import LARGEST, lowest_prototypes

if TYPE_CHECKING:
    import pandas as pd

    from oracles.potentials.base import Potential
    from oracles.references.table import References


@dataclass(frozen=True)
class Corners:
    """What a check found."""

    checked: int  # elements
    too_high: dict[str, float]  # eV/atom above the lowest prototype
    tried: pd.DataFrame  # element, prototype, energy (eV/atom), of all that converged


def examine(
    references: References,
    potential: Potential,
    elements: Sequence[str] | None = None,
    progress: Progress | None = None,
    *,
    largest: int = LARGEST,
) -> Corners:
    """Relax prototypes of elements and compare the table's corners with the lowest.

    Args:
        references: the table.
        potential: of the table's energy type.
        elements: symbols; None: all that the table holds.
        progress: told of stages.
        largest: atoms in a cell of prototypes, see `oracles.references.element_prototypes.prototypes`.

    Raises:
        EnergyTypeError: table and potential do not belong together.
        InputError: the table has no such element.
    """
    import pandas as pd

    from oracles.references.table import too_high

    if references.energy_type != potential.energy_type:
        raise EnergyTypeError(
            f"the table holds energies of type {references.energy_type}, {potential.name} gives {potential.energy_type}"
            ": check it with the potential that made it"
        )
    held = references.elements()
    chosen = sorted(held if elements is None else elements)
    if absent := sorted(set(chosen) - held.keys()):
        raise InputError(f"expected elements of the table, it holds no energy of {', '.join(absent)}")
    corners = lowest_prototypes(chosen, potential, largest=largest, progress=of_stage(progress, "corners"))
    lowest = {element: corner.energy for element, corner in corners.items()}
    rows = [(element, name, energy) for element, c in corners.items() for name, energy in c.tried.items()]
    tried = pd.DataFrame(rows, columns=["element", "prototype", "energy"])
    return Corners(len(corners), too_high({element: held[element] for element in chosen}, lowest), tried)
