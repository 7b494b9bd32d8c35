"""Goal and space said once: reward, selection, ranking, report and record of a whole campaign say the same."""

from __future__ import annotations

import csv
import json
import re
import sys

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import loop.report.page
from flows.cli import app
from flows.config import read_config
from loop.goal import Goal
from loop.io.crystals import read_crystals
from tests.fakes import ANIONS, CATIONS
from tests.packages import install

CODE = """
from pymatgen.core import Element
from loop.registry import GeneratorKind, OracleKind
from tests.fakes import FakeGenerator
from tests.test_flows_goal import GapOracle

class Pairs(FakeGenerator):
    def __init__(self, request):
        super().__init__(bias=0.05)
        self.conditions = request.conditions
    def propose(self, n, *, seed, round):
        found = super().propose(4 * n, seed=seed, round=round)
        asked = self.conditions
        elements = [{Element(str(e)).Z for e in c.structure.composition} for c in found]
        return [c for c, z in zip(found, elements) if asked.required <= z <= asked.allowed][:n]

class Gaps(GapOracle):
    def __init__(self, options):
        super().__init__()

ORACLE = OracleKind(Gaps, lambda options: ("e_above_hull", "energy", "bulk_modulus", "band_gap"))
GENERATOR = GeneratorKind(Pairs)
"""
STABLE = 0.3
SMALL = {
    "campaign": {"name": "x", "seed": 3, "pool": 30, "shadow_share": 0.25},
    "oracle": {"screen": "chgnet", "label": "gaps", "workers": 1},
    "budget": {"rounds": 1, "label": 5, "baseline": 8},
    "generator": {"kind": "pairs"},
    "novelty": {"reference": "none"},
}
LEARNED = {"finetune": {"iterations": 1, "batch_size": 8, "minibatch_size": 8}}
CASES = {
    "eV": {"goal": {"maximise": "band_gap"}, "space": {"forbidden": ["Ba"]}},
    "window": {"goal": {"target": {"band_gap": 3.4, "within": [3.0, 4.0]}}, "space": {"required": ["O"]}},
    "two": {"goal": {"maximise": "band_gap", "minimise": "bulk_modulus"},
            "space": {"allowed": [*CATIONS, *ANIONS[:4]]}},
    "known": {
        "goal": {"minimise": "band_gap"}, "space": {"allowed": ["Na", "K", "Mg", "Ca", "O", "Cl"]},
        "campaign": SMALL["campaign"] | {"allow_known": True}, "novelty": {"reference": "shipped"},
    },
    "system": {
        "goal": {"maximise": "band_gap"}, "space": {"chemical_system": "Mg-O", "max_atoms": 10}, "generator": LEARNED,
        "campaign": SMALL["campaign"] | {"pool": 12},
    },
}  # fmt: skip
GOALS = {
    "eV": (Goal("band_gap"),),
    "window": (Goal("band_gap", "target", 3.4, (3.0, 4.0)),),
    "two": (Goal("band_gap"), Goal("bulk_modulus", "minimise")),
    "known": (Goal("band_gap", "minimise"),),
    "system": (Goal("band_gap"),),
}
UNITS = {"band_gap": "eV", "bulk_modulus": "GPa"}


@pytest.fixture(scope="module", params=CASES)
def ran(request, tmp_path_factory):
    """A campaign from its YAML to its results, by the command line."""
    folder, name = tmp_path_factory.mktemp(request.param), request.param
    install(folder, "gap-world", "gap_world", CODE, {
        "oracles": {"gaps": "gap_world:ORACLE"}, "generators": {"pairs": "gap_world:GENERATOR"}})  # fmt: skip
    said = {**SMALL, **CASES[name]}
    said["goal"] = {"stable": {"e_above_hull": STABLE}, **said["goal"]}
    (folder / "c.yaml").write_text(yaml.safe_dump(said))
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(folder))
        patched.delitem(sys.modules, "gap_world", raising=False)
        patched.setattr(loop.report.page, "_sections", lambda *_: [])  # figures take seconds
        config = read_config(folder / "c.yaml")
        done = CliRunner().invoke(
            app, ["run", str(folder / "c.yaml"), "--results", str(folder / "out"), "-q", "--json"]
        )
        shown = CliRunner().invoke(app, ["status", str(folder / "out")])
    assert done.exit_code == 0, done.stderr
    out = folder / "out"
    pools = [c.structure for path in sorted((out / "pools").iterdir()) for c in _pool(path)]
    return {
        "name": name, "config": config, "goals": GOALS[name], "summary": json.loads(done.stdout), "pools": pools,
        "rows": list(csv.DictReader((out / "ranked.csv").read_text().splitlines())), "status": shown.stdout,
        "report": (out / "report.html").read_text(), "record": json.loads((out / "record.json").read_text()),
        "cifs": read_crystals(out / "cifs"),
    }  # fmt: skip


