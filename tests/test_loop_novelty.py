from __future__ import annotations

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Species, Structure

from flows.novelty import shipped_novelty
from loop.errors import InputError
from loop.fingerprint import fingerprint, geometry, symmetry
from loop.known import STABLE, TRAIN, KnownCrystals
from loop.novelty import NoveltyIndex, Tolerances
from loop.values import DUPLICATE, KNOWN, NEW
from oracles.references.element_prototypes import textbook_crystals


def rutile(a=4.594, c=2.959, u=0.305):
    return Structure.from_spacegroup("P4_2/mnm", Lattice.tetragonal(a, c), ["Ti", "O"], [[0, 0, 0], [u, u, 0]])


def anatase():
    lattice = Lattice.tetragonal(3.785, 9.514)
    return Structure.from_spacegroup("I4_1/amd", lattice, ["Ti", "O"], [[0, 0, 0], [0, 0, 0.208]])


def half_heusler(special: str):
    """LiMgP with one of its elements on 4c: three crystals of one formula and one space group."""
    others = [element for element in ("Li", "Mg", "P") if element != special]
    sites = [[0.25] * 3, [0, 0, 0], [0.5] * 3]
    return Structure.from_spacegroup("F-43m", Lattice.cubic(6.02), [special, *others], sites)


def zincblende(a=5.41):
    return Structure.from_spacegroup("F-43m", Lattice.cubic(a), ["Zn", "S"], [[0, 0, 0], [0.25] * 3])


def wurtzite():
    lattice = Lattice.hexagonal(3.82, 6.26)
    return Structure.from_spacegroup("P6_3mc", lattice, ["Zn", "S"], [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.375]])


def rocksalt():
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.06), ["Zn", "S"], [[0, 0, 0], [0.5] * 3])


def spinel(first="Al", second="Mg"):
    sites = [[0, 0, 0], [0.625] * 3, [0.3874] * 3]
    cell = Lattice.cubic(8.08)
    return Structure.from_spacegroup("Fd-3m", cell, [second, first, "O"], sites)


ALL = {
    "rutile": rutile(),
    "anatase": anatase(),
    "zincblende": zincblende(),
    "wurtzite": wurtzite(),
    "rocksalt": rocksalt(),
    "spinel": spinel(),
    **{f"half-heusler {element}": half_heusler(element) for element in ("Li", "Mg", "P")},
}


def distorted(structure: Structure, displacement: float, strain: float, seed: int) -> Structure:
    """Every atom moved by `displacement` (A) some way, the cell strained by at most `strain` in any direction."""
    rng = np.random.default_rng(seed)
    tensor = rng.uniform(-1, 1, (3, 3))
    tensor = (tensor + tensor.T) / 2
    tensor *= strain / np.abs(np.linalg.eigvalsh(tensor)).max()
    moved = Structure(structure.lattice.matrix @ (np.eye(3) + tensor), structure.species, structure.frac_coords)
    steps = rng.normal(size=(len(moved), 3))
    steps *= displacement / np.linalg.norm(steps, axis=1)[:, None]
    return Structure(moved.lattice, moved.species, moved.cart_coords + steps, coords_are_cartesian=True)


def rewritten(structure: Structure, seed: int) -> Structure:
    """The same crystal: supercell, origin moved, rotated, sites shuffled."""
    rng = np.random.default_rng(seed)
    copy = structure * [[1, 1, 0], [0, 1, 0], [0, 0, 2]]
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    order = rng.permutation(len(copy))
    coords = (copy.frac_coords + rng.uniform(size=3))[order]
    return Structure(copy.lattice.matrix @ rotation, [copy.species[index] for index in order], coords)


@pytest.fixture(scope="module")
def known():
    ids = [f"mp-{number}" for number in range(1, len(ALL) + 1)]
    flags = [TRAIN | STABLE if number % 2 else TRAIN for number in range(1, len(ALL) + 1)]
    return KnownCrystals.from_fingerprints(ids, [fingerprint(structure) for structure in ALL.values()], flags)


def kinds(index, structures):
    return [verdict.kind for verdict in index.judge(structures, [str(number) for number in range(len(structures))])]


