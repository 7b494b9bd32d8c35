from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from loop.errors import InputError
from loop.io.files import read_candidates, write_bytes, write_candidates, write_folder
from loop.values import (
    Candidate,
    Cost,
    EnergyType,
    Evaluation,
    Origin,
    Prediction,
    Quantity,
    RoundReport,
    structure_id,
)
from tests.fakes import rocksalt

finite = st.floats(-1e6, 1e6)
words = st.text(min_size=0, max_size=12)
maybe = st.none() | finite


@st.composite
def structures(draw):
    lengths = draw(st.tuples(*[st.floats(2.0, 12.0)] * 3))
    angles = draw(st.tuples(*[st.floats(60.0, 119.0)] * 3))
    n = draw(st.integers(1, 5))
    elements = draw(st.lists(st.sampled_from(["Na", "Cl", "Fe", "O", "U"]), min_size=n, max_size=n))
    coords = draw(st.lists(st.tuples(*[st.floats(0, 1, exclude_max=True)] * 3), min_size=n, max_size=n))
    return Structure(Lattice.from_parameters(*lengths, *angles), elements, coords)


origins = st.builds(Origin, words, st.none() | st.integers(1, 230), st.none() | words, maybe, st.none() | words)
candidates = st.builds(Candidate, structures(), origins, st.integers(0, 99))
evaluations = st.builds(
    Evaluation,
    words,
    words,
    words,
    st.sampled_from(["ok", "not-converged", "timeout", "failed:exploded"]),
    st.dictionaries(words, st.builds(Quantity, finite, words, maybe), max_size=3),
    st.none() | st.builds(EnergyType, words, words, words, words),
    st.none() | structures(),
    st.none() | st.integers(1, 230),
    st.none() | st.integers(1, 230),
    st.dictionaries(words, st.floats(0, 1), max_size=3),
    st.builds(Cost, st.floats(0, 1e6), words, st.integers(1, 512)),
    words,
)
reports = st.builds(
    RoundReport,
    st.integers(0, 99),
    st.dictionaries(words, st.integers(0, 10**6), max_size=3),
    st.dictionaries(words, finite, max_size=3),
    st.dictionaries(words, finite, max_size=3),
)
slow = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def through_json(value):
    return type(value).from_dict(json.loads(json.dumps(value.to_dict())))


@slow
@given(candidates)
def test_candidates_round_trip_with_their_id(candidate):
    again = through_json(candidate)
    assert again.to_dict() == candidate.to_dict()
    assert again.id == candidate.id


@slow
@given(evaluations)
def test_evaluations_round_trip(evaluation):
    again = through_json(evaluation)
    assert again.to_dict() == evaluation.to_dict()
    for name in ("cost", "properties", "energy_type", "space_group", "space_group_relaxed", "decomposition", "message"):
        assert getattr(again, name) == getattr(evaluation, name), name
    assert again.ok == (evaluation.status == "ok")


@slow
@given(reports)
def test_reports_round_trip(report):
    assert through_json(report) == report


@slow
@given(structures(), st.randoms(use_true_random=False))
def test_the_content_id_is_that_of_the_stored_crystal(structure, random):
    order = list(range(len(structure)))
    random.shuffle(order)
    coords = [structure.frac_coords[index] + random.choice([-1, 0, 1]) for index in order]
    again = Structure(structure.lattice, [structure.species[index] for index in order], coords)
    assert structure_id(Structure.from_dict(structure.as_dict())) == structure_id(structure)
    # coordinates within 1e-9 of a rounding edge may fall on its other side when a lattice vector is added
    edge = np.abs((structure.frac_coords * 1e4) % 1 - 0.5).min() < 1e-5
    assert edge or structure_id(again) == structure_id(structure)


def test_another_crystal_has_another_id():
    ids = {structure_id(crystal) for crystal in (rocksalt(), rocksalt(a=5.65), rocksalt("K"), rocksalt("Na", "Br"))}
    assert len(ids) == 4
    assert structure_id(rocksalt()) == "d2b664ff1977034e"  # ledgers hold these: they must never change
    assert structure_id(rocksalt(a=5.64003)) == structure_id(rocksalt()) != structure_id(rocksalt(a=5.6402))
    moved = rocksalt()
    moved.translate_sites([0], [3e-5, 0, 0])
    assert structure_id(moved) == structure_id(rocksalt())
    moved.translate_sites([0], [2e-4, 0, 0])
    assert structure_id(moved) != structure_id(rocksalt())


def test_a_missing_property_is_nan():
    assert math.isnan(Evaluation("a", "o", "s", "ok").value("energy"))


def test_predictions_check_their_shapes():
    with pytest.raises(ValueError, match="shape"):
        Prediction(np.zeros((3, 1)), np.zeros((3, 2)), ("a", "b"), ("x", "y"))
    prediction = Prediction(np.arange(6.0).reshape(3, 2), np.ones((3, 2)), ("a", "b"), ("x", "y"))
    assert prediction.column("b")[0].tolist() == [1.0, 3.0, 5.0]
    with pytest.raises(KeyError, match="no prediction of 'c'"):
        prediction.column("c")


def test_pools_survive_their_file(tmp_path):
    pool = [Candidate(rocksalt(a=length), Origin("policy", 225), 3) for length in (5.0, 5.5)]
    write_candidates(tmp_path / "pool.gz", pool)
    assert [candidate.to_dict() for candidate in read_candidates(tmp_path / "pool.gz")] == [c.to_dict() for c in pool]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    write_bytes(tmp_path / "file", b"old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(InputError, match="No space left"):
        write_bytes(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_appears_only_when_complete(tmp_path):
    write_folder(tmp_path / "folder", lambda path: (path / "a").write_text("old"))

    def torn(path):
        (path / "a").write_text("new")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "folder", torn)
    assert (tmp_path / "folder/a").read_text() == "old"
    write_folder(tmp_path / "folder", lambda path: (path / "b").write_text("newer"))
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["b"]
