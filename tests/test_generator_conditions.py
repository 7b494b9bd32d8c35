"""Conditions hold on every sample, exclude nothing else, and are part of the likelihood."""

import itertools
import json
from collections import Counter
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import pytest
import torch
from pymatgen.core import Composition, Structure
from pymatgen.optimization.neighbors import find_points_in_spheres

from generator.checkpoint import Checkpoint
from generator.constraints.budgets import INFEASIBLE
from generator.constraints.conditions import ConditionError, Sampling, numbers
from generator.constraints.feasibility import Feasibility, FeasibleCompletions, centring, feasibility
from generator.constraints.guard import Guard
from generator.draw import draw
from generator.likelihood import element_distribution, log_prob, space_group_logp
from generator.model import CrystalFormer, ModelConfig
from generator.policy import CrystalFormerGenerator, PolicyConfig
from generator.representation.sequence import Crystals
from generator.representation.tokens import CrystalBatch, detokenize
from generator.representation.wyckoff import letter_index, tables
from generator.rl.config import FinetuneConfig
from generator.sample import draw_space_groups, sample
from loop.errors import DiscoveryLoopError

SMALL = {"layers": 1, "heads": 2, "head_size": 8, "width": 16, "embedding": 8, "first_letter_hidden": 16, "slots": 9}
LAYOUTS = {
    "free": ModelConfig(**SMALL, dropout=0.0),
    "published": ModelConfig.published(**SMALL, dropout=0.0),
}
GROUPS = (1, 2, 12, 47, 62, 99, 123, 139, 160, 194, 216, 221, 225)
CONDITIONS = {
    "elements": Sampling(elements=("O", "Ti", 38)),
    "exclude": Sampling(0.8, 0.9, exclude=tuple(range(9, 119))),
    "require": Sampling(require=("Sr", "O", "Ti")),
    "system": Sampling(1.3, 0.7, chemical_system="Li-Fe-P-O"),
    "max_elements": Sampling(max_elements=2, require=("O",)),
    "max_atoms": Sampling(max_atoms=12),
    "n_atoms": Sampling(n_atoms=8),
    "formula": Sampling(0.9, 0.9, formula="SrTiO3", max_atoms=24),
    "formula alone": Sampling(formula="MgAl2O4"),
    "formula and number": Sampling(formula="TiO2", n_atoms=6),
    "sites": Sampling(sites=("a", "b:Ti")),
    "everything": Sampling(0.9, 0.9, require=("O",), max_elements=3, max_atoms=14, sites=("a:Ti",), bias={"O": 2.0}),
}


@lru_cache
def random_model(layout: str, seed: int = 0, **changes) -> CrystalFormer:
    """All weights random."""
    generator = torch.Generator().manual_seed(seed)
    model = CrystalFormer(replace(LAYOUTS[layout], **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3)
    return model


def obeys(g: int, sites: list[tuple[int, int]], sampling: Sampling) -> bool:
    """Whether a crystal, as (letter, element) of its sites, fulfils all conditions. Shares no code with the masks."""
    counts = Counter()
    for letter, element in sites:
        counts[element] += int(tables().multiplicity[g, letter])
    present, atoms = set(counts), sum(counts.values()) / lattice_points(g)
    if sampling.formula:
        formula = formula_of(sampling.formula)
        units = {counts[z] / n for z, n in formula.items()}
        limit = sampling.max_atoms or sampling.n_atoms or 60
        if present != set(formula) or len(units) > 1 or not units.pop().is_integer() or atoms > limit:
            return False
    here, on_letter = Counter(sites), Counter(letter for letter, _ in sites)
    forced, of_any = Counter(), Counter()
    for text in sampling.sites:
        letter, _, element = text.partition(":")
        of_any[letter_index(letter)] += 1
        if element:
            forced[letter_index(letter), numbers([element])[0]] += 1
    system = set(numbers(sampling.chemical_system))
    return (
        (not sampling.elements or present <= set(numbers(sampling.elements)))
        and not present & set(numbers(sampling.exclude))
        and set(numbers(sampling.require)) <= present
        and (not system or present == system)
        and (sampling.max_elements is None or len(present) <= sampling.max_elements)
        and (sampling.max_atoms is None or atoms <= sampling.max_atoms)
        and (sampling.n_atoms is None or atoms == sampling.n_atoms)
        and all(here[site] >= n for site, n in forced.items())
        and all(on_letter[letter] >= n for letter, n in of_any.items())
    )


@lru_cache
def formula_of(text: str) -> dict[int, float]:
    return {element.Z: amount for element, amount in Composition(text).items()}


@lru_cache
def lattice_points(g: int) -> int:
    """Of the conventional cell, by the first letter of the group's symbol."""
    from pymatgen.symmetry.groups import sg_symbol_from_int_number

    return {"P": 1, "A": 2, "C": 2, "I": 2, "R": 3, "F": 4}[sg_symbol_from_int_number(g)[0]]


def sites_of(batch: CrystalBatch, i: int) -> list[tuple[int, int]]:
    return [(int(w), int(a)) for w, a in zip(batch.W[i], batch.A[i], strict=True) if w]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CONDITIONS)
