"""The commands of README and of the guides run: each page in a folder of its own, with what it speaks of in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from flows.server import HOST, PORT, taken
from tests.pages import ELSEWHERE, PAGES, PLUGIN, ROOT, blocks, lines, shell, walk

GUIDES = [page for page in PAGES if blocks(page, "sh") and "tutorials" not in page and page != PLUGIN]


def quickstart(folder: Path, walked: Callable[[str], Path]) -> None:
    """What `make run` leaves behind: the recorded quickstart."""
    shutil.copytree(ROOT / "results" / "2026-11-30-quickstart", folder / "results" / "quickstart")


def finished(folder: Path, walked: Callable[[str], Path]) -> None:
    """The campaign of README's own, finished."""
    shutil.copytree(walked("README.md") / "results" / "my-campaign", folder / "results" / "my-campaign")


def answered(folder: Path, walked: Callable[[str], Path]) -> None:
    """The same, with the form that somebody filled in for one of its crystals."""
    finished(folder, walked)
    ranked = pd.read_csv(folder / "results" / "my-campaign" / "ranked.csv")
    (folder / "labels.csv").write_text(f"candidate_id,band_gap (eV)\n{ranked['candidate_id'][0]},1.5\n")


PREPARED = {"README.md": quickstart, "docs/operating.md": finished, "docs/dft.md": answered}


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """The folder of a page whose commands have run, and in it what they printed, `told.txt`."""
    env = shell(tmp_path_factory.mktemp("shell") / "bin")
    done: dict[str, Path] = {}

    def folder_of(page: str) -> Path:
        if page not in done:
            folder = tmp_path_factory.mktemp("page")
            if page in PREPARED:
                PREPARED[page](folder, folder_of)
            told = walk(page, folder, env, "sh")
            (folder / "told.txt").write_text(told, encoding="utf-8")
            done[page] = folder
        return done[page]

    yield folder_of
    subprocess.run(["discovery-loop", "down"], env=env, capture_output=True, check=True)  # if a page ended before it


@pytest.mark.parametrize("page", GUIDES)
def test_the_commands_of_a_page_run(page, walked):
    if page == "docs/operating.md" and (taken(PORT) or taken(PORT + 1)):
        pytest.skip(f"something listens at {HOST}:{PORT}, where the page starts a server")
    assert walked(page)


def test_the_readme_prints_what_it_says(walked):
    """Its remarks beside the quickstart's commands are what these commands find in the record."""
    folder = walked("README.md")
    (block,) = [block for block in blocks("README.md", "sh") if "export results/quickstart" in block]
    exported, kept, ranked = (line.partition("# ")[2] for line in lines(block))
    assert exported in (folder / "told.txt").read_text(encoding="utf-8")
    assert kept == f"kept {len(pd.read_csv(folder / 'other.csv'))}"
    assert ranked.split(", ") == list(pd.read_csv(folder / "best.csv")["formula"])


def test_make_does_what_the_readme_says(walked):
    """The targets that README names, from their recipes; continuous integration calls the same."""
    told = (walked("README.md") / "told.txt").read_text(encoding="utf-8")
    for recipe in ("discovery-loop run quickstart --results results/quickstart", "-m pytest -n"):
        assert recipe in told
    assert re.search("^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert re.search("^run:.*installed-sevennet", makefile, re.MULTILINE)


def test_a_guide_leaves_what_it_says(walked):
    assert list(pd.read_csv(walked("docs/tables.md") / "list.csv")["formula"]) == ["MgO"]
    assert len(pd.read_csv(walked("README.md") / "moduli.csv")) >= 1
    taken_in = pd.read_csv(walked("docs/dft.md") / "results" / "my-campaign" / "ranked.csv")
    assert list(taken_in["handoff_band_gap"].dropna()) == [1.5]


def test_what_runs_elsewhere_is_shown_somewhere():
    shown = [line for page in PAGES for block in blocks(page, "sh") for line in lines(block)]
    assert not [start for start in ELSEWHERE if not any(line.startswith(start) for line in shown)]
