"""The DFT oracle: energy, band gap, dielectric constant and distance from DFT's own hull, by GPAW."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from pymatgen.core import Structure

from loop.errors import ConfigError
from loop.io.files import hash_of
from loop.values import NOT_CONVERGED, OK, TIMEOUT, Candidate, Cost, EnergyType, Evaluation, Quantity, failed
from oracles.dft.mesh import centred, gamma_mesh, response_mesh
from oracles.dft.presets import DftSettings, starting_moments
from oracles.dft.process import Engine, Outcome, Resources, find_engine, run_worker
from oracles.guards import Limits, check
from oracles.symmetry import Reduced, primitive, reduced, space_group

VERSION = "2"  # raised when the same settings no longer give the same numbers
EXACT = 0.01  # A
EMPTY_BANDS = 8  # in the ground state: enough to see the lowest empty ones of any insulator
ALL: tuple[Literal["gap", "dielectric"], ...] = ("gap", "dielectric")  # properties
HULL = ("references", "phases", "phase_margin", "phase_atoms", "hull_above_gap")  # settings of the hull on demand
LARGE = ("bands.gpw",)  # work files not worth keeping between attempts


@dataclass(frozen=True)
class DftConfig:
    """What the oracle does.

    Raises:
        ConfigError: no such preset or setting, or a value is out of its range.
    """

    preset: str = "fast"
    """Numerical settings: test, fast or converged (docs/dft.md)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Changes to the preset, such as {ecut: 600}."""
    properties: tuple[Literal["gap", "dielectric"], ...] = ALL
    """gap, dielectric, or both."""
    relax: Literal["none", "positions", "cell"] = "none"
    """Relax nothing, positions, or cell and positions, by DFT first."""
    spin: Literal["auto", "off"] = "auto"
    """auto: spin-polarised where an element is often magnetic; off: never."""
    max_atoms: int = 16
    """Largest primitive cell, atoms."""
    time_limit: float = 1800.0
    """Processor seconds per crystal, of each process; ten times as many on the clock."""
    min_gap: float = 0.1
    """No dielectric constant below this gap, eV."""
    symprec: float = 0.05
    """A crystal is made exactly symmetric within this, A."""
    references: Literal["demand"] | None = None
    """demand: distance from DFT's own hull, of the crystal relaxed with its cell; its phases are computed, too."""
    phases: str | None = None
    """Ledger of the phases computed on demand, a file or URL; none: one for all work of this user."""
    phase_margin: float = 0.1
    """By how much a phase may lie below its estimate by a potential before it may be left out, eV/atom."""
    phase_atoms: int = 16
    """Largest primitive cell of a competing phase, atoms; larger ones are named in the message."""
    hull_above_gap: float = 0.0
    """Distance from the hull only at or above this gap, eV."""
    resources: Resources = field(default_factory=Resources)
    """Cores, memory and interpreter: how fast a result comes, not what it is."""

    def __post_init__(self) -> None:
        """Check values."""
        _ = self.numbers
        if self.max_atoms < 1 or not self.time_limit > 0:
            raise ConfigError(
                f"DFT: expected max_atoms >= 1 and time_limit > 0, got {self.max_atoms}, {self.time_limit}."
            )
        if self.phase_atoms < 1 or not self.phase_margin >= 0:
            raise ConfigError(
                f"DFT: expected phase_atoms >= 1 and phase_margin >= 0, got {self.phase_atoms}, {self.phase_margin}."
            )

    @cached_property
    def numbers(self) -> DftSettings:
        """The preset with its changes."""
        return DftSettings.preset(self.preset, **self.settings)


class PlacesCrystals(Protocol):
    """A hull of DFT's energies, as `oracles.dft.hull.DftHull`."""

    @property
    def checksum(self) -> str:
        """Of everything that a distance depends on."""
        ...

    def placed(self, candidate: Candidate, evaluation: Evaluation) -> Evaluation:
        """An evaluation with its distance from the hull."""
        ...