def test_every_sample_fulfils_and_its_likelihood_is_exact(layout, name):
    model, sampling = random_model(layout), CONDITIONS[name]
    possible = [g for g in GROUPS if (r := feasibility(sampling, SMALL["slots"])) is None or r.possible(g)]
    rng = np.random.default_rng(1)
    groups = draw_space_groups(model, 150, rng, possible, sampling)
    assert len(set(groups)) >= 5  # the condition is tried in many groups
    within = sampling.within(possible)
    drawn = sample(model, groups, rng, within)
    assert all(obeys(int(g), sites_of(drawn.batch, i), sampling) for i, g in enumerate(drawn.batch.G))
    with torch.no_grad():
        again = log_prob(model, Crystals.from_batch(drawn.batch, model.head.weight), within)
    for term in ("g", "w", "a", "xyz", "l"):
        torch.testing.assert_close(getattr(drawn.logp, term), getattr(again, term), rtol=0, atol=1e-9)
    assert torch.isfinite(again.joint).all()


def sequences(g: int, elements: tuple[int, ...], most: int) -> list[list[tuple[int, int]]]:
    """All crystals of a group with at most so many sites, as symmetry allows them."""
    t, complete = tables(), []
    growing: list[list[tuple[int, int]]] = [[]]
    while growing:
        longer = []
        for prefix in growing:
            last = prefix[-1][0] if prefix else 0
            lowest = 1 if last == 0 else last + bool(t.dof0[g, last])
            for letter, element in itertools.product(range(lowest, t.n_letters[g] + 1), elements):
                longer.append([*prefix, (letter, element)])
        complete += longer
        growing = longer if longer and len(longer[0]) < most else []
    return complete


EXHAUSTIVE = [
    (2, 4, Sampling(formula="SrTiO3", max_atoms=10)),
    (2, 3, Sampling(formula="TiO", n_atoms=4)),
    (5, 4, Sampling(formula="Ti2O3")),
    (12, 3, Sampling(formula="TiO2", max_atoms=9)),
    (47, 3, Sampling(formula="TiO2", max_atoms=12)),
    (62, 4, Sampling(formula="SrTiO3", max_atoms=40)),
    (99, 4, Sampling(formula="SrTiO3", max_atoms=5)),
    (160, 4, Sampling(formula="Ti2O", max_atoms=12)),
    (225, 3, Sampling(formula="TiO2", max_atoms=30)),
    (99, 4, Sampling(formula="SrTiO3", max_atoms=15, sites=("c", "b:Ti"))),
    (8, 4, Sampling(formula="TiO", sites=("a", "a:O", "b"))),
    (2, 3, Sampling(require=("Sr", "O"), max_atoms=3)),
    (99, 3, Sampling(require=("Sr", "O", "Ti"), n_atoms=4)),
    (225, 3, Sampling(chemical_system="Ti-O", max_atoms=9)),
    (62, 4, Sampling(max_elements=2, require=("O",), n_atoms=16)),
    (8, 4, Sampling(sites=("a:Ti", "a", "b:O", "b:O"), require=("Sr",), max_elements=3)),
    (166, 3, Sampling(n_atoms=5)),
    (47, 2, Sampling(max_atoms=2, require=("O",))),
]


