"""Whether samples keep the conditions that were asked for: each kind, counted on the crystals themselves."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flows.benchmarks.harness import write_benchmark
from loop.contracts import Progress
from loop.io.files import make_folder, write_text

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from generator.sample import Sample

PROTOCOL = (
    "Crystals of each condition are drawn with the default guard and temperature 1, and expanded to structures; what "
    "was asked for is then counted on those, not taken from the sampler: elements, formula, atoms of a primitive cell "
    "(centring of the group's symbol); space group and Wyckoff sites are those of the tokens. `space_group_found` "
    "counts crystals in which moyo finds the very group at 0.01 A; the others have more symmetry than they were drawn "
    "with. `guard_kept` counts crystals without atoms closer than 0.5 A, measured by pymatgen, and `valid` those of "
    "them that pass SMACT."
)


CENTRING = {"P": 1, "A": 2, "C": 2, "I": 2, "R": 3, "F": 4}  # primitive cells in the conventional one


@dataclass(frozen=True)
class Case:
    """A condition, and whether a crystal keeps it."""

    settings: dict[str, Any]
    keeps: Callable[[Crystal], bool]


@dataclass(frozen=True)
class Crystal:
    """What is counted of a crystal."""

    group: int
    letters: tuple[str, ...]  # of its sites
    site_elements: tuple[str, ...]
    amounts: dict[str, float] = field(hash=False)  # atoms of each element in the conventional cell
    primitive_atoms: float

    @property
    def elements(self) -> set[str]:
        """Symbols."""
        return set(self.amounts)


def _formula(text: str) -> Callable[[Crystal], bool]:
    from pymatgen.core import Composition

    wanted = Composition(text).reduced_formula
    return lambda crystal: Composition(crystal.amounts).reduced_formula == wanted


CASES: dict[str, Case] = {
    "none": Case({}, lambda c: bool(c.elements)),
    "space_group": Case({"space_groups": (225,)}, lambda c: c.group == 225),
    "space_groups": Case({"space_groups": (62, 139, 194)}, lambda c: c.group in (62, 139, 194)),
    "elements": Case({"elements": ("Li", "Na", "O", "F", "Cl")}, lambda c: c.elements <= {"Li", "Na", "O", "F", "Cl"}),
    "exclude": Case({"exclude": ("O", "F")}, lambda c: not c.elements & {"O", "F"}),
    "require": Case({"require": ("Li", "O")}, lambda c: {"Li", "O"} <= c.elements),
    "chemical_system": Case({"chemical_system": "Sr-Ti-O"}, lambda c: c.elements == {"Sr", "Ti", "O"}),
    "max_elements": Case({"max_elements": 2}, lambda c: len(c.elements) <= 2),
    "formula": Case({"formula": "SrTiO3"}, _formula("SrTiO3")),
    "formula_of_four": Case({"formula": "LiFePO4"}, _formula("LiFePO4")),
    "n_atoms": Case({"n_atoms": 10}, lambda c: c.primitive_atoms == 10),
    "max_atoms": Case({"max_atoms": 8}, lambda c: c.primitive_atoms <= 8),
    "sites": Case({"sites": ("a", "c")}, lambda c: {"a", "c"} <= set(c.letters)),
    "site_with_element": Case(
        {"sites": ("a:Ti",)}, lambda c: ("a", "Ti") in zip(c.letters, c.site_elements, strict=True)
    ),
    "several": Case(
        {"space_groups": (225, 221, 227), "require": ("O",), "max_atoms": 14, "exclude": ("H",)},
        lambda c: (
            c.group in (225, 221, 227) and "O" in c.elements and "H" not in c.elements and c.primitive_atoms <= 14
        ),
    ),
    "bias": Case({"bias": {"O": 2.0}}, lambda c: bool(c.elements)),  # soft: its effect is the share with oxygen
}


def run(
    output: Path,
    *,
    n: int = 1000,
    seed: int = 0,
    checkpoint: Path | None = None,
    cases: tuple[str, ...] = tuple(CASES),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Draw n crystals under each condition, count, and write ``record.json`` and ``table.csv``.

    Raises:
        CheckpointError: there is no such checkpoint.
    """
    import pandas as pd

    from generator.checkpoint import load_checkpoint

    make_folder(output)
    loaded = load_checkpoint(checkpoint)
    results: dict[str, Any] = {}
    for done, name in enumerate(cases):
        if progress is not None:
            progress("conditions", done, len(cases), {})
        part = output / "parts" / f"{loaded.checksum[:8]}-{n}-{seed}-{name}.json"  # a run that was cut off resumes
        if not part.exists():
            write_text(part, json.dumps(_case(loaded.model, CASES[name], n, seed)))
        results[name] = json.loads(part.read_text())
    record = {
        "benchmark": "conditions",
        "protocol": PROTOCOL,
        "settings": {"n": n, "seed": seed},
        "checkpoint": loaded.checksum,
        "results": results,
        "all_comply": all(row["complying"] == row["crystals"] == n for row in results.values()),
    }
    table = pd.DataFrame([{"condition": name} | row for name, row in results.items()]).drop(columns="settings")
    write_text(output / "table.csv", table.to_csv(index=False, float_format="%.4g", lineterminator="\n"))
    write_benchmark(output, record)
    shutil.rmtree(output / "parts")
    return record


