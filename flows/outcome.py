"""What a campaign leaves behind: ranked list, crystals, report, record; and its summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows import records
from flows.facts import facts_of, space_of
from loop.history import History
from loop.io.files import sha256
from loop.ranking import FIND, KNOWN_STABLE, UNJUDGED, UNSTABLE
from loop.report import columns
from loop.report.export import ranked_rows
from loop.report.summary import reports_now

TOP = 5  # candidates in the summary


def summarise(history: History) -> dict[str, Any]:
    """Goal, counts of all rounds, hit rates, and the best finds; what is known already stands apart, as `known`."""
    reports = reports_now(history)
    rows = ranked_rows(history)
    finds = columns.in_group(rows, FIND)
    last = reports[-1].metrics if reports else {}
    summary: dict[str, Any] = {
        "campaign": history.name,
        "goal": columns.goal_text(history),
        **space_of(history),
        "rounds_done": max(0, len(reports) - 1),  # after the baseline round, as `campaign.rounds` counts
        "rounds_planned": history.settings.rounds,
        "baseline_round": "done" if reports else "not done",
        "stopped": history.stopped,
        "oracle_calls": history.paid,
        "labelled": len(rows),
        **columns.counts(rows),
        **columns.opinions(history, finds),
        **columns.diversity(finds),
        "hours": history.seconds() / 3600,
    }
    for name in ("sampled", "accepted", "unique", "new"):
        summary[name] = sum(report.funnel[name] for report in reports)
    rates = ("baseline_hit_rate", "engine_hit_rate", "shadow_hit_rate")
    names = (*rates, "acceleration", "acceleration_low", "acceleration_high")  # 95 % interval: few labels tell little
    summary |= {name: last[name] for name in names if name in last}
    summary["best_objective"] = columns.best_objective(history, finds)
    shown = columns.columns(history, columns.BRIEF)
    known = columns.in_group(rows, KNOWN_STABLE)
    summary["units"] = units(history)
    summary["top"] = [{name: row.get(name) for name in shown} for row in finds[:TOP]]
    if unjudged := columns.in_group(rows, UNJUDGED):  # none once a round has ended
        summary["stable_not_judged"] = len(unjudged)
        summary["not_judged"] = [{name: row.get(name) for name in shown if name != "new"} for row in unjudged[:TOP]]
    if not finds and not unjudged:
        nearest = columns.in_group(rows, UNSTABLE)
        summary["nearest"] = [{name: row.get(name) for name in shown} for row in nearest[:TOP]]
    summary["known"] = [{name: row.get(name) for name in shown} for row in known[:TOP]]
    return summary


def units(history: History) -> dict[str, str]:
    """Unit of each number of a record."""
    return {"hours": "h", "best_objective": columns.unit_of(history, history.settings.objective)} | columns.units(
        history
    )


RESULT_FILES = ("config.yaml", "ranked.csv", "ranked.json", "report.html")


def write_results(history: History, directory: Path) -> dict[str, Any]:
    """Write everything that a finished (or paused) campaign leaves; returns the summary."""
    from loop.report.export import write_cifs, write_ranked

    write_ranked(history, directory)
    write_cifs(history, directory)
    write_report(history, directory)
    summary = summarise(history)
    write_record(history, directory, summary)
    return summary


def write_report(history: History, directory: Path) -> Path:
    """Write ``report.html``."""
    from loop.report.page import write_report

    made_with = history.about.get("provenance", {})
    versions = made_with.get("versions", {})
    protocol = [("commit", made_with.get("commit") or "not from a checkout")]
    protocol += [("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))]
    return write_report(history, directory, protocol, facts_of(history))


def write_record(history: History, directory: Path, summary: dict[str, Any]) -> None:
    """Write ``record.json``: how the results were made, what they are, checksums of the files."""
    files = [
        {"file": name, "sha256": sha256(directory / name), "bytes": (directory / name).stat().st_size}
        for name in RESULT_FILES
        if (directory / name).is_file()
    ]
    record = {
        "campaign": history.name,
        "made_with": history.about.get("provenance", {}),
        "oracle": {"name": history.oracle.oracle, "settings": history.oracle.settings},
        "seed": history.settings.seed,
        "seconds": history.seconds(),
        "summary": summary,
        "units": summary["units"],
        "columns": columns.columns(history),
        "rounds": [report.to_dict() for report in reports_now(history)],
        "files": files,
    }
    records.write_record(directory, record)
