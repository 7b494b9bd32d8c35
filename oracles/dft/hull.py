"""A distance above the hull by DFT: competing phases computed with the candidate's settings, those that can matter.

Which these are, `oracles.references.hull_on_demand` decides: formation energies of the shipped tables, MP2020's anion
corrections taken out, propose; a phase may lie `phase_margin` lower. It is then computed as it stands, and relaxed
where it could still matter. Elements are their published crystals (O2, N2 and the halogens as molecular crystals, one
packing for all, O2 with the moments of a triplet): those within `ELEMENT_MARGIN` of the lowest published height, and
those that the tables' potentials found lowest. Energies are raw PBE, on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from loop.store import OracleKey
from loop.values import OK, Candidate, EnergyType, Evaluation, Quantity
from oracles.dft.oracle import DftConfig, DftOracle
from oracles.references.hull_on_demand import DemandHull
from oracles.references.phase_estimates import CrystalSource, Estimates
from oracles.references.phase_ledger import PhaseComputer, PhaseLedger, Progress, require_crystals
from oracles.references.table import References, shipped_tables

if TYPE_CHECKING:
    from pymatgen.core import Structure

# eV/atom. Published cells are PBE's: relaxing lowered the energy of no phase in results/dft-hull by more than half.
OWN_MARGIN = 0.02
RESTS_ON = ("hull_entries", "hull_sparse", "hull_phases", "hull_seconds")
ELEMENT_MARGIN = 0.01  # eV/atom: published heights of an element's crystals are PBE's, too


class DftPhases:
    """Implements `oracles.references.phase_ledger.PhaseComputer`.

    Args:
        relaxing: an oracle that relaxes the cell.
        standing: the same without relaxation.
        where: file or URL of the ledger; what was computed as it stands is kept in it, too.
    """

    costly = True

    def __init__(self, relaxing: DftOracle, standing: DftOracle, where: str | None = None) -> None:
        self._oracle, self._standing, self._where = relaxing, standing, where
        self.key = OracleKey(relaxing.name, relaxing.settings_hash)
        self.energy_type: EnergyType = relaxing.energy_type
        self.elements: frozenset[str] = relaxing.engine.elements

    def points(self, crystals: Mapping[str, Structure], progress: Progress | None = None) -> dict[str, Evaluation]:
        """Energies of crystals as they stand, each paid for once."""
        return PhaseLedger(DftPhases(self._standing, self._standing), self._where).energies(crystals, progress)

    def relax(self, crystals: Mapping[str, Structure], keep: Callable[[Evaluation], None]) -> None:
        """One after the other, the smallest first."""
        for crystal in sorted(crystals.values(), key=len):
            keep(self._oracle.evaluate([Candidate(crystal)])[0])


class DftHull:
    """Places crystals on the hull of the settings of a DFT oracle.

    Args:
        config: of the oracle.
        source: known crystals; None: those in the package.
        tables: that propose phases; None: those in the package.
        progress: called with phases done and their total, in each round of computing.

    Raises:
        EngineError: there is no DFT engine here.
        InputError: the package holds no reference crystals.
    """

    def __init__(
        self,
        config: DftConfig,
        *,
        source: CrystalSource | None = None,
        tables: Sequence[References] | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        computer = computer_of(config)
        self.ledger = PhaseLedger(computer, config.phases)
        proposed = tables if tables is not None else sorted(shipped_tables(), key=_covers)
        estimates = Estimates(
            proposed, computer.energy_type, OWN_MARGIN, config.phase_margin,
            element_margin=ELEMENT_MARGIN, uncorrected=True,
        )  # fmt: skip
        self.demand = DemandHull(self.ledger, require_crystals(source), estimates, progress=progress)

    @property
    def checksum(self) -> str:
        """Of everything that a distance depends on."""
        return self.demand.checksum

    def placed(self, candidate: Candidate, evaluation: Evaluation) -> Evaluation:
        """An evaluation with its distance from the hull, the crystal relaxed with its cell first where it was not.

        Where there is none, the evaluation stands, and its message says why.
        """
        relaxed = evaluation
        if self.config.relax != "cell":
            relaxed = self.ledger.energies({"": candidate.structure})[""]
        placed = self.on_hull(candidate.structure, relaxed)
        names = ("e_above_hull", *RESTS_ON)
        found = {name: placed.properties[name] for name in names if name in placed.properties}
        message = "; ".join(dict.fromkeys(filter(None, (evaluation.message, placed.message))))
        return replace(evaluation.with_properties(**found), decomposition=placed.decomposition, message=message)

    def on_hull(self, crystal: Structure, relaxed: Evaluation) -> Evaluation:
        """A relaxed crystal's evaluation with its distance from the hull, and in `RESTS_ON` what that rests on."""
        symbols = {element.symbol for element in crystal.composition.elements}
        energy = relaxed.value("energy")
        place = self.demand.batch([crystal.composition], [energy], self.demand.energy_type)[0]
        notes = [place.message]
        if not relaxed.ok:
            notes.append(f"the relaxation for the hull ended with {relaxed.status}: {relaxed.message}")
        told = replace(relaxed, message="; ".join(filter(None, notes)))
        if place.status != OK:
            return told
        phases = self.phases(symbols)
        rested = told.with_properties(
            e_above_hull=Quantity(place.e_above_hull, "eV/atom"),
            hull_entries=Quantity(float(place.n_entries), "1"),
            hull_sparse=Quantity(float(place.sparse), "1"),
            hull_phases=Quantity(float(len(phases)), "1"),
            hull_seconds=Quantity(sum(phase["seconds"] for phase in phases), "s"),
        )
        return replace(rested, decomposition=place.decomposition)

    def phases(self, elements: Iterable[str] | None = None) -> list[dict[str, Any]]:
        """What was computed, a row for each phase: id, formula, status, energies in eV/atom, seconds.

        Args:
            elements: of a chemical system, symbols; None: everything.
        """
        symbols = None if elements is None else set(elements)
        inside = None if symbols is None else {*self.demand.source.in_system(symbols), *symbols}
        standing, relaxed = self.demand.looked_at, self.demand.computed
        ids = sorted({*standing, *relaxed})
        return [
            _row(id, standing.get(id), relaxed.get(id))
            for id in ids
            if inside is None or id in inside or id.partition(" ")[0] in inside
        ]


