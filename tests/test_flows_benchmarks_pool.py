"""The pool benchmark on a world whose best crystals are known."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from flows.benchmarks.crystals import candidate_of
from flows.benchmarks.pool.run import PoolConfig, run
from flows.benchmarks.pool.simulation import Campaign, Engine, Outcome, settings_of, simulate, taught
from flows.benchmarks.pool.summary import summarise
from flows.benchmarks.pool.tasks import TASKS, load_pool
from loop.errors import ConfigError, InputError
from loop.io.cif_writer import to_cif
from loop.validity import ValidityRules
from surrogates.features import FeatureExtractor
from surrogates.gp import GPSurrogate
from tests.fakes import ANIONS, CATIONS, bulk_modulus, rocksalt

# Rock salts of any lattice parameter are worth asking about in this world.
ALL = ValidityRules(volume_per_atom=None, min_distance=None, radius_fraction=None, charge_balance=False)

METALS = ("Sc", "Ti", "V", "Cr", "Y", "Zr", "Nb", "La", "Ce", "Hf", "Ta", "Lu", "Th", "U", "Mo", "W", "Pr", "Nd")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rng = np.random.default_rng(0)
    crystals = [
        rocksalt(str(rng.choice(CATIONS)), str(rng.choice(ANIONS)), float(rng.uniform(4, 7))) for _ in range(220)
    ]
    frame = pd.DataFrame({"material_id": [f"c-{i}" for i in range(220)], "cif": [to_cif(c) for c in crystals]})
    modulus = np.array([bulk_modulus(c) * 300 / c.volume for c in crystals])
    frame["log10_k_vrh"] = np.log10(modulus)
    frame.loc[3, "cif"] = "no crystal"
    frame.loc[4, "log10_k_vrh"] = np.nan
    path = tmp_path_factory.mktemp("data") / "table.csv.gz"
    frame.to_csv(path, index=False)
    return path, modulus


def test_pool_hides_the_best_of_the_readable_labelled_rows(table):
    path, modulus = table
    pool = load_pool(path, "bulk_modulus", None, 0, ALL)
    assert len(pool.candidates) == 218
    assert len(pool.top) == 2
    best = np.sort(np.delete(modulus, [3, 4]))[-2:]
    np.testing.assert_allclose(np.sort(pool.labels[list(pool.top)]), best)
    drawn = [[c.id for c in load_pool(path, "bulk_modulus", 210, seed, ALL).candidates] for seed in (1, 1, 2)]
    assert len(set(drawn[0])) == 210
    assert drawn[0] == drawn[1] != drawn[2]


def test_crystals_that_a_campaign_would_not_take_are_in_no_pool(table, tmp_path):
    frame = pd.read_csv(table[0])
    frame["band_gap"] = 1.0
    frame.loc[7, ["cif", "band_gap"]] = [to_cif(Structure(Lattice.cubic(4.2), ["He"], [[0, 0, 0]])), 16.6]
    frame.to_csv(tmp_path / "table.csv", index=False)
    best = [
        load_pool(tmp_path / "table.csv", "band_gap_max", None, 0, rules).labels.max()
        for rules in (ALL, replace(ALL, noble_gases=True))
    ]
    assert best == [1.0, 16.6]
    with pytest.raises(InputError, match="200 valid crystals"):  # the default rules find 50 too dense
        load_pool(tmp_path / "table.csv", "band_gap_max", None, 0)


def test_known_crystals_are_of_other_formulas_and_teach_from_the_start(table, tmp_path, monkeypatch):
    frame = pd.read_csv(table[0])
    for row, metal in enumerate(METALS, start=200):
        frame.loc[row, "cif"] = to_cif(rocksalt(metal, "N", 4.5))
    frame.to_csv(tmp_path / "table.csv", index=False)
    given = (tmp_path / "table.csv", "bulk_modulus", 200, 1, ALL)
    pool, plain = load_pool(*given, known=2), load_pool(*given)
    assert [c.id for c in pool.candidates] == [c.id for c in plain.candidates]
    assert plain.known is None
    formulas = {c.formula for c in pool.candidates}
    readable = [(candidate_of(text), modulus) for text, modulus in zip(frame["cif"], frame["log10_k_vrh"], strict=True)]
    published = {candidate.id: 10**modulus for candidate, modulus in readable if candidate is not None}
    assert len(pool.known.candidates) == 2
    for candidate, label in zip(pool.known.candidates, pool.known.labels, strict=True):
        assert candidate.formula not in formulas
        assert label == pytest.approx(published[candidate.id])
    with pytest.raises(InputError, match="expected 100 known crystals"):
        load_pool(*given, known=100)

    fits = []
    fit = GPSurrogate.fit
    monkeypatch.setattr(GPSurrogate, "fit", lambda self, c, e, **k: fits.append((c, e)) or fit(self, c, e, **k))
    simulate(pool, Campaign("greedy", 0, initial=20, batch=10, budget=30), FeatureExtractor())
    (candidates, evaluations), others = fits[0], pool.known.candidates
    assert [c.id for c in candidates[:2]] == [e.candidate_id for e in evaluations[:2]] == [c.id for c in others]
    assert len(candidates) == 22  # beside the 20 that chance picked, which alone count as labels


def test_a_taught_forest_ranks_by_the_chance_to_be_in_a_window(table, tmp_path):
    """Of half of the crystals a column tells the gap, of the others that it lies on either side of the window."""
    frame, rng = pd.read_csv(table[0]), np.random.default_rng(0)
    told = np.arange(220) % 2 == 0
    gap = np.where(told, rng.uniform(0.0, 4.0, 220), np.where(np.arange(220) % 4 == 1, 0.0, 2.68))
    frame["band_gap"] = gap
    frame.to_csv(tmp_path / "table.csv", index=False)
    pool = load_pool(tmp_path / "table.csv", "band_gap_window", None, 0, ALL)
    vague = pool.labels % 2.68 == 0
    columns = np.column_stack([np.where(vague, 1.34, pool.labels), vague])
    assert taught(pool, lambda _: columns) > 1.6  # by their mean alone, near the target, the vague come first: 1.2


def test_how_far_a_taught_forest_gets(table):
    """Labels that its only column gives away are ranked as they are; labels by chance are not."""
    pool = load_pool(table[0], "bulk_modulus", None, 0, ALL)

    class Known:
        def __init__(self, values):
            self.values = values

        def __call__(self, _):
            return self.values[:, None]

    top = len(pool.top)
    n = len(pool.candidates)
    assert taught(pool, Known(pool.labels)) > 0.8 * n / top / 2
    assert taught(pool, Known(np.random.default_rng(0).permutation(pool.labels))) < 10


def test_an_oracle_tells_the_parts_of_a_figure_of_merit(table, tmp_path):
    """Rows without a gap or with an impossible constant take no part; the product is the label."""
    frame = pd.read_csv(table[0])
    frame["eps_electronic"], frame["band_gap"] = np.linspace(1.0, 20.0, 220), np.linspace(5.0, 0.4, 220)
    frame.loc[5, "band_gap"], frame.loc[6, "eps_electronic"] = 0.0, 50.0
    frame.to_csv(tmp_path / "table.csv", index=False)
    pool = load_pool(tmp_path / "table.csv", "dielectric", None, 0, ALL)
    assert len(pool.candidates) == 217
    assert pool.parts == pytest.approx(frame[["eps_electronic", "band_gap"]].drop([3, 5, 6]).to_numpy())
    told = pool.evaluate(200)
    product = told.value("eps_electronic") * told.value("band_gap")
    assert told.value("figure_of_merit") == pytest.approx(product)
    campaign = Campaign("ucb", 0, initial=20, batch=10, budget=40)
    assert settings_of(pool, campaign, Engine()).gp.properties == TASKS["dielectric"].parts
    outcome = simulate(pool, campaign, FeatureExtractor())
    assert len(set(outcome.order)) == 40
    assert 0 <= outcome.rounds[-1]["random_coverage90"] <= 1


def test_benchmark_finds_the_best_sooner_than_chance_and_records_it(table, tmp_path):
    path, _ = table
    seen = []
    config = PoolConfig(
        ("bulk_modulus",),
        ("random", "greedy"),
        2,
        None,
        initial=10,
        batch=15,
        budget=50,
        potential="none",
        validity=ALL,
    )
    record = run(path, tmp_path, config, lambda *args: seen.append(args))
    rows = {row["strategy"]: row for row in record["results"]}
    orders = [json.loads(file.read_text())["order"] for file in tmp_path.glob("campaigns/*.json")]
    assert [len(order) for order in orders] == [50] * 4  # the last batch is the smaller
    assert rows["greedy"]["recall_50"] > 0.9
    assert rows["greedy"]["area"] > rows["random"]["area"]
    assert rows["greedy"]["reached"] == 1
    assert seen[-1][:3] == ("pool bulk_modulus", 4, 4)
    stored = json.loads((tmp_path / "record.json").read_text())
    assert stored["pools"]["bulk_modulus"].pop("af_taught") > 5
    assert stored["pools"] == {"bulk_modulus": {"pool": 218, "top": 2, "known": 0}}
    assert {"summary.csv", "curves.csv", "calibration.csv", "recall.png", "coverage.png"} <= {
        item["file"] for item in stored["files"]
    }
    files = {file: file.stat().st_mtime_ns for file in tmp_path.glob("campaigns/*.json")}
    assert run(path, tmp_path, config)["results"] == record["results"]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("campaigns/*.json")} == files


def test_a_share_of_each_batch_is_left_to_chance_and_told_to_the_surrogate(table, monkeypatch):
    """Strategies of one seed share chance's first picks; what they calibrate on is those and the initial labels."""
    pool, seen = load_pool(table[0], "bulk_modulus", None, 0, ALL), []

    class Watched(GPSurrogate):
        def fit(self, candidates, evaluations, *, picked_at_random=frozenset()):
            seen.append(([candidate.id for candidate in candidates], set(picked_at_random)))
            return super().fit(candidates, evaluations, picked_at_random=picked_at_random)

    monkeypatch.setattr("flows.benchmarks.pool.simulation.GPSurrogate", Watched)
    extractor = FeatureExtractor()
    campaigns = [Campaign(name, 3, initial=10, batch=10, budget=30, shadow=0.2) for name in ("greedy", "thompson")]
    first, second = (simulate(pool, campaign, extractor).order for campaign in campaigns)
    assert first[:12] == second[:12]
    assert first[12:20] != second[12:20]
    labelled, drawn = seen[1]
    assert drawn == set(labelled[:12])
    assert len(set(first)) == 30
    alone = simulate(pool, replace(campaigns[0], shadow=0.0), extractor)
    assert seen[-1][1] == {pool.candidates[i].id for i in alone.order[:10]}