@pytest.mark.parametrize("name", ALL)
def test_a_known_crystal_is_known_however_it_is_written_or_distorted(known, name):
    index, structure = NoveltyIndex(known), ALL[name]
    forms = [structure, structure.get_primitive_structure(), rewritten(structure, 1)]
    forms += [distorted(structure, 0.05, 0.0, 2), distorted(structure, 0.02, 0.02, 3)]
    scaled = structure.copy()
    scaled.scale_lattice(structure.volume * 1.12)  # as proposed, before relaxation
    number = list(ALL).index(name) + 1
    for form in [*forms, scaled]:
        verdict = index.judge([form], ["x"])[0]
        assert (verdict.kind, verdict.match) == (KNOWN, f"mp-{number}")
        assert verdict.in_training == bool(number % 2)


@pytest.mark.parametrize("name", ALL)
def test_every_polymorph_and_decoration_is_told_apart(name):
    others = [other for other in ALL if other != name]
    prints = [fingerprint(ALL[other]) for other in others]
    index = NoveltyIndex(KnownCrystals.from_fingerprints([f"mp-{i}" for i in range(len(others))], prints))
    assert kinds(index, [ALL[name]]) == [NEW]
    index.add([ALL[other] for other in others], others)
    assert kinds(index, [ALL[name]]) == [NEW]


def test_copies_within_a_batch_and_of_the_archive_are_duplicates():
    index = NoveltyIndex()
    batch = [rutile(), anatase(), rewritten(rutile(), 5), zincblende()]
    assert kinds(index, batch) == [NEW, NEW, DUPLICATE, NEW]
    assert kinds(index, batch) == [NEW, NEW, DUPLICATE, NEW]  # judging adds nothing
    index.add([anatase()], ["first"])
    verdict = index.judge([distorted(anatase(), 0.05, 0.0, 7)], ["second"])[0]
    assert (verdict.kind, verdict.match) == (DUPLICATE, "first")
    assert len(index) == 1


def test_the_quick_verdict_agrees_without_asking_the_matcher(monkeypatch):
    index = NoveltyIndex()
    index.add([rutile()], ["first"])
    near = distorted(rutile(), 0.05, 0.0, 1)
    assert index.judge([near], ["x"])[0].by == "matcher"
    monkeypatch.setattr(index, "_matcher", None)
    verdicts = index.judge([near, anatase()], ["x", "y"], quick=True)
    assert [(verdict.kind, verdict.by) for verdict in verdicts] == [(DUPLICATE, "fingerprint"), (NEW, "fingerprint")]


def test_equal_symmetry_widens_the_tolerance(known):
    index = NoveltyIndex(known, Tolerances(geometry=0.01, same_symmetry=0.045))
    forms = [rutile(u=0.305 + shift) for shift in np.linspace(0, 0.03, 13)]
    changes = [np.abs(geometry(form) - geometry(rutile())).max() for form in forms]
    verdicts = [index.judge([form], ["x"])[0].kind for form in forms]
    reach = max(change for change, verdict in zip(changes, verdicts, strict=True) if verdict == KNOWN)
    assert 0.03 < reach < 0.05  # the table's 255 steps blur the limit a little
    broken = distorted(rutile(), 0.1, 0.0, 0)  # as near, but of no symmetry
    assert 0.02 < np.abs(geometry(broken) - geometry(rutile())).max() < 0.04
    assert kinds(index, [broken]) == [NEW]


def test_geometry_depends_on_neither_cell_nor_origin_nor_scale():
    for name, structure in ALL.items():
        assert np.allclose(geometry(structure), geometry(rewritten(structure, 3)), atol=1e-9), name
        scaled = structure.copy()
        scaled.scale_lattice(2 * structure.volume)
        assert np.allclose(geometry(structure), geometry(scaled), atol=1e-9), name


def test_geometry_counts_neighbours():
    """The shells of simple cubic hold 6, 12, 8, ... neighbours; counts are relative to the ideal gas."""
    simple = Structure(Lattice.cubic(3.0), ["Po"], [[0, 0, 0]])
    radii = np.linspace(0.75, 2.8, 8)
    shells = {1.0: 6, np.sqrt(2): 12, np.sqrt(3): 8, 2.0: 6, np.sqrt(5): 24, np.sqrt(6): 24, np.sqrt(8): 12, 3.0: 30}
    from scipy.stats import norm

    expected = sum(count * norm.cdf((radii - distance) / 0.1) for distance, count in shells.items())
    ideal = 4 / 3 * np.pi * radii**3
    found = geometry(simple)
    assert np.allclose(found[:8], expected / ideal, atol=1e-3)
    assert np.allclose(found[8:], 0)  # one element: nothing to tell apart