@pytest.mark.parametrize(("g", "most", "sampling"), EXHAUSTIVE, ids=lambda value: str(value)[:60])
def test_masks_allow_exactly_what_can_be_completed(g, most, sampling):
    """Against all crystals of the group, enumerated: the masks after every prefix, neither too wide nor too narrow."""
    elements = tuple(sampling.composition or (8, 22, 38))
    sampling = replace(sampling, elements=elements)
    group = Feasibility(sampling, most + 1).group(g)
    following: dict[tuple, set] = {}
    for crystal in sequences(g, elements, most):
        if obeys(g, crystal, sampling):
            for cut in range(len(crystal) + 1):
                step = crystal[cut] if cut < len(crystal) else (0, 0)
                following.setdefault(tuple(crystal[:cut]), set()).add(step)
    assert len(following) > 3
    for prefix, steps in following.items():
        state = group.start
        for letter, element in prefix:
            state = group.place(state, letter, element)
        letters = set(np.flatnonzero(group.letters(state) < INFEASIBLE).tolist())
        assert letters == {letter for letter, _ in steps}, prefix
        for letter in letters - {0}:
            assert set(np.flatnonzero(group.elements(state, letter) < INFEASIBLE).tolist()) == {
                element for at, element in steps if at == letter
            }


@pytest.mark.parametrize("g", [1, 2, 8, 99, 166, 216, 225])
@pytest.mark.parametrize("formula", ["O", "TiO2", "Ti3O5"])
def test_impossible_groups_are_those_without_a_crystal(g, formula):
    for most, units in itertools.product((1, 3), (1, 2)):
        sampling = Sampling(formula=formula, n_atoms=int(units * sum(formula_of(formula).values())))
        found = any(obeys(g, crystal, sampling) for crystal in sequences(g, (8, 22), most))
        assert Feasibility(sampling, most + 1).possible(g) is found


@pytest.mark.parametrize(
    ("g", "most", "sampling"),
    [
        (2, 4, Sampling(0.8, 1.0, formula="SrTiO3", max_atoms=10, bias={"O": 1.0})),
        (47, 3, Sampling(formula="TiO2", max_atoms=3)),
        (99, 3, Sampling(require=("O",), max_atoms=4, elements=("O", "Ti", "Sr"), sites=("a",))),
    ],
)
def test_discrete_probabilities_sum_to_one(g, most, sampling):
    """Over all crystals that fulfil the conditions, with some fixed coordinates: 1. Those that do not: 0."""
    model = random_model("free", slots=most + 1)
    crystals = sequences(g, numbers(sampling.elements) or tuple(sampling.required), most)
    wanted = np.array([obeys(g, crystal, sampling) for crystal in crystals])
    rows = np.concatenate([np.flatnonzero(wanted), np.flatnonzero(~wanted)[:500]])
    W, A = np.zeros((2, len(rows), most + 1), int)
    for row, i in enumerate(rows):
        W[row, : len(crystals[i])], A[row, : len(crystals[i])] = np.array(crystals[i]).T
    xyz = np.tile([0.1, 0.23, 0.37], (len(rows), most + 1, 1))
    batch = CrystalBatch(np.full(len(rows), g), W, A, xyz, np.ones((len(rows), 6)))
    with torch.no_grad():
        logp = log_prob(model, Crystals.from_batch(batch, model.head.weight), sampling)
    discrete = (logp.w + logp.a).exp().numpy()
    assert 20 < wanted.sum() < len(wanted)
    assert discrete[: wanted.sum()].sum() == pytest.approx(1, abs=1e-9)
    assert (discrete[wanted.sum() :] == 0).all()


def test_importance_weights_average_to_one_under_conditions():
    q = random_model("free")
    p = CrystalFormer(q.config).double().eval()
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for new, old in zip(p.parameters(), q.parameters(), strict=True):
            new.copy_(old + torch.randn(old.shape, generator=generator, dtype=torch.float64) * 0.03)
    sampling = Sampling(0.9, formula="SrTiO3", max_atoms=20, bias={"O": 0.5})
    rng = np.random.default_rng(8)
    drawn = sample(q, rng.choice([8, 62, 99, 160, 221], 1500), rng, sampling)
    with torch.no_grad():
        ratio = log_prob(p, Crystals.from_batch(drawn.batch, q.head.weight), sampling).total - drawn.logp.total
    weights = ratio.exp().numpy()
    error = weights.std() / np.sqrt(len(weights))
    assert error < 0.03  # the test has power
    assert weights.std() > 0.1  # the policies differ
    assert weights.mean() == pytest.approx(1, abs=4 * error)


