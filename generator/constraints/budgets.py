"""What a crystal still needs, as tables of the fewest sites that provide it (dynamic programming).

A table maps what is left of a budget to the least number of further sites, on some set of Wyckoff positions, that
uses it up; `INFEASIBLE` where none do. `add_site` adds one site to every entry, `any_number` as many as fit of one
multiplicity.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from generator.constraints.conditions import ConditionError, Sampling

INFEASIBLE = 100  # more sites than any crystal has
MAX_ENTRIES = 4_000_000  # of a table
ATOM_TYPES = 119

Counts = tuple[int, ...]
Choice = tuple[np.ndarray, int]
"""Elements, bool (119,), that are alike to the budget, and one of them (0: one that nothing asks for)."""


class Budget(Protocol):
    """What the sites of a crystal are counted against."""

    start: Counts

    def empty(self) -> np.ndarray:
        """Table of no further site: 0 where the budget is met already."""
        ...

    def add_site(self, table: np.ndarray, multiplicity: int, element: int) -> np.ndarray:
        """Table of one more site of an element (0: the best one)."""
        ...

    def any_number(self, table: np.ndarray, multiplicity: int) -> np.ndarray:
        """Table of any number of more sites."""
        ...

    def sites(self, table: np.ndarray, counts: Counts, missing: int) -> int:
        """Fewest further sites of a crystal with these counts that lacks so many required elements."""
        ...

    def add(self, counts: Counts, multiplicity: int, element: int) -> Counts:
        """Counts with one more site."""
        ...

    def choices(self, present: frozenset[int]) -> list[Choice]:
        """Elements that a site may take where these are present."""
        ...

    def remember(self, present: frozenset[int]) -> frozenset[int]:
        """Of the elements present those that matter for what may follow."""
        ...


class FormulaBudget:
    """Atoms of each element: exactly k units of a formula, for any k that fits.

    Args:
        sampling: with a formula.
        limit: most atoms in the conventional cell; the very number where `sampling.n_atoms` is given.
        unit: greatest common divisor of the multiplicities of the group.

    Raises:
        ConditionError: the table would not fit into memory.
    """

    def __init__(self, sampling: Sampling, limit: int, unit: int) -> None:
        assert sampling.composition is not None
        self.elements, self.unit = tuple(sampling.composition), unit
        formula = np.array(list(sampling.composition.values()))
        most, rest = divmod(limit, int(formula.sum()))
        k = np.arange(1, most + 1)
        if sampling.n_atoms is not None:
            k = k[-1:] if rest == 0 else k[:0]
        totals = k[:, None] * formula
        self.totals = totals[(totals % unit == 0).all(1)] // unit  # (K, E): what complete crystals hold
        self.shape = tuple((self.totals.max(0, initial=0) + 1).tolist())
        if math.prod(self.shape) > MAX_ENTRIES:
            raise ConditionError(
                f"{sampling.formula} with up to {sampling.atom_limit} atoms in the primitive cell has too many "
                "partial compositions to keep track of; lower max_atoms"
            )
        self.start: Counts = (0,) * len(self.elements)
        self._choices = [(_only(element), element) for element in self.elements]

    def empty(self) -> np.ndarray:
        """See `Budget`."""
        table = np.full(self.shape, INFEASIBLE, np.uint8)
        table[(0,) * len(self.shape)] = 0
        return table

    def add_site(self, table: np.ndarray, multiplicity: int, element: int) -> np.ndarray:
        """See `Budget`."""
        out = np.full_like(table, INFEASIBLE)
        step = multiplicity // self.unit
        for axis, one in enumerate(self.elements):
            if element in (0, one):
                new, old = np.moveaxis(out, axis, 0), np.moveaxis(table, axis, 0)
                np.minimum(new[step:], old[:-step] + 1, out=new[step:])
        result: np.ndarray = np.minimum(out, INFEASIBLE)
        return result

    def any_number(self, table: np.ndarray, multiplicity: int) -> np.ndarray:
        """See `Budget`. One element after the other, each in order of its count: every entry sees its best."""
        out = table.copy()
        step = multiplicity // self.unit
        for axis in range(out.ndim):
            rows = np.moveaxis(out, axis, 0)
            for begin in range(step, len(rows), step):
                new = rows[begin : begin + step]
                np.minimum(new, rows[begin - step : begin][: len(new)] + 1, out=new)
        result: np.ndarray = np.minimum(out, INFEASIBLE)
        return result

    def sites(self, table: np.ndarray, counts: Counts, missing: int) -> int:  # noqa: ARG002
        """See `Budget`."""
        left = self.totals - np.array(counts)
        left = left[(left >= 0).all(1)]
        return int(table[tuple(left.T)].min(initial=INFEASIBLE))

    def add(self, counts: Counts, multiplicity: int, element: int) -> Counts:
        """See `Budget`."""
        step = multiplicity // self.unit
        return tuple(n + step * (one == element) for n, one in zip(counts, self.elements, strict=True))

    def choices(self, present: frozenset[int]) -> list[Choice]:  # noqa: ARG002
        """See `Budget`."""
        return self._choices

    def remember(self, present: frozenset[int]) -> frozenset[int]:  # noqa: ARG002
        """See `Budget`."""
        return frozenset()


class CountBudget:
    """A number of atoms, elements that must occur, and a number of different elements.

    The table counts required elements that are still missing by atoms that are left. Every site whose element is not
    prescribed can take a missing one.

    Args:
        sampling: without a formula.
        limit: most atoms in the conventional cell, or the very number; None: any.
        unit: greatest common divisor of the multiplicities of the group.
    """

    def __init__(self, sampling: Sampling, limit: int | None, unit: int) -> None:
        self.required, self.cap = sampling.required, sampling.max_elements
        self.limited, self.exact = limit is not None, sampling.n_atoms is not None
        self.unit = unit
        self.possible = not (self.exact and limit is not None and limit % unit)
        self.shape = (len(self.required) + 1, (limit or 0) // unit + 1)
        self.start: Counts = (0,)
        self.allowed = np.zeros(ATOM_TYPES, bool)
        self.allowed[list(sampling.allowed)] = True
        self._others = self.allowed.copy()
        self._others[list(self.required)] = False
        self._required = [(_only(element), element) for element in self.required]

    def empty(self) -> np.ndarray:
        """See `Budget`."""
        table = np.full(self.shape, INFEASIBLE, np.uint8)
        if self.possible:
            table[0, : 1 if self.exact else None] = 0
        return table

    def _step(self, multiplicity: int) -> int:
        return multiplicity // self.unit if self.limited else 0

    def add_site(self, table: np.ndarray, multiplicity: int, element: int) -> np.ndarray:
        """See `Budget`."""
        before = np.maximum(np.arange(len(table)) - (element == 0), 0)
        step = self._step(multiplicity)
        out = np.full_like(table, INFEASIBLE)
        out[:, step:] = table[before, : table.shape[1] - step] + 1 if step < table.shape[1] else INFEASIBLE
        result: np.ndarray = np.minimum(out, INFEASIBLE)
        return result

    def any_number(self, table: np.ndarray, multiplicity: int) -> np.ndarray:
        """See `Budget`."""
        while True:
            more = np.minimum(table, self.add_site(table, multiplicity, 0))
            if (more == table).all():
                return table
            table = more

    def sites(self, table: np.ndarray, counts: Counts, missing: int) -> int:
        """See `Budget`."""
        left = self.shape[1] - 1 - counts[0]
        return int(table[missing, left]) if left >= 0 else INFEASIBLE

    def add(self, counts: Counts, multiplicity: int, element: int) -> Counts:  # noqa: ARG002
        """See `Budget`."""
        return (counts[0] + self._step(multiplicity),)

    def choices(self, present: frozenset[int]) -> list[Choice]:
        """See `Budget`."""
        others = self._others
        if self.cap is not None and len(present | self.required) >= self.cap:
            others = np.zeros_like(others)
            others[list(present - self.required)] = True
        return [*self._required, (others, 0)] if others.any() else self._required

    def remember(self, present: frozenset[int]) -> frozenset[int]:
        """See `Budget`."""
        return present if self.cap is not None else present & self.required


def _only(element: int) -> np.ndarray:
    mask = np.zeros(ATOM_TYPES, bool)
    mask[element] = True
    return mask
