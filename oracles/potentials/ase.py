"""ASE calculators as potentials."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from pymatgen.core import Structure

from loop.errors import ConfigError
from loop.io.files import hash_of
from loop.values import EnergyType
from oracles.potentials.base import Potential, PotentialInfo, PotentialKind, PotentialRequest, SinglePoint
from oracles.potentials.calculator import to_atoms
from oracles.symmetry import Group


class AsePotential(Potential):
    """Any ASE calculator that gives energy, forces and stress; no descriptors."""

    def __init__(self, about: PotentialInfo, factory: type[Calculator], options: Mapping[str, Any]) -> None:
        super().__init__(about)
        self._factory, self._options = factory, dict(options)

    def calculator(self) -> Calculator:
        """A fresh calculator."""
        return self._factory(**self._options)

    def compute(
        self,
        structures: Sequence[Structure],
        groups: Sequence[Group],  # noqa: ARG002  (a calculator makes no use of symmetry)
        *,
        gradients: bool,
    ) -> list[SinglePoint]:
        """Evaluate crystals one by one."""
        return [self._compute(to_atoms(structure), gradients) for structure in structures]

    def _compute(self, atoms: Atoms, gradients: bool) -> SinglePoint:
        atoms.calc = self.calculator()
        energy = float(atoms.get_potential_energy()) / len(atoms)
        if not gradients:
            return SinglePoint(energy=energy)
        forces = np.array(atoms.get_forces(), dtype=float)
        return SinglePoint(energy=energy, forces=forces, stress=np.array(atoms.get_stress(voigt=False), dtype=float))


def load_ase(path: str, *, options: Mapping[str, Any] | None = None) -> AsePotential:
    """Load an ASE calculator by ``module:Class``.

    Raises:
        ConfigError: it cannot be imported or made, or it gives no forces and stress.
    """
    module, _, attribute = path.partition(":")
    options = dict(options or {})
    try:
        factory = getattr(importlib.import_module(module), attribute)
        made = factory(**options)
        lacking = {"energy", "forces", "stress"} - set(made.implemented_properties)
    except Exception as error:  # a user's module may fail in any way
        raise ConfigError(f"The ASE calculator {path!r} with {options} cannot be made: {error}.") from error
    if lacking:
        raise ConfigError(f"The ASE calculator {path!r} gives no {', '.join(sorted(lacking))}, which relaxation needs.")
    settings = hash_of([path, options])
    about = PotentialInfo(
        name=path,
        energy_type=EnergyType(attribute, "", "none", settings),
        elements=_elements(factory),
        citation="Hjorth Larsen et al., J. Phys. Condens. Matter 29, 273002 (2017), doi 10.1088/1361-648X/aa680e",
        licence="see the calculator",
    )
    return AsePotential(about, factory, options)


def _elements(factory: type[Calculator]) -> frozenset[str]:
    """Elements of EMT, whose table is known; all of them for other calculators, which refuse by themselves."""
    from ase.calculators.emt import EMT, parameters

    return frozenset(parameters) if factory is EMT else frozenset(chemical_symbols[1:])


def _requested(request: PotentialRequest) -> Potential:
    path = request.rest if request.kind == "ase" else request.name
    if request.environment is None:
        return load_ase(path, options=request.options)
    from oracles.potentials.remote_ase import load_remote_ase

    return load_remote_ase(path, request.environment, options=request.options, workers=request.workers)


POTENTIAL = PotentialKind(_requested, options=None)  # a calculator's keyword arguments are its own
