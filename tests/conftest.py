"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import os

import pytest

import flows  # noqa: F401  (thread defaults must stand before numpy and torch are imported)

# Prefect leaves sockets and pipes to the garbage collector; servers outlive what started them
LEAVE_THINGS_OPEN = ("test_flows_server.py",)
OWN_GARBAGE = (*LEAVE_THINGS_OPEN, "test_flows_scale.py")
LEFT_OPEN = ("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


LONGEST = ("test_docs_guides.py", "test_docs.py", "test_plugin.py")  # minutes each: begun last, one core waits for them


def pytest_collection_modifyitems(items):
    """Warnings are errors (pyproject.toml) in every test, but for what other libraries leave open; long files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    for item in items:
        if item.path.name in LEAVE_THINGS_OPEN:
            for rule in LEFT_OPEN:
                item.add_marker(pytest.mark.filterwarnings(rule))


@pytest.fixture(autouse=True)
def _own_garbage(request):
    """What a test of these files leaves open is collected there and then, not in some later test."""
    yield
    if request.node.path.name in OWN_GARBAGE:
        gc.collect()


@pytest.fixture(autouse=True, scope="session")
def _own_homes(tmp_path_factory):
    """Prefect's results and this program's state go to a temporary folder: a test must not meet an earlier one's."""
    home = tmp_path_factory.mktemp("homes")
    wanted = {"PREFECT_HOME": str(home / "prefect"), "DISCOVERY_LOOP_HOME": str(home / "state")}
    wanted["DISCOVERY_LOOP_PHASES"] = str(home / "phases.db")
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
