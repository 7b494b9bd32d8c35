"""A second opinion on stability: another potential than the reward's, with a hull of its own.

The hull holds known phases evaluated with that very potential, as they stand in their published cells, and only those
that the samples at hand need: first the phases on the default potential's hull at each composition, which bound the
distance from below; then, for samples that may be stable, all phases of their chemical systems that are near it.
Elemental references are fitted to published formation energies, since uncorrected functionals get elements and their
compounds wrong against each other (Stevanovic et al., Phys. Rev. B 85, 115104 (2012)).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from loop.errors import ConfigError, InputError
from loop.hull import Hull, HullEntry
from loop.io.cif import read_cif
from loop.io.files import write_text
from loop.values import OK, EnergyType, structure_id

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from oracles.references.table import References

WINDOW = 0.01  # eV/atom above the default potential's hull within which a known phase may be on the judge's
MARGIN = 0.3  # eV/atom by which fitted references may move a distance: samples further off are not stable
RIDGE = 1.0  # weight of the elements' own energies in the fit of references, in formation energies
CHUNK = 200  # crystals between two writes of the cache


@dataclass(frozen=True)
class JudgeConfig:
    """The independent judge.

    Attributes:
        model: folder of a matgl potential; none: there is no independent judge.
        python: interpreter that has matgl 2.0.4; none: this one.
        data: CSVs with columns material_id, cif, formation_energy_per_atom: the known phases.
    """

    model: Path | None = None
    python: Path | None = None
    data: tuple[Path, ...] = ()


@dataclass
class Energies:
    """Energies (eV/atom) of crystals by a script in a process of its own, cached in a file by content."""

    config: JudgeConfig
    cache: Path
    known: dict[str, float | None] = field(default_factory=dict)
    script: str = "matgl_energies.py"  # beside this file
    chunk: int = CHUNK  # crystals for one process

    def __post_init__(self) -> None:
        """Take the cache up."""
        if self.cache.exists():
            self.known = json.loads(self.cache.read_text(encoding="utf-8"))

    def __call__(self, structures: Sequence[Structure], report: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Shape (n,), NaN where there is none.

        Raises:
            ConfigError: the judge cannot be run.
        """
        from oracles.symmetry import primitive

        ids = [structure_id(structure) for structure in structures]
        todo = [(i, s) for i, s in dict(zip(ids, structures, strict=True)).items() if i not in self.known]
        for start in range(0, len(todo), self.chunk):
            part = todo[start : start + self.chunk]
            found = self._run([primitive(structure, 1e-4) for _, structure in part])
            self.known |= dict(zip([i for i, _ in part], found, strict=True))
            write_text(self.cache, json.dumps(self.known))
            if report is not None:
                report(min(start + self.chunk, len(todo)), len(todo))
        values = [self.known[i] for i in ids]
        return np.array([np.nan if value is None else value for value in values], dtype=float)

    def _run(self, structures: Sequence[Structure]) -> list[float | None]:
        source, output = self.cache.with_suffix(".in"), self.cache.with_suffix(".out")
        crystals = [
            [[site.specie.Z for site in s], s.lattice.matrix.tolist(), s.frac_coords.tolist()] for s in structures
        ]
        write_text(source, json.dumps(crystals))
        script = Path(__file__).with_name(self.script)
        command = [str(self.config.python or sys.executable), str(script), str(self.config.model)]
        done = subprocess.run([*command, str(source), str(output)], capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise ConfigError(f"The independent judge cannot be run by {command[0]}: {last[0]}")
        found = json.loads(output.read_text(encoding="utf-8"))
        source.unlink()
        output.unlink()
        return found


class Phases:
    """Known phases: published crystals and formation energies by id, and the default potential's table."""

    def __init__(self, references: References, data: Sequence[Path]) -> None:
        columns = ["material_id", "cif", "formation_energy_per_atom"]
        try:
            frames = [pd.read_csv(path, usecols=columns, keep_default_na=False, na_values=[""]) for path in data]
        except (OSError, ValueError) as error:
            raise InputError(f"expected CSVs with the columns {', '.join(columns)}: {error}") from error
        frame = pd.concat(frames).drop_duplicates("material_id").set_index("material_id")
        self.cifs, self.formation = frame["cif"], frame["formation_energy_per_atom"]
        self.hull, self.energy_type = references.hull(), references.energy_type
        self._near_hull: dict[frozenset[str], set[str]] = {}
        self.systems: dict[frozenset[str], list[tuple[str, str, float]]] = {}
        from pymatgen.core import Composition

        for formula, energy, identifier in zip(references.formulas, references.energies, references.ids, strict=True):
            key = frozenset(element.symbol for element in Composition(formula))
            self.systems.setdefault(key, []).append((identifier, formula, float(energy)))

    def deciding(self, structure: Structure) -> set[str]:
        """Ids of the phases on the default hull at this composition, and of the elements."""
        result = self.hull.e_above_hull(structure.composition, 0.0, self.energy_type)
        elements = [self.systems.get(frozenset((element.symbol,)), []) for element in structure.composition]
        ids = [*result.ids.values(), *(entry[0] for entries in elements for entry in entries)]
        return {identifier for identifier in ids if identifier in self.cifs.index}

    def near(self, structure: Structure) -> set[str]:
        """Ids of the phases of this chemical system that lie within `WINDOW` of the default hull."""
        symbols = sorted({element.symbol for element in structure.composition})
        found: set[str] = set()
        for size in range(1, len(symbols) + 1):
            for subset in combinations(symbols, size):
                found |= self._near(frozenset(subset))
        return found

    def _near(self, system: frozenset[str]) -> set[str]:
        """Those of exactly these elements: looked at once."""
        if system not in self._near_hull:
            entries = [entry for entry in self.systems.get(system, []) if entry[0] in self.cifs.index]
            above = [
                self.hull.e_above_hull(formula, energy, self.energy_type).e_above_hull for _, formula, energy in entries
            ]
            self._near_hull[system] = {entry[0] for entry, far in zip(entries, above, strict=True) if far <= WINDOW}
        return self._near_hull[system]

    def structure(self, identifier: str) -> Structure:
        """The published crystal."""
        return read_cif(self.cifs[identifier]).structure


class IndependentHull:
    """Distances from a hull by another potential."""

    def __init__(self, energies: Energies, phases: Phases) -> None:
        self.energies, self.phases = energies, phases
        self.kind = EnergyType(Path(str(energies.config.model)).name, "PBE", "fitted elements")
        self.about: dict[str, Any] = {}
        self._own: dict[str, float] = {}

    def judge(self, structures: Sequence[Structure], report: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Distances (eV/atom, (n,)) of crystals from the hull, NaN where there is no energy or no reference."""
        energies = self.energies(structures, report)
        first = set().union(*(self.phases.deciding(structure) for structure in structures))
        hull = self._hull(first, fit=False, report=report)
        bound = self._distances(hull, structures, energies)
        # an element without a phase yet gives NaN: look at all of its systems
        open_ = [s for s, above in zip(structures, bound, strict=True) if not above > MARGIN]
        ids = first.union(*(self.phases.near(structure) for structure in open_))
        hull = self._hull(ids, fit=True, report=report)
        self.about |= {"samples": len(structures), "looked_at_closely": len(open_), "phases": len(ids)}
        return self._distances(hull, structures, energies)

    def _distances(self, hull: Hull, structures: Sequence[Structure], energies: np.ndarray) -> np.ndarray:
        found = hull.batch([structure.composition for structure in structures], energies, self.kind)
        return np.array([result.e_above_hull if result.status == OK else np.nan for result in found])

    def _hull(self, ids: set[str], *, fit: bool, report: Callable[[int, int], None] | None) -> Hull:
        names = sorted(ids)
        crystals = [self.phases.structure(name) for name in names]
        energies = self.energies(crystals, report)
        good = np.isfinite(energies)
        compositions = [crystal.composition.fractional_composition for crystal in crystals]
        elements = {s.elements[0].symbol: e for s, e in zip(crystals, energies, strict=True) if len(s.elements) == 1}
        if fit:
            formation = self.phases.formation.reindex(names).to_numpy(dtype=float)
            elements = fitted_elements(compositions, energies, formation, elements)
            self.about["elements_moved_by"] = float(np.mean(np.abs([elements[x] - e for x, e in self._own.items()])))
        else:
            self._own = elements
        entries = [HullEntry(symbol, float(energy), symbol) for symbol, energy in elements.items()]
        compounds = zip(crystals, energies, names, good, strict=True)
        entries += [
            HullEntry(s.composition.reduced_formula, float(energy), name)
            for s, energy, name, usable in compounds
            if usable and len(s.elements) > 1
        ]
        return Hull(entries, self.kind)


def fitted_elements(
    compositions: Sequence[Any], energies: np.ndarray, formation: np.ndarray, own: dict[str, float]
) -> dict[str, float]:
    """Elemental references (eV/atom) that reproduce published formation energies, by least squares.

    Args:
        compositions: n fractional compositions.
        energies: eV/atom, (n,).
        formation: published, eV/atom, (n,), NaN where there is none.
        own: the elements' own energies, each one further equation of weight `RIDGE`.
    """
    symbols = sorted({element.symbol for composition in compositions for element in composition} | set(own))
    place = {symbol: column for column, symbol in enumerate(symbols)}
    use = np.flatnonzero(np.isfinite(energies) & np.isfinite(formation)).tolist()
    matrix = np.zeros((len(use) + len(own), len(symbols)))
    target = np.zeros(len(matrix))
    for row, index in enumerate(use):
        for element, share in compositions[index].items():
            matrix[row, place[element.symbol]] = share
        target[row] = energies[index] - formation[index]
    for row, (symbol, energy) in enumerate(own.items(), start=len(use)):
        matrix[row, place[symbol]], target[row] = RIDGE, RIDGE * energy
    seen = matrix.any(axis=0)
    values = np.linalg.lstsq(matrix[:, seen], target, rcond=None)[0]
    return dict(zip(np.array(symbols)[seen].tolist(), values.tolist(), strict=True))