@pytest.mark.parametrize(("name", "number"), [("rutile", 136), ("anatase", 141), ("spinel", 227), ("wurtzite", 186)])
def test_symmetry_does_not_depend_on_the_origin(name, number):
    structure = ALL[name]
    shifted = Structure(structure.lattice, structure.species, structure.frac_coords + np.full(3, 0.5))
    assert symmetry(structure, 0.01) == symmetry(shifted, 0.01) == symmetry(rewritten(structure, 2), 0.01)
    assert symmetry(structure, 0.01)[0] == number


def test_the_table_survives_its_file(known, tmp_path):
    known.save(tmp_path / "known.npz")
    again = KnownCrystals.load(tmp_path / "known.npz")
    assert len(again) == len(ALL)
    assert all(np.array_equal(again.arrays[name], array) for name, array in known.arrays.items())
    assert kinds(NoveltyIndex(again), [rutile(), Structure(Lattice.cubic(4), ["W"], [[0, 0, 0]])]) == [KNOWN, NEW]


@pytest.mark.parametrize("shift", [-0.02, -0.01, 0.01, 0.02])
def test_a_small_table_measures_distances_on_both_sides(shift):
    one = KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(rutile())])
    other = fingerprint(rutile(u=0.305 + shift), with_symmetry=False)
    true = np.abs(other.geometry - geometry(rutile())).max()
    assert true > 0.01
    assert one.distances(other, range(1))[0] == pytest.approx(true, abs=0.002)


def test_an_empty_table_knows_nothing():
    empty = KnownCrystals.from_fingerprints([], [])
    assert kinds(NoveltyIndex(empty), [rutile()]) == [NEW]


def test_a_damaged_table_is_one_clear_message(known, tmp_path):
    path = tmp_path / "known.npz"
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="cannot be read"):
        KnownCrystals.load(path)
    KnownCrystals(known.arrays | {"geometry": np.zeros((2, 3), np.uint8)}).save(path)
    with pytest.raises(InputError, match="expected \\(n, 24\\)"):
        KnownCrystals.load(path)


def test_the_protocol_names_reference_and_tolerances(known):
    protocol = NoveltyIndex(known).protocol()
    assert protocol["reference"] == f"{len(ALL)} fingerprints of known crystals"
    assert protocol["tolerances"]["geometry"] == 0.035
    assert protocol["matcher"] == {"ltol": 0.2, "stol": 0.3, "angle_tol": 5}


class Library:
    """Known crystals by id, and which were asked for."""

    def __init__(self, crystals):
        self.crystals, self.asked = crystals, []

    def __contains__(self, id):
        return id in self.crystals

    def structure(self, id):
        self.asked.append(id)
        return self.crystals[id]


def squeezed_rutile():
    """A rutile so distorted that fingerprints take it for a far other crystal, and the matcher for the same."""
    return rutile(a=4.75, c=2.80, u=0.33)


def test_the_matcher_confirms_what_the_fingerprint_finds():
    known = KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(rutile())])
    library = Library({"mp-1": rutile()})
    index = NoveltyIndex(known, crystals=library)
    larger = rutile()
    larger.scale_lattice(larger.volume * 1.3)
    for form in (rewritten(rutile(), 1), larger):
        verdict = index.judge([form], ["x"])[0]
        assert (verdict.kind, verdict.match, verdict.by) == (KNOWN, "mp-1", "matcher")
    assert index.agreement == {"both": 2}
    assert "confirmed by the matcher" in index.protocol()["reference"]


def test_a_distorted_supercell_is_the_known_crystal():
    cell = zincblende().get_primitive_structure()
    known = KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(cell)])
    index = NoveltyIndex(known, crystals=Library({"mp-1": cell}))
    form = distorted(cell * (2, 1, 1), 0.1, 0.0, 3)
    assert not StructureMatcher().fit(form, cell)
    assert kinds(index, [form]) == [KNOWN]
    assert index.agreement == {"both": 1}


def test_a_fingerprint_without_the_crystal_is_no_match():
    known = KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(rutile())])
    index = NoveltyIndex(known, crystals=Library({"mp-1": anatase()}))  # as if both had one fingerprint
    assert kinds(index, [rutile()]) == [NEW]
    assert index.agreement == {"denied by the matcher": 1}


