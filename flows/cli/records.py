"""Options that the verbs of ``discovery-loop benchmark`` share, and how they tell what they found."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import emit, note

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the record, tables and figures.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]


def print_record(record: dict[str, Any], output: Path, json: bool) -> None:
    """The whole record as JSON, or its results as lines; and where it lies."""
    emit(record if json else record["results"], json)
    note(f"wrote {output}/record.json")
