"""Ion substitution on known crystals: the baseline that a learned generator has to beat.

A known crystal is drawn, one or two of its elements are replaced by likely ones, and the cell is scaled to the volume
that the new elements ask for. Ions are replaced by ions of the same charge with the data-mined probabilities of Hautier
et al., Inorg. Chem. 50, 656 (2011), doi 10.1021/ic102031h, as pymatgen ships them; elements without a charge by their
neighbours on Pettifor's scale (Solid State Commun. 51, 31 (1984)). Volumes: data-mined bond lengths, Chu et al., J.
Phys.: Condens. Matter 30, 355901 (2018), as pymatgen ships them, too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from generator.constraints.conditions import ConditionError, Sampling, names
from loop.contracts import Progress, Reward
from loop.errors import CheckpointError, ConfigError
from loop.values import Candidate, Origin

if TYPE_CHECKING:
    from pymatgen.core import Structure

STATE = "substitution.json"
LEAST = 1e-3  # probability below which a substitution is never made; pymatgen's own
REACH = 2.0  # places on Pettifor's scale over which the weight of a neighbour falls to 1/e
TRIES = 500  # attempts per crystal asked for, before fewer are given


class Parents(Protocol):
    """Known crystals to start from."""

    def structure(self, id: str) -> Structure:
        """The crystal of an id."""
        ...


@dataclass(frozen=True)
class SubstitutionConfig:
    """Which known crystals are parents, and how many of their elements change.

    Raises:
        ConfigError: a value is out of range.
    """

    max_e_above_hull: float = 0.1
    """Parents lie at most this far above the published hull, eV/atom; of each formula the lowest one is a parent."""
    max_atoms: int = 20
    """Largest primitive cell of a parent, atoms."""
    max_changes: int = 2
    """Elements that are replaced, where the conditions do not require more."""
    min_distance: float = 0.5
    """Smallest distance of any two atoms, A; closer crystals are drawn again."""

    def __post_init__(self) -> None:
        """Check ranges."""
        least = {"max_e_above_hull": 0, "max_atoms": 1, "max_changes": 1, "min_distance": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"substitution.{name}: expected at least {low}, got {getattr(self, name)}")


class SubstitutionGenerator:
    """Implements `loop.contracts.Generator`. It learns nothing: `learn` returns no row.

    Args:
        ids: of the parents.
        formulas: theirs, reduced, in the same order.
        crystals: the parents themselves.
        sampling: conditions on what is proposed: elements, formula, chemical system, atoms, space groups (of the
            parent, found at 0.1 A).
        config: how elements are replaced.

    Raises:
        ConfigError: no parent is left, or a condition is one that only the learned generator knows.
    """

    def __init__(
        self,
        ids: Sequence[str],
        formulas: Sequence[str],
        crystals: Parents,
        sampling: Sampling | None = None,
        config: SubstitutionConfig | None = None,
    ) -> None:
        self.crystals, self.sampling, self.config = crystals, sampling or Sampling(), config or SubstitutionConfig()
        self.tried = 0  # attempts of the last `propose`
        _refuse_unknown(self.sampling)
        fitting = [(id, formula) for id, formula in zip(ids, formulas, strict=True) if self._may_be_parent(formula)]
        if not fitting:
            raise ConfigError(
                f"no known crystal among {len(ids)} can become what is asked for: {self.sampling.describe()}"
            )
        self._parents = sorted(fitting)

    def propose(self, n: int, *, seed: int, round: int) -> list[Candidate]:
        """Draw n crystals; fewer where `TRIES` attempts per crystal do not suffice."""
        rng = np.random.default_rng(seed)
        found: list[Candidate] = []
        self.tried = 0
        while len(found) < n and self.tried < TRIES * n:
            self.tried += 1
            id, formula = self._parents[rng.integers(len(self._parents))]
            mapping = self._mapping(formula, rng)
            structure = None if mapping is None else self._replaced(id, mapping)
            if structure is not None:
                found.append(Candidate(structure, Origin("substitution", parent=id), round))
        return found

    def learn(
        self,
        reward: Reward,  # noqa: ARG002
        *,
        seed: int,  # noqa: ARG002
        round: int,  # noqa: ARG002
        progress: Progress | None = None,  # noqa: ARG002
        checkpoint: Path | None = None,  # noqa: ARG002
    ) -> list[dict[str, Any]]:
        """Nothing is learned."""
        return []

    def save(self, path: Path) -> None:
        """Write the settings, so that `load` can tell another generator's folder."""
        path.mkdir(parents=True, exist_ok=True)
        (path / STATE).write_text(json.dumps(self._state(), indent=1) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        """Check that the folder is of a generator with the same settings and parents.

        Raises:
            CheckpointError: it is not.
        """
        try:
            held = json.loads((path / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"expected the settings of an ion substitution in {path}: {error}") from error
        if held != self._state():
            raise CheckpointError(f"{path} is of an ion substitution with other settings: {held}")

    def _state(self) -> dict[str, Any]:
        return {"config": asdict(self.config), "parents": len(self._parents), "asked": self.sampling.describe()}

    def _may_be_parent(self, formula: str) -> bool:
        """Whether the conditions on numbers of elements and amounts can be met: replacing changes neither."""
        amounts, sampling = _amounts(formula), self.sampling
        if len(amounts) < len(sampling.required) or len(amounts) > len(sampling.allowed):
            return False
        if sampling.chemical_system and len(amounts) != len(sampling.required):
            return False
        if sampling.composition is not None:
            return sorted(amounts.values()) == sorted(sampling.composition.values())
        return sampling.max_elements is None or len(amounts) <= sampling.max_elements

    def _mapping(self, formula: str, rng: np.random.Generator) -> dict[str, str] | None:
        """Which element becomes which; None where the draw leads to nothing that is allowed."""
        present = list(_amounts(formula))
        allowed, missing = set(names(self.sampling.allowed)), set(names(self.sampling.required)) - set(present)
        changes = {symbol for symbol in present if symbol not in allowed}
        wanted = max(int(rng.integers(1, self.config.max_changes + 1)), len(missing))
        free = [symbol for symbol in present if symbol not in changes and symbol not in self._required]
        extra = min(max(wanted - len(changes), 0), len(free))
        changes |= set(rng.choice(free, extra, replace=False).tolist()) if extra else set()
        mapping: dict[str, str] = {}
        for symbol in (symbol for symbol in present if symbol in changes):
            left = missing - set(mapping.values())
            taken = set(present) | set(mapping.values())
            targets = {s: w for s, w in _targets(formula, symbol).items() if s in (left or allowed) and s not in taken}
            if not targets:
                return None
            weights = np.array(list(targets.values()))
            mapping[symbol] = str(rng.choice(list(targets), p=weights / weights.sum()))
        return mapping if mapping and missing <= set(mapping.values()) and self._fits(formula, mapping) else None

    @property
    def _required(self) -> set[str]:
        return set(names(self.sampling.required))

    def _fits(self, formula: str, mapping: dict[str, str]) -> bool:
        """Whether it is the formula asked for, if one is."""
        if self.sampling.composition is None:
            return True
        from pymatgen.core import Element

        amounts = {Element(mapping.get(s, s)).Z: amount for s, amount in _amounts(formula).items()}
        return amounts == self.sampling.composition

    def _replaced(self, id: str, mapping: dict[Any, Any]) -> Structure | None:
        """The crystal with other elements and the volume that they ask for; None where a condition is broken."""
        structure = self.crystals.structure(id)
        atoms, sampling = len(structure), self.sampling
        if (sampling.n_atoms not in (None, atoms)) or atoms > (sampling.atom_limit or atoms):
            return None
        if sampling.space_groups and _space_group(structure) not in sampling.space_groups:
            return None
        structure.replace_species(mapping)
        scaled = _scaled(structure)
        return scaled if scaled is not None and scaled.is_valid(self.config.min_distance) else None


def _refuse_unknown(sampling: Sampling) -> None:
    """Refuse conditions that mean something to the learned generator alone."""
    odd = {"temperature": sampling.temperature != 1, "top_p": sampling.top_p != 1, "sites": bool(sampling.sites),
           "bias": bool(sampling.bias)}  # fmt: skip
    if any(odd.values()):
        named = ", ".join(name for name, asked in odd.items() if asked)
        raise ConditionError(f"ion substitution knows nothing of {named}: leave it out, or use the learned generator")


@lru_cache(maxsize=100_000)
def _amounts(formula: str) -> dict[str, int]:
    from pymatgen.core import Composition

    return {str(element): round(amount) for element, amount in Composition(formula).items()}


@lru_cache(maxsize=100_000)
def _targets(formula: str, symbol: str) -> dict[str, float]:
    """What may replace an element of a formula, and how likely."""
    charge = _charges(formula).get(symbol)
    return _neighbours(symbol) if not charge else _ions(symbol, charge)


@lru_cache(maxsize=100_000)
def _charges(formula: str) -> dict[str, float]:
    """Likely oxidation states, averages over sites; empty where no assignment is neutral."""
    from pymatgen.core import Composition

    guesses = Composition(formula).oxi_state_guesses(max_sites=-1)
    return dict(guesses[0]) if guesses else {}


@lru_cache(maxsize=1)
def _probabilities() -> Any:
    from pymatgen.core.structure_prediction.substitution_probability import SubstitutionProbability

    return SubstitutionProbability()


@lru_cache(maxsize=10_000)
def _ions(symbol: str, charge: float) -> dict[str, float]:
    """Ions of the same charge, by conditional probability; mixed valences take the nearest whole charge known."""
    table = _probabilities()
    own = sorted(
        (s for s in table.species if s.symbol == symbol), key=lambda s: (abs(s.oxi_state - charge), s.oxi_state)
    )
    if not own or abs(own[0].oxi_state - charge) > 1:
        return _neighbours(symbol)
    chances = {
        str(s.symbol): float(table.cond_prob(s, own[0]))
        for s in table.species
        if s.oxi_state == own[0].oxi_state and s.symbol != symbol
    }
    return {s: chances[s] for s in sorted(chances) if chances[s] >= LEAST}


@lru_cache(maxsize=200)
def _neighbours(symbol: str) -> dict[str, float]:
    """Elements by nearness on Pettifor's scale."""
    from pymatgen.core import Element

    def place(element: Element) -> int | None:
        return int(element.mendeleev_no) if element.mendeleev_no else None

    own = place(Element(symbol))
    if own is None:
        return {}
    others = {e.symbol: place(e) for e in sorted(Element, key=lambda e: e.Z) if e.symbol not in (symbol, "D", "T")}
    weights = {s: float(np.exp(-abs(m - own) / REACH)) for s, m in others.items() if m is not None}
    return {s: weight for s, weight in weights.items() if weight >= LEAST}


def _space_group(structure: Structure) -> int:
    from loop.moyo import find_symmetry

    found = find_symmetry(structure, 0.1)
    return 1 if found is None else int(found.number)


def _scaled(structure: Structure) -> Structure | None:
    """At the volume of data-mined bond lengths; None where nothing is known of them."""
    from pymatgen.core.structure_prediction.volume_predictor import DLSVolumePredictor

    predict: Callable[[Structure], float] = DLSVolumePredictor().predict
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            structure.scale_lattice(predict(structure))
    except (ValueError, TypeError, KeyError):  # no bond, or an element without a radius
        return None
    return structure
