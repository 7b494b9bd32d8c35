"""Costlier oracles for the best of a round, and labels that come back from people."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from flows.tables.import_labels import import_labels, property_columns
from loop.campaign import Campaign
from loop.errors import ConfigError, EnergyTypeError, InputError, StoreError
from loop.history import History
from loop.ranking import ranked
from loop.report import export
from loop.settings import CampaignSettings
from loop.store import Store
from loop.tiers import Tier
from loop.values import OK, Cost, EnergyType, Evaluation, Quantity, failed
from oracles.dft.handoff import HandoffConfig, HandoffOracle
from surrogates.features import FeatureExtractor
from surrogates.steps import StepAcquisition
from tests.fakes import FakeOracle, fake_components, rocksalt

SETTINGS = CampaignSettings(name="tiers", rounds=1, pool=24, budget=6, chunk=2, seed=1, objective="dear_band_gap")


class DearOracle:
    """Gap in eV: a tenth of the volume per atom; fluorides cannot be computed; `fail_at`: the call that is killed."""

    name = "dear@1"
    settings_hash = "1" * 8

    def __init__(self, fail_at=None):
        self.fail_at, self.asked = fail_at, []

    def evaluate(self, candidates):
        return [self._evaluate(candidate) for candidate in candidates]

    def _evaluate(self, candidate):
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append(candidate)
        made = (candidate.id, self.name, self.settings_hash)
        if "F" in candidate.structure.composition:
            return Evaluation(*made, failed("scf-not-converged"), cost=Cost(100.0, cores=2), message="no density")
        gap = Quantity(candidate.structure.volume / len(candidate.structure) / 10, "eV")
        kind = EnergyType("GPAW", "PBE", "none", "abc")
        return Evaluation(*made, OK, {"band_gap": gap}, energy_type=kind, cost=Cost(100.0, cores=2))


def run(folder, tiers, settings=SETTINGS):
    with Campaign(settings, replace(fake_components(), tiers=tiers), Store(folder / "campaign.db"), folder) as campaign:
        campaign.run()
        return campaign.history


def test_the_best_of_each_round_go_up_as_relaxed(tmp_path):
    dear = DearOracle()
    history = run(tmp_path, (Tier("dear", dear, best=2),))
    labels = {label.candidate.id: label for label in history.labels()}
    for number in (0, 1):
        here = [label for label in labels.values() if label.pick.round == number]
        expected = [x.candidate.id for x in ranked([x for x in here if x.first.ok], SETTINGS) if x.tiers][:2]
        assert len(expected) == 2
        assert sum(bool(label.tiers) for label in here) == 2
    asked = {candidate.id: candidate for candidate in dear.asked}
    assert len(asked) == len(dear.asked)  # a crystal that two candidates relax to is measured once
    for label in labels.values():
        if label.tiers:
            relaxed = history.tiers["dear"].labels[label.candidate.id]
            assert asked[relaxed].structure.volume == pytest.approx(label.first.structure.volume)
            if label.tiers["dear"].ok:
                wanted = label.first.structure.volume / len(label.first.structure) / 10
                assert label.evaluation.value("dear_band_gap") == label.first.value("dear_band_gap")
                assert label.first.value("dear_band_gap") == pytest.approx(wanted)


class Smallest:
    """Chooses the smallest volume per atom of all that may go up, once two are known."""

    def __init__(self):
        self.asked = []

    def __call__(self, seen, open, settings, tier, k):
        self.asked.append((tier, len(seen), {label.pick.round for label in open}))
        if len(seen) < 2:
            return None
        volumes = [label.first.structure.volume / len(label.first.structure) for label in open]
        return sorted(range(len(open)), key=volumes.__getitem__)[:k]


def test_an_acquisition_chooses_among_all_rounds_once_it_has_something_to_go_by(tmp_path):
    dear, selection = DearOracle(), Smallest()
    history = run(tmp_path, (Tier("dear", dear, best=2, selection=selection),), replace(SETTINGS, rounds=2))
    tier = history.tiers["dear"]
    assert [len(tier.rounds[number]) for number in (0, 1, 2)] == [2, 2, 2]
    assert [tier.arms[key] for key in tier.rounds[0]] == ["rank", "rank"]
    assert [tier.arms[key] for number in (1, 2) for key in tier.rounds[number]] == ["engine"] * 4
    assert [seen for _, seen, _ in selection.asked] == [0, 2, 4]
    assert selection.asked[2][2] == {0, 1, 2}  # earlier rounds' crystals may go up, too
    again = DearOracle()
    assert run(tmp_path, (Tier("dear", again, best=2, selection=Smallest()),), replace(SETTINGS, rounds=2)).tiers[
        "dear"
    ].rounds == tier.rounds  # fmt: skip
    assert not again.asked


def test_the_acquisition_of_steps_finds_larger_gaps_than_rank_did(tmp_path):
    """The dear gap is a tenth of the volume per atom, which features tell; what came back teaches it.

    Each call costs the same here, so what a crystal is expected to cost stays out of the choice.
    """
    acquisition = StepAcquisition(FeatureExtractor(), by_cost=False)
    settings = replace(SETTINGS, rounds=2, pool=48, budget=12)
    history = run(tmp_path, (Tier("dear", DearOracle(), best=5, selection=acquisition),), settings)
    tier = history.tiers["dear"]
    assert {tier.arms[key] for key in tier.rounds[0]} == {"rank"}
    assert {tier.arms[key] for key in tier.rounds[2]} == {"engine"}
    labels = {label.candidate.id: label for label in history.labels()}
    open_ = [x for key, x in labels.items() if key not in tier.labels and x.may_be_new and x.is_stable(settings)]
    chosen = [labels[key].first.structure.volume for key in tier.rounds[2] if labels[key].is_stable(settings)]
    assert len(open_) > 2
    assert len(chosen) > 2
    assert sum(chosen) / len(chosen) > sum(x.first.structure.volume for x in open_) / len(open_)


def test_a_share_goes_up_by_chance(tmp_path):
    history = run(tmp_path, (Tier("dear", DearOracle(), best=2, shadow_share=0.25),), replace(SETTINGS, rounds=3))
    arms = history.tiers["dear"].arms
    assert len(arms) == 8
    assert sorted(arms.values()) == ["rank"] * 6 + ["shadow"] * 2
    with pytest.raises(ConfigError, match="shadow_share"):
        Tier("dear", DearOracle(), shadow_share=1.0)


def test_a_tier_is_counted_apart_and_shown(tmp_path):
    dear = DearOracle()
    history = run(tmp_path, (Tier("dear", dear, best=3),))
    assert history.paid == 12  # of the default oracle alone
    with Store(tmp_path / "campaign.db") as store:
        costs = {cost.oracle: cost for cost in store.costs("tiers")}
    assert costs["dear@1"].labels == len(dear.asked)
    assert costs["dear@1"].core_hours == pytest.approx(len(dear.asked) * 200 / 3600)
    table = pd.read_csv(tmp_path / "ranked.csv")
    shown = table[table["dear_status"].notna()]
    assert len(shown) == 6
    assert set(shown["dear_status"]) <= {"ok", "failed:scf-not-converged"}
    assert (shown["dear_status"] == "ok").sum() == shown["dear_band_gap"].notna().sum() > 0
    stable = table[table["stable"] & table["dear_band_gap"].notna()]
    assert stable["dear_band_gap"].is_monotonic_decreasing  # the objective of these settings
    assert list(stable.index) == list(range(len(stable)))


def test_what_a_tier_cannot_measure_is_passed_over(tmp_path):
    settings, first, dear = replace(SETTINGS, rounds=0), DearOracle(), DearOracle()
    run(tmp_path / "all", (Tier("dear", first, best=1),), settings)
    refused = first.asked[0].formula
    tier = Tier("dear", dear, best=1, accepts=lambda structure: structure.composition.reduced_formula != refused)
    run(tmp_path / "some", (tier,), settings)
    assert len(dear.asked) == 1
    assert dear.asked[0].formula != refused


class Collapsing(FakeOracle):
    """All chlorides relax into the same crystal."""

    def _evaluate(self, candidate):
        found = super()._evaluate(candidate)
        return replace(found, structure=rocksalt()) if "Cl" in candidate.formula else found


def test_nobody_pays_for_crystals_that_relaxed_into_known_ones(tmp_path):
    def labels_of(folder, tier):
        parts = replace(fake_components(oracle=Collapsing()), tiers=(tier,))
        settings = replace(SETTINGS, budget=12, rounds=0)
        with Campaign(settings, parts, Store(folder / "campaign.db"), folder) as campaign:
            campaign.run()
            return campaign.history.labels()

    every, new = DearOracle(), DearOracle()
    labels = labels_of(tmp_path / "every", Tier("dear", every, best=12))
    assert {label.verdict for label in labels if label.tiers} == {"new", "duplicate"}
    labels = labels_of(tmp_path / "new", Tier("dear", new, best=12, only_new=True))
    assert {label.verdict for label in labels if label.tiers} == {"new"}
    assert all(label.tiers for label in labels if label.is_new and label.first.ok)
    assert [candidate.formula for candidate in new.asked].count("NaCl") == 1 < len(new.asked)


@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_a_tier_of_new_crystals_that_is_killed_goes_on_to_the_same_list(tmp_path, fail_at):
    def campaign_in(folder, dear):
        parts = replace(fake_components(oracle=Collapsing()), tiers=(Tier("dear", dear, best=3, only_new=True),))
        with Campaign(SETTINGS, parts, Store(folder / "campaign.db"), folder) as campaign:
            campaign.run()

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    campaign_in(whole, DearOracle())
    with pytest.raises(KeyboardInterrupt):
        campaign_in(cut, DearOracle(fail_at=fail_at))
    campaign_in(cut, DearOracle())
    assert (cut / "ranked.csv").read_text() == (whole / "ranked.csv").read_text()


def test_verdicts_are_the_same_when_a_campaign_is_run_again_after_a_failed_tier(tmp_path):
    """The round's relaxed crystals are in the index by then; they are no copies of themselves."""
    tier = Tier("dear", DearOracle(fail_at=2), best=9, only_new=True)
    parts = replace(fake_components(), tiers=(tier,))
    with Campaign(SETTINGS, parts, Store(tmp_path / "campaign.db"), tmp_path) as campaign:
        with pytest.raises(KeyboardInterrupt):
            campaign.run()
        tier.oracle.fail_at = None
        campaign.run()
    whole = tmp_path / "whole"
    run(whole, (Tier("dear", DearOracle(), best=9, only_new=True),))
    assert (tmp_path / "ranked.csv").read_text() == (whole / "ranked.csv").read_text()


