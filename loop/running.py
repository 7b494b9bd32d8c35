"""Where the work of a campaign is done: in this thread, one after the other, or as the tasks of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from loop.approval import Answer, Question, wait
from loop.values import Candidate

if TYPE_CHECKING:
    from loop.campaign import Campaign
    from loop.stages import Step


class Runner(Protocol):
    """Runs stages and batches of labels. It decides where and how many at a time, never what or in which order."""

    def stage(self, campaign: Campaign, round: int, stage: str) -> Step:
        """Call ``campaign.run_stage(round, stage)``, once, and return what it returns."""
        ...

    def label(self, campaign: Campaign, round: int, batches: Sequence[list[Candidate]]) -> None:
        """Call ``campaign.label(batch)`` for each batch, side by side if so wished; return when all are labelled."""
        ...

    def ask(self, question: Question) -> Answer:
        """Wait until a person, or the deadline, has decided."""
        ...


class InTurn:
    """All in this thread."""

    def stage(self, campaign: Campaign, round: int, stage: str) -> Step:
        """Run a stage."""
        return campaign.run_stage(round, stage)

    def label(self, campaign: Campaign, round: int, batches: Sequence[list[Candidate]]) -> None:  # noqa: ARG002
        """Label one batch after the other."""
        done, total = 0, sum(map(len, batches))
        for batch in batches:
            campaign.label(batch)
            done += len(batch)
            campaign.progress("label", done, total, {})

    def ask(self, question: Question) -> Answer:
        """Wait for the answer in the campaign's folder."""
        return wait(question)
