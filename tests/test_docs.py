"""What the documentation shows works: its Python blocks run as they stand, page by page."""

from __future__ import annotations

import importlib
import pkgutil
import re
import subprocess
import sys

import pytest

from flows.config import CampaignConfig
from tests.pages import PAGES, PLUGIN, ROOT, blocks, fences, shell, walk

ROOMS = ("loop", "generator", "surrogates", "oracles", "flows")
TUTORIALS = [page for page in PAGES if page.startswith("docs/tutorials/")]
NOTEBOOKS = [page for page in PAGES if blocks(page, "python") and page not in (*TUTORIALS, PLUGIN)]


@pytest.mark.parametrize("page", NOTEBOOKS)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {}
    for block in blocks(page, "python"):
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


@pytest.mark.parametrize("page", TUTORIALS)
def test_a_tutorial_does_what_it_says(page, tmp_path):
    """Its commands and its Python, in order, in one folder, as a reader types them."""
    (tmp_path / "work").mkdir()
    assert walk(page, tmp_path / "work", shell(tmp_path / "bin"), "sh", "python")


def test_every_block_says_its_language():
    """So that no command hides among diagrams and outputs, where nothing runs it."""
    known = {"sh", "python", "yaml", "toml", "text"}
    for page in PAGES:
        assert {language for language, _ in fences(page)} <= known, page
        text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        assert not re.findall(r"^\n {4}\S.*", text, re.MULTILINE), page


def test_links_between_pages_lead_somewhere():
    """Relative links of README and docs: the file is there, and the heading, too."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\((?!https?:|mailto:|#)([^)\s]+)\)", text):
            assert (page.parent / target.partition("#")[0]).exists(), f"{page.relative_to(ROOT)}: {target}"
