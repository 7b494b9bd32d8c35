"""Results as files that other programs read."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.errors import ConfigError, InputError
from loop.history import History, Label
from loop.io.ase_database import to_bytes
from loop.io.cif_writer import to_cif, to_symmetrised_cif
from loop.io.crystal_writers import one_cif_file
from loop.io.extxyz import to_extxyz
from loop.io.files import write_bytes, write_folder, write_marked_folder, write_text
from loop.io.poscar import to_poscar
from loop.prototypes import prototype_counts
from loop.ranking import group_of, ranked

if TYPE_CHECKING:
    from pymatgen.core import Structure

_OWN_CIF = re.compile(r"\d{3,}_[A-Za-z0-9]+_[0-9a-f]+\.cif")  # of `file_stem`
IN_ARCHIVE = ("ranked.csv", "ranked.json", "record.json", "report.html", "config.yaml")


def ranked_rows(history: History) -> list[dict[str, Any]]:
    """The ranked list as rows; missing numbers are None.

    `new` is the one verdict, as proposed and relaxed; `group` the part of the list (`loop.ranking.GROUPS`);
    `prototype_count` how many rows have the row's prototype.
    """
    labels = _ranked(history)
    counts = prototype_counts([label.prototype for label in labels])
    return [
        _row(rank, label, history) | {"prototype_count": count or None}
        for rank, (label, count) in enumerate(zip(labels, counts, strict=True), start=1)
    ]


def _ranked(history: History) -> list[Label]:
    return ranked(history.labels(), history.settings)


def _row(rank: int, label: Label, history: History) -> dict[str, Any]:
    evaluation, settings = label.evaluation, history.settings
    stability = settings.stability
    predicted = {
        f"{name}_{what}": values[name]
        for name in label.pick.mean
        for what, values in (("predicted", label.pick.mean), ("sigma", label.pick.std))
    }
    row: dict[str, Any] = {
        "rank": rank,
        "candidate_id": label.candidate.id,
        "formula": label.candidate.formula,
        "chemical_system": label.candidate.structure.chemical_system,
        "space_group": evaluation.space_group_relaxed or evaluation.space_group,
        "n_atoms": len(label.candidate.structure),
        stability: evaluation.value(stability),
        f"{stability}_sigma": label.pick.std.get(stability),
        **{goal.name: evaluation.value(goal.name) for goal in settings.goals},
        "stable": label.is_stable(settings),
        "new": label.is_new,
        "group": group_of(label, settings),
        "match": label.match,
        "suspect": label.suspect(settings),
        "prototype": label.prototype,
        "prototype_count": None,
        "decoration": f"decoration of {label.parent}" if label.parent else "",
        "energy_type": str(evaluation.energy_type) if evaluation.energy_type else "",
        "status": evaluation.status,
        "novelty": label.pick.novelty,
        "novelty_relaxed": label.novelty_relaxed,
        "round": label.pick.round,
        "arm": label.pick.arm,
        "cost_seconds": evaluation.cost.seconds,
        f"{stability}_unrelaxed": label.pick.screen,
        f"{stability}_at_label": label.first.value(stability),  # on the reference hull alone: negative is below it
        "competing_phases": label.first.decomposition,
        "space_group_asked": label.candidate.origin.space_group,
        "space_group_proposed": evaluation.space_group,
        "decomposition": evaluation.decomposition,
        "oracle": evaluation.oracle,
        "message": evaluation.message,
        "policy": label.candidate.origin.policy,
        "logp_drawn": label.candidate.origin.logp,  # nats, given the conditions of the proposals
    }
    for name, found in label.tiers.items():  # their properties are among the others, as NAME_band_gap
        row |= {f"{name}_status": found.status, f"{name}_seconds": found.cost.seconds, f"{name}_message": found.message}
        row[f"{name}_energy_type"] = str(found.energy_type) if found.energy_type else ""
    others = {name: quantity.value for name, quantity in evaluation.properties.items() if name not in row}
    return {name: _plain(value) for name, value in (row | others | predicted).items()}


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_ranked(history: History, directory: Path) -> None:
    """Write ``ranked.csv`` and ``ranked.json``."""
    rows = ranked_rows(history)
    write_text(directory / "ranked.json", json.dumps(rows, indent=1, allow_nan=False) + "\n")
    write_text(directory / "ranked.csv", to_csv(rows))


def write_cifs(history: History, directory: Path) -> None:
    """Write the folder ``cifs``, to which the report links: some 10 ms per crystal. What else is in it stays."""
    folder = directory / "cifs"
    others = [path for path in folder.iterdir() if not _OWN_CIF.fullmatch(path.name)] if folder.is_dir() else []

    def fill(place: Path) -> None:
        _fill(history, place, ".cif", to_symmetrised_cif)
        for path in others:
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, place / path.name)

    write_folder(folder, fill)


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as CSV, with the union of their columns in order of first appearance; nested values as JSON."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()})
    return text.getvalue()


def export(history: History, format: str, output: Path, *, directory: Path | None = None) -> int:
    """Write the labelled candidates of a campaign, best first; the relaxed crystal where there is one.

    Args:
        history: the campaign.
        format: one of `FORMATS`.
        output: file, or folder for ``poscar`` and for ``cif`` (a name ending in .cif: one file of all crystals);
            appears only when complete.
        directory: the campaign's folder, whose report and record go into a ``zip``.

    Returns:
        Number of candidates written.

    Raises:
        ConfigError: no such format.
        InputError: nothing to export, or the place cannot be written.
    """
    if format not in FORMATS:
        raise ConfigError(f"There is no export format {format!r}; choose from {', '.join(FORMATS)}.")
    labels = history.labels()
    if not labels:
        raise InputError(f"Campaign {history.name!r} has no labelled candidates yet: nothing to export.")
    if format == "zip":
        _to_zip(history, output, directory)
    else:
        FORMATS[format](history, output)
    return len(labels)


def final_structure(label: Label) -> Structure:
    """The relaxed crystal, or the proposed one where nothing was relaxed."""
    return label.evaluation.structure or label.candidate.structure


def file_stem(rank: int, label: Label) -> str:
    """Name of a candidate's file without its ending, such as ``001_NaCl_4f7e399b254d437b``."""
    return f"{rank:03d}_{re.sub(r'[^A-Za-z0-9]', '', label.candidate.formula)}_{label.candidate.id}"


