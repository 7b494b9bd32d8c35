"""Relaxation against ASE, and every way it can end."""

import threading
import time

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from pymatgen.core import Lattice, Structure

from loop.errors import ConfigError
from loop.values import EnergyType
from oracles.guards import Limits
from oracles.potentials.base import Potential, PotentialInfo, SinglePoint
from oracles.potentials.calculator import to_structure
from oracles.potentials.loading import load_potential
from oracles.relax import OPTIMIZERS, RelaxConfig, relax
from oracles.symmetry import space_group

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def emt():
    return load_potential("ase.calculators.emt:EMT")


@pytest.fixture(scope="module")
def chgnet():
    return load_potential("chgnet", device="cpu")


def alloy(seed=0) -> Structure:
    """A shaken and strained cell of Cu3Al."""
    structure = to_structure(bulk("Cu", cubic=True))
    structure.replace(0, "Al")
    structure.perturb(0.1, seed=seed)
    structure.apply_strain([0.03, -0.02, 0.01])
    return structure


class Pushing(Potential):
    """A potential whose stress never changes: a crystal under it grows or shrinks for ever."""

    def __init__(self, stress: float) -> None:
        about = PotentialInfo("pushing", EnergyType("push", "", "none"), frozenset({"Cu"}), "", "")
        super().__init__(about, Limits())
        self.stress = stress

    def compute(self, structures, groups, *, gradients):
        forces = [np.zeros((len(s), 3)) for s in structures]
        return [SinglePoint(energy=-1.0, forces=f, stress=np.eye(3) * self.stress) for f in forces]

    def calculator(self):
        raise NotImplementedError


def test_it_finds_the_minimum_that_ase_finds(emt):
    atoms = alloy().to_ase_atoms()
    atoms.calc = EMT()
    BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=500)
    found = relax([alloy()], emt, RelaxConfig(fmax=1e-3, smax=0.01))[0]
    assert found.ok
    assert found.max_force <= 1e-3
    assert found.max_stress <= 0.01
    assert found.energy == pytest.approx(atoms.get_potential_energy() / len(atoms), abs=1e-5)
    assert found.structure.volume == pytest.approx(atoms.get_volume(), rel=2e-3)
    point = emt.single_points([found.structure])[0]
    assert found.max_force == pytest.approx(np.linalg.norm(point.forces, axis=1).max(), abs=1e-9)
    assert found.max_stress == pytest.approx(np.abs(point.stress).max() * 160.21766, rel=1e-4)


@pytest.fixture(scope="module")
def best(emt):
    """The minimum near one alloy."""
    return relax([alloy(1)], emt, RelaxConfig(fmax=1e-3, smax=0.01))[0]


@pytest.mark.parametrize("optimizer", ["FIRE", "LBFGS", "BFGS"])
def test_optimizers_agree(emt, optimizer, best):
    found = relax([alloy(1)], emt, RelaxConfig(optimizer=optimizer, fmax=0.01, smax=0.1))[0]
    assert found.ok
    assert found.energy == pytest.approx(best.energy, abs=1e-3)


def test_together_is_as_one_by_one_and_in_order(chgnet):
    crystals = [
        Structure(Lattice.cubic(4.0), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.45]]),
        to_structure(bulk("MgO", "rocksalt", a=4.5)),
        Structure(Lattice.cubic(4), ["Rn"], [[0, 0, 0]]),
        to_structure(bulk("Si", cubic=True)),
    ]
    together = relax(crystals, chgnet, RelaxConfig(batch_size=3))
    assert [r.status for r in together][2] == "failed:unsupported-element"
    for one, structure in zip(together, crystals, strict=True):
        alone = relax([structure], chgnet)[0]
        assert (one.status, one.steps) == (alone.status, alone.steps)
        if alone.ok:
            assert one.energy == pytest.approx(alone.energy, abs=1e-4)
            assert one.structure.composition.reduced_formula == structure.composition.reduced_formula