def test_acceleration_and_enhancement_against_the_expectation_of_chance():
    """10 top crystals of 1000: chance has half after 500 labels, this strategy after 50."""
    found = np.minimum(np.arange(1, 101) / 100, 1).tolist()
    outcome = Outcome(Campaign("greedy", 0), found, found, [], [], 1.0)
    (row,) = summarise({"bulk_modulus": [outcome]}, {"bulk_modulus": {"pool": 1000, "top": 10}})
    assert row["af"] == pytest.approx(10)
    assert row["ef_50"] == pytest.approx(10)
    assert row["recall_100"] == 1.0
    late = Outcome(Campaign("greedy", 0), [0.0] * 100, [0.0] * 100, [], [], 1.0)
    (row,) = summarise({"bulk_modulus": [late]}, {"bulk_modulus": {"pool": 1000, "top": 10}})
    assert row["af"] == 0
    assert row["reached"] == 0


def test_bad_requests_are_named(table):
    path, _ = table
    with pytest.raises(ConfigError, match="no task 'colour'"):
        load_pool(path, "colour", None, 0)
    with pytest.raises(InputError, match="eps_electronic, band_gap"):
        load_pool(path, "dielectric", None, 0)
    with pytest.raises(ConfigError, match="unknown: best"):
        PoolConfig(strategies=("best",))
    with pytest.raises(ConfigError, match="budget"):
        PoolConfig(budget=10)
