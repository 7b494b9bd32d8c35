from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from loop.errors import ConfigError, EnergyTypeError
from loop.fingerprint import fingerprint
from loop.hull import Hull, HullEntry
from loop.known import KnownCrystals
from loop.novelty import NoveltyIndex
from loop.reward import STABILITY, PropertyReward, RewardConfig, RewardInputs, Term
from loop.reward_sources import scarcity
from loop.screening import HullScreen
from loop.validity import ValidityRules
from loop.values import Candidate, EnergyType, Prediction
from tests import fakes

KIND = EnergyType("test", "PBE", "none")
# an invented chemistry in which NaCl and KCl lie on the hull at -2 and -1.8 eV/atom; Li-Rb-I has no known compound
ENTRIES = [HullEntry(element, 0.0, element) for element in ("Na", "K", "Cl", "Li", "Rb", "I", "Cu")]
HULL = Hull([*ENTRIES, HullEntry("NaCl", -2.0, "a"), HullEntry("KCl", -1.8, "b")], KIND)


def rocksalt(cation="Na", anion="Cl", a=5.64):
    return Candidate(fakes.rocksalt(cation, anion, a))


class Energies:
    """NaCl's energy rises with the misfit of its lattice parameter; counts its calls."""

    def __init__(self, base=-2.0, fails_on=()):
        self.base, self.fails_on, self.calls = base, fails_on, 0

    def __call__(self, structures):
        self.calls += 1
        if any(structure.composition.reduced_formula in self.fails_on for structure in structures):
            raise RuntimeError("no such element")
        return np.array([self.base + (structure.lattice.a - 5.64) ** 2 for structure in structures])


class Predictions:
    """Bulk modulus: mean 10 per A of the lattice parameter, and a standard deviation of 5 GPa."""

    def predict(self, candidates):
        mean = np.array([[10 * candidate.structure.lattice.a] for candidate in candidates])
        return Prediction(mean, np.full_like(mean, 5.0), ("bulk_modulus",), ("GPa",))


def judges(energies=None, novelty=None, surrogate=None):
    screen = HullScreen(energies or Energies(), KIND, HULL)
    return RewardInputs(ValidityRules(max_atoms=16), novelty, screen, surrogate)


def score(candidates, config=None, **parts):
    return PropertyReward(config or RewardConfig(), judges(**parts))(candidates)


def test_lower_energy_is_a_higher_reward():
    rewards, rows = score([rocksalt(a=5.64 + shift) for shift in (0.0, 0.3, 0.6, 1.0, 1.3)])
    assert (np.diff(rewards) < 0).all()
    assert rewards[0] == pytest.approx((0.55 / 0.6) ** 4)  # on the hull: below it there is more to earn
    assert rows[1]["e_above_hull"] == pytest.approx(0.09)
    assert rows[1]["d_e_above_hull"] == pytest.approx(((0.55 - 0.09) / 0.6) ** 4)


def test_what_is_no_crystal_gets_nothing_and_the_batch_one_call():
    energies = Energies()
    candidates = [None, rocksalt(), rocksalt(a=3.0), rocksalt()]
    rewards, rows = score(candidates, energies=energies)
    assert energies.calls == 1
    assert rewards[[0, 2]].tolist() == [0.0, 0.0]
    assert [row["guard_invalid"] for row in rows] == [1.0, 0.0, 1.0, 0.0]
    assert rewards[1] > 0


def test_far_below_the_hull_is_an_error_and_no_jackpot():
    config = RewardConfig()
    rewards, rows = score([rocksalt()], config, energies=Energies(base=-2.5))
    assert rewards[0] == 0.0
    assert rows[0]["guard_far-below-hull"] == 1.0
    rewards, _ = score([rocksalt()], config, energies=Energies(base=-2.15))
    assert rewards[0] == pytest.approx(1.0)  # a little below: a find
    rewards, _ = score([rocksalt()], RewardConfig(floor=None), energies=Energies(base=-2.5))
    assert rewards[0] == pytest.approx(1.0)  # the guard is off


def test_a_sparse_hull_pushes_neither_way():
    lonely = rocksalt("Rb", "I", 7.3)
    candidates = [rocksalt(), rocksalt(a=6.6), lonely]
    rewards, rows = score(candidates, energies=Energies(base=-2.0))
    assert rows[2]["guard_sparse-hull"] == 1.0
    assert rewards[2] == pytest.approx(rewards[:2].mean())
    config = RewardConfig(abstain_on_sparse_hulls=False)
    rewards, _ = score(candidates, config, energies=lambda structures: np.full(len(structures), -0.1))
    assert rewards[2] == pytest.approx(1.0)  # unguarded: everything is stable where nothing is known


def test_elements_alone_are_not_rewarded():
    copper = Candidate(Structure(Lattice.cubic(3.61), ["Cu"] * 4, fakes.FCC))
    energies = Energies(base=-4.0)
    rewards, rows = score([copper], energies=energies)
    assert (rewards[0], rows[0]["guard_single-element"]) == (0.0, 1.0)
    rewards, _ = score([copper], RewardConfig(single_elements=True, floor=None), energies=energies)
    assert rewards[0] > 0


