"""`discovery-loop benchmark rediscovery`: real crystals that no one here trained on, found again among what looks new.

Stability by a potential can be learned without learning what nature makes. Crystals of the test split exist, the
generator has not seen them, and here the novelty reference has not either: their share among samples that count as new
says whether a policy went towards real crystals or away from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.crystals import structures_of_split
from flows.benchmarks.harness import write_benchmark
from loop.contracts import Progress
from loop.errors import ConfigError
from loop.io.files import make_folder, sha256, write_text
from loop.known import KnownCrystals
from loop.metrics import rate_ratio, wilson
from loop.novelty import NoveltyIndex
from loop.validity import STRUCTURE
from loop.values import KNOWN, NEW
from oracles.references.crystals import load_reference_crystals

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from generator.representation.tokens import CrystalBatch

BASE, TUNED = "base", "tuned"
PROTOCOL = (
    "Crystals are drawn with the default guard at temperature 1. A sample counts as new if its distances are valid, no "
    "earlier one of the same draw equals it, and no known crystal does: fingerprints of the Materials Project without "
    "those of the hidden crystals, confirmed by pymatgen's StructureMatcher where the known crystal is in the package. "
    "It is found again if it is one of the hidden crystals by the same rule, the matcher always asked. Rates are per "
    "1,000 new samples, with Wilson's interval; the ratio of tuned to base has that of the Bayesian bootstrap, samples "
    "as the sample. A hidden crystal that equals a known one counts as known, not as found again."
)


@dataclass(frozen=True)
class RediscoveryConfig:
    """Settings of the benchmark.

    Attributes:
        base: checkpoint to compare with; shipped: ours.
        tuned: checkpoints, or folders of `finetune`; their samples are pooled.
        samples: crystals per checkpoint and seed.
        seeds: draws per checkpoint.
        first_seed: of these.
        split: of the table, whose crystals are hidden.
    """

    base: str = "shipped"
    tuned: tuple[str, ...] = ()
    samples: int = 2000
    seeds: int = 1
    first_seed: int = 0
    split: str = "test"

    def __post_init__(self) -> None:
        """Check values."""
        if min(self.samples, self.seeds) < 1 or self.first_seed < 0:
            raise ConfigError(f"expected samples and seeds of at least 1, none negative, got {self}")


class Hidden:
    """Crystals that a sample may find again, and the reference without them.

    Args:
        structures: by id.
        known: fingerprints, in which these may stand.
    """

    def __init__(self, structures: dict[str, Structure], known: KnownCrystals) -> None:
        self._structures = structures
        rows = range(len(known))
        inside = np.array([known.id(row) in structures for row in rows], dtype=bool)
        self.fingerprints = int(inside.sum())
        # no textbook crystals of the elements: one that is hidden could not be found again
        self.reference = NoveltyIndex(known.where(~inside), crystals=load_reference_crystals())
        self.index = NoveltyIndex(known.where(inside), crystals=self)

    def __contains__(self, id: object) -> bool:
        return id in self._structures

    def structure(self, id: str) -> Structure:
        """One of them."""
        return self._structures[id]

    def judge(self, structures: Sequence[Structure]) -> pd.DataFrame:
        """Columns `new` (bool) and `found` (id of the hidden crystal, or empty), one row per structure."""
        import pandas as pd

        ids = [str(i) for i in range(len(structures))]
        new = np.array([verdict.kind == NEW for verdict in self.reference.judge(structures, ids)], dtype=bool)
        found = [""] * len(structures)
        for i in np.flatnonzero(new).tolist():
            verdict = self.index.judge([structures[i]], ["sample"])[0]
            found[i] = str(verdict.match) if verdict.kind == KNOWN else ""
        return pd.DataFrame({"new": new, "found": found})


def run(data: Path, output: Path, config: RediscoveryConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Draw, judge, compare; draws that stand in `output` are not made again.

    Args:
        data: CSV with columns cif, split and ids.
        output: folder of record.json and samples.csv.
        config: settings.
        progress: called after each draw.

    Raises:
        InputError: the table holds no crystals of the split.
        CheckpointError: there is no such checkpoint.
    """
    import pandas as pd

    from generator.checkpoint import load_checkpoint

    make_folder(output)
    hidden = Hidden(structures_of_split(data, config.split), KnownCrystals.shipped())
    frames, checkpoints = [], []
    named = [(BASE, config.base), *((TUNED, path) for path in config.tuned)]
    for done, (arm, path) in enumerate(named):
        loaded = load_checkpoint(None if path == "shipped" else Path(path))
        checkpoints.append({"arm": arm, "checksum": loaded.checksum})
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            part = output / "parts" / f"{loaded.checksum[:12]}-{config.samples}-{seed}-{config.split}.csv"
            if not part.is_file():
                write_text(part, _drawn(loaded.model, hidden, config.samples, seed).to_csv(index=False))
            frame = pd.read_csv(part, keep_default_na=False)
            frames.append(frame.assign(arm=arm, policy=done, seed=seed))
            if progress is not None:
                found = float((frame["found"] != "").sum())
                progress("rediscovery", len(frames), len(named) * config.seeds, {"found again": found})
    samples = pd.concat(frames, ignore_index=True)
    write_text(output / "samples.csv", samples.to_csv(index=False, lineterminator="\n"))
    record = {
        "benchmark": "rediscovery",
        "protocol": PROTOCOL,
        "settings": asdict(replace(config, base=BASE, tuned=())),  # checkpoints go by checksum, not by place
        "data": {"file": data.name, "sha256": sha256(data), "hidden": len(hidden._structures)},
        "novelty": hidden.reference.protocol() | {"hidden_fingerprints": hidden.fingerprints},
        "checkpoints": checkpoints,
        "results": summary(samples),
    }
    return write_benchmark(output, record)


