"""Configuration to concrete objects: the only place that knows the concrete classes of the rooms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flows import configfile
from flows.config import CONFIG_FILE, CampaignConfig, check_same
from flows.provenance import provenance
from loop.campaign import Campaign, Parts
from loop.contracts import Progress
from loop.files import make_folder
from loop.store import Store


@contextmanager
def open_campaign(config: CampaignConfig, directory: Path, progress: Progress | None = None) -> Iterator[Campaign]:
    """The campaign of a results folder, begun or gone on with; leaving ends its worker processes.

    Raises:
        ConfigError: the folder holds a campaign with other settings.
        StoreError: another process works in the folder, or the ledger cannot be used.
    """
    make_folder(directory)
    check_same(config, directory)
    with Store(config.ledger(directory)) as store, parts(config, store) as put_together:
        about = {"config": config.model_dump(mode="json"), "provenance": provenance()}
        with Campaign(config.campaign, put_together, store, directory, progress=progress, about=about) as campaign:
            configfile.dump(config, directory / CONFIG_FILE)
            yield campaign


@contextmanager
def parts(config: CampaignConfig, store: Store) -> Iterator[Parts]:
    """What a campaign is put together from."""
    raise NotImplementedError
