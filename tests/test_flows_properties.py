"""Verbs elastic and phonons, and the same measurements inside a campaign's oracle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from flows.benchmarks.oracles import elasticity_strain
from flows.benchmarks.oracles.elasticity import Material, errors, run
from flows.benchmarks.oracles.elasticity_strain import choose
from flows.cli import app
from loop.errors import InputError
from loop.io.crystals import write_crystals
from loop.values import Candidate
from oracles.mlip import MlipConfig, PotentialOracle
from oracles.potentials.calculator import to_structure
from oracles.potentials.loading import load_potential
from oracles.properties.elastic import ElasticConfig
from oracles.properties.phonons import PhononConfig
from oracles.references.table import load_references, write_references

EMT = "ase.calculators.emt:EMT"


@pytest.fixture
def metals(tmp_path):
    """Copper under strain, a saddle point, an element that EMT does not know, and a row that is no crystal."""
    crystals = [to_structure(bulk("Cu", a=3.7)), Structure(Lattice.cubic(2.5), ["Cu"], [[0, 0, 0]])]
    crystals.append(Structure(Lattice.cubic(3.2), ["W"], [[0, 0, 0]]))
    path = tmp_path / "in.csv"
    write_crystals(path, ["cu", "simple", "w"], crystals, {"note": list("abc")})
    with path.open("a") as file:
        file.write("broken,d,not a cif\n")
    return path


def table_of(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.stderr
    return pd.read_csv(arguments[arguments.index("--output") + 1]), json.loads(done.stdout)


def test_elastic_from_file_to_file(metals, tmp_path):
    output = tmp_path / "elastic.csv"
    frame, summary = table_of("elastic", "--input", metals, "--output", output, "--potential", EMT, "--json")
    assert frame["status"].tolist() == ["ok", "unstable", "failed:unsupported-element", "failed:unreadable"]
    assert frame["note"].tolist() == list("abcd")
    assert np.isnan(frame["shear_modulus"][1])  # it was -751 GPa with status ok
    assert frame["elastic_stability"][1] < 0
    assert "not positive definite" in frame["message"][1]
    assert frame["bulk_modulus_vrh"][0] == pytest.approx(134, abs=3)  # EMT's copper
    assert np.array(json.loads(frame["elastic_tensor"][0])).shape == (6, 6)
    assert frame["mechanically_stable"].tolist()[:2] == [True, False]
    assert summary["mechanically_stable"] == 1


def test_phonons_from_file_to_file(metals, tmp_path):
    arguments = ["--input", metals, "--output", tmp_path / "p.csv", "--potential", EMT, "--min-length", 4.5, "--json"]
    frame, summary = table_of("phonons", *arguments)
    assert frame["status"].tolist() == ["ok", "ok", "failed:unsupported-element", "failed:unreadable"]
    assert frame["lowest_frequency"][0] > 1
    assert frame["lowest_frequency"][1] < -1
    assert summary["dynamically_stable"] == 1
    assert json.loads(frame["supercell"][0]) == [3, 3, 3]


def test_phonons_do_not_depend_on_the_cell_nor_on_the_order_of_the_atoms(tmp_path):
    """Silicon in its primitive cell, in its conventional one, and that shuffled, with CHGNet."""
    source = Path(__file__).parent / "cases" / "77_phonons_order_cell" / "x.csv"
    frame, _ = table_of("phonons", "--input", source, "--output", tmp_path / "p.csv", "--min-length", 4, "--json")
    assert frame["material_id"].tolist() == ["prim", "conv", "perm", "ar", "cs_atom"]
    assert frame["status"].tolist() == ["ok"] * 4 + ["failed:isolated-atoms"]
    lowest = frame["lowest_frequency"].to_numpy()
    np.testing.assert_allclose(lowest[:3], lowest[0], rtol=1e-3)
    assert lowest[3] > 0


def test_strains_are_chosen_on_other_crystals(tmp_path, monkeypatch):
    """On a potential against itself: the published moduli are EMT's own at the smallest size."""
    monkeypatch.setattr(elasticity_strain, "SIZES", (0.01, 0.04))
    potential, rows = load_potential(EMT), []
    for name, bulk_modulus, shear in (
        ("Cu", 134.0, 57.0),
        ("Ni", 178.0, 83.0),
        ("Au", 174.0, 33.0),
    ):
        text = to_structure(bulk(name)).to(fmt="poscar")
        rows.append({"poscar": text, "formula": name, "K_VRH": bulk_modulus, "G_VRH": shear})
    pd.DataFrame(rows).to_csv(tmp_path / "published.csv", index=False)
    found = choose(tmp_path, tmp_path / "published.csv", potential, ["Ni"], 2)
    table = pd.read_csv(tmp_path / "strains.csv")
    assert sorted(table["formula"].unique()) == ["Au", "Cu"]
    assert len(table) == 2 * 2
    errors_of = found["mean_absolute_relative_error"]
    assert errors_of["0.01"]["crystals"] == 2
    best = table[table["size"] == float(found["best"])]
    assert errors_of[found["best"]]["bulk"] == pytest.approx(
        np.abs(best["found bulk"] / best["bulk"] - 1).mean(), abs=1e-4
    )
    with pytest.raises(InputError, match="has 2 crystals"):
        choose(tmp_path, tmp_path / "published.csv", potential, ["Ni"], 3)


