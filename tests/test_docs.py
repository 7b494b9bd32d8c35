"""What the documentation shows works: its Python blocks run as they stand, page by page."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.config import CampaignConfig

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "docs/python.md"]
ROOMS = ("loop", "generator", "surrogates", "oracles", "flows")


def blocks(page: str, language: str) -> list[str]:
    """Fenced blocks of a page."""
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = blocks(page, "python")
    assert found
    space: dict[str, object] = {}
    for block in found:
        exec(compile(block, page, "exec"), space)


@pytest.mark.parametrize("room", ROOMS)
def test_every_name_that_a_package_exports_is_there_and_hides_no_module(room):
    package = importlib.import_module(room)
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert not modules & set(package.__all__)
    for name in package.__all__:
        assert getattr(package, name).__module__.startswith(room)
        assert name in dir(package)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = package.nothing


@pytest.mark.parametrize("room", ["generator", "surrogates", "oracles", "flows"])
def test_a_folder_named_loop_that_comes_first_is_named(tmp_path, room):
    (tmp_path / "loop").mkdir()
    (tmp_path / "loop" / "__init__.py").touch()
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {room}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"comes first: {tmp_path}/loop/__init__.py. Rename it" in done.stderr


def test_every_key_of_a_configuration_says_what_it_means():
    schema = CampaignConfig.model_json_schema()
    sections = {"the whole file": schema, **schema["$defs"]}
    keys = [(name, key, item) for name, part in sections.items() for key, item in part.get("properties", {}).items()]
    assert len(keys) > 250
    assert not [f"{name}.{key}" for name, key, item in keys if not item.get("description")]


TUTORIALS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.fixture
def command_line(tmp_path, monkeypatch):
    """`discovery-loop` and `python` of this environment and tree come first, in an empty folder."""
    commands = {
        "discovery-loop": f'exec "{sys.executable}" -m flows.cli "$@"',
        "python": f'exec "{sys.executable}" "$@"',
    }
    (tmp_path / "bin").mkdir()
    for name, line in commands.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path / "work"


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_does_what_it_says(page, command_line):
    """Its commands and its Python, in order, in one folder, as a reader types them."""
    found = re.findall(
        r"^```(sh|python)\n(.*?)^```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert found
    for language, block in found:
        command = ["bash", "-euo", "pipefail", "-c", block] if language == "sh" else [sys.executable, "-c", block]
        done = subprocess.run(command, cwd=command_line, capture_output=True, text=True, check=False, timeout=900)
        assert done.returncode == 0, f"{page}:\n{block}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def test_the_single_steps_of_the_readme_run(command_line):
    """With three crystals for a hundred, and a hull distance that each of them fulfils."""
    (block,) = [block for block in blocks("README.md", "sh") if "discovery-loop generate" in block]
    small = block.replace("--n 100", "--n 3").replace("e_above_hull <= 0.1", "e_above_hull <= 9")
    assert small.count("--n 3") == small.count("<= 9") == 1
    command = ["bash", "-euo", "pipefail", "-c", small]
    done = subprocess.run(command, cwd=command_line, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    assert (command_line / "moduli.csv").exists()


def test_links_between_pages_lead_somewhere():
    """Relative links of README and docs: the file is there, and the heading, too."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", text):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.relative_to(ROOT)}: {target}"
