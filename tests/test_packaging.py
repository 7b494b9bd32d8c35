"""The five packages are ours alone, and what ships has all that it needs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import tests

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("loop", "generator", "surrogates", "oracles", "flows")


def test_no_other_distribution_owns_a_room():
    owners = packages_distributions()
    for room in ROOMS:
        assert set(owners.get(room, [])) <= {"discovery-loop"}, room


def test_tests_are_ours_and_not_a_dependency_s():
    assert "site-packages" not in str(tests.__file__)
    assert Path(tests.__file__).resolve().parent == Path(__file__).resolve().parent


def test_wheel_lists_exact_packages():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert tuple(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == ROOMS
    assert "Private :: Do Not Upload" in project["project"]["classifiers"]


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    names = {text.split(">")[0].split("=")[0].split("<")[0].strip().lower() for text in wanted}
    assert names <= pinned
    assert not [line for line in lines if "+" in line or "@" in line or "/" in line.split("#")[0]]


@pytest.mark.slow
def test_wheel_holds_package_data(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True)
    (name,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(name).namelist())
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == set(ROOMS)
    assert "flows/prefect.yaml" in names
    for path in ROOT.glob("*/*"):
        if path.parent.name in ROOMS and path.is_dir() and path.name != "__pycache__":
            for file in path.rglob("*"):
                if file.is_file() and "__pycache__" not in file.parts:
                    assert str(file.relative_to(ROOT)) in names
