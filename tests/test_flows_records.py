"""Records: valid JSON whatever the numbers are, and told what made them."""

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from typer.testing import CliRunner

from flows.benchmarks.harness import BENCHMARKS, write_benchmark
from flows.cli import app
from flows.records import write_record

RESULTS = Path(__file__).resolve().parent.parent / "results"
SCHEMA = json.loads((RESULTS / "schema.json").read_text(encoding="utf-8"))


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


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/record.json")), ids=lambda path: path.parent.name)
def test_every_record_fits_the_schema(path):
    jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), SCHEMA, jsonschema.Draft202012Validator)


@pytest.mark.parametrize(
    "change",
    [
        {"results": None},
        {"made_with": "a laptop"},
        {"carries": "a fault"},
        {"files": {"a.csv": "0"}},
        {"campaign": "x"},
    ],
)
def test_what_is_no_record_is_refused(change):
    record = json.loads((RESULTS / "sampling" / "record.json").read_text(encoding="utf-8"))
    wrong = {key: value for key, value in (record | change).items() if value is not None}
    if "campaign" in wrong:
        del wrong["benchmark"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, SCHEMA, jsonschema.Draft202012Validator)


def test_a_benchmark_that_says_too_little_writes_no_record(tmp_path):
    whole = {"benchmark": "b", "protocol": "p", "settings": {}, "results": {"x": float("nan")}}
    jsonschema.validate(write_benchmark(tmp_path, whole), SCHEMA, jsonschema.Draft202012Validator)
    with pytest.raises(ValueError, match="lacks settings, results"):
        write_benchmark(tmp_path / "no", {"benchmark": "b", "protocol": "p"})
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("benchmark", BENCHMARKS, ids=lambda benchmark: benchmark.name)
def test_verbs_are_made_from_the_list_of_benchmarks(benchmark):
    assert is_dataclass(benchmark.settings)
    assert callable(benchmark.run)
    assert benchmark.seeds == ("seeds" in {item.name for item in fields(benchmark.settings)})
    shown = CliRunner().invoke(app, ["benchmark", benchmark.name, "--help"], env={"COLUMNS": "200"}).stdout
    assert benchmark.help[:40] in shown
    usual = {"--output": True, "--set": True, "--data": benchmark.data, "--seeds": benchmark.seeds}
    for option, there in usual.items():
        assert (option in shown) == there
