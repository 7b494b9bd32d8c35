"""Fixtures shared by all tests."""

from __future__ import annotations

import os

import pytest

import flows  # noqa: F401  (thread defaults must stand before numpy and torch are imported)

ROOMS_WITHOUT_WARNINGS = ("test_loop_", "test_surrogates_")
NOT_LOOKED_AT = ("test_loop_cif.py", "test_loop_report.py")


def pytest_collection_modifyitems(items):
    """Warnings are errors (pyproject.toml) in the tests of the rooms in which every warning has been looked at."""
    for item in items:
        if not item.path.name.startswith(ROOMS_WITHOUT_WARNINGS) or item.path.name in NOT_LOOKED_AT:
            item.add_marker(pytest.mark.filterwarnings("default"))


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
