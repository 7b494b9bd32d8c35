"""What the documentation shows works: its Python blocks run as they stand, page by page."""

from __future__ import annotations

import importlib
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