def test_bias_shifts_frequencies_as_the_formula_says():
    model = random_model("free")
    g = np.full(4000, 1)
    first = [
        sample(model, g, np.random.default_rng(3), sampling).batch.A[:, 0]
        for sampling in (
            Sampling(elements=("O", "Ti"), max_atoms=1),
            Sampling(elements=("O", "Ti"), max_atoms=1, bias={"O": 1}),
        )
    ]
    odds = [np.mean(a == 8) / np.mean(a == 22) for a in first]
    assert odds[1] / odds[0] == pytest.approx(np.e, rel=0.15)


def test_urgency_weighs_choices_by_the_sites_they_need():
    """Two elements missing, element by element: odds move by exp(urgency) towards those that are missing."""
    model = random_model("free")
    g, rng = np.full(300, 1), np.random.default_rng(2)
    sites = []
    for urgency in (0.0, 4.0):
        sampling = Sampling(elements=("O", "Ti", "Sr", "Li"), require=("O", "Ti"), urgency=urgency)
        drawn = sample(model, g, rng, sampling)
        sites.append(drawn.batch.num_sites.mean())
        state = feasibility(sampling, model.config.slots).group(1).start
        further = torch.as_tensor(feasibility(sampling, model.config.slots).group(1).elements(state, 1))[None]
        raw = torch.zeros(1, 119, dtype=torch.float64)
        logp = element_distribution(raw, sampling, further=further).logp[0]
        assert (logp[8] - logp[3]).item() == pytest.approx(urgency)
        assert logp[[3, 8, 22, 38]].exp().sum().item() == pytest.approx(1)
    assert sites[1] < sites[0] - 1


def test_broken_conditions_have_probability_zero():
    model = random_model("free")
    drawn = sample(model, np.full(50, 99), np.random.default_rng(0), Sampling(formula="SrTiO3", max_atoms=20))
    crystals = Crystals.from_batch(drawn.batch, model.head.weight)
    with torch.no_grad():
        for other in (
            Sampling(formula="SrTi2O3"),
            Sampling(max_atoms=1),
            Sampling(require=("Ba",)),
            Sampling(sites=("g", "g")),
        ):
            total = log_prob(model, crystals, other).total
            assert not torch.isnan(total).any()
            obey = [obeys(99, sites_of(drawn.batch, i), other) for i in range(50)]
            assert (torch.isfinite(total).numpy() == obey).all()
        impossible = log_prob(model, crystals, Sampling(formula="O", n_atoms=1, sites=("g",)))
        assert torch.isneginf(impossible.total).all()


def test_p_of_g_leaves_out_impossible_groups():
    """Fd-3m (227) has no position with fewer than 2 points in the primitive cell: one atom fits nowhere."""
    model = random_model("free")
    sampling = Sampling(n_atoms=1)
    t = tables()
    possible = [any(t.multiplicity[g, 1 : t.n_letters[g] + 1] == centring(g)) for g in range(1, 231)]
    logp = space_group_logp(model, sampling)
    assert (torch.isfinite(logp).numpy() == possible).all()
    assert not possible[226]
    assert logp.exp().sum().item() == pytest.approx(1, abs=1e-12)
    groups = draw_space_groups(model, 500, np.random.default_rng(0), sampling=sampling)
    assert all(possible[g - 1] for g in groups)
    with pytest.raises(ConditionError, match=r"space groups 227, 230 .*n_atoms 1"):
        draw_space_groups(model, 5, np.random.default_rng(0), [1, 227, 230], sampling)
    with pytest.raises(ConditionError, match="space group 227"):
        sample(model, np.array([1, 227]), np.random.default_rng(0), sampling)
    with pytest.raises(ConditionError, match="no crystal of any space group"):
        draw_space_groups(model, 5, np.random.default_rng(0), sampling=Sampling(n_atoms=1, sites=("a", "b")))


