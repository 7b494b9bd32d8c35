"""Which candidates of a pool are labelled: the engine's choice, and beside it a random one from the same pool."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from loop.contracts import Acquisition, Surrogate
from loop.prototypes import prototype
from loop.settings import BASELINE, ENGINE, SHADOW, CampaignSettings
from loop.values import Candidate, Prediction


def choose(
    pool: Sequence[Candidate],
    settings: CampaignSettings,
    round: int,
    budget: int,
    judges: tuple[Acquisition, Surrogate] | None,
) -> dict[int, str]:
    """Indices into the pool, each with the arm that chose it, in order of choice.

    The shadow arm picks first and uniformly from the whole pool, the engine from what is left: the comparison errs, if
    at all, against the engine. In round 0 all picks are random.

    Args:
        pool: candidates.
        settings: of the campaign.
        round: its seed decides.
        budget: labels to spend; fewer are chosen from a smaller pool.
        judges: acquisition and fitted surrogate; None while nothing is learnt: the engine's picks are random, too.

    Raises:
        ValueError: the acquisition gave other than distinct indices of the number asked for.
    """
    rng = np.random.default_rng(settings.seed_for(round, "select"))
    budget = min(budget, len(pool))
    n_shadow = budget if round == 0 else shadow_size(budget, settings.shadow_share)
    shadow = rng.choice(len(pool), size=n_shadow, replace=False).tolist()
    taken = set(shadow)
    rest = [index for index in range(len(pool)) if index not in taken]
    n_engine = budget - n_shadow
    if judges is None or n_engine == 0:
        engine = rng.choice(rest, size=n_engine, replace=False).tolist() if rest else []
    else:
        seed = settings.seed_for(round, "acquire")
        engine = _diverse(pool, rest, n_engine, judges, settings.prototype_share, seed)
    return dict.fromkeys(engine, ENGINE) | dict.fromkeys(shadow, BASELINE if round == 0 else SHADOW)


def _diverse(
    pool: Sequence[Candidate],
    rest: Sequence[int],
    n: int,
    judges: tuple[Acquisition, Surrogate],
    share: float,
    seed: int,
) -> list[int]:
    """What the acquisition ranks first, but of no prototype more than a share; where nothing else is left, more of it.

    A prototype that has its share gives its places to what the acquisition ranks next.
    """
    acquisition, surrogate = judges
    most, counts = max(1, math.floor(share * n)), Counter[str]()
    chosen, spare, left = list[int](), list[int](), list(rest)
    while len(chosen) < n and left:
        asked = min(n - len(chosen), len(left))
        picked = acquisition.select([pool[index] for index in left], surrogate, asked, seed=seed)
        if len(picked) != asked or len(set(picked)) != asked:
            raise ValueError(f"the acquisition was asked for {asked} distinct candidates and gave {picked}")
        for index in (left[place] for place in picked):
            kind = prototype(pool[index].structure) if most < n else ""
            full = bool(kind) and counts[kind] >= most
            (spare if full else chosen).append(index)
            counts[kind] += not full
        left = [index for place, index in enumerate(left) if place not in set(picked)]
    return (chosen + spare)[:n]


def shadow_size(budget: int, share: float) -> int:
    """At least one label where there is a share and a budget to share, and never the whole budget."""
    return 0 if share == 0 or budget < 2 else min(budget - 1, max(1, round(share * budget)))


def row_of(posteriors: Prediction | None, index: int) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation of one candidate, by property."""
    if posteriors is None:
        return {}, {}
    mean = {name: float(value) for name, value in zip(posteriors.names, posteriors.mean[index], strict=True)}
    return mean, {name: float(value) for name, value in zip(posteriors.names, posteriors.std[index], strict=True)}


def columns_of(posteriors: Prediction | None) -> dict[str, list[float]]:
    """Means of all candidates, by property."""
    return {} if posteriors is None else {name: posteriors.column(name)[0].tolist() for name in posteriors.names}
