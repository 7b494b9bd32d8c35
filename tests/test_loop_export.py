from __future__ import annotations

import csv
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.db import connect
from ase.io import read
from jsonschema import Draft202012Validator
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Poscar

from loop.campaign import Campaign
from loop.errors import ConfigError, InputError
from loop.history import History
from loop.io.crystals import read_crystals
from loop.io.optimade import resource
from loop.io.poscar import to_poscar
from loop.moyo import find_symmetry
from loop.ranking import ranked
from loop.report.export import FORMATS, export, final_structure, ranked_rows
from loop.settings import CampaignSettings
from loop.store import Store
from tests.fakes import fake_components, rocksalt
from tests.readers import optimade_by_pymatgen, same_atoms

CASES = Path(__file__).parent / "cases"
SETTINGS = CampaignSettings(name="exported", rounds=1, pool=24, budget=6, chunk=6, seed=1)
REQUIRED = ["rank", "candidate_id", "formula", "space_group", "n_atoms", "e_above_hull", "e_above_hull_sigma"]
REQUIRED += ["bulk_modulus", "energy_type", "status", "novelty", "round", "arm", "cost_seconds", "decomposition"]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    with Store(folder / "campaign.db") as store, Campaign(SETTINGS, fake_components(), store, folder) as made:
        made.run()
        yield made


@pytest.fixture
def history(campaign):
    return campaign.history


def test_a_folder_of_any_name_holds_a_campaign_and_its_exports(tmp_path):
    """Case 51b: names that mean something in the address of a database."""
    folder = tmp_path / "out a#b?c%20d é"
    settings = replace(SETTINGS, pool=8, budget=2, chunk=2)
    with Store(folder / "campaign.db") as store, Campaign(settings, fake_components(), store, folder) as made:
        made.run()
    with Store(folder / "campaign.db", create=False) as store:
        history = History.load(store, settings.name)
        for format in FORMATS:
            assert export(history, format, folder / f"exported {format} #1", directory=folder) > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out a#b?c%20d é"]


def test_stable_ones_come_first_then_the_objective(history):
    rows = ranked_rows(history)
    assert [row["rank"] for row in rows] == list(range(1, 13))
    groups = [0 if row["stable"] else (1 if row["status"] == "ok" else 2) for row in rows]
    assert groups == sorted(groups)
    assert len(set(groups)) == 3  # this campaign has all three kinds
    stable = [row["bulk_modulus"] for row in rows if row["stable"]]
    assert stable == sorted(stable, reverse=True)
    other = [row["e_above_hull"] for row in rows if not row["stable"] and row["status"] == "ok"]
    assert other == sorted(other)
    assert min(other) > SETTINGS.threshold >= max(row["e_above_hull"] for row in rows if row["stable"])


def test_the_order_does_not_depend_on_the_order_of_labels(history):
    labels = history.labels()
    again = ranked(labels[::-1], SETTINGS)
    assert [label.candidate.id for label in again] == [label.candidate.id for label in ranked(labels, SETTINGS)]
    smallest = ranked(labels, replace(SETTINGS, goal="minimise"))
    values = [x.evaluation.value("bulk_modulus") for x in smallest if x.is_stable(SETTINGS)]
    assert values == sorted(values)


def test_csv_has_the_columns_that_were_promised(history, tmp_path):
    assert export(history, "csv", tmp_path / "out.csv") == 12
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert set(REQUIRED) <= set(rows[0])
    assert [row["candidate_id"] for row in rows] == [row["candidate_id"] for row in ranked_rows(history)]
    assert rows[-1]["status"] == "failed:exploded"
    assert rows[-1]["e_above_hull"] == ""  # missing, not nan
    assert json.loads(rows[0]["decomposition"]) == {rows[0]["formula"]: 1.0}


def test_json_is_strict_and_holds_the_crystals(history, tmp_path):
    export(history, "json", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text(), parse_constant=lambda text: pytest.fail(text))
    first = ranked(history.labels(), SETTINGS)[0]
    assert Structure.from_dict(rows[0]["structure"]) == first.evaluation.structure


@pytest.mark.parametrize("format", ["cif", "poscar"])
def test_each_crystal_has_its_file(history, tmp_path, format):
    export(history, format, tmp_path / "out")
    files = sorted((tmp_path / "out").glob("[!.]*"))
    labels = ranked(history.labels(), SETTINGS)
    assert len(files) == len(labels)
    for number in (0, 11):
        text = files[number].read_text()
        found = Structure.from_str(text, "cif") if format == "cif" else Poscar.from_str(text).structure
        assert StructureMatcher(scale=False).fit(found, final_structure(labels[number]))
        assert labels[number].candidate.id in files[number].name
        assert files[number].name.startswith(f"{number + 1:03d}_")


def test_a_left_handed_crystal_keeps_its_hand_in_a_poscar():
    sites = [[0.4697, 0, 0], [0.4133, 0.2672, 0.1188]]
    quartz = Structure.from_spacegroup("P3_221", Lattice.hexagonal(4.916, 5.4054), ["Si", "O"], sites)
    held = Structure(Lattice(-quartz.lattice.matrix), quartz.species, -quartz.frac_coords)
    found = Poscar.from_str(to_poscar(held)).structure
    assert np.linalg.det(found.lattice.matrix) > 0
    assert find_symmetry(found, 0.01).number == 154  # its mirror image is in P3_121, 152


