"""What a person sees: progress and messages on stderr, results on stdout."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from flows.hiding import hidden
from flows.records import finite

PLAIN_INTERVAL = 5.0  # seconds between lines of one stage where there is no terminal

err = Console(stderr=True, highlight=False, soft_wrap=True)
out = Console(highlight=False, soft_wrap=True)


def print_error(message: str) -> None:
    """Print an error to stderr."""
    err.print("discovery-loop: error:", style="bold red", end=" ")
    err.print(hidden(message), markup=False)


def note(message: str) -> None:
    """Print a remark to stderr."""
    err.print(message, markup=False)


def emit(summary: Mapping[str, Any], as_json: bool, text: str | None = None) -> None:
    """Print a summary to stdout: JSON for machines, else the text, else lines of ``name  value``."""
    if as_json:
        sys.stdout.write(json.dumps(finite(summary), indent=2, default=str) + "\n")
        return
    if text is None:
        width = max((len(name) for name in summary), default=0)
        text = "\n".join(f"{name:<{width}}  {short(value)}" for name, value in summary.items())
    out.print(text, markup=False)


def short(value: Any) -> str:
    """A number with four digits, a dash for an unknown one, parts with their names or "none", all else as it is."""
    if isinstance(value, Mapping | list | tuple) and not value:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {short(part)}" for name, part in value.items())
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return str(value)


def aligned(rows: Sequence[Mapping[str, Any]], heads: Mapping[str, str]) -> list[str]:
    """Lines of a table with its heads; columns in which nothing stands are left out."""
    kept = [key for key in heads if any(row.get(key) not in (None, "") for row in rows)]
    cells = [[heads[key] for key in kept], *([shown(row.get(key)) for key in kept] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(kept))]
    return ["  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def shown(value: Any) -> str:
    """A cell of a table or a value of a summary: yes or no, a dash for none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value in (None, "") else short(value)


SHOWN = ("reward", "kl", "train", "nll", "failures", "drawn")  # metrics worth a place beside a progress bar


def rate(per_second: float | None) -> str:
    """``12/s``, or ``3.4 s each`` where one takes longer than a second."""
    if not per_second:
        return ""
    if per_second >= 100:
        return f"{per_second:,.0f}/s"
    return f"{per_second:.3g}/s" if per_second >= 1 else f"{1 / per_second:.3g} s each"


class RateColumn(ProgressColumn):
    """How fast a stage of several parts goes."""

    def render(self, task: Task) -> Text:
        """The rate of the last parts, or that of all once the stage has ended."""
        return Text(rate(task.finished_speed or task.speed) if task.total and task.total > 1 else "")


@dataclass
class PlainProgress:
    """Progress as lines, for logs: one line of a stage at most every `PLAIN_INTERVAL` seconds."""

    started: dict[str, tuple[float, int]] = field(default_factory=dict)  # when, and how much was done by then
    printed: dict[str, float] = field(default_factory=dict)

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """`loop.contracts.Progress`."""
        now = time.monotonic()
        if stage not in self.started or done < 1:
            self.started[stage], self.printed[stage] = (now, done), now
        if total <= 1 or now - self.printed[stage] < PLAIN_INTERVAL:
            return
        self.printed[stage] = now
        begun, before = self.started[stage]
        each = (now - begun) / (done - before) if done > before else 0.0
        left = f", {rate(1 / each)}, {each * (total - done):.0f} s to go" if each and done < total else ""
        note(f"  {stage} {done}/{total} ({now - begun:.0f} s{left})  {described(metrics)}".rstrip())

    def log(self, line: str) -> None:
        """Print a line that stays."""
        note(line)


@dataclass
class RichProgress:
    """Progress as a bar of the present stage, for terminals; lines that stay go above it."""

    bars: Progress
    tasks: dict[str, TaskID] = field(default_factory=dict)

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """`loop.contracts.Progress`."""
        if stage not in self.tasks:
            self._clear()
            self.tasks[stage] = self.bars.add_task(stage, total=total, metrics="")
        self.bars.update(self.tasks[stage], completed=done, total=total, metrics=described(metrics))

    def log(self, line: str) -> None:
        """Print a line that stays."""
        self._clear()
        self.bars.console.print(line, markup=False)

    def _clear(self) -> None:
        for task in self.tasks.values():
            self.bars.remove_task(task)
        self.tasks.clear()


class NoProgress:
    """Silence."""

    def __call__(self, *_: Any) -> None:
        """`loop.contracts.Progress`."""

    def log(self, line: str) -> None:
        """Nothing."""


Reporter = PlainProgress | RichProgress | NoProgress


def described(metrics: Mapping[str, float] | None) -> str:
    """``reward 0.12  kl 0.003``."""
    return "  ".join(f"{name} {short(metrics[name])}" for name in SHOWN if metrics and name in metrics)


@contextmanager
def progress(quiet: bool = False) -> Iterator[Reporter]:
    """A `loop.contracts.Progress` that suits the terminal: bars, or lines where stderr is no terminal."""
    if quiet:
        yield NoProgress()
    elif not err.is_terminal:
        yield PlainProgress()
    else:
        columns = [TextColumn("{task.description:<18}"), BarColumn(24), MofNCompleteColumn()]
        columns += [TimeElapsedColumn(), RateColumn(), TimeRemainingColumn(), TextColumn("{task.fields[metrics]}")]
        with Progress(*columns, console=err, transient=True) as bars:
            yield RichProgress(bars)
