"""Results as files that other programs read."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

from loop.files import write_text
from loop.history import History, Label
from loop.ranking import ranked


def ranked_rows(history: History) -> list[dict[str, Any]]:
    """The ranked list as rows; missing numbers are None."""
    return [
        _row(rank, label, history) for rank, label in enumerate(ranked(history.labels(), history.settings), start=1)
    ]


def _row(rank: int, label: Label, history: History) -> dict[str, Any]:
    evaluation, settings = label.evaluation, history.settings
    stability = settings.stability
    predicted = {
        f"{name}_{what}": values[name]
        for name in label.pick.mean
        for what, values in (("predicted", label.pick.mean), ("sigma", label.pick.std))
    }
    row: dict[str, Any] = {
        "rank": rank,
        "candidate_id": label.candidate.id,
        "formula": label.candidate.formula,
        "space_group": evaluation.space_group_relaxed or evaluation.space_group,
        "n_atoms": len(label.candidate.structure),
        stability: evaluation.value(stability),
        f"{stability}_sigma": label.pick.std.get(stability),
        settings.objective: evaluation.value(settings.objective),
        "stable": label.is_stable(settings),
        "energy_type": str(evaluation.energy_type) if evaluation.energy_type else "",
        "status": evaluation.status,
        "novelty": label.pick.novelty,
        "novelty_relaxed": label.novelty_relaxed,
        "match": label.match,
        "round": label.pick.round,
        "arm": label.pick.arm,
        "cost_seconds": evaluation.cost.seconds,
        f"{stability}_unrelaxed": label.pick.screen,
        "space_group_asked": label.candidate.origin.space_group,
        "space_group_proposed": evaluation.space_group,
        "decomposition": evaluation.decomposition,
        "oracle": evaluation.oracle,
        "message": evaluation.message,
        "policy": label.candidate.origin.policy,
        "logp": label.candidate.origin.logp,
    }
    others = {name: q.value for name, q in evaluation.properties.items() if name not in row}
    return {name: _plain(value) for name, value in (row | others | predicted).items()}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_ranked(history: History, directory: Path) -> None:
    """Write ``ranked.csv`` and ``ranked.json``."""
    rows = ranked_rows(history)
    write_text(directory / "ranked.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
    write_text(directory / "ranked.csv", to_csv(rows))


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV, with the union of their columns in order of first appearance; nested values as JSON."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()})
    return text.getvalue()
