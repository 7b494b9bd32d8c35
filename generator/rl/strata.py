"""Classes of chemistry that a policy is kept in: what pays in one class is not compared with what pays in another.

A reward that asks for stability is earned most easily by intermetallics with f-block elements, and a policy that
follows it leaves the oxides (measured: 26 to 4 %, f-block 39 to 66 %). Where the better half is taken within each
stratum, and strata are learned from in the reference policy's shares, it looks for the stable crystals of every class.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import numpy as np
from pymatgen.core import Element

from generator.representation.tokens import CrystalBatch
from generator.rl.drift import F_BLOCK, PSEUDO_SHARE

CLASSES = ("intermetallics", "oxides", "chalcogenides", "halides", "pnictides", "others")
_ANIONS = {
    "oxides": "O",
    "chalcogenides": "S Se Te",
    "halides": "F Cl Br I",
    "pnictides": "N P As Sb Bi",
    "others": "H B C",
}
STRATA = 2 * len(CLASSES)  # each class without and with an f-block element
LIFT = 3.0  # most that a stratum's share of what is learned from is raised, or lowered


@cache
def _of_elements() -> tuple[np.ndarray, np.ndarray]:
    """By atomic number, (119,) each: class of crystals whose most electronegative element it is; Pauling's value."""
    of_symbol = {symbol: name for name, symbols in _ANIONS.items() for symbol in symbols.split()}
    kinds, pull = np.zeros(119, dtype=int), np.zeros(119)
    for z in range(1, 104):  # the heavier ones have no value, and are in no crystal
        element = Element.from_Z(z)
        kinds[z] = CLASSES.index(of_symbol.get(element.symbol, "intermetallics"))
        pull[z] = 0.0 if element.is_noble_gas else element.X
    return kinds, np.nan_to_num(pull)


def classes(batch: CrystalBatch) -> np.ndarray:
    """Index in `CLASSES` of each crystal, (n,): that of its most electronegative element (Pauling)."""
    kinds, pull = _of_elements()
    rows = np.arange(len(batch))
    strongest = np.where(batch.W > 0, pull[batch.A], -1.0).argmax(axis=1)
    found: np.ndarray = kinds[batch.A[rows, strongest]]
    return found


def class_of(symbols: Iterable[str]) -> str:
    """Class of a crystal with these elements, as of `classes`."""
    kinds, pull = _of_elements()
    strongest = max((Element(symbol).Z for symbol in symbols), key=lambda z: pull[z])
    return CLASSES[kinds[strongest]]


def strata(batch: CrystalBatch) -> np.ndarray:
    """Stratum of each crystal, (n,), 0 to `STRATA` - 1: twice its class, and one more with an f-block element."""
    f_block = (np.isin(batch.A, F_BLOCK) & (batch.W > 0)).any(axis=1)
    return 2 * classes(batch) + f_block


def stratum_shares(batch: CrystalBatch) -> np.ndarray:
    """Share of the crystals in each stratum, (`STRATA`,)."""
    return np.bincount(strata(batch), minlength=STRATA) / max(len(batch), 1)


def class_shares(batch: CrystalBatch) -> dict[str, float]:
    """Share of the crystals in each class, as `share_oxides` and so on."""
    counts = np.bincount(classes(batch), minlength=len(CLASSES)) / max(len(batch), 1)
    return {f"share_{name}": float(share) for name, share in zip(CLASSES, counts, strict=True)}


def prototypes(batch: CrystalBatch) -> np.ndarray:
    """Name of each crystal's space group and Wyckoff letters, elements aside, (n,): equal ones are decorations."""
    rows, inverse = np.unique(np.column_stack([batch.G, np.sort(batch.W, axis=1)]), axis=0, return_inverse=True)
    names = np.array([" ".join(str(number) for number in row if number) for row in rows.tolist()])
    found: np.ndarray = names[inverse.reshape(-1)]
    return found


def aims(shares: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Shares to learn strata in, (`STRATA`,), such that the policy draws them in the reference's.

    Args:
        shares: (`STRATA`,) of the reference.
        drawn: (`STRATA`,) of the policy, a running mean.

    A stratum that is drawn too seldom is learned from more, by the square of what it lacks, up to `LIFT` times; one
    that is drawn too often less. Learning in the reference's shares is not enough: few oxides are found to be stable,
    so they are learned by heart while the others are generalised from.
    """
    lift = np.clip(((shares + PSEUDO_SHARE) / (drawn + PSEUDO_SHARE)) ** 2, 1 / LIFT, LIFT)
    found: np.ndarray = shares * lift / (shares * lift).sum()
    return found


def better_half(rewards: np.ndarray, strata: np.ndarray) -> np.ndarray:
    """Rows (ascending) whose reward is not below the mean of their own stratum; `rewards` and `strata` are (n,)."""
    sums = np.bincount(strata, weights=rewards, minlength=STRATA)
    means = sums / np.maximum(np.bincount(strata, minlength=STRATA), 1)
    return np.flatnonzero(rewards >= means[strata] - 1e-12)


def weights(strata: np.ndarray, shares: np.ndarray, fresh: np.ndarray) -> np.ndarray:
    """Probability of each crystal to be learned from, (n,), such that strata have their shares.

    Args:
        strata: (n,) of the crystals.
        shares: (`STRATA`,) to aim for; strata without a crystal leave theirs to the others.
        fresh: (n,) weights of the crystals within their strata.
    """
    totals = np.bincount(strata, weights=fresh, minlength=STRATA)
    found = fresh * shares[strata] / np.where(totals[strata] > 0, totals[strata], 1.0)
    result: np.ndarray = found / found.sum() if found.sum() > 0 else fresh / fresh.sum()
    return result


def capped(chances: np.ndarray, kinds: np.ndarray, caps: np.ndarray) -> np.ndarray:
    """Probabilities (n,) in which no kind has more than its cap; what is over goes to all others in proportion.

    Args:
        chances: (n,) probabilities, of sum 1.
        kinds: (n,) number of each crystal's kind, from 0.
        caps: (kinds,) largest share of each; where together they are below 1, shares are in their proportion.
    """
    shares = np.bincount(kinds, weights=chances, minlength=len(caps))
    caps = np.where(shares > 0, caps, 0.0)
    held = np.zeros(len(caps), dtype=bool)
    found = shares
    while (over := ~held & (found > caps * (1 + 1e-9))).any():
        held |= over
        free = shares[~held].sum()
        room = max(0.0, 1 - caps[held].sum())
        found = np.where(held, caps, shares * (room / free if free > 0 else 0.0))
    found = found / found.sum()
    result: np.ndarray = chances * (found / np.where(shares > 0, shares, 1.0))[kinds]
    return result


def chances(strata: np.ndarray, rewards: np.ndarray, shares: np.ndarray, kept: float, fresh: np.ndarray) -> np.ndarray:
    """Probability of each crystal of a replay buffer to be learned from, (n,).

    Args:
        strata: (n,) of the crystals.
        rewards: (n,) of them.
        shares: (`STRATA`,) to aim for.
        kept: part of what is learned from that is the better half of each stratum, in these shares; the rest is the
            better half of all, whatever its strata, so that no stratum falls below `kept` times that.
        fresh: (n,) weights of the crystals within their strata.
    """
    found, everything = np.zeros(len(strata)), np.zeros(len(strata), dtype=int)
    for part, of_part, wanted in ((kept, strata, shares), (1 - kept, everything, np.eye(STRATA)[0])):
        good = better_half(rewards, of_part)
        found[good] += part * weights(of_part[good], wanted, fresh[good])
    return found
