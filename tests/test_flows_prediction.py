"""`predict` by itself: beliefs of crystals in a table."""

import numpy as np
import pytest

from flows.prediction import predict_table
from loop.crystals import CrystalTable, read_crystals
from loop.errors import InputError
from tests.fakes import rocksalt


@pytest.fixture
def table(tmp_path) -> CrystalTable:
    import pandas as pd

    from loop.cif_writer import to_cif

    rows = {"material_id": ["salt", "broken"], "cif": [to_cif(rocksalt()), "no crystal"]}
    pd.DataFrame(rows).to_csv(tmp_path / "in.csv", index=False)
    return read_crystals(tmp_path / "in.csv")


def test_prior_beliefs_have_a_probability_and_no_distance(table):
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
