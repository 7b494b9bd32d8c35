"""Results as they come: what a kill leaves, and how the next call continues."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest
from ase.build import bulk
from typer.testing import CliRunner

from flows.cli import app
from flows.journal import ENDING, Journal
from loop.errors import InputError
from loop.io.crystals import write_crystals
from oracles.potentials.calculator import to_structure

EMT = "ase.calculators.emt:EMT"


def test_it_goes_on_after_a_torn_line_and_is_gone_when_done(tmp_path):
    output = tmp_path / "out.csv"
    with suppress(RuntimeError), Journal(output, {"fmax": 0.1}) as journal:
        journal.write("a", {"energy": -1.0})
        journal.write("b", {"energy": float("nan")})
        raise RuntimeError
    path = tmp_path / f"out.csv{ENDING}"
    path.write_bytes(path.read_bytes() + b'{"key":"c","resu')
    with Journal(output, {"fmax": 0.1}) as journal:
        assert journal.found == 2
        assert journal.done["a"] == {"energy": -1.0}
        journal.write("c", {"energy": 2.0})
        assert len(path.read_bytes().splitlines()) == 4
    assert not path.exists()


def test_other_settings_and_other_writers_are_refused(tmp_path):
    output = tmp_path / "out.csv"
    with suppress(RuntimeError), Journal(output, {"fmax": 0.1}) as journal:
        with pytest.raises(InputError, match="another process"):
            Journal(output, {"fmax": 0.1})
        journal.write("a", {})
        raise RuntimeError
    with pytest.raises(InputError, match="other settings"):
        Journal(output, {"fmax": 0.2})
    (tmp_path / "no").touch()  # a file where a folder would have to be
    with pytest.raises(InputError, match="no"):
        Journal(tmp_path / "no" / "out.csv", {})


def alloys(path: Path, n: int) -> None:
    crystals = []
    for seed in range(n):
        crystal = to_structure(bulk("Cu", cubic=True))
        crystal.replace(0, "Au")
        crystal.perturb(0.02 * (seed + 1), seed=seed)
        crystals.append(crystal)
    write_crystals(path, [f"alloy{seed}" for seed in range(n)], crystals)


def lines_of(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_a_killed_relaxation_goes_on_where_it_was(tmp_path):
    alloys(tmp_path / "in.csv", 10)
    arguments = ["relax", "--input", str(tmp_path / "in.csv"), "--potential", EMT, "--fmax", "0.01"]
    arguments += ["--json", "--output"]
    journal = tmp_path / f"cut.csv{ENDING}"
    command = [sys.executable, "-m", "flows.cli", *arguments, str(tmp_path / "cut.csv")]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while lines_of(journal) < 4 and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    process.stderr.close()
    assert not (tmp_path / "cut.csv").exists()
    found = lines_of(journal) - 1
    assert 3 <= found < 10
    again = CliRunner().invoke(app, [*arguments, str(tmp_path / "cut.csv")])
    assert again.exit_code == 0, again.stderr
    assert f"{found} crystals are done already" in again.stderr
    assert json.loads(again.stdout)["statuses"] == {"ok": 10}
    assert not journal.exists()
    whole = CliRunner().invoke(app, [*arguments, str(tmp_path / "whole.csv")])
    assert whole.exit_code == 0, whole.stderr
    cut, uncut = (pd.read_csv(tmp_path / name).drop(columns="seconds") for name in ("cut.csv", "whole.csv"))
    pd.testing.assert_frame_equal(cut, uncut)


def test_a_killed_hull_goes_on_too(tmp_path, monkeypatch):
    from flows.tables import screening
    from oracles.potentials.base import Potential

    alloys(tmp_path / "in.csv", 5)
    alloys(tmp_path / "known.csv", 1)
    table = tmp_path / "references.csv"
    built = CliRunner().invoke(
        app, ["hull", "build", str(tmp_path / "known.csv"), "-o", str(table), "--potential", EMT]
    )
    assert built.exit_code == 0, built.stderr
    arguments = ["hull", "-i", str(tmp_path / "in.csv"), "--potential", EMT, "--reference", str(table), "--json", "-o"]
    monkeypatch.setattr(screening, "AT_ONCE", 2)
    seen, right = [], Potential.single_points

    def broken(self, structures, **options):
        seen.append(len(structures))
        if len(seen) == 2:
            raise KeyboardInterrupt
        return right(self, structures, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Potential, "single_points", broken)
        CliRunner().invoke(app, [*arguments, str(tmp_path / "out.csv")])
    assert lines_of(tmp_path / f"out.csv{ENDING}") == 3
    again = CliRunner().invoke(app, [*arguments, str(tmp_path / "out.csv")])
    assert again.exit_code == 0, again.stderr
    assert "2 crystals are done already" in again.stderr
    frame = pd.read_csv(tmp_path / "out.csv")
    assert frame["id"].tolist() == [f"alloy{seed}" for seed in range(5)]
    assert (frame["status"] == "ok").all()
