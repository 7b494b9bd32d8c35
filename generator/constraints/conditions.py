"""What is asked of generated crystals: settings that change the distribution, and hence the likelihood.

All conditions are exact: a crystal that breaks one has probability 0, and the sampler never runs into a dead end
(`generator.constraints.feasibility`). Cells are counted by their PRIMITIVE cell, of the space group that the crystal is
drawn in: the atoms of the conventional cell divided by its centring (1 for P; 2 for A, C, I; 3 for R; 4 for F).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

from generator.representation.wyckoff import LETTERS, N_GROUPS
from loop.errors import InputError

FORMULA_ATOMS = 60  # largest primitive cell of a formula whose `max_atoms` is not given, if one unit is not larger
N_ELEMENTS = 118
URGENCY = 8.0  # nats; best or within 2 nats of it in KL to p(x | conditions), over nine conditions, see docs/LOG.md

Elements = tuple[int | str, ...]


class ConditionError(InputError, ValueError):
    """Conditions that make no sense, contradict each other or cannot be fulfilled."""


@dataclass(frozen=True)
class Sampling:
    """What changes the distribution that crystals are drawn from. Elements are symbols or atomic numbers.

    `temperature` divides the logits of letters, elements and mixture components and kappa, and multiplies the variance
    of the cell; `top_p` keeps the smallest set of choices whose untempered probability reaches it (arXiv 1904.09751).
    `urgency` steers towards what the conditions still lack (`generator.likelihood`); 0 masks and renormalises only.
    Logits get bias and urgency, then what is forbidden is masked, then come top-p and temperature. None of it touches
    p(g) but that groups in which the conditions cannot be met are left out.

    Raises:
        ConditionError: a value is out of range, or two of them contradict each other.
    """

    temperature: float = 1.0
    """Divides logits; below 1 samples are closer to the mode."""
    top_p: float = 1.0
    """Keep the most probable choices that together reach this probability; 1: all."""
    elements: Elements = ()
    """Allowed elements; empty: all."""
    exclude: Elements = ()
    """Forbidden elements."""
    require: Elements = ()
    """Elements that must all occur."""
    chemical_system: Elements | str = ()
    """Exactly these elements occur, as a list or as "Sr-Ti-O"."""
    max_elements: int | None = None
    """Largest number of different elements."""
    formula: str | None = None
    """Reduced formula; any number of formula units that fits."""
    max_atoms: int | None = None
    """Largest primitive cell, atoms."""
    n_atoms: int | None = None
    """Exact number of atoms in the primitive cell."""
    sites: tuple[str, ...] = ()
    """Wyckoff positions that must occur, as "c" or "c:Ti"; named twice for two sites."""
    bias: dict[int | str, float] = field(default_factory=dict, hash=False)
    """Added to the logits of elements, nats."""
    urgency: float = URGENCY
    """Nats by which a choice is preferred for each further site that it saves."""
    space_groups: tuple[int | str, ...] = ()
    """Allowed space groups, by number or symbol; empty: all in which the conditions can be met."""
    prompt: bool = True
    """Tell a network that takes prompts which elements are asked for (formula, chemical_system)."""

    def __post_init__(self) -> None:
        """Check ranges, bring elements to symbols, and refuse contradictions."""
        if not self.temperature > 0:
            raise ConditionError(f"temperature must be positive, got {self.temperature}")
        if not 0 <= self.urgency < math.inf:
            raise ConditionError(f"urgency must be 0 or more, got {self.urgency}")
        if not 0 < self.top_p <= 1:
            raise ConditionError(f"top_p must be in (0, 1], got {self.top_p}")
        for name in ("max_elements", "max_atoms", "n_atoms"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConditionError(f"{name} must be at least 1, got {value}")
        for name in ("elements", "exclude", "require", "chemical_system"):
            self._set(name, symbols(getattr(self, name)))
        self._set("sites", tuple(self.sites))
        self._set("space_groups", tuple(space_group_number(group) for group in self.space_groups))
        bias = {symbols([element])[0]: float(value) for element, value in self.bias.items()}
        self._set("bias", bias)
        if not all(map(math.isfinite, bias.values())):
            raise ConditionError(f"bias must be finite, got {bias}; to forbid an element, use exclude")
        self._contradictions()

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _contradictions(self) -> None:
        if not self.allowed:
            raise ConditionError("no element is left: elements, exclude, chemical_system and formula leave none")
        beyond = self.required - self.allowed
        if beyond:
            raise ConditionError(
                f"required by require, sites, chemical_system or formula, but not allowed: {', '.join(names(beyond))}"
            )
        if self.max_elements is not None and len(self.required) > self.max_elements:
            raise ConditionError(
                f"max_elements is {self.max_elements}, but {', '.join(names(self.required))} are required"
            )
        if self.n_atoms is not None and self.max_atoms is not None and self.n_atoms > self.max_atoms:
            raise ConditionError(f"n_atoms is {self.n_atoms}, but max_atoms is {self.max_atoms}")
        unit, limit = sum((self.composition or {}).values()), self.n_atoms or self.max_atoms
        if limit is not None and unit > limit:
            raise ConditionError(f"one unit of {self.formula} has {unit} atoms, at most {limit} were asked for")

    @cached_property
    def composition(self) -> dict[int, int] | None:
        """Atoms of each element (atomic number) in one unit of the formula."""
        return None if self.formula is None else parse_formula(self.formula)

    @cached_property
    def allowed(self) -> frozenset[int]:
        """Atomic numbers that may occur."""
        left = set(numbers(self.elements)) or set(range(1, N_ELEMENTS + 1))
        for only in (numbers(self.chemical_system), self.composition):
            left &= set(only or left)
        return frozenset(left - set(numbers(self.exclude)))

    @cached_property
    def forced(self) -> tuple[tuple[int, int], ...]:
        """Letter index and atomic number (0: any) of the sites that must occur."""
        return tuple(parse_site(site) for site in self.sites)

    @cached_property
    def required(self) -> frozenset[int]:
        """Atomic numbers that must occur."""
        of_sites = {element for _, element in self.forced if element}
        return frozenset(of_sites.union(numbers(self.require), numbers(self.chemical_system), self.composition or ()))

    @property
    def depends_on_prefix(self) -> bool:
        """Whether what may follow depends on the sites before, beyond what symmetry says."""
        counted = (self.max_elements, self.max_atoms, self.n_atoms)
        return bool(self.required or self.sites) or any(limit is not None for limit in counted)

    def within(self, space_groups: Iterable[int | str]) -> Self:
        """The same with other allowed space groups, where any are given."""
        groups = tuple(space_groups)
        return replace(self, space_groups=groups) if groups else self

    def describe(self) -> str:
        """The conditions that can make a space group impossible, for messages."""
        parts = {"formula": self.formula, "n_atoms": self.n_atoms, "max_atoms": self.max_atoms}
        parts |= {"sites": ", ".join(self.sites), "required": ", ".join(names(self.required))}
        if self.formula is not None and self.max_atoms is None and self.n_atoms is None:
            parts["max_atoms"] = f"{self.atom_limit} (the default with a formula)"
        return "; ".join(f"{name} {value}" for name, value in parts.items() if value)

    @property
    def atom_limit(self) -> int | None:
        """Most atoms in the primitive cell."""
        if self.n_atoms is None and self.max_atoms is None and self.composition is not None:
            return max(FORMULA_ATOMS, sum(self.composition.values()))
        return self.max_atoms if self.n_atoms is None else self.n_atoms


def symbols(elements: Iterable[int | str] | str) -> tuple[str, ...]:
    """Element symbols of symbols or atomic numbers, or of a chemical system such as ``Sr-Ti-O``, without repeats.

    Raises:
        ConditionError: there is no such element.
    """
    from ase.data import atomic_numbers, chemical_symbols

    found = []
    for element in elements.split("-") if isinstance(elements, str) else elements:
        if isinstance(element, str):
            number = atomic_numbers.get(element.strip(), 0)
        else:
            number = 0 if isinstance(element, bool) else int(element)
        if not 1 <= number <= N_ELEMENTS:
            hint = "" if element != 0 else '; where a bare No was read as false, put "No" in quotes'
            raise ConditionError(f"{element!r} is no element: expected a symbol such as O, or 1..{N_ELEMENTS}{hint}")
        found.append(chemical_symbols[number])
    return tuple(dict.fromkeys(found))


def space_group_number(group: int | str) -> int:
    """Number of a space group given by number or Hermann-Mauguin symbol in any setting, such as Fm-3m or P21/c.

    Raises:
        ConditionError: there is no such group.
    """
    import gemmi

    text = str(group).strip()
    if text.isdigit():
        if 1 <= int(text) <= N_GROUPS:
            return int(text)
        raise ConditionError(f"space groups must lie in 1..{N_GROUPS}, got {group}")
    found = gemmi.find_spacegroup_by_name(text.replace("_", ""))
    if found is None:
        raise ConditionError(f"{group!r} is no space group: expected a number 1..{N_GROUPS} or a symbol such as Fm-3m")
    return int(found.number)


def numbers(elements: Iterable[int | str]) -> tuple[int, ...]:
    """Atomic numbers of symbols or atomic numbers."""
    if not elements:
        return ()
    from ase.data import atomic_numbers

    return tuple(atomic_numbers[symbol] for symbol in symbols(elements))


def names(elements: Iterable[int]) -> list[str]:
    """Symbols of atomic numbers, in their order."""
    return list(symbols(sorted(elements)))


def parse_formula(text: str) -> dict[int, int]:
    """Atoms of each element (atomic number) in the reduced formula.

    Raises:
        ConditionError: it is no formula, or its amounts are no whole numbers.
    """
    from pymatgen.core import Composition

    try:
        amounts = {element.Z: float(amount) for element, amount in Composition(text).items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ConditionError(f"{text!r} is no formula: expected one such as SrTiO3 ({error})") from error
    whole = {number: round(amount) for number, amount in amounts.items()}
    if not whole or any(abs(amounts[z] - whole[z]) > 1e-6 or whole[z] < 1 for z in whole):
        raise ConditionError(f"{text!r}: expected a formula with whole numbers such as SrTiO3")
    divisor = math.gcd(*whole.values())
    return {number: amount // divisor for number, amount in whole.items()}


def parse_site(text: str) -> tuple[int, int]:
    """Letter index and atomic number (0: any) of ``c`` or ``c:Ti``.

    Raises:
        ConditionError: it reads otherwise.
    """
    match = re.fullmatch(r"([a-zA])(?::(\w+))?", str(text).strip())
    if match is None:
        raise ConditionError(f"{text!r} is no site: expected a Wyckoff letter, alone (c) or with an element (c:Ti)")
    letter, element = match.groups()
    return LETTERS.index(letter), 0 if element is None else numbers([element])[0]
