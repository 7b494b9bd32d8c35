"""Verbs of a campaign: init, validate, schema, run, resume, status, approve, report, export."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.cli.options import Json
from flows.console import emit, note, out
from loop.errors import ConfigError, InputError
from loop.settings import check_name

Config = Annotated[str, typer.Argument(help="YAML file of the campaign, or the name of a preset.")]
Folder = Annotated[Path, typer.Argument(help="Results folder of the campaign.")]
Results = Annotated[Path | None, typer.Option(help="Results folder. Default: results/NAME.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", "-s", help="Change a setting, e.g. campaign.rounds=5. Repeatable.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]


class Format(StrEnum):
    """What `export` can write."""

    csv = "csv"
    json = "json"
    cif = "cif"
    poscar = "poscar"
    extxyz = "extxyz"
    ase_db = "ase-db"
    optimade = "optimade"
    zip = "zip"


ENDINGS = {".csv": Format.csv, ".json": Format.json, ".extxyz": Format.extxyz, ".xyz": Format.extxyz}
ENDINGS |= {".db": Format.ase_db, ".jsonl": Format.optimade, ".zip": Format.zip, ".cif": Format.cif, "": Format.cif}
ENDINGS |= {".poscar": Format.poscar, ".vasp": Format.poscar}
OWN_FILES = {"campaign.db", "config.yaml", "record.json", "ranked.csv", "ranked.json", "report.html", "cifs"}
OWN_FILES |= {"generator", "surrogate", "pools", "oracle", "handoff", "approvals", "scale", "figures"}


def init(
    name: Annotated[str, typer.Argument(help="Name of the campaign; the file is NAME.yaml.")],
    preset: Annotated[str, typer.Option(help="Preset to begin with.")] = "quickstart",
    output: Annotated[Path | None, typer.Option(help="File to write. Default: NAME.yaml.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Json = False,
) -> None:
    """Write the configuration of a new campaign, to be edited."""
    from flows.configfile import presets, read_text

    name = name.removesuffix(".yaml")  # who names the file means the campaign
    check_name(name)
    path = output or Path(f"{name}.yaml")
    if preset not in presets():
        raise ConfigError(f"there is no preset {preset!r}; there are: {', '.join(presets())}")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists: choose another name, or replace it with --force")
    from flows.config import renamed

    path.write_text(renamed(read_text(preset), name), encoding="utf-8")
    emit(
        {"file": str(path)},
        json,
        f"wrote {path}\ncheck it:  discovery-loop validate {path}\nrun it:    discovery-loop run {path}",
    )


def validate(
    config: Config,
    settings: Settings = None,
    elsewhere: Annotated[
        bool,
        typer.Option("--elsewhere", help="It will run on another machine: do not look for files, devices, engines."),
    ] = False,
    json: Json = False,
) -> None:
    """Check that a configuration can run, potential, checkpoint and conditions included; report what would run."""
    from flows.config import read_config
    from flows.configfile import parse_settings
    from flows.forecast import forecast
    from flows.preflight import check

    checked = read_config(config, parse_settings(settings or []))
    check(checked, elsewhere=elsewhere)
    emit({"valid": True, **forecast(checked)}, json)


def schema(
    output: Annotated[Path | None, typer.Option(help="File to write. Default: standard output.")] = None,
) -> None:
    """Print the JSON schema of a campaign's configuration, for editors, with what installed packages add to it."""
    import json

    from flows.config import CampaignConfig
    from flows.registry import with_names
    from loop.io.files import write_text

    text = json.dumps(with_names(CampaignConfig.model_json_schema()), indent=2)
    if output is None:
        out.print(text, markup=False)
    else:
        write_text(output, text + "\n")
        note(f"wrote {output}")


