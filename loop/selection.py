"""Which candidates of a pool are labelled: the engine's choice, and beside it a random one from the same pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loop.contracts import Acquisition, Surrogate
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
        acquisition, surrogate = judges
        seed = settings.seed_for(round, "acquire")
        chosen = acquisition.select([pool[index] for index in rest], surrogate, n_engine, seed=seed)
        if len(chosen) != n_engine or len(set(chosen)) != n_engine:
            raise ValueError(f"the acquisition was asked for {n_engine} distinct candidates and gave {chosen}")
        engine = [rest[index] for index in chosen]
    return dict.fromkeys(engine, ENGINE) | dict.fromkeys(shadow, BASELINE if round == 0 else SHADOW)


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
