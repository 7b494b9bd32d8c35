"""Earlier finds placed again on the hull that holds all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from loop.hull import Hull, HullEntry
from loop.values import OK, Candidate, Evaluation, Quantity

ON_HULL = 1e-9  # eV/atom: rounding of the hull's solution


class Rehuller:
    """Implements `loop.contracts.Rehull`.

    Args:
        hull: of the reference phases alone.
    """

    def __init__(self, hull: Hull) -> None:
        self._hull = hull

    def phases(self, system: str) -> list[HullEntry]:
        """Reference phases of a chemical system, such as ``Li-O``, the lowest of each composition."""
        return self._hull.phases(system.split("-"))

    def __call__(self, candidates: Sequence[Candidate], evaluations: Sequence[Evaluation]) -> list[Evaluation]:
        """Same length and order. What lies on the new hull has 0, and decomposes into itself.

        Raises:
            EnergyTypeError: an energy is of another type than the hull's.
        """
        good = [index for index, evaluation in enumerate(evaluations) if evaluation.ok and evaluation.energy_type]
        finds = [
            HullEntry(candidates[index].formula, evaluations[index].value("energy"), evaluations[index].candidate_id)
            for index in good
        ]
        if not finds:
            return list(evaluations)
        hull = self._hull.with_entries(finds, self._hull.energy_type)
        judged = list(evaluations)
        for index in good:
            evaluation = evaluations[index]
            assert evaluation.energy_type is not None
            place = hull.e_above_hull(
                candidates[index].structure.composition, evaluation.value("energy"), evaluation.energy_type
            )
            if place.status == OK:
                above = Quantity(place.e_above_hull if place.e_above_hull > ON_HULL else 0.0, "eV/atom")
                judged[index] = replace(
                    evaluation.with_properties(e_above_hull=above), decomposition=place.decomposition
                )
        return judged
