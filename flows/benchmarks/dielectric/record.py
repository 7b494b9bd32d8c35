"""What the real run leaves: record, a table of verified crystals, the crystals themselves, and a figure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flows.benchmarks.dielectric.arms import ARMS, cost_of
from flows.benchmarks.dielectric.pictures import draw_crystals, draw_phases
from flows.benchmarks.harness import write_benchmark
from loop.io.files import write_text
from oracles.references.table import load_references

if TYPE_CHECKING:
    from flows.benchmarks.dielectric.real import Lab, RealConfig

PAPER_MERIT = 17.5  # eV: Cs2LiLuF6, gap 7.37 eV, constant 2.38 (arXiv 2504.02367)
PROTOCOL = (
    "One pool for all arms: crystals of a policy tuned for gap and constant, new as drawn and as relaxed, at most 0.1 "
    "eV/atom above the hull of the potential that labels. DFT is computed on the crystal as the potential relaxed it. "
    "An evaluation is worth a gap and a constant; the closed loop may spend it on gaps alone. Merit: gap (eV) times "
    "mean of the electronic dielectric tensor's diagonal. Seconds are wall time of one thread on a shared machine."
)


def write(
    output: Path, config: RealConfig, lab: Lab, table: pd.DataFrame, predictions: pd.DataFrame, about: dict[str, Any]
) -> dict[str, Any]:
    """Everything into the folder; returns the record."""
    from loop.io.crystals import write_crystals

    found = verified(lab.calls, table, predictions)
    write_text(output / "verified.csv", found.to_csv(index=False, float_format="%.5g", lineterminator="\n"))
    predictions.to_csv(output / "work" / "predictions.csv", index=False)
    rows = [row for row, key in enumerate(table["id"]) if key in set(found["id"])]
    crystals = [table["structure"].iloc[row] for row in rows]
    columns = found.set_index("id").loc[[table["id"].iloc[row] for row in rows]].reset_index(drop=True)
    write_crystals(output / "crystals.csv", [table["id"].iloc[row] for row in rows], crystals, columns)
    draw_crystals(found, dict(zip(table["id"], table["structure"], strict=True)), output / "crystals.png")
    draw_phases(found, load_references(), output / "phases.png")
    record = {
        "benchmark": "dielectric-dft",
        "protocol": PROTOCOL,
        "arms": {name: ARMS[name] for name in config.share},
        "results": {name: summary(lab.calls, name, config, about["threshold"]) for name in config.share},
        "calibration": calibration_of(found),
        "pool": len(table),
        "funnel": json.loads((output / "work" / "funnel.json").read_text(encoding="utf-8")),
        "paper_merit": PAPER_MERIT,
        **about,
        "settings": asdict(config) | {"dft": {**asdict(config.dft), "resources": "one process"}},
    }
    written = write_benchmark(output, record)
    draw(lab.calls, config, about["threshold"], output / "curves.png")
    return written


def verified(calls: Sequence[dict[str, Any]], table: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """One row per crystal that DFT looked at: what was found, by which arms, and what the tables had made expect."""
    heights = dict(zip(table["id"], table["e_above_hull"], strict=True))
    first = predictions[predictions["turn"] == 0].set_index("id")
    rows: dict[str, dict[str, Any]] = {}
    for call in calls:
        row = rows.setdefault(call["id"], {"id": call["id"], "formula": call["formula"], "arms": []})
        row["arms"] = [*row["arms"], *([call["arm"]] if call["arm"] not in row["arms"] else [])]
        row["status"], row["message"] = call["status"], call.get("message", "")
        names = ("space_group", "band_gap", "band_gap_direct", "dielectric_electronic", "max_force", "max_stress")
        row |= {name: call[name] for name in names if name in call}
        row["seconds"] = row.get("seconds", 0.0) + call["seconds"]
    frame = pd.DataFrame(rows.values())
    for name in ("band_gap", "dielectric_electronic"):
        frame[name] = frame.get(name, np.nan)
    frame["merit"] = frame["band_gap"] * frame["dielectric_electronic"]
    frame["e_above_hull"] = [heights.get(key, np.nan) for key in frame["id"]]
    frame["predicted_merit"] = [first["merit"].get(key, np.nan) for key in frame["id"]]
    frame["predicted_std"] = [first["std"].get(key, np.nan) for key in frame["id"]]
    frame["arms"] = frame["arms"].map(" ".join)
    return frame.sort_values("merit", ascending=False, kind="stable").reset_index(drop=True)


def progress_of(calls: Sequence[dict[str, Any]], arm: str, config: RealConfig, threshold: float) -> pd.DataFrame:
    """After each call of an arm: evaluations and seconds spent, best merit, crystals above the threshold."""
    spent = seconds = best = 0.0
    above, rows = set[str](), []
    paid = {(call["id"], call["step"]): call["seconds"] for call in calls if "paid_by" not in call}
    paid |= {(key, "both"): paid[key, "gap"] + paid[key, "dielectric"] for key, step in paid if step == "dielectric"}
    for call in (call for call in calls if call["arm"] == arm):
        spent += cost_of(call["step"], config.costs) / config.costs.both
        seconds += call["seconds"] or paid.get((call["id"], call["step"]), 0.0)  # what it would have paid itself
        merit = call.get("band_gap", np.nan) * call.get("dielectric_electronic", np.nan)
        if merit > threshold:
            above.add(call["id"])
        best = max(best, merit) if np.isfinite(merit) else best
        rows.append({"evaluations": spent, "seconds": seconds, "best": best, "above": len(above)})
    return pd.DataFrame(rows)


def summary(calls: Sequence[dict[str, Any]], arm: str, config: RealConfig, threshold: float) -> dict[str, Any]:
    """What an arm spent and found."""
    mine, steps = [call for call in calls if call["arm"] == arm], progress_of(calls, arm, config, threshold)
    merits = {c["id"]: c["band_gap"] * c["dielectric_electronic"] for c in mine if "dielectric_electronic" in c}
    return {
        "calls": dict(Counter(call["step"] for call in mine)),
        "crystals": len({call["id"] for call in mine}),
        "with_both": len(merits),
        "turns": len({call["turn"] for call in mine}),
        "evaluations": round(float(steps["evaluations"].iloc[-1]), 3) if len(steps) else 0.0,
        "seconds": round(float(steps["seconds"].iloc[-1]), 1) if len(steps) else 0.0,
        "best_merit": round(max(merits.values(), default=float("nan")), 3),
        "mean_merit": round(float(np.mean(list(merits.values()))), 3) if merits else None,
        "above_threshold": sum(merit > threshold for merit in merits.values()),
        "above_paper": sum(merit > PAPER_MERIT for merit in merits.values()),
        "metals": len({c["id"] for c in mine if c.get("band_gap", 1.0) < config.dft.min_gap}),
        "statuses": dict(Counter(call["status"] for call in mine)),
        "no_constant": [c["message"] for c in mine if c["step"] != "gap" and "dielectric_electronic" not in c],
    }


def calibration_of(found: pd.DataFrame) -> dict[str, float]:
    """How true the tables' predictions of the merit were, on all that DFT verified."""
    both = found[found["merit"].notna() & found["predicted_merit"].notna()]
    error = both["predicted_merit"] - both["merit"]
    z = error / both["predicted_std"]
    return {
        "crystals": len(both),
        "mean_error": round(float(error.mean()), 3),
        "mean_absolute_error": round(float(error.abs().mean()), 3),
        "within_one_std": round(float((z.abs() <= 1).mean()), 3),
    }


