"""Figures of the pool benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flows.benchmarks.pool.simulation import TARGET, Outcome

COLUMNS = 3  # panels side by side


def draw(outcomes: Mapping[str, Sequence[Outcome]], sizes: Mapping[str, Mapping[str, int]], output: Path) -> list[Path]:
    """Recall curves and coverage by round, one panel per task; returns the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    paths = []
    for name, panel in (("recall", _recall), ("coverage", _coverage)):
        columns = min(COLUMNS, len(outcomes))
        rows = -(-len(outcomes) // columns)
        figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.4 * rows), squeeze=False)
        for axis, (task, runs) in zip(axes.flat, outcomes.items(), strict=False):
            panel(axis, runs, sizes[task])
            axis.set_title(f"{task}: {sizes[task]['top']} sought among {sizes[task]['pool']}", fontsize=9)
        for axis in axes.flat[len(outcomes) :]:
            axis.remove()
        axes[0][0].legend(fontsize=7)
        figure.tight_layout()
        paths.append(output / f"{name}.png")
        figure.savefig(paths[-1], dpi=130)
        plt.close(figure)
    return paths


def _by_strategy(runs: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    grouped: dict[str, list[Outcome]] = {}
    for outcome in runs:
        grouped.setdefault(outcome.campaign.strategy, []).append(outcome)
    return grouped


def _recall(axis: object, runs: Sequence[Outcome], size: Mapping[str, int]) -> None:
    """Mean over seeds with the range of the middle half."""
    for strategy, own in _by_strategy(runs).items():
        curves = np.array([outcome.found for outcome in own])
        labels = np.arange(1, curves.shape[1] + 1)
        (line,) = axis.plot(labels, curves.mean(axis=0), label=strategy)  # type: ignore[attr-defined]
        low, high = np.quantile(curves, [0.25, 0.75], axis=0)
        axis.fill_between(labels, low, high, color=line.get_color(), alpha=0.15)  # type: ignore[attr-defined]
    axis.plot([0, len(labels)], [0, len(labels) / size["pool"]], "k:", label="chance")  # type: ignore[attr-defined]
    axis.axhline(TARGET, color="0.7", lw=0.8)  # type: ignore[attr-defined]
    axis.set(xlabel="labels", ylabel="share of the sought found", ylim=(0, 1))  # type: ignore[attr-defined]


def _coverage(axis: object, runs: Sequence[Outcome], _: Mapping[str, int]) -> None:
    """Coverage of 90 % intervals on random unlabelled crystals, mean over seeds."""
    for strategy, own in _by_strategy(runs).items():
        if own[0].rounds:
            labels = [row["labels"] for row in own[0].rounds]
            means = np.mean([[row["random_coverage90"] for row in outcome.rounds] for outcome in own], axis=0)
            axis.plot(labels, means, label=strategy)  # type: ignore[attr-defined]
    axis.axhspan(0.85, 0.95, color="0.9")  # type: ignore[attr-defined]
    axis.set(xlabel="labels", ylabel="coverage of 90 % intervals", ylim=(0.5, 1))  # type: ignore[attr-defined]
