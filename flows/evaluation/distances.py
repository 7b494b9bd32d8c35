"""How far the distribution of generated crystals is from that of known ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.contracts import Progress

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from oracles.references.table import References

COVERED = 0.9  # share of one half of the reference that the thresholds let the other half cover
LARGEST = 2000  # crystals of each side in coverage and precision
PROTOCOL = (
    "Wasserstein distances of density (g/cm3), number of elements and formation energy (eV/atom) as in CDVAE; total "
    "variation of element and space-group frequencies. Coverage (recall) is the share of reference crystals that have "
    "a sample within a threshold in both composition and structure, precision the share of samples that have a "
    f"reference crystal there (CDVAE's definitions, at most {LARGEST} crystals a side, valid samples or not). "
    "Fingerprints are ours: scale-free neighbour counts, and Magpie-like statistics of elemental properties, both "
    "standardised by the reference; thresholds are those at which one half of the reference covers "
    f"{COVERED:.0%} of the other, so that is what the reference itself reaches. CDVAE's own CrystalNN fingerprints are "
    "in matminer, which does not install beside pandas 3: these numbers are not comparable to published coverages."
)


def measure(structures: Sequence[Structure], known: Sequence[Structure], tell: Progress) -> dict[str, float]:
    """All distances that need no potential."""
    parts = (density, n_elements, symbols, space_groups)
    densities, elements, species, groups = (_pair(of, structures, known) for of in parts)
    return {
        "density_wasserstein": wasserstein(*densities),
        "n_elements_wasserstein": wasserstein(*elements),
        "element_total_variation": total_variation(*species),
        "space_group_total_variation": total_variation(*groups),
        **coverage(structures, known, tell),
    }


def wasserstein(one: Sequence[float], other: Sequence[float]) -> float:
    """First Wasserstein distance of two samples; NaN where one is empty."""
    from scipy.stats import wasserstein_distance

    one, other = ([value for value in values if np.isfinite(value)] for values in (one, other))
    return float(wasserstein_distance(one, other)) if one and other else float("nan")


def total_variation(one: Sequence[Any], other: Sequence[Any]) -> float:
    """Half the sum of the differences of two frequency tables: 0 alike, 1 disjoint."""
    a, b = Counter(one), Counter(other)
    return 0.5 * sum(abs(a[key] / max(1, len(one)) - b[key] / max(1, len(other))) for key in {*a, *b})


def coverage(structures: Sequence[Structure], known: Sequence[Structure], tell: Progress) -> dict[str, float]:
    """Coverage and precision, and the mean distances to the nearest crystal of the other side."""
    if not structures or len(known) < 4:
        return {}
    samples, reference = features(structures[:LARGEST], tell, "samples"), features(known[:LARGEST], tell, "reference")
    scales = [(part.mean(0), part.std(0) + 1e-9) for part in reference]
    ours, theirs = (
        [(part - mean) / std for part, (mean, std) in zip(side, scales, strict=True)] for side in (samples, reference)
    )
    order = np.random.default_rng(0).permutation(len(theirs[0]))
    one, other = (np.sort(half) for half in np.array_split(order, 2))
    limits = np.array([_nearest(part[one], part[other]) for part in theirs])  # (2, n)
    factor = _threshold_factor([part[one] for part in theirs], [part[other] for part in theirs], limits.mean(1))
    limit = factor * limits.mean(1)
    return {
        "coverage": float(_covered(theirs, ours, limit).mean()),
        "precision": float(_covered(ours, theirs, limit).mean()),
        "structure_mean_nearest": float(_nearest(theirs[0], ours[0]).mean()),
        "composition_mean_nearest": float(_nearest(theirs[1], ours[1]).mean()),
        "structure_threshold": float(limit[0]),
        "composition_threshold": float(limit[1]),
    }


def features(structures: Sequence[Structure], tell: Progress, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Structural (n, 24) and compositional fingerprints."""
    from loop.fingerprint import geometry
    from surrogates.elements import MAX_Z, composition_statistics

    found = []
    for done, structure in enumerate(structures):
        found.append(geometry(structure))
        if done % 64 == 0:
            tell(f"fingerprints, {name}", done, len(structures), {})
    numbers = [np.minimum(structure.atomic_numbers, MAX_Z) for structure in structures]
    counts = np.stack([np.bincount(row, minlength=MAX_Z + 1) for row in numbers]).astype(float)
    return np.stack(found), np.nan_to_num(composition_statistics(counts))


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Euclidean distances (n, m)."""
    squared = (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T
    return np.sqrt(np.maximum(squared, 0.0))


def _nearest(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distance (n,) from each of one to the nearest of the other."""
    return _distances(one, other).min(1)


def _covered(one: Sequence[np.ndarray], other: Sequence[np.ndarray], limit: np.ndarray) -> np.ndarray:
    """Which of one have one of the other within both limits, bool (n,)."""
    near = [_distances(a, b) <= t for a, b, t in zip(one, other, limit, strict=True)]
    return (near[0] & near[1]).any(1)


def _threshold_factor(one: Sequence[np.ndarray], other: Sequence[np.ndarray], unit: np.ndarray) -> float:
    """By how much the mean nearest distances must grow for `COVERED` of one half to be covered by the other."""
    scaled = [_distances(a, b) / max(u, 1e-9) for a, b, u in zip(one, other, unit, strict=True)]
    return float(np.quantile(np.maximum(*scaled).min(1), COVERED))


def formation_energies(structures: Sequence[Structure], energies: np.ndarray, references: References) -> list[float]:
    """Energies (eV/atom) less those of the elements' reference phases."""
    elements = references.elements()
    found = []
    for structure, energy in zip(structures, energies.tolist(), strict=True):
        shares = structure.composition.fractional_composition.get_el_amt_dict()
        found.append(energy - sum(share * elements.get(symbol, np.nan) for symbol, share in shares.items()))
    return found


def _pair(of: Any, structures: Sequence[Structure], known: Sequence[Structure]) -> tuple[list[Any], list[Any]]:
    return tuple([value for structure in group for value in of(structure)] for group in (structures, known))  # type: ignore[return-value]


def density(structure: Structure) -> list[float]:
    """Mass density, g/cm^3."""
    return [float(structure.density)]


def n_elements(structure: Structure) -> list[int]:
    """Number of elements."""
    return [len(structure.composition)]


def symbols(structure: Structure) -> list[str]:
    """Its elements."""
    return [str(element) for element in structure.composition]


def space_groups(structure: Structure) -> list[int]:
    """Its space group."""
    return [space_group(structure)]


def space_group(structure: Structure) -> int:
    """Space group at 0.1 A, as CrystalFormer's and CDVAE's data were labelled."""
    from loop.fingerprint import symmetry

    return symmetry(structure, 0.1)[0]
