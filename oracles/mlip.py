"""The default oracle: relax with a potential, place on the hull of reference phases, and measure the bulk modulus."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from loop.errors import ConfigError, EnergyTypeError
from loop.hull import Hull, HullResult
from loop.io.files import hash_of
from loop.stability import REFUSED
from loop.values import OK, Candidate, Cost, Evaluation, Quantity, failed
from oracles.potentials.base import ROUND_OFF, Potential
from oracles.potentials.canary import check_canary
from oracles.potentials.loading import PotentialConfig, potential_of
from oracles.properties.bulk import BulkConfig, BulkModulus, bulk_moduli
from oracles.properties.elastic import ElasticConfig, elastic_tensor, tight
from oracles.properties.phonons import PhononConfig, phonons
from oracles.references.hull_on_demand import DemandHull, demand_hull
from oracles.references.table import References, load_references, shipped_for
from oracles.relax import RelaxConfig, Relaxed, relax
from oracles.symmetry import primitive, space_group

DEMAND = "demand"  # in place of a table: competing phases are computed when they are needed
VERSION = "1"  # raised when the same settings no longer give the same numbers
SYMPREC = 0.1  # A, for the space groups before and after
NOT_RESULTS = ("batch_size", "standardise")  # settings that change how fast a result comes, not what it is
IN_CHECKSUMS = ("potential", "device", "trust", "environment", "references", "phases")  # what these lead to is hashed


@dataclass(frozen=True)
class MlipConfig(PotentialConfig):
    """What the oracle does."""

    references: str | None = None
    """Table of reference phases, or demand: phases are computed as they are needed; none: the shipped table, else
    demand.
    """
    phases: str | None = None
    """Ledger of the phases computed on demand, a file or URL; none: one for all work of this user."""
    relax: RelaxConfig = field(default_factory=RelaxConfig)
    """Relaxation, of candidates and of reference phases alike."""
    bulk: BulkConfig | None = field(default_factory=BulkConfig)
    """Bulk modulus from an equation of state; none: not computed."""
    elastic: ElasticConfig | None = None
    """Elastic tensor and moduli; none: not computed."""
    phonons: PhononConfig | None = None
    """Dynamic stability; none: not computed."""
    bulk_below: float = float("inf")
    """These three only at or below this distance from the hull, eV/atom."""
    lowest: float = REFUSED
    """Crystals further below the hull (eV/atom) are errors of the potential and get no label."""
    abstain_when_sparse: bool = True
    """No label where too few phases are known to judge by."""


class PotentialOracle:
    """Implements `loop.contracts.Oracle`.

    Args:
        potential: relaxes.
        references: phases with energies from the same potential; a hull on demand computes them itself.
        config: the rest.

    Raises:
        EnergyTypeError: potential and references do not belong together.
        PotentialError: the potential computes wrong energies on this machine.
    """

    def __init__(
        self, potential: Potential, references: References | DemandHull, config: MlipConfig = MlipConfig()
    ) -> None:
        if potential.energy_type != references.energy_type:
            raise EnergyTypeError(
                f"{potential.name} gives energies of type {potential.energy_type}, the reference phases hold "
                f"{references.energy_type}: choose references made with this potential (discovery-loop hull build)."
            )
        check_canary(potential)
        self.potential, self.references, self.config = potential, references, config
        self._hull: Hull | None = references if isinstance(references, DemandHull) else None

    @property
    def name(self) -> str:
        """``name@version``."""
        return f"mlip-{self.potential.name}@{VERSION}"

    @property
    def hull(self) -> Hull:
        """The hull of the reference phases."""
        if self._hull is None:
            self._hull = self.table.hull()
        return self._hull

    @property
    def on_demand(self) -> bool:
        """Whether competing phases are computed when they are needed."""
        return isinstance(self.references, DemandHull)

    @property
    def table(self) -> References:
        """Reference phases of this potential that need no computing, for crystals as they stand.

        Raises:
            ConfigError: phases are computed on demand, and no table of this potential is shipped.
        """
        if isinstance(self.references, References):
            return self.references
        try:
            return shipped_for(self.potential.energy_type)
        except EnergyTypeError as error:
            raise ConfigError(
                f"With references: {DEMAND} and no table of {self.potential.name} in the package, crystals as drawn "
                "need a cheap potential of their own: name one, oracle: {screen: {potential: chgnet}}."
            ) from error

    @property
    def settings_hash(self) -> str:
        """Hash of everything that changes the result: settings, weights, references."""
        settings = asdict(self.config)
        for name in NOT_RESULTS:
            settings["relax"].pop(name)
        for name in IN_CHECKSUMS:
            settings.pop(name)
        for name in ("elastic", "phonons"):  # labels made before these were offered stay valid without them
            if settings[name] is None:
                settings.pop(name)
        what = [
            VERSION,
            asdict(self.potential.energy_type),
            self.references.checksum,
            self.potential.about.dtype,
            settings,
        ]
        return hash_of(what)[:16]

    def evaluate(
        self, candidates: Sequence[Candidate], progress: Callable[[int, int], None] | None = None
    ) -> list[Evaluation]:
        """Relax, place on the hull, and measure the bulk modulus of those near enough."""
        crystals = [candidate.structure for candidate in candidates]
        outcomes = [_smallest(one) for one in relax(crystals, self.potential, self.config.relax, progress)]
        placed = self._places(outcomes)
        evaluations = [
            self._evaluation(candidate, outcome, place)
            for candidate, outcome, place in zip(candidates, outcomes, placed, strict=True)
        ]
        chosen = [index for index, evaluation in enumerate(evaluations) if self._is_near(evaluation)]
        structures = [outcomes[index].structure for index in chosen]
        moduli = self._bulk([structure for structure in structures if structure is not None])
        for index, modulus in zip(chosen, moduli, strict=False):  # there are none where none are wanted
            evaluations[index] = _with_bulk(evaluations[index], modulus)
        for index in chosen if self.config.elastic or self.config.phonons else []:
            evaluations[index] = self._with_derivatives(evaluations[index])
        return evaluations

    def _with_derivatives(self, evaluation: Evaluation) -> Evaluation:
        """With elastic tensor and phonons, at a minimum tighter than the label's."""
        began, notes = time.perf_counter(), [evaluation.message]
        assert evaluation.structure is not None  # of labels that are ok
        found = relax([evaluation.structure], self.potential, tight(self.config.relax))[0]
        if found.structure is None or not found.ok:
            notes.append(f"no derivatives: the tight relaxation ended with {found.status}")
        else:
            for measure, config in ((elastic_tensor, self.config.elastic), (phonons, self.config.phonons)):
                if config is not None:
                    measured = measure(found.structure, self.potential, config)  # type: ignore[arg-type]
                    evaluation = evaluation.with_properties(**measured.quantities())
                    notes.append(measured.message and f"{measured.status}: {measured.message}")
        cost = replace(evaluation.cost, seconds=evaluation.cost.seconds + time.perf_counter() - began)
        return replace(evaluation, cost=cost, message="; ".join(filter(None, notes)))

    def _bulk(self, structures: Sequence[Any]) -> list[BulkModulus]:
        if self.config.bulk is None or not structures:
            return []
        return bulk_moduli(structures, self.potential, self.config.bulk, self.config.relax)

    def _is_near(self, evaluation: Evaluation) -> bool:
        return evaluation.ok and evaluation.value("e_above_hull") <= self.config.bulk_below

    def _places(self, outcomes: Sequence[Relaxed]) -> list[HullResult]:
        """Distances from the hull, asked for together: a hull on demand then computes its phases side by side."""
        crystals = [outcome.structure for outcome in outcomes if outcome.structure is not None]
        energies = [outcome.energy for outcome in outcomes if outcome.structure is not None]
        compositions = [crystal.composition for crystal in crystals]
        found = iter(self.hull.batch(compositions, energies, self.potential.energy_type))
        return [
            HullResult(status=outcome.status, message=outcome.message) if outcome.structure is None else next(found)
            for outcome in outcomes
        ]

    def _evaluation(self, candidate: Candidate, outcome: Relaxed, place: HullResult) -> Evaluation:
        status, message = self._status(outcome, place)
        properties = _measured(outcome)
        if place.status == OK and status in (OK, outcome.status):
            properties["e_above_hull"] = Quantity(place.e_above_hull, "eV/atom")
        if place.status == OK:
            properties["hull_entries"] = Quantity(float(place.n_entries), "1")
            properties["hull_sparse"] = Quantity(float(place.sparse), "1")
        return Evaluation(
            candidate_id=candidate.id,
            oracle=self.name,
            settings=self.settings_hash,
            status=status,
            properties=properties,
            energy_type=self.potential.energy_type,
            structure=outcome.structure,
            space_group=_space_group(candidate.structure, outcome),
            space_group_relaxed=None if outcome.structure is None else space_group(outcome.structure, SYMPREC),
            decomposition=place.decomposition,
            cost=Cost(outcome.seconds, self.potential.about.device),
            message=message,
        )

    def _remark(self, place: HullResult) -> str:
        """What is to be known of the phases that decided a distance."""
        return self.references.unrelaxed_among(place.decomposition) if isinstance(self.references, References) else ""

    def _status(self, outcome: Relaxed, place: HullResult) -> tuple[str, str]:
        """Status and message of a label; the guards against energies that are too good to be true act here."""
        if not outcome.ok:
            return (
                outcome.status,
                outcome.message or f"after {outcome.steps} steps the largest force is {outcome.max_force:.3g} eV/A",
            )
        if place.status != OK:
            return place.status, place.message
        if place.e_above_hull < self.config.lowest:
            return failed("energy-outlier"), (
                f"{place.e_above_hull:.3f} eV/atom from the hull, below {self.config.lowest}: the potential errs here"
            )
        if place.sparse:
            message = f"{place.n_entries} known phases in the chemical system: too few to judge stability"
            return (failed("sparse-hull") if self.config.abstain_when_sparse else OK), message
        return OK, place.message or self._remark(place)


