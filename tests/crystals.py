"""Crystals of all seven systems, built from textbook data. Built once and shared: do not change them."""

from functools import lru_cache

from pymatgen.core import Lattice, Structure

from_spacegroup = Structure.from_spacegroup


@lru_cache
def nacl() -> Structure:
    return from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@lru_cache
def perovskite() -> Structure:
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]]
    return from_spacegroup("Pm-3m", Lattice.cubic(3.905), ["Sr", "Ti", "O"], sites)


@lru_cache
def spinel() -> Structure:
    sites = [[0.125, 0.125, 0.125], [0.5, 0.5, 0.5], [0.2624, 0.2624, 0.2624]]
    return from_spacegroup("Fd-3m:2", Lattice.cubic(8.08), ["Mg", "Al", "O"], sites)


@lru_cache
def rutile() -> Structure:
    sites = [[0, 0, 0], [0.305, 0.305, 0]]
    return from_spacegroup("P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], sites)


@lru_cache
def wurtzite() -> Structure:
    sites = [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.382]]
    return from_spacegroup("P6_3mc", Lattice.hexagonal(3.25, 5.21), ["Zn", "O"], sites)


@lru_cache
def bismuth_telluride() -> Structure:
    sites = [[0, 0, 0.4], [0, 0, 0], [0, 0, 0.2095]]
    return from_spacegroup("R-3m:H", Lattice.hexagonal(4.38, 30.49), ["Bi", "Te", "Te"], sites)


@lru_cache
def orthorhombic_perovskite() -> Structure:
    sites = [[0.036, 0.25, 0.993], [0, 0, 0.5], [0.484, 0.25, 0.071], [0.289, 0.037, 0.711]]
    return from_spacegroup("Pnma", Lattice.orthorhombic(5.44, 7.64, 5.38), ["Ca", "Ti", "O", "O"], sites)


@lru_cache
def zirconia() -> Structure:
    sites = [[0.2754, 0.0395, 0.2083], [0.0700, 0.3317, 0.3447], [0.4496, 0.7569, 0.4792]]
    return from_spacegroup("P2_1/c", Lattice.monoclinic(5.150, 5.212, 5.317, 99.2), ["Zr", "O", "O"], sites)


@lru_cache
def triclinic() -> Structure:
    sites = [[0.11, 0.23, 0.31], [0.62, 0.41, 0.77], [0.5, 0, 0]]
    lattice = Lattice.from_parameters(4.1, 5.2, 6.3, 81, 94, 103)
    return from_spacegroup("P-1", lattice, ["Li", "O", "Fe"], sites)


SYSTEMS = {
    "cubic": perovskite,
    "face-centred": nacl,
    "spinel": spinel,
    "hexagonal": wurtzite,
    "trigonal": bismuth_telluride,
    "tetragonal": rutile,
    "orthorhombic": orthorhombic_perovskite,
    "monoclinic": zirconia,
    "triclinic": triclinic,
}