class DftOracle:
    """Implements `loop.contracts.Oracle`.

    A calculation that is cut off leaves its finished steps in a scratch folder and continues from the last good one;
    one that ends, well or not, leaves nothing, unless `Resources.keep` says that a costlier step may follow it.

    Args:
        config: settings.
        hull: places crystals where the settings ask for it; `oracles.dft.hull.dft_oracle` makes both.

    Raises:
        EngineError: there is no DFT engine here.
        ConfigError: the settings ask for a hull, and there is none.
    """

    def __init__(self, config: DftConfig = DftConfig(), hull: PlacesCrystals | None = None) -> None:
        if config.references is not None and hull is None:
            raise ConfigError("DFT: `references: demand` needs a hull: make the oracle by oracles.dft.hull.dft_oracle.")
        self.config, self.hull = config, hull
        self.engine: Engine = find_engine(config.resources.interpreter)

    @property
    def name(self) -> str:
        """``name@version``."""
        return f"dft-gpaw@{VERSION}"

    @cached_property
    def settings_hash(self) -> str:
        """Hash of everything that changes the result: settings, version of the engine and its data sets, the hull."""
        plain = self._hash_of()
        if self.config.references is None or self.hull is None:
            return plain
        return hash_of([plain, self.hull.checksum, self.config.hull_above_gap])[:16]

    def _hash_of(self, without: tuple[str, ...] = ()) -> str:
        left_out = ("resources", "preset", "settings", *HULL, *without)  # what the two latter lead to is in `numbers`
        settings = {name: value for name, value in asdict(self.config).items() if name not in left_out}
        return hash_of([VERSION, self.engine.version, self.engine.data, asdict(self.config.numbers), settings])[:16]

    @cached_property
    def energy_type(self) -> EnergyType:
        """Type of the energies; they are relative to GPAW's atoms, and meet those of the same settings only."""
        numbers = self.config.numbers
        engine = [VERSION, self.engine.version, self.engine.data]
        what = [*engine, numbers.ecut, numbers.k_spacing, numbers.width, self.config.spin]
        return EnergyType("GPAW", numbers.functional, "none", hash_of(what)[:16])

    def evaluate(
        self, candidates: Sequence[Candidate], progress: Callable[[int, int], None] | None = None
    ) -> list[Evaluation]:
        """One evaluation per candidate, in order."""
        found = []
        for done, candidate in enumerate(candidates, start=1):
            evaluation = self._evaluate(candidate)
            if self.hull is not None and self._is_placed(evaluation):
                evaluation = self.hull.placed(candidate, evaluation)
            found.append(evaluation)
            if progress is not None:
                progress(done, len(candidates))
        return found

    def accepts(self, structure: Structure) -> bool:
        """Whether a crystal is one that can be computed: no overlaps, known elements, not too large."""
        return not self._refusal(structure)[0]

    def _is_placed(self, evaluation: Evaluation) -> bool:
        small = evaluation.value("band_gap") < self.config.hull_above_gap  # of a crystal without a gap's value: no
        return self.config.references is not None and math.isfinite(evaluation.value("energy")) and not small

    # one crystal ------------------------------------------------------------------------------------------------------

    def _evaluate(self, candidate: Candidate) -> Evaluation:
        refused, message = self._refusal(candidate.structure)
        if refused:
            return self._evaluation(candidate, refused, message=message)
        way = reduced(candidate.structure, self.config.symprec)
        way = replace(way, primitive=centred(way.primitive, self.config.symprec))
        keep = self.config.resources.keep and "dielectric" not in self.config.properties
        key = hash_of([candidate.id, self._hash_of(without=("properties",))])[
            :16
        ]  # steps are shared, whatever is asked for
        with _work_folder(self.config.resources.scratch, key, keep=keep) as folder:
            calculation = Calculation(self, folder, way.primitive)
            calculation.run()
            return self._result(candidate, calculation, way)

    def _refusal(self, structure: Structure) -> tuple[str, str]:
        """Status and message of what is not computed; empty texts otherwise."""
        verdict = check(structure, self.engine.elements, Limits())
        if not verdict.ok:
            return verdict.status, verdict.message
        atoms = len(primitive(structure, self.config.symprec))
        if atoms <= self.config.max_atoms:
            return "", ""
        return failed("size"), f"{atoms} atoms in the primitive cell, at most {self.config.max_atoms} are computed"

    def _result(self, candidate: Candidate, calculation: Calculation, way: Reduced) -> Evaluation:
        """The evaluation that the finished steps and the ending amount to, the crystal in the candidate's cell."""
        steps, status, message = calculation.steps, *calculation.verdict()
        final = calculation.structure
        properties = _measured(steps, final)
        known = "ground" in steps
        return self._evaluation(
            candidate,
            status,
            message=message,
            properties=properties,
            energy_type=self.energy_type if known else None,
            structure=way.restored(calculation.moved) if known or "relax" in steps else None,
            space_group=space_group(candidate.structure, self.config.symprec),
            space_group_relaxed=space_group(final, self.config.symprec),
            cost=Cost(calculation.seconds, "cpu", self.config.resources.processes),
        )

    def _evaluation(self, candidate: Candidate, status: str, **rest: Any) -> Evaluation:
        return Evaluation(candidate.id, self.name, self.settings_hash, status, **rest)


