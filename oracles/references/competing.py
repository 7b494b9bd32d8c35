"""Competing phases relaxed when they are needed, so that they are treated as the candidates that they judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from oracles.relax import RelaxConfig, relax

if TYPE_CHECKING:
    from pymatgen.core import Composition, Structure

    from oracles.potentials.base import Potential
    from oracles.references.table import References


def relax_competing(
    compositions: Sequence[Composition | Mapping[str, float] | str],
    references: References,
    crystal: Callable[[str], Structure | None],
    potential: Potential,
    config: RelaxConfig | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> References:
    """Relax the phases that decide the distances of some compositions, until none of these is a single point.

    A relaxed phase lies lower, so that another one may decide afterwards: this is repeated until nothing changes.

    Args:
        compositions: of the candidates; elements unknown to the table are passed over.
        references: of the potential's energy type.
        crystal: the crystal with an id of the table, None where there is none.
        potential: relaxes.
        config: the settings of the candidates' relaxation; None: the default.
        progress: called with the number of phases done and their total, in each round.

    Returns:
        The table with relaxed energies. What has no crystal, or did not converge, stays in `not_relaxed`.

    Raises:
        EnergyTypeError: the potential's energies are of another type than the table's.
    """
    seen: set[str] = set()
    while True:
        hull = references.hull()
        deciding: dict[str, str] = {}
        for composition in compositions:
            deciding |= hull.e_above_hull(composition, 0.0, potential.energy_type).ids
        todo = {formula: id for formula, id in deciding.items() if formula in references.not_relaxed - seen}
        if not todo:
            return references
        seen |= todo.keys()
        found = {formula: crystal(id) for formula, id in todo.items()}
        there = {formula: structure for formula, structure in found.items() if structure is not None}
        outcomes = relax(list(there.values()), potential, config or RelaxConfig(), progress)
        done = {formula: out.energy for formula, out in zip(there, outcomes, strict=True) if out.ok}
        references = references.with_energies(done)
