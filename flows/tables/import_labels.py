"""Labels from elsewhere into a campaign's ledger: every row is checked, and what is not taken is counted."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.errors import EnergyTypeError, InputError
from loop.history import CAMPAIGN, TIER, History, TierHistory
from loop.io.cells import read_cells
from loop.properties import physical
from loop.stages import Submitted
from loop.store import OracleKey, Store
from loop.values import NOT_CONVERGED, OK, TIMEOUT, Cost, EnergyType, Evaluation, Quantity, structure_id
from oracles.dft.handoff import TYPE_COLUMNS, UNITS, handoff_key

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

TIER_NAME = "handoff"
ID_COLUMNS = ("candidate_id", "structure_id")
PLAIN = (*ID_COLUMNS, *TYPE_COLUMNS, "status", "message", "seconds", "cores", "cif", "formula")
SHOWN = 5  # skipped rows that the summary quotes


@dataclass
class Imported:
    """What became of a file's rows."""

    taken: int = 0
    failed: int = 0  # of those taken: measured without a usable result, as their status says
    extended: int = 0  # of those taken: they add properties to a label that was there
    skipped: Counter[str] = field(default_factory=Counter)  # by reason
    examples: list[str] = field(default_factory=list)

    def skip(self, row: Hashable, reason: str, detail: str) -> None:
        """Count a row that is not taken."""
        self.skipped[reason] += 1
        if len(self.examples) < SHOWN:
            self.examples.append(f"row {row}: {reason}: {detail}")

    def summary(self) -> dict[str, Any]:
        """For people and machines."""
        return {"taken": self.taken, "of_them_failed": self.failed, "of_them_added_to_labels": self.extended,
                "skipped": dict(self.skipped), "examples": self.examples}  # fmt: skip


def import_labels(store: Store, name: str, path: Path, *, tier: str = TIER_NAME) -> Imported:
    """Put results into the ledger as labels of a campaign's tier.

    Args:
        store: the ledger.
        name: of the campaign.
        path: CSV with `candidate_id`, and columns `property (unit)`; see `oracles.dft.handoff.README`.
        tier: name under which they are shown: property `band_gap` as `handoff_band_gap`.

    Raises:
        InputError: the file is no such table, a unit is wrong, or one crystal has two different results.
        EnergyTypeError: energies are of several types, or of another one than those imported before.
        StoreError: the tier holds labels of another oracle.
    """
    if not tier.isidentifier():
        raise InputError(f"the name of a tier is one word such as dft or lab, got {tier!r}")
    history = History.load(store, name)
    frame = _read(path)
    columns = property_columns([str(column) for column in frame])
    known = history.tiers.get(tier)
    earlier = {str(e.energy_type) for e in known.evaluations.values() if e.energy_type} if known else set()
    energy_type = _energy_type(frame, columns, earlier, tier)
    done = Imported()
    rows = _Rows(history, known, columns, done)
    found = rows.evaluations(frame)
    found = {key: replace(e, energy_type=energy_type) if "energy" in e.properties else e for key, e in found.items()}
    _write(store, history, tier, found, rows)
    return done


