"""Before a costly step a person may be asked: approve, reject, or change how many; until a deadline, then by default.

The question is a file in the campaign's folder, and so is the answer: written by hand, by `discovery-loop approve`, or
by a form that an engine shows. What is decided stays decided when the campaign is resumed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import yaml

from loop.errors import ConfigError, InputError
from loop.io.files import write_text

FOLDER = "approvals"  # of the questions, in the campaign's folder
LOOK_SECONDS = 2.0  # between two looks at an answer
APPROVE, REJECT = "approve", "reject"
PERSON, DEADLINE = "a person", "the deadline"
HELP = "# Write approve or reject behind `decision`, change `budget` (crystals) if you like, and save; or: {command}\n"


@dataclass(frozen=True)
class ApprovalRule:
    """Whether a person decides before each round's work.

    Raises:
        ConfigError: no time is left to answer.
    """

    hours: float = 24.0
    """Until the deadline, from the question on."""
    otherwise: Literal["approve", "reject"] = "reject"
    """What holds when nobody has answered by then."""

    def __post_init__(self) -> None:
        """Check values."""
        if not self.hours > 0:
            raise ConfigError(f"approval: expected hours above 0, got {self.hours:g}.")


@dataclass(frozen=True)
class Question:
    """What is asked, and where it stands."""

    path: Path
    campaign: str
    round: int
    tier: str
    budget: int
    deadline: datetime
    otherwise: str
    candidates: tuple[Mapping[str, Any], ...]

    @property
    def text(self) -> str:
        """In one sentence."""
        crystals = "1 crystal" if self.budget == 1 else f"{self.budget} crystals"
        return (
            f"Round {self.round} of campaign {self.campaign} would send {crystals} to {self.tier}. Without "
            f"an answer until {self.deadline:%Y-%m-%d %H:%M} UTC: {self.otherwise}."
        )


@dataclass(frozen=True)
class Answer:
    """What was decided."""

    decision: str
    budget: int
    by: str

    @property
    def crystals(self) -> int:
        """How many may go up."""
        return self.budget if self.decision == APPROVE else 0


def ask(path: Path, campaign: str, round: int, tier: str, rule: ApprovalRule, rows: list[dict[str, Any]]) -> Question:
    """Write a question down, or find it as it was asked before the campaign was cut off.

    An answer is one about the crystals that were shown: where others would go up now, as after an upgrade, it is asked
    again.
    """
    if not path.exists() or [row.get("candidate") for row in read_question(path).candidates] != [
        row.get("candidate") for row in rows
    ]:
        deadline = datetime.now(UTC) + timedelta(hours=rule.hours)
        said: dict[str, Any] = {
            "decision": None,
            "budget": len(rows),
            "campaign": campaign,
            "round": round,
            "tier": tier,
        }
        said |= {"deadline": deadline.isoformat(timespec="seconds"), "otherwise": rule.otherwise, "candidates": rows}
        _write(path, said)
    return read_question(path)


def withdraw(path: Path) -> None:
    """Take a question back that nobody answered: no crystal would go up any more."""
    if path.exists() and answered(read_question(path)) is None:
        path.unlink()


def read_question(path: Path) -> Question:
    """The question in a file.

    Raises:
        InputError: it cannot be read.
    """
    said = _read(path)
    try:
        return Question(
            path, str(said["campaign"]), int(said["round"]), str(said["tier"]), int(said["budget"]),
            datetime.fromisoformat(str(said["deadline"])), str(said["otherwise"]), tuple(said["candidates"] or ()),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is no question of a campaign any more ({error}): delete it to be asked again."
        ) from error


def answered(question: Question) -> Answer | None:
    """What was decided; None while nothing is, and the deadline lies ahead. A half-written answer is none yet."""
    try:
        said = _read(question.path)
        decision, budget = said.get("decision"), int(said.get("budget", question.budget))
    except (InputError, TypeError, ValueError):
        decision, budget = None, question.budget
        said = {}
    if decision in (APPROVE, REJECT) and budget >= 0:
        return Answer(decision, budget, str(said.get("by", PERSON)))
    if datetime.now(UTC) >= question.deadline:
        return answer(question, question.otherwise, question.budget, DEADLINE)
    return None


def answer(question: Question, decision: str, budget: int | None = None, by: str = PERSON) -> Answer:
    """Write an answer down.

    Raises:
        InputError: there is no such decision or budget.
    """
    number = question.budget if budget is None else budget
    if decision not in (APPROVE, REJECT) or number < 0:
        raise InputError(f"expected approve or reject and a budget of 0 or more, got {decision!r} and {number}.")
    said = {"campaign": question.campaign, "round": question.round, "tier": question.tier}
    said |= {"deadline": question.deadline.isoformat(timespec="seconds"), "otherwise": question.otherwise}
    said |= {"candidates": [dict(row) for row in question.candidates]}
    _write(question.path, {"decision": decision, "budget": number, "by": by, **said})
    return Answer(decision, number, by)


def wait(question: Question) -> Answer:
    """Look until there is an answer."""
    while (found := answered(question)) is None:
        time.sleep(LOOK_SECONDS)
    return found


def open_questions(folder: Path) -> list[Question]:
    """What waits for an answer in a campaign's folder."""
    asked = [read_question(path) for path in sorted((folder / FOLDER).glob("*.yaml"))]
    return [question for question in asked if _read(question.path).get("decision") not in (APPROVE, REJECT)]


def _read(path: Path) -> dict[str, Any]:
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(said, dict):
        raise InputError(f"{path}: expected `key: value` lines, got {type(said).__name__}")
    return said


def _write(path: Path, said: dict[str, Any]) -> None:
    command = f"discovery-loop approve {path.parent.parent}"
    write_text(path, HELP.format(command=command) + yaml.safe_dump(said, sort_keys=False, allow_unicode=True))