def dft_oracle(config: DftConfig) -> DftOracle:
    """The oracle of some settings, with a hull where they ask for it.

    Raises:
        EngineError: there is no DFT engine here.
        InputError: the package holds no reference crystals.
    """
    return DftOracle(config, None if config.references is None else DftHull(config))


def computer_of(config: DftConfig) -> PhaseComputer:
    """What computes phases with the settings of an oracle: energies alone, the cell relaxed.

    Raises:
        EngineError: there is no DFT engine here.
    """
    same = replace(
        config, references=None, properties=(), relax="cell", max_atoms=config.phase_atoms, min_gap=DftConfig.min_gap
    )
    return DftPhases(DftOracle(same), DftOracle(replace(same, relax="none")), config.phases)


def _covers(table: References) -> bool:
    """SevenNet's table before CHGNet's: it errs less, and lacks large cells alone."""
    return bool(table.provenance.get("complete", True))


def _row(id: str, standing: Evaluation | None, relaxed: Evaluation | None) -> dict[str, Any]:
    last = relaxed or standing
    assert last is not None
    crystal = last.structure
    return {
        "id": id,
        "formula": "" if crystal is None else crystal.composition.reduced_formula,
        "status": last.status,
        "relaxed": int(relaxed is not None),
        "energy": last.value("energy"),
        "energy_as_it_stands": float("nan") if standing is None else standing.value("energy"),
        "volume": last.value("volume"),
        "steps": last.value("steps"),
        "seconds": round(sum(each.cost.seconds for each in (standing, relaxed) if each is not None), 1),
        "message": last.message,
    }
