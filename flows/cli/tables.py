"""Verbs that choose rows of a table of crystals: filter, rank."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.options import Input, Json, Output
from flows.console import emit, note, progress

if TYPE_CHECKING:
    from flows.tables.filtering import Chosen
    from loop.io.crystals import CrystalTable

Where = Annotated[
    list[str],
    typer.Option(
        "--where", help="What must hold, e.g. 'e_above_hull <= 0.05 and bulk_modulus > 100'. Repeated: all of them."
    ),
]
By = Annotated[
    list[str],
    typer.Option(
        "--by",
        help="Column, smallest first; with - before it, largest first; or an expression. Repeated: decides ties.",
    ),
]
SHOWN = 10  # notes


def filter(
    input: Input,
    output: Output,
    where: Where,
    keep_failed: Annotated[bool, typer.Option("--keep-failed", help="Keep rows without a crystal, too.")] = False,
    json: Json = False,
) -> None:
    """Keep the crystals whose columns fulfil conditions.

    Conditions have comparisons, and, or, not, + - * /, in [...], texts in quotes, numbers, columns (names with spaces
    or other signs in backticks), abs, min, max, isnull, notnull. A crystal without a value fulfils no comparison, nor
    its negation; how many those are is printed.
    """
    from flows.tables.columns import read_input
    from flows.tables.expressions import Expression
    from flows.tables.filtering import filtered
    from flows.tables.outputs import check_crystals

    conditions = [Expression.parse(text) for text in where]
    check_crystals(output, input)
    with progress() as report:
        table = read_input(input, report)
    _write(output, table, filtered(table, conditions, keep_failed=keep_failed), json)


def rank(
    input: Input,
    output: Output,
    by: By,
    top: Annotated[int | None, typer.Option(min=1, help="Most crystals to keep.")] = None,
    per_prototype: Annotated[int | None, typer.Option(min=1, help="Most crystals of one prototype to keep.")] = None,
    unique: Annotated[bool, typer.Option("--unique", help="Of equal crystals keep the first.")] = False,
    json: Json = False,
) -> None:
    """Sort crystals by their columns, and keep the best, the different, or both.

    Ties keep their order; crystals without a value come last, and are counted. The column rank counts from 1.
    """
    from flows.tables.columns import read_input
    from flows.tables.filtering import Limits, ranked
    from flows.tables.outputs import check_crystals

    check_crystals(output, input)
    with progress() as report:
        table = read_input(input, report)
        chosen = ranked(table, by, Limits(top, per_prototype, unique), report)
    _write(output, table, chosen, json)


def _write(output: Path, table: CrystalTable, chosen: Chosen, json: bool) -> None:
    from flows.tables.columns import write_output
    from flows.tables.filtering import part_of

    part, frame = part_of(table, chosen)
    write_output(output, part, frame)
    for text in chosen.notes[:SHOWN]:
        note(text)
    if len(chosen.notes) > SHOWN:
        note(f"... and {len(chosen.notes) - SHOWN} more")
    told = ", ".join(f"{asked} {count}" for asked, count in chosen.no_value.items() if count)
    if told:
        note(f"rows without a value, of {len(table)}: {told}")
    if not chosen.rows:
        note(f"no crystal is left: {output} holds no rows")
    summary = {"rows": len(table), "kept": len(chosen.rows), "no_value": chosen.no_value if json else told or 0}
    emit({**summary, **chosen.left_out, "output": str(output)}, json)


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (filter, rank):
        app.command(rich_help_panel="Tables of crystals")(verb)
