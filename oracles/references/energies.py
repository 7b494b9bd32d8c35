"""Building a table of reference phases: all polymorphs evaluated, the low ones relaxed, corners from prototypes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.contracts import Progress
from loop.errors import InputError
from loop.hull import Hull, HullEntry, symbols_of
from loop.io.crystals import read_frame
from loop.io.files import sha256, write_text
from oracles.references.element_prototypes import LARGEST, Corner, lowest_prototypes
from oracles.references.table import References, is_element, structure_of, write_references
from oracles.relax import RelaxConfig, relax

if TYPE_CHECKING:
    import pandas as pd
    from pymatgen.core import Structure

    from oracles.potentials.base import Potential

POLYMORPHS = 0.02  # eV/atom above the lowest single point of a formula, within which a polymorph is relaxed as well
HOLE = 0.5  # eV/atom: a relaxation that falls further below the hull of single points found a hole of the potential
SINGLE = ["row", "id", "formula", "n", "energy", "held_out", "reason"]
RELAXED = ["row", "energy", "status", "steps", "volume"]


@dataclass(frozen=True)
class BuildConfig:
    """How a table is built."""

    splits: tuple[str, ...] | None = None  # values of a `split` column to take; None: all
    held_out: tuple[str, ...] = ("test",)  # values of a `split` column whose formulas benchmarks leave out
    chunk: int = 1024  # crystals between two files on disk: what a kill may cost
    relax: RelaxConfig | None = field(default_factory=RelaxConfig)  # as candidates are; None: single points alone
    relax_within: float = 0.1  # eV/atom above the hull of single points: phases further up compete with nothing
    relax_atoms: int | None = None  # most atoms of a cell to relax; None: any size
    largest_prototype: int = LARGEST  # atoms; see `oracles.references.element_prototypes.prototypes`


def build_references(
    sources: Sequence[str | Path],
    output: str | Path,
    potential: Potential,
    config: BuildConfig = BuildConfig(),
    progress: Progress | None = None,
) -> References:
    """Evaluate crystals and write a table of reference phases with its provenance.

    Every crystal is evaluated as it stands. Of each formula near the hull the low polymorphs are relaxed, with the
    settings that candidates get. Each element gets the lowest of its relaxed prototypes and published crystals.
    Finished parts stay in ``<output>.parts``, so that a killed build resumes;
    they are removed once the table is written.

    Args:
        sources: CSV files with a `cif` column and, where known, `pretty_formula` and `split`.
        output: where the table goes (.csv or .csv.gz); its JSON lies beside it.
        potential: evaluates and relaxes.
        config: which rows.
        progress: told of stages.

    Raises:
        InputError: no usable row, or the parts belong to another build.
    """
    rows, digests = _read_sources(sources, config)
    parts = _Parts(Path(output), potential, config, digests)
    singles = _single_points(rows, potential, config, parts, progress)
    corners = _corners(rows, singles, potential, config, parts, progress)
    relaxed = _relaxations(rows, singles, corners, (potential, config), parts, progress)
    table = _assemble(singles, relaxed, corners)
    lost = singles[singles["reason"].notna()]
    made = write_references(
        Path(output),
        table,
        potential,
        sources=digests,
        corners={element: _brief(corner) for element, corner in corners.items()},
        dropped=dict(Counter(lost["reason"])),
        dropped_ids=lost["id"].tolist(),
        relaxation=None if config.relax is None else _relaxation(config, relaxed),
    )
    parts.remove()
    return made


class _Parts:
    """What a build has finished, on disk; parts of another build are refused."""

    def __init__(self, output: Path, potential: Potential, config: BuildConfig, digests: dict[str, str]) -> None:
        self.folder = output.with_name(output.name + ".parts")
        self.folder.mkdir(parents=True, exist_ok=True)
        relaxation = None if config.relax is None else {**asdict(config.relax), "batch_size": None}
        settings = {"splits": config.splits, "relax": relaxation, "largest_prototype": config.largest_prototype}
        what = {"energy_type": asdict(potential.energy_type), "sources": digests, **settings}
        stamp, path = json.dumps(what, sort_keys=True), self.folder / "build.json"
        if path.exists() and path.read_text(encoding="utf-8") != stamp:
            raise InputError(
                f"{self.folder} holds parts of another build (other potential, sources or settings): delete it, or "
                "choose another output."
            )
        write_text(path, stamp)

    def load(self, kind: str, columns: list[str]) -> pd.DataFrame:
        """All finished rows of a kind."""
        import pandas as pd

        text: dict[Any, Any] = {"id": str, "formula": str, "reason": str, "status": str}
        read: dict[str, Any] = {
            "keep_default_na": False,
            "na_values": {name: [""] for name in columns if name not in ("id", "formula")},
        }
        found = [pd.read_csv(path, dtype=text, **read) for path in sorted(self.folder.glob(f"{kind}_*.csv"))]
        nothing = pd.DataFrame({name: pd.Series(dtype=object if name in text else float) for name in columns})
        return pd.concat(found, ignore_index=True) if found else nothing

    def add(self, kind: str, table: pd.DataFrame) -> None:
        """Keep a finished part."""
        number = len(list(self.folder.glob(f"{kind}_*.csv")))
        write_text(self.folder / f"{kind}_{number:05d}.csv", table.to_csv(index=False))

    def remove(self) -> None:
        """Remove what is finished, and the folder, unless somebody else keeps something there."""
        for pattern in ("chunk_*.csv", "relaxed_*.csv", "corners.json", "build.json"):
            for path in self.folder.glob(pattern):
                path.unlink()
        with suppress(OSError):
            self.folder.rmdir()


def _read_sources(sources: Sequence[str | Path], config: BuildConfig) -> tuple[pd.DataFrame, dict[str, str]]:
    """Rows to evaluate (id, cif, pretty_formula, held_out) and the checksum of each file."""
    import pandas as pd

    frames, digests = [], {}
    for source in map(Path, sources):
        frame, ids = read_frame(source)
        frame = frame.assign(id=ids)
        split = frame["split"].astype(str) if "split" in frame else pd.Series("", index=frame.index)
        frame["held_out"] = split.isin(config.held_out).astype(int)
        if "pretty_formula" not in frame:
            frame["pretty_formula"] = None
        chosen = frame if config.splits is None or "split" not in frame else frame[split.isin(config.splits)]
        frames.append(chosen[["id", "cif", "pretty_formula", "held_out"]])
        digests[source.name] = sha256(source)
    rows = pd.concat(frames, ignore_index=True)
    if rows.empty:
        raise InputError(f"expected crystals in {', '.join(digests)}, found none")
    return rows, digests


def _chunks(rows: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _single_points(
    rows: pd.DataFrame, potential: Potential, config: BuildConfig, parts: _Parts, progress: Progress | None
) -> pd.DataFrame:
    """Energy of each crystal as it stands, or the reason why there is none."""
    done = set(parts.load("chunk", SINGLE)["row"].astype(int))
    todo, finished = [row for row in range(len(rows)) if row not in done], len(done)
    for chunk in _chunks(todo, config.chunk):
        parts.add("chunk", _evaluate(rows.iloc[chunk], potential))
        finished += len(chunk)
        if progress is not None:
            progress("evaluate", finished, len(rows), {})
    singles = parts.load("chunk", SINGLE).sort_values("row").reset_index(drop=True)
    if singles["reason"].notna().all():
        raise InputError(f"none of {len(singles)} crystals can be used; the first: {singles['reason'].iloc[0]}")
    return singles


def _evaluate(rows: pd.DataFrame, potential: Potential) -> pd.DataFrame:
    import pandas as pd

    found: list[dict[str, Any]] = []
    structures: list[Structure] = []
    for row, each in zip(rows.index, rows.itertuples(index=False), strict=True):
        structure, reason = structure_of(each.cif, each.pretty_formula)
        formula = "" if structure is None else structure.composition.reduced_formula
        if structure is not None and not (verdict := potential.check(structure)).ok:
            structure, reason = None, verdict.status
        found.append({"row": row, "id": each.id, "formula": formula, "n": 0, "energy": np.nan,
                      "held_out": each.held_out, "reason": reason})  # fmt: skip
        if structure is not None:
            structures.append(structure)
            found[-1]["n"] = len(structure)
    energies = iter(potential.energies(structures).tolist())
    for entry in found:
        if entry["n"]:
            entry["energy"] = next(energies)
            entry["reason"] = None if np.isfinite(entry["energy"]) else "failed:no-energy"
    return pd.DataFrame(found, columns=SINGLE).round({"energy": 6})


def _corners(
    rows: pd.DataFrame, singles: pd.DataFrame, potential: Potential, config: BuildConfig, parts: _Parts,
    progress: Progress | None,
) -> dict[str, Corner]:  # fmt: skip
    """The lowest relaxed crystal of each element of the sources."""
    usable = singles[singles["reason"].isna()]
    elements = sorted({symbol for formula in usable["formula"] for symbol in symbols_of(formula)})
    path = parts.folder / "corners.json"
    done = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    published: dict[str, dict[str, Structure]] = {}
    for row, id, formula in usable[["row", "id", "formula"]].itertuples(index=False):
        if (element := is_element(formula)) and element not in done:
            structure, _ = structure_of(rows["cif"].iloc[row], None)
            if structure is not None:
                published.setdefault(element, {})[id] = structure
    for number, element in enumerate(elements, start=1):
        if element not in done:
            settings = config.relax or RelaxConfig()
            found = lowest_prototypes([element], potential, published, settings, largest=config.largest_prototype)
            done[element] = asdict(found[element]) if element in found else None
            write_text(path, json.dumps(done))
        if progress is not None:
            progress("corners", number, len(elements), {})
    names = {entry.name for entry in fields(Corner)}
    return {e: Corner(**{k: v for k, v in c.items() if k in names}) for e, c in done.items() if c is not None}


def _relaxations(
    rows: pd.DataFrame, singles: pd.DataFrame, corners: dict[str, Corner], how: tuple[Potential, BuildConfig],
    parts: _Parts, progress: Progress | None,
) -> pd.DataFrame:  # fmt: skip
    """Relaxed energies of the phases that may compete, small cells first."""
    potential, config = how
    if config.relax is None:
        return parts.load("relaxed", RELAXED)
    wanted = singles[_may_compete(singles, corners, potential, config)].sort_values(["n", "row"], kind="stable")
    done = set(parts.load("relaxed", RELAXED)["row"].astype(int))
    todo = [row for row in wanted["row"].tolist() if row not in done]
    finished = len(wanted) - len(todo)
    for chunk in _chunks(todo, config.chunk // 4 or 1):
        parts.add("relaxed", _relax(rows, chunk, potential, config.relax))
        finished += len(chunk)
        if progress is not None:
            progress("relax", finished, len(wanted), {})
    return parts.load("relaxed", RELAXED)


def _may_compete(
    singles: pd.DataFrame, corners: dict[str, Corner], potential: Potential, config: BuildConfig
) -> np.ndarray:
    """Which rows are near the hull of single points, and of their formula's low polymorphs; bool (n,)."""
    usable = singles["reason"].isna() & singles["formula"].map(lambda formula: is_element(formula) is None)
    lowest = singles[usable].groupby("formula")["energy"].transform("min").reindex(singles.index)
    polymorph = usable & (singles["energy"] <= lowest + POLYMORPHS)
    if config.relax_atoms is not None:
        polymorph &= singles["n"] <= config.relax_atoms
    hull = _hull(singles[usable], corners, potential)
    near = polymorph.to_numpy().copy()
    for index in np.flatnonzero(near):
        place = hull.e_above_hull(singles["formula"].iloc[index], singles["energy"].iloc[index], potential.energy_type)
        near[index] = place.e_above_hull <= config.relax_within
    return near


