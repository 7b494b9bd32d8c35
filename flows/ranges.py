"""Which numbers make sense as which setting: bounds that the rooms themselves do not check, one table for all.

A number out of its range (a threshold of 100 meV/atom written as 100, a negative count, NaN) would otherwise be met
hours later, or never. Bounds are wide: they exclude what nobody means, not what somebody may try.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from pydantic import BaseModel

LARGEST = 1e9  # of any number but a seed


@dataclass(frozen=True)
class Range:
    """Bounds of a setting.

    Args:
        low: smallest value.
        high: largest value.
        above: whether `low` itself is excluded.
        infinite: whether infinity is allowed: it switches a limit off.
    """

    low: float = -LARGEST
    high: float = LARGEST
    above: bool = False
    infinite: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies within; NaN never does."""
        if math.isinf(value):
            return self.infinite
        return (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        """In words."""
        if self.low == -LARGEST and self.high == LARGEST:
            return "a finite number"
        low = f"{'above' if self.above else 'at least'} {self.low:g}"
        return low if self.high == LARGEST else f"{low} and at most {self.high:g}"


ANY, COUNT, NUMBER, POSITIVE = Range(), Range(1), Range(0), Range(0, above=True)
SHARE, RISING = Range(0, 1), Range(1, above=True)
ENERGY = Range(-20, 20, infinite=True)  # eV/atom
RANGES: dict[str, dict[str, Range]] = {
    "CampaignSettings": {
        "seed": Range(0, 2**63 - 1),
        "threshold": Range(-5, 5),  # eV/atom: 100 would be meV
        "max_hours": POSITIVE,
        "max_core_hours": POSITIVE,
    },
    "FinetuneConfig": {
        "space_group_learning_rate": NUMBER,
        "learning_rate": Range(0, 10, above=True),
        "kl_stop": POSITIVE,
        "baseline_decay": SHARE,
    },
    "DriftLimits": {
        "window": COUNT,
        **dict.fromkeys(
            ("min_valid", "min_unique", "max_known", "max_replay", "max_f_block", "max_radioactive"), SHARE
        ),
        **dict.fromkeys(("max_kl", "max_element_ratio", "min_group_entropy"), NUMBER),
        "max_group_share": SHARE,
    },
    "PolicyConfig": {"batch_size": COUNT, "max_atoms": COUNT, "space_groups": Range(1, 230)},
    "Sampling": {"temperature": Range(0, 100, above=True), "space_groups": Range(1, 230)},
    "ValidityRules": {
        "max_atoms": COUNT,
        "max_elements": COUNT,
        "min_distance": Range(0, 10),
        "radius_fraction": Range(0, 5),
    },
    "Tolerances": dict.fromkeys(("geometry", "same_symmetry", "certain", "matcher", "max_sites"), NUMBER),
    "MlipConfig": {"bulk_below": ENERGY, "lowest": ENERGY},
    "RelaxConfig": {
        "fmax": Range(0, 10, above=True),
        "smax": Range(0, 1000, above=True),
        "max_steps": NUMBER,
        "max_expansion": RISING,
        "max_contraction": RISING,
    },
    "BulkConfig": {"max_steps": NUMBER, "max_residual": POSITIVE},
    "ElasticConfig": {"fmax": Range(0, 10, above=True), "max_steps": NUMBER},
    "PhononConfig": {
        "min_length": NUMBER,
        "max_atoms": COUNT,
        "displacement": Range(0, 1, above=True),
        "tolerance": NUMBER,
    },
    "GPConfig": dict.fromkeys(("max_fit", "max_labels", "inducing", "maxiter"), COUNT) | {"seed": Range(0, 2**31)},
    "Property": {"prior_std": POSITIVE},
    "AcquisitionConfig": {"beta": NUMBER, "feasible": SHARE} | dict.fromkeys(("incumbent", "screen", "samples"), COUNT),
    "DftTier": {"best": COUNT, "symprec": Range(0, 1, above=True)}
    | dict.fromkeys(("min_gap", "phase_margin", "hull_above_gap"), NUMBER),
    "HandoffTier": {"best": COUNT},
    "OpinionConfig": {"best": COUNT},
}


def out_of_range(model: Any) -> list[str]:
    """Every number of a configuration that lies outside its range, as ``key: expected ..., got ...``."""
    return [
        f"{key}: expected {range}, got {value:g}" for key, range, value in _numbers(model) if not range.holds(value)
    ]


def _numbers(value: Any, key: str = "", range: Range = ANY) -> Iterator[tuple[str, Range, float]]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield key, range, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, _under(key, name), range)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _numbers(item, _under(key, number), range)
    elif isinstance(value, BaseModel) or is_dataclass(value):
        ranges = RANGES.get(type(value).__name__, {})
        names = type(value).model_fields if isinstance(value, BaseModel) else [item.name for item in fields(value)]
        for name in names:
            yield from _numbers(getattr(value, name), _under(key, name), ranges.get(name, ANY))


def _under(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)
