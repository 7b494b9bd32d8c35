"""Pareto fronts of two properties, their hypervolumes with intervals, and how much of a gain is retrieval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from flows.benchmarks.rl.judge import judged
from flows.benchmarks.rl.variants import BASE
from loop.metrics import Interval, pareto_front, rate_ratio, wilson

REFERENCE = (0.0, 0.0)  # a gap of 0 eV and the dielectric constant of vacuum
NOTABLE = 0.5  # eV: no predictor here tells a smaller gap from that of a metal, which has no dielectric constant
SEEN_BY = {  # columns of gap (eV) and ln of the dielectric constant, by who says so
    "surrogate": ("band_gap", "ln_eps"),
    "forest": ("forest_band_gap", "forest_ln_eps"),
    "megnet": ("megnet_band_gap", "forest_ln_eps"),
}
TOP = 50  # crystals that the paper took to DFT, by gap times dielectric constant
PROTOCOL = (
    "Equal numbers of fresh samples of each arm and seed, as drawn. A sample counts that passes all default rules and "
    "lies at most 0.1 eV/atom above the hull, unrelaxed, by the default potential. Its point is the gap (eV) and ln of "
    "the electronic dielectric constant; gaps below 0.5 eV do not count. hypervolume: area between the front and the "
    "reference (0 eV, 1), in eV. surrogate: by the means of the reward's own; forest: by random forests that see the "
    "composition alone; megnet: gap by MEGNet, constant by the forest. _new: only what is not in the shipped known "
    "crystals. Intervals, 95 %: samples are drawn again with replacement within each seed, and hypervolumes averaged "
    "over seeds. dominated: share of the base's front that lies under the arm's; dominates_back: the reverse. "
    "mean_area: gap times ln of the constant of samples that count, 0 for others, averaged over all samples; its gain "
    "over the base splits exactly into crystals that are known and those that are not (gain_by_known). top50: by gap "
    "times constant, a formula once, as the paper chose for DFT."
)
Frames = Sequence[pd.DataFrame]


def hypervolume(points: np.ndarray, reference: tuple[float, float] = REFERENCE) -> float:
    """Area that points (n, 2), higher is better, dominate above a reference; points not above it add nothing."""
    beyond = np.asarray(points, dtype=float).reshape(-1, 2) - np.array(reference)
    beyond = beyond[(beyond > 0).all(axis=1)]
    if not len(beyond):
        return 0.0
    x, y = beyond[np.argsort(-beyond[:, 0], kind="stable")].T
    reached = np.maximum.accumulate(y)  # by points at least as far out
    return float((x * np.diff(reached, prepend=0.0)).sum())


def dominated_share(front: np.ndarray, by: np.ndarray) -> float:
    """Share of a front (n, 2) that points (m, 2) reach or pass in both; NaN without a front.

    The coverage C(by, front) of Zitzler and Thiele, IEEE Trans. Evol. Comput. 3, 257 (1999).
    """
    if not len(front):
        return float("nan")
    reached = np.all(front[:, None, :] <= by[None, :, :], axis=2)
    return float(np.mean(np.any(reached, axis=1)))


def counting(rows: pd.DataFrame, *, new: bool = False) -> np.ndarray:
    """Which samples (n,) count: accepted and near the hull, and where asked for new."""
    counts = rows["accepted"].to_numpy(bool) & judged(rows)["metastable"]
    return counts & rows["new"].to_numpy(bool) if new else counts


def points_of(rows: pd.DataFrame, judge: str, *, new: bool = False) -> np.ndarray:
    """Points (n, 2) of the samples; on the reference where one does not count, lacks a value, or is all but a metal."""
    points = rows[list(SEEN_BY[judge])].to_numpy(float)
    sound = counting(rows, new=new) & np.isfinite(points).all(axis=1) & (points[:, 0] >= NOTABLE)
    return np.where(sound[:, None], points, REFERENCE)


def resampled(frames: Frames, judge: str, *, new: bool, draws: int, seed: int) -> np.ndarray:
    """Mean hypervolume over the seeds' samples, each drawn again, (draws,)."""
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    for rows in frames:
        points = points_of(rows, judge, new=new)
        for k in range(draws):
            total[k] += hypervolume(points[rng.integers(len(points), size=len(points))])
    return total / len(frames)


def _interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return asdict(Interval(value, float(low), float(high)))