def test_repeating_a_formula_pays_less_beyond_the_limit():
    candidates = [rocksalt(a=5.64 + shift) for shift in np.linspace(-0.01, 0.01, 6)]
    rewards, rows = score(candidates, RewardConfig(max_repeats=4, repeat_factor=0.5))
    assert [row["guard_repeated"] for row in rows] == [0, 0, 0, 0, 1, 1]
    assert rewards[5] == pytest.approx(rewards[0] / 2, rel=1e-3)


def test_known_crystals_and_copies_pay_less():
    table = KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(rocksalt().structure)])
    index = NoveltyIndex(table)
    potassium = rocksalt("K", "Cl", 6.3)
    index.add([potassium.structure], ["labelled before"])
    config = RewardConfig(known_factor=0.25, duplicate_factor=0.5, max_repeats=None)
    energies = lambda structures: np.full(len(structures), -1.8)  # noqa: E731
    rewards, rows = score([rocksalt(), potassium], config, novelty=index, energies=energies)
    plain, _ = score([rocksalt(), potassium], config, energies=energies)
    assert rewards == pytest.approx(plain * [0.25, 0.5])
    assert [row["guard_known"] for row in rows] == [1.0, 1.0]


def test_known_crystals_earn_in_full_where_stability_is_all_that_is_asked_for():
    """Unless the configuration says otherwise: it keeps a policy near crystals that exist."""
    index = NoveltyIndex(KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(rocksalt().structure)]))
    stiff = Term("bulk_modulus", "maximise", low=0.0, high=100.0)

    def share(config):
        (known,), rows = score([rocksalt(a=6.14)], config, novelty=index, surrogate=Predictions())
        (plain,), _ = score([rocksalt(a=6.14)], config, surrogate=Predictions())
        assert rows[0]["known"] == 1.0
        assert plain > 0
        return known / plain

    assert share(RewardConfig()) == 1.0
    assert share(RewardConfig(terms=(STABILITY, stiff))) == pytest.approx(0.3)
    assert share(RewardConfig(terms=(STABILITY, stiff), known_factor=0.7)) == pytest.approx(0.7)
    assert share(RewardConfig(known_factor=0.0)) == 0.0


def test_an_uncertain_posterior_is_discounted():
    term = Term("bulk_modulus", "maximise", low=0.0, high=100.0)
    candidates = [rocksalt()]
    for kappa, expected, flagged in ((0.0, 0.564, 0.0), (1.0, 0.514, 0.0), (3.0, 0.414, 1.0)):
        config = RewardConfig(terms=(term,), kappa=kappa)
        rewards, rows = score(candidates, config, surrogate=Predictions())
        assert rewards[0] == pytest.approx(expected)
        assert rows[0]["guard_uncertain"] == flagged


