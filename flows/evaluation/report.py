"""How good generated crystals are: valid, unique, new, stable, and distributed like a reference set.

Protocol of CDVAE (Xie et al., ICLR 2022) where it says what to do: structure validity by a shortest distance of 0.5 A
(and the stricter 0.7 of the covalent radii's sum), composition validity by SMACT, Wasserstein distances of properties,
coverage and precision. Validity, uniqueness, novelty and stability are always given together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.evaluation import distances
from flows.evaluation.figures import draw
from flows.novelty import shipped_novelty
from flows.progress import Count, of_stage
from flows.provenance import cores
from flows.records import write_record
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, write_text
from loop.metrics import wilson
from loop.novelty import NoveltyIndex
from loop.stability import DEFINITIONS, IMPLAUSIBLE, METASTABLE, sun_flags, within
from loop.validity import STRICT, unknown_elements, validity_flags
from loop.values import KNOWN, NEW, Candidate, structure_id

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from flows.build import Builder
    from flows.journal import Journal
    from generator.checkpoint import Checkpoint
    from loop.io.crystals import CrystalTable
    from oracles.mlip import PotentialOracle

REFERENCE = "reference "  # ids of reference crystals begin so
CHUNK = 64  # crystals between two calls of progress
OPINIONS = 4  # crystals for each core that the second potential is asked about together where its opinions are kept
SHARED = ("structure_valid", "structure_valid_strict", "composition_valid", "valid", "unique", "new")


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured beyond the cheap rules."""

    relax: int = 100  # crystals that are relaxed with the potential, drawn with `seed`; 0: none
    shipped: bool = True  # novelty against the shipped fingerprints, too
    reference_energies: int = 1000  # reference crystals whose energies are compared, drawn with `seed`
    seed: int = 0
    second_below: float = METASTABLE  # eV/atom by the first potential, up to which the second is asked

    def __post_init__(self) -> None:
        """Check: asked about less, the second would seem to refuse what it never saw."""
        if not self.second_below >= METASTABLE:
            raise ConfigError(f"expected second_below of at least {METASTABLE:g} eV/atom, got {self.second_below}")


@dataclass(frozen=True)
class Evaluators:
    """What crystals are measured with, where it is wanted."""

    builder: Builder | None = None  # potential and hull
    checkpoint: Checkpoint | None = None  # whose likelihood of `held_out` is measured
    held_out: CrystalTable | None = None
    opinion: PotentialOracle | None = None  # another potential, which judges what is near the first's hull, relaxed
    opinions: Journal | None = None  # where its distances are kept as they come, so that a killed evaluation resumes


