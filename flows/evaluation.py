"""How good generated crystals are: valid, unique, new, and distributed like a reference set.

Protocol of CDVAE (Xie et al., ICLR 2022) where it says what to do: structure validity by a shortest distance of 0.5 A
(and the stricter 0.7 of the covalent radii's sum), composition validity by SMACT, Wasserstein distances of density
and number of elements. Validity, uniqueness, novelty and stability are always given together.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.provenance import provenance
from loop.contracts import Progress
from loop.files import make_folder, write_text
from loop.metrics import wilson
from loop.novelty import DUPLICATE, NEW, NoveltyIndex, Tolerances
from loop.validity import ValidityRules, is_charge_balanced

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from flows.build import Builder
    from loop.crystals import CrystalTable

STABLE = 0.1  # eV/atom, metastability window of Sun et al., Sci. Adv. 2, e1600225 (2016)
_OFF: dict[str, Any] = dict.fromkeys(("max_atoms", "max_elements", "volume_per_atom", "cell_lengths", "cell_angles"))
LENIENT = ValidityRules(
    **_OFF, radioactive=True, noble_gases=True, min_distance=0.5, radius_fraction=None, charge_balance=False
)
STRICT = ValidityRules(
    **_OFF, radioactive=True, noble_gases=True, min_distance=0.5, radius_fraction=0.7, charge_balance=False
)


def evaluate(
    samples: CrystalTable,
    reference: CrystalTable,
    output: Path,
    judge: Builder | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure samples against a reference, and write ``record.json``, ``crystals.csv`` and ``distributions.png``.

    Args:
        samples: generated crystals; a row that is none counts as invalid.
        reference: known crystals.
        output: folder.
        judge: gives unrelaxed energies above the hull, where wanted.
        progress: told of stages.
    """
    import pandas as pd

    make_folder(output)
    tell: Progress = progress or (lambda *_: None)
    n = len(samples)
    structures = [structure for structure in samples.structures if structure is not None]
    rows = pd.DataFrame({"id": [i for i, s in zip(samples.ids, samples.structures, strict=True) if s is not None]})
    rows["formula"] = [structure.composition.reduced_formula for structure in structures]
    tell("validity", 0, 3, {})
    rows["structure_valid"] = [reason is None for reason in LENIENT(structures)]
    rows["structure_valid_strict"] = [reason is None for reason in STRICT(structures)]
    rows["composition_valid"] = [is_charge_balanced(formula) for formula in rows["formula"]]
    rows["valid"] = rows["structure_valid"] & rows["composition_valid"]
    tell("novelty", 1, 3, {})
    rows["verdict"] = _verdicts(structures, [s for s in reference.structures if s is not None])
    rows["unique"] = rows["verdict"] != DUPLICATE
    rows["new"] = rows["verdict"] == NEW
    if judge is not None:
        tell("energies", 2, 3, {})
        rows["e_above_hull"] = judge.screen.judge(structures)[0]
        rows["stable"] = rows["e_above_hull"] <= STABLE
    known = [structure for structure in reference.structures if structure is not None]
    results = {"samples": n, "readable": len(structures), **_shares(rows, n), **distances(structures, known)}
    record = {"results": results, "protocol": _protocol(judge), "reference": len(known), "made_with": provenance()}
    write_text(output / "record.json", json.dumps(record, indent=1) + "\n")
    write_text(output / "crystals.csv", rows.to_csv(index=False, lineterminator="\n"))
    draw(structures, known, rows.get("e_above_hull"), output / "distributions.png")
    tell("novelty", 3, 3, {})
    return record


def _verdicts(structures: Sequence[Structure], known: Sequence[Structure]) -> list[str]:
    """new, known or duplicate (of an earlier sample)."""
    against = NoveltyIndex()
    against.add(known, [f"reference {row}" for row in range(len(known))])
    batch = NoveltyIndex().judge(structures, [str(row) for row in range(len(structures))])
    judged = [against.judge([structure], [str(row)])[0].kind for row, structure in enumerate(structures)]
    return [
        DUPLICATE if own.kind == DUPLICATE else ("known" if kind == DUPLICATE else kind)
        for own, kind in zip(batch, judged, strict=True)
    ]