def test_a_killed_tier_goes_on_to_the_same_list(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, (Tier("dear", DearOracle(), best=3),))
    with pytest.raises(KeyboardInterrupt):
        run(cut, (Tier("dear", DearOracle(fail_at=2), best=3),))
    rest = DearOracle()
    run(cut, (Tier("dear", rest, best=3),))
    assert (cut / "ranked.csv").read_text() == (whole / "ranked.csv").read_text()
    with Store(cut / "campaign.db") as store:
        assert {cost.oracle: cost for cost in store.costs("tiers")}["dear@1"].labels == 2 + len(rest.asked)


def test_labels_of_two_oracles_do_not_mix(tmp_path):
    run(tmp_path, (Tier("dear", DearOracle()),), replace(SETTINGS, rounds=0))
    other = DearOracle()
    other.settings_hash = "2" * 8
    with pytest.raises(StoreError, match="do not mix"):
        run(tmp_path, (Tier("dear", other),), replace(SETTINGS, rounds=1))
    with pytest.raises(ConfigError, match="best >= 1"):
        Tier("dear", other, best=0)


# people --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished campaign that handed out four crystals a round."""
    folder = tmp_path_factory.mktemp("finished") / "campaign"
    run(folder, (Tier("handoff", HandoffOracle(), best=4),), replace(SETTINGS, objective="handoff_band_gap"))
    return folder