def test_extxyz_is_read_by_ase_with_its_numbers(history, tmp_path):
    export(history, "extxyz", tmp_path / "out.extxyz")
    frames = read(tmp_path / "out.extxyz", index=":")
    rows = ranked_rows(history)
    assert len(frames) == len(rows)
    assert frames[0].info["candidate_id"] == rows[0]["candidate_id"]
    assert frames[0].info["e_above_hull"] == pytest.approx(rows[0]["e_above_hull"])
    first = ranked(history.labels(), SETTINGS)[0]
    assert np.allclose(frames[0].cell.array, final_structure(first).lattice.matrix)


def test_the_ase_database_can_be_searched(history, tmp_path):
    export(history, "ase-db", tmp_path / "out.db")
    with connect(str(tmp_path / "out.db")) as database:
        assert database.count() == 12
        row = next(iter(database.select("rank=1")))
        assert row.candidate_id.lstrip("_") == ranked_rows(history)[0]["candidate_id"]
        assert len(list(database.select("e_above_hull<=0.1"))) == sum(r["stable"] for r in ranked_rows(history))


def test_optimade_resources_have_what_the_specification_requires(history, tmp_path):
    export(history, "optimade", tmp_path / "out.jsonl")
    header, *entries = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert header["x-optimade"]["meta"]["api_version"] == "1.2.0"
    assert len(entries) == 12
    attributes = entries[0]["attributes"]
    label = ranked(history.labels(), SETTINGS)[0]
    structure = final_structure(label)
    assert entries[0]["type"] == "structures"
    assert entries[0]["id"] == label.candidate.id
    assert attributes["elements"] == sorted(str(element) for element in structure.composition)
    assert all(entry["attributes"]["elements"] == sorted(entry["attributes"]["elements"]) for entry in entries)
    assert attributes["elements_ratios"] == [0.5, 0.5]
    assert attributes["chemical_formula_anonymous"] == "AB"
    assert attributes["chemical_formula_reduced"] == "".join(attributes["elements"])
    assert np.allclose(attributes["lattice_vectors"], structure.lattice.matrix)
    assert attributes["_discovery_loop_rank"] == 1


def test_optimade_resources_satisfy_the_models_of_the_optimade_tools(history, tmp_path):
    models = pytest.importorskip("optimade.models")
    export(history, "optimade", tmp_path / "out.jsonl")
    for line in (tmp_path / "out.jsonl").read_text().splitlines()[1:]:
        models.StructureResource(**json.loads(line))


def test_optimade_resources_satisfy_the_schema_of_the_optimade_tools(history, tmp_path):
    schema = json.loads((CASES / "97_optimade_schema" / "structure.schema.json").read_text())
    valid = Draft202012Validator(schema).is_valid
    export(history, "optimade", tmp_path / "out.jsonl")
    entries = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()[1:]]
    assert all(map(valid, entries))
    for name, wrong in {"nsites": "8", "species": [{"name": "Na"}], "dimension_types": [1, 1, 2]}.items():
        assert not valid({**entries[0], "attributes": entries[0]["attributes"] | {name: wrong}})
    del entries[0]["attributes"]["structure_features"]
    assert not valid(entries[0])


def test_a_line_of_optimade_with_as_many_species_as_sites_is_the_crystal_to_pymatgen():
    """pymatgen takes the list of species for the sites then: they have to come in the order of the sites."""
    cell = Lattice([[0, 2.95, 2.95], [2.95, 0, 2.95], [2.95, 2.95, 0]])
    half_heusler = Structure(cell, ["Ti", "Ni", "Sn"], [[0, 0, 0], [0.25] * 3, [0.5] * 3])
    line = json.dumps(resource("x", half_heusler, {}, "2026-01-01T00:00:00Z"))
    assert same_atoms(half_heusler, optimade_by_pymatgen(line), 1e-6)


def test_optimade_names_and_symbols_are_those_of_the_specification():
    salt = rocksalt()
    salt.add_oxidation_state_by_element({"Na": 1, "Cl": -1})
    found = resource("x", salt, {"Gap (eV)": 1.0}, "2026-01-01T00:00:00Z")["attributes"]
    assert set(found["species_at_sites"]) == {"Na", "Cl"} == {species["name"] for species in found["species"]}
    assert found["chemical_formula_descriptive"] == found["chemical_formula_reduced"].replace("ClNa", "NaCl") == "NaCl"
    assert found["_discovery_loop_gap__ev_"] == 1.0


def test_a_table_that_was_exported_is_read_with_its_crystals(history, tmp_path):
    export(history, "csv", tmp_path / "out.csv")
    table = read_crystals(tmp_path / "out.csv")
    labels = ranked(history.labels(), SETTINGS)
    assert table.ids == [label.candidate.id for label in labels]
    assert [s.composition for s in table.structures] == [final_structure(label).composition for label in labels]


def test_the_archive_holds_everything(campaign, tmp_path):
    (campaign.directory / "record.json").write_text("{}")
    export(campaign.history, "zip", tmp_path / "out.zip", directory=campaign.directory)
    with zipfile.ZipFile(tmp_path / "out.zip") as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    wanted = ["ranked.csv", "ranked.json", "candidates.extxyz", "candidates.optimade.jsonl", "record.json"]
    assert {f"exported/{name}" for name in wanted} <= set(names)
    assert sum("/cifs/" in name for name in names) == 12


def test_what_cannot_be_exported_is_refused(history, tmp_path):
    with pytest.raises(ConfigError, match="choose from csv, json, cif"):
        export(history, "docx", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        export(history, "csv", tmp_path / "file" / "out.csv")
    empty = replace(history, done={})
    for format in FORMATS:
        with pytest.raises(InputError, match="nothing to export"):
            export(empty, format, tmp_path / "out")
