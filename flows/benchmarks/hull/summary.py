"""From episodes to AF, EF, AUDC and mSUN with standard errors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.hull.methods import METHODS, OURS, RANDOM
from flows.benchmarks.hull.world import Outcome
from loop.metrics import acceleration_factor, paired_ratio, rate_ratio

if TYPE_CHECKING:
    import pandas as pd

CAP = 100.0  # on the enhancement factor, as published: the random generator may find nothing
PUBLISHED = {"af": 6.4, "ef": 6.0, "audc": 0.42, "msun": 0.40}  # best of arXiv 2601.20996, table 1, at 0.1 eV/atom


def discovery_area(curve: Sequence[float]) -> float:
    """AUDC: area under the discoveries after 0, 1, ... queries over that of one discovery a query (trapezoids)."""
    full = np.concatenate([[0.0], np.asarray(curve, dtype=float)])
    return float(np.trapezoid(full) / (len(curve) ** 2 / 2))


def scores(curve: Sequence[float], baseline: Sequence[float] | None) -> dict[str, float]:
    """Metrics of one episode.

    Args:
        curve: discoveries after 1, 2, ... queries.
        baseline: the same for the random generator, mean over its episodes in that system; None where it was not run,
            which leaves the first two metrics NaN.

    Returns:
        ``af``: queries after which the baseline has all that it ever finds, over those of this episode (0 where it
        does not get there; NaN where the baseline finds nothing). ``ef``: discoveries over the baseline's at the end,
        at most `CAP` (NaN where neither finds anything). ``audc``: `discovery_area`. ``msun``: share of queries that
        are discoveries at the end.
    """
    found = float(curve[-1])
    result = {"af": np.nan, "ef": np.nan, "audc": discovery_area(curve), "msun": found / len(curve)}
    if baseline is None:
        return result
    most = baseline[-1]
    if most > 0:
        return result | {"af": acceleration_factor(curve, baseline, most), "ef": min(found / most, CAP)}
    return result | {"ef": CAP if found else np.nan}


def summarise(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One row a tolerance and method: means over systems and seeds, standard errors as ``<name>_se``."""
    rows = []
    for tolerance in dict.fromkeys(t for outcome in outcomes for t in outcome.curves):
        for method in dict.fromkeys(outcome.method for outcome in outcomes):
            own = [o for o in outcomes if o.method == method and tolerance in o.curves]
            row: dict[str, Any] = {"tolerance": float(tolerance), "method": method, "episodes": len(own)}
            table = [scores(o.curves[tolerance], _baseline(outcomes, o.system, tolerance)) for o in own]
            for name in table[0] if table else ():
                values = np.array([entry[name] for entry in table])
                values = values[np.isfinite(values)]
                row[name] = float(values.mean()) if len(values) else float("nan")
                row[f"{name}_se"] = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
                row[f"{name}_n"] = len(values)
            rows.append(row | _failures(own))
    return rows


