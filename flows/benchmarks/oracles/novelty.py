"""How often the novelty verdict errs: distorted known crystals that look new, and polymorphs that look known.

`discovery-loop benchmark novelty`; the CSV holds the crystals of the shipped table.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from loop.fingerprint import fingerprint
from loop.io.cif import read_cif
from loop.io.crystals import read_frame
from loop.io.files import sha256
from loop.known import KnownCrystals
from loop.metrics import wilson
from loop.novelty import NoveltyIndex
from loop.values import KNOWN, NEW

DISTORTIONS = ((0.0, 0.0), (0.01, 0.01), (0.02, 0.02), (0.05, 0.0), (0.05, 0.03))  # displacement (A), strain


def distorted(structure: Structure, displacement: float, strain: float, rng: np.random.Generator) -> Structure:
    """Every atom moved by `displacement` (A) in a random direction, the cell strained by at most `strain` along any."""
    tensor = rng.uniform(-1, 1, (3, 3))
    tensor = tensor + tensor.T
    tensor *= strain / np.abs(np.linalg.eigvalsh(tensor)).max()
    cell = structure.lattice.matrix @ (np.eye(3) + tensor)
    steps = rng.normal(size=(len(structure), 3))
    steps *= displacement / np.linalg.norm(steps, axis=1)[:, None]
    coords = structure.frac_coords @ cell + steps
    return Structure(Lattice(cell), structure.species, coords, coords_are_cartesian=True)


def missed(rows: list[tuple[str, Structure]], known: KnownCrystals, seed: int) -> list[dict[str, Any]]:
    """Share of distorted known crystals that are not recognised, for each distortion."""
    index, found = NoveltyIndex(known), []
    for displacement, strain in DISTORTIONS:
        rng = np.random.default_rng(seed)
        forms = [distorted(structure, displacement, strain, rng) for _, structure in rows]
        verdicts = [index.judge([form], ["x"])[0] for form in forms]
        misses = sum(verdict.kind != KNOWN for verdict in verdicts)
        named = sum(verdict.match == name for verdict, (name, _) in zip(verdicts, rows, strict=True))
        share = wilson(misses, len(rows))
        found.append(
            {
                "displacement_angstrom": displacement,
                "strain": strain,
                "crystals": len(rows),
                "missed": misses,
                "missed_share": share.value,
                "missed_share_95": [share.low, share.high],
                "named_itself": named,  # the others were named after another entry of the same formula
            }
        )
    return found


def pairs(frame: Any, rng: np.random.Generator) -> Iterator[tuple[Structure, Structure, bool]]:
    """Two entries of one formula, one pair per formula, and whether their stated space groups agree."""
    several = frame[frame.duplicated("pretty_formula", keep=False)]
    groups = [group for _, group in several.groupby("pretty_formula")]
    for place in rng.permutation(len(groups)):
        group = groups[place]
        one, other = (group.iloc[row] for row in rng.choice(len(group), 2, replace=False))
        yield (
            read_cif(one.cif).structure,
            read_cif(other.cif).structure,
            one["spacegroup.number"] == other["spacegroup.number"],
        )


def confused(frame: Any, n: int, seed: int) -> dict[str, Any]:
    """How the verdict and pymatgen's StructureMatcher (its default tolerances) agree on pairs of one formula."""
    rng, matcher = np.random.default_rng(seed), StructureMatcher()
    counts = {
        f"{group}_{judged}_{ruled}": 0
        for group in ("same_space_group", "other_space_group")
        for judged in ("new", "known")
        for ruled in ("matcher_different", "matcher_same")
    }
    left = {True: n, False: n}
    for one, other, same_group in pairs(frame, rng):
        if not left[same_group]:
            if not any(left.values()):
                break
            continue
        left[same_group] -= 1
        index = NoveltyIndex(KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(one)]))
        judged = index.judge([other], ["x"])[0].kind
        ruled = "matcher_same" if matcher.fit(one, other) else "matcher_different"
        group = "same_space_group" if same_group else "other_space_group"
        counts[f"{group}_{NEW if judged == NEW else KNOWN}_{ruled}"] += 1
    return counts


def measure(csv: Path, crystals: int, n_pairs: int, seed: int) -> dict[str, Any]:
    """Both, and how fast."""
    frame, ids = read_frame(csv)
    known = KnownCrystals.shipped()
    chosen = np.random.default_rng(seed).choice(len(frame), crystals, replace=False)
    rows = [(ids[row], read_cif(frame["cif"].iloc[row]).structure) for row in chosen]
    start = time.process_time()
    NoveltyIndex(known).judge([structure for _, structure in rows], [name for name, _ in rows], quick=True)
    milliseconds = (time.process_time() - start) / crystals * 1000
    return {
        "protocol": NoveltyIndex(known).protocol() | {"seed": seed, "crystals_of": csv.name, "csv_sha256": sha256(csv)},
        "benchmark": "novelty",
        "settings": {"crystals": crystals, "pairs": n_pairs, "seed": seed},
        "results": {
            "distorted_known_crystals": missed(rows, known, seed),
            "pairs_of_one_formula": confused(frame, n_pairs, seed),
            "quick_verdict_milliseconds": round(milliseconds, 2),
        },
    }
