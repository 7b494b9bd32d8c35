"""What every verb does with its table: crystals, ids and columns kept, outputs that lose nothing, tokens that hold."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path

import ase.io
import numpy as np
import pandas as pd
import pytest
from ase.calculators import emt
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from flows.cli import app
from flows.tables.columns import renamed_columns
from flows.tables.outputs import check_crystals, check_folder
from generator.representation.serialization import describes, from_json
from loop.errors import InputError
from loop.io.crystals import read_crystals, write_crystals
from tests import crystals

CASES = Path(__file__).parent / "cases"
EMT = "ase.calculators.emt:EMT"
FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
VERBS = [
    ["relax", "--potential", EMT],
    ["hull", "--potential", EMT, "--reference", "REFERENCE"],
    ["hull", "--potential", EMT, "--reference", "REFERENCE", "--relax"],
    ["elastic", "--potential", EMT],
    ["phonons", "--potential", EMT, "--min-length", "4.5"],
    ["predict"],
    ["likelihood", "--checkpoint", "CHECKPOINT"],
]
NAMES = ["relax", "hull", "hull --relax", "elastic", "phonons", "predict", "likelihood"]


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fcc(*elements: str, length: float = 3.7) -> Structure:
    return Structure(Lattice.cubic(length), elements, FCC)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small untrained network, and reference phases of EMT."""
    import torch

    from generator.checkpoint import save_checkpoint
    from generator.model import CrystalFormer, ModelConfig

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("made")
    save_checkpoint(CrystalFormer(ModelConfig(layers=1, heads=2, width=32)), folder / "checkpoint")
    write_crystals(folder / "known.csv", ["cu", "au"], [fcc(*["Cu"] * 4, length=3.61), fcc(*["Au"] * 4, length=4.08)])
    done = run("hull", "build", folder / "known.csv", "--output", folder / "table.csv", "--potential", EMT)
    assert done.exit_code == 0, done.stderr
    return folder


def verb(made: Path, words: list[str], source: Path, output: Path):
    """Run a verb from file to file."""
    places = {"REFERENCE": str(made / "table.csv"), "CHECKPOINT": str(made / "checkpoint")}
    return run(*[places.get(word, word) for word in words], "--input", source, "--output", output)


