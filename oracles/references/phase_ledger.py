"""Energies of competing phases, computed once: a ledger of relaxations that every process of this machine shares.

What computes them is a `PhaseComputer`: a potential with the settings of a relaxation (`PotentialPhases`), or DFT
(`oracles.dft.hull`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from loop.errors import InputError
from loop.io.files import hash_of, make_folder
from loop.store import OracleKey, Store
from loop.values import OK, Cost, EnergyType, Evaluation, Quantity, failed, structure_id
from oracles.relax import RelaxConfig, Relaxed, relax

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from oracles.potentials.base import Potential

VERSION = "1"  # raised when the same settings no longer give the same numbers
NOT_RESULTS = ("batch_size", "standardise")  # settings that do not change an energy
VARIABLE = "DISCOVERY_LOOP_PHASES"  # another place for the ledger: a file or a database URL
CAMPAIGN = "reference-phases"  # under which the ledger books what they cost
POLL = 0.3  # s between looks at what another process computes

Progress = Callable[[int, int], None]


def default_ledger() -> str:
    """$DISCOVERY_LOOP_PHASES, else a file in the user's data folder."""
    if chosen := os.environ.get(VARIABLE):
        return chosen
    base = os.environ.get("XDG_DATA_HOME")
    user = Path(base) if base else Path.home() / ".local" / "share"
    return str(make_folder(user / "discovery-loop") / "reference_phases.db")


def relaxation(config: RelaxConfig) -> dict[str, Any]:
    """Settings that decide a relaxed energy."""
    return {name: value for name, value in asdict(config).items() if name not in NOT_RESULTS}


class PhaseComputer(Protocol):
    """Computes competing phases, as candidates are computed."""

    @property
    def key(self) -> OracleKey:
        """Under which relaxed phases are kept: everything that decides their energies."""
        ...

    @property
    def energy_type(self) -> EnergyType:
        """Of all its energies."""
        ...

    @property
    def elements(self) -> frozenset[str]:
        """Symbols that it knows."""
        ...

    @property
    def costly(self) -> bool:
        """Minutes a crystal: of an element the published crystals are looked at as they stand, and few are relaxed."""
        ...

    def points(self, crystals: Mapping[str, Structure], progress: Progress | None = None, /) -> dict[str, Evaluation]:
        """Energies of crystals as they stand, by the same ids; no energy where there is none."""
        ...

    def relax(self, crystals: Mapping[str, Structure], keep: Callable[[Evaluation], None]) -> None:
        """Relax crystals, by their content ids; `keep` is called with each evaluation as soon as it is done."""
        ...


class PotentialPhases:
    """Phases by a potential, relaxed by the candidates' own settings.

    Args:
        potential: relaxes.
        config: of the relaxation.
    """

    costly = False

    def __init__(self, potential: Potential, config: RelaxConfig) -> None:
        self.potential, self.config = potential, config
        self.energy_type: EnergyType = potential.energy_type
        self.elements: frozenset[str] = potential.elements
        what = [VERSION, asdict(potential.energy_type), potential.about.dtype, relaxation(config)]
        self.key = OracleKey(f"phase-{potential.name}@{VERSION}", hash_of(what)[:16])

    def points(self, crystals: Mapping[str, Structure], _: Progress | None = None) -> dict[str, Evaluation]:
        """Single points; so cheap that they are not kept."""
        energies = self.potential.energies(list(crystals.values())).tolist()
        return {id: self._point(id, energy) for id, energy in zip(crystals, energies, strict=True)}

    def relax(self, crystals: Mapping[str, Structure], keep: Callable[[Evaluation], None]) -> None:
        """Relax crystals together."""
        names = list(crystals)
        relax(
            list(crystals.values()),
            self.potential,
            self.config,
            finished=lambda index, outcome: keep(self._evaluation(names[index], outcome)),
        )

    def _point(self, id: str, energy: float) -> Evaluation:
        measured = {"energy": Quantity(energy, "eV/atom")} if energy == energy else {}
        status = OK if measured else failed("no-energy")
        return Evaluation(id, self.key.oracle, self.key.settings, status, measured, self.energy_type)

    def _evaluation(self, key: str, outcome: Relaxed) -> Evaluation:
        measured: dict[str, Any] = {}
        if outcome.structure is not None:
            measured = {"energy": Quantity(outcome.energy, "eV/atom"), "steps": Quantity(float(outcome.steps), "1")}
        return Evaluation(
            key,
            self.key.oracle,
            self.key.settings,
            outcome.status,
            measured,
            self.energy_type,
            outcome.structure,
            cost=Cost(outcome.seconds, self.potential.about.device),
            message=outcome.message,
        )


class PhaseLedger:
    """Relaxed energies of crystals by one computer, each paid for once.

    Args:
        computer: relaxes what the ledger does not hold.
        where: file or URL of the ledger; None: `default_ledger`.
    """

    def __init__(self, computer: PhaseComputer, where: str | None = None) -> None:
        self.computer, self.key = computer, computer.key
        self.where = where or default_ledger()

    def energies(self, crystals: Mapping[str, Structure], progress: Progress | None = None) -> dict[str, Evaluation]:
        """Relax what the ledger does not hold, wait for what other processes relax, and return all of it by id.

        Args:
            crystals: by any ids; the ledger goes by the crystals themselves.
            progress: called with crystals done and their total.
        """
        keys = {id: structure_id(crystal) for id, crystal in crystals.items()}
        by_key = {key: crystals[id] for id, key in keys.items()}
        with Store(self.where) as store:
            found = store.evaluations(list(by_key), self.key)
            while missing := [key for key in by_key if key not in found]:
                mine = store.claim(missing, self.key, campaign=CAMPAIGN)
                try:
                    self._relax({key: by_key[key] for key in mine}, store, found, (progress, len(by_key)))
                finally:
                    store.release([key for key in mine if key not in found], self.key)
                if not mine:
                    time.sleep(POLL)
                found |= store.evaluations([key for key in missing if key not in found], self.key)
        return {id: found[key] for id, key in keys.items()}

    def _relax(
        self,
        crystals: dict[str, Structure],
        store: Store,
        found: dict[str, Evaluation],
        progress: tuple[Progress | None, int],
    ) -> None:
        tell, total = progress

        def keep(evaluation: Evaluation) -> None:
            store.finish([evaluation])
            found[evaluation.candidate_id] = evaluation
            if tell is not None:
                tell(len(found), total)

        self.computer.relax(crystals, keep)


def require_crystals(crystals: object | None) -> Any:
    """The shipped reference crystals, unless others are given.

    Raises:
        InputError: the package holds none.
    """
    if crystals is not None:
        return crystals
    from oracles.references.crystals import load_reference_crystals

    try:
        return load_reference_crystals()
    except InputError as error:
        raise InputError(f"a hull on demand needs the crystals of known phases: {error}") from error
