"""`discovery-loop benchmark prompts`: given a chemical system, how many crystals near the hull a relaxation is worth.

A generator can be held to a chemical system by masks alone, or be told the system before its first letter. Both draw
from the same weights here, beside random crystals, in ternary systems of the test split, and a potential that rewarded
nothing says how many of their crystals end within 0.1 eV/atom of its hull.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.crystals import CONTRACTION, RANDOM, random_crystals, structures_of_split
from flows.benchmarks.harness import files_of, write_benchmark
from loop.contracts import Progress
from loop.errors import ConfigError, InputError
from loop.io.files import hash_of, make_folder, sha256, write_text
from loop.metrics import pooled_ratio, rate_ratio, wilson
from loop.stability import LEVELS, METASTABLE, within
from loop.validity import STRUCTURE
from loop.values import NEW, Candidate
from oracles.opinion import OpinionConfig
from oracles.relax import RelaxConfig, relax

if TYPE_CHECKING:
    import pandas as pd

    from generator.checkpoint import Checkpoint
    from loop.contracts import Oracle
    from loop.hull import Hull
    from oracles.potentials.base import Potential

PROMPT, MASKS = "prompt", "masks"
METHODS = (PROMPT, MASKS, RANDOM)
INTERMETALLIC = "intermetallics"
PROTOCOL = (
    "Ternary systems of the table's test split, drawn at random, at most half of them intermetallic (by their most "
    "electronegative element). In each system every method offers as many crystals of all three elements: prompt, "
    "from the generator that is told the system and held to it by masks; masks, from the same weights that are not "
    "told; random, cells with atoms anywhere. Crystals with invalid distances are drawn again, random ones apart, "
    "which are to relax first. All are relaxed by CHGNet with the limit of steps in the settings; what then lies "
    "within `near` of its hull is relaxed on by the judge and placed on the judge's hull on demand; the rest counts "
    "as not found. A crystal is found if it ends within 0.1 eV/atom of that hull, and no further than 0.2 below it. "
    "new: found, no known crystal, and no copy of another of its method. Ratios: pooled over systems with the "
    "interval of the Bayesian bootstrap, crystals as the sample; and compared within each system (Mantel and "
    "Haenszel)."
)


@dataclass(frozen=True)
class PromptsConfig:
    """Settings of the benchmark.

    Attributes:
        systems: number of chemical systems, drawn with the first seed.
        crystals: of each method in each system.
        seed: of everything that is drawn.
        max_atoms: of a primitive cell, for all methods.
        judge: potential that says what is near its hull.
        near: eV/atom above CHGNet's hull, up to which the judge is asked.
        relax: settings of the first relaxation; the judge's are the default.
    """

    systems: int = 12
    crystals: int = 10
    seed: int = 0
    max_atoms: int = 12
    judge: str = "sevennet"
    near: float = 0.25
    relax: RelaxConfig = field(
        default_factory=lambda: RelaxConfig(max_steps=100, max_contraction=CONTRACTION, retry=None)
    )

    def __post_init__(self) -> None:
        """Check values."""
        if min(self.systems, self.crystals) < 1 or self.seed < 0 or self.max_atoms < 3 or not self.near >= METASTABLE:
            raise ConfigError(
                "expected systems and crystals of at least 1, a seed that is not negative, max_atoms of at least 3 "
                f"and near of at least {METASTABLE:g}, got {self}"
            )


@dataclass(frozen=True)
class Judges:
    """Who relaxes first, who judges, and what is known."""

    first: Potential
    hull: Hull
    judge: Oracle


def run(data: Path, output: Path, config: PromptsConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Draw, relax, judge; systems that stand in `output` with the same settings are not done again.

    Args:
        data: CSV with a column split, whose test rows give the systems; crystals in its column cif.
        output: folder of record.json and crystals.csv.
        config: settings.
        progress: called after each system.

    Raises:
        InputError: the table has too few ternary systems in its split test.
        ConfigError: the judge is the potential that relaxes first.
    """
    import pandas as pd

    from flows.build import Builder
    from flows.config import CampaignConfig
    from generator.checkpoint import load_checkpoint

    make_folder(output)
    systems = drawn_systems(ternaries(data), config.systems, config.seed)
    loaded, builder = load_checkpoint(None), Builder(CampaignConfig())
    oracle = builder.opinion(OpinionConfig(config.judge), LEVELS)
    judges = Judges(builder.cheap.potential, builder.cheap.references.hull(), oracle)
    frames = []
    for done, system in enumerate(systems):
        part = output / "parts" / part_name(system, done, config, loaded.checksum, oracle.settings_hash)
        if not part.is_file():
            write_text(part, _system(system, done, loaded, judges, config).to_csv(index=False))
        frames.append(pd.read_csv(part, keep_default_na=False, na_values=[""]))
        if progress is not None:
            found = {method: float(_rows(frames[-1], method)["found"].sum()) for method in METHODS}
            progress("prompts", done + 1, len(systems), found)
    crystals = pd.concat(frames, ignore_index=True)
    write_text(output / "crystals.csv", crystals.to_csv(index=False, float_format="%.5g", lineterminator="\n"))
    record = {
        "benchmark": "prompts",
        "protocol": PROTOCOL,
        "settings": asdict(config),
        "data": {"file": data.name, "sha256": sha256(data)},
        "checkpoint": loaded.checksum,
        "judge": oracle.name,
        "results": summary(crystals),
        "files": files_of([output / "crystals.csv"]),
    }
    return write_benchmark(output, record)