def build_oracle(config: MlipConfig = MlipConfig()) -> PotentialOracle:
    """Load what the settings name and put the oracle together; picklable, so that worker processes can do it too.

    Raises:
        DiscoveryLoopError: see `load_potential`, `load_references` and `PotentialOracle`.
    """
    potential = potential_of(config)
    return PotentialOracle(potential, references_of(config, potential), config)


def references_of(config: MlipConfig, potential: Potential) -> References | DemandHull:
    """What the settings say to judge by: by default the shipped table of this potential, else a hull on demand.

    Raises:
        DiscoveryLoopError: see `load_references`, `shipped_for` and `demand_hull`.
    """
    if config.references not in (None, DEMAND):
        return load_references(config.references)
    if config.references is None:
        with suppress(EnergyTypeError):
            return shipped_for(potential.energy_type)
    return demand_hull(potential, config.relax, ledger=config.phases)


def _measured(outcome: Relaxed) -> dict[str, Quantity]:
    """What a relaxation measured."""
    if outcome.structure is None:
        return {"steps": Quantity(float(outcome.steps), "1")}
    return {
        "energy": Quantity(outcome.energy, "eV/atom"),
        "volume": Quantity(outcome.structure.volume / len(outcome.structure), "A^3/atom"),
        "max_force": Quantity(outcome.max_force, "eV/A"),
        "max_stress": Quantity(outcome.max_stress, "GPa"),
        "steps": Quantity(float(outcome.steps), "1"),
    }


def _smallest(outcome: Relaxed) -> Relaxed:
    """The relaxed crystal in its primitive cell: that is what costlier oracles and people compute on."""
    if outcome.structure is None:
        return outcome
    return replace(outcome, structure=primitive(outcome.structure, ROUND_OFF))


def _space_group(structure: Any, outcome: Relaxed) -> int | None:
    """Space group before; None for what is no crystal."""
    return None if outcome.structure is None else space_group(structure, SYMPREC)


def _with_bulk(evaluation: Evaluation, modulus: BulkModulus) -> Evaluation:
    cost = replace(evaluation.cost, seconds=evaluation.cost.seconds + modulus.seconds)
    if modulus.status != OK:  # the label stands, without a modulus
        text = "; ".join(filter(None, (evaluation.message, f"no bulk modulus: {modulus.message}")))
        return replace(evaluation, cost=cost, message=text)
    labelled = evaluation.with_properties(bulk_modulus=Quantity(modulus.value, "GPa"))
    return replace(labelled, cost=cost)