@pytest.fixture
def campaign(finished, tmp_path):
    """A folder of its own with the same campaign."""
    return Path(shutil.copytree(finished, tmp_path / "campaign"))


def form(folder, number=0):
    return pd.read_csv(folder / "handoff" / f"round_{number:03d}" / "labels.csv", dtype=str, keep_default_na=False)


def give_back(folder, frame, **options):
    path = folder / "back.csv"
    frame.to_csv(path, index=False)
    with Store(folder / "campaign.db") as store:
        return import_labels(store, "tiers", path, **options)


def reload(folder):
    with Store(folder / "campaign.db") as store:
        return History.load(store, "tiers")


def test_inputs_are_handed_out(campaign):
    from pymatgen.core import Structure
    from pymatgen.io.vasp import Poscar

    history = reload(campaign)
    folder = campaign / "handoff" / "round_000"
    rows = form(campaign)
    assert len(rows) == 4
    for name in rows["candidate_id"]:
        crystal = Structure.from_file(folder / name / "structure.cif")
        relaxed = history.evaluations[name].structure
        assert crystal.matches(relaxed)
        assert crystal.matches(Poscar.from_file(folder / name / "POSCAR", check_for_potcar=False).structure)
        about = json.loads((folder / name / "metadata.json").read_text())
        assert about["candidate_id"] == name
        assert about["asked"]["band_gap"] == "eV"
    assert "import-labels" in (folder / "README.txt").read_text()
    with pytest.raises(ConfigError, match="colour"):
        HandoffConfig(ask=("colour",))