def part_name(system: str, place: int, config: PromptsConfig, checkpoint: str, judge: str) -> str:
    """File of a system's crystals, another one wherever they would be others."""
    settings = {name: value for name, value in asdict(config).items() if name != "systems"}
    return f"{system}-{hash_of([place, settings, checkpoint, judge])[:12]}.csv"


def ternaries(data: Path) -> list[str]:
    """Chemical systems of three elements among the crystals of the table's test split, sorted, as ``O-Sr-Ti``."""
    crystals = structures_of_split(data, "test").values()
    found = {frozenset(map(str, crystal.composition.elements)) for crystal in crystals}
    return sorted("-".join(sorted(system)) for system in found if len(system) == 3)


def drawn_systems(systems: Sequence[str], n: int, seed: int) -> list[str]:
    """Some of them at random, at most half intermetallic.

    Raises:
        InputError: there are too few.
    """
    from generator.rl.strata import class_of

    chosen: list[str] = []
    metallic = 0
    for at in np.random.default_rng(seed).permutation(len(systems)):
        alloy = class_of(systems[at].split("-")) == INTERMETALLIC
        if len(chosen) < n and not (alloy and metallic >= n // 2):
            chosen.append(systems[at])
            metallic += alloy
    if len(chosen) < n:
        raise InputError(f"expected {n} ternary systems in the split test, half of them with a non-metal, got {chosen}")
    return chosen


def offered(system: str, method: str, n: int, checkpoint: Checkpoint, seed: int, max_atoms: int) -> list[Candidate]:
    """The crystals of a method that hold all elements of a system; fewer where the generator finds none."""
    elements = system.split("-")
    if method == RANDOM:
        made = random_crystals(elements, 20 * n, max_atoms, seed)
        return [one for one in made if len(one.structure.composition) == len(elements)][:n]
    from flows.tables.generation import generate
    from generator.constraints.conditions import Sampling
    from generator.constraints.guard import Guard

    sampling = Sampling(chemical_system=system, max_atoms=max_atoms, prompt=method == PROMPT)
    made = generate(checkpoint, 2 * n, seed, sampling, Guard()).candidates
    return [one for one in made if STRUCTURE.reason(one.structure) is None][:n]


def _system(system: str, place: int, checkpoint: Checkpoint, judges: Judges, config: PromptsConfig) -> pd.DataFrame:
    """One row per crystal of each method."""
    import pandas as pd

    from flows.novelty import shipped_novelty

    rows = []
    for method in METHODS:
        seed = int(np.random.SeedSequence((config.seed, place)).generate_state(1)[0])
        crystals = offered(system, method, config.crystals, checkpoint, seed, config.max_atoms)
        first, second, ends = judged([one.structure for one in crystals], judges, config)
        at = [row for row, end in enumerate(ends) if end is not None]
        kinds = shipped_novelty().judge([ends[row] for row in at], [str(row) for row in at])
        new = {row for row, verdict in zip(at, kinds, strict=True) if verdict.kind == NEW}
        found = within(second, METASTABLE)
        rows += [
            {"system": system, "method": method, "formula": one.formula,
             "e_above_hull_first": first[row], "e_above_hull": second[row], "found": int(found[row]),
             "new": int(found[row] and row in new)}
            for row, one in enumerate(crystals)
        ]  # fmt: skip
    return pd.DataFrame(rows)


def judged(
    structures: Sequence[Any], judges: Judges, config: PromptsConfig
) -> tuple[np.ndarray, np.ndarray, list[Any]]:
    """Distances by the first potential and by the judge (eV/atom, NaN where there is none), and crystals as relaxed."""
    outcomes = relax(structures, judges.first, config.relax)
    there = [row for row, outcome in enumerate(outcomes) if outcome.structure is not None]
    first, second = np.full(len(structures), np.nan), np.full(len(structures), np.nan)
    ends: list[Any] = [None] * len(structures)
    energies = np.array([outcomes[row].energy for row in there])
    compositions = [structures[row].composition for row in there]
    for row, result in zip(there, judges.hull.batch(compositions, energies, judges.first.energy_type), strict=True):
        first[row] = result.e_above_hull
    asked = np.flatnonzero(within(first, config.near)).tolist()
    starts = [Candidate(s) for row in asked if (s := outcomes[row].structure) is not None]
    labels = judges.judge.evaluate(starts) if starts else []
    for row, label in zip(asked, labels, strict=True):
        if label.ok:
            second[row], ends[row] = label.value("e_above_hull"), label.structure
    return first, second, ends


def _rows(crystals: pd.DataFrame, method: str) -> pd.DataFrame:
    return crystals[crystals["method"] == method]


def summary(crystals: pd.DataFrame) -> dict[str, Any]:
    """Shares of each method, over all systems and by kind of system, and the ratios of prompt to the others."""
    from generator.rl.strata import class_of

    kinds = crystals["system"].map(lambda system: class_of(system.split("-")))
    parts = {"all": crystals, **{str(kind): rows for kind, rows in crystals.groupby(kinds)}}
    return {name: _compared(rows) | {"systems": sorted(set(rows["system"]))} for name, rows in parts.items()}


def _compared(crystals: pd.DataFrame) -> dict[str, Any]:
    found: dict[str, Any] = {}
    counts = {
        (method, what): (int(_rows(crystals, method)[what].sum()), len(_rows(crystals, method)))
        for method in METHODS
        for what in ("found", "new")
    }
    for method in METHODS:
        share = wilson(*counts[method, "found"])
        found[method] = {
            "crystals": counts[method, "found"][1],
            "found": counts[method, "found"][0],
            "new": counts[method, "new"][0],
            "share": share.value,
            "share_95": [share.low, share.high],
        }
    for other in (MASKS, RANDOM):
        found[f"prompt_over_{other}"] = _ratios(crystals, counts, other)
    return found


def _ratios(crystals: pd.DataFrame, counts: Mapping[tuple[str, str], tuple[int, int]], other: str) -> dict[str, Any]:
    pooled = {what: rate_ratio(counts[PROMPT, what], counts[other, what]) for what in ("found", "new")}
    strata = [
        tuple((int(_rows(rows, method)["found"].sum()), len(_rows(rows, method))) for method in (PROMPT, other))
        for _, rows in crystals.groupby("system")
    ]
    compared = pooled_ratio(strata)  # type: ignore[arg-type]
    return {
        **{what: {"ratio": one.value, "ratio_95": [one.low, one.high]} for what, one in pooled.items()},
        "within_systems": {"ratio": compared.value, "ratio_95": [compared.low, compared.high]},
    }
