"""The ledger of a results folder, opened such that no campaign begins over the results of another one."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from loop.errors import StoreError
from loop.io.files import holder
from loop.store import Store

if TYPE_CHECKING:
    from flows.config import CampaignConfig

RESULTS = ("ranked.csv", "ranked.json", "record.json", "pools/round_*", "generator/round_*", "surrogate/round_*")


def results_in(directory: Path) -> list[str]:
    """What a campaign has left in a folder, by name."""
    return [str(found.relative_to(directory)) for pattern in RESULTS for found in sorted(directory.glob(pattern))[:1]]


def open_ledger(config: CampaignConfig, directory: Path, *, resume: bool = False) -> Store:
    """The ledger that a campaign of a folder continues in; it is made only where nothing was begun.

    Args:
        config: of the campaign.
        directory: its results folder.
        resume: the campaign was begun before, so that the ledger must be there.

    Raises:
        StoreError: it is missing, empty or damaged, or does not hold the campaign whose results lie in the folder.
    """
    kept = results_in(directory)
    try:
        store = Store(config.ledger(directory), create=not (kept or resume))
    except StoreError as error:
        raise StoreError(f"{error}{_would_be_replaced(directory, kept)}") from error
    if kept and config.campaign.name not in store.campaigns():
        store.close()
        there = ", ".join(store.campaigns()) or "none"
        raise StoreError(
            f"The ledger {store.name} holds no campaign {config.campaign.name!r} (there are: {there})."
            f"{_would_be_replaced(directory, kept)}"
        )
    return store


def _would_be_replaced(directory: Path, kept: list[str]) -> str:
    if not kept:
        return ""
    return (
        f" {directory} still holds results ({', '.join(kept)}), which a new campaign would replace: put the ledger "
        "back, or begin one in another folder (`discovery-loop run CONFIG --results FOLDER`)."
    )


def worked_on(directory: Path, finished: bool) -> str:
    """Who works on the campaign of a folder, and since when; or that nobody does, and what to do."""
    found = holder(directory)
    go_on = "" if finished else f"; to continue: discovery-loop resume {directory}"
    if found is None:
        return f"nobody{go_on}"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(found.since))
    if found.alive:
        return f"process {found.pid} on {found.host}, since {since}"
    if found.alive is None:
        return f"process {found.pid} on {found.host}, since {since}; from here it cannot be seen whether it still runs"
    return f"nobody: process {found.pid}, at work since {since}, has ended without closing the campaign{go_on}"