def test_objectives_multiply_and_weigh():
    stability = Term("e_above_hull", "minimise", low=0.0, high=1.0, source="hull", weight=3.0)
    modulus = Term("bulk_modulus", "maximise", low=0.0, high=100.0)
    candidate = rocksalt(a=6.14)  # 0.25 eV/atom above the hull
    rewards, _ = score([candidate], RewardConfig(terms=(stability, modulus), kappa=0), surrogate=Predictions())
    assert rewards[0] == pytest.approx((0.75**3 * 0.614) ** 0.25)
    alone, _ = score([candidate], RewardConfig(terms=(stability, modulus), kappa=0))  # no surrogate yet
    assert alone[0] == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        ("minimise", [1, 1, 0.5, 0, 0]),
        ("maximise", [0, 0, 0.5, 1, 1]),
        ("target", [0, 0, 1, 0, 0]),
        ("range", [0.5, 1, 1, 1, 0.5]),
    ],
)
def test_transforms(goal, expected):
    term = Term("x", goal, low=2.0, high=4.0)
    assert term.desirability(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(expected)
    assert Term("x", goal, 2.0, 4.0, shape=2.0).desirability(np.array([3.0])) == pytest.approx(expected[2] ** 2)


def test_pessimism_takes_the_worse_end():
    term = Term("x", "target", low=2.0, high=4.0)
    assert term.under_doubt(np.array([3.5]), np.array([0.25]), 1.0) == pytest.approx([0.25])
    assert term.under_doubt(np.array([2.5]), np.array([0.25]), 1.0) == pytest.approx([0.25])


def test_one_crystal_that_breaks_the_potential_does_not_take_the_others_along():
    energies = Energies(fails_on=("CuCl",))
    candidates = [rocksalt(), rocksalt("Cu", "Cl", 5.4), rocksalt(a=5.7)]
    rewards, rows = score(candidates, energies=energies)
    assert rewards[1] == 0.0
    assert rewards[0] > rewards[2] > 0
    assert [row["guard_no-energy"] for row in rows] == [0.0, 1.0, 0.0]


def test_energies_of_another_type_are_refused():
    screen = HullScreen(Energies(), EnergyType("other", "PBE", "none"), HULL)
    with pytest.raises(EnergyTypeError):
        PropertyReward(RewardConfig(), RewardInputs(ValidityRules(), hull=screen))([rocksalt()])


def test_what_bites_is_counted_and_all_is_finite_and_bounded():
    reward = PropertyReward(RewardConfig(), judges(energies=Energies(base=-2.0)))
    rng = np.random.default_rng(0)
    pairs = [("Na", "Cl"), ("K", "Cl"), ("Rb", "I"), ("Th", "O"), ("Mg", "O")]
    for _ in range(3):
        batch = [rocksalt(*pairs[rng.integers(5)], a=rng.uniform(2, 8)) for _ in range(12)] + [None]
        rewards, rows = reward(batch)
        assert rewards.shape == (13,)
        assert np.isfinite(rewards).all()
        assert ((rewards >= 0) & (rewards <= 1)).all()
        assert len(rows) == 13
    assert reward.counts["invalid"] >= 3
    assert reward.counts["no-energy"] + reward.counts["repeated"] > 0


@pytest.mark.parametrize("batch", [[], [None, None]])
def test_empty_batches(batch):
    rewards, rows = score(batch)
    assert rewards.tolist() == [0.0] * len(batch)
    assert len(rows) == len(batch)


def test_scarce_elements_cost():
    def composition(text):
        return Structure(Lattice.cubic(4), [text, "O"], [[0] * 3, [0.5] * 3])

    # Gaultois et al. 2013: rare earths lie above 9000, oxygen far below
    assert scarcity(composition("Si")) < 4000 < 8000 < scarcity(composition("Dy"))
    cost = Term("scarcity", "minimise", low=1000.0, high=9000.0, source="elements")
    config = RewardConfig(terms=(cost,))
    rewards, _ = score([rocksalt(), rocksalt("Li", "I", 6.0)], config)
    assert rewards[0] > 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Term("x", "minimise", 2.0, 1.0), "low < high"),
        (lambda: Term("bulk_modulus", "maximise", 0.0, 1.0, source="hull"), "gives 'e_above_hull'"),
        (lambda: RewardConfig(terms=()), "at least one term"),
        (lambda: RewardConfig(known_factor=1.5), "known_factor"),
        (lambda: RewardConfig(floor=0.1), "floor < 0"),
        (lambda: PropertyReward(RewardConfig(), RewardInputs(ValidityRules())), "needs a potential and a hull"),
    ],
)
def test_nonsense_is_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_what_is_worth_nothing_is_not_evaluated():
    table = KnownCrystals.from_fingerprints(["mp-1"], [fingerprint(rocksalt().structure)], [3])
    energies = Energies()
    reward = PropertyReward(RewardConfig(known_factor=0.0), judges(energies=energies, novelty=NoveltyIndex(table)))
    rewards, rows = reward([rocksalt()])
    assert (rewards[0], rows[0]["known"], rows[0]["replay"], energies.calls) == (0.0, 1.0, 1.0, 0)
    assert "e_above_hull" not in rows[0]
    rewards, rows = reward([rocksalt("K", "Cl", 6.3)])
    assert (rows[0]["known"], energies.calls) == (0.0, 1)
    assert rewards[0] > 0


def test_a_failure_costs_what_its_config_says_and_is_counted_by_kind():
    reward = PropertyReward(RewardConfig(failure=-0.5), judges())
    rewards, _ = reward([None, rocksalt(a=3.0), rocksalt("Na", "Kr"), rocksalt()])
    assert rewards[:3].tolist() == [-0.5] * 3
    assert rewards[3] > 0
    assert reward.failures == {"no-crystal": 1, "volume-per-atom": 1, "noble-gas": 1}


def test_a_negative_kappa_is_a_bonus():
    term = Term("bulk_modulus", "maximise", low=0.0, high=100.0)
    rewards, _ = score([rocksalt()], RewardConfig(terms=(term,), kappa=-1.0), surrogate=Predictions())
    assert rewards[0] == pytest.approx(0.614)


class Dielectric:
    """Gap 2 +- 0.3 eV and dielectric constant 5 +- 1: figure of merit 10 +- sqrt(1.5^2 + 2^2) = 2.5."""

    def predict(self, candidates):
        n = len(candidates)
        mean, std = np.tile([2.0, 5.0], (n, 1)), np.tile([0.3, 1.0], (n, 1))
        return Prediction(mean, std, ("band_gap", "eps_total"), ("eV", "1"))


def test_a_figure_of_merit_is_a_product():
    term = Term("band_gap*eps_total", "maximise", low=0.0, high=20.0)
    for kappa, expected in ((0.0, 0.5), (2.0, 0.25)):
        rewards, rows = score([rocksalt()], RewardConfig(terms=(term,), kappa=kappa), surrogate=Dielectric())
        assert rewards[0] == pytest.approx(expected)
    assert rows[0]["band_gap*eps_total"] == pytest.approx(10)
