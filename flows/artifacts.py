"""What a flow run shows in the Prefect UI. Best effort: a server that is away never ends a campaign."""

from __future__ import annotations

import base64
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from flows.console import described, short
from flows.narrative import told
from flows.report_server import address_of
from loop.settings import STAGES
from loop.stages import Labelled, Reported, Step

if TYPE_CHECKING:
    from loop.campaign import Campaign

INTERVAL = 3.0  # seconds between two updates of the progress artifact
SHOWN = 100  # rows of the ranked table
BEST = 20  # finds with links
DRAWN = 4  # of them, in pictures
LONG = ("prototype", "prototype_count", "decoration")  # columns behind the others: the page is narrow

Logger = logging.Logger | logging.LoggerAdapter[Any]


def slug(name: str) -> str:
    """An artifact's key: lower case, digits and dashes, which is all that Prefect takes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "campaign"


class Watcher:
    """Writes logs and artifacts of one campaign."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name, self._logger = name, logger
        self._bars: dict[str, UUID] = {}
        self._last, self._stage = 0.0, ""
        self._done, self._all = 0, 1  # stages

    def progress(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """`loop.contracts.Progress`: a progress artifact, and a log line at most every `INTERVAL` seconds."""
        now = time.monotonic()
        if stage == self._stage and now - self._last < INTERVAL:
            return
        self._stage, self._last = stage, now
        text = f"{stage} {done}/{total} {described(metrics)}".rstrip()
        if total > 1:
            self._logger.info(text)
        share = min(1.0, done / max(total, 1))
        if stage in STAGES:
            percent = 100.0 * min(1.0, (self._done + (share if total > 1 else 0.0)) / self._all)
            self._try(lambda: self._show_progress("progress", percent, text))
        else:  # a tier, within the stage of labels
            self._try(lambda: self._show_progress(f"progress-{slug(stage)}", 100.0 * share, text))

    def begins(self, campaign: Campaign) -> None:
        """Before the first stage: how much there is to do."""
        self._done, self._all = len(campaign.history.done), len(STAGES) * (campaign.settings.rounds + 1)

    def staged(self, campaign: Campaign, step: Step) -> None:
        """After each stage; the ranked table appears with every report."""
        self._logger.info("round %d/%d %s: %s", step.round, campaign.settings.rounds, step.stage, told(step.record))
        self._done = len(campaign.history.done)
        if step.stage == Labelled.stage:
            for tier in campaign.components.tiers:
                self._try(
                    partial(self._show_progress, f"progress-{slug(tier.name)}", 100.0, f"round {step.round} done")
                )
        if step.stage == Reported.stage:
            rows = ranked_rows(campaign)
            self._try(lambda: self._show_ranked(rows))
            for show in (self._show_best, self._show_figures, self._show_costs, self._show_link):
                self._try(partial(show, campaign))

    def finished(self, campaign: Campaign, summary: Mapping[str, Any]) -> None:
        """The report, and where it lies."""
        from loop.report.columns import BRIEF, columns

        shown = columns(campaign.history, BRIEF)
        why = str(summary.get("stopped") or "all rounds are done")
        self._try(lambda: self._show_progress("progress", 100.0, f"finished: {why}"))
        self._try(lambda: self._show_report(campaign.directory, summary, shown, round_rows(campaign)))

    def _try(self, show: Callable[[], None]) -> None:
        try:
            show()
        except Exception as error:
            self._logger.warning(
                "an artifact could not be shown (%s: %s); the campaign continues", type(error).__name__, error
            )

    def _show_progress(self, name: str, percent: float, text: str) -> None:
        from prefect.artifacts import create_progress_artifact, update_progress_artifact

        if name in self._bars:
            update_progress_artifact(self._bars[name], percent, description=text)
            return
        made = create_progress_artifact(percent, key=f"{slug(self._name)}-{name}", description=text)
        if isinstance(made, UUID):
            self._bars[name] = made

    def _show_best(self, campaign: Campaign) -> None:
        from prefect.artifacts import create_markdown_artifact

        text = (
            f"# Best finds of campaign {self._name} so far\n\n{markdown(best_rows(campaign))}\n\n{pictures(campaign)}"
        )
        create_markdown_artifact(text, key=f"{slug(self._name)}-best", description=f"Best finds of {self._name}")

    def _show_figures(self, campaign: Campaign) -> None:
        from prefect.artifacts import create_markdown_artifact

        text = f"# Figures of campaign {self._name}\n\n{figures(campaign)}"
        create_markdown_artifact(text, key=f"{slug(self._name)}-figures", description=f"Figures of {self._name}")

    def _show_costs(self, campaign: Campaign) -> None:
        from prefect.artifacts import create_table_artifact

        description = f"What campaign {self._name} has cost, and what is left of it at most, at the same cost per label"
        create_table_artifact(table=cost_rows(campaign), key=f"{slug(self._name)}-cost", description=description)

    def _show_link(self, campaign: Campaign) -> None:
        from prefect.artifacts import create_link_artifact

        address = address_of(campaign.directory.resolve() / "report.html")
        if address is not None:  # a browser opens no file from a page, so without a server there is no link to give
            create_link_artifact(
                address,
                link_text="report.html",
                key=f"{slug(self._name)}-report-html",
                description=f"The whole report of {self._name}, interactive",
            )

    def _show_ranked(self, rows: list[dict[str, Any]]) -> None:
        from prefect.artifacts import create_table_artifact

        description = f"Ranked candidates of campaign {self._name}: stable and new ones first, then known, suspect and "
        description += f"unstable ones (the first {SHOWN}; all are in ranked.csv)"
        create_table_artifact(table=rows, key=f"{slug(self._name)}-ranked", description=description)

    def _show_report(
        self, directory: Path, summary: Mapping[str, Any], shown: Mapping[str, str], rounds: list[dict[str, Any]]
    ) -> None:
        from prefect.artifacts import create_markdown_artifact

        counts = [{"": name, "value": v} for name, v in summary.items() if name not in ("top", "known") and v != ""]
        where = directory.resolve()
        parts = [f"# Campaign {self._name}", f"Goal: {summary['goal']}.", f"Results: `{where}`"]
        parts += ["## Best finds: stable and new", markdown(headed(summary["top"], shown))]
        if summary["known"]:
            parts += ["## Stable, but known or a copy: no finds", markdown(headed(summary["known"], shown))]
        parts += ["## Rounds", markdown(rounds), "## Counts", markdown(counts)]
        description = f"Report of campaign {self._name}"
        create_markdown_artifact("\n\n".join(parts), key=f"{slug(self._name)}-report", description=description)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table."""
    if not rows:
        return "none"
    lines = ["| " + " | ".join(rows[0]) + " |", "|" + "---|" * len(rows[0])]
    lines += ["| " + " | ".join(short(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def round_rows(campaign: Campaign) -> list[dict[str, Any]]:
    """What each round did, in a few numbers."""
    from loop.report.summary import reports_now

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
        for report in reports_now(campaign.history)
    ]


def ranked_rows(campaign: Campaign) -> list[dict[str, Any]]:
    """The best rows of the ranked list, with the columns that a person reads, units in their heads."""
    from loop.report.columns import columns
    from loop.report.export import ranked_rows as all_rows

    shown = short_first(columns(campaign.history))
    rows = [{head: row.get(key) for key, head in shown.items()} for row in all_rows(campaign.history)[:SHOWN]]
    return [{head: round(v, 4) if isinstance(v, float) else v for head, v in row.items()} for row in rows]


def short_first(shown: Mapping[str, str]) -> dict[str, str]:
    """Columns with what decides before what takes room."""
    return {key: shown[key] for key in sorted(shown, key=LONG.__contains__)}


def headed(rows: Sequence[Mapping[str, Any]], shown: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows of a summary with the heads that a person reads."""
    return [{shown.get(key, key): value for key, value in row.items()} for row in rows]


def best_rows(campaign: Campaign) -> list[dict[str, Any]]:
    """The best finds with units, each linked to its crystal where the results are served."""
    from loop.ranking import FIND
    from loop.report.columns import BRIEF, columns, in_group
    from loop.report.export import ranked_rows as all_rows
    from loop.report.export import write_cifs

    finds, shown = in_group(all_rows(campaign.history), FIND)[:BEST], short_first(columns(campaign.history, BRIEF))
    write_cifs(campaign.history, campaign.directory)
    rows = headed([{name: row.get(name) for name in shown if name != "formula"} for row in finds], shown)
    return [{"crystal": linked(campaign.directory, find), **row} for find, row in zip(finds, rows, strict=True)]


def linked(directory: Path, find: Mapping[str, Any]) -> str:
    """A find's formula, which leads to its CIF where the results are served."""
    path = cif_of(directory, find["rank"])
    address = None if path is None else address_of(path)
    return f"[{find['formula']}]({address})" if address else str(find["formula"])


def cif_of(directory: Path, rank: int) -> Path | None:
    """The file that `write_cifs` wrote for a rank."""
    return next(iter(sorted((directory / "cifs").glob(f"{rank:03d}_*.cif"))), None)


def pictures(campaign: Campaign) -> str:
    """The first of the best finds, drawn; one that cannot be read is left out."""
    from loop.ranking import FIND
    from loop.report.columns import in_group
    from loop.report.export import ranked_rows as all_rows
    from loop.report.figures import crystal

    found = []
    for find in in_group(all_rows(campaign.history), FIND)[:DRAWN]:
        path = cif_of(campaign.directory, find["rank"])
        if path is not None:
            title = f"{find['rank']}: {find['formula']}, space group {find['space_group']}"
            shown = image(partial(crystal, path.read_text(encoding="utf-8")), title)
            found.append(f"### {title}\n\n{shown}")
    return "\n\n".join(found)


def figures(campaign: Campaign) -> str:
    """The report's figures as images inside markdown; those for which there is too little data are left out."""
    from loop.report import figures as drawn

    wanted = {
        "Learning curve: the engine against random picks from the same pool": drawn.learning_curve,
        "Hit rates by round": drawn.hit_rates,
        "Pareto front": drawn.pareto,
        "Calibration of the surrogate": drawn.calibration_curve,
        "Funnel": drawn.funnel,
    }
    images = {title: image(partial(draw, campaign.history), title) for title, draw in wanted.items()}
    return "\n\n".join(f"## {title}\n\n{shown}" for title, shown in images.items() if shown)


def image(draw: Callable[[], Any], title: str) -> str:
    """A figure as an image inside markdown; empty where there is too little to draw."""
    from loop.report.figures import to_svg

    text = to_svg(draw, slug(title))
    return "" if text is None else f"![{title}](data:image/svg+xml;base64,{base64.b64encode(text.encode()).decode()})"


def cost_rows(campaign: Campaign) -> list[dict[str, Any]]:
    """One row per oracle: what it cost so far, and what the remaining rounds cost at most."""
    history, settings = campaign.history, campaign.settings
    left = settings.rounds + 1 - len(history.reports())
    ahead = {history.oracle.oracle: left * settings.budget}
    ahead |= {tier.oracle.name: left * min(tier.best, settings.budget) for tier in campaign.components.tiers}
    rows: list[dict[str, Any]] = []
    for cost in campaign.store.costs(history.name):
        most = ahead.get(cost.oracle, 0)
        rows.append(
            {
                "oracle": cost.oracle,
                "labels": cost.labels,
                "usable": cost.usable,
                "s per label": round(cost.seconds / max(cost.labels, 1), 3),
                "core-hours": round(cost.core_hours, 4),
                "labels left": most,
                "core-hours left": round(most * cost.core_hours / max(cost.labels, 1), 4),
            }
        )
    hours, done = history.seconds() / 3600, max(len(history.reports()), 1)
    everything = {"oracle": "all stages", "hours": round(hours, 4), "hours left": round(hours / done * left, 4)}
    heads = list(dict.fromkeys(head for row in (*rows, everything) for head in row))
    return [{head: row.get(head, "") for head in heads} for row in (*rows, everything)]  # the first row's are shown


def told_of(summary: Mapping[str, Any]) -> str:
    """The end of a campaign in a few lines, for a message."""
    names = ("goal", "rounds_done", "oracle_calls", "labelled", "stable_new", "best_objective", "stopped")
    return "\n".join(f"{name}: {summary[name]}" for name in names if summary.get(name) not in (None, ""))