def _case(model: Any, case: Case, n: int, seed: int) -> dict[str, Any]:
    """Counts of one condition."""
    from generator.constraints.conditions import Sampling
    from generator.constraints.guard import Guard
    from generator.draw import draw
    from generator.representation.tokens import detokenize_all
    from loop.fingerprint import symmetry
    from loop.validity import STRUCTURE, is_charge_balanced

    began = time.process_time()
    drawn = draw(model, n, np.random.default_rng(seed), Sampling(**case.settings), guard=Guard())
    seconds = time.process_time() - began
    structures = [structure for structure in detokenize_all(drawn.sample.batch) if structure is not None]
    crystals = [describe(drawn.sample, i, structure) for i, structure in enumerate(structures)]
    apart = [STRUCTURE.reason(structure) is None for structure in structures]
    balanced = [is_charge_balanced(structure.composition.reduced_formula) for structure in structures]
    groups = [symmetry(structure, 0.01)[0] for structure in structures]
    return {
        "settings": case.settings,
        "crystals": len(structures),
        "complying": sum(case.keeps(crystal) for crystal in crystals),
        "guard_kept": sum(apart),
        "acceptance": drawn.acceptance,
        "valid": sum(a and b for a, b in zip(apart, balanced, strict=True)),
        "unique_formulas": len({structure.composition.reduced_formula for structure in structures}),
        "space_group_found": sum(c.group == g for c, g in zip(crystals, groups, strict=True)),
        "commonest_element": Counter(e for c in crystals for e in c.elements).most_common(1)[0],
        "share_with_oxygen": sum("O" in c.elements for c in crystals) / max(1, len(crystals)),
        "cpu_seconds": seconds,
    }


def describe(sample: Sample, i: int, structure: Structure) -> Crystal:
    """What is counted, from the expanded structure where it can be, from the tokens where it must be."""
    from ase.data import chemical_symbols
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    from generator.representation.wyckoff import LETTERS

    batch = sample.batch
    sites = np.flatnonzero(batch.W[i])
    group = int(batch.G[i])
    return Crystal(
        group=group,
        letters=tuple(LETTERS[w] for w in batch.W[i, sites]),
        site_elements=tuple(chemical_symbols[a] for a in batch.A[i, sites]),
        amounts=dict(structure.composition.get_el_amt_dict()),
        primitive_atoms=len(structure) / CENTRING[sg_symbol_from_int_number(group)[0]],
    )
