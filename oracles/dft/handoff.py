"""The hand-off oracle: writes what people or a queue elsewhere need to measure candidates.

Implements `loop.tiers.HandOff`. Results come back by ``discovery-loop import-labels`` (`flows.tables.import_labels`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from loop.errors import ConfigError
from loop.io.cif_writer import to_symmetrised_cif
from loop.io.files import make_folder, write_folder, write_text
from loop.io.poscar import to_poscar
from loop.properties import PROPERTIES
from loop.values import Candidate

if TYPE_CHECKING:
    from pymatgen.core import Structure

VERSION = "1"
UNITS = {spec.name: spec.unit for spec in PROPERTIES.values()}  # in which values are asked for and taken
README = """Crystals of a discovery-loop campaign, to be measured.

One folder per crystal: structure.cif and POSCAR are the same crystal, the first in its conventional cell with its
symmetry, the second in the cell that the campaign holds; metadata.json tells where it comes from.
Fill in labels.csv, one row per crystal, and return it:

    discovery-loop import-labels CAMPAIGN_FOLDER labels.csv

* A value that was not measured stays empty; a crystal that could not be measured gets a status such as
  failed:scf-not-converged (otherwise leave the status empty).
* Units are in the column names and are checked. A column of your own is welcome: `name (unit)`.
* An energy needs its type: method (the code), functional and corrections, the same in all rows.
* cif (optional) is the crystal as you relaxed it; seconds and cores (optional) are what it cost.
"""
TYPE_COLUMNS = ("method", "functional", "corrections")
Input = Literal["cif", "poscar", "vasp", "espresso"]


@dataclass(frozen=True)
class HandoffConfig:
    """What is asked for, and which files are written.

    Raises:
        ConfigError: a property has no known unit.
    """

    ask: tuple[str, ...] = ("energy", "band_gap", "dielectric_electronic", "dielectric_total")
    """Properties that people are asked for."""
    inputs: tuple[Input, ...] = ("cif", "poscar")
    """Files that are written for each candidate."""

    def __post_init__(self) -> None:
        """Check the properties."""
        unknown = [name for name in self.ask if name not in UNITS]
        if unknown or not self.ask:
            raise ConfigError(
                f"Hand-off: cannot ask for {', '.join(unknown) or 'nothing'}; there are {', '.join(UNITS)}."
            )


class HandoffOracle:
    """Writes inputs; measures nothing itself.

    Args:
        config: settings.
    """

    def __init__(self, config: HandoffConfig = HandoffConfig()) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """``name@version``."""
        return handoff_key()[0]

    @property
    def settings_hash(self) -> str:
        """The same for all hand-offs: what people measured stands in what they return."""
        return handoff_key()[1]

    def hand_out(self, candidates: Sequence[Candidate], folder: Path) -> None:
        """Write one folder per candidate, a form for the results and a README; what is there already stays.

        Raises:
            InputError: the folder cannot be written.
        """
        make_folder(folder)
        for candidate in candidates:
            if not (folder / _label_of(candidate)).exists():
                write_folder(folder / _label_of(candidate), lambda place, c=candidate: self._fill(place, c))  # type: ignore[misc]
        for name, text in (("labels.csv", self._form(candidates)), ("README.txt", README)):
            if not (folder / name).exists():
                write_text(folder / name, text)

    def _fill(self, folder: Path, candidate: Candidate) -> None:
        for kind in self.config.inputs:
            WRITERS[kind](candidate.structure, folder)
        about = {
            "candidate_id": _label_of(candidate),
            "structure_id": candidate.id,
            "formula": candidate.formula,
            "atoms": len(candidate.structure),
            "round": candidate.round,
            "origin": asdict(candidate.origin),
            "asked": {name: UNITS[name] for name in self.config.ask},
        }
        (folder / "metadata.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _form(self, candidates: Sequence[Candidate]) -> str:
        """The CSV to be filled in."""
        values = [f"{name} ({UNITS[name]})" for name in self.config.ask]
        types = TYPE_COLUMNS if "energy" in self.config.ask else ()
        head = ["candidate_id", "formula", *values, *types, "status", "message", "seconds", "cores"]
        rows = [[_label_of(candidate), candidate.formula, *[""] * (len(head) - 2)] for candidate in candidates]
        return "".join(",".join(row) + "\n" for row in [head, *rows])


def handoff_key() -> tuple[str, str]:
    """Oracle name and settings hash under which results of people are kept."""
    return f"handoff@{VERSION}", hashlib.sha256(f"handoff {VERSION}".encode()).hexdigest()[:16]


def _label_of(candidate: Candidate) -> str:
    """The campaign's own id: that of the candidate as proposed."""
    return candidate.origin.parent or candidate.id


def _write_cif(structure: Structure, folder: Path) -> None:
    (folder / "structure.cif").write_text(to_symmetrised_cif(structure), encoding="utf-8")


def _write_poscar(structure: Structure, folder: Path) -> None:
    (folder / "POSCAR").write_text(to_poscar(structure), encoding="utf-8")


def _write_vasp(structure: Structure, folder: Path) -> None:
    from oracles.dft.inputs import write_vasp

    write_vasp(structure, folder / "vasp")


def _write_espresso(structure: Structure, folder: Path) -> None:
    from oracles.dft.inputs import write_espresso

    write_espresso(structure, folder / "espresso")


WRITERS: dict[Input, Callable[[Structure, Path], None]] = {
    "cif": _write_cif,
    "poscar": _write_poscar,
    "vasp": _write_vasp,
    "espresso": _write_espresso,
}
