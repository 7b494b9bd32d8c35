"""Which letters and elements may follow a prefix, so that every prefix can be completed and no condition is broken.

More than that: after how many further sites at least the crystal can be complete (`INFEASIBLE`: never, so it is
forbidden). An example: four atoms of MgO in the primitive cell of group 225 are 8 Mg and 8 O in the conventional one.
After Mg on a (4 atoms), 4 Mg and 8 O are left: Mg on b (4) and O on c (8) complete it with two further sites, whereas O
on b would leave 4 Mg and 4 O, and no position of 4 atoms.

The sampler and the likelihood ask the same `FeasibleCompletions`. Letters never go back and positions without freedom
are used once (`generator.likelihood.masks`), so the positions that are left depend on the last letter alone, and
whether they suffice is looked up in a table for each letter (`generator.constraints.budgets`). The tables are exact in
both directions: all that is allowed can be completed, all that can be completed is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple, Self

import numpy as np

from generator.constraints.budgets import ATOM_TYPES, INFEASIBLE, Budget, CountBudget, Counts, FormulaBudget
from generator.constraints.conditions import ConditionError, Sampling, space_group_number
from generator.representation.wyckoff import N_GROUPS, WYCK_TYPES, centring, tables

MEMORY = 512 * 2**20  # bytes of tables that are kept; all groups with a formula of three elements need about 10 MB
REMEMBERED = 10_000  # prefixes whose masks are kept, in each group


class State(NamedTuple):
    """What matters of the sites so far."""

    letter: int  # of the last one; 0 before the first
    left: int  # sites that may still follow
    need: tuple[int, ...]  # forced sites on this letter that are still to come: atomic numbers, 0 for any
    counts: Counts  # see Budget
    present: frozenset[int]  # see Budget.remember


def one_less(need: tuple[int, ...], element: int) -> tuple[int, ...]:
    """Forced sites that are left when an element is placed: it serves itself first, then a site of any element."""
    for served in (element, 0):
        if served in need:
            at = need.index(served)
            return need[:at] + need[at + 1 :]
    return need


class GroupFeasibility:
    """What may follow in one space group."""

    def __init__(self, g: int, sampling: Sampling, slots: int) -> None:
        t = tables()
        self.required = sampling.required
        self.n = int(t.n_letters[g])
        self.multiplicity = t.multiplicity[g, : self.n + 1].tolist()
        self.once = t.dof0[g, : self.n + 1].tolist()
        limit = None if sampling.atom_limit is None else sampling.atom_limit * centring(g)
        unit = math.gcd(*self.multiplicity)
        self.budget: Budget = (
            CountBudget(sampling, limit, unit)
            if sampling.composition is None or limit is None
            else FormulaBudget(sampling, limit, unit)
        )
        self.forced: dict[int, tuple[int, ...]] = {}
        for letter, element in sorted(sampling.forced):
            self.forced[letter] = (*self.forced.get(letter, ()), element)
        self._after: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}
        self._elements: dict[tuple[State, int], np.ndarray] = {}
        self._letters: dict[State, np.ndarray] = {}
        self.start = State(0, slots - 1, (), self.budget.start, frozenset())
        self.later: list[np.ndarray] = []
        exist = all(letter <= self.n for letter in self.forced)
        if exist and all(len(need) == 1 for letter, need in self.forced.items() if self.once[letter]):
            self._build()

    def _build(self) -> None:
        """Tables of the positions above each letter, from the last letter to the first."""
        self.later = [self.budget.empty()]
        for letter in range(self.n, 0, -1):
            self.later.insert(0, self._with(letter, self.later[0], self.forced.get(letter, ())))

    def _with(self, letter: int, table: np.ndarray, need: tuple[int, ...]) -> np.ndarray:
        """A table to which the sites on one letter are added, the needed ones for certain."""
        multiplicity = self.multiplicity[letter]
        for element in need:
            table = self.budget.add_site(table, multiplicity, element)
        if not self.once[letter]:
            return self.budget.any_number(table, multiplicity)
        return table if need else np.minimum(table, self.budget.add_site(table, multiplicity, 0))

    def after(self, letter: int, need: tuple[int, ...]) -> np.ndarray:
        """Table of the positions that may follow a site on this letter (0: the first site)."""
        if letter == 0 or self.once[letter]:
            return self.later[letter]
        if need == self.forced.get(letter, ()):
            return self.later[letter - 1]
        if (letter, need) not in self._after:
            self._after[letter, need] = self._with(letter, self.later[letter], need)
        return self._after[letter, need]

    def nbytes(self) -> int:
        """Memory of the tables."""
        return sum(table.nbytes for table in (*self.later, *self._after.values()))

    @cached_property
    def promised(self) -> list[frozenset[int]]:
        """Elements of the forced sites above each letter."""
        return [
            frozenset(e for letter, need in self.forced.items() if letter > last for e in need)
            for last in range(self.n + 1)
        ]

    @cached_property
    def possible(self) -> bool:
        """Whether any crystal fulfils the conditions."""
        return bool(self.later) and bool((self._letters_after(self.start) < INFEASIBLE).any())

    def sites(self, state: State) -> int:
        """Fewest sites that complete a prefix."""
        missing = self.required - state.present - self.promised[state.letter] - set(state.need)
        table = self.after(state.letter, state.need)
        return self.budget.sites(table, state.counts, len(missing))

    def place(self, state: State, letter: int, element: int) -> State:
        """The prefix with one more site; element 0 is one that nothing asks for."""
        need = state.need if letter == state.letter else self.forced.get(letter, ())
        counts = self.budget.add(state.counts, self.multiplicity[letter], element)
        present = self.budget.remember(state.present | {element}) if element else state.present
        return State(letter, state.left - 1, one_less(need, element), counts, present)

    def elements(self, state: State, letter: int) -> np.ndarray:
        """Fewest further sites (119,) after a next site on this letter with each element; INFEASIBLE: not allowed."""
        key = (state, letter)
        if key not in self._elements:
            _make_room(self._elements)
            self._elements[key] = self._elements_after(state, letter)
        return self._elements[key]

    def _elements_after(self, state: State, letter: int) -> np.ndarray:
        further = np.full(ATOM_TYPES, INFEASIBLE, np.uint8)
        for alike, element in self.budget.choices(state.present):
            placed = self.place(state, letter, element)
            served = not (placed.need and self.once[letter])
            if served and (sites := self.sites(placed)) <= placed.left:
                further[alike] = sites
        return further

    def letters(self, state: State) -> np.ndarray:
        """Fewest further sites (28,) after each letter with the best element; INFEASIBLE: not allowed.

        0 is the stop, which is all that an impossible group has.
        """
        if state not in self._letters:
            _make_room(self._letters)
            self._letters[state] = self._letters_after(state) if self.possible else _only_stop()
        return self._letters[state]

    def _letters_after(self, state: State) -> np.ndarray:
        further = np.full(WYCK_TYPES, INFEASIBLE, np.uint8)
        if state.letter and self.sites(state) == 0:
            further[0] = 0
        for letter in self._next(state) if state.left else ():
            further[letter] = self.elements(state, letter).min()
        return further

    def _next(self, state: State) -> list[int]:
        """Letters that symmetry allows and that leave no forced site behind."""
        again = [state.letter] if state.letter and not self.once[state.letter] else []
        if state.need:
            return again
        last = min((letter for letter in self.forced if letter > state.letter), default=self.n)
        return [*again, *range(state.letter + 1, last + 1)]


def _only_stop() -> np.ndarray:
    further = np.full(WYCK_TYPES, INFEASIBLE, np.uint8)
    further[0] = 0
    return further


def _make_room(cache: dict[Any, np.ndarray]) -> None:
    if len(cache) >= REMEMBERED:
        cache.clear()


class Feasibility:
    """What may follow under some conditions, group by group."""

    def __init__(self, sampling: Sampling, slots: int) -> None:
        self.sampling, self.slots = sampling, slots
        self._groups: dict[int, GroupFeasibility] = {}
        self._possible: dict[int, bool] = {}
        self._bytes = 0

    def group(self, g: int) -> GroupFeasibility:
        """Tables of one group; the oldest ones make room."""
        if g not in self._groups:
            made = GroupFeasibility(g, self.sampling, self.slots)
            self._possible[g] = made.possible
            self._bytes += made.nbytes()
            while self._groups and self._bytes > MEMORY:
                self._bytes -= self._groups.pop(next(iter(self._groups))).nbytes()
            self._groups[g] = made
        return self._groups[g]

    def possible(self, g: int) -> bool:
        """Whether any crystal of the group fulfils the conditions."""
        return self._possible[g] if g in self._possible else self.group(g).possible

    def demand(self, groups: Sequence[int]) -> None:
        """Check groups that were asked for.

        Raises:
            ConditionError: names those that are impossible.
        """
        wrong = [g for g in groups if not self.possible(g)]
        if wrong:
            raise ConditionError(
                f"no crystal in space group{'s' * (len(wrong) > 1)} {', '.join(map(str, wrong))} fulfils "
                f"{self.sampling.describe()}: leave {'them' if len(wrong) > 1 else 'it'} out or relax the conditions"
            )

    @cached_property
    def groups(self) -> np.ndarray:
        """Which groups may be drawn, bool (230,).

        Raises:
            ConditionError: one of the groups asked for is impossible, or all groups are.
        """
        asked = sorted({space_group_number(group) for group in self.sampling.space_groups})
        self.demand(asked)
        mask = np.array([self.possible(g) if not asked else g in asked for g in range(1, N_GROUPS + 1)])
        if not mask.any():
            raise ConditionError(f"no crystal of any space group fulfils {self.sampling.describe()}")
        return mask


@lru_cache(maxsize=8)
def feasibility(sampling: Sampling, slots: int) -> Feasibility | None:
    """What may follow under some conditions; None where symmetry and allowed elements say it all."""
    return Feasibility(sampling, slots) if sampling.depends_on_prefix else None


class FeasibleCompletions:
    """The sites so far of n crystals that are drawn or scored together."""

    def __init__(self, conditions: Feasibility, groups: np.ndarray) -> None:
        self.groups = [conditions.group(int(g)) for g in groups]
        self.states: list[State | None] = [group.start for group in self.groups]

    def letters(self) -> np.ndarray:
        """`GroupFeasibility.letters` of each, (n, 28). Once conditions are broken all are allowed: probability 0."""
        broken = np.zeros(WYCK_TYPES, np.uint8)
        return np.stack(
            [
                broken if state is None else group.letters(state)
                for group, state in zip(self.groups, self.states, strict=True)
            ]
        )

    def elements(self, letters: np.ndarray) -> np.ndarray:
        """`GroupFeasibility.elements` of next sites on these letters (n,), (n, 119)."""
        broken = np.zeros(ATOM_TYPES, np.uint8)
        return np.stack(
            [
                broken if state is None or group.letters(state)[w] == INFEASIBLE else group.elements(state, w)
                for group, state, w in zip(self.groups, self.states, letters.tolist(), strict=True)
            ]
        )

    def place(self, letters: np.ndarray, elements: np.ndarray) -> None:
        """Add a site to each."""
        for i, (w, a) in enumerate(zip(letters.tolist(), elements.tolist(), strict=True)):
            group, state = self.groups[i], self.states[i]
            if state is not None:
                legal = group.letters(state)[w] < INFEASIBLE and group.elements(state, w)[a] < INFEASIBLE
                self.states[i] = group.place(state, w, a) if legal else None

    def keep(self, rows: np.ndarray) -> Self:
        """Keep some of them."""
        self.groups, self.states = ([old[i] for i in rows] for old in (self.groups, self.states))
        return self
