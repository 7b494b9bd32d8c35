"""One line of plain words for each stage that is done."""

from __future__ import annotations

import math
from functools import singledispatch

from loop.stages import Finetuned, Labelled, Proposed, Reported, Retrained, Selected, StageRecord


@singledispatch
def told(record: StageRecord) -> str:
    """What a stage did, from what the campaign recorded of it."""
    raise TypeError(f"expected the record of a stage, got {record!r}")


@told.register
def _(record: Finetuned) -> str:
    rows = record.rows
    if not rows:
        return "untuned generator: its labels are the baseline"
    first, last = rows[0], rows[-1]
    change = f"reward {first['reward']:.3f} -> {last['reward']:.3f}"
    return f"{len(rows)} iterations, {change}, KL to the base {last['kl']:.2f} nats"


@told.register
def _(record: Proposed) -> str:
    funnel = record.funnel
    counts = f"{funnel.sampled} sampled, {funnel.accepted} accepted, {funnel.unique} unique, {funnel.new} new"
    return f"{counts}; pool of {funnel.pool}"


@told.register
def _(record: Selected) -> str:
    arms = [pick.arm for pick in record.picks]
    counts = ", ".join(f"{arms.count(arm)} {arm}" for arm in dict.fromkeys(arms))
    return f"{len(arms)} to label ({counts or 'none'})"


@told.register
def _(record: Labelled) -> str:
    statuses = ", ".join(f"{count} {status}" for status, count in record.statuses.items())
    tiers = "".join(f"; {count} to {name}" for name, count in record.tiers.items())
    return f"{statuses or 'nothing'}; {record.paid} oracle calls paid{tiers}"


@told.register
def _(record: Retrained) -> str:
    errors = [f"{name.split('/')[0]} {value:.3g}" for name, value in record.metrics.items() if name.endswith("/cv_mae")]
    known = f" and {record.metrics['known']:.0f} known ones" if "known" in record.metrics else ""
    return f"{record.labels} labels{known}" + (f"; cross-validated error: {', '.join(errors)}" if errors else "")


@told.register
def _(record: Reported) -> str:
    funnel, metrics, name = record.report.funnel, record.report.metrics, record.objective
    best = metrics["best_objective"]
    suspect = f", {funnel['suspect']} suspect" if funnel.get("suspect") else ""
    return (
        f"{funnel['stable']} of {funnel['labelled']} labels stable, {funnel['stable_new']} of them new{suspect}; "
        f"{metrics['stable_new_total']:.0f} stable and new in all, "
        + (f"no {name} among them" if math.isnan(best) else f"best {name} {best:.4g}")
    )