def test_centring_is_that_of_the_symbol():
    assert [centring(g) for g in range(1, 231)] == [lattice_points(g) for g in range(1, 231)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"elements": ("Xx",)}, "'Xx' is no element"),
        ({"elements": (119,)}, "119 is no element"),
        ({"require": (False,)}, "False is no element"),
        ({"formula": "SrTi??"}, "is no formula"),
        ({"formula": "Sr0.5TiO3"}, "whole numbers"),
        ({"formula": "SrTiO3", "elements": ("Sr", "O")}, "not allowed: Ti"),
        ({"formula": "SrTiO3", "exclude": ("O",)}, "not allowed: O"),
        ({"formula": "SrTiO3", "require": ("Ba",)}, "not allowed: Ba"),
        ({"formula": "SrTiO3", "max_atoms": 4}, "one unit of SrTiO3 has 5 atoms"),
        ({"require": ("Ba", "O"), "max_elements": 1}, "max_elements is 1"),
        ({"n_atoms": 8, "max_atoms": 4}, "n_atoms is 8"),
        ({"elements": ("O",), "exclude": ("O",)}, "no element is left"),
        ({"chemical_system": "Ti-O", "sites": ("a:Sr",)}, "not allowed: Sr"),
        ({"sites": ("3",)}, "is no site"),
        ({"sites": ("c:Q",)}, "'Q' is no element"),
        ({"space_groups": (0,)}, "1..230"),
        ({"bias": {"O": float("inf")}}, "finite"),
        ({"max_atoms": 0}, "at least 1"),
        ({"temperature": 0.0}, "temperature"),
        ({"urgency": -1.0}, "urgency"),
    ],
)
def test_conditions_without_sense_are_refused(settings, message):
    with pytest.raises(ConditionError, match=message) as caught:
        Sampling(**settings)
    assert isinstance(caught.value, DiscoveryLoopError)


def test_settings_survive_json_and_pydantic():
    from pydantic import TypeAdapter

    sampling = Sampling(formula="SrTiO3", elements=(8, "Ti", 38), bias={8: 1}, sites=["a:Ti"], space_groups=[221])
    back = TypeAdapter(Sampling).validate_python(json.loads(json.dumps(asdict(sampling))))
    assert back == sampling
    assert hash(back) == hash(sampling)
    assert sampling.elements == ("O", "Ti", "Sr")


def shortest_ratio(structure: Structure, fraction: float, floor: float) -> float:
    """Smallest ratio of a distance to its limit, by pymatgen's neighbour search."""
    from ase.data import covalent_radii

    radii = covalent_radii[[site.specie.Z for site in structure]]
    cutoff = max(floor, 2 * fraction * radii.max()) + 0.1
    one, other, images, distances = find_points_in_spheres(
        structure.cart_coords, structure.cart_coords, r=cutoff, pbc=np.ones(3, int), lattice=structure.lattice.matrix
    )
    pairs = (one != other) | images.any(axis=1)
    limits = np.maximum(floor, fraction * (radii[one] + radii[other]))
    return (distances / limits)[pairs].min(initial=np.inf)