def property_columns(names: list[str]) -> dict[str, tuple[str, str]]:
    """Columns ``property (unit)``: name of the column to property and unit.

    Raises:
        InputError: a unit is missing or not the expected one, or there is no property.
    """
    columns: dict[str, tuple[str, str]] = {}
    for name in names:
        if name in PLAIN:
            continue
        match = re.fullmatch(r"([A-Za-z_]\w*)\s*(?:\(([^()]*)\))?", name.strip())
        if match is None:
            raise InputError(f"column {name!r}: expected a name with its unit, as 'band_gap (eV)'")
        label, unit = match.group(1), (match.group(2) or "").strip()
        wanted = UNITS.get(label)
        if unit == "" and wanted == "1":
            unit = "1"
        if unit == "" or (wanted is not None and unit != wanted):
            raise InputError(
                f"column {name!r}: expected the unit {wanted or 'in brackets'}, as '{label} ({wanted or 'eV'})', got "
                f"{unit or 'none'}: convert the values, then rename the column"
            )
        if any(label == other for other, _ in columns.values()):
            raise InputError(f"two columns hold {label}: keep one")
        columns[name] = (label, unit)
    if not columns:
        raise InputError("expected a column of results such as 'band_gap (eV)', found none")
    return columns


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise InputError(f"expected a CSV of results at {path}, there is no such file")
    frame = read_cells(path, only_commas=True)
    if not set(ID_COLUMNS) & set(frame):
        raise InputError(f"expected a column candidate_id in {path}, found {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise InputError(f"{path} has no rows")
    return frame


def _energy_type(
    frame: pd.DataFrame, columns: dict[str, tuple[str, str]], earlier: set[str], tier: str
) -> EnergyType | None:
    """The one type of a file's energies; None where it has none."""
    column = next((name for name, (label, _) in columns.items() if label == "energy"), None)
    if column is None or not (frame[column].str.strip() != "").any():
        return None
    missing = [name for name in TYPE_COLUMNS if name not in frame]
    if missing:
        raise InputError(f"energies need their type: add the columns {', '.join(missing)} (as VASP, PBE, none)")
    rows = frame[frame[column].str.strip() != ""]
    types = {tuple(str(row[name]).strip() for name in TYPE_COLUMNS) for _, row in rows.iterrows()}
    if any("" in parts for parts in types):
        raise InputError(f"every row with an energy needs {', '.join(TYPE_COLUMNS)}; some have none")
    names = {str(EnergyType(*parts)) for parts in types}
    if len(names | earlier) > 1:
        raise EnergyTypeError(
            f"energies of several types cannot be labels of one tier: {', '.join(sorted(names | earlier))}. Give each "
            f"its own file and name (--name), as this one holds {tier!r}."
        )
    return EnergyType(*types.pop())


class _Rows:
    """Rows to evaluations, by candidate id."""

    def __init__(
        self, history: History, known: TierHistory | None, columns: dict[str, tuple[str, str]], done: Imported
    ) -> None:
        self.history, self.known, self.columns, self.done = history, known, columns, done
        measured = {value: key for key, value in (known.labels if known else {}).items()}
        # what people may call a candidate: its own id, that of the crystal handed out, that of its relaxed crystal
        relaxed = {structure_id(e.structure): key for key, e in history.evaluations.items() if e.structure is not None}
        self.names = relaxed | measured | {key: key for key in history.evaluations}
        self.numbers: dict[str, int] = {}  # candidate -> row of the file, as a spreadsheet counts

    def evaluations(self, frame: pd.DataFrame) -> dict[str, Evaluation]:
        """Of the rows that can be taken."""
        found: dict[str, Evaluation] = {}
        for key, values in self._by_candidate(frame).items():
            evaluation = self._evaluation(self.numbers[key], key, values)
            if evaluation is not None:
                found[key] = evaluation
        return found

    def _by_candidate(self, frame: pd.DataFrame) -> dict[str, dict[str, str]]:
        """Cells of each candidate; several rows of one add up where they do not contradict each other."""
        cells: dict[str, dict[str, str]] = {}
        for number, row in enumerate(frame.to_dict("records"), start=2):
            values = {str(name): str(value).strip() for name, value in row.items()}
            name = next((values[column] for column in ID_COLUMNS if values.get(column)), "")
            key = self.names.get(name)
            if key is None:
                self.done.skip(number, "unknown id", name or "none given")
            elif key not in cells:
                cells[key], self.numbers[key] = values, number
            elif not self._adds(number, key, cells[key], values):
                self.done.skip(number, "repeated", f"as row {self.numbers[key]}")
        return cells

    def _adds(self, number: int, key: str, before: dict[str, str], values: dict[str, str]) -> bool:
        """Put what a further row of a candidate says into what its first row said; False where that is nothing."""
        said = {name: values[name] for name in (*self.columns, "status") if values.get(name)}
        if any(before.get(name, value) not in ("", value) for name, value in said.items()):
            raise InputError(
                f"rows {self.numbers[key]} and {number} give different results for {key}: keep one of them"
            )
        new = {name: value for name, value in said.items() if not before.get(name)}
        before |= new
        return bool(new)

    def _evaluation(self, number: int, key: str, values: dict[str, str]) -> Evaluation | None:
        status = values.get("status") or OK
        if status not in (OK, NOT_CONVERGED, TIMEOUT) and not re.fullmatch(r"failed:[\w-]+", status):
            self.done.skip(number, "unknown status", f"{status!r}, expected ok, not-converged, timeout or failed:WHY")
            return None
        try:
            properties = self._properties(values)
            structure = self._structure(key, values.get("cif", ""))
            cost = Cost(_number("seconds", values.get("seconds") or "0"), "elsewhere", int(values.get("cores") or 1))
        except (InputError, ValueError) as error:
            self.done.skip(number, "bad value", str(error))
            return None
        if status == OK and not properties:
            self.done.skip(number, "no result", "neither a value nor a status that says why")
            return None
        oracle, settings = handoff_key()
        return Evaluation(
            candidate_id=key, oracle=oracle, settings=settings, status=status, properties=properties,
            structure=structure, cost=cost,
            message=values.get("message", ""),
        )  # fmt: skip

    def _properties(self, values: dict[str, str]) -> dict[str, Quantity]:
        found = {}
        for column, (label, unit) in self.columns.items():
            if values[column]:
                found[label] = Quantity(physical(label, _number(label, values[column])), unit)
        return found

    def _structure(self, key: str, text: str) -> Structure | None:
        if not text:
            return None
        from loop.io.formats import crystal_of

        made, _ = crystal_of(text)
        wanted = self.history.candidates[key].formula
        if made.composition.reduced_formula != wanted:
            raise InputError(f"the cif holds {made.composition.reduced_formula}, the candidate is {wanted}")
        return made


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{name}: expected a number, got {text!r}") from None
    if not math.isfinite(value):
        raise InputError(f"{name}: expected a finite number, got {text}")
    return value


def _write(store: Store, history: History, tier: str, found: dict[str, Evaluation], rows: _Rows) -> None:
    """Claim and finish what is new, add to labels that are there, and tell the campaign."""
    key = OracleKey(*handoff_key())
    key = OracleKey(key.oracle if tier == TIER_NAME else f"{tier}-{key.oracle}", key.settings)
    known = history.tiers.get(tier)
    if known is not None and known.key != key:
        known.apply(0, Submitted(tier, key.oracle, key.settings, {}))  # raises: labels of two oracles do not mix
    measured = {name: (known.labels.get(name, name) if known else name) for name in found}
    ours = {name: replace(e, candidate_id=measured[name], oracle=key.oracle) for name, e in found.items()}
    claimed = set(store.claim(list(measured.values()), key, campaign=history.name))
    new = {name: e for name, e in ours.items() if measured[name] in claimed}
    store.finish(list(new.values()))
    there = store.evaluations([measured[name] for name in ours.keys() - new.keys()], key)
    more = [
        added
        for name in ours
        if name not in new and (added := _added(name, ours[name], there.get(measured[name]), rows)) is not None
    ]
    store.extend(more)
    labels = {name: measured[name] for name in found}
    if labels:
        store.append(history.name, 0, CAMPAIGN, TIER, Submitted(tier, key.oracle, key.settings, labels).to_dict())
    done = rows.done
    done.taken, done.extended = len(new) + len(more), len(more)
    done.failed = sum(not evaluation.ok for evaluation in new.values())


def _added(name: str, ours: Evaluation, there: Evaluation | None, rows: _Rows) -> Evaluation | None:
    """What a row adds to a label that is there; None, and a word about it, where it adds nothing or contradicts."""
    number = rows.numbers[name]
    if there is None:
        rows.done.skip(number, "being labelled elsewhere", name)
        return None
    differ = [f"{label} is {there.properties[label].value:g} {quantity.unit} there, {quantity.value:g} in the file"
              for label, quantity in ours.properties.items()
              if label in there.properties and there.properties[label].value != quantity.value]  # fmt: skip
    if differ or (there.ok != ours.ok):
        differ = differ or [f"its status is {there.status} there, {ours.status} in the file"]
        rows.done.skip(number, "contradicts its label", f"{name}: {'; '.join(differ)}: what is there stays (--name)")
        return None
    new = {label: quantity for label, quantity in ours.properties.items() if label not in there.properties}
    if not new:
        rows.done.skip(number, "already labelled", name)
        return None
    return replace(ours, properties=new)
