"""Known crystals of chemical systems from the Materials Project, with the field's own client and the user's key.

What was fetched is cached by database version and chemical system, so that a hull can be rebuilt without the network
and says what it was built from. The key comes from the environment (``MP_API_KEY``) and is never written or shown.
"""

from __future__ import annotations

import gzip
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.errors import ConfigError, InputError
from loop.io.files import write_bytes

if TYPE_CHECKING:
    import pandas as pd

KEY = "MP_API_KEY"
ENDPOINT = "https://api.materialsproject.org/"
THERMO_TYPE = "GGA_GGA+U"  # PBE and PBE+U with MP2020 corrections: one energy type
TIMEOUT = 30.0  # s, to see whether the server answers at all
ATTRIBUTION = (
    "Materials Project (materialsproject.org), CC BY 4.0; Jain et al., APL Mater. 1, 011002 (2013), "
    "doi 10.1063/1.4812323"
)


@dataclass(frozen=True)
class Fetched:
    """Crystals and energies of chemical systems."""

    frame: pd.DataFrame  # material_id, pretty_formula, chemsys, n_atoms, energies (eV/atom), e_above_hull, cif
    version: str  # of the database
    downloaded: tuple[str, ...]  # systems that were not in the cache


def fetch(
    systems: Sequence[str],
    cache: Path,
    *,
    endpoint: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fetched:
    """Entries of chemical systems with all their subsystems, elements included.

    Args:
        systems: as ``Li-Fe-O``.
        cache: folder of what was fetched before.
        endpoint: another server of the same interface; by default ``MP_API_ENDPOINT`` or the Materials Project.
        progress: called with systems done and their total.

    Raises:
        ConfigError: no key, or a name that is no chemical system.
        InputError: the server cannot be reached or refuses, or knows nothing of a system.
    """
    import pandas as pd

    names = list(dict.fromkeys(canonical(system) for system in systems))
    endpoint = (endpoint or os.environ.get("MP_API_ENDPOINT") or ENDPOINT).rstrip("/") + "/"
    version = _version(endpoint, cache, names)
    rows, downloaded = [], []
    for done, name in enumerate(names):
        path = cache / version / f"{name}.json.gz"
        if not path.exists():
            _write(path, _download(name, endpoint, version))
            downloaded.append(name)
        rows += _read(path)
        if progress is not None:
            progress(done + 1, len(names))
    frame = pd.DataFrame(rows).drop_duplicates("material_id").reset_index(drop=True)
    return Fetched(frame, version, tuple(downloaded))


def canonical(system: str) -> str:
    """``Fe-Li-O`` of ``O-Li-Fe``.

    Raises:
        ConfigError: an unknown element, or more than nine, which the server does not take.
    """
    from pymatgen.core import Element

    symbols = sorted(set(system.strip().split("-")))
    unknown = [symbol for symbol in symbols if not Element.is_valid_symbol(symbol)]
    if unknown or len(symbols) > 9:
        raise ConfigError(f"expected a chemical system of one to nine elements, as Li-Fe-O, got {system!r}")
    return "-".join(symbols)


def _version(endpoint: str, cache: Path, names: Sequence[str]) -> str:
    """Version of the server's database; without a server, the newest in the cache that holds all systems."""
    import requests

    try:
        answer = requests.get(f"{endpoint}heartbeat", timeout=TIMEOUT)
        return str(answer.json()["db_version"])
    except (requests.RequestException, ValueError, KeyError) as error:
        folders = sorted((path for path in cache.glob("*") if path.is_dir()), reverse=True)
        for folder in folders:
            if all((folder / f"{name}.json.gz").exists() for name in names):
                return folder.name
        raise InputError(
            f"The Materials Project at {endpoint} does not answer ({type(error).__name__}), and the cache {cache} does "
            f"not hold {', '.join(names)}: check the network, or build the hull from a CSV (discovery-loop hull build)."
        ) from None


def _download(name: str, endpoint: str, version: str) -> list[dict[str, Any]]:
    key = os.environ.get(KEY, "").strip()
    if not key:
        raise ConfigError(
            f"To fetch {name} from the Materials Project, set the environment variable {KEY} to your key: "
            "https://next-gen.materialsproject.org/api gives one to every account."
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mp_api.client import MPRester

            with MPRester(key, endpoint=endpoint, mute_progress_bars=True) as client:
                entries = client.get_entries_in_chemsys(name, additional_criteria={"thermo_types": [THERMO_TYPE]})
    except Exception as error:  # the client raises many kinds, with requests' text in them
        text = str(error).replace(key, "***").strip().splitlines() or [type(error).__name__]
        raise InputError(
            f"The Materials Project refused or broke off the request for {name}: {text[0][:300]} Check {KEY}."
        ) from None
    if not entries:
        raise InputError(f"The Materials Project (database {version}) holds no entries of {name}.")
    return _rows(entries, name)


def _rows(entries: Sequence[Any], system: str) -> list[dict[str, Any]]:
    """One row an entry, with its distance from the hull of these entries."""
    from pymatgen.analysis.phase_diagram import PhaseDiagram

    from loop.io.cif_writer import to_cif

    pure = {entry.composition.elements[0].symbol for entry in entries if len(entry.composition.elements) == 1}
    missing = sorted(set(system.split("-")) - pure)
    if missing:
        raise InputError(f"The Materials Project gave no entry of the element {', '.join(missing)} for {system}.")
    diagram = PhaseDiagram(entries)
    return [
        {
            "material_id": str(entry.data.get("material_id") or entry.entry_id),
            "pretty_formula": entry.composition.reduced_formula,
            "chemsys": "-".join(sorted(element.symbol for element in entry.composition.elements)),
            "n_atoms": len(entry.structure),
            "energy_per_atom": entry.energy_per_atom,
            "uncorrected_energy_per_atom": entry.uncorrected_energy_per_atom,
            "run_type": str(entry.parameters.get("run_type", "")),
            "e_above_hull": float(diagram.get_e_above_hull(entry) or 0.0),
            "cif": to_cif(entry.structure),
        }
        for entry in entries
    ]


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    write_bytes(path, gzip.compress(json.dumps(rows).encode(), mtime=0))


def _read(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} in the cache is damaged ({error}): delete it, and it is fetched again.") from error
