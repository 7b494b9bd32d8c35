"""`predict` by itself: predictions of crystals in a table."""

from pathlib import Path

import numpy as np
import pytest

from flows.tables.prediction import predict_table
from loop.errors import InputError
from loop.io.crystals import CrystalTable, read_crystals
from tests.fakes import rocksalt

CASES = Path(__file__).parent / "cases"


@pytest.fixture
def table(tmp_path) -> CrystalTable:
    import pandas as pd

    from loop.io.cif_writer import to_cif

    rows = {"material_id": ["salt", "broken"], "cif": [to_cif(rocksalt()), "no crystal"]}
    pd.DataFrame(rows).to_csv(tmp_path / "in.csv", index=False)
    return read_crystals(tmp_path / "in.csv")


def test_predictions_of_the_prior_have_a_probability_and_no_distance(table):
    frame, labels = predict_table(table, None)
    assert labels == 0
    good, bad = frame.iloc[0], frame.iloc[1]
    assert good["status"] == "ok"
    assert 0 < good["p_stable"] < 1
    assert np.isnan(good["distance"])
    assert good["bulk_modulus_std"] > 0
    assert bad["status"] != "ok"
    assert np.isnan(bad["p_stable"])


def test_a_campaign_without_a_fit_is_named(table, tmp_path):
    from flows import configfile
    from flows.config import CONFIG_FILE, CampaignConfig

    configfile.dump(CampaignConfig(), tmp_path / CONFIG_FILE)
    with pytest.raises(InputError, match="no fitted surrogate yet"):
        predict_table(table, tmp_path)


def first_and_last(path: Path, rows: int) -> CrystalTable:
    """The first and the last row of a table, the other rows left out."""
    table = read_crystals(path)
    chosen = [*range(rows - 1), len(table) - 1]
    ids, structures = ([values[i] for i in chosen] for values in (table.ids, table.structures))
    return CrystalTable(ids, structures, table.frame.iloc[chosen].reset_index(drop=True), [])


@pytest.mark.parametrize("rows", [1, 5])
def test_a_last_chunk_that_the_potential_refuses_costs_only_itself(rows, monkeypatch):
    monkeypatch.setattr("surrogates.features.CHUNK", 4)
    frame, _ = predict_table(first_and_last(CASES / "90_predict_last_chunk_refused" / "many.csv", rows), None)
    assert frame["status"].tolist() == ["ok"] * (rows - 1) + ["failed:isolated-atoms"]
    assert "no neighbour within 6.0 A" in frame["message"].iloc[-1]
    assert np.isfinite(frame["p_stable"].to_numpy(dtype=float)[:-1]).all() if rows > 1 else "p_stable" not in frame


@pytest.mark.filterwarnings("ignore:No data available")
def test_no_element_ends_the_table():
    frame, _ = predict_table(read_crystals(CASES / "73_heavy_elements" / "all.csv"), None)
    statuses = dict(zip(frame["material_id"], frame["status"], strict=True))
    known = {"ok", "AcO", "ThO", "PaO", "UO", "NpO", "PuO"}
    assert len(statuses) == 36
    assert {name for name, status in statuses.items() if status == "ok"} == known
    assert {status for name, status in statuses.items() if name not in known} == {"failed:unsupported-element"}
    assert frame["message"].dropna().str.contains("does not know").all()
