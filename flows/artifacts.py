"""What a flow run shows in the Prefect UI. Best effort: a server that is away never ends a campaign."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.console import described, short
from flows.narrative import told
from flows.report_server import address_of
from loop.stages import Reported, Step

if TYPE_CHECKING:
    from loop.campaign import Campaign

INTERVAL = 3.0  # seconds between two updates of the progress artifact
SHOWN = 100  # rows of the ranked table

Logger = logging.Logger | logging.LoggerAdapter[Any]


def slug(name: str) -> str:
    """An artifact's key: lower case, digits and dashes, which is all that Prefect takes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "campaign"


class Watcher:
    """Writes logs and artifacts of one campaign."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._bar: UUID | None = None
        self._last, self._stage = 0.0, ""

    def progress(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """`loop.contracts.Progress`: a progress artifact, and a log line at most every `INTERVAL` seconds."""
        now = time.monotonic()
        if stage == self._stage and now - self._last < INTERVAL:
            return
        self._stage, self._last = stage, now
        text = f"{stage} {done}/{total} {described(metrics)}".rstrip()
        if total > 1:
            self._logger.info(text)
        self._try(lambda: self._show_progress(100.0 * done / max(total, 1), text))

    def staged(self, campaign: Campaign, step: Step) -> None:
        """After each stage; the ranked table appears with every report."""
        self._logger.info("round %d/%d %s: %s", step.round, campaign.settings.rounds, step.stage, told(step.record))
        if step.stage == Reported.stage:
            rows = ranked_rows(campaign)
            self._try(lambda: self._show_ranked(rows))

    def finished(self, campaign: Campaign, summary: Mapping[str, Any]) -> None:
        """The report, and where it lies."""
        from loop.report.columns import BRIEF, columns

        shown = columns(campaign.history, BRIEF)
        self._try(lambda: self._show_report(campaign.directory, summary, shown, round_rows(campaign)))

    def _try(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:
            self._logger.warning(
                "an artifact could not be shown (%s: %s); the campaign goes on", type(error).__name__, error
            )

    def _show_progress(self, percent: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if self._bar is None:
            made = create_progress_artifact(percent, key=f"{slug(self._name)}-progress", description=text)
            self._bar = made if isinstance(made, UUID) else None
        else:
            update_progress_artifact(self._bar, percent, description=text)

    def _show_ranked(self, rows: list[dict[str, Any]]) -> None:
        from prefect.artifacts import create_table_artifact

        description = f"Ranked candidates of campaign {self._name}: stable and new ones first, then known, suspect and "
        description += f"unstable ones (the first {SHOWN}; all are in ranked.csv)"
        create_table_artifact(table=rows, key=f"{slug(self._name)}-ranked", description=description)

    def _show_report(
        self, directory: Path, summary: Mapping[str, Any], shown: Mapping[str, str], rounds: list[dict[str, Any]]
    ) -> None:
        from prefect.artifacts import create_link_artifact, create_markdown_artifact

        counts = [{"": name, "value": v} for name, v in summary.items() if name not in ("top", "known") and v != ""]
        where = directory.resolve()
        parts = [f"# Campaign {self._name}", f"Goal: {summary['goal']}.", f"Results: `{where}`"]
        parts += ["## Best finds: stable and new", markdown(headed(summary["top"], shown))]
        if summary["known"]:
            parts += ["## Stable, but known or a copy: no finds", markdown(headed(summary["known"], shown))]
        parts += ["## Rounds", markdown(rounds), "## Counts", markdown(counts)]
        description = f"Report of campaign {self._name}"
        create_markdown_artifact("\n\n".join(parts), key=f"{slug(self._name)}-report", description=description)
        address = address_of(where / "report.html")
        if address is not None:  # a browser opens no file from a page, so without a server there is no link to give
            create_link_artifact(address, link_text="report.html", key=f"{slug(self._name)}-report-html")


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table."""
    if not rows:
        return "none"
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(short(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def round_rows(campaign: Campaign) -> list[dict[str, Any]]:
    """What each round did, in a few numbers."""
    return [
        {
            "round": report.round,
            **{
                name: report.funnel[name] for name in ("sampled", "accepted", "new", "labelled", "stable", "stable_new")
            },
            "hit_rate": report.metrics["hit_rate"],
            "reward": report.metrics.get("reward_last", float("nan")),
            "KL": report.metrics.get("kl", float("nan")),
            "minutes": sum(report.seconds.values()) / 60,
        }
        for report in campaign.history.reports()
    ]


def ranked_rows(campaign: Campaign) -> list[dict[str, Any]]:
    """The best rows of the ranked list, with the columns that a person reads, units in their heads."""
    from loop.report.columns import columns
    from loop.report.export import ranked_rows as all_rows

    shown = columns(campaign.history)
    rows = [{head: row.get(key) for key, head in shown.items()} for row in all_rows(campaign.history)[:SHOWN]]
    return [{head: round(v, 4) if isinstance(v, float) else v for head, v in row.items()} for row in rows]


def headed(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of a summary with the heads that a person reads."""
    return [{shown.get(key, key): value for key, value in row.items()} for row in rows]