class Calculation:
    """One crystal's calculation in a folder: up to two runs of the engine, relaxation and electrons."""

    def __init__(self, oracle: DftOracle, folder: Path, cell: Structure) -> None:
        self.config, self.engine, self.folder, self.cell = oracle.config, oracle.engine, folder, cell
        self.outcome, self.work = Outcome("done", 0.0), 0.0
        self.seconds = 0.0

    @property
    def steps(self) -> dict[str, Any]:
        """Finished steps."""
        path = self.folder / "done.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @property
    def exact(self) -> float:
        """Tolerance (A) of what a relaxed crystal is: no pseudo-symmetry that atoms would have to move for."""
        return min(self.config.symprec, EXACT)

    @property
    def moved(self) -> Structure:
        """The relaxed crystal as far as it is, atom by atom; the one to begin with where nothing was relaxed."""
        relaxed = self.steps.get("relax")
        if relaxed is None:
            return self.cell
        data = relaxed["structure"]
        return Structure(data["cell"], data["numbers"], data["positions"])

    @property
    def structure(self) -> Structure:
        """The same crystal exactly symmetric, in its primitive cell."""
        return centred(primitive(self.moved, self.exact), self.exact) if "relax" in self.steps else self.cell

    def run(self) -> None:
        """Relax where asked, then what electrons do; stops at the first run that does not end well."""
        if self.config.relax != "none":
            self._launch(["relax"], self.cell)
            relaxed = self.steps.get("relax", {})
            if self.outcome.ending != "done" or "failed" in self.steps or not relaxed:
                return
            if not relaxed["converged"]:
                self._launch(["ground"], self.structure)  # an upper bound of the energy: a hull may need it
                return
        wanted = [name for name in ALL if name in self.config.properties]
        needed = ["ground", *(["gap"] if wanted else []), *wanted]  # the dielectric constant asks for the gap first
        self._launch(list(dict.fromkeys(needed)), self.structure)

    def verdict(self) -> tuple[str, str]:
        """Status and message."""
        steps, kinds = self.steps, {"timeout": TIMEOUT, "memory": failed("memory"), "crashed": failed("crashed")}
        broken = steps.get("failed")
        status, message = kinds.get(self.outcome.ending, OK), self.outcome.message
        if broken:
            status, message = failed(broken["kind"]), broken["message"]
        elif status == OK and "relax" in steps and not steps["relax"]["converged"]:
            last = steps["relax"]
            if "rise" in last:
                return NOT_CONVERGED, (
                    f"forces and stress led to an energy {last['rise']:.3f} eV/atom higher, so relax_ecut, "
                    f"{self.config.numbers.relax_ecut:g} eV, is too low here; the step of the lowest energy is kept"
                )
            text = f"after {last['steps']} steps {last['max_force']:.3g} eV/A and {last['max_stress']:.3g} GPa are left"
            return NOT_CONVERGED, text
        if status != OK and "ground" in steps:  # the energy stands, and the gap where there is one
            missing = [name for name in self.config.properties if name not in steps]
            return OK, f"no {' and no '.join(missing)}: {message}"
        if status == OK:
            response = steps.get("dielectric", {})
            message = response.get("skipped", "")
            if (diagonal := response.get("diagonal")) and not _possible(diagonal):
                message = f"no dielectric: the response gave {diagonal}, expected finite values of at least 1"
        return status, message

    def _launch(self, steps: list[str], cell: Structure) -> None:
        job = self.job(steps, cell)
        (self.folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        left = self.config.time_limit - self.work
        self.outcome = run_worker(self.folder, self.config.resources, self.engine, left)
        self.seconds += self.outcome.seconds
        self.work += self.outcome.work

    def job(self, steps: list[str], cell: Structure) -> dict[str, Any]:
        """Settings of the engine."""
        numbers, symprec = self.config.numbers, self.exact
        moments = starting_moments(cell)
        magnetic = self.config.spin == "auto" and any(moments)
        return {
            "steps": steps,
            "structure": {
                "cell": cell.lattice.matrix.tolist(),
                "numbers": [site.specie.Z for site in cell],
                "positions": cell.frac_coords.tolist(),
            },
            "settings": asdict(numbers),
            "relax": self.config.relax,
            "min_gap": self.config.min_gap,
            "magmoms": moments if magnetic else None,
            "kpts": gamma_mesh(cell, numbers.k_spacing, symprec).tolist(),
            "empty_bands": EMPTY_BANDS + math.ceil(sum(moments) / 2),  # the majority spin fills that many more
            "response": {"kpts": response_mesh(cell, numbers.response_k_spacing, symprec).tolist()},
        }


def _measured(steps: dict[str, Any], final: Structure) -> dict[str, Quantity]:
    """Properties from the finished steps."""
    found: dict[str, Quantity] = {}
    if ground := steps.get("ground"):
        found["energy"] = Quantity(ground["energy"], "eV/atom")
        found["volume"] = Quantity(final.volume / len(final), "A^3/atom")
        found["max_force"] = Quantity(ground["max_force"], "eV/A")
        found["max_stress"] = Quantity(ground["max_stress"], "GPa")
        found["magnetic_moment"] = Quantity(ground["magnetic_moment"] / len(final), "mu_B/atom")
        found["scf_attempts"] = Quantity(float(ground["attempts"]), "1")
    if relaxed := steps.get("relax"):
        found["steps"] = Quantity(float(relaxed["steps"]), "1")
    if gap := steps.get("gap"):
        found["band_gap"] = Quantity(gap["gap"], "eV")
        found["band_gap_direct"] = Quantity(gap["direct"], "eV")
    diagonal = steps.get("dielectric", {}).get("diagonal")
    if diagonal and _possible(diagonal):
        found["dielectric_electronic"] = Quantity(float(np.mean(diagonal)), "1")
    return found


def _possible(diagonal: Sequence[float]) -> bool:
    """Whether a static dielectric tensor can have these: below 1 nothing is screened."""
    return all(math.isfinite(value) and value >= 1.0 for value in diagonal)


@contextmanager
def _work_folder(scratch: str | None, key: str, *, keep: bool = False) -> Iterator[Path]:
    """The folder of one calculation, with what an earlier attempt left; removed unless this one is cut off or kept."""
    root = Path(scratch or Path(tempfile.gettempdir()) / f"discovery-loop-dft-{os.getuid()}")
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = root / key
    with (root / f"{key}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process computes the same: let it, out of its way
            with tempfile.TemporaryDirectory(dir=root, prefix=f"{key}-") as other:
                yield Path(other)
            return
        folder.mkdir(exist_ok=True)
        _forget_failure(folder)
        try:
            yield folder
        except BaseException:
            for name in LARGE:
                (folder / name).unlink(missing_ok=True)
            raise
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
            (root / f"{key}.lock").unlink(missing_ok=True)


def _forget_failure(folder: Path) -> None:
    """Drop what a killed attempt may have said last; a damaged log counts as none."""
    path = folder / "done.json"
    if path.is_file():
        try:
            steps = json.loads(path.read_text())
            steps.pop("failed", None)
            path.write_text(json.dumps(steps))
        except (ValueError, AttributeError):
            path.unlink()
