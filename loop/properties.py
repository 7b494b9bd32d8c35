"""Properties of crystals, said once: name, unit, label, which way is better, and what is physically possible.

Everything that prints, imports or checks a property asks here. A property of a costlier oracle carries that oracle's
name in front (``dft_band_gap``) and is otherwise the same property.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from loop.errors import InputError

Better = Literal["higher", "lower", ""]
MOST_GPA = 2000.0  # above every known modulus: diamond has a bulk modulus of 443 GPa, a Young's modulus of 1,150


@dataclass(frozen=True)
class PropertySpec:
    """What is known of a property before any crystal.

    Attributes:
        name: key in `loop.values.Evaluation.properties`.
        unit: of its values; ``1`` for a ratio or a count, empty where nothing is known of the property.
        label: for people, without the unit.
        better: which end is usually sought; empty where that depends on the use.
        low: smallest possible value.
        high: largest possible value.
        above: whether `low` itself is impossible: no crystal has a modulus or a volume of zero.
    """

    name: str
    unit: str = ""
    label: str = ""
    better: Better = ""
    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    @property
    def heading(self) -> str:
        """Label and unit, as ``bulk modulus (GPa)``; a ratio has its label alone."""
        return f"{self.label} ({self.unit})" if self.unit not in ("", "1") else self.label

    def allows(self, value: float) -> bool:
        """Whether a value is a number that this property can have."""
        rises = self.low < value if self.above else self.low <= value
        return math.isfinite(value) and rises and value <= self.high

    @property
    def bounds(self) -> str:
        """What is possible, in words and in the property's unit."""
        low = f"{'above' if self.above else 'at least'} {self.low:g}" if math.isfinite(self.low) else ""
        high = f"at most {self.high:g}" if math.isfinite(self.high) else ""
        return " and ".join(filter(None, (low, high))) or "a finite number"


_SPECS = (
    PropertySpec("energy", "eV/atom", "energy", "lower"),
    PropertySpec("formation_energy", "eV/atom", "formation energy", "lower"),
    PropertySpec("e_above_hull", "eV/atom", "E above hull", "lower"),
    PropertySpec("band_gap", "eV", "band gap", "", 0.0, 30.0),  # solid neon, the largest: 21.7 eV
    PropertySpec("band_gap_direct", "eV", "direct band gap", "", 0.0, 30.0),
    PropertySpec("dielectric_electronic", "1", "electronic dielectric constant", "higher", 1.0),
    PropertySpec("dielectric_total", "1", "static dielectric constant", "higher", 1.0),
    PropertySpec("bulk_modulus", "GPa", "bulk modulus", "higher", 0.0, MOST_GPA, above=True),
    PropertySpec("bulk_modulus_vrh", "GPa", "bulk modulus (Voigt-Reuss-Hill)", "higher", 0.0, MOST_GPA, above=True),
    PropertySpec("shear_modulus", "GPa", "shear modulus", "higher", 0.0, MOST_GPA, above=True),
    PropertySpec("youngs_modulus", "GPa", "Young's modulus", "higher", 0.0, MOST_GPA, above=True),
    PropertySpec("poisson_ratio", "1", "Poisson ratio", "", -1.0, 0.5),
    PropertySpec("elastic_anisotropy", "1", "elastic anisotropy", "lower", 0.0),
    PropertySpec("elastic_stability", "GPa", "smallest eigenvalue of the elastic tensor", "higher"),
    PropertySpec("volume", "A^3/atom", "volume", "", 0.0, 1000.0, above=True),
    PropertySpec("magnetic_moment", "mu_B/atom", "magnetic moment"),
    PropertySpec("lowest_frequency", "THz", "lowest phonon frequency", "higher"),
    PropertySpec("highest_frequency", "THz", "highest phonon frequency", "", 0.0),
    PropertySpec("dynamically_stable", "1", "dynamically stable", "higher", 0.0, 1.0),
    PropertySpec("max_force", "eV/A", "largest force", "lower", 0.0),
    PropertySpec("max_stress", "GPa", "largest stress", "lower", 0.0),
)
PROPERTIES: dict[str, PropertySpec] = {item.name: item for item in _SPECS}


def spec_of(name: str, unit: str = "") -> PropertySpec:
    """What is known of a property.

    Args:
        name: of a property, or of a costlier oracle and a property, as ``dft_band_gap``; or of a product of properties,
            as ``dft_band_gap*dft_dielectric_electronic``.
        unit: of the values at hand, for a property that is not known.
    """
    if "*" in name:
        return _product(name, unit)
    if name in PROPERTIES:
        return PROPERTIES[name]
    for start in range(1, len(name)):
        known = PROPERTIES.get(name[start:])
        if known is not None and name[start - 1] == "_":
            return replace(known, name=name, label=f"{name[: start - 1]} {known.label}".replace("_", " "))
    return PropertySpec(name, unit, name.replace("_", " "))


def _product(name: str, unit: str) -> PropertySpec:
    """A figure of merit of several properties, its unit that of those that are no ratios."""
    parts = [spec_of(part) for part in name.split("*")]
    units = " ".join(part.unit for part in parts if part.unit not in ("", "1"))
    label = " × ".join(part.label for part in parts)
    low = math.prod(part.low for part in parts) if all(part.low >= 0 for part in parts) else -math.inf
    return PropertySpec(name, unit or units or "1", label, "", low)


def heading(name: str, unit: str = "") -> str:
    """A property as the head of a column: label and unit."""
    return spec_of(name, unit).heading


def physical(name: str, value: float) -> float:
    """A value that its property can have, the same for labels that are imported and for known ones.

    Args:
        name: of the property, or of a costlier oracle and a property, as ``dft_band_gap``.
        value: in the property's unit.

    Raises:
        InputError: it is no finite number, or out of what is physically possible.
    """
    spec = spec_of(name)
    if not spec.allows(value):
        raise InputError(f"{name} must be {spec.bounds}, got {value:g}")
    return value