def test_results_come_back_and_rank(campaign):
    rows = form(campaign, 1)
    rows["band_gap (eV)"] = ["1.5", "3.25", "0", ""]
    rows["energy (eV/atom)"] = ["-3.1", "-3.2", "-3.3", ""]
    rows[["method", "functional", "corrections"]] = ["VASP", "PBE", "none"]
    rows["status"] = ["", "", "ok", "failed:scf-not-converged"]
    rows["seconds"], rows["cores"] = "3600", "32"
    done = give_back(campaign, rows)
    assert (done.taken, done.failed, done.skipped) == (4, 1, {})
    history = reload(campaign)
    assert history.paid == 12
    table = export.ranked_rows(history)
    gaps = {row["candidate_id"]: row.get("handoff_band_gap") for row in table}
    assert [gaps[name] for name in rows["candidate_id"]] == [1.5, 3.25, 0.0, None]
    stable = [row["candidate_id"] for row in table if row["stable"] and row.get("handoff_band_gap") is not None]
    assert len(stable) > 1
    assert stable == [row["candidate_id"] for row in table][: len(stable)]  # measured ones first
    assert [gaps[name] for name in stable] == sorted((gaps[name] for name in stable), reverse=True)
    first = next(row for row in table if row["candidate_id"] == rows["candidate_id"][0])
    assert first["handoff_energy_type"] == "VASP/PBE/none"
    # a second time nothing is taken
    again = give_back(campaign, rows)
    assert (again.taken, dict(again.skipped)) == (0, {"already labelled": 4})


def test_imported_labels_train_the_next_round(campaign):
    """They reach the surrogate as properties of the labels that it is given."""
    rows = form(campaign)
    rows["band_gap (eV)"] = "2.5"
    give_back(campaign, rows.drop(columns=["energy (eV/atom)"]))
    seen = []

    class Watching(type(fake_components().surrogate)):
        def fit(self, candidates, evaluations, **more):
            seen.extend(evaluation.value("handoff_band_gap") for evaluation in evaluations)
            return super().fit(candidates, evaluations, **more)

    settings = replace(SETTINGS, objective="handoff_band_gap", rounds=2)
    parts = replace(fake_components(), surrogate=Watching(), tiers=(Tier("handoff", HandoffOracle(), best=4),))
    with Campaign(settings, parts, Store(campaign / "campaign.db"), campaign) as going_on:
        going_on.run()
    assert seen.count(2.5) == 4