def _shares(rows: Any, n: int) -> dict[str, Any]:
    """Share of all samples, with Wilson intervals."""
    flags = {name: rows[name] for name in ("structure_valid", "structure_valid_strict", "composition_valid", "valid")}
    flags |= {"unique": rows["unique"], "new_and_unique": rows["new"]}
    if "stable" in rows:
        flags["stable"] = rows["stable"]
        flags["stable_unique_new_valid"] = rows["stable"] & rows["new"] & rows["valid"]
    shares = {}
    for name, flag in flags.items():
        share = wilson(int(flag.sum()), n)
        shares[name] = {"share": share.value, "low": share.low, "high": share.high, "count": int(flag.sum())}
    return shares


def distances(structures: Sequence[Structure], known: Sequence[Structure]) -> dict[str, float]:
    """Wasserstein: density (g/cm^3) and number of elements; total variation: elements and space groups."""
    from scipy.stats import wasserstein_distance

    parts = (_density, _n_elements, _symbols, _group)
    density, elements, symbols, groups = (_pair(of, structures, known) for of in parts)
    return {
        "density_wasserstein": float(wasserstein_distance(*density)),
        "n_elements_wasserstein": float(wasserstein_distance(*elements)),
        "element_total_variation": total_variation(*symbols),
        "space_group_total_variation": total_variation(*groups),
    }


def total_variation(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Half the sum of the differences of two frequency tables: 0 alike, 1 disjoint."""
    a, b = Counter(one), Counter(other)
    return 0.5 * sum(abs(a[key] / max(1, len(one)) - b[key] / max(1, len(other))) for key in {*a, *b})


def _pair(of: Any, structures: Sequence[Structure], known: Sequence[Structure]) -> tuple[list[Any], list[Any]]:
    return tuple([value for structure in group for value in of(structure)] for group in (structures, known))  # type: ignore[return-value]


def _density(structure: Structure) -> list[float]:
    return [float(structure.density)]


def _n_elements(structure: Structure) -> list[int]:
    return [len(structure.composition)]


def _symbols(structure: Structure) -> list[str]:
    return [str(element) for element in structure.composition]


def _group(structure: Structure) -> list[int]:
    from loop.fingerprint import symmetry

    return [symmetry(structure, 0.1)[0]]


def _protocol(judge: Builder | None) -> dict[str, Any]:
    energies = None if judge is None else f"unrelaxed single points, {judge.measuring.potential.energy_type}"
    return {
        "structure_valid": "no two atoms closer than 0.5 A; strict: nor than 0.7 of the sum of covalent radii",
        "composition_valid": "SMACT with the oxidation states of 2014, Pauling test, alloys allowed",
        "unique": "no copy of an earlier sample",
        "new": "no copy in the reference given",
        "matcher": NoveltyIndex(None, Tolerances()).protocol(),
        "e_above_hull": energies,
        "stable": f"e_above_hull <= {STABLE} eV/atom",
        "shares": "of all samples, unreadable rows included; 95 % Wilson intervals",
    }


def draw(structures: Sequence[Structure], known: Sequence[Structure], above: Any, path: Path) -> None:
    """Histograms of density, number of elements and energy above the hull."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.use("Agg")
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, of, label in ((axes[0], _density, "density (g/cm$^3$)"), (axes[1], _n_elements, "elements")):
        values = _pair(of, structures, known)
        low, high = min(min(part, default=0) for part in values), max(max(part, default=1) for part in values)
        bins = np.linspace(low, high, 40) if of is _density else np.arange(low, high + 2) - 0.5
        for part, name in zip(values, ("samples", "reference"), strict=True):
            axis.hist(part, bins=bins, density=True, histtype="stepfilled", alpha=0.5, label=name)
        axis.set_xlabel(label)
    axes[0].legend()
    if above is not None:
        axes[2].hist(np.clip(above.dropna(), -0.5, 2), bins=40)
        axes[2].axvline(STABLE, color="black", lw=1)
        axes[2].set_xlabel("e above hull, unrelaxed (eV/atom)")
    else:
        axes[2].set_axis_off()
    figure.savefig(path, dpi=130)
