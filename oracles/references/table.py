"""Reference phases: the energies against which stability is judged, computed with the very potential that judges.

A table holds the energy of each formula's lowest known crystal, and of others where those were computed: relaxed as
candidates are where the column `relaxed` says so, and as it stands in its published cell otherwise. The corners, the
elements, are the lowest of many relaxed prototypes. Its energy type says which potential made it; a hull built from it
takes no other.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.errors import EnergyTypeError, InputError
from loop.hull import Hull, HullEntry
from loop.io.files import write_bytes, write_text
from loop.io.opening import read_bytes
from loop.values import EnergyType

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from oracles.potentials.base import Potential

_ELEMENT = re.compile("([A-Z][a-z]?)[0-9]*")
DEFAULT = Path(__file__).parents[1] / "data" / "chgnet_references.csv.gz"
TOO_HIGH = 0.01  # eV/atom above the lowest relaxed prototype of an element, beyond which a corner is refused
COLUMNS = ["formula", "energy_per_atom", "id", "held_out", "relaxed", "unrelaxed"]
ATTRIBUTION = (
    "Structures evaluated: Materials Project (materialsproject.org), CC BY 4.0; Jain et al., APL Mater. 1, 011002 "
    "(2013), doi 10.1063/1.4812323. The energies are this project's own computation."
)


@dataclass(frozen=True)
class References:
    """A table of reference phases."""

    formulas: tuple[str, ...]
    energies: np.ndarray  # (n,) eV/atom
    ids: tuple[str, ...]
    held_out: np.ndarray  # (n,) bool: of a test split, for benchmarks to leave out
    energy_type: EnergyType
    checksum: str  # of the table's bytes
    provenance: dict[str, Any]
    unrelaxed: np.ndarray | None = None  # (n,) eV/atom of the same formulas as they stand; None: not told apart
    not_relaxed: frozenset[str] = field(default_factory=frozenset)  # formulas whose energy is a single point's
    relaxed: frozenset[str] = field(default_factory=frozenset)  # ids of the crystals whose energies are relaxed ones

    def __len__(self) -> int:
        return len(self.formulas)

    def hull(self, *, with_held_out: bool = True, min_compounds: int | None = None, relaxed: bool = True) -> Hull:
        """The convex hull of the table.

        Args:
            with_held_out: False leaves out the formulas of the test split, for benchmarks.
            min_compounds: see `Hull`.
            relaxed: False takes all phases as they stand, for candidates that are not relaxed either.
        """
        energies = self.energies_of(relaxed=relaxed).tolist()
        rows = zip(self.formulas, energies, self.ids, self.held_out.tolist(), strict=True)
        entries = [HullEntry(formula, energy, id) for formula, energy, id, out in rows if with_held_out or not out]
        return Hull(entries, self.energy_type, min_compounds=min_compounds)

    def energies_of(self, *, relaxed: bool) -> np.ndarray:
        """Energies (n,) in eV/atom of the phases relaxed, or as they stand where the table tells the two apart."""
        return self.energies if relaxed or self.unrelaxed is None else self.unrelaxed

    def elements(self) -> dict[str, float]:
        """Lowest energy (eV/atom) of each element."""
        lowest: dict[str, float] = {}
        for formula, energy in zip(self.formulas, self.energies.tolist(), strict=True):
            if element := is_element(formula):
                lowest[element] = min(energy, lowest.get(element, np.inf))
        return lowest

    def with_energies(self, energies: Mapping[str, float]) -> References:
        """The same table with relaxed energies (eV/atom) of some of its formulas; other formulas are left out."""
        new = [energies.get(formula, energy) for formula, energy in zip(self.formulas, self.energies, strict=True)]
        return replace(self, energies=np.array(new), not_relaxed=self.not_relaxed - energies.keys())

    def unrelaxed_among(self, formulas: Mapping[str, float]) -> str:
        """A remark on competing phases whose energies are single points; empty where there are none."""
        names = sorted(self.not_relaxed & formulas.keys())
        return f"competing phases not relaxed: {', '.join(names)}" if names else ""


def is_element(formula: str) -> str | None:
    """The symbol where a formula is an element's (``N2``: ``N``), None where it is a compound's."""
    match = _ELEMENT.fullmatch(formula)
    return match[1] if match else None


def load_references(path: str | Path | None = None) -> References:
    """Load a table: by default the one that ships, for CHGNet 0.3.0.

    Args:
        path: a CSV or CSV.gz with columns formula, energy_per_atom (eV/atom) and id, beside a JSON of the same name
            with `energy_type` (method, functional, corrections, checksum).

    Raises:
        InputError: the table or its JSON is missing or damaged, or an element lies above its lowest prototype.
    """
    return _load(Path(path or DEFAULT).resolve())


def shipped_tables() -> list[References]:
    """All tables in the package."""
    return [load_references(path) for path in sorted(DEFAULT.parent.glob("*_references.csv.gz"))]


def shipped_for(energy_type: EnergyType) -> References:
    """The table in the package that judges energies of a type.

    A table that lacks known phases (`complete` in its JSON is false) only proposes phases of a hull on demand: by
    itself it would call crystals stable that decompose into what it lacks.

    Raises:
        EnergyTypeError: there is none.
    """
    tables = {table.energy_type: table for table in shipped_tables() if table.provenance.get("complete", True)}
    if energy_type not in tables:
        raise EnergyTypeError(
            f"No complete reference phases of type {energy_type} are shipped (there are "
            f"{', '.join(map(str, tables))}): let them be computed as they are needed (references: demand; hull "
            "--relax --reference demand), or make a table with discovery-loop hull build."
        )
    return tables[energy_type]


@lru_cache(maxsize=4)
def _load(path: Path) -> References:
    import pandas as pd

    try:
        data = path.read_bytes()
        kinds = {"formula": str, "id": str, "energy_per_atom": float}
        frame = pd.read_csv(io.BytesIO(read_bytes(path)), keep_default_na=False, dtype=kinds)
        meta = json.loads(json_path(path).read_text(encoding="utf-8"))
        energy_type = EnergyType(**meta["energy_type"])
        formulas, ids = _reduced(frame["formula"], path), tuple(frame["id"])
        held_out = frame["held_out"].to_numpy(dtype=bool) if "held_out" in frame else np.zeros(len(frame), dtype=bool)
        energies = frame["energy_per_atom"].to_numpy()
        unrelaxed = frame["unrelaxed"].to_numpy(dtype=float) if "unrelaxed" in frame else None
        relaxed = frame["relaxed"].to_numpy(dtype=bool) if "relaxed" in frame else np.zeros(len(frame), dtype=bool)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"expected reference phases in {path} (columns formula, energy_per_atom, id) with their energy type in "
            f"{json_path(path).name}, cannot read them: {error!r}"
        ) from error
    if not np.isfinite(energies).all():
        raise InputError(f"expected finite energies in {path}, found NaN or infinity")
    lowest = {formulas[row]: relaxed[row] for row in np.argsort(-energies, kind="stable").tolist()}
    loaded = References(
        formulas, energies, ids, held_out, energy_type, hashlib.sha256(data).hexdigest(), meta, unrelaxed,
        not_relaxed=frozenset(formula for formula, done in lowest.items() if not done),
        relaxed=frozenset(id for id, done in zip(ids, relaxed, strict=True) if done),
    )  # fmt: skip
    _check_corners(loaded, path)
    return loaded


def _reduced(formulas: pd.Series, path: Path) -> tuple[str, ...]:
    """Formulas as pymatgen reduces them, so that a compound has one name in all tables (``SeZn`` is ``ZnSe``).

    Parsing takes 0.1 ms each: the package's tables are written so, and what they name needs no parsing elsewhere.

    Raises:
        ValueError: one is no formula.
    """
    from pymatgen.core import Composition

    if path.parent == DEFAULT.resolve().parent:  # `path` is resolved: the package may be reached by a link
        return tuple(formulas)
    known = set(load_references().formulas)
    return tuple(text if text in known else Composition(text).reduced_formula for text in formulas)


def lowest_known(references: References) -> dict[str, float]:
    """Energy (eV/atom) of the lowest prototype of each element: the table's own, or the shipped ones of its potential.

    Empty where neither is known: nothing can be said of the corners then but by computing them (`hull check`).
    """
    corners = references.provenance.get("corners")
    if not corners:
        shipped = json.loads(json_path(DEFAULT).read_text(encoding="utf-8"))
        corners = shipped.get("corners", {}) if EnergyType(**shipped["energy_type"]) == references.energy_type else {}
    return {element: float(corner["energy"]) for element, corner in corners.items()}


def too_high(energies: Mapping[str, float], lowest: Mapping[str, float]) -> dict[str, float]:
    """Elements whose energy lies above their lowest prototype by more than `TOO_HIGH`, and by how much (eV/atom)."""
    above = {element: energies[element] - lowest[element] for element in energies.keys() & lowest.keys()}
    return {element: excess for element, excess in sorted(above.items()) if excess > TOO_HIGH}


def _check_corners(references: References, path: Path) -> None:
    """A corner that is too high makes everything look stable that decomposes into it."""
    wrong = too_high(references.elements(), lowest_known(references))
    if wrong:
        named = ", ".join(f"{element} by {excess:.3f}" for element, excess in wrong.items())
        raise InputError(
            f"elements of {path} lie above their lowest crystal by this potential, in eV/atom: {named}. Compounds that "
            "decompose into them would look too stable: make the table with `hull build` again."
        )


def json_path(path: Path) -> Path:
    """Where the JSON of a table is."""
    return path.with_name(path.name.removesuffix(".gz").removesuffix(".csv") + ".json")


def write_references(
    output: Path, table: pd.DataFrame, potential: Potential | EnergyType, **provenance: Any
) -> References:
    """Write the lowest finite energy of each formula, sorted by formula, and the JSON with its provenance.

    Args:
        output: .csv or .csv.gz
        table: columns formula, energy_per_atom (eV/atom), id, held_out and, where known, relaxed (1 or 0) and unrelaxed
            (eV/atom as the crystal stands).
        potential: what computed it, or the type of energies that come from elsewhere.
        provenance: further entries of the JSON.
    """
    import gzip

    from pymatgen.core import Composition

    finite = table[np.isfinite(table["energy_per_atom"])].copy()
    finite["formula"] = [Composition(formula).reduced_formula for formula in finite["formula"]]
    if "relaxed" not in finite:
        finite["relaxed"] = 0
    if "unrelaxed" not in finite:
        finite["unrelaxed"] = finite["energy_per_atom"]
    finite["unrelaxed"] = finite.groupby("formula")["unrelaxed"].transform("min")  # perhaps another polymorph's
    lowest = finite.sort_values(["energy_per_atom", "id"]).drop_duplicates("formula").sort_values("formula")[COLUMNS]
    text = lowest.to_csv(index=False, float_format="%.5f", lineterminator="\n").encode()
    meta = {
        **_origin(potential),
        "unit": "eV/atom",
        "rows": len(lowest),
        "relaxed": int(lowest["relaxed"].sum()),
        "held_out": int(lowest["held_out"].sum()),
        "elements": len(
            {element for formula in lowest["formula"] for element in Composition(formula).chemical_system_set}
        ),
        "attribution": ATTRIBUTION,
        "date": datetime.now(UTC).date().isoformat(),
        **provenance,
    }
    write_bytes(output, gzip.compress(text, mtime=0) if output.suffix == ".gz" else text)
    write_text(json_path(output), json.dumps(meta, indent=2) + "\n")
    _load.cache_clear()
    return load_references(output)


def _origin(potential: Potential | EnergyType) -> dict[str, Any]:
    if isinstance(potential, EnergyType):
        return {"energy_type": asdict(potential), "what": "lowest given energy of each formula"}
    about = potential.about
    return {
        "energy_type": asdict(potential.energy_type),
        "potential": {"name": about.name, "citation": about.citation, "licence": about.licence, "dtype": about.dtype},
        "what": "energy of the lowest known crystal of each formula: relaxed where `relaxed` is 1, else a single point "
        "in its published cell (`unrelaxed`); elements: the lowest of their relaxed prototypes",
    }


def structure_of(text: object, formula: object = None) -> tuple[Structure | None, str | None]:
    """The crystal of a CIF, or the reason why there is none.

    Args:
        text: of a CIF.
        formula: what the source calls the crystal, where it does: another one than the crystal's is a reason.
    """
    from pymatgen.core import Composition

    from loop.io.cif import read_cif

    try:
        structure = read_cif(str(text)).structure
    except InputError:
        return None, "unreadable CIF"
    try:
        same = (
            not isinstance(formula, str)
            or Composition(formula).reduced_formula == structure.composition.reduced_formula
        )
    except ValueError:
        same = False
    return (structure, None) if same else (None, "another formula than the row says")
