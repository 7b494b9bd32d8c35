"""Labels that a user brings: what a table may hold, what is refused, and that surrogates learn from them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flows.build import Builder
from flows.config import CampaignConfig, read_config
from flows.forecast import forecast
from flows.known_labels import read_known_labels
from flows.narrative import told
from flows.surrogate import CampaignSurrogate
from loop.errors import ConfigError, InputError
from loop.io.cif_writer import to_cif
from loop.stages import Retrained
from loop.values import OK, Candidate, Evaluation, Quantity
from surrogates.features import FeatureExtractor
from surrogates.properties import GPConfig, Property
from tests.fakes import ANIONS, CATIONS, bulk_modulus, rocksalt

STIFFNESS = Property("bulk_modulus", "GPa", "log", prior_mean=4.35, prior_std=0.8)
GAP = Property("dft_band_gap", "eV")


@pytest.fixture(scope="module")
def crystals():
    rng = np.random.default_rng(0)
    pairs = [(str(rng.choice(CATIONS)), str(rng.choice(ANIONS)), rng.uniform(5, 7)) for _ in range(50)]
    return [rocksalt(*pair) for pair in pairs]


def table(path, crystals, **columns):
    frame = pd.DataFrame({"id": [f"k{i}" for i in range(len(crystals))], "cif": list(map(to_cif, crystals)), **columns})
    frame.to_csv(path, index=False)
    return path


def test_a_table_with_units_gaps_and_a_broken_row(tmp_path, crystals):
    path = table(
        tmp_path / "known.csv",
        crystals[:4],
        **{
            "bulk_modulus (GPa)": [100.0, None, 30.5, None],
            "dft_band_gap": [None, 1.5, 0.0, None],
            "note": list("abcd"),
        },
    )
    with path.open("a") as file:
        file.write("k4,no crystal,1.0,1.0,e\n")
    known = read_known_labels(path, (STIFFNESS, GAP))
    assert [c.id for c in known.candidates] == [Candidate(s).id for s in crystals[:3]]
    assert [e.candidate_id for e in known.evaluations] == [c.id for c in known.candidates]
    assert [e.properties for e in known.evaluations] == [
        {"bulk_modulus": Quantity(100.0, "GPa")},
        {"dft_band_gap": Quantity(1.5, "eV")},
        {"bulk_modulus": Quantity(30.5, "GPa"), "dft_band_gap": Quantity(0.0, "eV")},
    ]
    assert (known.unreadable, known.empty) == (1, 1)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"hardness (GPa)": [1.0, 2.0]}, r"expected a column 'bulk_modulus \(GPa\)', .*found id, hardness"),
        ({"bulk_modulus (eV)": [1.0, 2.0]}, r"expected the unit GPa in column 'bulk_modulus \(eV\)'"),
        ({"bulk_modulus": [1, 2], "bulk_modulus (GPa)": [1, 2]}, "two columns hold bulk_modulus"),
        ({"bulk_modulus": ["12", "soft"]}, "got 'soft' for k1"),
        ({"bulk_modulus": ["12", "inf"]}, "got 'inf' for k1"),
        ({"bulk_modulus": [None, None]}, "none of its 2 rows holds a crystal and a value"),
    ],
)
def test_what_teaches_nothing_says_why(tmp_path, crystals, columns, said):
    with pytest.raises(InputError, match=said):
        read_known_labels(table(tmp_path / "known.csv", crystals[:2], **columns), (STIFFNESS, GAP))


CASE = Path(__file__).parent / "cases" / "70_gp_duplicates"


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "zero.csv",
            r"bulk_modulus must be above 0 and at most 2000, got 0 in column .*, got '0' for a",
        ),
        ("nan.csv", r"bulk_modulus must be above 0 and at most 2000, got (nan|inf)"),
        ("comma.csv", r"expected a finite number or nothing in column .*, got '150,5' for a"),
        ("unit.csv", r"expected the unit GPa in column 'bulk_modulus \(eV/A\^3\)'"),
    ],
)
def test_values_that_no_crystal_has_are_refused(file, said):
    """Case 70."""
    with pytest.raises(InputError, match=said):
        read_known_labels(CASE / file, (STIFFNESS,))


@pytest.mark.parametrize("value", ["-5", "1e12", "1e400", "-inf", "2001"])
def test_each_value_is_held_to_the_bounds_of_imported_ones(value, tmp_path):
    text = (CASE / "one.csv").read_text()
    (tmp_path / "one.csv").write_text(text.replace("d0,150.0", f"d0,{value}"))
    with pytest.raises(InputError, match="for d0") as refused:
        read_known_labels(tmp_path / "one.csv", (STIFFNESS,))
    assert repr(value) in str(refused.value)
    (tmp_path / "one.csv").write_text(text.replace("(GPa)", "(eV)").replace("bulk_modulus", "dft_band_gap"))
    with pytest.raises(InputError, match="dft_band_gap must be at least 0 and at most 30, got 150"):
        read_known_labels(tmp_path / "one.csv", (GAP,))


@pytest.mark.parametrize(
    ("file", "rows", "contradicting"), [("same.csv", 40, 0), ("conflict.csv", 80, 1), ("one.csv", 1, 0)]
)
def test_repeated_and_contradicting_rows_are_taken_and_told(file, rows, contradicting):
    """Case 70."""
    known = read_known_labels(CASE / file, (STIFFNESS,))
    assert len(known.candidates) == rows
    assert len(known.contradicting) == contradicting
    told = forecast(read_config("smoke", {"surrogate.known": str(CASE / file)}))["known_labels"]
    assert ("with different values, whose mean is learned" in told) == bool(contradicting)
    surrogate = CampaignSurrogate(FeatureExtractor(), GPConfig((STIFFNESS,)), known=known)
    surrogate.fit([], [])
    mean, std = surrogate.predict(known.candidates).column("bulk_modulus")
    assert np.isfinite(mean).all()
    assert (std > 0).all()


def evaluation(candidate):
    value = Quantity(bulk_modulus(candidate.structure), "GPa")
    return Evaluation(candidate.id, "world@1", "s", OK, {"bulk_modulus": value})


def test_surrogates_learn_from_known_labels_once_and_beside_the_campaign_s(tmp_path, crystals):
    values = [bulk_modulus(s) for s in crystals[:40]]
    known = read_known_labels(table(tmp_path / "known.csv", crystals[:40], bulk_modulus=values), (STIFFNESS,))
    config, first = GPConfig((STIFFNESS,)), [Candidate(s) for s in crystals[40:43]]
    surrogate = CampaignSurrogate(FeatureExtractor(), config, known=known)
    alone = CampaignSurrogate(FeatureExtractor(), config)
    metrics, without = (one.fit(first, [evaluation(c) for c in first]) for one in (surrogate, alone))
    distinct = len({c.id for c in [*known.candidates, *first]})
    assert metrics["bulk_modulus/labels"] == distinct
    assert metrics["known"] == 40
    assert told(Retrained(metrics, 3)).startswith("3 labels and 40 known ones; cross-validated error: bulk_modulus")
    assert metrics["bulk_modulus/new_n"] == 3  # the campaign's, not those that came with the file
    assert metrics["bulk_modulus/new_mae"] < 0.5 * without["bulk_modulus/new_mae"]

    surrogate.save(tmp_path / "fit")
    again = CampaignSurrogate(FeatureExtractor(), config, known=known)
    again.load(tmp_path / "fit")
    more = [Candidate(s) for s in crystals[40:46]]
    ours, theirs = (one.fit(more, [evaluation(c) for c in more]) for one in (surrogate, again))
    assert ours == theirs
    assert ours["bulk_modulus/new_n"] == 3


def test_a_known_crystal_that_the_potential_refuses_costs_only_itself(tmp_path, crystals):
    lonely = Path(__file__).parent / "cases" / "90_predict_last_chunk_refused" / "one.csv"
    pd.read_csv(lonely).assign(bulk_modulus=1.0).to_csv(tmp_path / "known.csv", index=False)
    known = read_known_labels(tmp_path / "known.csv", (STIFFNESS,))
    extractor = Builder(CampaignConfig()).surrogate.extractor
    for _ in ("a campaign", "the same, resumed"):
        surrogate = CampaignSurrogate(extractor, GPConfig((STIFFNESS,)), known=known)
        first = [Candidate(s) for s in crystals[:3]]
        surrogate.fit(first, [evaluation(c) for c in first])
        assert np.isfinite(surrogate.predict([*first, *known.candidates]).mean).all()
    missing = np.isnan(extractor(known.candidates)[0])
    assert missing[extractor.groups["potential"]].all()
    assert extractor.failures == 0  # of code: the potential said so itself


def test_a_campaign_takes_them_from_its_file_and_says_so_before_it_runs(tmp_path, crystals):
    path = tmp_path / "c.yaml"
    path.write_text(f"surrogate: {{known: {tmp_path}/my_labels.csv}}\n")
    with pytest.raises(InputError, match=r"my_labels\.csv"):
        forecast(read_config(path))
    table(tmp_path / "my_labels.csv", crystals[:3], bulk_modulus=[1.0, None, 2.0])
    assert forecast(read_config(path))["known_labels"] == "2 crystals (rows that are unreadable: 0, without a value: 1)"
    path.write_text("surrogate: {knwon: my_labels.csv}\n")
    with pytest.raises(ConfigError, match="knwon"):
        read_config(path)
