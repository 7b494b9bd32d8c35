"""predict, finetune, evaluate-generator, doctor: real rooms at the smallest size."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import typer
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from flows.cli import app
from flows.console import PlainProgress, rate, short
from flows.doctor import Check, attempt
from loop.errors import CheckpointError
from loop.io.crystals import write_crystals

FCC = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rocksalt(cation: str, anion: str, length: float) -> Structure:
    return Structure(Lattice.cubic(length), [cation] * 4 + [anion] * 4, [*FCC, *(FCC + 0.5)])


@pytest.fixture
def salts(tmp_path):
    """MgO, the same again, NaCl with atoms on top of each other, KBr, and a row that is no crystal."""
    crowded = Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.05, 0, 0]])
    crystals = [rocksalt("Mg", "O", 4.25), rocksalt("Mg", "O", 4.26), crowded, rocksalt("K", "Br", 6.6)]
    write_crystals(tmp_path / "in.csv", ["mgo", "again", "crowded", "kbr"], crystals)
    with (tmp_path / "in.csv").open("a") as file:
        file.write("broken,nonsense\n")
    return tmp_path / "in.csv"


def test_evaluate_generator_counts(salts, tmp_path):
    write_crystals(tmp_path / "known.csv", ["mp-1"], [rocksalt("K", "Br", 6.55)])
    done = run("evaluate-generator", "--input", salts, "--reference", tmp_path / "known.csv", "--no-energies",
               "--no-shipped", "--output", tmp_path / "e", "--json")  # fmt: skip
    assert done.exit_code == 0, done.stderr
    results = json.loads(done.stdout)
    assert (results["samples"], results["readable"]) == (5, 3)  # the crowded one is refused when it is read
    counts = {name: value["count"] for name, value in results.items() if isinstance(value, dict) and "count" in value}
    assert counts["structure_valid"] == 3
    assert counts["composition_valid"] == 3
    assert counts["unique"] == 2
    assert counts["new"] == 1  # MgO; KBr is known
    assert results["valid"]["share"] == pytest.approx(0.6)
    rows = pd.read_csv(tmp_path / "e" / "crystals.csv").set_index("id")
    assert rows.loc["kbr", "verdict"] == "known"
    assert rows.loc["again", "verdict"] == "duplicate"
    assert (tmp_path / "e" / "distributions.png").stat().st_size > 1000
    assert "0.5 A" in json.loads((tmp_path / "e" / "record.json").read_text())["protocol"]["structure_valid"]


def test_predict_by_the_prior(salts, tmp_path):
    done = run("predict", "--input", salts, "--output", tmp_path / "p.csv", "--json")
    assert done.exit_code == 0, done.stderr
    assert "predictions of the prior" in done.stderr
    assert json.loads(done.stdout)["labels"] == 0
    frame = pd.read_csv(tmp_path / "p.csv").set_index("id")
    assert frame.loc["broken", "status"] == "failed:unreadable"
    for name in ("e_above_hull", "bulk_modulus"):
        assert (frame.loc[["mgo", "kbr"], f"{name}_std"] > 0).all()
    assert run("predict", "--input", salts, "--output", tmp_path / "p.csv", "--campaign", tmp_path).exit_code == 1


def test_finetune_goes_on_where_it_stopped(tmp_path):
    tiny = ["--set", "generator.finetune.batch_size=8", "--set", "generator.finetune.minibatch_size=4"]
    tiny += ["--set", "generator.finetune.epochs=1", "--json"]
    one = run("finetune", "smoke", "--output", tmp_path / "t", *tiny, "--set", "generator.finetune.iterations=1")
    assert one.exit_code == 0, one.stderr
    two = [*tiny, "--set", "generator.finetune.iterations=2"]
    refused = run("finetune", "smoke", "--output", tmp_path / "t", *two)
    assert refused.exit_code == 1
    assert "continue with --resume" in refused.stderr
    rest = run("finetune", "smoke", "--output", tmp_path / "t", *two, "--resume")
    assert rest.exit_code == 0, rest.stderr
    assert json.loads(rest.stdout)["reward_first"] == json.loads(one.stdout)["reward_first"]
    assert len(pd.read_csv(tmp_path / "t" / "curve.csv")) == 2
    made = ["--checkpoint", tmp_path / "t" / "checkpoint", "--output", tmp_path / "g.csv"]
    assert run("generate", "--n", 3, *made).exit_code == 0


@pytest.mark.parametrize(
    ("where", "arguments", "way"),
    [
        ("flows.tables.generation.finetune", ("finetune", "smoke"), "repeat the command with --resume;"),
        ("flows.tables.generation.generate", ("generate", "--n", 2), "Repeat the command:"),
    ],
)
def test_an_interrupted_verb_says_how_it_is_continued(tmp_path, monkeypatch, where, arguments, way):
    """It said `resume RESULTS_FOLDER` whatever the verb, though no campaign was run."""

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupted)
    done = run(*arguments, "--output", tmp_path / "out.csv")
    assert done.exit_code == 130
    said = " ".join(done.stderr.split())
    assert way in said
    assert "RESULTS_FOLDER" not in said


def test_doctor_finds_everything_that_ships():
    done = run("doctor", "--json")
    checks = json.loads(done.stdout)
    failed = {name: check["text"] for name, check in checks.items() if check["state"] == "failed"}
    assert failed == {}
    assert done.exit_code == 0
    assert "canary energies right" in checks["potential"]["text"]


def test_a_check_that_breaks_is_a_failed_check():
    def potential() -> Check:
        raise CheckpointError("gone")

    assert attempt(potential) == Check("potential", "failed", "gone")


@pytest.mark.parametrize(
    ("value", "text"),
    [(1 / 3, "0.3333"), (float("nan"), "–"), (3, "3"), ("ok", "ok"), ({"a": 0.5}, "a 0.5"), ({}, "none"), ([], "none")],
)
def test_what_is_not_known_is_a_dash(value, text):
    assert short(value) == text


def test_shells_can_complete_verbs():
    """As bash asks: the words so far in the environment, the answers on standard output."""
    asked = {"_DISCOVERY_LOOP_COMPLETE": "complete_bash", "COMP_WORDS": "discovery-loop exp", "COMP_CWORD": "1"}
    said = CliRunner().invoke(app, [], prog_name="discovery-loop", env=asked)
    assert said.output.split() == ["export"]


def verbs(command, path=()):
    """All verbs with the words that call them."""
    own = getattr(command, "commands", {})
    found = [verb for name, part in own.items() for verb in verbs(part, (*path, name))]
    return found + ([(" ".join(path), command)] if not own or command.params else [])


def test_every_verb_prints_its_result_as_json_too():
    asked = dict(verbs(typer.main.get_command(app)))
    assert len(asked) > 50
    without = {name for name, verb in asked.items() if "--json" not in {o for p in verb.params for o in p.opts}}
    assert without == {"", "schema"}  # options of the whole program; the schema is JSON


def test_progress_in_a_log_tells_the_rate_and_the_time_left(monkeypatch, capsys):
    times = iter([0.0, 6.0, 12.0, 13.0])
    monkeypatch.setattr("flows.console.time.monotonic", lambda: next(times))
    progress = PlainProgress()
    progress("label", 10, 100)  # a resumed run: ten were done before
    progress("label", 12, 100)
    progress("label", 70, 100)
    progress("label", 71, 100)
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["  label 12/100 (6 s, 3 s each, 264 s to go)", "  label 70/100 (12 s, 5/s, 6 s to go)"]
    assert [rate(value) for value in (None, 0, 1234.5)] == ["", "", "1,234/s"]
