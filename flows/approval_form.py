"""Approval under Prefect: the flow run pauses and shows a form. An answer in the campaign's folder counts as well."""
# no `from __future__ import annotations`: Prefect reads the fields of the form from the class as it stands

import contextlib
import contextvars
import logging
import threading
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from prefect import pause_flow_run, runtime
from prefect.client.orchestration import get_client
from prefect.exceptions import FlowPauseTimeout
from prefect.input import RunInput
from pydantic import Field

from loop import approval
from loop.approval import Answer, Question

Logger = logging.Logger | logging.LoggerAdapter[Any]


class Approval(RunInput):
    """The form."""

    decision: Literal["approve", "reject"] = Field("approve", description="Whether the crystals may go up.")
    budget: int = Field(1, ge=0, description="How many of them at most; the first ones of the list.")


def decide(question: Question, logger: Logger) -> Answer:
    """Pause until the form, the file or the deadline decides. A server that is away leaves the file."""
    if (found := approval.answered(question)) is not None:
        return found
    left = (question.deadline - datetime.now(UTC)).total_seconds()
    decided = threading.Event()
    here = contextvars.copy_context()  # settings of Prefect, and which run this is
    threading.Thread(target=here.run, args=(_resume_when_answered, question, decided), daemon=True).start()
    form = Approval.with_initial_data(description=described(question), decision="approve", budget=question.budget)
    try:
        said = pause_flow_run(wait_for_input=form, timeout=max(1, round(left)), poll_interval=2)
    except FlowPauseTimeout:
        return approval.wait(question)
    except Exception as error:
        logger.warning("no form can be shown (%s); answer by `discovery-loop approve`", type(error).__name__)
        return approval.wait(question)
    finally:
        decided.set()
    return approval.answered(question) or approval.answer(question, said.decision, said.budget, "the form")


def described(question: Question) -> str:
    """The question and its crystals, as markdown."""
    from flows.artifacts import markdown

    rows = [{name: row[name] for name in sorted(row, key="candidate".__eq__)} for row in question.candidates]
    return f"{question.text}\n\n{markdown(rows)}"  # ids last: the form is narrow


def _resume_when_answered(question: Question, decided: threading.Event) -> None:
    """Resume the paused run when the answer comes by file; a run that is not paused yet, or a server away: later."""
    run = UUID(str(runtime.flow_run.id))
    while not decided.wait(approval.LOOK_SECONDS):
        found = approval.answered(question)
        if found is not None:
            with contextlib.suppress(Exception), get_client(sync_client=True) as client:
                client.resume_flow_run(run, run_input={"decision": found.decision, "budget": found.budget})
