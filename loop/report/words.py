"""The report's words: what a campaign shows, what it does not, and what the numbers mean."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loop.history import SECOND_OPINION, History
from loop.metrics import Interval
from loop.properties import spec_of
from loop.ranking import FAILED, FIND
from loop.report.columns import counts, in_group, opinions
from loop.report.gain import GoalGain
from loop.report.summary import reports_now
from loop.report.tables import MAX_ROWS, number, percent, ratio
from loop.settings import BASELINE, ENGINE, SHADOW
from loop.stability import IMPLAUSIBLE
from loop.stages import Finetuned, Proposed

AGAINST = {SHADOW: "random picks from the same pools", BASELINE: "random picks from the untuned generator"}
CLAIMS = {SHADOW: "selection beats chance", BASELINE: "learning and selection pay"}
RATES = {SHADOW: "acceleration", BASELINE: "gain_over_baseline"}
OFF = 0.15  # difference of observed and expected coverage that is reported


@dataclass(frozen=True)
class Verdict:
    """A comparison in words, and whether it shows an advantage."""

    text: str
    shown: bool


def goal_verdicts(gain: GoalGain) -> list[Verdict]:
    """What the engine gained in an objective, said plainly, and where that is not shown."""
    engine, made = gain.arms.get(ENGINE), []
    for arm, found in gain.gains.items():
        if engine is None or not math.isfinite(found.value):
            continue
        other = gain.arms[arm]
        text = (
            f"The engine's {gain.of} have a mean {spec_of(gain.goal.name).label} of {mean(engine.mean, gain.unit)} "
            f"(n = {len(engine.values)}), those of {AGAINST[arm]} {mean(other.mean, gain.unit)} "
            f"(n = {len(other.values)}): {_better(found, gain)}."
        )
        made.append(_judged(text, found, 0.0, CLAIMS[arm]))
    return made


def mean(interval: Interval, unit: str) -> str:
    """A mean with its unit."""
    return number(interval.value, 4, unit)


def _better(found: Interval, gain: GoalGain) -> str:
    distance = gain.goal.kind == "target"
    sign = "nearer to the target" if distance and found.value >= 0 else "better" if found.value >= 0 else "worse"
    if distance and found.value < 0:
        sign = "further from the target"
    text = f"{number(abs(found.value), 3, gain.unit)} {sign}"
    if not math.isfinite(found.low):
        return f"{text}, too few for an interval"
    return f"{text}, 95 % interval of the difference {signed(found.low)} to {signed(found.high)} {gain.unit}".rstrip()


def signed(value: float) -> str:
    """A difference with its sign."""
    return f"{'+' if value >= 0 else '−'}{number(abs(value))}"


def rate_verdicts(history: History) -> list[Verdict]:
    """What the campaign shows of hit rates, said plainly, and what it does not."""
    reports = reports_now(history)
    if not reports or not math.isfinite(reports[-1].metrics["acceleration"]):
        return []
    metrics = reports[-1].metrics
    return [rate_verdict(metrics, arm) for arm in RATES if f"{RATES[arm]}_low" in metrics]


def rate_verdict(metrics: dict[str, float], arm: str) -> Verdict:
    """One comparison of hit rates."""
    value, low, high = (metrics[f"{RATES[arm]}{end}"] for end in ("", "_low", "_high"))
    hits = [f"{metrics[f'{a}_hits']:.0f} of {metrics[f'{a}_labels']:.0f}" for a in (ENGINE, arm)]
    text = (
        f"The engine's picks were stable {ratio(value)} times as often as {AGAINST[arm]} "
        f"({hits[0]} against {hits[1]}; 95 % interval {ratio(low)} to {ratio(high)})."
    )
    # rounded as it is shown
    return _judged(text, Interval(value, round(low, 2), round(high, 2)), 1.0, CLAIMS[arm])


def _judged(text: str, found: Interval, none: float, claim: str) -> Verdict:
    if not math.isfinite(found.low):
        return Verdict(f"{text} It does not show that {claim}.", False)
    if found.low > none:
        return Verdict(f"{text} The interval lies above {none:g}: {claim} here.", True)
    if found.high < none:
        return Verdict(f"{text} The interval lies below {none:g}: it did worse.", False)
    return Verdict(f"{text} The interval includes {none:g}: this campaign does not show that {claim}.", False)


def not_shown(history: History, rows: Sequence[dict[str, Any]], gains: Sequence[GoalGain]) -> list[str]:
    """What this campaign does not show, and what a reader must not take from it."""
    finds, found = in_group(list(rows), FIND), counts(list(rows))
    verdicts = [verdict for gain in gains for verdict in goal_verdicts(gain)] + rate_verdicts(history)
    items = [f"No advantage is claimed where it says: {verdict.text}" for verdict in verdicts if not verdict.shown]
    if not verdicts:
        items.append("No gain over chance can be stated: that needs labelled finds of the engine and of a random arm.")
    costlier = {name: tier for name, tier in history.tiers.items() if name != SECOND_OPINION}
    if finds and not costlier:
        items.append(
            f"No find was checked by a more expensive method: all {len(finds)} rest on {history.oracle.oracle} alone. "
            "An optimiser finds a potential's errors: check the best by DFT before you quote them."
        )
    for name, tier in costlier.items():
        asked = sum(label.candidate.id in tier.labels for label in history.labels() if label.is_find(history.settings))
        items.append(f"{len(finds) - asked} of {len(finds)} finds were not computed by {name}.")
    items += [_opinion(history, finds)] if finds else []
    if finds and not any(row.get("dynamically_stable") is not None for row in rows):
        items.append("Phonons were not computed: dynamical stability is not known.")
    if finds:
        items.append("Temperature, disorder and synthesis are not considered.")
    items += _label_items(history, rows, found)
    items += _calibration_items(history)
    hidden = {group: len(in_group(list(rows), group)) - MAX_ROWS for group in {row["group"] for row in rows}}
    beyond = sum(count for count in hidden.values() if count > 0)
    if beyond:
        items.append(f"{beyond} further candidates are in ranked.csv and cifs/, not in this page.")
    return items


def _opinion(history: History, finds: Sequence[Mapping[str, Any]]) -> str:
    """What a potential that neither rewards nor labels says of the finds."""
    found, n = opinions(history, finds), len(finds)
    if not found:
        return "No second opinion of another potential is recorded."
    oracle, judged, agreed = history.tiers[SECOND_OPINION].key.oracle, found["second_opinions"], found["stable_by_both"]
    text = f"Of {n} finds {judged} were judged by {oracle}, too, on its own hull: {agreed} are stable there as well."
    return text + (f" The other {n - agreed} rest on {history.oracle.oracle} alone." if agreed < n else "")


def _label_items(history: History, rows: Sequence[dict[str, Any]], found: dict[str, int]) -> list[str]:
    items, failures = [], Counter(row["status"] for row in rows if row["group"] == FAILED)
    if failures:
        kinds = ", ".join(f"{count} {status}" for status, count in failures.most_common())
        items.append(f"{sum(failures.values())} of {len(rows)} labels are unusable ({kinds}); they count as no hits.")
    if found["suspect"]:
        items.append(
            f"{found['suspect']} crystals lie more than {-IMPLAUSIBLE:g} eV/atom below the hull; they are set apart as "
            "likely errors of the potential and count nowhere."
        )
    for goal in history.settings.goals:
        missing = sum(row.get(goal.name) is None for row in rows if row["group"] == FIND)
        if missing:
            items.append(f"{missing} finds have no label of {spec_of(goal.name).label}.")
    decorations = sum(bool(row["decoration"]) for row in rows if row["group"] == FIND)
    if decorations:
        items.append(
            f"{decorations} finds are ordered decorations of fcc, bcc or hcp: new more in name than in kind, and "
            "real alloys are often disordered."
        )
    return items


def _calibration_items(history: History) -> list[str]:
    """Properties whose predicted intervals held too few or too many labels in the last round that had predictions."""
    reports = [report for report in reports_now(history) if any(key.endswith("_coverage90") for key in report.metrics)]
    if not reports:
        return ["Calibration cannot be judged: no crystal was predicted before it was labelled."]
    metrics, items = reports[-1].metrics, []
    for key, value in metrics.items():
        name = key.removesuffix("_coverage90")
        if name != key and math.isfinite(value) and abs(value - 0.9) > OFF:
            n = metrics.get(f"{name}_n", math.nan)
            items.append(
                f"Predicted uncertainties of {spec_of(name).label} were off in round {reports[-1].round}: "
                f"{percent(value)} of {n:.0f} labels lay within their 90 % intervals."
            )
    return items


def total(found: Iterable[Mapping[str, int]]) -> str:
    """Counts of all rounds, the most frequent first."""
    summed: Counter[str] = Counter()
    for of_round in found:
        summed.update(of_round)
    return ", ".join(f"{reason} {count}" for reason, count in summed.most_common()) or "none"


def _tier_text(history: History, name: str) -> str:
    """What a costlier oracle was asked and how much of it came back."""
    tier = history.tiers[name]
    evaluations = tier.evaluations.values()
    types = sorted({str(evaluation.energy_type) for evaluation in evaluations if evaluation.energy_type})
    usable = sum(evaluation.ok for evaluation in evaluations)
    hours = sum(evaluation.cost.seconds * evaluation.cost.cores for evaluation in evaluations) / 3600
    text = f"{tier.key.oracle} on the relaxed crystals of the best: {len(tier.labels)} asked, {usable} usable"
    return f"{text}, {hours:.2g} core hours; energy type {'; '.join(types) or '–'}; gaps in eV, dielectric constants: 1"


def protocol(history: History) -> list[tuple[str, str]]:
    """What the numbers mean: term and explanation."""
    settings = history.settings
    types = sorted({str(x.evaluation.energy_type) for x in history.labels() if x.evaluation.energy_type})
    share = f"{settings.shadow_share:.0%}"
    guards = total(tuned.guards for tuned in history.records(Finetuned).values())
    invalid = total(proposed.invalid for proposed in history.records(Proposed).values())
    return [
        (
            "stable",
            f"labelled by {history.oracle.oracle}, {settings.stability} at most {settings.threshold:g} eV/atom on the "
            "campaign's newest hull, which holds its own finds; suspect crystals are not counted",
        ),
        ("energy type", "; ".join(types) or "–"),
        *((f"{name} columns", _tier_text(history, name)) for name in history.tiers),
        (
            "when found",
            f"{settings.stability} (eV/atom) at the time of the label, on the reference phases alone: below 0 it lies "
            "below the known hull",
        ),
        ("hit rate", "stable labels / all paid labels; a failed or unconverged evaluation was paid for and is no hit"),
        (
            "engine, shadow, baseline",
            f"the acquisition's picks; a random {share} of each round's budget from the same pool; random picks from "
            "the untuned generator in round 0",
        ),
        (
            "engine against shadow",
            "ratio of hit rates of all rounds; interval: Bayesian bootstrap with Jeffreys' half counts (Rubin 1981)",
        ),
        ("guards triggered", f"while learning: {guards}"),
        ("accepted", f"passes the campaign's validity rules; rejected: {invalid}"),
        (
            "unique, new",
            "no copy within its batch; neither in the reference of known crystals nor labelled before. Fingerprint "
            "first, pymatgen's StructureMatcher where both crystals are at hand",
        ),
        ("new", "new as proposed and as relaxed: a relaxation may end in a known crystal, whose id is given"),
        (
            "suspect",
            f"more than {-IMPLAUSIBLE:g} eV/atom below the hull of the reference phases: by experience an error of the "
            "potential. Such a crystal is no find, and no phase of the campaign's hull",
        ),
        (
            "prototype",
            "anonymised formula, Pearson symbol, space group and Wyckoff letters as AFLOW writes them, of the relaxed "
            "crystal; a decoration is an ordering of fcc, bcc or hcp, new more in name than in kind",
        ),
        (
            "predicted",
            "surrogate's mean and standard deviation for the relaxed value, from the unrelaxed candidate, before the "
            "label was known",
        ),
        ("replay", "share of unique samples that equal a crystal of the generator's training set"),
    ]
