"""What counts as stable, valid, new: the numbers, each with its reason, and the one count of S.U.N. crystals.

Stability is judged by the energy above the hull of known phases. A crystal far *below* that hull counts as stable
nowhere: by experience it is an error of the potential, not a discovery, so it is flagged `SUSPECT` and shown apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# eV/atom. On the hull of the reference phases or below it: the S of S.U.N. as FlowMM counts it (Miller et al., ICML
# 2024, arXiv 2406.04713). MatterGen (Nature 639, 624 (2025)) says S.U.N. of what is M.S.U.N. here.
ON_HULL = 0.0
# eV/atom. Of the metastable phases that experiment knows half lie within 15 meV/atom and 90 % within 67 meV/atom
# (Sun et al., Sci. Adv. 2, e1600225 (2016), doi 10.1126/sciadv.1600225); the field rounds up to 0.1: the M of M.S.U.N.
METASTABLE = 0.1
# eV/atom. So far below the hull of all other phases lie 3 of 100 known compounds that lie below it at all (97 of 3,116,
# where every pair of elements has a compound; shipped table, without nitrides and hydrides): a potential's error is
# likelier than such a find.
IMPLAUSIBLE = -0.2
# eV/atom. So far below, an oracle refuses the label altogether: a surrogate must not learn from it.
REFUSED = -0.5
# eV/atom. Where verdicts change: `within` is the same of two distances that no level lies between.
LEVELS = (IMPLAUSIBLE, ON_HULL, METASTABLE)
SUSPECT = "far below the hull"  # reason of the flag

DEFINITIONS = {
    "structure_valid": "no two atoms closer than 0.5 A, and 0.1 A^3 per atom or more (CDVAE, Xie et al., ICLR 2022)",
    "composition_valid": "SMACT with the oxidation states of 2014, Pauling test, alloys allowed",
    "valid": "structure_valid and composition_valid",
    "unique": "the first of its kind among the samples; of several copies of a known crystal the first is unique",
    "new": "unique, and no copy of a known crystal",
    "stable": f"at most {ON_HULL:g} eV/atom above the hull; neither where the hull is sparse, nor more than "
    f"{-IMPLAUSIBLE:g} eV/atom below it, which is an error of the potential more often than a find",
    "metastable": f"the same, at most {METASTABLE:g} eV/atom above the hull",
    "sun": "stable, unique, new and valid (S.U.N.)",
    "msun": "metastable, unique, new and valid (M.S.U.N.)",
}


def is_suspect(above: float) -> bool:
    """Whether an energy above the hull (eV/atom) lies implausibly far below it."""
    return above < IMPLAUSIBLE


def within(above: np.ndarray, limit: float, sparse: np.ndarray | None = None) -> np.ndarray:
    """Whether energies above the hull mean stable at a limit.

    Args:
        above: eV/atom, shape (n,), NaN where there is none.
        limit: eV/atom, `ON_HULL` or `METASTABLE`.
        sparse: whether too few phases are known to judge by, shape (n,).

    Returns:
        Shape (n,), bool.
    """
    above = np.asarray(above, dtype=float)
    trusted = above >= IMPLAUSIBLE
    if sparse is not None:
        trusted &= ~np.asarray(sparse, dtype=bool)
    return trusted & (above <= limit)


def sun_flags(
    above: np.ndarray, *, valid: np.ndarray, unique: np.ndarray, new: np.ndarray, sparse: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Per sample whether it is stable, metastable, S.U.N. and M.S.U.N. (see `DEFINITIONS`).

    Args:
        above: energies above the hull, eV/atom, shape (n,), NaN where there is none.
        valid: shape (n,), bool, as are the next three.
        unique: no copy of an earlier sample.
        new: no copy of a known crystal.
        sparse: too few phases are known to judge by.

    Returns:
        ``stable``, ``metastable``, ``sun``, ``msun``, each of shape (n,), bool.
    """
    found: dict[str, Any] = {
        "stable": within(above, ON_HULL, sparse),
        "metastable": within(above, METASTABLE, sparse),
    }
    fresh = np.asarray(valid, dtype=bool) & np.asarray(unique, dtype=bool) & np.asarray(new, dtype=bool)
    return found | {"sun": found["stable"] & fresh, "msun": found["metastable"] & fresh}
