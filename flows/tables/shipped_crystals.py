"""The known crystals that ship, as a file that `hull build` takes."""

from __future__ import annotations

from pathlib import Path


def shipped_crystals(chemical_system: str | None = None) -> Path:
    """A CSV of the lowest known crystal of each formula, of all or of a chemical system such as Li-Fe-O.

    It is written once, into the program's own folder; the same crystals give the same bytes, so that an
    interrupted build finds its source unchanged.

    Raises:
        InputError: the system has no known crystal, or one of its parts is no element.
    """
    from flows.paths import state_dir
    from loop.errors import InputError
    from loop.io.files import make_folder, sha256, write_text
    from oracles.references.crystals import DEFAULT, load_reference_crystals

    elements = None if chemical_system is None else sorted({part.strip() for part in chemical_system.split("-")})
    version = sha256(DEFAULT)[:12]
    path = state_dir() / "known-crystals" / f"{'-'.join(elements or ['all'])}-{version}.csv"
    if path.exists():
        return path
    crystals = load_reference_crystals()
    if elements is None:
        ids = crystals.lowest()
    else:
        inside = set(crystals.in_system(elements))
        ids = [id for id in crystals.lowest() if id in inside]
    if not ids:
        raise InputError(f"expected known crystals of {chemical_system}, none ships: give a CSV of them")
    make_folder(path.parent)
    write_text(path, crystals.rows(ids).to_csv(index=False, lineterminator="\n"))
    return path
