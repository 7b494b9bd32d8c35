"""A potential that neither rewards nor labels judges the finds, on a hull of its own."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import yaml
from pymatgen.core import Lattice, Structure

from flows.build import Builder
from flows.checks import problems
from flows.config import read_config
from flows.evaluation import report
from flows.evaluation.report import EvaluationConfig, second_opinion, told
from flows.facts import facts_of
from flows.forecast import forecast
from flows.journal import Journal
from flows.outcome import summarise
from flows.preflight import missing_parts
from loop.campaign import Campaign
from loop.errors import ConfigError
from loop.history import SECOND_OPINION
from loop.ranking import FIND
from loop.report import columns
from loop.report.export import ranked_rows
from loop.report.page import write_report
from loop.report.words import not_shown
from loop.settings import CampaignSettings
from loop.store import Store
from loop.tiers import Tier
from loop.values import OK, Candidate, EnergyType, Evaluation, Quantity, failed
from oracles.opinion import OpinionConfig, require_other
from tests.fakes import best_length, e_above_hull, fake_components, rocksalt

EMT = "ase.calculators.emt:EMT"
SETTINGS = CampaignSettings(name="judged", rounds=1, pool=30, budget=8, chunk=4, seed=2, threshold=0.1)


class Doubtful:
    """Puts oxides above its hull, cannot compute lithium, and agrees otherwise."""

    name, settings_hash = "mlip-other@1", "2" * 8

    def __init__(self):
        self.batches = []

    def evaluate(self, candidates, progress=None):
        if progress is not None:
            progress(len(candidates), len(candidates))
        self.batches.append([candidate.id for candidate in candidates])
        return [self._judge(candidate) for candidate in candidates]

    def _judge(self, candidate):
        made = (candidate.id, self.name, self.settings_hash)
        if "Li" in candidate.structure.composition:
            return Evaluation(*made, failed("no-energy"), message="no lithium here")
        above = e_above_hull(candidate.structure) + (0.5 if "O" in candidate.structure.composition else 0.0)
        return Evaluation(*made, OK, {"e_above_hull": Quantity(above, "eV/atom")}, EnergyType("other", "PBE", "none"))


@pytest.fixture
def judged(tmp_path):
    other = Doubtful()
    tier = Tier(SECOND_OPINION, other, best=100, only_stable=True, together=True)
    components = replace(fake_components(), tiers=(tier,))
    with Campaign(SETTINGS, components, Store(tmp_path / "campaign.db"), tmp_path) as campaign:
        campaign.run()
        yield campaign.history, other


def test_all_that_is_stable_is_judged_and_nothing_else(judged):
    history, other = judged
    asked = set(history.tiers[SECOND_OPINION].labels)
    stable = {label.candidate.id for label in history.labels() if label.is_stable(SETTINGS)}
    assert asked == stable
    assert 0 < len(asked) < len(history.labels())
    assert max(map(len, other.batches)) > 1  # together, in chunks of the campaign


def test_list_summary_and_report_say_who_agrees(judged, tmp_path):
    history, _ = judged
    rows = ranked_rows(history)
    finds = columns.in_group(rows, FIND)
    name = "second_opinion_e_above_hull"
    said = {row["candidate_id"]: row.get(name) for row in finds}
    agreed = [row for row in finds if row.get(name) is not None and row[name] <= SETTINGS.threshold]
    unjudged = [row for row in finds if "Li" in row["formula"]]
    doubted = [row for row in finds if "O" in row["formula"] and row not in unjudged]
    assert len(agreed) == len(finds) - len(unjudged) - len(doubted)
    assert agreed
    assert doubted
    summary = summarise(history)
    assert summary["second_opinions"] == sum(value is not None for value in said.values())
    assert summary["stable_by_both"] == len(agreed)
    assert summary["units"][name] == "eV/atom"
    assert all(name in row for row in summary["top"])
    head = columns.columns(history)[name]
    assert head == "second opinion E above hull (eV/atom)"
    listed = pd.read_csv(tmp_path / "ranked.csv").set_index("candidate_id")[name]
    assert {key: value for key, value in said.items() if value is not None} == pytest.approx(
        listed[[key for key, value in said.items() if value is not None]].to_dict(), abs=1e-6
    )
    items = " ".join(not_shown(history, rows, []))
    assert f"{len(finds)} finds {summary['second_opinions']} were judged by mlip-other@1, too" in items
    assert (
        f"{len(agreed)} are stable there as well. The other {len(finds) - len(agreed)} rest on fake@1 alone." in items
    )
    assert "No find was checked by a more expensive method" in items  # another potential is none
    page = write_report(history, tmp_path).read_text()
    assert head in page
    assert "second opinion by mlip-other@1" in page


def test_a_campaign_without_one_says_so(tmp_path):
    with Campaign(SETTINGS, fake_components(), Store(tmp_path / "campaign.db"), tmp_path) as campaign:
        campaign.run()
        history = campaign.history
    assert columns.opinions(history, ranked_rows(history)) == {}
    assert "second_opinions" not in summarise(history)
    assert "No second opinion of another potential is recorded." in not_shown(history, ranked_rows(history), [])


def test_samples_are_sun_by_both(tmp_path):
    """Of four metastable crystals one is not by the other potential, one it cannot compute; one is not new."""
    names = [("Na", "Cl"), ("Mg", "O"), ("Li", "Cl"), ("K", "Br"), ("Rb", "I")]
    crystals = [rocksalt(*name, 1.0) for name in names]
    crystals = [rocksalt(*name, best_length(one)) for name, one in zip(names, crystals, strict=True)]
    flags = {
        "valid": True,
        "unique": True,
        "new": True,
        "metastable": True,
        "stable": False,
        "sun": False,
        "msun": True,
    }
    part = pd.DataFrame({**flags, "e_above_hull": 0.05, "sparse_hull": False}, index=range(3, 8))
    part.loc[6, ["new", "msun"]] = False
    part.loc[7, ["metastable", "msun"]] = False
    part.loc[7, "e_above_hull"] = 0.2
    other = Doubtful()
    told_of = []
    asked = dict(zip(part.index, crystals, strict=True))
    found = second_opinion(part, asked, other, progress=lambda *done: told_of.append(done))
    assert told_of == [(4, 4)]
    assert (found["asked"], found["judged"]) == (4, 3)  # rubidium iodide is not even metastable by the first
    assert found["metastable"]["count"] == 2
    assert found["msun"]["count"] == 1
    assert found["msun"]["share"] == pytest.approx(1 / 5)
    assert found["stable"]["count"] == 0
    assert found["alone"]["msun"]["count"] == 1
    assert part["second_opinion"].isna().tolist() == [False, False, True, False, True]
    results = {"samples": 5, "readable": 5, "relaxed": {"crystals": 5, "statuses": {"ok": 5}, "second_opinion": found,
                                                       "median_energy_gained": 0.1}}  # fmt: skip
    lines = told(results)
    assert lines["second opinion"] == "mlip-other@1: 3 of 4 judged (within 0.1 eV/atom by the first); by both:"
    assert lines["relaxed, by both: msun"].startswith("0.200 (")
    assert lines["relaxed, by both: msun"].endswith("1 of 5")
    assert part["second_opinion_message"].notna().all()
    for below in (0.05, float("nan")):
        with pytest.raises(ConfigError, match="expected second_below of at least"):
            EvaluationConfig(second_below=below)
    # asked about more than the first calls metastable, it has a verdict of its own
    wider = second_opinion(part, dict(zip(part.index, crystals, strict=True)), other, below=0.25)
    assert (wider["asked"], wider["judged"], wider["asked_below"]) == (5, 4, 0.25)
    assert wider["metastable"]["count"] == 2
    assert wider["alone"]["metastable"]["count"] == 3


def test_second_opinions_survive_a_kill(tmp_path, monkeypatch):
    """Killed after the first part; the second run asks about what is missing alone, and says the same."""
    monkeypatch.setattr(report, "OPINIONS", 1)
    monkeypatch.setattr(report, "cores", lambda: 2)
    names = [("Na", "Cl"), ("Mg", "O"), ("Li", "Cl"), ("K", "Br"), ("Rb", "I")]
    crystals = dict(enumerate(rocksalt(*name, 3.0) for name in names))
    flags = dict.fromkeys(("valid", "unique", "new", "metastable", "stable", "sun", "msun"), True)
    part = pd.DataFrame({**flags, "e_above_hull": 0.05, "sparse_hull": False}, index=range(5))
    whole = part.copy()
    expected = second_opinion(whole, crystals, Doubtful())

    class Killed(Doubtful):
        def evaluate(self, candidates, progress=None):
            if self.batches:
                raise KeyboardInterrupt
            return super().evaluate(candidates, progress)

    with pytest.raises(KeyboardInterrupt), Journal(tmp_path / "kept", {}) as journal:
        second_opinion(part, crystals, Killed(), journal=journal)
    other, told_of = Doubtful(), []
    with Journal(tmp_path / "kept", {}) as journal:
        assert journal.found == 2
        found = second_opinion(part, crystals, other, progress=lambda *done: told_of.append(done), journal=journal)
    assert [len(batch) for batch in other.batches] == [2, 1]  # lithium, which it cannot compute, is in the second part
    assert told_of == [(4, 5), (5, 5)]
    assert found == expected
    pd.testing.assert_frame_equal(part, whole)
    assert not list(tmp_path.iterdir())  # complete: nothing is kept


WEIGHTS = "a" * 64


@pytest.mark.parametrize(
    ("judge", "opinion", "refused"),
    [
        (EnergyType("net", "PBE", "MP2020", WEIGHTS), EnergyType("net", "PBE", "none", WEIGHTS), True),
        (EnergyType("net", "PBE", "none", WEIGHTS), EnergyType("net", "r2SCAN", "none", WEIGHTS), True),  # heads of one
        (EnergyType("MACE", "PBE", "none", WEIGHTS), EnergyType("MACE", "PBE", "none", "b" * 64), False),
        (EnergyType("EMT", "none", "none"), EnergyType("EMT", "none", "none"), True),
        (EnergyType("EMT", "none", "none"), EnergyType("LJ", "none", "none"), False),
    ],
)  # fmt: skip
def test_the_same_weights_are_no_second_opinion(judge, opinion, refused):
    if not refused:
        require_other("labels", judge, opinion)
        return
    with pytest.raises(ConfigError, match="labels already, so it would agree with itself"):
        require_other("labels", judge, opinion)


@pytest.mark.parametrize(("potential", "role"), [("chgnet", "rewards and screens"), (EMT, "labels")])
def test_validate_refuses_who_rewards_or_labels(potential, role):
    options = {"oracle.screen.potential": "chgnet", "oracle.mlip.potential": EMT, "oracle.mlip.references": "demand"}
    config = read_config("smoke", {**options, "oracle.second_opinion.potential": potential})
    wrong = [line for line in missing_parts(config) if "second_opinion" in line]
    assert len(wrong) == 1
    assert f"{role} already" in wrong[0]


def test_by_name_alone(tmp_path):
    settings = {"campaign": {"name": "x"}, "oracle": {"screen": "chgnet", "label": "sevennet", "second_opinion": EMT}}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(settings))
    config = read_config(str(path))
    assert config.oracle.second_opinion == OpinionConfig(EMT)
    assert forecast(config)["second_opinion"] == f"{EMT}, on what is stable"
    assert config.oracle.second_opinion.oracle_config().bulk is None
    changed = read_config(str(path), {"oracle.second_opinion.potential": "chgnet", "oracle.second_opinion.best": 0})
    assert changed.oracle.second_opinion == OpinionConfig("chgnet", best=0)
    assert any("oracle.second_opinion.best: expected" in line for line in problems(changed))


def test_it_judges_on_its_own_hull(tmp_path):
    ledger = str(tmp_path / "phases.db")
    config = read_config(
        "smoke", {"oracle.second_opinion.potential": EMT, "oracle.second_opinion.phases": ledger, "oracle.workers": 1}
    )
    tier = next(tier for tier in Builder(config).tiers if tier.name == SECOND_OPINION)
    assert tier.only_stable
    assert tier.oracle.on_demand
    sites = [[0, 0, 0], [0.5, 0.5, 0.5]]
    label = tier.oracle.evaluate([Candidate(Structure(Lattice.tetragonal(2.8, 3.6), ["Cu", "Au"], sites))])[0]
    assert label.ok
    assert label.energy_type.method == "EMT"
    assert abs(label.value("e_above_hull")) < 0.1
    assert {"Cu", "Au"} & {phase.formula for phase in tier.oracle.hull.phases(["Cu", "Au"])}
    assert "bulk_modulus" not in label.properties


def test_the_head_of_a_report_names_it(judged):
    history, _ = judged
    history.about["config"] = {"oracle": {"kind": "mlip", "mlip": {"potential": "sevennet"},
                                          "second_opinion": {"potential": "sevennet:mf-0", "best": 100}}}  # fmt: skip
    told = dict(facts_of(history))["Potentials"]
    assert told.endswith("sevennet labels; sevennet:mf-0 gives a second opinion on what is stable")
