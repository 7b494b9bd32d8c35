"""Which chemistry a policy draws, and where it finds: a reward for stability can be earned by one class alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from flows.benchmarks.rl.judge import Samples, judged
from generator.rl.strata import CLASSES, class_of
from loop.prototypes import prototype


def chemistry(samples: Samples) -> dict[str, Any]:
    """Shares of the classes, M.S.U.N. within each, and the share of the largest prototype.

    Returns:
        ``share_NAME`` and, where the class was drawn, ``msun_share_NAME`` for each class of `generator.rl.strata`;
        ``chemical_systems``, different ones among the M.S.U.N. samples; ``largest_prototype`` (AFLOW's label as drawn)
        of all samples that are crystals, and ``largest_prototype_msun`` of the M.S.U.N. ones.
    """
    held = [str(symbols).split() for symbols in samples.rows["elements"]]
    names = np.array([class_of(symbols) if symbols else "" for symbols in held])
    finds = judged(samples.rows)["msun"]
    told: dict[str, Any] = {}
    for name in CLASSES:
        inside = names == name
        told[f"share_{name}"] = float(inside.mean())
        if inside.any():
            told[f"msun_share_{name}"] = float(finds[inside].mean())
    told["chemical_systems"] = len({" ".join(held[i]) for i in np.flatnonzero(finds)})
    labels = np.array(["" if structure is None else prototype(structure) for structure in samples.structures])
    told["largest_prototype"] = _largest(labels[labels != ""].tolist())
    told["largest_prototype_msun"] = _largest(labels[finds & (labels != "")].tolist())
    return told


def _largest(labels: Sequence[str]) -> float:
    return max(Counter(labels).values()) / len(labels) if labels else float("nan")
