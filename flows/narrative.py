"""One line of plain words for each stage that is done."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def told(stage: str, payload: Mapping[str, Any]) -> str:
    """What a stage did, from what the campaign recorded of it."""
    words = {
        "finetune": _finetune,
        "propose": _propose,
        "select": _select,
        "label": _label,
        "retrain": _retrain,
        "report": _report,
    }
    return words[stage](payload)


def _finetune(payload: Mapping[str, Any]) -> str:
    rows = payload["rows"]
    if not rows:
        return "untuned generator: its labels are the baseline"
    first, last = rows[0], rows[-1]
    change = f"reward {first['reward']:.3f} -> {last['reward']:.3f}"
    return f"{len(rows)} iterations, {change}, KL to the base {last['kl']:.2f} nats"


def _propose(payload: Mapping[str, Any]) -> str:
    funnel = payload["funnel"]
    return ", ".join(f"{funnel[name]} {name}" for name in ("sampled", "accepted", "unique", "new")) + (
        f"; pool of {funnel['pool']}"
    )


def _select(payload: Mapping[str, Any]) -> str:
    arms = [pick["arm"] for pick in payload["picks"]]
    counts = ", ".join(f"{arms.count(arm)} {arm}" for arm in dict.fromkeys(arms))
    return f"{len(arms)} to label ({counts or 'none'})"


def _label(payload: Mapping[str, Any]) -> str:
    statuses = ", ".join(f"{count} {status}" for status, count in payload["statuses"].items())
    rungs = "".join(f"; {count} to {name}" for name, count in payload.get("rungs", {}).items())
    return f"{statuses or 'nothing'}; {payload['paid']} oracle calls paid{rungs}"


def _retrain(payload: Mapping[str, Any]) -> str:
    errors = [
        f"{name.split('/')[0]} {value:.3g}" for name, value in payload["metrics"].items() if name.endswith("/cv_mae")
    ]
    known = f" and {payload['metrics']['known']:.0f} known ones" if "known" in payload["metrics"] else ""
    return f"{payload['labels']} labels{known}" + (f"; cross-validated error: {', '.join(errors)}" if errors else "")


def _report(payload: Mapping[str, Any]) -> str:
    funnel, metrics = payload["report"]["funnel"], payload["report"]["metrics"]
    best = metrics["best_objective"]
    suspect = f", {funnel['suspect']} suspect" if funnel.get("suspect") else ""
    name = payload.get("objective", "objective")  # earlier ledgers do not say it
    return (
        f"{funnel['stable']} of {funnel['labelled']} labels stable, {funnel['stable_new']} of them new{suspect}; "
        f"{metrics['stable_new_total']:.0f} stable and new in all, "
        + (f"none of them with a {name}" if math.isnan(best) else f"best {name} {best:.4g}")
    )