def test_a_known_crystal_that_the_fingerprint_misses_is_found_by_the_matcher():
    known = KnownCrystals.from_fingerprints(["mp-1", "mp-2"], [fingerprint(anatase()), fingerprint(rutile())])
    assert kinds(NoveltyIndex(known), [squeezed_rutile()]) == [NEW]
    index = NoveltyIndex(known, crystals=Library({"mp-1": anatase(), "mp-2": rutile()}))
    verdict = index.judge([squeezed_rutile()], ["x"])[0]
    assert (verdict.kind, verdict.match, verdict.by) == (KNOWN, "mp-2", "matcher")
    assert index.agreement == {"matcher alone": 1}


def test_where_the_crystal_is_not_there_the_fingerprint_decides():
    known = KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(rutile())])
    index = NoveltyIndex(known, crystals=Library({}))
    verdict = index.judge([rutile()], ["x"])[0]
    assert (verdict.kind, verdict.by) == (KNOWN, "fingerprint")
    assert index.agreement == {"fingerprint alone": 1}


def test_the_quick_verdict_and_large_cells_ask_no_crystal():
    known = KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(rutile())])
    library = Library({"mp-1": anatase()})
    quick = NoveltyIndex(known, crystals=library).judge([rutile()], ["x"], quick=True)
    large = NoveltyIndex(known, Tolerances(max_sites=4), library).judge([rutile()], ["x"])
    assert [verdict.kind for verdict in (*quick, *large)] == [KNOWN, KNOWN]
    assert library.asked == []


def of_element(symbol: str, kind: str, a: float, **more) -> Structure:
    from ase.build import bulk
    from pymatgen.io.ase import AseAtomsAdaptor

    return AseAtomsAdaptor.get_structure(bulk(symbol, kind, a=a, **more))


@pytest.mark.parametrize("quick", [False, True])
def test_the_textbook_crystals_of_the_elements_are_known(quick):
    """The shipped crystals are compounds: hexagonal rhenium led a list of finds."""
    rhenium = of_element("Re", "hcp", 2.761, c=4.456)
    others = [of_element("Re", "fcc", 3.9), of_element("W", "bcc", 3.17), of_element("Si", "diamond", 5.43)]
    a15 = Structure.from_spacegroup("Pm-3n", Lattice.cubic(5.05), ["W", "W"], [[0, 0, 0], [0.25, 0, 0.5]])
    odd = Structure(
        Lattice.from_parameters(3, 4, 5.5, 80, 95, 110), ["Re"] * 3, [[0, 0, 0], [0.3, 0.1, 0.6], [0.7, 0.5, 0.2]]
    )
    rutile_like = rutile()
    crystals = [rhenium, rewritten(distorted(rhenium, 0.03, 0.02, 1), 2), *others, a15, odd, rutile_like]
    index = shipped_novelty()
    names = [f"x{row}" for row in range(len(crystals))]
    verdicts = index.judge(crystals, names, quick=quick)
    assert [verdict.kind for verdict in verdicts] == [KNOWN] * 6 + [NEW, KNOWN]
    assert verdicts[2].match == "prototype:A_cF4_225_a:Cu"
    assert "textbook crystals of the elements" in index.protocol()["reference"]
    without = NoveltyIndex(index.known, crystals=index.crystals)
    assert kinds(without, [rhenium]) == [NEW]
    index.add([odd], ["odd"])
    assert kinds(index, [odd]) == [DUPLICATE]
    assert kinds(index.emptied(), [odd, rhenium]) == [NEW, KNOWN]


def test_a_crystal_of_an_element_has_one_name_whatever_the_last_bits():
    """ASE's copper is AFLOW's, up to the last bits, which are not the same for each way to write a crystal."""
    index = NoveltyIndex(elements=textbook_crystals)
    copper = of_element("Cu", "fcc", 3.6)
    written = [rewritten(copper, seed) for seed in range(6)]
    written += [copper.copy().scale_lattice(copper.volume * factor) for factor in np.linspace(0.8, 1.3, 20)]
    names = [f"x{row}" for row in range(len(written))]
    assert {verdict.match for verdict in index.judge(written, names, quick=True)} == {"ase:Cu"}


def test_oxidation_states_make_no_crystal_of_an_element_new():
    index = NoveltyIndex(elements=textbook_crystals)
    iron = of_element("Fe", "bcc", 2.87, cubic=True)
    for species in ([Species("Fe", 0)] * 2, [Species("Fe", 2), Species("Fe", 3)]):
        assert kinds(index, [Structure(iron.lattice, species, iron.frac_coords)]) == [KNOWN]
