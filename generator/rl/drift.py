"""Where a policy drifts to while it learns, and when that ends the learning.

Rewards that go up prove little: a policy may earn them with one space group, a few elements, copies of one crystal or
crystals that it remembers. Each of these is a number per batch, and has a limit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from generator.representation.tokens import CrystalBatch
from loop.validity import RADIOACTIVE

F_BLOCK = np.array([*range(57, 72), *range(89, 104)])
_RADIOACTIVE = np.array(sorted(RADIOACTIVE))
PSEUDO_SHARE = 2e-3  # added to element shares before a ratio is taken: rare elements are counted badly
SHARES_DECAY = 0.9  # of running shares
RARE = 1e-3  # running share below which a name is forgotten


@dataclass(frozen=True)
class DriftLimits:
    """Fine-tuning ends when the mean of `window` iterations passes a limit; none: no limit. Shares are of a batch."""

    window: int = 4
    """Iterations over which the metrics are averaged before they are compared."""
    max_kl: float | None = 50.0
    """KL divergence to the pretrained policy, nats."""
    min_entropy: float | None = None
    """Entropy of the policy, nats, estimated as -<log p>; differential, so it may be negative."""
    min_valid: float | None = 0.2
    """Share of valid crystals."""
    min_unique: float | None = 0.5
    """Share of crystals that are unique by composition and Wyckoff positions."""
    max_known: float | None = 0.9
    """Share of crystals that are in the novelty reference."""
    max_replay: float | None = 0.9
    """Share of crystals that the pretrained policy was trained on."""
    max_element_ratio: float | None = 20.0
    """Share of an element over its share in the pretrained policy."""
    max_f_block: float | None = 0.9
    """Share of crystals with a lanthanide or actinide."""
    max_radioactive: float | None = 0.5
    """Share of crystals with a radioactive element."""
    max_group_share: float | None = 0.9
    """Share of the most frequent space group."""
    min_group_entropy: float | None = 0.3
    """Entropy of p(g), nats."""

    def passed(self, rows: Sequence[Mapping[str, float]]) -> str | None:
        """The limit that the last iterations pass, in words, or None. A number that no row has is not judged."""
        recent = rows[-self.window :]
        if len(recent) < self.window:
            return None
        for name, limit in asdict(self).items():
            side, _, metric = name.partition("_")
            values = [row[metric] for row in recent if metric in row]
            if side not in ("min", "max") or limit is None or not values:
                continue
            mean = float(np.mean(values))
            if mean < limit if side == "min" else mean > limit:
                return f"{metric} {mean:.3g} is {'below' if side == 'min' else 'above'} {name} {limit:g}"
        return None


_NONE: dict[str, Any] = {item.name: None for item in fields(DriftLimits) if item.name != "window"}
UNLIMITED = DriftLimits(**_NONE)


def element_shares(batch: CrystalBatch) -> np.ndarray:
    """Share of the crystals that hold each element, shape (119,), by atomic number."""
    present = np.zeros((len(batch), 119), dtype=bool)
    rows, slots = np.nonzero(batch.W)
    present[rows, batch.A[rows, slots]] = True
    result: np.ndarray = present.mean(axis=0)
    return result


def running_mean(before: Sequence[float] | None, shares: np.ndarray) -> np.ndarray:
    """Shares of a batch taken into their running mean; None: there is none yet."""
    return shares if before is None else SHARES_DECAY * np.array(before) + (1 - SHARES_DECAY) * shares


def running_shares(before: Mapping[str, float], names: np.ndarray) -> dict[str, float]:
    """The same of the share that each name has among the (n,) names of a batch, without those that hardly occur."""
    found, counts = np.unique(names, return_counts=True)
    shares = dict(zip(found.tolist(), (counts / len(names)).tolist(), strict=True))
    decay = SHARES_DECAY if before else 0.0
    every = sorted({*before, *shares})
    mixed = {name: decay * before.get(name, 0.0) + (1 - decay) * shares.get(name, 0.0) for name in every}
    return {name: share for name, share in mixed.items() if share > RARE}


def element_ratios(shares: np.ndarray, base: np.ndarray) -> np.ndarray:
    """How many times as frequent as in the base each element is, shape (119,)."""
    return (shares + PSEUDO_SHARE) / (base + PSEUDO_SHARE)


def over_represented(batch: CrystalBatch, ratios: np.ndarray, limit: float) -> np.ndarray:
    """Factor (n,) of each reward: limit / ratio of the crystal's most over-represented element, at most 1."""
    worst = np.where(batch.W > 0, ratios[batch.A], 0.0).max(axis=1)
    result: np.ndarray = np.minimum(1.0, limit / np.maximum(worst, 1e-12))
    return result


def keys(batch: CrystalBatch) -> list[str]:
    """Hash of space group, letters and elements of each crystal: equal ones differ in free coordinates and cell only.

    Descriptions of one crystal in shifted origins have different keys.
    """
    found = []
    for g, letters, elements in zip(batch.G, batch.W, batch.A, strict=True):
        sites = sorted(zip(letters[letters > 0].tolist(), elements[letters > 0].tolist(), strict=True))
        found.append(hashlib.blake2b(f"{g}{sites}".encode(), digest_size=8).hexdigest())
    return found


def drift(batch: CrystalBatch, ratios: np.ndarray, p_groups: np.ndarray) -> dict[str, float]:
    """Numbers of a batch that `DriftLimits` judges; `p_groups` (230,) are the probabilities of the space groups."""

    def holds(elements: np.ndarray) -> float:
        return float((np.isin(batch.A, elements) & (batch.W > 0)).any(axis=1).mean())

    positive = p_groups[p_groups > 0]
    return {
        "unique": len(set(keys(batch))) / len(batch),
        "element_ratio": float(ratios.max()),
        "f_block": holds(F_BLOCK),
        "radioactive": holds(_RADIOACTIVE),
        "group_share": float(p_groups.max()),
        "group_entropy": float(-(positive * np.log(positive)).sum()),
    }
