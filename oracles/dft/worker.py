"""One DFT calculation with GPAW, in a process of its own: ``python worker.py FOLDER``.

Imports nothing of this project, so that the engine may live in another environment and, being GPL, in another process.
Reads ``job.json``, adds each finished step to ``done.json`` at once, and begins at the first step that is not in it.
All quantities in eV and Angstrom.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Empty bands at the gap must be converged too; the highest need not be, and may never be: where they cut a degenerate
# level apart, their error grows again. Leaving out four instead of two halved the time of KMgF3.
UNCONVERGED = -4
# Energy, forces and stress rest on the occupied bands alone. The empty ones of La2S3 (20 atoms) take three times as
# many iterations, so they are waited for only where a gap is asked for.
OCCUPIED = "occupied"
GPA = 160.21766208  # per eV/A^3
# eV/atom. A relaxation follows forces and stress, and below the cutoff that the atoms need the stress lacks the plane
# waves of a larger cell (Pulay stress): nitrogen's crystal shrank to a third of its volume at 500 eV.
RISE = 0.002
# Mixers tried in turn when self-consistency fails: GPAW's own, a cautious one, and a very cautious one that lets
# electrons spread over levels within 0.1 eV (the last resort for near-metals).
ATTEMPTS: tuple[dict[str, Any], ...] = (
    {},
    {"beta": 0.05, "nmaxold": 5, "weight": 50.0},
    {"beta": 0.02, "nmaxold": 8, "weight": 100.0, "width": 0.1},
)


class NoResultError(Exception):
    """A named reason why there is no result."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Log:
    """``done.json``: finished steps by name. Rank 0 writes, whole or not at all."""

    def __init__(self, folder: Path, rank: int) -> None:
        self.path, self.rank = folder / "done.json", rank
        self.steps: dict[str, Any] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def add(self, name: str, value: dict[str, Any]) -> None:
        """Keep a step."""
        self.steps[name] = value
        if self.rank == 0:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.steps))
            temporary.replace(self.path)


def make_atoms(data: dict[str, Any], magmoms: list[float] | None) -> Any:
    """ASE atoms."""
    from ase import Atoms

    return Atoms(numbers=data["numbers"], scaled_positions=data["positions"], cell=data["cell"], pbc=True,
                 magmoms=magmoms)  # fmt: skip


def as_data(atoms: Any) -> dict[str, Any]:
    """JSON-ready form of atoms."""
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.get_scaled_positions(wrap=False).tolist(),
        "cell": atoms.cell.array.tolist(),
    }


def calculator(
    folder: Path, job: dict[str, Any], ecut: float, attempt: dict[str, Any], text: str, bands: int | str = OCCUPIED
) -> Any:
    """A GPAW calculator; `attempt` changes mixing and smearing, `bands` must converge."""
    from gpaw import GPAW, PW

    settings = job["settings"]
    points: Any = np.array(job["kpts"])
    mixer = {name: attempt[name] for name in ("beta", "nmaxold", "weight") if name in attempt}
    options: dict[str, Any] = {"mixer": mixer} if mixer else {}
    return GPAW(
        mode=PW(ecut),
        xc=settings["functional"],
        kpts=points,
        occupations={"name": "fermi-dirac", "width": attempt.get("width", settings["width"])},
        nbands=-job["empty_bands"],  # negative: as many empty ones
        convergence={
            "energy": settings["scf_energy"],
            "density": settings["scf_density"],
            "bands": bands,
            "eigenstates": settings["scf_eigenstates"],
        },
        maxiter=settings["max_scf"],
        txt=str(folder / text),
        **options,
    )


def states(job: dict[str, Any], bands: int) -> dict[str, Any]:
    """When states at a fixed density are converged: as those of the ground state are."""
    return {"bands": bands, "eigenstates": job["settings"]["scf_eigenstates"]}


def with_attempts(run: Callable[[dict[str, Any]], Any]) -> tuple[Any, int]:
    """What `run` gives with the first mixing that converges, and the number of attempts.

    Raises:
        NoResultError: none does.
    """
    from gpaw import KohnShamConvergenceError

    for number, attempt in enumerate(ATTEMPTS, start=1):
        try:
            return run(attempt), number
        except KohnShamConvergenceError:
            continue
    raise NoResultError("scf-not-converged", f"no self-consistent density with {len(ATTEMPTS)} kinds of mixing")


def relax(folder: Path, job: dict[str, Any], log: Log) -> None:
    """Move atoms, and the cell where asked, until forces and stress are small; each step is kept."""
    before = log.steps.get("relax", {})
    if before.get("done"):
        return
    settings, magmoms = job["settings"], job["magmoms"]

    def run(attempt: dict[str, Any]) -> None:
        # begin where an earlier run, or an earlier kind of mixing, had come to
        last = log.steps.get("relax", {"structure": job["structure"], "steps": 0})
        atoms = make_atoms(last["structure"], magmoms)
        atoms.calc = calculator(folder, job, settings["relax_ecut"], attempt, "relax.txt")
        optimise(atoms, job, log, int(last["steps"]))

    with_attempts(run)