def pooled(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """By tolerance: discoveries of all episodes together, and ours against each other method.

    Against a method: the ratio of discoveries a query in all (interval of the Bayesian bootstrap over queries) and its
    geometric mean over systems, and the number of systems where ours found more, as many, and fewer; `sooner`: where
    its AUDC is larger.
    """
    found: dict[str, dict[str, Any]] = {}
    for tolerance in dict.fromkeys(t for outcome in outcomes for t in outcome.curves):
        by_method = {m: _counts(outcomes, m, tolerance) for m in METHODS}
        by_method = {method: counts for method, counts in by_method.items() if counts}
        totals = {method: _total(counts.values()) for method, counts in by_method.items()}
        row: dict[str, Any] = {method: {"found": hits, "queries": n} for method, (hits, n) in totals.items()}
        for other in [m for m in by_method if m != OURS] if OURS in by_method else ():
            ours, theirs = by_method[OURS], by_method[other]
            pairs = [(ours[system], theirs[system]) for system in sorted(ours.keys() & theirs.keys())]
            over, each = rate_ratio(totals[OURS], totals[other]), paired_ratio(pairs)
            signs = Counter(int(np.sign(a * m - b * n)) for (a, n), (b, m) in pairs)
            areas, their_areas = (
                {system: float(np.mean([*map(discovery_area, curves)])) for system, curves in by_system.items()}
                for by_system in (_curves(outcomes, method, tolerance) for method in (OURS, other))
            )
            row[f"ours_over_{other}"] = {
                "pooled": [over.value, over.low, over.high],
                "over_systems": [each.value, each.low, each.high],
                "more": signs[1], "as_many": signs[0], "fewer": signs[-1],
                "sooner": sum(areas[system] > their_areas[system] for system in areas.keys() & their_areas.keys()),
            }  # fmt: skip
        found[tolerance] = row
    return found


def _counts(outcomes: Sequence[Outcome], method: str, tolerance: str) -> dict[str, tuple[int, int]]:
    """Discoveries and queries of a method in each system, over its episodes."""
    by_system = _curves(outcomes, method, tolerance)
    return {system: _total((curve[-1], len(curve)) for curve in curves) for system, curves in by_system.items()}


def _curves(outcomes: Sequence[Outcome], method: str, tolerance: str) -> dict[str, list[list[int]]]:
    """Those of a method's episodes, by system."""
    found: dict[str, list[list[int]]] = {}
    for outcome in outcomes:
        if outcome.method == method and tolerance in outcome.curves:
            found.setdefault(outcome.system, []).append(outcome.curves[tolerance])
    return found


def _total(pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    hits, n = np.sum([*pairs], axis=0).tolist()
    return int(hits), int(n)


def _failures(own: Sequence[Outcome]) -> dict[str, float]:
    """Shares of queries without an energy, of known crystals and of copies of earlier queries."""
    queries = [query for outcome in own for query in outcome.queries]
    total = max(len(queries), 1)
    shares = {kind: sum(query["verdict"] == kind for query in queries) / total for kind in ("known", "duplicate")}
    return {"failed": sum(not query["verdict"] for query in queries) / total, **shares}


def _baseline(outcomes: Sequence[Outcome], system: str, tolerance: str) -> list[float] | None:
    """Mean curve of the random generator in a system."""
    curves = [o.curves[tolerance] for o in outcomes if o.method == RANDOM and o.system == system]
    return np.mean(curves, axis=0).tolist() if curves else None


def tables(outcomes: Sequence[Outcome], summary: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """``summary``, ``curves`` (discoveries by query) and ``queries`` (what was asked)."""
    import pandas as pd

    curves, queries = [], []
    for outcome in outcomes:
        head = {"system": outcome.system, "method": outcome.method, "seed": outcome.seed}
        for tolerance, curve in outcome.curves.items():
            curves += [head | {"tolerance": tolerance, "query": i + 1, "found": n} for i, n in enumerate(curve)]
        tag = next(iter(outcome.curves)) if len(outcome.curves) == 1 else "all"
        queries += [head | {"tolerance": tag, "query": i + 1} | query for i, query in enumerate(outcome.queries)]
    return {"summary": pd.DataFrame(summary), "curves": pd.DataFrame(curves), "queries": pd.DataFrame(queries)}


def draw(outcomes: Sequence[Outcome], path: Path) -> Path:
    """Discoveries by query, mean over episodes with its standard error, one panel a tolerance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tolerances = list(dict.fromkeys(t for outcome in outcomes for t in outcome.curves))
    figure, axes = plt.subplots(1, len(tolerances), figsize=(4.6 * len(tolerances), 3.6), squeeze=False)
    for axis, tolerance in zip(axes[0], tolerances, strict=True):
        for method in dict.fromkeys(outcome.method for outcome in outcomes):
            curves = np.array([o.curves[tolerance] for o in outcomes if o.method == method and tolerance in o.curves])
            queries = np.arange(1, curves.shape[1] + 1)
            error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves)) if len(curves) > 1 else 0 * queries
            (line,) = axis.plot(queries, curves.mean(axis=0), label=method)
            axis.fill_between(
                queries, curves.mean(0) - error, curves.mean(0) + error, color=line.get_color(), alpha=0.2
            )
        axis.plot(queries, queries, "k:", lw=0.8, label="one a query")
        axis.set(xlabel="oracle queries", ylabel="new crystals near the hull", title=f"within {tolerance} eV/atom")
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
