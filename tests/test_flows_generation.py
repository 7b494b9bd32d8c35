from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from flows.cli import app
from loop.io.crystals import read_crystals, write_crystals

FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def rocksalt(cation: str, anion: str, length: float) -> Structure:
    return Structure(Lattice.cubic(length), [cation] * 4 + [anion] * 4, [*FCC, *(FCC + 0.5)])


NACL = rocksalt("Na", "Cl", 5.64)
SI = Structure(Lattice.cubic(5.43), ["Si"] * 8, [*FCC, *(FCC + 0.25)])


def run(*arguments: str):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A small untrained network."""
    import torch

    from generator.checkpoint import save_checkpoint
    from generator.model import CrystalFormer, ModelConfig

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(CrystalFormer(ModelConfig(layers=1, heads=2, width=32)), folder)
    return folder


def test_generate_is_reproducible_and_holds_conditions(checkpoint, tmp_path):
    common = [
        "generate",
        "--n",
        12,
        "--checkpoint",
        checkpoint,
        "--spacegroup",
        221,
        225,
        "--elements",
        "Li",
        "O",
        "Na,Cl",
    ]
    first, again, other = (
        run(*common, "--seed", seed, "--output", tmp_path / name)
        for seed, name in ((3, "a.csv"), (3, "b.csv.gz"), (4, "c.csv"))
    )
    assert [first.exit_code, again.exit_code, other.exit_code] == [0, 0, 0], first.stderr
    a, b, c = (pd.read_csv(tmp_path / name) for name in ("a.csv", "b.csv.gz", "c.csv"))
    assert len(a) == 12
    pd.testing.assert_frame_equal(a, b)
    assert not a.cif.equals(c.cif)
    assert set(a.space_group) <= {221, 225}
    for structure in read_crystals(tmp_path / "a.csv").structures:
        assert {str(e) for e in structure.composition} <= {"Li", "O", "Na", "Cl"}


def test_generate_holds_exact_conditions(checkpoint, tmp_path):
    options = ["--elements", "Li", "O", "--require", "Li", "O", "--max-atoms", 20]
    done = run("generate", "--n", 6, "--checkpoint", checkpoint, *options, "--output", tmp_path / "a.csv", "--json")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["written"] == 6
    assert 0 < summary["acceptance"] <= 1
    for structure in read_crystals(tmp_path / "a.csv").structures:
        assert {str(e) for e in structure.composition} == {"Li", "O"}
        assert len(structure.get_primitive_structure()) <= 20


def test_guard_keeps_atoms_apart(checkpoint, tmp_path):
    done = run("generate", "--n", 10, "--checkpoint", checkpoint, "--output", tmp_path / "a.csv", "--json")
    assert done.exit_code == 0, done.stderr
    table = read_crystals(tmp_path / "a.csv")
    assert len(table) == json.loads(done.stdout)["written"] > 0
    for structure in table.structures:
        distances = structure.distance_matrix + np.eye(len(structure)) * 9
        assert distances.min() >= 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--elements", "Xx"], "'Xx' is no element"),
        (["--elements", "Li", "--require", "O"], "not allowed: O"),
        (["--formula", "LiO", "--elements", "Li"], "not allowed: O|no element is left"),
        (["--formula", "12"], "is no formula"),
        (["--temperature", "0"], "temperature must be positive"),
        (["--device", "cuda"], "no CUDA device"),
        (["--output", "a.docx"], "expected a name ending in"),
    ],
)
def test_generate_refuses(checkpoint, tmp_path, options, message):
    base = ["--output", tmp_path / "a.csv"] if "--output" not in options else []
    done = run("generate", "--n", 2, "--checkpoint", checkpoint, *base, *options)
    assert done.exit_code == 1
    assert re.search(message, done.stderr)
    assert "Traceback" not in done.stderr


def test_generate_without_checkpoint_or_with_bad_numbers(tmp_path):
    missing = run("generate", "--n", 2, "--checkpoint", tmp_path / "none", "--output", tmp_path / "a.csv")
    assert missing.exit_code == 1
    assert "no checkpoint in" in missing.stderr
    beyond = run("generate", "--n", 2, "--spacegroup", 231, "--output", tmp_path / "a.csv")
    assert beyond.exit_code == 1
    assert "231" in beyond.stderr
    assert run("generate", "--n", 0, "--output", tmp_path / "a.csv").exit_code == 2


def test_likelihood_counts_unreadable_rows(checkpoint, tmp_path):
    write_crystals(tmp_path / "in.csv", ["nacl", "si"], [NACL, SI])
    with (tmp_path / "in.csv").open("a") as file:
        file.write("broken,not a cif\n")
    done = run(
        "likelihood",
        "--input",
        tmp_path / "in.csv",
        "--output",
        tmp_path / "out.csv",
        "--checkpoint",
        checkpoint,
        "--json",
    )
    assert done.exit_code == 0, done.stderr
    frame = pd.read_csv(tmp_path / "out.csv")
    logp = ["logp_w", "logp_a", "logp_xyz", "logp_l", "logp"]
    assert list(frame.columns) == ["id", "space_group", *logp, "description", "status", "message", "cif"]
    assert frame.id.tolist() == ["nacl", "si", "broken"]
    assert frame.status.tolist() == ["ok", "ok", "failed:unreadable"]
    parts = frame[["logp_w", "logp_a", "logp_xyz", "logp_l"]].sum(axis=1, skipna=False)
    np.testing.assert_allclose(parts[:2], frame.logp[:2])
    assert np.isnan(frame.logp[2])
    assert json.loads(done.stdout)["statuses"] == {"ok": 2, "failed:unreadable": 1}


def test_compat_needs_a_published_network(checkpoint, tmp_path):
    write_crystals(tmp_path / "in.csv", ["si"], [SI])
    done = run(
        "likelihood",
        "--compat",
        "--input",
        tmp_path / "in.csv",
        "--output",
        tmp_path / "o.csv",
        "--checkpoint",
        checkpoint,
    )
    assert done.exit_code == 1
    assert "--compat reproduces the published likelihood" in done.stderr


def test_pretrain_from_files(tmp_path):
    rng = np.random.default_rng(0)
    crystals = []
    for _ in range(40):
        pair = [str(rng.choice(["Li", "Na", "K"])), str(rng.choice(["F", "Cl"]))]
        crystals.append(rocksalt(*pair, 5 + rng.random()))
    write_crystals(tmp_path / "t.csv", [str(i) for i in range(30)], crystals[:30])
    write_crystals(tmp_path / "v.csv", [str(i) for i in range(10)], crystals[30:])
    small = ["--set", "model.layers=1", "--set", "model.width=32", "--set", "model.heads=2", "--set", "warmup_steps=2"]
    base = [
        "pretrain",
        "--train",
        tmp_path / "t.csv",
        "--val",
        tmp_path / "v.csv",
        "--output",
        tmp_path / "m",
        "--json",
    ]
    first = run(*base, *small, "--set", "epochs=4")
    assert first.exit_code == 0, first.stderr
    summary = json.loads(first.stdout)
    assert summary["epoch"] == 4
    assert summary["crystals"] == {"train": 30, "val": 10}
    again = run(*base, *small, "--set", "epochs=4")
    assert again.exit_code == 1
    assert "continue with --resume" in again.stderr
    assert run("generate", "--n", 2, "--checkpoint", tmp_path / "m", "--output", tmp_path / "g").exit_code == 0
    bad = run(*base, "--resume", "--set", "epoch=4")
    assert bad.exit_code == 1
    assert "did you mean 'epochs'" in bad.stderr


def test_generated_files_score_as_they_were_drawn(tmp_path):
    """Of the shipped checkpoint, whose samples are not all canonical descriptions."""
    file, scored = tmp_path / "a.csv", tmp_path / "l.csv"
    double = ["--dtype", "float64"]
    assert run("generate", "--n", 24, "--seed", 5, *double, "--output", file).exit_code == 0
    assert run("likelihood", "--input", file, *double, "--output", scored).exit_code == 0
    drawn, again = pd.read_csv(file), pd.read_csv(scored)
    for term in ("_w", "_a", "_xyz", "_l", ""):
        np.testing.assert_allclose(again[f"logp{term}"], drawn[f"logp_drawn{term}"], atol=1e-5)
    assert not [name for name in drawn if name.startswith("logp") and not name.startswith("logp_drawn")]
    assert set(again.description) == {"as-written"}
    terms = [f"logp_drawn_{name}" for name in ("w", "a", "xyz", "l")]
    np.testing.assert_allclose(drawn[terms].sum(axis=1), drawn.logp_drawn)
    assert (drawn.logp_drawn_g < 0).all()
    done = run("likelihood", "--canonical", "--input", file, *double, "--output", scored, "--json")
    assert done.exit_code == 0
    canonical = pd.read_csv(scored)
    assert set(canonical.description) == {"canonical"}
    assert (canonical.logp - drawn.logp_drawn).abs().max() > 0.1


def test_atoms_are_those_of_the_primitive_cell(checkpoint, tmp_path):
    options = ["--spacegroup", 225, "--max-atoms", 12, "--min-distance", 0]
    done = run("generate", "--n", 20, "--checkpoint", checkpoint, *options, "--output", tmp_path / "a.csv")
    assert done.exit_code == 0, done.stderr
    frame = pd.read_csv(tmp_path / "a.csv")
    assert frame.n_atoms.max() <= 12 < frame.n_atoms_conventional.max()
    assert (frame.n_atoms * 4 == frame.n_atoms_conventional).all()
    structures = read_crystals(tmp_path / "a.csv").structures  # None where atoms overlap: no distance was asked for
    assert any(structure is not None for structure in structures)
    for structure, n in zip(structures, frame.n_atoms_conventional, strict=True):
        assert structure is None or len(structure) == n


def test_a_folder_of_cifs_states_the_symmetry(checkpoint, tmp_path):
    base = ["--n", 6, "--seed", 2, "--spacegroup", 139, "--checkpoint", checkpoint, "--output"]
    assert run("generate", *base, tmp_path / "cifs").exit_code == 0
    assert run("generate", *base, tmp_path / "a.csv").exit_code == 0
    texts = [path.read_text() for path in sorted((tmp_path / "cifs").glob("*.cif"))]
    assert sum("_symmetry_Int_Tables_number   139" in text for text in texts) >= 4
    folder, table = read_crystals(tmp_path / "cifs"), read_crystals(tmp_path / "a.csv")
    plain = dict(zip(table.ids, table.structures, strict=True))
    assert set(folder.ids) == set(plain)
    for name, structure in zip(folder.ids, folder.structures, strict=True):
        assert structure.composition == plain[name].composition
        assert structure.volume == pytest.approx(plain[name].volume, rel=1e-6)


def test_a_shortage_is_said(checkpoint, tmp_path):
    options = ["--min-distance", 9, "--output", tmp_path / "a.csv", "--json"]
    done = run("generate", "--n", 3, "--checkpoint", checkpoint, *options)
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["written"] < 3 == summary["asked"]
    assert summary["drawn"] == 60  # twenty for each, and not a batch of 32 at a time
    assert "of 3 crystals written" in done.stderr


def test_the_present_folder_is_no_output(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("generate", "--n", 2, "--checkpoint", checkpoint, "--output", ".")
    assert done.exit_code == 1
    assert "is the present folder: expected the name of a file" in done.stderr


def test_a_pickle_that_cannot_be_read_leaves_no_folder(tmp_path):
    (tmp_path / "x.pkl").write_bytes(b"no pickle")
    done = run("import-checkpoint", tmp_path / "x.pkl", "--output", tmp_path / "new")
    assert done.exit_code == 1
    assert not (tmp_path / "new").exists()


def test_the_mean_of_checkpoints_is_that_of_their_weights(checkpoint, tmp_path):
    import torch

    from generator.checkpoint import load_checkpoint, save_checkpoint
    from generator.model import CrystalFormer, ModelConfig

    torch.manual_seed(1)
    save_checkpoint(CrystalFormer(ModelConfig(layers=1, heads=2, width=32, dropout=0.3)), tmp_path / "b")
    save_checkpoint(CrystalFormer(ModelConfig(layers=1, heads=2, width=16)), tmp_path / "other")
    astray = CrystalFormer(ModelConfig(layers=1, heads=2, width=32))
    with torch.no_grad():
        next(astray.parameters()).fill_(float("nan"))
    save_checkpoint(astray, tmp_path / "nan")
    verb = ["average-checkpoints", checkpoint, tmp_path / "b", "--output"]
    done = run(*verb, tmp_path / "mean", "--share", 0.25, "--share", 0.75)
    assert done.exit_code == 0, done.stderr
    a, b, mean = (load_checkpoint(path).model.state_dict() for path in (checkpoint, tmp_path / "b", tmp_path / "mean"))
    assert any(not torch.equal(a[name], b[name]) for name in a)
    for name in a:
        torch.testing.assert_close(mean[name], 0.25 * a[name] + 0.75 * b[name])
    parts = load_checkpoint(tmp_path / "mean").provenance["mean_of"]
    assert [(part["share"], part["sha256"]) for part in parts] == [
        (0.25, load_checkpoint(checkpoint).checksum),
        (0.75, load_checkpoint(tmp_path / "b").checksum),
    ]
    for wrong, said in [
        (["--share", 0.25], "expected a positive share for each of 2 checkpoints, 1 together, got [0.25]"),
        (["--share", 0.25, "--share", 0.5], "got [0.25, 0.5]"),
        (["--share", -1, "--share", 2], "got [-1.0, 2.0]"),
        ([tmp_path / "other"], "other is of another architecture than"),
        ([tmp_path / "b"], "b hold the same weights"),
        ([tmp_path / "nan"], "holds weights that are no finite numbers (space_groups.weight)"),
    ]:
        failed = run(*verb, tmp_path / "new", *wrong)
        assert failed.exit_code == 1
        assert said in " ".join(failed.stderr.split())
        assert not (tmp_path / "new").exists()


def test_pretrain_from_given_weights(checkpoint, tmp_path):
    salts = [rocksalt(cation, anion, 5.5) for cation in ("Li", "Na", "K") for anion in ("F", "Cl")]
    write_crystals(tmp_path / "t.csv", [str(i) for i in range(6)], salts)
    base = ["pretrain", "--train", tmp_path / "t.csv", "--val", tmp_path / "t.csv", "--json", "--set", "epochs=1"]
    done = run(*base, "--init", checkpoint, "--output", tmp_path / "m")
    assert done.exit_code == 0, done.stderr
    drawn = run("generate", "--n", 8, "--checkpoint", tmp_path / "m", "--output", tmp_path / "g.csv")
    assert drawn.exit_code == 0
    assert (pd.read_csv(tmp_path / "g.csv").space_group == 225).mean() > 0.2  # p(g) is that of the new set
    missing = run(*base, "--init", tmp_path / "none", "--output", tmp_path / "x")
    assert missing.exit_code == 1
    assert "no checkpoint in" in missing.stderr