def cells(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def test_the_verbs_chain_without_a_merge(made, tmp_path):
    """generate | relax | hull | elastic | phonons, on two crystals: ids, columns and crystals go through."""
    base = ["--elements", "Cu", "Au", "--spacegroup", 225, "--max-atoms", 4, "--checkpoint", made / "checkpoint"]
    drawn = run("generate", "--n", 12, "--seed", 1, "--min-distance", 2, *base, "--output", tmp_path / "g.csv")
    assert drawn.exit_code == 0, drawn.stderr
    pd.read_csv(tmp_path / "g.csv").drop_duplicates("formula").iloc[:2].to_csv(tmp_path / "0.csv", index=False)
    ids = [row["id"] for row in cells(tmp_path / "0.csv")]
    assert len(set(ids)) == 2
    for number, words in enumerate([VERBS[0], VERBS[1], VERBS[3], VERBS[4], VERBS[5], VERBS[6]], 1):
        done = verb(made, words, tmp_path / f"{number - 1}.csv", tmp_path / f"{number}.csv")
        assert done.exit_code == 0, done.stderr
        rows = cells(tmp_path / f"{number}.csv")
        assert [row["id"] for row in rows] == ids
        assert {row["status"] for row in rows} <= {"ok", "unstable"}, words  # an alloy of an untrained network may be
        assert rows[0]["status"] == "ok"
        crystals_after = read_crystals(tmp_path / f"{number}.csv").structures
        assert all(structure is not None for structure in crystals_after)
        if number == 1:
            relaxed = crystals_after
            assert relaxed[0].volume != pytest.approx(read_crystals(tmp_path / "0.csv").structures[0].volume, rel=1e-6)
        assert [s.volume for s in crystals_after] == pytest.approx([s.volume for s in relaxed], rel=1e-9)
    last = rows[0]
    assert {"input_tokens", "input_space_group", "input_logp_drawn"} <= set(last)
    assert {"e_above_hull", "bulk_modulus_vrh", "lowest_frequency", "p_stable", "logp", "n_atoms"} <= set(last)
    assert float(last["e_above_hull"]) < 2


def test_what_is_scored_is_the_crystal_in_the_file(made, tmp_path):
    """Tokens go when `relax` changes the crystal: the likelihood is the canonical one of what stands there."""
    base = ["--elements", "Cu", "Au", "--spacegroup", 221, 225, "--checkpoint", made / "checkpoint"]
    drawn = run("generate", "--n", 6, "--seed", 3, "--min-distance", 1.5, *base, "--output", tmp_path / "g.csv")
    assert drawn.exit_code == 0, drawn.stderr
    done = verb(made, VERBS[0], tmp_path / "g.csv", tmp_path / "r.csv")
    assert done.exit_code == 0, done.stderr
    assert not {"tokens", "logp_drawn", "space_group"} & set(cells(tmp_path / "r.csv")[0])
    score(made, tmp_path / "r.csv", tmp_path / "l.csv")
    score(made, tmp_path / "r.csv", tmp_path / "c.csv", "--canonical")
    written, canonical, before = (pd.read_csv(tmp_path / name) for name in ("l.csv", "c.csv", "g.csv"))
    assert written["logp"].tolist() == canonical["logp"].tolist()
    assert (written["logp"] - before["logp_drawn"]).abs().max() > 0.1


def score(made: Path, source: Path, output: Path, *more: str) -> None:
    done = run("likelihood", "--checkpoint", made / "checkpoint", *more, "--input", source, "--output", output)
    assert done.exit_code == 0, done.stderr


@pytest.mark.parametrize("name", ["g.extxyz", "g.csv"])
def test_edits_in_other_programs_make_tokens_stale(made, tmp_path, name):
    base = ["--checkpoint", made / "checkpoint", "--spacegroup", 225, 123, "--output", tmp_path / name]
    assert run("generate", "--n", 4, "--seed", 2, *base).exit_code == 0
    score(made, tmp_path / name, tmp_path / "l.csv")
    assert pd.read_csv(tmp_path / "l.csv")["description"].tolist() == ["as-written"] * 4
    table = read_crystals(tmp_path / name)
    edited = [structure.copy() for structure in table.structures]
    edited[0].scale_lattice(edited[0].volume * 1.3**3)
    edited[1].replace_species({edited[1].species[0]: "Pb"})
    edited[2].translate_sites([0], [0.02, 0.01, 0.0])
    edited[3] = edited[3] * [1, 1, 2]  # another cell of the same crystal
    if name == "g.csv":
        write_crystals(tmp_path / "e.csv", table.ids, edited, table.frame)
        source = tmp_path / "e.csv"
    else:
        frames = ase.io.read(tmp_path / name, ":")
        for atoms, structure in zip(frames, edited, strict=True):
            info = dict(atoms.info)
            del atoms[:]
            atoms += structure.to_ase_atoms()
            atoms.set_cell(structure.lattice.matrix)
            atoms.info = info
        source = tmp_path / "e.extxyz"
        ase.io.write(source, frames)
    score(made, source, tmp_path / "l.csv")
    score(made, source, tmp_path / "c.csv", "--canonical")
    found, canonical = pd.read_csv(tmp_path / "l.csv"), pd.read_csv(tmp_path / "c.csv")
    assert found["description"].tolist() == ["canonical"] * 3 + ["as-written"]
    np.testing.assert_allclose(found["logp"][:3], canonical["logp"][:3])
    assert all("its tokens do not describe the crystal" in message for message in found["message"][:3])
    assert "the column formula says" in found["message"][1]
    assert pd.isna(found["message"][3])


def test_tokens_of_a_crystal_in_other_cells(made, tmp_path):
    """Shuffled, turned, doubled: the tokens still hold; a mirror image in a left-handed cell is another crystal."""
    for group in (144, 225):
        base = ["--checkpoint", made / "checkpoint", "--spacegroup", group, "--min-distance", 0.8]
        assert run("generate", "--n", 3, "--seed", 4, *base, "--output", tmp_path / f"{group}.csv").exit_code == 0
        table = read_crystals(tmp_path / f"{group}.csv")
        for text, structure in zip(table.frame["tokens"], table.structures, strict=True):
            tokens = from_json(text, 21)
            assert describes(tokens, structure)
            turned = Structure(structure.lattice.matrix[:, [1, 2, 0]], structure.species, structure.frac_coords)
            assert describes(tokens, turned)
            mirror = Structure(structure.lattice.matrix * [1, 1, -1], structure.species, structure.frac_coords)
            assert describes(tokens, mirror) == (group == 225)  # that of 144 is of 145
            if group == 225:
                assert describes(tokens, structure * [2, 1, 1])
                assert describes(tokens, structure.get_primitive_structure())
                assert describes(tokens, structure.get_sorted_structure(lambda site: tuple(-site.frac_coords)))
            moved = structure.copy().apply_strain([0.001, 0, 0], inplace=False)
            assert not describes(tokens, moved)


@pytest.mark.parametrize("words", VERBS, ids=NAMES)
@pytest.mark.parametrize("source", ["file", "link", "folder", "folder of it"])
def test_no_verb_writes_onto_its_input(made, tmp_path, words, source):
    shutil.copytree(CASES / "62_relax_onto_input", tmp_path / "data")
    place = tmp_path / "data" / ("folder" if "folder" in source else "in.csv")
    output = place
    if source == "link":
        output = tmp_path / "link.csv"
        output.symlink_to(place)
    before = {path: path.read_bytes() for path in place.parent.rglob("*") if path.is_file()}
    done = verb(made, words, place / "po.cif" if source == "folder of it" else place, output)
    assert done.exit_code == 1
    assert any(part in done.stderr for part in ("is the input", "holds the input", "is a file"))
    assert {path: path.read_bytes() for path in place.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("words", VERBS, ids=NAMES)
def test_a_library_of_the_user_is_never_replaced(made, tmp_path, words):
    write_crystals(tmp_path / "in.csv", ["cu"], [fcc(*["Cu"] * 4)])
    shutil.copytree(CASES / "62_relax_onto_input" / "folder", tmp_path / "library")
    done = verb(made, words, tmp_path / "in.csv", tmp_path / "library")
    assert done.exit_code == 1
    assert "did not write" in done.stderr
    assert sorted(path.name for path in (tmp_path / "library").iterdir()) == ["dis.cif", "fe.cif", "po.cif"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "library"]  # nothing half-written


@pytest.mark.parametrize("words", VERBS, ids=NAMES)
def test_columns_of_the_user_are_kept_and_told(made, tmp_path, words):
    """Those that a verb writes, too."""
    own = ["e_above_hull", "energy", "status", "message", "logp", "energy_mean", "bulk_modulus_vrh", "lowest_frequency"]
    frame = {"material_id": ["007"], **{name: [f"0{number}"] for number, name in enumerate(own)}, "note": ["NaN"]}
    write_crystals(tmp_path / "in.csv", ["x"], [fcc("Cu", "Cu", "Cu", "Au", length=3.75)], frame)
    done = verb(made, words, tmp_path / "in.csv", tmp_path / "out.csv")
    assert done.exit_code == 0, done.stderr
    row = cells(tmp_path / "out.csv")[0]
    assert (row["material_id"], row["note"], row["status"]) == ("007", "NaN", "ok")
    for number, name in enumerate(own):
        kept = row.get(f"input_{name}", row.get(name))
        assert kept == f"0{number}", name
        assert row.get(name) != kept or f"input_{name}" not in done.stderr
    assert "kept under other names: " in done.stderr
    assert "input_status" in done.stderr
    unchanged = words[0] != "relax" and "--relax" not in words
    assert (row["cif"] == cells(tmp_path / "in.csv")[0]["cif"]) == unchanged


@pytest.mark.parametrize("words", VERBS, ids=NAMES)
def test_every_verb_takes_the_format_from_the_ending(made, tmp_path, words):
    write_crystals(tmp_path / "in.json", ["a/1", "2"], [fcc("Cu", "Cu", "Cu", "Au", length=3.75), fcc(*["Cu"] * 4)])
    for name in ("o.csv.gz", "o.extxyz", "o.db", "o.json", "cifs", "o.poscar"):
        done = verb(made, words, tmp_path / "in.json", tmp_path / name)
        assert done.exit_code == 0, done.stderr
        table = read_crystals(tmp_path / name)
        assert sorted(table.ids) == ["2", "a/1"]
        assert set(table.frame["status"]) == {"ok"}
        again = verb(made, words, tmp_path / "in.json", tmp_path / name)  # what it wrote itself may be replaced
        assert again.exit_code == 0, again.stderr
    for name in ("o.docx", "o.pkl"):
        assert "expected a name ending in" in verb(made, words, tmp_path / "in.json", tmp_path / name).stderr


def test_relaxed_frames_hold_total_energies(made, tmp_path):
    """Case 49: eV of the cell under the name that every reader takes for it; nothing of the input's results is left."""
    for name in ("fe", "mgo"):
        shutil.copy(CASES / "49_extxyz_total_energy" / f"{name}.extxyz", tmp_path)
    frame = (tmp_path / "fe.extxyz").read_text().replace("Fe ", "Cu ").replace("2.87", "2.9")
    (tmp_path / "cu.extxyz").write_text(frame)
    done = verb(made, VERBS[0], tmp_path / "cu.extxyz", tmp_path / "r.extxyz")
    assert done.exit_code == 0, done.stderr
    atoms = ase.io.read(tmp_path / "r.extxyz")
    again = atoms.copy()
    again.calc = emt.EMT()
    assert atoms.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-5)
    assert atoms.info["energy_per_atom"] == pytest.approx(atoms.get_potential_energy() / 2)
    assert atoms.info["material_id"] == "007"
    assert set(atoms.calc.results) == {"energy"}
    assert atoms.info["input_free_energy"] == -16.7
    assert "message" not in atoms.info
    assert atoms.pbc.all()


def test_relaxed_iron_is_the_cell_that_came(tmp_path):
    """Case 49: two atoms stay two, with the energy of both."""
    given = ase.io.read(CASES / "49_extxyz_total_energy" / "fe.extxyz")
    done = run("relax", "-i", CASES / "49_extxyz_total_energy" / "fe.extxyz", "-o", tmp_path / "r.extxyz")
    assert done.exit_code == 0, done.stderr
    atoms = ase.io.read(tmp_path / "r.extxyz")
    assert len(atoms) == len(given) == 2
    assert atoms.get_potential_energy() == pytest.approx(-16.7, abs=0.1)
    np.testing.assert_allclose(atoms.cell.array, np.eye(3) * atoms.cell[0, 0], atol=1e-6)
    np.testing.assert_allclose(atoms.get_scaled_positions(), given.get_scaled_positions(), atol=1e-6)


def test_long_and_odd_ids_make_a_folder(made, tmp_path):
    """Case 63, with crystals that EMT knows."""
    table = read_crystals(CASES / "63_long_odd_ids" / "in.csv")
    write_crystals(tmp_path / "in.csv", table.ids, [fcc(*["Cu"] * 4)] * 6)
    done = verb(made, VERBS[0], tmp_path / "in.csv", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.cif"))) == 6
    assert sorted(read_crystals(tmp_path / "out").ids) == sorted(table.ids)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.csv", "out"]
    refused = verb(made, VERBS[5], tmp_path / "in.csv", tmp_path / f"{'n' * 300}.csv")
    assert "File name too long" in refused.stderr


def test_what_a_folder_leaves_out_is_said(made, tmp_path):
    """Case 80: neither hidden files nor others are taken for crystals in silence."""
    source = tmp_path / "in"
    shutil.copytree(CASES / "80_other_formats" / "mixed dir", source)
    (source / "notes.txt").write_text("x")
    done = verb(made, VERBS[5], source, tmp_path / "out.csv")
    assert done.exit_code == 0, done.stderr
    assert "left out" in done.stderr
    assert "notes.txt" in done.stderr
    assert [(row["id"], row["status"]) for row in cells(tmp_path / "out.csv")] == [
        ("a", "ok"), ("b", "ok"), ("broken", "failed:unreadable"),
    ]  # fmt: skip


def test_looking_leaves_nothing_behind(tmp_path):
    check_crystals(tmp_path / "new" / "deep" / "out.csv")
    check_crystals(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "in").mkdir()
    with pytest.raises(InputError, match="read as an input"):
        check_crystals(tmp_path / "in" / "o.extxyz", tmp_path / "in")
    assert check_crystals(tmp_path / "in" / "o.csv", tmp_path / "in")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "config.yaml").write_text("campaign: {}")
    with pytest.raises(InputError, match="holds a campaign"):
        check_folder(tmp_path / "c")


def test_names_that_are_taken_are_numbered():
    frame = pd.DataFrame({"status": ["a"], "input_status": ["b"], "message": [None], "x": [1]})
    kept = renamed_columns(frame, ["status", "message"], changed=False)
    assert kept.to_dict("records") == [{"input_status_2": "a", "input_status": "b", "x": 1}]


def test_a_campaign_is_not_overwritten_by_its_export(tmp_path):
    folder = tmp_path / "campaign"
    folder.mkdir()
    for name in ("campaign.db", "config.yaml", "generator/round_001"):
        done = run("export", folder, "--output", folder / name)
        assert done.exit_code == 1
        assert "belongs to the campaign" in done.stderr
    assert list(folder.iterdir()) == []


def test_inputs_for_clusters_are_not_overwritten(tmp_path):
    write_crystals(tmp_path / "in.csv", ["salt"], [crystals.nacl()])
    words = [
        "dft-inputs",
        "--input",
        tmp_path / "in.csv",
        "--output",
        tmp_path / "jobs",
        "--code",
        "espresso",
        "--json",
    ]
    first = run(*words)
    assert json.loads(first.stdout)["crystals"] == 1
    again = run(*words)
    assert again.exit_code == 1
    assert "holds inputs already (0000_salt)" in again.stderr


def test_a_checkpoint_is_not_replaced(made, tmp_path):
    shutil.copy(CASES / "79_git_lfs_pointer" / "epoch.pkl", tmp_path)
    done = run("import-checkpoint", tmp_path / "epoch.pkl", "--output", made / "checkpoint")
    assert done.exit_code == 1
    assert "is not empty" in done.stderr
    pointer = run("import-checkpoint", tmp_path / "epoch.pkl", "--output", tmp_path / "new")
    assert pointer.exit_code == 1
    assert "Git LFS" in pointer.stderr
