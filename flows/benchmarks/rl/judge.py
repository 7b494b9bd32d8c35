"""Judging fresh samples of a policy: valid, unique, new, and stable by the potential of the reward.

What each word means is said once, in `loop.stability`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from flows.evaluation.distances import space_group
from loop.reward import PropertyReward
from loop.stability import DEFINITIONS, IMPLAUSIBLE, METASTABLE, sun_flags
from loop.validity import RADIOACTIVE, is_charge_balanced, validity_flags
from loop.values import DUPLICATE, KNOWN, NEW

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from flows.build import Builder
    from loop.values import Candidate

PROTOCOL = (
    "Shares of all samples, as drawn, unrelaxed; a sample that is no crystal counts as invalid. "
    + ". ".join(f"{name}: {words}" for name, words in DEFINITIONS.items())
    + ". unique: over structure-valid samples, by StructureMatcher where fingerprints leave doubt. new: not in the "
    "shipped fingerprints of Materials Project crystals. accepted: passes all default rules of the project, which turn "
    "away noble gases and radioactive elements, odd cells and short bonds, too; accepted_msun: accepted and M.S.U.N."
)


@dataclass(frozen=True)
class Samples:
    """n samples of a policy and one row of findings each."""

    structures: list[Structure | None]
    rows: pd.DataFrame


def judge(candidates: Sequence[Candidate | None], builder: Builder) -> Samples:
    """What the cheap rules, the novelty index and the default potential say of samples; None is no crystal."""
    structures = [None if candidate is None else candidate.structure for candidate in candidates]
    at = [index for index, structure in enumerate(structures) if structure is not None]
    present = [structure for structure in structures if structure is not None]
    n = len(structures)
    names = (
        "structure_valid",
        "composition_valid",
        "valid",
        "accepted",
        "unique",
        "new",
        "known",
        "replay",
        "sparse_hull",
    )
    flags = {name: np.zeros(n, dtype=bool) for name in names}
    for name, values in validity_flags(present).items():
        flags[name][at] = values
    flags["accepted"][at] = [reason is None for reason in builder.config.validity(present)]
    sound = np.flatnonzero(flags["structure_valid"])
    crystals = [
        structure for structure, good in zip(structures, flags["structure_valid"], strict=True) if structure and good
    ]
    index = builder.novelty.emptied()
    verdicts = index.judge(crystals, [str(i) for i in sound])
    flags["unique"][sound] = [verdict.kind != DUPLICATE for verdict in verdicts]
    flags["new"][sound] = [verdict.kind == NEW for verdict in verdicts]
    flags["known"][sound] = [verdict.kind == KNOWN for verdict in verdicts]
    flags["replay"][sound] = [verdict.in_training for verdict in verdicts]
    above = np.full(n, np.nan)
    above[sound], flags["sparse_hull"][sound] = builder.screen.judge(crystals)
    groups = [_group(candidate) for candidate in candidates]
    columns = {"formula": [_formula(structure) for structure in structures], "space_group": groups}
    columns |= {"elements": [_elements(structure) for structure in structures]}
    return Samples(structures, pd.DataFrame({**columns, **flags, "e_above_hull": above}))


def _group(candidate: Candidate | None) -> int:
    """The space group that was asked for, else that of the crystal (0.1 A); 0 where there is none."""
    if candidate is None:
        return 0
    return candidate.origin.space_group or space_group(candidate.structure)


def _formula(structure: Structure | None) -> str:
    return "" if structure is None else structure.composition.reduced_formula


def _elements(structure: Structure | None) -> str:
    return "" if structure is None else " ".join(sorted(element.symbol for element in structure.composition))


def upgraded(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows as they are judged now; in earlier ones `valid` meant the project's default rules, now `accepted`."""
    if "accepted" in rows:
        return rows
    balanced = [bool(formula) and is_charge_balanced(formula) for formula in rows["formula"]]
    valid = rows["structure_valid"].to_numpy(dtype=bool) & np.array(balanced, dtype=bool)
    return rows.assign(accepted=rows["valid"], composition_valid=balanced, valid=valid, sparse_hull=False)


