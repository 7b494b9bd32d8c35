"""What is light stays light: each check runs in a fresh interpreter."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "gpytorch", "botorch", "mace", "chgnet", "prefect", "matplotlib")


def loaded(code: str) -> list[str]:
    """Names of heavy libraries that some code loads."""
    probe = f"import sys, json\n{code}\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_probe_sees_heavy_libraries():
    assert loaded("import torch") == ["torch"]


def test_loop_is_light():
    code = """import importlib, pkgutil, loop
for module in pkgutil.iter_modules(loop.__path__):
    if module.name != "figures":  # which exists to draw; the report imports it when it does
        importlib.import_module("loop." + module.name)"""
    assert loaded(code) == []


def test_command_line_is_light():
    code = """import flows.cli
from typer.testing import CliRunner
assert CliRunner().invoke(flows.cli.app, ["--help"]).exit_code == 0
assert "pymatgen" not in sys.modules and "pandas" not in sys.modules"""
    assert loaded(code) == []


def test_thread_defaults_stand_and_yield_to_the_user():
    code = "import os, flows; print(os.environ['OPENBLAS_NUM_THREADS'], os.environ['OMP_NUM_THREADS'])"
    environment = {"PATH": "/usr/bin", "OMP_NUM_THREADS": "7"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == ["1", "7"]