class Apart(Pushing):
    """Computes so many crystals side by side, as worker processes do, and notes what it was asked at once."""

    lanes = 2

    def __init__(self) -> None:
        super().__init__(1e-3)
        self.asked, self.under_way, self.most = [], 0, 0
        self._lock = threading.Lock()

    def compute(self, structures, *args, **kwargs):
        with self._lock:
            self.asked.append(len(structures))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        time.sleep(0.01)
        with self._lock:
            self.under_way -= 1
        return super().compute(structures, *args, **kwargs)


def test_worker_processes_relax_a_crystal_each_and_in_order():
    cells = [to_structure(bulk("Cu", a=3.5 + 0.02 * number)) for number in range(8)]
    cells = [cell * (1 + number % 3, 1, 1) for number, cell in enumerate(cells)]
    potential, config, told = Apart(), RelaxConfig(max_steps=5, standardise=False, keep_symmetry=False), []
    outcomes = relax(cells, potential, config, progress=lambda *done: told.append(done))
    assert [len(outcome.structure) for outcome in outcomes] == [len(cell) for cell in cells]
    for outcome, cell in zip(outcomes, cells, strict=True):
        alone = relax([cell], potential, config)[0]
        assert (outcome.steps, outcome.structure) == (alone.steps, alone.structure)
    assert set(potential.asked) == {1}
    assert potential.most == 2
    assert told == [(number, 8) for number in range(1, 9)]
    assert relax([], potential) == []


def test_when_whoever_asked_has_gone_nothing_is_relaxed_to_its_end():
    potential, config = Apart(), RelaxConfig(max_steps=100, fmax=1e-9, smax=1e-9)

    def leave(*_):
        raise KeyboardInterrupt

    unknown = Structure(Lattice.cubic(4), ["Rn"] * 3, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]])  # ends first, at once
    with pytest.raises(KeyboardInterrupt):
        relax([to_structure(bulk("Cu"))] * 20 + [unknown], potential, config, finished=leave)
    assert len(potential.asked) < 20
    assert potential.under_way == 0


def test_chgnet_relaxes_as_its_own_optimizer_does(chgnet):
    from chgnet.model.dynamics import StructOptimizer

    structure = Structure(
        Lattice.tetragonal(4.5, 3.1), ["Ti", "Ti", "O", "O", "O", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.3, 0.3, 0], [0.7, 0.7, 0], [0.8, 0.2, 0.5], [0.2, 0.8, 0.5]],
    )  # fmt: skip
    expected = StructOptimizer(use_device="cpu").relax(structure, fmax=0.02, verbose=False)
    found = relax([structure], chgnet, RelaxConfig(fmax=0.02, smax=0.1))[0]
    assert found.ok
    energy = float(expected["trajectory"].energies[-1]) / len(structure)
    assert found.energy == pytest.approx(energy, abs=2e-3)
    assert found.structure.volume == pytest.approx(expected["final_structure"].volume, rel=0.01)


