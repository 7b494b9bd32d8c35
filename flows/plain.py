"""Campaigns without Prefect: run one, look at one, export one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import configfile
from flows.ledger import worked_on
from flows.narrative import told
from flows.outcome import summarise, write_report, write_results
from loop.approval import open_questions as asked
from loop.errors import ConfigError
from loop.history import History
from loop.settings import STAGES
from loop.stages import Reported
from loop.store import Store

if TYPE_CHECKING:
    from flows.config import CampaignConfig
    from flows.console import Reporter

CONFIG_FILE = "config.yaml"


def run_campaign(
    config: CampaignConfig, directory: Path, reporter: Reporter, *, resume: bool = False
) -> dict[str, Any]:
    """Run all that is left of a campaign and write its results; returns the summary."""
    from flows import build

    with build.open_campaign(config, directory, reporter, resume=resume) as campaign:
        for step in campaign.steps():
            where = f"round {step.round}/{campaign.settings.rounds} {step.stage:<8}"
            reporter.log(f"{where} {told(step.record)} ({step.seconds:.0f} s)")
            if step.stage == Reported.stage and not campaign.finished:
                write_report(campaign.history, directory)  # people look while it runs
        return write_results(campaign.history, directory)


@contextmanager
def open_store(directory: Path) -> Iterator[tuple[Store, str]]:
    """The ledger of a campaign and the campaign's name in it; it may be running.

    Raises:
        ConfigError: the folder holds no campaign.
        StoreError: its ledger cannot be read.
    """
    path = directory / CONFIG_FILE
    if not path.is_file():
        raise ConfigError(
            f"{directory} holds no campaign: no {CONFIG_FILE} in it (start one with `discovery-loop run`)"
        )
    data = configfile.read_mapping(path)  # unchecked: the check loads every room, and looking should be quick
    url = configfile.expand_environment(data["store"]) if data.get("store") else str(directory / "campaign.db")
    campaign = data.get("campaign")
    name = campaign.get("name") if isinstance(campaign, dict) else None
    if not isinstance(name, str):
        raise ConfigError(
            f"{path} does not say campaign.name: it is not the file that `discovery-loop run` wrote there"
        )
    with Store(url, create=False) as store:
        yield store, name


@contextmanager
def open_history(directory: Path) -> Iterator[History]:
    """A campaign to look at; it may be running.

    Raises:
        ConfigError: the folder holds no campaign.
        StoreError: its ledger cannot be read.
    """
    with open_store(directory) as (store, name):
        yield History.load(store, name)


def status_of(history: History, directory: Path) -> dict[str, Any]:
    """The summary, what comes next, and who works on it."""
    round, stage = history.next_stage
    done = round > history.settings.rounds or bool(history.stopped)
    pending = 0
    if (round, "select") in history.done and (round, "label") not in history.done:
        pending = sum(pick.candidate_id not in history.evaluations for pick in history.picks(round))
    state = "finished" if done else f"round {round} of {history.settings.rounds}, {stage} ({STAGES.index(stage) + 1}/6)"
    at_work = worked_on(directory, done)
    waits = "; ".join(f"{question.text} Answer: discovery-loop approve {directory}" for question in asked(directory))
    waiting = {"waits_for": waits} if waits else {}
    return {"state": state, "at_work": at_work, **waiting, "labels_pending": pending, **summarise(history)}


def export_campaign(history: History, directory: Path, format: str, output: Path) -> dict[str, Any]:
    """Write the ranked candidates; returns what was written."""
    from loop.report.export import export

    return {"rows": export(history, format, output, directory=directory), "format": format, "output": str(output)}
