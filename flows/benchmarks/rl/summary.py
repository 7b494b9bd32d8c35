"""From judged samples to numbers with intervals, tables and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flows.benchmarks.rl.variants import BASE
from flows.console import aligned
from generator.rl.strata import CLASSES
from loop.metrics import rate_ratio, wilson

COUNTS: tuple[str, ...] = ("structure_valid", "composition_valid", "valid", "accepted", "unique", "known", "replay")
COUNTS += ("stable", "metastable", "sun", "msun", "accepted_msun")
DRIFT = ("element_ratio", "f_block", "radioactive", "single_element", "largest_group_share", "group_entropy")
CHEMISTRY = ("share_", "msun_share_", "chemical_systems", "largest_prototype")
LISTED = (*(f"share_{name}" for name in CLASSES), *(f"msun_share_{name}" for name in CLASSES), "largest_prototype")
# who judged stability: the reward's potential, another one, both after relaxation
PREFIXES = ("", "independent_", "relaxed_", "second_")
TOLD = {"msun": "M.S.U.N.", "sun": "S.U.N."}
RATIOS = ("metastable", "sun", "msun", "accepted_msun", "valid")
# panels of the figure, and whose judgement each shows: the second potential is asked about new crystals alone
SHOWN = {
    "valid": ("valid", ("", "relaxed_")),
    "metastable": ("within 0.1 eV/atom", ("", "independent_", "relaxed_")),
    "msun": ("M.S.U.N.", PREFIXES),
    "accepted_msun": ("M.S.U.N. that pass the default rules", PREFIXES),
}
JUDGES = dict(
    zip(PREFIXES, ("reward's potential", "independent judge", "relaxed", "relaxed, second potential"), strict=True)
)
COLOURS = ("#2f6fb0", "#c8641e", "#4a9a5b", "#8a5ba8")


def summarise(cells: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each variant shares with 95 % intervals, ratios to the base, drift, and finds per reward evaluation.

    Shares pool the samples of all seeds (Wilson); `*_seeds` holds the share of each seed. Uniqueness is relative to
    the structure-valid samples. `chemistry` has, for crystals with an f-block element and for each class, the share of
    the samples and its ratio to the base's, and for classes M.S.U.N. within the class in the same way. `yield` counts
    distinct metastable, new, accepted crystals by the reward's own potential: those met while learning and those among
    the fresh samples, over all crystals evaluated.
    """
    frame = pd.DataFrame(list(cells))
    base = frame[frame["variant"] == BASE]
    summary: dict[str, dict[str, Any]] = {}
    for name, group in frame.groupby("variant", sort=False):
        entry: dict[str, Any] = {"seeds": len(group), "samples": int(group["samples"].sum())}
        for prefix in PREFIXES:
            if f"{prefix}msun" in group and group[f"{prefix}msun"].notna().all():
                entry |= _shares(group, base, prefix)
        shown = [key for key in map(str, group) if key in DRIFT or key.startswith(CHEMISTRY)]
        entry |= {key: float(group[key].mean()) for key in shown}
        if "phonons" in group and group["phonons"].notna().all():
            entry |= _dynamics(group)
        entry["chemistry"] = _chemistry(group, base)
        entry["elements"] = sorted(set(group["element"]))
        evaluations, finds = int(group["evaluations"].sum()), int(group["finds"].sum())
        entry |= {"evaluations": evaluations, "cpu_seconds": float(group["cpu_seconds"].mean())}
        total = evaluations + int(group["samples"].sum())
        drawn = 0 if name == "best-of-n" else int(group["accepted_msun"].sum())
        total = evaluations if name == "best-of-n" else total  # its samples are among the evaluated
        entry["yield"] = (finds + drawn) / max(total, 1)
        stopped = [text for text in group["stopped"] if isinstance(text, str) and text]
        summary[str(name)] = entry | ({"stopped": stopped} if stopped else {})
    return summary


def _shares(group: pd.DataFrame, base: pd.DataFrame, prefix: str) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    n, m = int(group[f"{prefix}samples"].sum()), int(base[f"{prefix}samples"].sum())
    for key in COUNTS:
        whole = int(group[f"{prefix}structure_valid"].sum()) if key == "unique" else n
        entry[prefix + key] = asdict(wilson(int(group[prefix + key].sum()), whole))
        of = "structure_valid" if key == "unique" else "samples"
        entry[f"{prefix}{key}_seeds"] = (group[prefix + key] / group[prefix + of].clip(lower=1)).round(4).tolist()
    for key in RATIOS:
        hits = (int(group[prefix + key].sum()), n), (int(base[prefix + key].sum()), m)
        entry[f"{prefix}{key}_ratio"] = asdict(rate_ratio(*hits))
    return entry


def _dynamics(group: pd.DataFrame) -> dict[str, Any]:
    """Share of the M.S.U.N. crystals with phonons that are dynamically stable, and how many phonons failed."""
    found, stable = int(group["phonons"].sum()), int(group["dynamically_stable"].sum())
    failed = int(group["phonons_failed"].sum())
    return {"phonons": found, "dynamically_stable": asdict(wilson(stable, found)), "phonons_failed": failed}


