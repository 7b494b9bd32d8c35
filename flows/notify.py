"""Telling people by Prefect's own notification blocks: a question, the end, a failure. Best effort."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from loop.errors import DiscoveryLoopError

Logger = logging.Logger | logging.LoggerAdapter[Any]


def send(blocks: Sequence[str], subject: str, text: str, logger: Logger) -> None:
    """Send a message by each block.

    Args:
        blocks: names such as slack-webhook/materials, as the UI shows them.
        subject: the message's.
        text: the message.
        logger: gets the names of blocks that do not work, no more: errors may hold their addresses, which are secrets.
    """
    for name in blocks:
        try:
            _load(name).notify(text, subject=subject)
        except Exception as error:
            logger.warning("the block %s could not be used (%s); the campaign continues", name, type(error).__name__)


@contextmanager
def of_failure(blocks: Sequence[str], campaign: str, logger: Logger) -> Iterator[None]:
    """Tell of an error on its way out."""
    try:
        yield
    except DiscoveryLoopError as error:
        send(blocks, f"{campaign} has failed", str(error), logger)
        raise


def _load(name: str) -> Any:
    from prefect.blocks import notifications  # noqa: F401  (registers the types of blocks)
    from prefect.blocks.core import Block

    return Block.load(name)