def test_they_are_properties_of_the_oracle(tmp_path):
    potential = load_potential(EMT)
    rows = pd.DataFrame({"formula": ["Cu"], "energy_per_atom": [-0.007], "id": ["cu"], "held_out": [0]})
    write_references(tmp_path / "emt.csv", rows, potential)
    (tmp_path / "old.csv").write_text("formula,energy_per_atom,id,held_out\nCu,-0.00700,cu,0\n")  # as version 0.1 did
    (tmp_path / "old.json").write_text((tmp_path / "emt.json").read_text())
    references = load_references(tmp_path / "old.csv")
    plain = MlipConfig(potential=EMT, bulk=None)
    config = dataclasses.replace(plain, elastic=ElasticConfig(), phonons=PhononConfig(min_length=4.5))
    label = PotentialOracle(potential, references, config).evaluate([Candidate(to_structure(bulk("Cu", a=3.65)))])[0]
    assert label.ok, label.message
    assert label.value("shear_modulus") == pytest.approx(57, abs=3)
    assert label.value("poisson_ratio") == pytest.approx(0.31, abs=0.02)
    assert label.value("lowest_frequency") > 0
    assert label.value("dynamically_stable") == 1
    assert label.properties["lowest_frequency"].unit == "THz"
    hashes = {PotentialOracle(potential, references, c).settings_hash for c in (plain, config)}
    assert len(hashes) == 2
    assert "299e6008737ba545" in hashes  # that without them: no ledger pays its labels again
    failing = dataclasses.replace(plain, phonons=PhononConfig(min_length=0))  # one atom: nothing to judge by
    label = PotentialOracle(potential, references, failing).evaluate([Candidate(to_structure(bulk("Cu")))])[0]
    assert label.ok
    assert "larger supercell" in label.message


def test_the_benchmark_goes_on_and_tells_softening(tmp_path):
    metals = (Material("Cu", "fcc", (3.59,), 134.0, 57.0, (173, 116, 91)), Material("Ni", "fcc", (3.49,), 360.0, 95.0))
    record = run(tmp_path, EMT, metals)
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert record["results"]["bulk"]["materials"] == 2
    assert record["results"]["bulk"]["highest_ratio"] == pytest.approx(1, abs=0.02)
    assert record["results"]["bulk"]["lowest_ratio"] == pytest.approx(0.5, abs=0.02)
    assert record["results"]["mechanically stable"] == 2
    table = pd.DataFrame({"bulk": [50.0, np.nan], "published bulk": [100.0, 10.0]})
    assert errors(table, "bulk")["mean_absolute_relative_error"] == 0.5