def judged(rows: pd.DataFrame, column: str = "e_above_hull") -> dict[str, np.ndarray]:
    """Which samples are stable, metastable, S.U.N. and M.S.U.N. by one column of distances; of sound ones only."""
    sound = rows["structure_valid"].to_numpy(dtype=bool)
    above = np.where(sound, rows[column].to_numpy(dtype=float), np.nan)
    flags = {name: rows[name].to_numpy(dtype=bool) for name in ("unique", "new")}
    valid = sound & rows["composition_valid"].to_numpy(dtype=bool)  # relaxation changes the structure alone
    return sun_flags(above, valid=valid, sparse=rows["sparse_hull"].to_numpy(dtype=bool), **flags)


def counts(rows: pd.DataFrame, column: str = "e_above_hull") -> dict[str, int]:
    """How many samples are what, with stability by one column of distances."""
    names = ("structure_valid", "composition_valid", "accepted", "unique", "known", "replay")
    flags = {name: rows[name].to_numpy(dtype=bool) for name in names}
    flags["valid"] = flags["structure_valid"] & flags["composition_valid"]
    flags |= judged(rows, column)
    flags["accepted_msun"] = flags["msun"] & flags["accepted"]
    return {"samples": len(rows)} | {name: int(flag.sum()) for name, flag in flags.items()}


def element_shares(rows: pd.DataFrame) -> pd.Series:
    """Share of the samples that hold each element."""
    held = rows["elements"].str.split().explode().dropna()
    return held.value_counts() / max(len(rows), 1)


def drift(rows: pd.DataFrame, base: pd.DataFrame, smallest: int = 5) -> dict[str, Any]:
    """Where the samples went: elements and space groups against those of the base.

    The ratio of an element is judged with `smallest` samples added to both sides, since rare ones are counted badly.
    """
    ours, theirs = (element_shares(frame) * len(frame) for frame in (rows, base))
    every = ours.index.union(theirs.index)
    ours, theirs = ours.reindex(every, fill_value=0), theirs.reindex(every, fill_value=0)
    ratios = ((ours + smallest) / (len(rows) + smallest)) / ((theirs + smallest) / (len(base) + smallest))
    groups = rows["space_group"].value_counts(normalize=True)
    kinds = rows["elements"].str.split()
    from pymatgen.core import Element

    hot = {Element.from_Z(z).symbol for z in RADIOACTIVE}
    f_block = {Element.from_Z(z).symbol for z in (*range(57, 72), *range(89, 104))}
    return {
        "element_ratio": float(ratios.max()),
        "element": str(ratios.idxmax()),
        "f_block": float(np.mean([bool(f_block & set(each)) for each in kinds])),
        "radioactive": float(np.mean([bool(hot & set(each)) for each in kinds])),
        "single_element": float(np.mean([len(each) == 1 for each in kinds])),
        "formulas": int(rows["formula"].nunique()),
        "space_groups": len(groups),
        "largest_group_share": float(groups.max()),
        "group_entropy": float(-(groups * np.log(groups)).sum()),
    }


class Tally:
    """A reward that counts as it goes what it has found: distinct metastable, new crystals, and evaluations.

    Distinct by formula and space group asked for, which is cheap and, for polymorphs of one group, too strict.
    """

    def __init__(self, reward: PropertyReward) -> None:
        self.reward = reward
        self.evaluations = 0
        self.found: set[str] = set()

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each guard was triggered."""
        return self.reward.counts

    def __call__(self, candidates: Sequence[Candidate | None]) -> tuple[np.ndarray, list[dict[str, float]]]:
        """As the reward."""
        rewards, components = self.reward(candidates)
        self.evaluations += len(candidates)
        for candidate, row in zip(candidates, components, strict=True):
            above = row.get("e_above_hull", np.nan)
            if candidate is not None and IMPLAUSIBLE <= above <= METASTABLE and not row.get("known"):
                self.found.add(f"{candidate.formula} {candidate.origin.space_group}")
        return rewards, components
