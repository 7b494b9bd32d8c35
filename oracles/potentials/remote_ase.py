"""An ASE calculator whose packages are in another environment: an overlay, or another interpreter's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ase.data import chemical_symbols

from loop.errors import ConfigError
from loop.values import EnergyType
from oracles.potentials.base import PotentialInfo
from oracles.potentials.remote import RemotePotential, place_in


def load_remote_ase(
    path: str, environment: str, *, options: Mapping[str, Any] | None = None, workers: int = 1
) -> RemotePotential:
    """Load an ASE calculator by ``module:Class`` from another environment.

    Args:
        path: ``module:Class``.
        environment: name of an overlay, or path of an interpreter.
        options: keyword arguments, JSON values only: they cross a process boundary.
        workers: processes side by side.

    Raises:
        ConfigError: no such environment, the name is none of a calculator, or an option is no JSON value.
        PotentialError: the worker cannot make the calculator.
    """
    module, _, attribute = path.partition(":")
    if not (module and attribute):
        raise ConfigError(
            f"In another environment ({environment}) a potential is named as an ASE calculator, module:Class, such as "
            f"mace.calculators:MACECalculator with its options; got {path!r}."
        )
    options = dict(options or {})
    try:
        text = json.dumps([path, options], sort_keys=True)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"The options of {path} must be JSON values, got {options}: {error}.") from error
    about = PotentialInfo(
        name=path,
        energy_type=EnergyType(attribute, "", "none", hashlib.sha256(text.encode()).hexdigest()),
        elements=frozenset(chemical_symbols[1:]),
        citation="Hjorth Larsen et al., J. Phys. Condens. Matter 29, 273002 (2017), doi 10.1088/1361-648X/aa680e",
        licence="see the calculator",
    )
    job = {"backend": "ase", "path": path, "options": options}
    return RemotePotential(about, place_in(environment, job, workers))
