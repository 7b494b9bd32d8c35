"""`discovery-loop benchmark quickstart`: whether a campaign finds more per label than chance does, over several seeds.

Each seed is a whole campaign in a folder of its own, as `discovery-loop run` makes it: what such a folder holds already
is not done again. The engine's picks are compared with its shadow's, drawn at random from the same pools, and with the
first round's, drawn at random from the untuned generator.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.benchmarks.harness import files_of, write_benchmark
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, write_text
from loop.metrics import Interval, paired_ratio, pooled_ratio, student_mean, wilson
from loop.report.gain import difference, value_of
from loop.settings import ARMS, BASELINE, ENGINE, SHADOW
from loop.values import TIMEOUT

if TYPE_CHECKING:
    import pandas as pd

    from flows.config import CampaignConfig
    from loop.goal import Goal
    from loop.history import History

PROTOCOL = (
    "One campaign per seed. Counted are labels that were paid for, failures included, and finds among them: stable on "
    "the newest hull of the campaign, new, not suspect. Ratios of finds per label are compared within seeds: pooled by "
    "Mantel and Haenszel (interval of Greenland and Robins, labels as the sample), and as the geometric mean over "
    "seeds (Student's interval, seeds as the sample). Differences in the objective are of the means of finds: pooled "
    "(Welch's interval), and the mean over seeds in which both have one (Student's). Intervals are of 95 %."
)


@dataclass(frozen=True)
class QuickstartConfig:
    """Settings of the benchmark.

    Attributes:
        config: YAML file or preset of the campaign.
        changes: to its settings, each as ``key=value``.
        seeds: campaigns.
        first_seed: of these.
    """

    config: str = "quickstart"
    changes: tuple[str, ...] = ()
    seeds: int = 5
    first_seed: int = 0

    def __post_init__(self) -> None:
        """Check values."""
        if self.seeds < 1 or self.first_seed < 0:
            raise ConfigError(f"expected at least one seed, none negative, got {self.seeds} from {self.first_seed} on")


def run(output: Path, config: QuickstartConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Run what is left of the campaigns and compare the arms.

    Args:
        output: folder of record.json, labels.csv and a folder per seed.
        config: settings.
        progress: of the stages within a campaign, and after each.

    Raises:
        ConfigError: a seed's folder holds a campaign with other settings.
    """
    import pandas as pd

    make_folder(output)
    campaigns, frames = [], []
    for done, seed in enumerate(range(config.first_seed, config.first_seed + config.seeds)):
        told, frame, goal = _campaign(_settings(config, seed), output / f"seed-{seed}", progress)
        campaigns.append({"seed": seed, **told})
        frames.append(frame)
        if progress is not None:
            progress("quickstart", done + 1, config.seeds, {"finds": float(frame["find"].sum())})
    labels = pd.concat(frames, ignore_index=True)
    write_text(output / "labels.csv", labels.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    record = {
        "benchmark": "quickstart",
        "protocol": PROTOCOL,
        "settings": asdict(config),
        "results": {**summary(labels, goal), "campaigns": campaigns},
        "files": files_of([output / "labels.csv"]),
    }
    return write_benchmark(output, record)


def _settings(config: QuickstartConfig, seed: int) -> CampaignConfig:
    from flows.config import read_config
    from flows.configfile import parse_settings

    return read_config(config.config, {**parse_settings(config.changes), "campaign.seed": seed})


def _campaign(
    config: CampaignConfig, folder: Path, progress: Progress | None
) -> tuple[dict[str, Any], pd.DataFrame, Goal]:
    """Run what is left of one; what was measured, its labels, and its first goal."""
    from flows.build import open_campaign
    from flows.config import check_same
    from flows.outcome import write_results
    from flows.plain import open_history

    check_same(config, folder)
    if not (folder / "record.json").is_file():  # the last thing that a campaign leaves
        with open_campaign(config, folder, progress) as campaign:
            campaign.run()
            write_results(campaign.history, folder)
    with open_history(folder) as history:
        frame = table(history)
        made = history.about.get("provenance", {})
        told = {"commit": made.get("commit"), "seconds": round(history.seconds(), 1), **_counts(frame)}
        return told, frame, history.settings.wanted


def table(history: History) -> pd.DataFrame:
    """One row per label: seed, arm, round, whether it is a find, stability and objective."""
    import pandas as pd

    settings = history.settings
    rows = [
        {
            "seed": settings.seed,
            "arm": label.pick.arm,
            "round": label.pick.round,
            "candidate_id": label.candidate.id,
            "formula": label.candidate.structure.composition.reduced_formula,
            "status": label.first.status,
            settings.stability: label.evaluation.value(settings.stability),
            "objective": value_of(label, settings.objective, settings),
            "stable": label.is_stable(settings),
            "find": label.is_find(settings),
            "prototype": label.prototype,
        }
        for label in history.labels()
    ]
    return pd.DataFrame(rows)


def _counts(frame: pd.DataFrame) -> dict[str, Any]:
    """By arm: labels, finds, and mean objective of the finds."""
    told: dict[str, Any] = {}
    for arm in ARMS:
        own = frame[frame["arm"] == arm]
        finds = own[own["find"]]
        values = finds["objective"].dropna()
        told[arm] = {"labels": len(own), "stable": int(own["stable"].sum()), "finds": len(finds)}
        told[arm] |= {"mean_objective": float(values.mean()) if len(values) else math.nan, "measured": len(values)}
    prototypes, late = frame.loc[frame["find"], "prototype"].nunique(), (frame["status"] == TIMEOUT).sum()
    return {**told, "prototypes": int(prototypes), "timed_out": int(late)}


def summary(labels: pd.DataFrame, goal: Goal) -> dict[str, Any]:
    """Counts of each arm over all seeds, and the engine against the others in finds and in their objective."""
    told: dict[str, Any] = _counts(labels)
    for arm in ARMS:
        told[arm] |= {"rate": _numbers(wilson(told[arm]["finds"], told[arm]["labels"]))}
    for other in (SHADOW, BASELINE):
        told[f"finds per label, {ENGINE} over {other}"] = _ratios(labels, other)
        told[f"objective of finds, {ENGINE} minus {other}"] = _differences(labels, other, goal)
    return told


def _ratios(labels: pd.DataFrame, other: str) -> dict[str, Any]:
    pairs = [(_hits(own, ENGINE), _hits(own, other)) for _, own in labels.groupby("seed")]
    return {"pooled": _numbers(pooled_ratio(pairs)), "over seeds": _numbers(paired_ratio(pairs)), "seeds": len(pairs)}


def _hits(labels: pd.DataFrame, arm: str) -> tuple[int, int]:
    own = labels[labels["arm"] == arm]
    return int(own["find"].sum()), len(own)


def _differences(labels: pd.DataFrame, other: str, goal: Goal) -> dict[str, Any]:
    """In the objective's unit, more is better."""
    finds = labels[labels["find"] & labels["objective"].notna()]
    scores = finds.assign(score=[goal.score(value) for value in finds["objective"]])
    ours, theirs = (scores.loc[scores["arm"] == arm, "score"].to_numpy() for arm in (ENGINE, other))
    means = scores.pivot_table(index="seed", columns="arm", values="score").reindex(columns=[ENGINE, other]).dropna()
    within = student_mean((means[ENGINE] - means[other]).tolist())
    return {"pooled": _numbers(difference(ours, theirs)), "over seeds": _numbers(within), "seeds": len(means)}


def _numbers(interval: Interval) -> dict[str, float]:
    return asdict(interval)
