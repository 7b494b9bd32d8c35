"""The guards of `loop.plausibility` stand in every verb: what is no crystal is not scored, predicted or learnt from."""

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure

from flows.tables.columns import rows_with
from generator.data import PrepareConfig, prepare
from loop.io.cif_writer import to_cif
from loop.io.crystals import read_crystals
from tests import crystals
from tests.test_loop_cif import CASES, cif

OVERLAP = Structure(Lattice.cubic(3), ["Fe", "Fe"], [[0, 0, 0], [0, 0, 0.1]])
SPARSE = Structure(Lattice.cubic(11), ["Fe"], [[0, 0, 0]])


def cif_of(structure: Structure) -> str:
    rows = [f"{s.specie.symbol} {s.specie.symbol} {s.a} {s.b} {s.c}" for s in structure]
    header = "_symmetry_space_group_name_H-M 'P 1'\n"
    return cif(header, "\n".join(rows), tuple(structure.lattice.parameters))


def table_of(path, rows: dict[str, str]):
    pd.DataFrame({"material_id": rows.keys(), "cif": rows.values()}).to_csv(path, index=False)
    return path


@pytest.fixture
def mixed(tmp_path):
    made = {"good": to_cif(crystals.rutile()), "overlap": cif_of(OVERLAP), "volume": cif_of(SPARSE), "bad": "data_x"}
    return table_of(tmp_path / "mixed.csv", made)


def test_tables_name_what_is_wrong(mixed):
    table = read_crystals(mixed)
    assert [(failure.id, failure.kind) for failure in table.failures] == [
        ("overlap", "overlap"), ("volume", "volume"), ("bad", "unreadable"),
    ]  # fmt: skip
    frame = rows_with(table, {0: {"status": "ok", "message": ""}})
    assert frame["status"].tolist() == ["ok", "failed:overlap", "failed:volume", "failed:unreadable"]
    assert frame["message"][1].startswith("overlap: expected atoms at least 0.5 A apart, got 0.3 A")


@pytest.mark.parametrize("form", ["extxyz", "vasp", "json"])
def test_every_format_is_looked_at(tmp_path, form):
    path = tmp_path / f"crystal.{form}"
    if form == "extxyz":
        from ase.io import write

        write(path, [one.to_ase_atoms() for one in (crystals.nacl(), OVERLAP)])
    elif form == "vasp":
        OVERLAP.to(filename=str(path), fmt="poscar")
    else:
        OVERLAP.to(filename=str(path), fmt="json")
    if form == "extxyz":
        failures = read_crystals(path).failures
        assert [(failure.row, failure.kind) for failure in failures] == [(1, "overlap")]
    else:
        with pytest.raises(Exception, match=r"overlap: expected atoms at least 0\.5 A apart"):
            read_crystals(path)


def test_preparation_for_pretraining_counts_them(mixed, tmp_path):
    prepared = prepare(mixed, PrepareConfig())
    assert prepared.failures_by_kind() == {"overlap": 1, "volume": 1, "unreadable": 1}
    assert prepared.ids.tolist() == ["good"]


@pytest.mark.parametrize("name", ["g05", "g1", "g2", "g5", "radians", "radians_hex"])
def test_flat_cells_are_refused_by_name(tmp_path, name):
    rows = pd.read_csv(CASES / f"83_angles_in_radians/{name}.csv")
    text = rows["cif"][0]
    table = read_crystals(table_of(tmp_path / "t.csv", {"flat": text, "good": to_cif(crystals.nacl())}))
    assert [failure.kind in ("cell", "volume", "overlap") for failure in table.failures] == [True]


def test_notes_of_a_reading_reach_the_row(tmp_path):
    path = table_of(tmp_path / "t.csv", {"lid": (CASES / "13_deuterium/lid.cif").read_text()})
    table = read_crystals(path)
    assert table.notes == {0: "D read as H"}
    assert rows_with(table, {0: {"status": "ok", "message": ""}})["message"].tolist() == ["D read as H"]
    assert np.unique(table.structures[0].atomic_numbers).tolist() == [1, 3]
