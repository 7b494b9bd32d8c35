"""Options that the verbs of ``discovery-loop benchmark`` share, and how they print what they found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.console import emit, note

Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the record, tables and figures.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record as JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of what is drawn.")]
Settings = Annotated[list[str] | None, typer.Option("--set", "-s", help="Change a setting, e.g. budget=200.")]


def settings_of(
    kind: type[Any], settings: list[str] | None, seeds: int | None = None, usual: Mapping[str, Any] | None = None
) -> Any:
    """The settings of a benchmark, a frozen dataclass: its defaults, what a verb's own options say, what `--set` says.

    Raises:
        ConfigError: there is no such setting, or its value makes no sense.
    """
    from flows import configfile
    from flows.config import forbid_extra

    chosen = {**(usual or {}), **configfile.parse_settings(settings or [])}
    chosen = {**_kept(kind, chosen), **chosen}
    if seeds is not None:
        chosen["seeds"] = seeds
    return configfile.load(forbid_extra(kind), None, chosen)


def _kept(kind: type[Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """What a benchmark sets itself within a section of which `chosen` changes one setting: the others stay."""
    sections = {key.partition(".")[0] for key in chosen if "." in key}
    kept: dict[str, Any] = {}
    for item in fields(kind):
        if item.name in sections and item.default_factory is not MISSING:
            own: Any = item.default_factory()
            plain: Callable[[Any], dict[str, Any]] = asdict if is_dataclass(own) else dict
            values, usual = plain(own), plain(type(own)())
            kept |= {f"{item.name}.{name}": v for name, v in values.items() if name not in usual or v != usual[name]}
    return kept


def print_record(record: dict[str, Any], output: Path, json: bool, text: str | None = None) -> None:
    """The whole record as JSON, or its results as a text of their own or as lines; and where it lies."""
    results = record["results"]
    emit(record if json else results if isinstance(results, Mapping) else {"results": results}, json, text)
    note(f"wrote {output}/record.json")
