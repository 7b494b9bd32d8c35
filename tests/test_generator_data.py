"""Preparation of training data: in parallel, cached, with bad rows counted."""

import numpy as np
import pandas as pd
import pytest

from generator.data import PrepareConfig, Prepared, prepare
from generator.representation.tokens import tokenize
from loop.errors import InputError
from loop.io.cif_writer import to_cif
from loop.io.crystals import write_crystals
from tests import crystals
from tests.crystals import SYSTEMS


@pytest.fixture
def table(tmp_path):
    """Nine good crystals, three bad rows in between, in two splits."""
    texts = [to_cif(make()) for make in SYSTEMS.values()]
    rng = np.random.default_rng(0)
    many = crystals.Structure(crystals.Lattice.cubic(12), ["Si"] * 21, rng.random((21, 3)))
    texts[2:2] = ["not a CIF"]
    texts[5:5] = [to_cif(many)]
    texts[8:8] = [""]
    frame = pd.DataFrame({"material_id": [f"m{i}" for i in range(12)], "split": ["train", "val"] * 6, "cif": texts})
    path = tmp_path / "crystals.csv.gz"
    frame.to_csv(path, index=False)
    return path


def assert_same(one: Prepared, other: Prepared) -> None:
    for field in ("G", "W", "A", "XYZ", "L"):
        np.testing.assert_array_equal(getattr(one.batch, field), getattr(other.batch, field))
    np.testing.assert_array_equal(one.rows, other.rows)
    np.testing.assert_array_equal(one.ids, other.ids)
    assert one.failures == other.failures


def test_rows_keep_their_ids_and_failures_are_listed(table):
    prepared = prepare(table, workers=1)
    assert prepared.rows.tolist() == [0, 1, 3, 4, 6, 7, 9, 10, 11]
    assert prepared.ids.tolist() == [f"m{i}" for i in prepared.rows]
    assert [(f.row, f.id, f.kind) for f in prepared.failures] == [
        (2, "m2", "unreadable"),
        (5, "m5", "too-many-sites"),
        (8, "m8", "unreadable"),
    ]
    assert prepared.failures_by_kind() == {"unreadable": 2, "too-many-sites": 1}
    np.testing.assert_array_equal(prepared.batch.W[0], tokenize(crystals.perovskite()).W[0])


def test_a_filter_sees_the_whole_table(table):
    prepared = prepare(table, workers=1, where=lambda frame: frame["split"] == "val")
    assert (prepared.rows % 2 == 1).all()
    assert len(prepared.rows) + len(prepared.failures) == 6


def test_settings_change_the_result(table):
    prepared = prepare(table, PrepareConfig(max_sites=21), workers=1)
    assert "too-many-sites" not in prepared.failures_by_kind()
    assert prepared.batch.W.shape[1] == 22


def test_processes_give_the_same_as_one(tmp_path):
    texts = [to_cif(make()) for make in SYSTEMS.values()] * 30 + ["broken"]
    path = tmp_path / "many.csv"
    pd.DataFrame({"cif": texts}).to_csv(path, index=False)
    seen = []
    parallel = prepare(
        path, workers=2, progress=lambda stage, done, total, metrics: seen.append((done, total, metrics))
    )
    assert_same(parallel, prepare(path, workers=1))
    assert seen == [(200, 271, {"failures": 0.0}), (271, 271, {"failures": 1.0})]


def test_cache_is_keyed_by_content_and_settings(table, tmp_path):
    cache = tmp_path / "cache"
    first = prepare(table, workers=1, cache=cache)
    calls = []
    again = prepare(table, workers=1, cache=cache, progress=lambda *args: calls.append(args))
    assert_same(first, again)
    assert calls == []  # nothing was computed
    prepare(table, PrepareConfig(canonical=False), workers=1, cache=cache)
    prepare(table, workers=1, cache=cache, where=lambda frame: frame["split"] == "val")
    assert len(list(cache.iterdir())) == 3
    frame = pd.read_csv(table, keep_default_na=False)
    frame.iloc[:4].to_csv(table, index=False)
    assert len(prepare(table, workers=1, cache=cache).rows) == 3


def test_other_sources(tmp_path):
    structures = [make() for make in SYSTEMS.values()]
    write_crystals(tmp_path / "t.extxyz", list(SYSTEMS), structures)
    write_crystals(tmp_path / "t.csv", list(SYSTEMS), structures)
    one, other = prepare(tmp_path / "t.extxyz", workers=1), prepare(tmp_path / "t.csv", workers=1)
    assert one.ids.tolist() == other.ids.tolist() == list(SYSTEMS)
    np.testing.assert_array_equal(one.batch.W, other.batch.W)
    np.testing.assert_allclose(one.batch.L, other.batch.L, atol=1e-6)


def test_nothing_usable_is_an_error(tmp_path):
    path = tmp_path / "t.csv"
    pd.DataFrame({"cif": ["broken", ""]}).to_csv(path, index=False)
    with pytest.raises(InputError, match=r"no crystal of .* could be tokenised \(2 rows; \{'unreadable': 2\}\)"):
        prepare(path, workers=1)
    with pytest.raises(InputError, match="there is no such file"):
        prepare(tmp_path / "absent.csv")