def evaluate(
    samples: CrystalTable,
    reference: CrystalTable | None,
    output: Path,
    evaluators: Evaluators = Evaluators(),
    config: EvaluationConfig = EvaluationConfig(),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure samples, and write ``record.json``, ``crystals.csv`` and ``distributions.png``.

    Args:
        samples: generated crystals; a row that is none counts as invalid.
        reference: known crystals, for novelty and distributions.
        output: folder.
        evaluators: potential and checkpoint, where energies and likelihoods are wanted.
        config: how much.
        progress: told of stages.
    """
    make_folder(output)
    tell: Progress = progress or (lambda *_: None)
    structures = [structure for structure in samples.structures if structure is not None]
    known = [] if reference is None else [structure for structure in reference.structures if structure is not None]
    rows = _rules(samples, structures, tell)
    index = _index(structures, known, config)
    rows["verdict"] = _verdicts(structures, index, tell, "novelty")
    rows["unique"], rows["new"] = rows["verdict"] != "duplicate", rows["verdict"] == NEW
    results: dict[str, Any] = {"samples": len(samples), "readable": len(structures)}
    if evaluators.builder is not None:
        _energies(rows, structures, evaluators.builder, tell)
        if config.relax:
            results["relaxed"] = _relaxed(rows, structures, evaluators, index, config, tell)
    results |= _shares(rows, len(samples))
    if known:
        results["distances"] = distances.measure(structures, known, tell)
        if evaluators.builder is not None:
            results["distances"] |= _energy_distances(structures, known, evaluators.builder, config, tell)
    if evaluators.checkpoint is not None and evaluators.held_out is not None:
        results["held_out_nll"] = _likelihood(evaluators.checkpoint, evaluators.held_out, tell)
    record = {
        "evaluation": "evaluate-generator",
        "results": results,
        "protocol": _protocol(index, evaluators, len(known)),
        "settings": asdict(config),
    }
    write_record(output, record)
    write_text(output / "crystals.csv", rows.to_csv(index=False, float_format="%.5g", lineterminator="\n"))
    draw(structures, known, rows, output / "distributions.png")
    return record


def _rules(samples: CrystalTable, structures: Sequence[Structure], tell: Progress) -> pd.DataFrame:
    """What the cheap rules say of each readable crystal."""
    import pandas as pd

    rows = pd.DataFrame({"id": [i for i, s in zip(samples.ids, samples.structures, strict=True) if s is not None]})
    rows["formula"] = [structure.composition.reduced_formula for structure in structures]
    rows["n_atoms"] = [len(structure) for structure in structures]
    rows["space_group"] = [distances.space_group(structure) for structure in structures]
    strict: list[str | None] = []
    flags: list[dict[str, np.ndarray]] = []
    for start in range(0, len(structures), CHUNK):
        part = structures[start : start + CHUNK]
        flags.append(validity_flags(part))
        strict += STRICT(part)
        tell("validity", start, len(structures), {})
    unknown = ["no-oxidation-states" if unknown_elements(formula) else "" for formula in rows["formula"]]
    rows["broken_rule"] = [reason or other for reason, other in zip(strict, unknown, strict=True)]
    for name in ("structure_valid", "composition_valid", "valid"):
        rows[name] = np.concatenate([np.zeros(0, dtype=bool), *(part[name] for part in flags)])
    rows["structure_valid_strict"] = [reason is None for reason in strict]
    return rows


def _index(structures: Sequence[Structure], known: Sequence[Structure], config: EvaluationConfig) -> NoveltyIndex:
    """Known crystals: the shipped fingerprints, and those of the reference that could equal a sample."""
    index = shipped_novelty() if config.shipped else NoveltyIndex()
    formulas = {structure.composition.reduced_formula for structure in structures}
    near = [structure for structure in known if structure.composition.reduced_formula in formulas]
    index.add(near, [f"{REFERENCE}{row}" for row in range(len(near))])
    return index


def _verdicts(structures: Sequence[Structure], index: NoveltyIndex, tell: Progress, stage: str) -> list[str]:
    """new, known, or duplicate of an earlier sample (a second copy of a known crystal is a duplicate)."""
    seen: set[str] = set()
    done = 0
    by_formula: dict[str, list[int]] = {}
    for row, structure in enumerate(structures):
        by_formula.setdefault(structure.composition.reduced_formula, []).append(row)
    kinds = [NEW] * len(structures)
    for group in by_formula.values():
        verdicts = index.judge([structures[row] for row in group], [f"sample {row}" for row in group])
        for row, verdict in zip(group, verdicts, strict=True):
            is_known = verdict.kind == KNOWN or str(verdict.match).startswith(REFERENCE)
            repeated = verdict.match in seen if is_known else verdict.match is not None
            kinds[row] = "duplicate" if repeated else ("known" if is_known else NEW)
            if is_known and verdict.match is not None:
                seen.add(verdict.match)
        done += len(group)
        tell(stage, done, len(structures), {})
    return kinds


def _energies(rows: pd.DataFrame, structures: Sequence[Structure], builder: Builder, tell: Progress) -> None:
    """Unrelaxed distances from the hull, and what follows."""
    above, sparse = np.full(len(structures), np.nan), np.zeros(len(structures), dtype=bool)
    for start in range(0, len(structures), CHUNK):
        part = slice(start, start + CHUNK)
        above[part], sparse[part] = builder.screen.judge(list(structures[part]))
        tell("energies", min(start + CHUNK, len(structures)), len(structures), {})
    rows["e_above_hull"], rows["sparse_hull"] = above, sparse
    judge_stability(rows)


def judge_stability(rows: pd.DataFrame) -> None:
    """Stable and metastable, and with unique, new and valid: S.U.N. and M.S.U.N."""
    names = ("valid", "unique", "new")
    flags = {name: rows[name].to_numpy(dtype=bool) for name in names}
    above, sparse = rows["e_above_hull"].to_numpy(dtype=float), rows["sparse_hull"].to_numpy(dtype=bool)
    for name, values in sun_flags(above, sparse=sparse, **flags).items():
        rows[name] = values


def _relaxed(
    rows: pd.DataFrame,
    structures: Sequence[Structure],
    evaluators: Evaluators,
    index: NoveltyIndex,
    config: EvaluationConfig,
    tell: Progress,
) -> dict[str, Any]:
    """The same shares for some crystals after relaxation; their novelty is judged relaxed."""
    from oracles.relax import relax

    assert evaluators.builder is not None
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(structures))[: config.relax])
    measuring = evaluators.builder.measuring
    crystals = [structures[i] for i in chosen]
    outcomes = relax(crystals, measuring.potential, measuring.config.relax, of_stage(tell, "relaxation"))
    part = rows.loc[chosen, ["structure_valid", "composition_valid", "valid"]].copy()
    kept = [outcome.structure if outcome.ok else None for outcome in outcomes]
    good = [row for row, structure in zip(chosen, kept, strict=True) if structure is not None]
    ends = [structure for structure in kept if structure is not None]
    verdicts = dict(zip(good, _verdicts(ends, index, tell, "novelty, relaxed"), strict=True))
    part["new"] = [verdicts.get(row) == NEW for row in chosen]
    part["unique"] = [verdicts.get(row, "duplicate") != "duplicate" for row in chosen]
    kind = measuring.potential.energy_type
    energies = np.array([outcome.energy for outcome in outcomes if outcome.ok])
    placed = dict(zip(good, measuring.hull.batch([s.composition for s in ends], energies, kind), strict=True))
    part["e_above_hull"] = [placed[row].e_above_hull if row in placed else np.nan for row in chosen]
    part["sparse_hull"] = [placed[row].sparse if row in placed else False for row in chosen]
    judge_stability(part)
    rows.loc[chosen, "e_above_hull_relaxed"] = part["e_above_hull"]
    rows.loc[chosen, "verdict_relaxed"] = [verdicts.get(row, "") for row in chosen]
    gained = rows["e_above_hull"] - rows["e_above_hull_relaxed"]
    both = {}
    if evaluators.opinion is not None:
        told = of_stage(tell, "second opinion")
        asked = dict(zip(good, ends, strict=True))
        found = second_opinion(part, asked, evaluators.opinion, config.second_below, told, evaluators.opinions)
        both = {"second_opinion": found}
        rows.loc[chosen, "e_above_hull_second_opinion"] = part["second_opinion"]
        rows.loc[chosen, "second_opinion_message"] = part["second_opinion_message"]
    return {
        "crystals": len(chosen),
        "statuses": dict(Counter(outcome.status for outcome in outcomes)),
        **_shares(part, len(chosen)),
        **both,
        "median_energy_gained": float(gained.median()),
        "seconds_each": float(np.mean([outcome.seconds for outcome in outcomes])) if outcomes else 0.0,
    }


def second_opinion(
    part: pd.DataFrame,
    relaxed: Mapping[int, Structure],
    oracle: PotentialOracle,
    below: float = METASTABLE,
    progress: Count | None = None,
    journal: Journal | None = None,
) -> dict[str, Any]:
    """Shares of crystals that two potentials call stable, each on its own hull, S.U.N. with that, and by the second.

    Args:
        part: relaxed crystals as the first potential judged them; gets the columns ``second_opinion`` (eV/atom;
            a lower bound where its message says so) and ``second_opinion_message``.
        relaxed: the crystals themselves, by row.
        oracle: of the second potential, which relaxes them on.
        below: distance from the first potential's hull (eV/atom) up to which the second is asked; what lies further
            counts as not stable by it.
        progress: called with crystals relaxed by the second and their total.
        journal: keeps each distance that the second gave, `OPINIONS` crystals a core at a time; what it holds is not
            asked again.
    """
    near = within(part["e_above_hull"].to_numpy(dtype=float), below, part["sparse_hull"].to_numpy(dtype=bool))
    asked = [row for row in part.index[near] if row in relaxed]
    opinions = dict(zip(asked, _opinions([relaxed[row] for row in asked], oracle, progress, journal), strict=True))
    above = {row: each["e_above_hull"] for row, each in opinions.items() if each["e_above_hull"] is not None}
    said = {row: each["message"] for row, each in opinions.items()}
    part["second_opinion"] = [above.get(row, np.nan) for row in part.index]
    part["second_opinion_message"] = [said.get(row, "") for row in part.index]
    # a sparse hull is no verdict of this oracle, so what it judged is not sparse
    second = part.assign(e_above_hull=part["second_opinion"], sparse_hull=False)
    judge_stability(second)
    names = ("stable", "metastable", "sun", "msun")
    found: dict[str, Any] = {"oracle": oracle.name, "asked": len(asked), "judged": len(above), "asked_below": below}
    found |= {name: _share(int((part[name] & second[name]).sum()), len(part)) for name in names}
    return found | {"alone": {name: _share(int(second[name].sum()), len(part)) for name in names}}


def _opinions(
    crystals: Sequence[Structure], oracle: PotentialOracle, report: Count | None, journal: Journal | None
) -> list[dict[str, Any]]:
    """``e_above_hull`` (eV/atom, None where there is none) and ``message`` of each crystal."""
    keys = [structure_id(crystal) for crystal in crystals]
    done = {} if journal is None else dict(journal.done)
    missing = {key: Candidate(crystal) for key, crystal in zip(keys, crystals, strict=True) if key not in done}
    known, size = len(crystals) - len(missing), len(missing) if journal is None else OPINIONS * cores()
    for start in range(0, len(missing), max(size, 1)):
        part = list(missing)[start : start + size]
        told = None if report is None else partial(_count_on, report, known + start, len(crystals))
        for key, label in zip(part, oracle.evaluate([missing[key] for key in part], told), strict=True):
            above = label.value("e_above_hull") if label.ok else None
            done[key] = {"e_above_hull": above, "message": label.message}
            if journal is not None and label.ok:  # what failed is tried again by a run that resumes
                journal.write(key, done[key])
    return [done[key] for key in keys]


def _count_on(report: Count, before: int, total: int, done: int, _: int) -> None:
    report(before + done, total)


def _share(count: int, n: int) -> dict[str, Any]:
    share = wilson(count, n)
    return {"share": share.value, "low": share.low, "high": share.high, "count": count}


def told(results: Mapping[str, Any]) -> dict[str, str]:
    """Results in short for people: shares with 95 % intervals and counts, as drawn, then after relaxation."""
    lines = {"samples": f"{results['samples']}, {results['readable']} of them readable"}
    lines["shares"] = "with 95 % intervals (Wilson)"
    lines |= {name: _share_told(found, results["samples"]) for name, found in _shares_in(results)}
    if relaxed := results.get("relaxed"):
        statuses = ", ".join(f"{count} {status}" for status, count in relaxed["statuses"].items())
        lines["relaxed"] = f"{relaxed['crystals']} ({statuses})"
        lines |= {f"relaxed: {name}": _share_told(found, relaxed["crystals"]) for name, found in _shares_in(relaxed)}
        if both := relaxed.get("second_opinion"):
            lines["second opinion"] = (
                f"{both['oracle']}: {both['judged']} of {both['asked']} judged (within {both['asked_below']:g} eV/atom "
                "by the first); by both:"
            )
            n = relaxed["crystals"]
            lines |= {f"relaxed, by both: {name}": _share_told(found, n) for name, found in _shares_in(both)}
            alone = _shares_in(both["alone"])
            lines |= {f"relaxed, by {both['oracle']}: {name}": _share_told(found, n) for name, found in alone}
        lines["relaxed: energy gained"] = f"{relaxed['median_energy_gained']:.3g} eV/atom (median)"
    if held_out := results.get("held_out_nll"):
        lines["held-out likelihood"] = f"{held_out['nll']:.4g} nats per crystal, {held_out['crystals']} crystals"
    return lines


def _shares_in(results: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(name, found) for name, found in results.items() if isinstance(found, dict) and "share" in found]


def _share_told(found: Mapping[str, Any], n: int) -> str:
    return f"{found['share']:.3f} ({found['low']:.3f} to {found['high']:.3f}), {found['count']} of {n}"


def _shares(rows: pd.DataFrame, n: int) -> dict[str, Any]:
    """Shares of all samples with Wilson intervals, and the distribution of the distances from the hull."""
    flags = [name for name in (*SHARED, "stable", "metastable", "sun", "msun") if name in rows]
    found: dict[str, Any] = {}
    for name in flags:
        found[name] = _share(int(rows[name].sum()), n)  # rows that are no crystals count among the n
    if "e_above_hull" in rows:
        above = rows["e_above_hull"].to_numpy(dtype=float)
        above = above[np.isfinite(above)]
        levels = (
            {f"p{level}": float(np.percentile(above, level)) for level in (10, 25, 50, 75, 90)} if len(above) else {}
        )
        found["e_above_hull"] = levels | {
            "judged": len(above),
            "sparse": int(rows["sparse_hull"].sum()),
            "outliers": int((above < IMPLAUSIBLE).sum()),
        }
    return found


def _energy_distances(
    structures: Sequence[Structure],
    known: Sequence[Structure],
    builder: Builder,
    config: EvaluationConfig,
    tell: Progress,
) -> dict[str, float]:
    """Wasserstein distance of unrelaxed formation energies."""
    measuring = builder.measuring
    rng = np.random.default_rng(config.seed)
    sets = [
        [group[i] for i in rng.permutation(len(group))[: config.reference_energies]] for group in (structures, known)
    ]
    values = []
    for name, group in zip(("samples", "reference"), sets, strict=True):
        energies = np.full(len(group), np.nan)
        for start in range(0, len(group), CHUNK):
            energies[start : start + CHUNK] = builder.screen.energies(group[start : start + CHUNK])
            tell(f"formation energies, {name}", min(start + CHUNK, len(group)), len(group), {})
        values.append(distances.formation_energies(group, energies, measuring.table))
    return {"formation_energy_wasserstein": distances.wasserstein(*values)}


def _likelihood(checkpoint: Checkpoint, held_out: CrystalTable, tell: Progress) -> dict[str, Any]:
    """Mean negative log-likelihood of held-out crystals by term, nats per crystal."""
    from flows.tables.generation import likelihoods

    frame = likelihoods(checkpoint, held_out, False, tell)
    good = frame[frame["status"] == "ok"]
    terms = {name: -float(good[f"logp_{name}"].mean()) for name in ("w", "a", "xyz", "l")}
    return terms | {"nll": sum(terms.values()), "crystals": len(good), "left_out": len(frame) - len(good)}


def _protocol(index: NoveltyIndex, evaluators: Evaluators, n_reference: int) -> dict[str, Any]:
    energies = None
    if evaluators.builder is not None:
        energies = (
            f"{evaluators.builder.measuring.potential.energy_type}; unrelaxed: single points of the crystals as drawn"
        )
    return {
        **DEFINITIONS,
        "structure_valid_strict": "nor closer than 0.7 of the sum of covalent radii",
        "new": f"unique, and no copy among the {n_reference} reference crystals or the shipped fingerprints",
        "matcher": index.protocol(),
        "matcher_time_limit": "none: crystals above max_sites go by fingerprint, so that no clock decides",
        "e_above_hull": energies,
        "shares": "of all samples, unreadable rows included; 95 % Wilson intervals",
        "checkpoint": None if evaluators.checkpoint is None else evaluators.checkpoint.checksum,
        "distances": distances.PROTOCOL,
    }
