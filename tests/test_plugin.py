"""The package of docs/extending.md is installed, listed, checked and run, with nothing of the project changed."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tests" / "plugin"
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = {"pyproject.toml": "toml", "hard_spheres.py": "python", "spheres.yaml": "yaml"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Environment of a shell in which the package is installed: built without network, into a folder of its own."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, place / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--target", str(place / "site"), str(place / "source")]
    subprocess.run(command, check=True)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(place / "site")]), "OMP_NUM_THREADS": "1"}


def run(environment, *arguments, cwd):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, cwd=cwd, capture_output=True, text=True, check=False
    )


def test_the_page_is_the_package():
    for name, language in FILES.items():
        assert blocks(language)[0] == (PACKAGE / name).read_text(encoding="utf-8"), name
    code = (PACKAGE / "hard_spheres.py").read_text(encoding="utf-8").splitlines()
    assert len(code) <= 60
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {*FILES}


def test_it_is_listed_with_its_distribution(installed, tmp_path):
    code = "import json; from flows import doctor; print(json.dumps({c.name: c.text for c in doctor.registered()}))"
    done = run(installed, "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["oracles"].endswith("; spheres (hard-spheres 1.0)")
    assert told["generators"].endswith("; rocksalt (hard-spheres 1.0)")
    assert told["rewards"].endswith("; packing (hard-spheres 1.0)")


def test_it_passes_the_suites(installed, tmp_path):
    done = run(installed, "-c", blocks("python")[1], cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_it_runs_a_campaign(installed, tmp_path):
    (tmp_path / "spheres.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    flows = ("-m", "flows.cli")
    wrong = run(installed, *flows, "validate", "spheres.yaml", "-s", "oracle.options={bets: 1}", cwd=tmp_path)
    assert wrong.returncode == 1
    assert "options.bets: unknown key; did you mean 'best'?" in wrong.stderr
    done = run(installed, *flows, "run", "spheres.yaml", "--results", "out", "--quiet", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    rows = list(csv.DictReader((tmp_path / "out" / "ranked.csv").read_text(encoding="utf-8").splitlines()))
    assert summary["oracle_calls"] == len(rows) == 10
    assert summary["stable_new"] == sum(row["group"] == "find" for row in rows) > 0
    elements = {element for row in rows for element in re.findall("[A-Z][a-z]?", row["formula"])}
    assert not elements & {"K", "S"}  # the space holds for a generator of another package, too
    assert {row["oracle"] for row in rows if "oracle" in row} <= {"spheres@1"}
    kept = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text(encoding="utf-8"))
    assert kept["oracle"]["options"] == {"best": 0.45}
