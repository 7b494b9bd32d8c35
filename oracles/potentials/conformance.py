"""Whether a potential is what the rest of this program takes it for; for users' own potentials as for those that ship.

Each check is a number against a bound: batches equal single crystals, forces and stress are the derivatives of the
energy, nothing depends on origin, axes, cell or order of atoms, inputs stay as they are, unknown elements are refused,
and the ASE calculator says the same. ``discovery-loop doctor --potential NAME`` runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from pymatgen.core import Element, Structure
from scipy.spatial.transform import Rotation

from loop.findings import Finding
from loop.values import failed
from oracles.potentials.base import Potential, SinglePoint

PREFERRED = ("Cu", "Al", "O", "Mg", "Si", "Ni", "Na", "Cl", "Fe", "Ti", "Ag", "Au", "C", "H")
STENCIL = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))  # central difference of fourth order


@dataclass(frozen=True)
class Bounds:
    """Largest deviations; about ten times what round-off does to CHGNet and MACE."""

    energy: float  # eV/atom
    force: float  # eV/A
    stress: float  # eV/A^3
    step: float  # A and strain, of finite differences


BOUNDS = {"float64": Bounds(1e-7, 1e-4, 1e-5, 3e-4), "float32": Bounds(2e-5, 1e-2, 1e-3, 4e-3)}


def conformance(potential: Potential, crystals: Sequence[Structure] | None = None) -> list[Finding]:
    """Run all checks.

    Args:
        potential: any.
        crystals: to check it on, without symmetry and of different sizes; by default shaken cells of three elements
            that it knows.

    Returns:
        One finding a check; what a check raises is a failure of it.
    """
    suite = _Suite(potential, list(crystals or default_crystals(potential)))
    return [suite.attempt(check) for check in suite.checks()]


def default_crystals(potential: Potential) -> list[Structure]:
    """Shaken cells of 4, 8 and 4 atoms of elements that the potential knows."""
    known = [symbol for symbol in PREFERRED if symbol in potential.elements] or sorted(potential.elements)
    one, two, three = (known * 3)[:3]
    radius = np.mean([float(Element(symbol).atomic_radius or 1.4) for symbol in (one, one, two, three)])
    lengths = np.array([2.9, 3.1, 3.3]) * max(radius, 1.0)
    cell = np.diag(lengths) + np.array([[0, 0, 0], [-0.3, 0, 0], [0.2, 0.4, 0]])
    sites = np.array([[0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    crystals = []
    for seed, repeat in enumerate([(1, 1, 1), (1, 2, 1), (1, 1, 1)]):
        crystal = Structure(cell * (1 + 0.02 * seed), [one, one, two, three], sites) * repeat
        crystal.perturb(0.12, seed=seed)
        crystals.append(crystal)
    return crystals


class _Suite:
    """The checks of one potential; each raises AssertionError with a sentence where it fails, else returns one."""

    def __init__(self, potential: Potential, crystals: list[Structure]) -> None:
        self.potential, self.crystals = potential, crystals
        self.bounds = BOUNDS.get(potential.about.dtype, BOUNDS["float32"])

    def checks(self) -> list[Callable[[], str]]:
        return [
            self.provenance, self.batches, self.repeatability, self.forces, self.stress, self.translation,
            self.rotation, self.supercell, self.order, self.inputs, self.unknown_elements, self.calculator,
        ]  # fmt: skip

    def attempt(self, check: Callable[[], str]) -> Finding:
        name = check.__name__.replace("_", " ")
        try:
            return Finding(name, True, check())
        except AssertionError as error:
            return Finding(name, False, str(error))
        except Exception as error:  # a user's potential may fail in any way
            return Finding(name, False, f"{type(error).__name__}: {error}")

    # checks -----------------------------------------------------------------------------------------------------------

    def provenance(self) -> str:
        about = self.potential.about
        _require(bool(about.energy_type.method), "its energy type names no method")
        _require(len(about.energy_type.checksum) == 64, "its energy type has no sha256 of the weights or settings")
        _require(bool(about.elements), "it knows no element")
        _require(bool(about.citation and about.licence), "it states no citation or no licence")
        return f"{about.energy_type}, {len(about.elements)} elements, {about.dtype} on {about.device}"

    def batches(self) -> str:
        together = self.potential.single_points(self.crystals)
        alone = [self.point(crystal) for crystal in self.crystals]
        return self.compare(zip(together, alone, strict=True), "in a batch and alone")

    def repeatability(self) -> str:
        return self.compare([(self.point(c), self.point(c)) for c in self.crystals], "the first and the second time")

    def forces(self) -> str:
        crystal, worst = self.crystals[0], 0.0
        forces = _array(self.point(crystal).forces, "forces")
        for atom in range(len(crystal)):
            for axis in range(3):
                worst = max(worst, abs(forces[atom, axis] + self.slope(partial(_moved, crystal, atom, axis))))
        return _within(worst, self.bounds.force, "eV/A between forces and the negative gradient of the energy")

    def stress(self) -> str:
        crystal, worst = self.crystals[0], 0.0
        stress = _array(self.point(crystal).stress, "stress")
        for i, j in [(0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2)]:
            slope = self.slope(partial(_strained, crystal, i, j)) / crystal.volume
            worst = max(worst, abs(stress[i, j] - slope), abs(stress[i, j] - stress[j, i]))
        return _within(worst, self.bounds.stress, "eV/A^3 between stress and the gradient with strain")

    def translation(self) -> str:
        pairs = []
        for crystal in self.crystals:
            shifted = crystal.frac_coords + np.array([0.37, -1.21, 2.66])
            pairs.append((self.point(Structure(crystal.lattice, crystal.species, shifted)), self.point(crystal)))
        return self.compare(pairs, "after a translation")

    def rotation(self) -> str:
        turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
        pairs = []
        for crystal in self.crystals:
            turned = Structure(crystal.lattice.matrix @ turn.T, crystal.species, crystal.frac_coords)
            point, before = self.point(turned), self.point(crystal)
            forces, stress = _array(before.forces, "forces") @ turn.T, turn @ _array(before.stress, "stress") @ turn.T
            pairs.append((point, replace(before, forces=forces, stress=stress)))
        return self.compare(pairs, "after a rotation")

    def supercell(self) -> str:
        pairs = []
        for crystal in self.crystals:
            point, before = self.point(crystal * (1, 1, 2)), self.point(crystal)
            pairs.append((point, replace(before, forces=_array(before.forces, "forces").repeat(2, axis=0))))
        return self.compare(pairs, "in a supercell")

    def order(self) -> str:
        pairs = []
        for crystal in self.crystals:
            order = np.random.default_rng(0).permutation(len(crystal))
            point = self.point(Structure.from_sites([crystal[i] for i in order]))
            before = self.point(crystal)
            pairs.append((point, replace(before, forces=_array(before.forces, "forces")[order])))
        return self.compare(pairs, "with the atoms in another order")

    def inputs(self) -> str:
        before = [crystal.copy() for crystal in self.crystals]
        self.potential.single_points(self.crystals)
        self.potential.energies(self.crystals)
        same = all(
            np.array_equal(one.lattice.matrix, other.lattice.matrix)
            and np.array_equal(one.frac_coords, other.frac_coords)
            and one.species == other.species
            for one, other in zip(before, self.crystals, strict=True)
        )
        _require(same, "it changed a structure that it was given")
        return "structures stay as they were given"

    def unknown_elements(self) -> str:
        unknown = sorted({str(element) for element in Element} - self.potential.elements)
        if not unknown:
            return "it claims to know all elements"
        alien = self.crystals[0].copy()
        alien.replace(0, unknown[0])
        points = self.potential.single_points([self.crystals[0], alien])
        _require(points[1].status == failed("unsupported-element"), f"{unknown[0]} gave {points[1].status}")
        _require(unknown[0] in points[1].message, f"the message does not name {unknown[0]}: {points[1].message}")
        _require(points[0].ok, f"a crystal beside one with {unknown[0]} was lost: {points[0].status}")
        return f"{unknown[0]} is refused by name, the rest of the batch continues"

    def calculator(self) -> str:
        from oracles.potentials.calculator import to_atoms

        pairs = []
        for crystal in self.crystals:
            atoms = to_atoms(crystal)
            atoms.calc = self.potential.calculator()
            energy = float(atoms.get_potential_energy()) / len(atoms)
            said = SinglePoint(energy=energy, forces=atoms.get_forces(), stress=atoms.get_stress(voigt=False))
            pairs.append((said, self.point(crystal)))
        return self.compare(pairs, "by its ASE calculator")

    # helpers ----------------------------------------------------------------------------------------------------------

    def point(self, crystal: Structure) -> SinglePoint:
        point = self.potential.single_points([crystal], batch_size=1)[0]
        _require(point.ok, f"{crystal.formula}: {point.status}, {point.message}")
        return point

    def slope(self, changed: Callable[[float], Structure]) -> float:
        """Derivative of the cell's energy (eV) with what `changed` moves."""
        cells = [changed(k * self.bounds.step) for k, _ in STENCIL]
        points = self.potential.single_points(cells, gradients=False, batch_size=1)
        _require(all(point.ok for point in points), "a slightly changed crystal has no energy")
        total = sum(w * point.energy * len(cells[0]) for (_, w), point in zip(STENCIL, points, strict=True))
        return float(total) / self.bounds.step

    def compare(self, pairs: object, where: str) -> str:
        """Energies, forces and stresses of pairs are the same."""
        worst = np.zeros(3)
        for one, other in pairs:  # type: ignore[attr-defined]
            _require(one.ok and other.ok, f"{where}: {one.status} {one.message} and {other.status} {other.message}")
            force = np.abs(_array(one.forces, "forces") - _array(other.forces, "forces")).max()
            stress = np.abs(_array(one.stress, "stress") - _array(other.stress, "stress")).max()
            worst = np.maximum(worst, [abs(one.energy - other.energy), force, stress])
        parts = [
            _within(worst[0], self.bounds.energy, f"eV/atom {where}"),
            _within(worst[1], self.bounds.force, f"eV/A {where}"),
            _within(worst[2], self.bounds.stress, f"eV/A^3 {where}"),
        ]
        return "; ".join(parts)


def _require(condition: bool, text: str) -> None:
    if not condition:
        raise AssertionError(text)


def _within(value: float, bound: float, what: str) -> str:
    text = f"{value:.1e} {what} (at most {bound:.0e})"
    _require(value <= bound, text)  # NaN fails
    return text


def _array(array: np.ndarray | None, name: str) -> np.ndarray:
    _require(array is not None, f"it gives no {name}")
    return np.asarray(array)


def _moved(crystal: Structure, atom: int, axis: int, distance: float) -> Structure:
    coords = crystal.cart_coords.copy()
    coords[atom, axis] += distance
    return Structure(crystal.lattice, crystal.species, coords, coords_are_cartesian=True)


def _strained(crystal: Structure, i: int, j: int, amount: float) -> Structure:
    strain = np.eye(3)
    strain[i, j] += amount / 2
    strain[j, i] += amount / 2
    return Structure(crystal.lattice.matrix @ strain, crystal.species, crystal.frac_coords)
