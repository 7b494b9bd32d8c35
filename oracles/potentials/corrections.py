"""MP2020 corrections, which make PBE(+U) energies of oxides, halides and metals comparable.

Wang et al., Sci. Rep. 11, 15496 (2021), doi 10.1038/s41598-021-94550-5. The scheme is pymatgen's. They belong to
uncorrected energies on Materials Project's settings: its VASP runs, and potentials that learned these as they are
(MACE-MP). CHGNet learned corrected energies: correcting them again is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pymatgen.core import Composition, Structure

from loop.errors import ConfigError
from loop.values import EnergyType, failed
from oracles.potentials.base import Potential, SinglePoint

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from oracles.symmetry import Group

SUFFIX = "+mp2020"  # of a potential's name
SCHEME = "MP2020"


def mp2020(crystal: Structure | Composition) -> float:
    """Correction of a whole cell in eV, NaN where the scheme has none for such a compound.

    With a structure, peroxides and superoxides are told from oxides; a composition alone is taken for an oxide unless
    its formula says otherwise.
    """
    from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

    composition = crystal.composition if isinstance(crystal, Structure) else crystal
    parameters = run_parameters(composition)
    entry: Any
    if isinstance(crystal, Structure):
        entry = ComputedStructureEntry(crystal, 0.0, parameters=parameters)
    else:
        entry = ComputedEntry(composition, 0.0, parameters=parameters)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it guesses oxidation states, and says so
        processed = _scheme().process_entry(entry, inplace=False)
    return float("nan") if processed is None else float(processed.correction)


@cache
def anion_correction(formula: str) -> float:
    """What the scheme adds for anions alone, eV/atom: the part that raw PBE without +U lacks. 0 for an element."""
    from pymatgen.entries.computed_entries import ComputedEntry

    composition = Composition(formula)
    entry = ComputedEntry(composition, 0.0, parameters=run_parameters(composition))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it guesses oxidation states, and says so
        processed = _scheme().process_entry(entry, inplace=False)
    parts = [] if processed is None or len(composition) == 1 else processed.energy_adjustments
    return float(sum(part.value for part in parts if "anion" in part.name) / composition.num_atoms)


def run_parameters(composition: Composition) -> dict[str, Any]:
    """Functional of Materials Project's run: PBE+U where a metal on its list is with oxygen or fluorine."""
    anion = max(composition.elements, key=lambda element: element.X).symbol
    values = _hubbard().get(anion, {})
    hubbards = {element.symbol: values.get(element.symbol, 0) for element in composition.elements}
    used = any(hubbards.values())
    return {"run_type": "GGA+U" if used else "GGA", "hubbards": hubbards if used else {}, "is_hubbard": used}


def corrected(energy_type: EnergyType) -> EnergyType:
    """The type of corrected energies.

    Raises:
        ConfigError: the scheme does not belong to these energies.
    """
    if energy_type.corrections != "none" or energy_type.functional != "PBE(+U)":
        raise ConfigError(
            f"MP2020 corrections belong to uncorrected PBE(+U) energies on Materials Project's settings, not to "
            f"{energy_type}: take the energies as they are."
        )
    return replace(energy_type, corrections=SCHEME)


def load_scheme() -> None:
    """Read what corrections are made from, which takes seconds, before the first is asked for."""
    _scheme()
    _hubbard()


class CorrectedPotential(Potential):
    """A potential with MP2020 corrections added to its energies; forces, stress and features are its own."""

    def __init__(self, plain: Potential, name: str | None = None) -> None:
        about = replace(plain.about, name=name or plain.name + SUFFIX, energy_type=corrected(plain.energy_type))
        super().__init__(about, plain.limits)
        self._plain = plain

    def compute(
        self, structures: Sequence[Structure], groups: Sequence[Group], *, gradients: bool
    ) -> list[SinglePoint]:
        """Evaluate one batch."""
        points = self._plain.compute(structures, groups, gradients=gradients)
        return [_corrected(point, structure) for point, structure in zip(points, structures, strict=True)]

    @property
    def in_processes(self) -> bool:
        """Whether the potential computes in worker processes of its own."""
        return self._plain.in_processes

    @property
    def lanes(self) -> int:
        """Those of the potential."""
        return self._plain.lanes

    def processor_seconds(self) -> float:
        """Of the potential, its processes included."""
        return self._plain.processor_seconds()

    def close(self) -> None:
        """End what the potential started."""
        self._plain.close()

    def calculator(self) -> Calculator:
        """An ASE calculator of the same evaluation."""
        from oracles.potentials.calculator import PotentialCalculator

        return PotentialCalculator(self)


def _corrected(point: SinglePoint, structure: Structure) -> SinglePoint:
    if not point.ok:
        return point
    correction = mp2020(structure) / len(structure)
    if correction != correction:
        return SinglePoint(failed("no-correction"), message=f"MP2020 has no correction for {structure.formula}")
    return replace(point, energy=point.energy + correction)


@cache
def _scheme() -> Any:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility(check_potcar=False)


@cache
def _hubbard() -> dict[str, dict[str, float]]:
    """U values (eV) by anion and metal."""
    from pymatgen.io.vasp.sets import MPRelaxSet

    return {anion: values for anion, values in MPRelaxSet.CONFIG["INCAR"]["LDAUU"].items() if isinstance(values, dict)}
