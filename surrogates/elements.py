"""Table of elemental properties and its statistics over compositions, after Magpie.

Data: pymatgen's periodic table. The choice of properties and statistics follows Ward et al., npj Comput. Mater. 2,
16028 (2016), doi 10.1038/npjcompumats.2016.28 (its reference implementation, matminer, needs an older pandas).
"""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np

MAX_Z = 103
STATISTICS = ("mean", "std", "min", "max", "range")

_PLAIN = (
    "Z",
    "X",
    "row",
    "group",
    "atomic_mass",
    "atomic_radius",
    "van_der_waals_radius",
    "mendeleev_no",
    "electron_affinity",
    "ionization_energy",
    "molar_volume",
    "average_ionic_radius",
    "max_oxidation_state",
    "min_oxidation_state",
)
# These span decades, or are ratios of interest: their logarithm is closer to a normal distribution.
_LOGARITHMIC = ("melting_point", "thermal_conductivity", "bulk_modulus")
CAPACITY = {"s": 2, "p": 6, "d": 10, "f": 14}  # electrons of a subshell

PROPERTIES: tuple[str, ...] = (
    *_PLAIN,
    *(f"log_{name}" for name in _LOGARITHMIC),
    *(f"valence_{orbital}" for orbital in CAPACITY),
    "valence_unfilled",
)


def valence(electronic_structure: str) -> list[float]:
    """Valence electrons in s, p, d, f outside the noble-gas core, and the number of holes in the open subshells."""
    shells = [part for part in electronic_structure.split(".") if not part.startswith("[")]
    counts = dict.fromkeys(CAPACITY, 0.0)
    for shell in shells:
        counts[shell[1]] += float(shell[2:])
    holes = sum(CAPACITY[o] - counts[o] % CAPACITY[o] for o in CAPACITY if counts[o] % CAPACITY[o])
    return [*counts.values(), holes]


def _raw_row(z: int) -> list[float]:
    from pymatgen.core import Element

    element = Element.from_Z(z)
    row: list[float] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns of each missing datum; they are filled below
        for name in (*_PLAIN, *_LOGARITHMIC):
            value = getattr(element, name)
            row.append(np.nan if value is None else float(value))
        start = len(_PLAIN)
        row[start:] = np.log(row[start:]).tolist()
        row += valence(element.electronic_structure)
    return row


@cache
def element_table() -> np.ndarray:
    """Properties of the elements, shape (MAX_Z + 1, len(PROPERTIES)); row 0 is unused.

    A missing datum is the mean over the elements of the same group of the periodic table that have it, else over all.
    """
    table = np.full((MAX_Z + 1, len(PROPERTIES)), np.nan)
    table[1:] = [_raw_row(z) for z in range(1, MAX_Z + 1)]
    group = table[:, PROPERTIES.index("group")]
    for column in table.T:
        for z in np.flatnonzero(np.isnan(column[1:])) + 1:
            family = column[group == group[z]]
            family = family[~np.isnan(family)]
            column[z] = family.mean() if len(family) else np.nanmean(column[1:])
    table.flags.writeable = False
    return table


def composition_statistics(amounts: np.ndarray) -> np.ndarray:
    """Fraction-weighted mean and standard deviation, and min, max and range, of each elemental property.

    Args:
        amounts: atoms of each element, shape (n, MAX_Z + 1), indexed by atomic number.

    Returns:
        Array of shape (n, len(PROPERTIES) * len(STATISTICS)), property by property.
    """
    table = element_table()
    fraction = amounts / amounts.sum(axis=1, keepdims=True)
    columns = []
    for values in table.T:
        values = np.nan_to_num(values)
        mean = fraction @ values
        variance = np.maximum(fraction @ values**2 - mean**2, 0.0)
        low = np.where(amounts > 0, values, np.inf).min(axis=1)
        high = np.where(amounts > 0, values, -np.inf).max(axis=1)
        columns += [mean, np.sqrt(variance), low, high, high - low]
    return np.stack(columns, axis=1)