def test_guard_agrees_with_a_neighbour_search():
    """Also in skewed cells, where the nearest image is not among the neighbours of the cell as given."""
    rng = np.random.default_rng(4)
    n = 200
    G = rng.choice([1, 2, 5, 12, 15, 62, 139, 166, 194, 225], n)
    W, A = np.zeros((2, n, 4), int)
    W[:, 0] = tables().n_letters[G]
    W[: n // 2, 0] = 1
    W[G <= 2, 1] = tables().n_letters[G[G <= 2]]
    A[W > 0] = rng.choice([3, 8, 55], (W > 0).sum())
    L = np.concatenate([rng.uniform(0.8, 3, (n, 3)), rng.uniform(0.4, 2.6, (n, 3))], 1)
    batch = CrystalBatch(G, W, A, rng.random((n, 4, 3)), L)
    for guard in (Guard(), Guard(radius_fraction=0.7), Guard(1.5)):
        passed = guard.passes(batch)
        structures = [detokenize(batch, i) for i in range(n)]
        expected = [
            s is not None and shortest_ratio(s, guard.radius_fraction, guard.min_distance) >= 1 for s in structures
        ]
        assert (passed == expected).all()
        assert 10 < passed.sum() < 190


@pytest.mark.parametrize(("height", "apart"), [(0.35, False), (0.45, True)])
def test_guard_finds_short_lattice_vectors_of_skewed_cells(height, apart):
    """c - 3a = (0.3, 0, height) is shorter than any vector between neighbouring images of the cell as given."""
    cell = [2.0, 5.0, np.hypot(6.3, height), np.pi / 2, np.arctan2(height, 6.3), np.pi / 2]
    batch = CrystalBatch(np.array([1]), np.array([[1, 0]]), np.array([[8, 0]]), np.zeros((1, 2, 3)), np.array([cell]))
    assert min(detokenize(batch).lattice.abc) >= 2
    assert Guard().passes(batch).tolist() == [apart]


def test_guard_redraws_and_tells_how_often():
    model = random_model("free")
    sampling = Sampling(formula="TiO", max_atoms=8, space_groups=(1, 99, 221))
    guard = Guard(1.0)
    drawn = draw(model, 60, np.random.default_rng(0), sampling, guard=guard, batch_size=50)
    assert len(drawn.sample.batch) == len(drawn.sample.logp.total) == 60
    assert guard.passes(drawn.sample.batch).all()
    assert 60 <= drawn.accepted < drawn.tries
    free = draw(model, 600, np.random.default_rng(1), sampling)
    assert (free.tries, free.accepted, free.acceptance) == (600, 600, 1.0)
    share = guard.passes(free.sample.batch).mean()
    error = np.hypot(drawn.acceptance_error, np.sqrt(share * (1 - share) / 600))
    assert drawn.acceptance == pytest.approx(share, abs=4 * error)
    with torch.no_grad():  # the log-probability is that without the guard
        again = log_prob(model, Crystals.from_batch(drawn.sample.batch, model.head.weight), sampling)
    torch.testing.assert_close(again.joint, drawn.sample.logp.joint, rtol=0, atol=1e-9)
    hopeless = draw(model, 5, np.random.default_rng(0), sampling, guard=Guard(50.0, max_tries=3))
    assert (len(hopeless.sample.batch), hopeless.tries, hopeless.accepted) == (0, 15, 0)


def test_prefixes_do_not_depend_on_their_company():
    """A batch, its rows alone, and a table that was dropped for want of memory give the same masks."""
    sampling = Sampling(formula="SrTiO3", max_atoms=20)
    conditions = Feasibility(sampling, 9)
    groups = np.array([99, 221, 62])
    together = FeasibleCompletions(conditions, groups).letters()
    conditions._bytes = 10**12
    conditions.group(2)
    assert set(conditions._groups) == {2}
    alone = np.concatenate([FeasibleCompletions(conditions, groups[i : i + 1]).letters() for i in range(3)])
    np.testing.assert_array_equal(together, alone)


def test_proposals_and_fine_tuning_keep_to_the_conditions():
    seen = []

    def reward(candidates):
        seen.extend(candidates)
        return np.arange(len(candidates), dtype=float), [{} for _ in candidates]

    sampling = Sampling(formula="TiO2", max_atoms=20)
    base = Checkpoint(random_model("free"), "a" * 64, {})
    policy = PolicyConfig(max_atoms=12, space_groups=(99, 136, 227), sampling=sampling, guard=Guard(0.8))
    assert policy.conditions == replace(sampling, max_atoms=12, space_groups=(99, 136, 227))
    tuning = FinetuneConfig(iterations=1, batch_size=30, space_groups=(99, 227), sampling=sampling)
    generator = CrystalFormerGenerator(base, policy, tuning)
    proposed = generator.propose(40, seed=0, round=0)
    assert len(proposed) == 40
    assert generator.last_draw.tries >= 40
    rows = generator.learn(reward, seed=0, round=0)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-9)  # before the first step policy and base are the same
    assert all(c.formula == "TiO2" for c in (*proposed, *seen) if c is not None)
    assert {c.origin.space_group for c in proposed} <= {99, 136, 227}
    assert all(len(c.structure) / lattice_points(c.origin.space_group) <= 12 for c in proposed)
    with pytest.raises(ConditionError, match="space group 230"):
        CrystalFormerGenerator(base, replace(policy, space_groups=(99, 230))).propose(4, seed=0, round=0)


@pytest.mark.parametrize(
    ("given", "number"), [(225, 225), ("225", 225), ("Fm-3m", 225), ("P21/c", 14), ("P_6_3/mmc", 194)]
)
def test_space_groups_are_given_by_number_or_symbol(given, number):
    assert Sampling(space_groups=(given,)).space_groups == (number,)


@pytest.mark.parametrize("wrong", [0, 231, "Fm-3q", "", -1, 3.5])
def test_a_space_group_that_there_is_not_is_refused(wrong):
    with pytest.raises(ConditionError, match=r"space group"):
        Sampling(space_groups=(wrong,))