def _drawn(model: Any, hidden: Hidden, n: int, seed: int) -> pd.DataFrame:
    """One row per crystal drawn: class of chemistry, formula, whether it is new, and what it finds again."""
    from generator.constraints.guard import Guard
    from generator.draw import draw
    from generator.representation.tokens import detokenize_all
    from generator.rl.strata import CLASSES, classes

    batch: CrystalBatch = draw(model, n, np.random.default_rng(seed), guard=Guard()).sample.batch
    structures = detokenize_all(batch)
    kept = [i for i, s in enumerate(structures) if s is not None and STRUCTURE.reason(s) is None]
    judged = hidden.judge([structures[i] for i in kept])  # type: ignore[misc]
    names = np.array(CLASSES)[classes(batch[np.array(kept, dtype=int)])]
    formulas = [structures[i].composition.reduced_formula for i in kept]  # type: ignore[union-attr]
    return judged.assign(chemistry=names, formula=formulas)


def summary(samples: pd.DataFrame) -> dict[str, Any]:
    """Rates of each arm, all chemistry and by class, and the ratio of tuned to base."""
    results: dict[str, Any] = {}
    for name, part in [("all", samples), *samples.groupby("chemistry")]:
        arms = {arm: _rate(rows) for arm, rows in part.groupby("arm")}
        results[str(name)] = arms
        if {BASE, TUNED} <= set(arms):
            counts = [(arms[arm]["found_again"], arms[arm]["new"]) for arm in (TUNED, BASE)]
            ratio = rate_ratio(counts[0], counts[1])
            results[str(name)] = arms | {"ratio": ratio.value, "ratio_95": [ratio.low, ratio.high]}
    return results


def _rate(rows: pd.DataFrame) -> dict[str, Any]:
    new, found = int(rows["new"].sum()), rows.loc[rows["found"] != "", "found"]
    share = wilson(len(found), new)
    return {
        "crystals": len(rows),
        "new": new,
        "found_again": len(found),
        "different": int(found.nunique()),
        "per_1000_new": 1000 * share.value,
        "per_1000_new_95": [1000 * share.low, 1000 * share.high],
    }
