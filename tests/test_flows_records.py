"""Records: valid JSON whatever the numbers are, and told what made them."""

import json
from pathlib import Path

import numpy as np

from flows.records import write_record


def test_odd_numbers_become_plain_json(tmp_path):
    odd = {"nan": float("nan"), "inf": [np.float64("inf"), 1], "f32": np.float32(0.5), "n": np.int64(3)}
    odd |= {"array": np.array([1.0, np.nan]), "path": Path("a"), 5: (True, None), "made_with": {}}
    told = write_record(tmp_path, odd)

    def refuse(name):
        raise AssertionError(name)

    read = json.loads((tmp_path / "record.json").read_text(), parse_constant=refuse)
    assert read == told
    assert read["nan"] is None
    assert read["inf"] == [None, 1]
    assert (read["f32"], read["n"], read["path"], read["5"]) == (0.5, 3, "a", [True, None])
    assert read["array"] == [1.0, None]


def test_what_made_it_is_told(tmp_path):
    assert set(write_record(tmp_path, {"x": 1})["made_with"]) == {"commit", "versions", "hardware", "threads"}