def optimise(atoms: Any, job: dict[str, Any], log: Log, first: int) -> None:
    """BFGS (with cell: in the logarithm of the strain) under `max_steps` in all."""
    from ase.filters import FrechetCellFilter
    from ase.optimize import BFGS

    settings, cell = job["settings"], job["relax"] == "cell"
    target: Any = FrechetCellFilter(atoms) if cell else atoms
    # converged is what `small` says: forces and stress apart, which ASE's one threshold cannot
    for number, _ in enumerate(BFGS(target, logfile=None).irun(fmax=0.0, steps=settings["max_steps"] - first), first):
        force = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        stress = float(np.abs(atoms.get_stress()).max() * GPA) if cell else 0.0
        small = force <= settings["fmax"] and stress <= settings["smax"]
        energy = float(atoms.get_potential_energy()) / len(atoms)
        step = {
            "structure": as_data(atoms), "steps": number, "max_force": force, "max_stress": stress, "energy": energy,
            "converged": small, "done": small or number >= settings["max_steps"],
        }  # fmt: skip
        here = {key: step[key] for key in ("structure", "energy")}
        lowest = min(here, log.steps.get("relax", {}).get("lowest", here), key=lambda each: each["energy"])
        log.add("relax", ended(step, lowest) if step["done"] else step | {"lowest": lowest})
        if step["done"]:
            return


def ended(step: dict[str, Any], lowest: dict[str, Any]) -> dict[str, Any]:
    """The last step; where the energy has risen on the way, not converged, with the structure of the lowest energy."""
    rise = step["energy"] - lowest["energy"]
    if rise <= RISE:
        return step
    return step | {"converged": False, "structure": lowest["structure"], "energy": lowest["energy"], "rise": rise}


def ground(folder: Path, job: dict[str, Any], log: Log) -> None:
    """Self-consistent density, energy, forces, stress, and eigenvalues on the mesh."""
    if "ground" in log.steps and (folder / "ground.gpw").is_file():
        return
    empty_states = "gap" in job["steps"]
    bands = UNCONVERGED if empty_states else OCCUPIED
    atoms = make_atoms(job["structure"], job["magmoms"])

    def run(attempt: dict[str, Any]) -> Any:
        atoms.calc = calculator(folder, job, job["settings"]["ecut"], attempt, "ground.txt", bands)
        return atoms.get_potential_energy()

    energy, attempts = with_attempts(run)
    calc = atoms.calc
    found = {
        "energy": float(energy) / len(atoms),
        "max_force": float(np.linalg.norm(atoms.get_forces(), axis=1).max()),
        "max_stress": float(np.abs(atoms.get_stress()).max() * GPA),
        "attempts": attempts,
        "empty_states": empty_states,
        "electrons": float(calc.get_number_of_electrons()),
        "magnetic_moment": float(calc.get_magnetic_moment()) if job["magmoms"] else 0.0,
        **edges(calc),
    }
    calc.write(str(folder / "ground.gpw"))
    log.add("ground", found)


def edges(calc: Any) -> dict[str, Any]:
    """Band edges on a calculator's k-points: per spin highest occupied and lowest empty; None for a metal."""
    fermi = calc.get_fermi_level()
    spins, points = calc.get_number_of_spins(), len(calc.get_ibz_k_points())
    levels = np.array([[calc.get_eigenvalues(kpt=k, spin=s) for k in range(points)] for s in range(spins)]) - fermi
    occupied = (levels < 0).sum(axis=2)  # (spins, points)
    if (occupied != occupied[:, :1]).any() or occupied.max() >= levels.shape[2]:
        return {"metal": True, "fermi": float(fermi)}
    per_spin = [(spin[:, : max(n[0], 0)], spin[:, n[0] :]) for spin, n in zip(levels, occupied, strict=True)]
    valence = [float(v.max()) for v, _ in per_spin if v.size]
    direct = min(float((c.min(axis=1) - v.max(axis=1)).min()) for v, c in per_spin if v.size and c.size)
    conduction = [float(c.min()) for _, c in per_spin]
    # relative to the Fermi level of this run; absolute so that two runs of one density can be put together
    return {"metal": False, "fermi": float(fermi), "valence": max(valence) + float(fermi),
            "conduction": min(conduction) + float(fermi), "direct": direct}  # fmt: skip


def special_lines(job: dict[str, Any]) -> np.ndarray | None:
    """k-points on the lines between special points (Setyawan and Curtarolo, 2010); None where none are asked for."""
    spacing = job["settings"]["path_spacing"]
    if spacing is None:
        return None
    cell = make_atoms(job["structure"], None).cell
    try:
        result: np.ndarray | None = cell.bandpath(density=1 / spacing).kpts
        return result
    except Exception:  # of a lattice that ASE cannot classify; the mesh alone then tells the gap
        return None


