"""The package of docs/extending.md is installed, listed, checked and run, with nothing of the project changed."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.pages import PLUGIN, ROOT, blocks, shell, walk

PACKAGE = ROOT / "tests" / "plugin"
FILES = {"pyproject.toml": "toml", "hard_spheres.py": "python", "spheres.yaml": "yaml"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Environment of a shell in which the package is installed: built without network, into a folder of its own."""
    place = tmp_path_factory.mktemp("plugin")
    shutil.copytree(PACKAGE, place / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-index", "--no-build-isolation", "--target", str(place / "site"), str(place / "source")]
    subprocess.run(command, check=True)
    return shell(place / "bin", place / "site")


def test_the_page_is_the_package():
    for name, language in FILES.items():
        assert blocks(PLUGIN, language)[0] == (PACKAGE / name).read_text(encoding="utf-8"), name
    code = (PACKAGE / "hard_spheres.py").read_text(encoding="utf-8").splitlines()
    assert len(code) <= 60
    assert {path.name for path in PACKAGE.iterdir() if path.is_file()} == {*FILES}


def test_it_passes_the_suites(installed, tmp_path):
    suites = blocks(PLUGIN, "python")[1]
    done = subprocess.run(["python", "-c", suites], env=installed, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_option_that_it_does_not_have_is_named(installed, tmp_path):
    (tmp_path / "spheres.yaml").write_text(blocks(PLUGIN, "yaml")[0], encoding="utf-8")
    command = ["discovery-loop", "validate", "spheres.yaml", "-s", "oracle.options={bets: 1}"]
    wrong = subprocess.run(command, env=installed, cwd=tmp_path, capture_output=True, text=True)
    assert wrong.returncode == 1
    assert "options.bets: unknown key; did you mean 'best'?" in wrong.stderr


def test_the_page_s_commands_list_it_and_run_its_campaign(installed, tmp_path):
    (tmp_path / "spheres.yaml").write_text(blocks(PLUGIN, "yaml")[0], encoding="utf-8")
    told = walk(PLUGIN, tmp_path, installed, "sh")
    for part in ("spheres", "rocksalt", "packing"):
        assert re.search(rf"; {part} \(hard-spheres 1\.0\)$", told, re.MULTILINE), part
    results = tmp_path / "results" / "spheres"
    summary = json.loads((results / "record.json").read_text(encoding="utf-8"))["summary"]
    rows = list(csv.DictReader((results / "ranked.csv").read_text(encoding="utf-8").splitlines()))
    assert summary["oracle_calls"] == len(rows) == 10
    assert summary["stable_new"] == sum(row["group"] == "find" for row in rows) > 0
    elements = {element for row in rows for element in re.findall("[A-Z][a-z]?", row["formula"])}
    assert not elements & {"K", "S"}  # the space holds for a generator of another package, too
    assert {row["oracle"] for row in rows if "oracle" in row} <= {"spheres@1"}
    kept = yaml.safe_load((results / "config.yaml").read_text(encoding="utf-8"))
    assert kept["oracle"]["options"] == {"best": 0.45}