def _pool(path):
    from loop.io.files import read_candidates

    return read_candidates(path)


def test_reward_and_selection_want_the_goal(ran):
    config = ran["config"]
    assert config.campaign.goals == ran["goals"]
    terms = {term.property: term for term in config.reward.terms}
    assert terms["e_above_hull"].source == "hull"
    for goal, objective in zip(ran["goals"], config.selection.objectives, strict=True):
        term = terms[goal.name]
        better = {"maximise": 1, "minimise": -1}.get(goal.kind)
        if better is None:
            inside, outside = (term.desirability(np.array(x)) for x in ([3.0, 3.4, 4.0], [2.5, 4.5]))
            assert inside.min() > outside.max()
            assert (objective.goal, objective.target) == ("target", 3.4)
        else:
            slope = np.diff(term.desirability(np.linspace(term.low, term.high, 9))) * better
            assert (slope > 0).all()
            assert objective.goal == goal.kind
        assert objective.name == goal.name
    limits = {(item.name, item.at_least, item.at_most) for item in config.selection.constraints}
    assert ("e_above_hull", None, STABLE) in limits
    if ran["name"] == "window":
        assert {("band_gap", 3.0, None), ("band_gap", None, 4.0)} <= limits
    assert {goal.name for goal in ran["goals"]} <= {item.name for item in config.surrogate.gp.properties}


def test_ranking_record_report_and_console_tell_the_goal(ran):
    rows, summary = ran["rows"], ran["summary"]
    finds = [row for row in rows if row["group"] == "find"]
    assert all(float(row["e_above_hull"]) <= STABLE for row in finds)
    assert summary == ran["record"]["summary"]
    assert summary["stable_new"] == len(finds) == sum(row["group"] == "find" for row in rows[: len(finds)])
    first = ran["goals"][0]
    values = [float(row[first.name]) for row in finds]
    if len(ran["goals"]) == 1:
        assert values == sorted(values, key=first.badness)
    for goal in ran["goals"]:
        assert summary["units"][goal.name] == UNITS[goal.name]
        for place in (summary["goal"], ran["status"].replace("\n", " "), ran["report"]):
            assert {"maximise": "maximise", "minimise": "minimise", "target": "3"}[goal.kind] in place
            assert goal.name.replace("_", " ") in place
    if finds:
        assert summary["best_objective"] == pytest.approx(values[0])
        assert summary["top"][0]["id" if "id" in summary["top"][0] else "candidate_id"] == finds[0]["candidate_id"]


def test_the_space_holds_everywhere_and_is_told(ran):
    sampling = ran["config"].generator.proposals.conditions
    assert ran["config"].generator.finetune.conditions == sampling
    crystals = [*ran["pools"], *ran["cifs"].structures]
    assert ran["pools"]
    for crystal in crystals:
        numbers = {element.Z for element in crystal.composition}
        assert sampling.required <= numbers <= sampling.allowed
    assert "chgnet rewards and screens; gaps labels" in ran["report"]
    told = ran["summary"]["space"]
    assert told in ran["report"].replace("&#39;", "'")
    (said,) = [v for k, v in CASES[ran["name"]]["space"].items() if k != "max_atoms"]
    assert (said if isinstance(said, str) else ", ".join(said)) in told


def test_known_crystals_are_labelled_only_where_they_are_allowed(ran):
    known = [row for row in ran["rows"] if row["group"] == "known"]
    assert all(row["new"] == "False" for row in known)
    assert ran["summary"]["stable_known"] == len(known)
    if ran["name"] == "known":
        assert known
        assert ran["summary"]["known"][0]["formula"] == known[0]["formula"]
        assert re.search(r"mp-\d+", known[0]["match"])
    else:
        assert (
            not [row for row in ran["rows"] if row["novelty"] == "known"] if "novelty" in ran["rows"][0] else not known
        )