def test_bad_rows_are_counted_not_taken(campaign):
    names = list(form(campaign)["candidate_id"])
    frame = pd.DataFrame(
        [
            {"candidate_id": "nobody", "band_gap (eV)": "1"},
            {"candidate_id": names[0], "band_gap (eV)": "nan"},
            {"candidate_id": names[1], "band_gap (eV)": "-1"},
            {"candidate_id": names[2], "band_gap (eV)": "wide"},
            {"candidate_id": names[3], "band_gap (eV)": ""},
        ]
    )
    frame.loc[len(frame)] = {"candidate_id": form(campaign, 1)["candidate_id"][0], "band_gap (eV)": "1"}
    frame["status"] = ["", "", "", "", "", "fine"]
    done = give_back(campaign, frame)
    assert done.taken == 0
    assert dict(done.skipped) == {"unknown id": 1, "bad value": 3, "no result": 1, "unknown status": 1}
    assert "row 2: unknown id: nobody" in done.examples
    assert reload(campaign).tiers["handoff"].evaluations == {}


def test_repeats(campaign):
    name = form(campaign)["candidate_id"][0]
    twice = pd.DataFrame({"candidate_id": [name, name], "band_gap (eV)": ["1", "1"]})
    done = give_back(campaign, twice)
    assert (done.taken, dict(done.skipped)) == (1, {"repeated": 1})
    twice["band_gap (eV)"] = ["1", "2"]
    with pytest.raises(InputError, match="rows 2 and 3 give different results"):
        give_back(campaign, twice)


@pytest.mark.parametrize(
    ("column", "message"),
    [("band_gap (meV)", "expected the unit eV"), ("band_gap", "expected the unit eV"), ("energy (eV)", "eV/atom")],
)
def test_wrong_units_are_refused(column, message):
    with pytest.raises(InputError, match=message):
        property_columns(["candidate_id", column])


def test_units_that_are_right():
    found = property_columns(["candidate_id", "dielectric_total", "band_gap ( eV )", "hardness (GPa)", "status"])
    assert set(found.values()) == {("dielectric_total", "1"), ("band_gap", "eV"), ("hardness", "GPa")}
    with pytest.raises(InputError, match="found none"):
        property_columns(["candidate_id", "status"])


def test_energies_of_two_types_do_not_mix(campaign):
    names = list(form(campaign)["candidate_id"])
    frame = pd.DataFrame({"candidate_id": names[:2], "energy (eV/atom)": ["-1", "-2"]})
    with pytest.raises(InputError, match="need their type"):
        give_back(campaign, frame)
    frame[["method", "functional", "corrections"]] = [["VASP", "PBE", "none"], ["VASP", "PBEsol", "none"]]
    with pytest.raises(EnergyTypeError, match="VASP/PBE/none, VASP/PBEsol/none"):
        give_back(campaign, frame)
    assert give_back(campaign, frame[:1]).taken == 1
    with pytest.raises(EnergyTypeError, match="several types"):  # nor with what came before
        give_back(campaign, frame[1:])
    assert give_back(campaign, frame[1:], tier="pbesol").taken == 1
    assert reload(campaign).tiers["pbesol"].evaluations[names[1]].value("energy") == -2


def test_a_crystal_that_became_another_one_is_refused(campaign):
    from loop.io.cif_writer import to_cif
    from tests.crystals import perovskite

    name = form(campaign)["candidate_id"][0]
    frame = pd.DataFrame({"candidate_id": [name], "band_gap (eV)": ["1"], "cif": [to_cif(perovskite())]})
    done = give_back(campaign, frame)
    assert dict(done.skipped) == {"bad value": 1}
    assert "SrTiO3" in done.examples[0]


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "candidate_id,band_gap (eV)\n", "\x00\x01"])
def test_what_is_no_table_is_one_error(campaign, text):
    path = campaign / "bad.csv"
    path.write_text(text)
    with Store(campaign / "campaign.db") as store, pytest.raises(InputError):
        import_labels(store, "tiers", path)