def levels(folder: Path, job: dict[str, Any], points: np.ndarray, text: str, **options: Any) -> dict[str, Any]:
    """Band edges at the ground state's density on other k-points, or on its own with the empty bands converged."""
    from gpaw import GPAW

    calc = GPAW(str(folder / "ground.gpw"), txt=None).fixed_density(
        kpts=points, nbands=-job["empty_bands"], convergence=states(job, UNCONVERGED), txt=str(folder / text), **options
    )
    return edges(calc)


def gap(folder: Path, job: dict[str, Any], log: Log) -> None:
    """Fundamental and direct gap: on the mesh, and along the lines between special points where asked."""
    found = dict(log.steps["ground"])
    if not found.get("empty_states", True):  # the density is that of a run for the energy alone
        found |= levels(folder, job, np.array(job["kpts"]), "mesh.txt")
    path = None if found["metal"] else special_lines(job)
    if path is not None:
        lines = levels(folder, job, path, "path.txt", symmetry="off")
        if not lines["metal"]:
            found["valence"] = max(found["valence"], lines["valence"])
            found["conduction"] = min(found["conduction"], lines["conduction"])
            found["direct"] = min(found["direct"], lines["direct"])
    width = 0.0 if found["metal"] else max(0.0, found["conduction"] - found["valence"])
    log.add("gap", {"gap": width, "direct": max(0.0, found["direct"]) if width else 0.0})


def dielectric(folder: Path, job: dict[str, Any], log: Log) -> None:
    """Electronic dielectric tensor's diagonal with local fields, from a sum over empty bands at fixed density."""
    from gpaw import GPAW
    from gpaw.response.df import DielectricFunction

    settings, response = job["settings"], job["response"]
    if log.steps["gap"]["gap"] < job["min_gap"]:
        log.add("dielectric", {"skipped": f"the gap is below {job['min_gap']} eV: no static dielectric constant"})
        return
    occupied = round(log.steps["ground"]["electrons"] / 2)
    bands = max(occupied + 8, int(np.ceil(settings["response_bands"] * occupied)))
    extra = max(4, bands // 10)  # the highest bands converge slowly and are thrown away
    calc = GPAW(str(folder / "ground.gpw"), txt=None).fixed_density(
        kpts=np.array(response["kpts"]), nbands=bands + extra, convergence=states(job, bands), maxiter=500,
        txt=str(folder / "bands.txt"),
    )  # fmt: skip
    calc.write(str(folder / "bands.gpw"), mode="all")
    kernel = "RPA" if job["magmoms"] else settings["response_xc"]  # GPAW's kernels beyond RPA know one spin only
    response = DielectricFunction(
        str(folder / "bands.gpw"), frequencies=np.array([0.0]), ecut=settings["response_ecut"], hilbert=False, eta=0.0,
        nbands=bands, intraband=False, txt=str(folder / "response.txt"),
    )  # fmt: skip
    values = [response.get_macroscopic_dielectric_constant(xc=kernel, direction=axis) for axis in "xyz"]
    tensor = [float(np.real(value[1])) for value in values]
    plain = [float(np.real(value[0])) for value in values]
    log.add("dielectric", {"diagonal": tensor, "no_local_fields": plain, "kernel": kernel, "bands": bands})


STEPS = {"relax": relax, "ground": ground, "gap": gap, "dielectric": dielectric}


def leave_with_parent() -> None:
    """End this process when who started it is gone: its end of the pipe that is our input closes then."""
    while os.read(0, 1):
        pass
    os._exit(4)


def main(folder: Path) -> int:
    """Run the steps of a job that are not done."""
    from gpaw.mpi import world

    if world.rank == 0:  # MPI gives the input to this one, and ends the others with it
        threading.Thread(target=leave_with_parent, daemon=True).start()
    job = json.loads((folder / "job.json").read_text())
    log = Log(folder, world.rank)
    world.barrier()
    try:
        for name in job["steps"]:
            if name == "relax" or name not in log.steps or name == "ground":
                STEPS[name](folder, job, log)
    except NoResultError as reason:
        log.add("failed", {"kind": reason.kind, "message": str(reason)})
    except Exception as error:  # whatever the engine raises is this crystal's result
        log.add("failed", {"kind": "engine", "message": f"{type(error).__name__}: {error}"[:500]})
        if world.size > 1:  # the other ranks may wait for this one for ever
            sys.stdout.flush()
            os._exit(3)
        return 3
    return 0


if __name__ == "__main__":
    if sys.path and Path(sys.path[0]).resolve() == Path(__file__).resolve().parent:
        del sys.path[0]  # the folder of this script holds modules of common names
    sys.exit(main(Path(sys.argv[1])))