def _to_csv_file(history: History, output: Path) -> None:
    """The ranked list with the crystals, so that every verb reads it."""
    pairs = zip(ranked_rows(history), _ranked(history), strict=True)
    write_text(output, to_csv([row | {"cif": to_cif(final_structure(label))} for row, label in pairs]))


def _to_json(history: History, output: Path) -> None:
    rows = ranked_rows(history)
    for row, label in zip(rows, _ranked(history), strict=True):
        row["structure"] = final_structure(label).as_dict()
    write_text(output, json.dumps(rows, allow_nan=False) + "\n")


def _to_cifs(history: History, output: Path) -> None:
    if output.suffix.lower() != ".cif":
        _to_folder(history, output, ".cif", to_symmetrised_cif)
        return
    labels = _ranked(history)
    names = [file_stem(rank, label) for rank, label in enumerate(labels, start=1)]
    write_text(output, one_cif_file(names, [to_symmetrised_cif(final_structure(label)) for label in labels]))


def _to_poscars(history: History, output: Path) -> None:
    _to_folder(history, output, ".vasp", to_poscar)


def _to_folder(history: History, output: Path, ending: str, text: Callable[[Structure], str]) -> None:
    write_marked_folder(output, lambda folder: _fill(history, folder, ending, text))


def _fill(history: History, folder: Path, ending: str, text: Callable[[Structure], str]) -> None:
    for rank, label in enumerate(_ranked(history), start=1):
        (folder / f"{file_stem(rank, label)}{ending}").write_text(text(final_structure(label)), encoding="utf-8")


def _flat_rows(history: History) -> list[dict[str, Any]]:
    """Rows with numbers and texts only, without what is missing."""
    rows = [
        {name: json.dumps(v) if isinstance(v, dict) else v for name, v in row.items()} for row in ranked_rows(history)
    ]
    return [{name: value for name, value in row.items() if value is not None and value != ""} for row in rows]


def _to_extxyz(history: History, output: Path) -> None:
    rows = zip(_ranked(history), _flat_rows(history), strict=True)
    write_text(output, "".join(to_extxyz(final_structure(label), row) for label, row in rows))


def _to_ase_db(history: History, output: Path) -> None:
    rows = zip(_ranked(history), _flat_rows(history), strict=True)
    write_bytes(output, to_bytes((final_structure(label), row) for label, row in rows))


def _to_optimade(history: History, output: Path) -> None:
    from loop.io.optimade import to_json_lines

    rows = zip(_ranked(history), _flat_rows(history), strict=True)
    entries = [(label.candidate.id, final_structure(label), row) for label, row in rows]
    write_text(output, to_json_lines(entries))


def _to_zip(history: History, output: Path, directory: Path | None) -> None:
    """Everything in one file: ranked list, CIFs, extxyz, and report and record where the folder has them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_ranked(history, folder)
        write_cifs(history, folder)
        _to_extxyz(history, folder / "candidates.extxyz")
        _to_optimade(history, folder / "candidates.optimade.jsonl")
        for file in IN_ARCHIVE:
            if directory is not None and (directory / file).is_file() and not (folder / file).exists():
                (folder / file).write_bytes((directory / file).read_bytes())
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.rglob("*")):
                if path.is_file():
                    archive.write(path, Path(history.name) / path.relative_to(folder))
        write_bytes(output, packed.getvalue())


FORMATS: dict[str, Callable[[History, Path], None]] = {
    "csv": _to_csv_file,
    "json": _to_json,
    "cif": _to_cifs,
    "poscar": _to_poscars,
    "extxyz": _to_extxyz,
    "ase-db": _to_ase_db,
    "optimade": _to_optimade,
    "zip": lambda history, output: _to_zip(history, output, None),
}
