"""What a campaign leaves behind: ranked list, crystals, report, record; and its summary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows import records
from loop.export import ranked_rows
from loop.files import sha256
from loop.history import History

TOP = 5  # candidates in the summary
TOP_COLUMNS = ("rank", "formula", "space_group", "e_above_hull", "bulk_modulus", "novelty", "arm", "candidate_id")


def summarise(history: History) -> dict[str, Any]:
    """Counts of all rounds, hit rates, and the best candidates."""
    reports = history.reports()
    rows = ranked_rows(history)
    last = reports[-1].metrics if reports else {}
    summary: dict[str, Any] = {
        "campaign": history.name,
        "rounds_done": len(reports),
        "rounds_planned": history.settings.rounds + 1,
        "stopped": history.stopped,
        "oracle_calls": history.paid,
        "labelled": len(rows),
        "stable": sum(row["stable"] for row in rows),
        "stable_new": sum(row["stable"] and row["novelty_relaxed"] in ("", "new") for row in rows),
        "hours": history.seconds() / 3600,
    }
    for name in ("sampled", "valid", "unique", "new"):
        summary[name] = sum(report.funnel[name] for report in reports)
    names = ("baseline_hit_rate", "engine_hit_rate", "shadow_hit_rate", "acceleration", "best_objective")
    summary |= {name: last[name] for name in names if name in last}
    best = [row for row in rows if row["stable"]][:TOP]
    summary["top"] = [{name: row.get(name) for name in TOP_COLUMNS} for row in best]
    return summary


UNITS = {"hours": "h", "best_objective": "GPa"}
RESULT_FILES = ("config.yaml", "ranked.csv", "ranked.json", "report.html")


def write_results(history: History, directory: Path) -> dict[str, Any]:
    """Write everything that a finished (or paused) campaign leaves; returns the summary."""
    from loop.export import write_cifs, write_ranked

    write_ranked(history, directory)
    write_cifs(history, directory)
    write_report(history, directory)
    summary = summarise(history)
    write_record(history, directory, summary)
    return summary


def write_report(history: History, directory: Path) -> Path:
    """Write ``report.html``."""
    from loop.report import write_report

    made_with = history.about.get("provenance", {})
    versions = made_with.get("versions", {})
    protocol = [("commit", made_with.get("commit") or "not from a checkout")]
    protocol += [("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))]
    return write_report(history, directory, protocol)


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
        "units": UNITS,
        "rounds": [report.to_dict() for report in history.reports()],
        "files": files,
    }
    records.write_record(directory, record)