def draw(calls: Sequence[dict[str, Any]], config: RealConfig, threshold: float, path: Path) -> None:
    """Best merit by evaluations and by seconds, and what was verified as gap over constant."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4))
    for place, arm in enumerate(config.share):
        steps = progress_of(calls, arm, config, threshold)
        if not len(steps):
            continue
        colour = ("C0", "C1", "0.5")[place % 3]
        axes[0].step(steps["evaluations"], steps["best"], where="post", label=arm, color=colour)
        axes[1].step(steps["seconds"] / 60, steps["best"], where="post", color=colour)
        pairs = [
            (c["band_gap"], c["dielectric_electronic"])
            for c in calls
            if c["arm"] == arm and "dielectric_electronic" in c
        ]
        if pairs:
            axes[2].scatter(*zip(*pairs, strict=True), color=colour, s=24, label=arm)
    for axis, text in zip(axes[:2], ("evaluations (gap and constant)", "DFT, minutes of one thread"), strict=True):
        axis.axhline(PAPER_MERIT, color="0.8", lw=1)
        axis.axhline(threshold, color="0.8", lw=1, ls="--")
        axis.set(xlabel=text, ylabel="best merit (eV)")
    gaps = np.linspace(0.3, 12, 200)
    for value, style in ((PAPER_MERIT, "-"), (threshold, "--")):
        axes[2].plot(gaps, value / gaps, color="0.7", ls=style, lw=1)
    axes[2].set(xlabel="band gap (eV), PBE", ylabel="electronic dielectric constant", ylim=(1, 14), xlim=(0, 10))
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