def _chemistry(group: pd.DataFrame, base: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Shares with intervals and ratios to the base, where the cells have them; counts are found from cells' shares."""
    found: dict[str, dict[str, Any]] = {}
    for name, column in {"f_block": "f_block", **{name: f"share_{name}" for name in CLASSES}}.items():
        if not {column, "samples"} <= set(group) or group[column].isna().any() or base[column].isna().any():
            continue
        found[name] = _share_and_ratio("share", *(_pooled(frame, column) for frame in (group, base)))
        found[name]["share_seeds"] = group[column].round(4).tolist()
        if f"msun_{column}" in group:
            found[name] |= _share_and_ratio(
                "msun", *(_pooled(frame, f"msun_{column}", frame[column]) for frame in (group, base))
            )
    return found


def _pooled(frame: pd.DataFrame, column: str, of: pd.Series | float = 1.0) -> tuple[int, int]:
    """Hits and samples of all seeds, where a column holds each seed's share of a part `of` its samples."""
    sizes = (frame["samples"] * of).round()
    return int((frame[column].fillna(0.0) * sizes).round().sum()), int(sizes.sum())


def _share_and_ratio(name: str, hits: tuple[int, int], base: tuple[int, int]) -> dict[str, Any]:
    return {name: asdict(wilson(*hits)), f"{name}_ratio": asdict(rate_ratio(hits, base))}


def table(summary: dict[str, dict[str, Any]]) -> str:
    """One line a variant, as CSV: shares in per cent with half-widths left to the record."""
    rows = []
    for name, entry in summary.items():
        row: dict[str, Any] = {"variant": name, "seeds": entry["seeds"], "samples": entry["samples"]}
        for prefix in PREFIXES:
            for key in COUNTS:
                if prefix + key in entry:
                    row[f"{prefix}{key}_percent"] = round(100 * entry[prefix + key]["value"], 1)
            for key in RATIOS:
                if f"{prefix}{key}_ratio" in entry:
                    row[f"{prefix}{key}_ratio"] = round(entry[f"{prefix}{key}_ratio"]["value"], 2)
        if "dynamically_stable" in entry:
            row["dynamically_stable_percent"] = round(100 * entry["dynamically_stable"]["value"], 1)
        row |= {key: round(entry[key], 3) for key in (*DRIFT, *LISTED) if key in entry}
        row |= {"yield_percent": round(100 * entry["yield"], 1), "cpu_seconds": round(entry["cpu_seconds"])}
        rows.append(row)
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")


def told(summary: dict[str, dict[str, Any]]) -> str:
    """One column an arm for people: shares in per cent with 95 % intervals, by each judge that was asked."""
    names = {f"{prefix}{key}": f"{name}, {JUDGES[prefix]}" for prefix in PREFIXES for key, name in TOLD.items()}
    names |= {"valid": "valid", "unique": "unique", "dynamically_stable": "dynamically stable"}
    asked = [key for key in names if any(key in entry for entry in summary.values())]
    rows: list[dict[str, Any]] = [{"what": "samples", **{arm: entry["samples"] for arm, entry in summary.items()}}]
    rows += [
        {"what": f"{names[key]} (%)", **{arm: _told(entry[key]) for arm, entry in summary.items() if key in entry}}
        for key in asked
    ]
    return "\n".join(aligned(rows, {"what": "", **{arm: arm for arm in summary}}))


def _told(share: dict[str, float]) -> str:
    return f"{100 * share['value']:.1f} ({100 * share['low']:.0f} to {100 * share['high']:.0f})"


def draw_curves(about: dict[tuple[str, int], dict[str, Any]], path: Path) -> None:
    """Reward, validity, known share, KL and the largest space group's share over the iterations, one line a run."""
    from matplotlib.figure import Figure

    runs = {cell: told["curve"] for cell, told in about.items() if told.get("curve")}
    if not runs:
        return
    panels = ("reward", "valid", "known", "kl", "element_ratio", "group_share")
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    names = list(dict.fromkeys(name for name, _ in runs))
    for axis, key in zip(figure.subplots(2, 3).ravel(), panels, strict=True):
        for (name, _), rows in runs.items():
            points = [(row["iteration"], row[key]) for row in rows if key in row]
            if points:
                axis.plot(*np.array(points).T, color=f"C{names.index(name) % 10}", lw=1, label=name)
        axis.set(xlabel="iteration", ylabel=key.replace("_", " "))
    handles = {text.get_label(): text for text in axis.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=130)


def draw_shares(summary: dict[str, dict[str, Any]], path: Path) -> None:
    """Shares of the samples with 95 % intervals, by each judge."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.2 * len(summary) + 4, 6.4), layout="constrained")
    names = list(summary)
    judges = [prefix for prefix in JUDGES if any(f"{prefix}msun" in entry for entry in summary.values())]
    for axis, (key, (title, wanted)) in zip(figure.subplots(2, 2).ravel(), SHOWN.items(), strict=True):
        shown = [prefix for prefix in judges if prefix in wanted]
        width = 0.8 / len(shown)
        for k, prefix in enumerate(shown):
            at = [(i, summary[name][prefix + key]) for i, name in enumerate(names) if prefix + key in summary[name]]
            heights = [share["value"] for _, share in at]
            errors = [[s["value"] - s["low"] for _, s in at], [s["high"] - s["value"] for _, s in at]]
            places = [i + width * (k - (len(shown) - 1) / 2) for i, _ in at]
            colour = COLOURS[list(JUDGES).index(prefix)]
            axis.bar(places, heights, width, yerr=errors, color=colour, label=JUDGES[prefix])
        axis.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=8)
        axis.set(title=title, ylabel="share of samples", ylim=(0, 1))
    figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=130)
