from __future__ import annotations

import threading
from dataclasses import replace
from itertools import count, islice

import numpy as np
import pytest

from loop.campaign import Campaign
from loop.errors import ConfigError, StoreError
from loop.history import History
from loop.hull import HullEntry
from loop.novelty import NoveltyIndex
from loop.ranking import ranked
from loop.running import InTurn
from loop.settings import STAGES, CampaignSettings
from loop.stages import Finetuned, Selected
from loop.store import Store
from loop.values import Quantity
from tests.fakes import FakeAcquisition, FakeGenerator, FakeOracle, fake_components

SETTINGS = CampaignSettings(name="test", rounds=2, pool=24, budget=6, chunk=2, seed=1)
TOTAL = 18  # labels that these settings buy


def open_campaign(tmp_path, settings=SETTINGS, store=None, **parts):
    store = store or Store(tmp_path / "campaign.db")
    return Campaign(settings, replace(fake_components(), **parts), store, tmp_path)


def run(tmp_path, settings=SETTINGS, **parts):
    with open_campaign(tmp_path, settings, **parts) as campaign:
        campaign.run()
        return campaign.history, campaign.components.oracle


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted campaign: its ranked list and its history."""
    folder = tmp_path_factory.mktemp("whole")
    history, oracle = run(folder)
    return (folder / "ranked.csv").read_text(), history, oracle


def test_a_report_keeps_the_phases_that_its_diagrams_need(tmp_path):
    parts = replace(
        fake_components(), phases=lambda system: [HullEntry(name, -1.0, f"known {name}") for name in system.split("-")]
    )
    with Store(tmp_path / "campaign.db") as store, Campaign(SETTINGS, parts, store, tmp_path) as campaign:
        campaign.run()
        history = History.load(store, SETTINGS.name)
    best = [label.candidate.structure.chemical_system for label in ranked(history.labels(), history.settings)]
    assert list(history.phases()) == list(dict.fromkeys(best))[:6]
    system = best[0]
    assert history.phases()[system] == [HullEntry(name, -1.0, f"known {name}") for name in system.split("-")]
    assert 0 < history.begun <= history.latest


def test_a_campaign_learns_within_its_budget(whole):
    _, history, oracle = whole
    reports = history.reports()
    assert [report.round for report in reports] == [0, 1, 2]
    assert reports[-1].metrics["hit_rate"] > reports[0].metrics["hit_rate"]
    assert len(oracle.evaluated) == len(set(oracle.evaluated)) == history.paid == TOTAL
    arms = [label.pick.arm for label in history.labels()]
    assert {arm: arms.count(arm) for arm in arms} == {"baseline": 6, "engine": 8, "shadow": 4}


def test_the_funnel_narrows(whole):
    for report in whole[1].reports():
        steps = [
            "asked",
            "sampled",
            "accepted",
            "unique",
            "new",
            "selected",
            "labelled",
            "usable",
            "stable",
            "stable_new",
        ]
        counts = [report.funnel[step] for step in steps]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] == SETTINGS.pool


def test_the_baseline_round_is_untuned_and_random(whole):
    _, history, _ = whole
    assert history.record(0, Finetuned).rows == ()
    assert history.record(0, Selected).random
    assert {label.candidate.origin.policy for label in history.labels(0)} == {"bias0.4000"}


def test_the_engine_picks_what_the_surrogate_prefers(whole):
    _, history, _ = whole
    predictions = history.record(2, Selected).pool_mean["e_above_hull"]
    picked = sorted(pick.mean["e_above_hull"] for pick in history.picks(2) if pick.arm == "engine")
    assert max(picked) <= sorted(predictions)[len(picked) + 1]  # up to the two that the shadow arm may have taken


@pytest.mark.parametrize("label", [0, 7, 17])
def test_killed_while_labelling_it_ends_as_if_it_had_not(tmp_path, whole, label):
    oracle = FakeOracle(fail_at=label)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, oracle=oracle)
    history, later = run(tmp_path)
    assert (tmp_path / "ranked.csv").read_text() == whole[0]
    assert len(oracle.evaluated) + len(later.evaluated) - TOTAL < SETTINGS.chunk  # only the chunk it was at
    assert history.paid == TOTAL


def test_interrupted_while_it_judges_relaxed_crystals_the_same_object_goes_on(tmp_path, whole, monkeypatch):
    """As in a notebook. What had entered the index once made crystals copies of themselves: finds were lost."""
    calls, add = count(), NoveltyIndex.add

    def interrupted(index, structures, ids):
        add(index, structures, ids)
        if next(calls) == 4:  # in the middle of the first round
            raise KeyboardInterrupt

    monkeypatch.setattr(NoveltyIndex, "add", interrupted)
    with open_campaign(tmp_path) as campaign:
        with pytest.raises(KeyboardInterrupt):
            campaign.run()
        campaign.run()
    assert (tmp_path / "ranked.csv").read_text() == whole[0]


@pytest.mark.parametrize("iteration", [0, 3])
def test_killed_while_learning_it_ends_as_if_it_had_not(tmp_path, whole, iteration):
    cut, later = FakeGenerator(fail_at=iteration), FakeGenerator()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, generator=cut)
    history, oracle = run(tmp_path, generator=later)
    assert cut.calls + later.calls == 4  # no iteration is run again
    assert (tmp_path / "ranked.csv").read_text() == whole[0]
    assert history.learning_rows() == whole[1].learning_rows()
    assert len(set(oracle.evaluated)) == len(oracle.evaluated)


@pytest.mark.parametrize("stage", [1, 3, 8, 10, 15])
def test_a_new_process_after_any_stage_goes_on_from_there(tmp_path, whole, stage):
    with open_campaign(tmp_path) as campaign:
        steps = [(step.round, step.stage) for step in islice(campaign.steps(), stage)]
    assert steps == [(round, name) for round in range(3) for name in STAGES][:stage]
    run(tmp_path)
    assert (tmp_path / "ranked.csv").read_text() == whole[0]


def test_a_finished_stage_is_not_run_again(tmp_path):
    with open_campaign(tmp_path) as campaign:
        steps = list(islice(campaign.steps(), 6))
        before = len(campaign.store.events("test"))
        assert [campaign.run_stage(0, stage) for stage in STAGES] == steps
        assert len(campaign.store.events("test")) == before


@pytest.mark.parametrize(("round", "stage"), [(0, "propose"), (1, "finetune"), (0, "no such stage")])
def test_stages_have_an_order(tmp_path, round, stage):
    with open_campaign(tmp_path) as campaign, pytest.raises(ValueError, match=stage):
        campaign.run_stage(round, stage)


def test_labels_may_come_from_several_threads(tmp_path, whole):
    class Threads(InTurn):
        def label(self, campaign, round, batches):
            threads = [threading.Thread(target=campaign.label, args=(batch,)) for batch in batches]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    with Campaign(SETTINGS, fake_components(), Store(tmp_path / "campaign.db"), tmp_path, runner=Threads()) as campaign:
        campaign.run()
    assert (tmp_path / "ranked.csv").read_text() == whole[0]


def test_campaigns_that_share_a_ledger_share_labels(tmp_path):
    store = Store(tmp_path / "shared.db")
    with open_campaign(tmp_path / "one", store=store) as first:
        first.run()
    with open_campaign(tmp_path / "two", replace(SETTINGS, name="two"), store=store) as second:
        second.run()
        assert second.components.oracle.evaluated == []
        assert (first.history.paid, second.history.paid) == (TOTAL, 0)
    lists = [(tmp_path / name / "ranked.csv").read_text() for name in ("one", "two")]
    assert lists[0] == lists[1]


def test_other_settings_or_another_oracle_make_another_campaign(tmp_path):
    run(tmp_path, replace(SETTINGS, rounds=0))
    with pytest.raises(ConfigError, match=r"seed=1 \(now 2\)"):
        open_campaign(tmp_path, replace(SETTINGS, seed=2))
    oracle = FakeOracle()
    oracle.settings_hash = "tighter"
    with pytest.raises(StoreError, match="labels of two oracles"):
        open_campaign(tmp_path, oracle=oracle)
    history, _ = run(tmp_path, replace(SETTINGS, rounds=1))  # a refusal leaves the folder free; more rounds are fine
    assert len(history.reports()) == 2


def test_one_writer_a_folder(tmp_path):
    with open_campaign(tmp_path), pytest.raises(StoreError, match="is being written by process"):
        open_campaign(tmp_path)
    open_campaign(tmp_path).close()


@pytest.mark.parametrize("text", ['{"owner": "HOST|999999|1.00|dead", "since": 0}', '{"owner": "HO', ""])
def test_the_lock_of_a_dead_process_is_taken_over(tmp_path, text):
    import socket

    (tmp_path / ".lock").write_text(text.replace("HOST", socket.gethostname()))
    open_campaign(tmp_path).close()


def test_calls_are_never_exceeded(tmp_path):
    history, _ = run(tmp_path, replace(SETTINGS, max_calls=10, rounds=5))
    assert history.paid == 10
    assert "max_calls is 10" in history.stopped
    assert len(history.reports()) == 2


def test_it_stops_without_progress(tmp_path):
    class Sterile(FakeGenerator):
        def propose(self, n, *, seed, round):
            return super().propose(2 if round == 0 else 0, seed=seed, round=round)

    history, _ = run(tmp_path, replace(SETTINGS, patience=2, rounds=9, stop_below={}), generator=Sterile())
    assert len(history.reports()) == 3
    assert "patience is 2" in history.stopped
    assert [report.funnel["selected"] for report in history.reports()] == [2, 0, 0]


def test_it_stops_when_the_policy_drifts(tmp_path):
    class Collapsed(FakeGenerator):
        def propose(self, n, *, seed, round):
            made = super().propose(n, seed=seed, round=round)
            return made if round == 0 else made[:1] * n

    limits = {"stop_below": {"uniqueness": 0.2}, "rounds": 5}
    history, _ = run(tmp_path, replace(SETTINGS, **limits), generator=Collapsed())
    assert len(history.reports()) == 2
    assert history.stopped == "drift: uniqueness is 0.0417, the limit is 0.2"
    history, _ = run(tmp_path, replace(SETTINGS, stop_below={}, rounds=2), generator=Collapsed())  # resumed
    assert len(history.reports()) == 3


def test_it_stops_after_its_hours(tmp_path):
    history, _ = run(tmp_path, replace(SETTINGS, max_hours=1e-9))
    assert len(history.reports()) == 1
    assert "max_hours" in history.stopped


def test_without_a_usable_label_the_next_round_is_random(tmp_path):
    class Broken(FakeOracle):
        def _evaluate(self, candidate):
            found = super()._evaluate(candidate)
            return replace(found, status="failed:exploded", properties={}, structure=None)

    history, _ = run(tmp_path, oracle=Broken())
    assert history.record(1, Selected).random
    assert [report.funnel["usable"] for report in history.reports()] == [0, 0, 0]
    assert history.reports()[-1].metrics["hit_rate"] == 0.0


def test_nothing_is_labelled_twice_nor_proposed_again(whole):
    ids = [pick.candidate_id for pick in whole[1].picks()]
    assert len(ids) == len(set(ids))
    formulas = [label.candidate.formula for label in whole[1].labels()]
    assert len(formulas) == len(set(formulas))  # in this world a formula is one crystal up to a scale


def test_an_oracle_that_answers_for_others_is_refused(tmp_path):
    class Confused(FakeOracle):
        def evaluate(self, candidates):
            return super().evaluate(candidates)[::-1]

    with open_campaign(tmp_path, oracle=Confused()) as campaign, pytest.raises(StoreError, match="was asked for"):
        campaign.run()
    assert run(tmp_path)[0].paid == TOTAL  # its claims were given back


def test_an_acquisition_that_repeats_itself_is_refused(tmp_path):
    class Stuck(FakeAcquisition):
        def select(self, candidates, surrogate, k, *, seed):
            return [0] * k

    with open_campaign(tmp_path, acquisition=Stuck()) as campaign, pytest.raises(ValueError, match="distinct"):
        campaign.run()


def test_a_lost_pool_is_one_clear_message(tmp_path):
    with open_campaign(tmp_path) as campaign:
        campaign.run_stage(0, "finetune")
        campaign.run_stage(0, "propose")
        (tmp_path / "pools/round_000.jsonl.gz").write_bytes(b"\x1f\x8b torn")
        with pytest.raises(StoreError, match="missing or damaged"):
            campaign.run_stage(0, "select")


def test_finds_are_judged_anew_on_the_newest_hull(tmp_path):
    def higher(candidates, evaluations):
        """As if every find had pulled the hull down by 1 meV/atom."""
        n = len(evaluations)
        return [
            e.with_properties(e_above_hull=Quantity(e.value("e_above_hull") + 1e-3 * n, "eV/atom")) for e in evaluations
        ]

    history, _ = run(tmp_path, rehull=higher)
    labels = [label for label in history.labels() if label.first.ok]
    rise = [label.evaluation.value("e_above_hull") - label.first.value("e_above_hull") for label in labels]
    assert np.allclose(rise, 1e-3 * len(labels))


def test_history_is_a_fold_over_the_ledger(tmp_path):
    with open_campaign(tmp_path) as campaign:
        campaign.run()
        live = campaign.history
    with Store(tmp_path / "campaign.db", create=False) as store:
        read = History.load(store, "test")
        with pytest.raises(StoreError, match="holds no campaign 'other'; there are: test"):
            History.load(store, "other")
    assert read.done == live.done
    assert [label.candidate.id for label in ranked(read.labels(), SETTINGS)] == [
        label.candidate.id for label in ranked(live.labels(), SETTINGS)
    ]
    assert read.next_stage == (3, "finetune")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "budget must be at least 1"),
        ({"shadow_share": 1.0}, "shadow_share"),
        ({"name": " "}, "name"),
        ({"max_calls": 0}, "max_calls"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        CampaignSettings(**change)


def test_stages_and_rounds_never_share_a_seed():
    seeds = [CampaignSettings(seed=s).seed_for(r, stage) for s in range(5) for r in range(20) for stage in STAGES]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**31 for seed in seeds)


def test_a_list_that_a_kill_left_behind_is_brought_up_to_date(tmp_path):
    """Killed after the last report was recorded, before the list was written: the older list still lay there."""
    settings = CampaignSettings(name="late", rounds=1, pool=12, budget=4)
    listed, whole = tmp_path / "ranked.csv", ""
    for _ in range(2):
        with (
            Store(tmp_path / "campaign.db") as store,
            Campaign(settings, fake_components(), store, tmp_path) as campaign,
        ):
            campaign.run()
        if not whole:
            whole = listed.read_text()
            listed.write_text("".join(whole.splitlines(keepends=True)[:3]))
    assert listed.read_text() == whole