def test_symmetry_is_kept_or_not_with_the_same_minimum(chgnet):
    structure = Structure(Lattice.tetragonal(3.7, 4.3), ["Cu", "Au"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    kept = relax([structure], chgnet, RelaxConfig(keep_symmetry=True))[0]
    free = relax([structure], chgnet, RelaxConfig(keep_symmetry=False))[0]
    assert kept.ok
    assert free.ok
    assert space_group(kept.structure, 1e-5) in (123, 221)
    assert kept.energy == pytest.approx(free.energy, abs=1e-3)


def test_a_fixed_cell_stays(emt):
    found = relax([alloy()], emt, RelaxConfig(relax_cell=False, fmax=0.01))[0]
    assert found.ok
    assert found.max_force <= 0.01
    assert found.steps > 1
    assert sorted(found.structure.lattice.abc) == pytest.approx(sorted(alloy().lattice.abc), abs=1e-8)


def test_a_conventional_cell_is_relaxed_as_its_primitive_one_and_kept(emt):
    supercell = to_structure(bulk("Cu", a=3.7, cubic=True)) * (2, 1, 1)
    found, small = relax([supercell, to_structure(bulk("Cu", a=3.7))], emt)
    assert found.ok
    assert found.energy == pytest.approx(small.energy, abs=1e-6)
    assert found.structure.volume == pytest.approx(8 * small.structure.volume, rel=1e-6)
    a = found.structure.lattice.c
    assert found.structure.lattice.matrix == pytest.approx(np.diag([2 * a, a, a]), abs=1e-6)
    assert found.structure.frac_coords == pytest.approx(supercell.frac_coords, abs=1e-6)


def test_cell_and_order_of_atoms_are_those_that_came(emt):
    """An ordered alloy in a skew, turned, doubled, left-handed cell, atoms in any order and beyond the cell."""
    rng = np.random.default_rng(0)
    fcc = [[0, 0, 0.01], [0, 0.5, 0.5], [0.5, 0, 0.49], [0.5, 0.5, 0.02]]
    small = Structure(Lattice.orthorhombic(3.6, 3.7, 3.8), ["Au", "Cu", "Cu", "Cu"], fcc)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    large = small * [[1, 1, 0], [0, 2, 0], [1, 0, -1]]
    order = rng.permutation(len(large))
    places = large.frac_coords[order] + rng.integers(-1, 2, (len(large), 3))
    given = Structure(large.lattice.matrix @ turn, [large.species[atom] for atom in order], places)
    alone, found = relax([small, given], emt, RelaxConfig(fmax=0.01))
    assert found.ok
    assert found.energy == pytest.approx(alone.energy, abs=1e-5)
    assert found.structure.species == given.species
    point = emt.single_points([found.structure])[0]
    assert point.energy == pytest.approx(found.energy, abs=1e-6)
    assert np.linalg.norm(point.forces, axis=1).max() == pytest.approx(found.max_force, abs=1e-6)
    moved = (found.structure.frac_coords - given.frac_coords) @ found.structure.lattice.matrix
    assert np.linalg.norm(moved, axis=1).max() < 0.6  # no atom took another one's place, or an image's
    strain = np.linalg.solve(given.lattice.matrix, found.structure.lattice.matrix)
    assert strain == pytest.approx(strain.T, abs=2e-3)  # strained, not turned


def test_too_few_steps_is_not_converged_with_a_structure(emt):
    found = relax([alloy()], emt, RelaxConfig(max_steps=1))[0]
    assert (found.status, found.steps) == ("not-converged", 1)
    assert found.structure is not None
    assert np.isfinite(found.energy)


def test_the_time_limit_is_kept_inside_the_steps(emt):
    found = relax([alloy()], emt, RelaxConfig(time_limit=1e-9, fmax=1e-9))[0]
    assert found.status == "timeout"
    assert found.steps == 0


class Slow(Pushing):
    """Takes its time, on a processor or waiting for one, as on a busy machine."""

    def __init__(self, waits: float, works: float) -> None:
        super().__init__(1e-4)
        self._waits, self._works = waits, works

    def compute(self, *args, **kwargs):
        time.sleep(self._waits)
        began = time.thread_time()
        while time.thread_time() - began < self._works:
            pass
        return super().compute(*args, **kwargs)


@pytest.mark.parametrize(
    ("waits", "works", "status"),
    [(0.1, 0.0, "not-converged"), (0.0, 0.1, "timeout"), (1.1, 0.0, "timeout")],
)
def test_a_busy_machine_decides_no_label(waits, works, status):
    """Three steps of 0.1 s each and a limit of 0.2 s: what waits for a processor has its time still to come."""
    config = RelaxConfig(time_limit=0.2, max_steps=3, fmax=1e-9, smax=1e-9)
    found = relax([to_structure(bulk("Cu"))], Slow(waits, works), config)[0]
    assert found.status == status
    assert found.seconds > 0.2


@pytest.mark.parametrize(("stress", "status"), [(-0.5, "failed:exploded"), (0.5, "failed:volume-collapse")])
def test_a_crystal_that_runs_away_is_named(stress, status):
    found = relax([to_structure(bulk("Cu"))], Pushing(stress), RelaxConfig(optimizer="FIRE"))[0]
    assert found.status == status
    assert found.structure is None
    assert found.steps > 0
    assert found.message


class Wild(BFGS):
    """Whose second step throws the crystal apart."""

    def step(self, *args, **kwargs):
        super().step(*args, **kwargs)
        self.wild = getattr(self, "wild", 0) + 1
        if self.wild == 2:
            self.atoms.atoms.set_cell(9 * self.atoms.atoms.cell.array)


def test_a_crystal_that_an_optimiser_throws_apart_gets_a_second_try(emt, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "BFGS", Wild)
    again = relax([alloy()], emt, RelaxConfig(fmax=0.01))[0]
    plain = relax([alloy()], emt, RelaxConfig(fmax=0.01, optimizer="FIRE"))[0]
    assert (again.status, again.steps) == ("ok", plain.steps + 2)
    assert again.energy == plain.energy
    assert again.message.startswith("BFGS ended with exploded")
    once = relax([alloy()], emt, RelaxConfig(retry=None))[0]
    assert (once.status, once.steps) == ("failed:exploded", 2)


def test_both_tries_are_told_where_both_fail():
    found = relax([to_structure(bulk("Cu"))], Pushing(-0.5), RelaxConfig())[0]
    assert found.status == "failed:exploded"
    assert found.message.count("times the volume of the start") == 2
    assert found.message.startswith("BFGS ended")


@pytest.mark.parametrize(
    ("structure", "status"),
    [
        (Structure(Lattice.cubic(3.6), ["Cu", "Cu"], [[0, 0, 0], [0.01, 0, 0]]), "failed:overlap"),
        (Structure(Lattice.cubic(3.6), ["Cu"], [[np.nan, 0, 0]]), "failed:not-finite"),
        (Structure(Lattice.cubic(3.6), ["U"], [[0, 0, 0]]), "failed:unsupported-element"),
        (Structure(Lattice.cubic(0.9), ["Cu"], [[0, 0, 0]]), "failed:volume"),
    ],
)
def test_what_is_no_crystal_has_a_status_and_others_go_on(emt, structure, status):
    bad, good = relax([structure, alloy()], emt)
    assert bad.status == status
    assert bad.structure is None
    assert good.ok


def test_progress_and_input(emt):
    seen = []
    crystals = [alloy(0), alloy(1)]
    before = [structure.copy() for structure in crystals]
    relax(crystals, emt, RelaxConfig(), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)
    assert crystals == before
    assert relax([], emt) == []


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="optimizer"):
        RelaxConfig(optimizer="Newton")
    with pytest.raises(ConfigError, match="optimizer"):
        RelaxConfig(retry="Newton")
    with pytest.raises(ConfigError, match="fmax"):
        RelaxConfig(fmax=0)


def test_crystals_of_molecules_end_at_one_energy_wherever_they_start(chgnet):
    """At 0.5 GPa a loose crystal of H2 stays where it is, 0.025 eV/atom above a dense one."""
    pair = np.array([[0.0, 0.0, 0.371], [0.0, 0.0, -0.371]])
    loose, dense = (
        Structure(Lattice.hexagonal(a, c), ["H"] * 4, [*pair, *(pair + [0, 0, c / 2] + a * np.array([0.5, 0.289, 0]))],
                  coords_are_cartesian=True)
        for a, c in ((4.1, 6.2), (3.4, 5.2))
    )  # fmt: skip
    ends = relax([loose, dense], chgnet)
    assert [end.status for end in ends] == ["ok", "ok"]
    assert max(end.max_stress for end in ends) <= 0.02
    assert ends[0].energy == pytest.approx(ends[1].energy, abs=0.006)
