"""Progress of one stage, for what counts its own work and knows nothing of stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loop.contracts import Progress

Count = Callable[[int, int], None]
"""``count(done, total)``."""


def of_stage(progress: Progress | None, stage: str) -> Count | None:
    """What counts as `stage` of a progress; none stays none."""
    if progress is None:
        return None

    def count(done: int, total: int) -> None:
        progress(stage, done, total, {})

    return count
