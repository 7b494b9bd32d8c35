"""Surrogates by themselves: from crystals in a file to beliefs in a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.errors import InputError
from loop.values import Candidate, Origin

if TYPE_CHECKING:
    import pandas as pd

    from loop.contracts import Progress
    from loop.crystals import CrystalTable


def predict_table(
    table: CrystalTable, campaign: Path | None, progress: Progress | None = None
) -> tuple[pd.DataFrame, int]:
    """One row a crystal with ``<property>_mean`` and ``<property>_std``; and the number of labels behind them.

    Args:
        table: crystals as they are, not relaxed.
        campaign: results folder whose newest surrogates are used; None for prior beliefs.
        progress: told of stages.

    Raises:
        InputError: the campaign has no fitted surrogate yet.
    """
    from flows.build import Builder
    from flows.config import CampaignConfig, stored_config
    from flows.screening import readable, rows_with

    config = CampaignConfig() if campaign is None else stored_config(campaign)
    surrogate = Builder(config, campaign).surrogate
    if campaign is not None:
        fits = sorted((campaign / "surrogate").glob("round_*"))
        if not fits:
            raise InputError(f"{campaign} has no fitted surrogate yet: its first round is not done")
        surrogate.load(fits[-1])
    rows, structures = readable(table)
    candidates = [Candidate(structure, Origin("file")) for structure in structures]
    if progress is not None:
        surrogate.extractor(candidates, progress)
    beliefs = surrogate.predict(candidates)
    results: dict[int, dict[str, Any]] = {}
    for index, row in enumerate(rows):
        found: dict[str, Any] = {"status": "ok"}
        for column, name in enumerate(beliefs.names):
            found[f"{name}_mean"] = beliefs.mean[index, column]
            found[f"{name}_std"] = beliefs.std[index, column]
        results[row] = found
    return rows_with(table, results), len(surrogate.labels)
