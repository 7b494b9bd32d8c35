from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from loop.errors import ConfigError
from loop.validity import ValidityRules, is_charge_balanced, unknown_elements, validity_flags
from tests import fakes


def rocksalt(pair=("Na", "Cl"), a=5.64):
    return fakes.rocksalt(*pair, a)


def fcc(element, a):
    return Structure(Lattice.cubic(a), [element] * 4, fakes.FCC)


def cell(lattice, species=("Na", "Cl"), coords=((0, 0, 0), (0.5, 0.5, 0.5))):
    return Structure(lattice, species, coords)


REAL = [
    rocksalt(),
    rocksalt(("Mg", "O"), 4.21),
    fcc("Cu", 3.61),
    fcc("Cs", 8.0),
    Structure.from_spacegroup("Fd-3m", Lattice.cubic(3.567), ["C"], [[0, 0, 0]]),
    Structure.from_spacegroup("F-43m", Lattice.cubic(5.65), ["Ga", "As"], [[0, 0, 0], [0.25] * 3]),
    Structure.from_spacegroup("Pm-3m", Lattice.cubic(3.905), ["Sr", "Ti", "O"], [[0] * 3, [0.5] * 3, [0.5, 0.5, 0]]),
    rocksalt(("Li", "H"), 4.08),
]


def test_valid_means_the_same_wherever_samples_are_judged():
    """Structure and composition, as CDVAE has it; rare elements, short bonds and large cells are for other rules."""
    crowded = cell(Lattice.cubic(0.8))
    charged = cell(Lattice.cubic(4.5), ("Na", "Na", "Cl"), ((0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0)))
    radon = fcc("Rn", 6.0)
    flags = validity_flags([rocksalt(), crowded, charged, radon, rocksalt(a=3.6)])
    assert flags["structure_valid"].tolist() == [True, True, True, True, True]
    assert flags["composition_valid"].tolist() == [True, True, False, True, True]
    close = validity_flags([cell(Lattice.cubic(4), coords=((0, 0, 0), (0.1, 0, 0)))])
    assert (close["structure_valid"][0], close["composition_valid"][0], close["valid"][0]) == (False, True, False)
    assert ValidityRules()([radon, rocksalt(a=3.6)]) == ["radioactive", "bonds-too-short"]


@pytest.mark.parametrize(
    ("formula", "valid"),
    [("NaCl", True), ("NaCl2", False), ("LiMg", True), ("NaSe", False)],  # metals count; Na+ Se- fails Pauling's test
)
def test_formulas_are_balanced_as_smact_has_it(formula, valid):
    assert is_charge_balanced(formula) is valid


@pytest.mark.parametrize("symbol", ["Rf", "Nh", "Og"])
def test_elements_of_which_smact_knows_nothing_are_named(symbol):
    assert not is_charge_balanced(f"{symbol}O")
    assert unknown_elements(f"{symbol}O") == (symbol,)
    rules = ValidityRules(radioactive=True, noble_gases=True, radius_fraction=None)
    assert rules.reason(rocksalt((symbol, "O"), 4.6)) == "no-oxidation-states"


def test_real_crystals_are_valid():
    assert ValidityRules()(REAL) == [None] * len(REAL)


BROKEN = {
    "not-finite": cell(Lattice.cubic(5.64), coords=((0, 0, 0), (float("nan"), 0.5, 0.5))),
    "cell-lengths": cell(Lattice.tetragonal(0.8, 90)),
    "cell-angles": cell(Lattice.from_parameters(5, 5, 5, 10, 90, 90)),
    "volume-per-atom": rocksalt(a=12.0),
    "atoms-too-close": cell(Lattice.cubic(5), coords=((0, 0, 0), (0.05, 0, 0))),
    "bonds-too-short": rocksalt(a=3.5),
    "charge-balance": rocksalt(("Ba", "F"), 5.4),
    "radioactive": rocksalt(("Th", "O"), 5.0),
    "noble-gas": rocksalt(("Xe", "O"), 5.0),
    "too-many-atoms": rocksalt() * [2, 2, 2],
    "too-many-elements": cell(
        Lattice.cubic(8), ["Li", "Na", "K", "Rb", "F", "Cl", "Br"], [[i / 7, (3 * i % 7) / 7, 0] for i in range(7)]
    ),
    "disordered": cell(Lattice.cubic(5), [{"Na": 0.5, "K": 0.5}, "Cl"]),
}


@pytest.mark.parametrize("reason", BROKEN)
def test_each_rule_has_its_name(reason):
    assert ValidityRules()([BROKEN[reason]]) == [reason]


OFF = {
    "charge-balance": {"charge_balance": False},
    "radioactive": {"radioactive": True},
    "noble-gas": {"noble_gases": True, "charge_balance": False},
    "bonds-too-short": {"radius_fraction": None},
    "volume-per-atom": {"volume_per_atom": None},
    "too-many-atoms": {"max_atoms": None},
    "too-many-elements": {"max_elements": None, "charge_balance": False, "radius_fraction": None},
    "cell-angles": {"cell_angles": None, "volume_per_atom": None, "radius_fraction": None, "min_distance": None},
}


@pytest.mark.parametrize("reason", OFF)
def test_each_rule_can_be_switched_off(reason):
    assert ValidityRules(**OFF[reason])([BROKEN[reason]]) == [None]


def test_an_atom_too_close_to_its_own_image_is_seen():
    thin = Structure(Lattice.orthorhombic(1.6, 9, 9), ["Na"], [[0, 0, 0]])
    assert ValidityRules()([thin]) == ["bonds-too-short"]


def test_elements_can_be_allowed_and_excluded():
    structures = [rocksalt(), rocksalt(("Mg", "O"), 4.21)]
    assert ValidityRules(elements=("Na", "Cl"))(structures) == [None, "element-not-allowed"]
    assert ValidityRules(exclude=("Cl",))(structures) == ["element-not-allowed", None]


@pytest.mark.parametrize(
    ("formula", "balanced"),
    [("NaCl", True), ("Fe2O3", True), ("BaF", False), ("CuZn", True), ("C", True), ("NaCl3", False)],
)
def test_charge_balance(formula, balanced):
    assert is_charge_balanced(formula) is balanced


@pytest.mark.parametrize(
    ("setting", "message"),
    [({"elements": ("Nope",)}, "'Nope' is no element"), ({"cell_lengths": (3.0, 2.0)}, "cell_lengths")],
)
def test_nonsense_settings_are_refused(setting, message):
    with pytest.raises(ConfigError, match=message):
        ValidityRules(**setting)


def test_absurd_cells_are_judged_quickly_and_never_raise():
    rng = np.random.default_rng(0)
    for _ in range(200):
        matrix = rng.normal(size=(3, 3)) * 10 ** rng.uniform(-3, 3)
        n = int(rng.integers(1, 12))
        elements = rng.choice(["H", "O", "Cs", "U", "Kr", "Fe"], size=n)
        structure = Structure(matrix, elements, rng.normal(size=(n, 3)) * 10 ** rng.uniform(-2, 2))
        reason = ValidityRules().reason(structure)
        assert reason is None or reason in {*BROKEN, "element-not-allowed"}