def _hull(singles: pd.DataFrame, corners: dict[str, Corner], potential: Potential) -> Hull:
    pairs = singles.groupby("formula")["energy"].min().items()
    entries = [HullEntry(str(formula), float(energy)) for formula, energy in pairs]
    return Hull([*entries, *(HullEntry(e, c.energy) for e, c in corners.items())], potential.energy_type)


def _relax(rows: pd.DataFrame, chunk: Sequence[int], potential: Potential, config: RelaxConfig) -> pd.DataFrame:
    import pandas as pd

    structures = [structure_of(rows["cif"].iloc[row], None)[0] for row in chunk]
    outcomes = relax([structure for structure in structures if structure is not None], potential, config)
    found = [
        (row, out.energy, out.status, out.steps, out.structure.volume / len(out.structure) if out.structure else np.nan)
        for row, out in zip(chunk, outcomes, strict=True)  # single points came from the same texts: all are readable
    ]
    return pd.DataFrame(found, columns=RELAXED).round({"energy": 6, "volume": 4})


def _assemble(singles: pd.DataFrame, relaxed: pd.DataFrame, corners: dict[str, Corner]) -> pd.DataFrame:
    """One row per formula: its lowest crystal, relaxed where one is, and the corners."""
    import pandas as pd

    good = singles[singles["reason"].isna()].merge(
        relaxed.loc[relaxed["status"] == "ok", ["row", "energy"]].rename(columns={"energy": "after"}), "left", "row"
    )
    sound = good["after"].notna() & (good["energy"] - good["after"] < HOLE)
    good["unrelaxed"] = good["energy"]
    good["energy_per_atom"] = np.where(sound, good["after"], good["energy"])
    good["relaxed"] = sound.astype(int)
    compounds = good[good["formula"].map(lambda formula: is_element(formula) is None)]
    elements = pd.DataFrame(
        [
            {"formula": c.element, "energy_per_atom": c.energy, "unrelaxed": c.unrelaxed, "id": c.name, "held_out": 0,
             "relaxed": 1} for c in corners.values()
        ]
    )  # fmt: skip
    return pd.concat([compounds, elements], ignore_index=True)


def _brief(corner: Corner) -> dict[str, Any]:
    """What the JSON keeps of a corner."""
    return {
        "name": corner.name, "energy": round(corner.energy, 5), "volume": round(corner.volume, 3),
        "space_group": corner.space_group, "tried": len(corner.tried),
    }  # fmt: skip


def _relaxation(config: BuildConfig, relaxed: pd.DataFrame) -> dict[str, Any]:
    settings = asdict(config.relax) if config.relax is not None else {}
    bounds = {"within": config.relax_within, "most_atoms": config.relax_atoms, "polymorphs_within": POLYMORPHS}
    return {"settings": settings, **bounds, "statuses": dict(Counter(relaxed["status"]))}