def _over(ours: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Ratios (n,), infinite where the base has nothing."""
    return np.divide(ours, base, out=np.full(len(ours), np.inf), where=base > 0)


def summarise_fronts(arms: dict[str, list[pd.DataFrame]], draws: int) -> dict[str, Any]:
    """For each judge and arm hypervolumes, their ratios to the base's, and what the fronts hold of known crystals."""
    summary: dict[str, Any] = {}
    some = arms[BASE][0]
    for judge in [name for name, columns in SEEN_BY.items() if set(columns) <= set(some.columns)]:
        summary[judge] = {name: {} for name in arms}
        for suffix, new in (("", False), ("_new", True)):
            drawn = {
                name: resampled(frames, judge, new=new, draws=draws, seed=place)
                for place, (name, frames) in enumerate(arms.items())
            }
            areas = {
                name: [hypervolume(points_of(rows, judge, new=new)) for rows in frames] for name, frames in arms.items()
            }
            base = float(np.mean(areas[BASE]))
            for name, entry in summary[judge].items():
                mean = float(np.mean(areas[name]))
                entry["hypervolume" + suffix] = _interval(mean, drawn[name])
                entry["hypervolume_seeds" + suffix] = np.round(areas[name], 4).tolist()
                ratios = _over(drawn[name], drawn[BASE]) if name != BASE else np.ones(draws)
                entry["ratio" + suffix] = _interval(float(_over(np.array([mean]), np.array([base]))[0]), ratios)
                entry |= {f"{key}{suffix}": v for key, v in _coverage(arms, name, judge, new=new).items()}
        for name, entry in summary[judge].items():
            entry |= _retrieval(arms, name, judge)
            gains = [
                entry[key]["value"] - summary[judge][BASE][key]["value"] for key in ("hypervolume", "hypervolume_new")
            ]
            entry["hypervolume_gain"], entry["hypervolume_gain_new"] = gains
    return summary


def _coverage(arms: dict[str, list[pd.DataFrame]], name: str, judge: str, *, new: bool) -> dict[str, float]:
    """Which share of whose front lies under the other's, seed by seed, averaged."""
    ours, theirs = ([front_of(rows, judge, new=new)[0] for rows in frames] for frames in (arms[name], arms[BASE]))
    pairs = list(zip(ours, theirs, strict=False))
    return {
        "dominated": float(np.nanmean([dominated_share(base, arm) for arm, base in pairs])),
        "dominates_back": float(np.nanmean([dominated_share(arm, base) for arm, base in pairs])),
    }


def front_of(rows: pd.DataFrame, judge: str, *, new: bool = False) -> tuple[np.ndarray, pd.DataFrame]:
    """The front's points (k, 2), by rising gap, and their rows; copies of a point once."""
    points = points_of(rows, judge, new=new)
    above = np.flatnonzero((points > REFERENCE).all(axis=1))
    _, first = np.unique(points[above], axis=0, return_index=True)
    chosen = above[np.sort(first)]
    chosen = chosen[pareto_front(points[chosen])] if len(chosen) else chosen
    chosen = chosen[np.argsort(points[chosen, 0])]
    return points[chosen], rows.iloc[chosen]


def _retrieval(arms: dict[str, list[pd.DataFrame]], name: str, judge: str) -> dict[str, Any]:
    """Known crystals on the fronts and among the best, and the known part of the gain."""
    members = pd.concat([front_of(rows, judge)[1] for rows in arms[name]])
    best = pd.concat([_best(rows, judge) for rows in arms[name]])
    area, area_known = _mean_area(arms[name], judge)
    base, base_known = _mean_area(arms[BASE], judge)
    entry: dict[str, Any] = {"front": len(members), "front_formulas": sorted(set(members["formula"]))}
    for key, rows in (("front", members), (f"top{TOP}", best)):
        for flag in ("known", "replay"):
            entry[f"{key}_{flag}"] = asdict(wilson(int(rows[flag].astype(bool).sum()), len(rows)))
    entry |= {"mean_area": area, "mean_area_known": area_known, "mean_area_gain": area - base}
    gained = area - base
    entry["gain_by_known"] = (area_known - base_known) / gained if name != BASE and gained > 0 else None
    return entry


def _best(rows: pd.DataFrame, judge: str) -> pd.DataFrame:
    """The best of the samples that count by the paper's figure of merit, a formula once."""
    points = points_of(rows, judge)
    merit = np.where(points[:, 0] > 0, points[:, 0] * np.exp(points[:, 1]), -np.inf)
    order = np.argsort(-merit, kind="stable")
    return rows.iloc[order[np.isfinite(merit[order])]].drop_duplicates("formula").head(TOP)


def _mean_area(frames: Frames, judge: str) -> tuple[float, float]:
    """Mean of gap times ln of the constant over all samples, and the part of it that is of known crystals."""
    rows = pd.concat(frames)
    points = np.maximum(points_of(rows, judge), 0.0)
    areas = points.prod(axis=1)
    return float(areas.mean()), float((areas * rows["known"].to_numpy(bool)).mean())


def shares(arms: dict[str, list[pd.DataFrame]]) -> dict[str, Any]:
    """What the samples of each arm are: shares with intervals, and their ratios to the base's."""
    found: dict[str, Any] = {}
    base = pd.concat(arms[BASE])
    hits, total = int(counting(base).sum()), len(base)
    for name, frames in arms.items():
        rows = pd.concat(frames)
        flags = {key: rows[key].to_numpy(bool) for key in ("structure_valid", "accepted", "unique", "known", "replay")}
        flags["metastable"] = judged(rows)["metastable"]
        flags |= {"counting": counting(rows), "counting_new": counting(rows, new=True)}
        entry = {key: asdict(wilson(int(flag.sum()), len(rows))) for key, flag in flags.items()}
        entry["unique"] = asdict(wilson(int(flags["unique"].sum()), int(flags["structure_valid"].sum())))
        of_counting = flags["counting"] & flags["known"]
        entry["known_of_counting"] = asdict(wilson(int(of_counting.sum()), int(flags["counting"].sum())))
        entry["counting_ratio"] = asdict(rate_ratio((int(flags["counting"].sum()), len(rows)), (hits, total)))
        found[name] = {"seeds": len(frames), "samples": len(rows)} | entry
    return found