def run(
    config: Config,
    results: Results = None,
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only report what would run: oracle calls, time.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a campaign, or continue the one that the results folder holds."""
    from flows.config import read_config
    from flows.configfile import parse_settings

    checked = read_config(config, parse_settings(settings or []))
    directory = checked.directory(results)
    if dry_run:
        from flows.checks import problems, refuse
        from flows.forecast import forecast, measured, rest_of

        refuse(problems(checked))
        rest = rest_of(checked, directory)
        plan = forecast(checked, rest)
        emit({"results": str(directory), **plan, **measured(checked, directory, plan, rest)}, json)
        return
    run_and_print(checked, directory, quiet, json)


def resume(
    directory: Folder,
    settings: Settings = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Continue the campaign of a results folder; nothing that was labelled is labelled again."""
    from flows.config import stored_config
    from flows.configfile import parse_settings

    run_and_print(stored_config(directory, parse_settings(settings or [])), directory, quiet, json, resume=True)


def run_and_print(config: Any, directory: Path, quiet: bool, json: bool, *, resume: bool = False) -> None:
    """Run all that is left of a campaign and print its outcome."""
    from flows.console import progress
    from flows.plain import run_campaign

    if not quiet:
        note(f"campaign {config.campaign.name}: results in {directory}")
    with progress(quiet) as reporter:
        summary = run_campaign(config, directory, reporter, resume=resume)
    emit(summary, json, None if json else outcome_text(directory, summary))


def outcome_text(directory: Path, summary: dict[str, Any]) -> str:
    """The summary for people: the counts, the best finds, what is known already, where things lie."""
    from flows.console import aligned, shown
    from loop.report.columns import headings

    apart = ("top", "not_judged", "nearest", "known", "units")
    counts = {name: value for name, value in summary.items() if name not in apart and value != ""}
    width = max(len(name) for name in counts)
    units = summary.get("units", {})
    lines = [f"{name:<{width}}  {shown(value)} {units.get(name, '')}".rstrip() for name, value in counts.items()]
    titles = {
        "top": "best finds (stable and new):",
        "not_judged": "stable; relaxed crystals are compared with the known ones when the round's labels are in:",
        "nearest": "nothing is stable and new yet; the nearest to the hull:",
        "known": "stable, but known or a copy (no finds):",
    }
    for name, title in titles.items():
        if rows := summary.get(name, []):
            lines += ["", title, *(f"  {line}" for line in aligned(rows, headings(rows[0], units)))]
    there = ", ".join(
        name for name in ("ranked.csv", "ranked.json", "cifs/", "report.html") if (directory / name).exists()
    )
    return "\n".join([*lines, "", f"results: {directory}/{there}"])


def status(directory: Folder, json: Json = False) -> None:
    """Tell how far a campaign is."""
    from flows.plain import open_history, status_of

    with open_history(directory) as history:
        summary = status_of(history, directory)
    emit(summary, json, outcome_text(directory, summary))


def approve(
    directory: Folder,
    reject: Annotated[bool, typer.Option("--reject", help="Submit nothing.")] = False,
    budget: Annotated[int | None, typer.Option(min=0, help="How many crystals at most. Default: as asked.")] = None,
    json: Json = False,
) -> None:
    """Answer the question that a campaign waits with, before an expensive tier."""
    from loop import approval

    questions = approval.open_questions(directory)
    if not questions:
        raise InputError(f"{directory}: no campaign waits for an answer here (discovery-loop status {directory})")
    decision = approval.REJECT if reject else approval.APPROVE
    for question in questions:
        answer = approval.answer(question, decision, budget)
        told = {
            "round": question.round,
            "tier": question.tier,
            "decision": answer.decision,
            "crystals": answer.crystals,
        }
        emit(told, json)


def report(
    directory: Folder,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Folder to write to. Default: the campaign's; the present one where that is read-only.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write the HTML report of a campaign; works while it runs."""
    from flows.outcome import write_report
    from flows.plain import open_history

    with open_history(directory) as history:
        path = write_report(history, output or (directory if os.access(directory, os.W_OK) else Path.cwd()))
    emit({"report": str(path)}, json, f"wrote {path}")


def export(
    directory: Folder,
    output: Annotated[Path, typer.Option("--output", "-o", help="File or folder to write.")],
    format: Annotated[
        Format | None,
        typer.Option("--format", "-f", help="Default: by the ending of OUTPUT; no ending: a folder of CIFs."),
    ] = None,
    json: Json = False,
) -> None:
    """Write the ranked candidates of a campaign in a format of the field."""
    from flows.plain import export_campaign, open_history

    _refuse_own_files(directory, output)
    chosen = format or _format_of(output)
    with open_history(directory) as history:
        summary = export_campaign(history, directory, chosen.value, output)
    emit(summary, json, f"wrote {summary['rows']} candidates to {output}")


def _format_of(output: Path) -> Format:
    """The format that the ending of a name stands for.

    Raises:
        InputError: no format has this ending.
    """
    found = ENDINGS.get(output.suffix.lower())
    if found is None:
        endings = ", ".join(ending for ending in ENDINGS if ending)
        raise InputError(f"expected a name ending in {endings} or in nothing, or --format; got {output}")
    return found


def _refuse_own_files(directory: Path, output: Path) -> None:
    """What a campaign keeps in its folder is not replaced by an export.

    Raises:
        InputError: the output is such a file or folder, or the campaign's folder itself.
    """
    place, own = output.resolve(), directory.resolve()
    if place.is_relative_to(own) and (place == own or place.relative_to(own).parts[0] in OWN_FILES):
        raise InputError(f"{output} belongs to the campaign in {directory}: choose another place")


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    for verb in (init, validate, schema, run, resume, status, approve, report, export):
        app.command(rich_help_panel="Campaigns")(verb)
