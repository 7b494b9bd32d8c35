"""Surrogates by themselves: from crystals in a file to predictions in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.errors import InputError
from loop.values import Candidate, Origin, failed

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from loop.contracts import Progress
    from loop.io.crystals import CrystalTable
    from oracles.potentials.base import Potential


def _refusal(structure: Structure, potential: Potential) -> dict[str, Any]:
    """Why a crystal has no features of the potential: a mean over other crystals would be no prediction for it."""
    point = potential.single_points([structure], gradients=False)[0]
    return {"status": failed("features") if point.ok else point.status, "message": point.message}


def predict_table(
    table: CrystalTable, campaign: Path | None, progress: Progress | None = None
) -> tuple[pd.DataFrame, int]:
    """Predictions, one row per crystal, and the number of labels behind them.

    Columns: ``<property>_mean`` and ``<property>_std``; ``p_stable``, the probability of lying at or below the
    campaign's threshold of stability; and ``distance`` from the labelled crystals in the space of features, of which
    above 1 means out of distribution (empty without labels). A crystal that the potential refuses has its status.

    Args:
        table: crystals as they are, not relaxed.
        campaign: results folder whose newest surrogates are used; None for the prior.
        progress: told of stages.

    Raises:
        InputError: the campaign has no fitted surrogate yet.
    """
    from flows.build import Builder
    from flows.config import CampaignConfig, stored_config
    from flows.tables.columns import rows_with
    from flows.tables.screening import readable

    config = CampaignConfig() if campaign is None else stored_config(campaign)
    builder = Builder(config, campaign)
    surrogate = builder.surrogate
    if campaign is not None:
        fits = sorted((campaign / "surrogate").glob("round_*"))
        if not fits:
            raise InputError(f"{campaign} has no fitted surrogate yet: its first round is not done")
        surrogate.load(fits[-1])
    rows, structures = readable(table)
    candidates = [Candidate(structure, Origin("file")) for structure in structures]
    X = surrogate.extractor(candidates, progress)
    own = surrogate.extractor.groups.get("potential")
    refused = np.zeros(len(X), dtype=bool) if own is None else np.isnan(X[:, own]).all(axis=1)
    predictions = surrogate.predict(candidates)
    stable = surrogate.probability(candidates, config.campaign.stability, at_most=config.campaign.threshold)
    distance = surrogate.distance(candidates)
    results: dict[int, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        found: dict[str, Any] = {"status": "ok"}
        for column, name in enumerate(predictions.names):
            found[f"{name}_mean"] = predictions.mean[index, column]
            found[f"{name}_std"] = predictions.std[index, column]
        found["p_stable"] = stable[index]
        found["distance"] = distance[index] if np.isfinite(distance[index]) else None
        results[row] = _refusal(structures[index], builder.cheap.potential) if refused[index] else found
    return rows_with(table, results), len(surrogate.labels)
