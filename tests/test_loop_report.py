"""The report: what its page says of all kinds of campaigns, that it needs nothing else, and whose crystals it holds."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Composition

from flows.artifacts import round_rows
from flows.facts import facts_of, space
from flows.outcome import summarise
from loop.campaign import Campaign
from loop.goal import Goal
from loop.history import CAMPAIGN, CREATED, History
from loop.hull import HullEntry
from loop.metrics import Interval
from loop.novelty import NoveltyIndex
from loop.ranking import FIND, KNOWN_STABLE, ranked
from loop.report import phases
from loop.report.candidates import mixture, symmetry
from loop.report.drawing import rows_of
from loop.report.export import file_stem, final_structure, ranked_rows
from loop.report.gain import difference, goal_gains
from loop.report.page import asset, context, in_script, write_report
from loop.report.summary import reports_now
from loop.report.tables import energy, number, percent, ratio
from loop.report.words import goal_verdicts, rate_verdict
from loop.settings import CampaignSettings
from loop.store import Store
from loop.values import Quantity
from tests.fakes import FakeGenerator, FakeOracle, fake_components, rocksalt
from tests.readers import READERS, same_crystal

SETTINGS = CampaignSettings(name="<b>reported</b>", rounds=2, pool=30, budget=8, chunk=8, seed=2)
VOID = {"meta", "br", "hr", "img", "link", "input"}
MEBIBYTE = 2**20
GAP = {"Li": 7.0, "Na": 5.0, "K": 4.0, "Rb": 3.0, "Mg": 2.0, "Ca": 1.5, "Sr": 1.3, "Ba": 1.0}  # eV, by the cation


class Page(HTMLParser):
    """Collects texts, links, figures and CIFs; notes tags that are not closed, and attributes that run or load."""

    def __init__(self, text):
        super().__init__()
        self.open, self.bad, self.links, self.titles, self.texts, self.ids = [], [], [], [], [], []
        self.cifs, self.figures, self.pictures, self.handlers, self.data = {}, [], [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        if "download" in values:
            self.cifs[values["download"]] = base64.b64decode(values["href"].partition("base64,")[2]).decode()
        else:
            self.links += [values[key] for key in ("href", "src") if key in values]
        self.ids += [values["id"]] if "id" in values else []
        self.handlers += [key for key in values if key.startswith("on")]
        self.data = values.get("type") == "application/json"

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.bad.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            if self.data:
                made = json.loads(data)
                (self.pictures if "atoms" in made else self.figures).append(made)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)
        if self.open and self.open[-1] == "h3":
            self.titles.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def known_phases(system):
    """Elements at -1 eV/atom, and a hostile name among the ids."""
    return [HullEntry(name, -1.0, "<img src=x onerror=alert(1)>") for name in system.split("-")]


def listed(history):
    """Labels as ranked."""
    return ranked(history.labels(), history.settings)


def reported(folder, settings=SETTINGS, protocol=(), facts=(), **parts):
    """A campaign that has run, and its page."""
    made = replace(fake_components(), **parts)
    with Store(folder / "campaign.db") as store, Campaign(settings, made, store, folder) as campaign:
        campaign.run()
        path = write_report(campaign.history, folder, list(protocol), list(facts))
    return campaign.history, path, Page(path.read_text())


@pytest.fixture(scope="module")
def stiff(tmp_path_factory):
    """Stiff crystals are sought, as in the quickstart."""
    generator = FakeGenerator(iterations=4)
    told = {"protocol": [("potential", "fake & analytic")], "facts": [("Space", "rock salts only")]}
    return reported(tmp_path_factory.mktemp("stiff"), generator=generator, phases=known_phases, **told)


class Gaps(FakeOracle):
    """Band gaps beside the moduli."""

    def _evaluate(self, candidate):
        found = super()._evaluate(candidate)
        gap = GAP[next(str(element) for element in candidate.structure.composition if str(element) in GAP)]
        return found.with_properties(band_gap=Quantity(gap, "eV")) if found.ok else found


class Broken(FakeOracle):
    """Labels nothing."""

    def _evaluate(self, candidate):
        found = super()._evaluate(candidate)
        return replace(found, status="failed:exploded", properties={}, structure=None)


class Far(FakeOracle):
    """All crystals lie far above the hull."""

    def _evaluate(self, candidate):
        found = super()._evaluate(candidate)
        return found.with_properties(e_above_hull=Quantity(0.9, "eV/atom")) if found.ok else found


def test_the_page_is_whole_and_works_offline(stiff):
    history, path, page = stiff
    assert page.open == []
    assert page.bad == []
    assert page.handlers == []
    assert len(set(page.ids)) == len(page.ids)
    assert page.links  # of the contents and of the ranked list
    files = [link for link in page.links if not link.startswith("#")]
    assert all(link[1:] in page.ids for link in page.links if link not in files)
    assert files == [f"cifs/{file_stem(rank, label)}.cif" for rank, label in enumerate(listed(history), 1)]
    markup = re.sub(r"<script.*?</script>|<style.*?</style>", "", path.read_text(), flags=re.DOTALL)
    assert not re.search(r"https?:|//", markup.replace(" // ", ""))
    assert not re.search(r"@import|url\(", asset("page.css"))
    assert path.stat().st_size < 4 * MEBIBYTE


@pytest.mark.parametrize("name", ["plotly-cartesian.min.js", "3Dmol-min.js", "page.js"])
def test_scripts_can_stand_in_a_page(name):
    assert not re.search(r"</script|<!--", asset(name), re.IGNORECASE)
    assert "showSendToCloud: false" in asset("page.js")  # plotly's own button would send a figure away


def test_every_figure_is_there(stiff):
    history, _, page = stiff
    titles = {
        "Best bulk modulus so far",
        "Bulk modulus by round",
        "Stable crystals against labels",
        "Hit rate by round",
    }
    titles |= {"Engine against shadow", "Energy above the hull", "E above hull and bulk modulus", "Funnel", "Elements"}
    titles |= {"Prototypes", "Predicted E above hull", "Predicted bulk modulus", "Calibration", "Drift", "Reward"}
    titles |= {"Divergence", "Finds: stable and new", "Not stable, or without a usable label", "Rounds"}
    titles |= {system.replace("-", "–") for system in history.phases()}
    assert set(page.titles) == titles
    assert len(page.figures) == len(titles) - 3
    assert all("template" not in figure["layout"] and figure["data"] for figure in page.figures)


def test_the_order_is_goal_stability_candidates(stiff):
    ids = [name for name in stiff[2].ids if not name.startswith("c-")]
    assert ids == [
        "goal", "stability", "candidates", "fronts", "ranked", "crystals", "models", "not-shown", "meaning",
    ]  # fmt: skip


def test_the_head_says_what_was_looked_for_where_and_when(stiff):
    history, _, page = stiff
    head = page.text[: page.text.index("Gain in the goal")]
    for words in ("maximise bulk modulus (GPa)", "E above hull (eV/atom) at most 0.1", "fake@1", "fake/PBE/none"):
        assert words in head
    assert "rock salts only" in head
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d( to .*)? UTC", head)
    assert f"{history.paid} oracle calls" in head


def test_names_and_protocol_are_text_and_not_markup(stiff):
    """Case 92 of tests/cases."""
    _, path, page = stiff
    assert "<b>reported</b>" in page.text
    assert "fake & analytic" in page.text
    assert "while learning: far-above" in page.text
    assert "<img src=x" not in path.read_text().replace(asset("plotly-cartesian.min.js"), "")
    tips = [tip for figure in page.figures for trace in figure["data"] for tip in trace.get("hovertext", [])]
    assert any("&lt;img" in tip for tip in tips)  # plotly reads tags in its texts: the id is escaped twice


@pytest.mark.parametrize("hostile", ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "<!--"])
def test_hostile_words_stay_words(tmp_path, hostile):
    """In ids, policies, matches, messages and statuses: wherever a ledger may hold what a file said."""

    class Hostile(Gaps):
        def _evaluate(self, candidate):
            return replace(super()._evaluate(candidate), message=hostile)

    class Named(FakeGenerator):
        def propose(self, n, *, seed, round):
            drawn = super().propose(n, seed=seed, round=round)
            return [replace(x, origin=replace(x.origin, policy=hostile, parent=hostile)) for x in drawn]

    told = {"protocol": [(hostile, hostile)], "facts": [(hostile, hostile)]}
    parts = {"oracle": Hostile(), "generator": Named()}
    parts |= {"phases": lambda system: [HullEntry(x, -1.0, hostile) for x in system.split("-")]}
    history, path, page = reported(tmp_path, replace(SETTINGS, name=hostile, rounds=1), **told, **parts)
    assert (page.open, page.bad, page.handlers) == ([], [], [])
    assert page.text.count(" ".join(hostile.split())) > len(history.labels())
    assert all(re.fullmatch(r"#[\w-]+|cifs/\w+\.cif", link) for link in page.links)
    assert path.read_text().count("<script") == 3 + len(page.figures) + len(page.pictures) + sum(
        asset(name).count("<script") for name in ("plotly-cartesian.min.js", "3Dmol-min.js", "page.js")
    )


def test_json_in_a_script_cannot_end_it():
    data = {"a": "</script><!-- & <b>"}
    assert not set("<>&") & set(in_script(data))
    assert json.loads(in_script(data)) == data


def test_every_cif_in_the_page_is_the_candidate_s_crystal(stiff):
    history, _, page = stiff
    labels = {x.candidate.id: x for x in history.labels()}
    finds = [x for x in ranked(history.labels(), history.settings) if x.is_find(history.settings)]
    shown = {name.split("_")[-1].removesuffix(".cif"): text for name, text in page.cifs.items()}
    assert {x.candidate.id for x in finds} <= shown.keys()
    for id, text in shown.items():
        for read in READERS.values():
            assert same_crystal(final_structure(labels[id]), read(text))


def test_pictures_hold_the_cell_its_atoms_and_their_images(stiff):
    page = stiff[2]
    assert len(page.pictures) == len(page.cifs)
    for picture in page.pictures:  # conventional cells of rock salt: 14 atoms on corners and faces, 13 of the other
        assert len(picture["atoms"]) == 27
        kinds = [atom[0] for atom in picture["atoms"]]
        assert sorted(map(kinds.count, set(kinds))) == [13, 14]
        a = picture["cell"][0][0]
        np.testing.assert_allclose(picture["cell"], a * np.eye(3), atol=1e-3)
        pairs = np.array([[picture["atoms"][i][1:], picture["atoms"][j][1:]] for i, j in picture["bonds"]])
        if len(pairs):
            np.testing.assert_allclose(np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1), a / 2, atol=2e-3)


def test_the_table_says_what_the_ranked_list_says(stiff):
    history, _, page = stiff
    rows = ranked_rows(history)
    text = page.text[page.text.index("Ranked list Click") :]
    positions = [text.index(f" {row['rank']} {row['formula']} ") for row in rows]
    assert positions == sorted(positions)


def test_a_card_tells_lineage_energies_and_symmetry(stiff):
    history, _, page = stiff
    row = ranked_rows(history)[0]
    text = page.text[page.text.index("Finds: stable and new") :]
    card = text[: text.index("2 ", text.index("Spent on") if "Spent on" in text else 200)]
    assert row["formula"] in card
    for words in (f"by policy {row['policy']}", "for space group Fm-3m (225)", "Judged new as drawn"):
        assert words in text
    assert "asked Fm-3m (225) → drawn Fm-3m (225) → relaxed Fm-3m (225)" in text
    assert f"{number(row['bulk_modulus'], 4)} (predicted" in text
    assert "0.5 s by fake@1" in text


def test_numbers_of_a_figure_stand_in_a_table_too(stiff):
    page = stiff[2]
    funnel = next(made for made in page.figures if axes_of(made)[0] == "count, all rounds")
    titles, rows = rows_of(funnel)
    assert titles[:2] == ["series", "count, all rounds"]
    assert [row[2] for row in rows][:2] == ["asked of the generator", "crystals"]
    assert "stable and new" in page.text


def test_the_gain_is_that_of_the_goal(stiff):
    """Means by hand, from the ranked list."""
    history, _, page = stiff
    (gain,) = goal_gains(history)
    for arm, found in gain.arms.items():
        rows = [row for row in ranked_rows(history) if row["arm"] == arm]
        values = [row["bulk_modulus"] for row in rows if row["group"] == FIND]
        assert found.labels == len(rows)
        assert sorted(found.values) == sorted(values)
        assert found.mean.value == pytest.approx(np.mean(values) if values else np.nan, nan_ok=True)
        assert found.best == pytest.approx(max(values, default=np.nan), nan_ok=True)
    assert gain.gains["shadow"].value == pytest.approx(
        np.mean(gain.arms["engine"].values) - np.mean(gain.arms["shadow"].values)
    )
    assert all(verdict.text in page.text for verdict in goal_verdicts(gain))


@pytest.mark.parametrize(
    ("settings", "better"),
    [
        ({"goal": "maximise"}, 2.0),
        ({"goal": "minimise"}, -2.0),
        ({"goal": "target", "target": 4.0}, 1.0),
        ({"goal": "target", "window": (4.5, 6.0)}, 1.0),
    ],
)
def test_a_gain_is_positive_where_the_engine_does_better(settings, better):
    goal = Goal("band_gap", settings["goal"], settings.get("target"), settings.get("window"))
    ours, theirs = (np.array([goal.score(value) for value in values]) for values in ((4.0, 6.0), (2.0, 4.0)))
    assert difference(ours, theirs).value == pytest.approx(better if "target" not in settings else 0.0, abs=1.01)
    if settings["goal"] != "target":
        assert difference(ours, theirs).value == better


def test_differences_have_welch_s_interval():
    """Against scipy's own test: the interval excludes 0 where p < 0.05."""
    from scipy import stats

    rng = np.random.default_rng(0)
    for _ in range(20):
        ours, theirs = rng.normal(0.5, 1.0, 12), rng.normal(0.0, 2.0, 9)
        found = difference(ours, theirs)
        p = stats.ttest_ind(ours, theirs, equal_var=False).pvalue
        assert (found.low > 0 or found.high < 0) == (p < 0.05)
        assert found.low < found.value < found.high
    assert np.isnan(difference(np.array([1.0]), theirs).low)
    assert np.isnan(difference(np.array([]), theirs).value)


def test_a_gap_to_hit(tmp_path):
    """A target in eV: who comes near is best, the window is drawn, and no modulus is spoken of."""
    settings = replace(SETTINGS, objective="band_gap", goal="target", target=4.0, window=(3.5, 5.5), rounds=1)
    history, _, page = reported(tmp_path, settings, oracle=Gaps())
    assert "band gap (eV): target 4, window 3.5 to 5.5" in page.text
    assert "Best band gap so far" in page.titles
    best = next(figure for figure in page.figures if figure["layout"]["yaxis"]["title"]["text"] == "best band gap (eV)")
    assert [shape["y0"] for shape in best["layout"]["shapes"]] == [4.0, 3.5]
    first = next(row for row in ranked_rows(history) if row["group"] == FIND)
    assert f"{number(first['band_gap'])} eV" in page.text
    assert "best bulk modulus" not in page.text


def axes_of(figure):
    """Titles of the axes."""
    return tuple(figure["layout"].get(name, {}).get("title", {}).get("text") for name in ("xaxis", "yaxis"))


def test_two_objectives_have_a_front_of_their_own(tmp_path):
    settings = replace(SETTINGS, rounds=1, also=(Goal("band_gap", "maximise"),))
    history, _, page = reported(tmp_path, settings, oracle=Gaps())
    fronts = {"E above hull and bulk modulus", "E above hull and band gap", "bulk modulus and band gap"}
    assert fronts <= set(page.titles)
    assert [gain.goal.name for gain in goal_gains(history)] == ["bulk_modulus", "band_gap"]
    axes = ("bulk modulus (GPa)", "band gap (eV)")
    both = next(made for made in page.figures if axes == axes_of(made))
    front = next(trace for trace in both["data"] if trace["name"] == "Pareto front of the finds")
    points = list(zip(front["x"], front["y"], strict=True))
    finds = [(row["bulk_modulus"], row["band_gap"]) for row in ranked_rows(history) if row["group"] == FIND]
    beaten = [a for a in finds if any(b != a and b[0] >= a[0] and b[1] >= a[1] for b in finds)]
    assert sorted(set(points)) == sorted(set(finds) - set(beaten))


def test_stability_as_the_goal_itself(tmp_path):
    settings = replace(SETTINGS, objective="e_above_hull", goal="minimise", rounds=1)
    history, _, page = reported(tmp_path, settings)
    (gain,) = goal_gains(history)
    assert gain.of == "usable labels"
    assert sum(len(found.values) for found in gain.arms.values()) == sum(x.first.ok for x in history.labels())
    assert "E above hull by round" in page.titles
    assert page.open == []


def test_no_find_at_all(tmp_path):
    """Nothing is claimed; what came nearest is shown as what it is."""
    history, _, page = reported(tmp_path, replace(SETTINGS, rounds=1), oracle=Far())
    assert "No find: no crystal is stable and new." in page.text
    assert "Nothing is stable and new: the nearest to the hull" in page.titles
    assert "Prototypes" not in page.titles
    assert not [row for row in ranked_rows(history) if row["group"] == FIND]
    assert len(page.cifs) == 6
    assert "No gain over chance" in page.text


def test_known_crystals_stand_apart_with_what_they_are(tmp_path):
    class Knows(NoveltyIndex):
        """Calls every crystal with sulphur known."""

        def judge(self, structures, ids):
            verdicts = super().judge(structures, ids)
            held = ["S" in structure.composition for structure in structures]
            return [
                replace(verdict, kind="known", match="mp-<7>") if sulphur else verdict
                for verdict, sulphur in zip(verdicts, held, strict=True)
            ]

    settings = replace(SETTINGS, allow_known=True)
    history, _, page = reported(tmp_path, settings, novelty=Knows(), generator=FakeGenerator(iterations=4))
    known = [row for row in ranked_rows(history) if row["group"] == KNOWN_STABLE]
    assert known
    assert "Stable, but known or a copy: no finds" in page.titles
    assert "match mp-<7>" in page.text
    assert all(row["formula"] not in gain for gain in map(str, goal_gains(history)) for row in known)


def test_failures_are_told_and_do_no_harm(tmp_path):
    history, _, page = reported(tmp_path, replace(SETTINGS, rounds=1), oracle=Broken())
    n = len(history.labels())
    assert f"{n} of {n} labels are unusable ({n} failed:exploded)" in page.text
    assert page.open == []
    assert not page.cifs


def test_a_campaign_without_rounds_is_reported_too(tmp_path):
    with Store(tmp_path / "campaign.db") as store:
        store.append("new", 0, CAMPAIGN, CREATED, {"settings": {"name": "new"}, "oracle": "o", "oracle_settings": "s"})
        fresh = History.load(store, "new")
        assert "no round done" in str(context(fresh, []))
        page = Page(write_report(fresh, tmp_path).read_text())
    assert page.open == []
    assert not page.figures


def test_what_is_not_shown_is_said(stiff):
    page = stiff[2]
    text = page.text[page.text.index("What this campaign does not show") :]
    assert "rest on fake@1 alone" in text
    assert "No second opinion of another potential is recorded." in text
    assert "Phonons were not computed" in text


@pytest.mark.parametrize(
    ("low", "high", "words", "shown"),
    [
        pytest.param(1.2, 4.0, "lies above 1: selection beats chance", True, id="better"),
        pytest.param(1.0001, 4.0, "1.00 to 4.00). The interval includes 1: this", False, id="as shown"),
        pytest.param(0.5, 4.0, "includes 1: this campaign does not show that selection beats", False, id="open"),
        pytest.param(0.1, 0.8, "lies below 1: it did worse", False, id="worse"),
    ],
)
def test_the_verdict_follows_the_interval(low, high, words, shown):
    metrics = {"acceleration": 1.0, "acceleration_low": low, "acceleration_high": high}
    metrics |= {f"{arm}_{what}": 3.0 for arm in ("engine", "shadow") for what in ("hits", "labels")}
    verdict = rate_verdict(metrics, "shadow")
    assert words in verdict.text
    assert verdict.shown is shown


def test_a_gain_in_the_goal_is_claimed_by_its_interval_alone(stiff):
    (gain,) = goal_gains(stiff[0])
    for found, shown in ((Interval(5.0, 1.0, 9.0), True), (Interval(5.0, -1.0, 11.0), False)):
        (verdict,) = goal_verdicts(replace(gain, gains={"shadow": found}))
        assert verdict.shown is shown
        assert "5 GPa better" in verdict.text
    (verdict,) = goal_verdicts(replace(gain, gains={"shadow": Interval(5.0, np.nan, np.nan)}))
    assert "too few for an interval" in verdict.text
    assert not verdict.shown


def test_facts_of_a_configuration():
    sampling = {"require": ["Li"], "elements": ["Li", "O"], "max_atoms": None, "n_atoms": None, "space_groups": [225]}
    config = {"generator": {"proposals": {"sampling": sampling, "max_atoms": 20}}, "validity": {"max_elements": 3}}
    told = space(config)
    assert told == (
        "with Li; only Li, O; in space group 225; at most 20 atoms in the primitive cell; rules: at most 3 elements"
    )
    assert space({}) == "all chemistry that the generator knows"
    history = History("x", CampaignSettings(), None, {"config": config}, {}, "", {}, {}, 0)
    assert dict(facts_of(history))["Space"] == told
    history.about = {}
    assert facts_of(history) == []


def drawn(monkeypatch, own, known):
    """The phase diagram of a campaign's crystals among known ones, and the trace of its own."""
    held = [
        SimpleNamespace(
            candidate=SimpleNamespace(formula=formula, id=formula), evaluation=SimpleNamespace(value=lambda _, e=e: e)
        )
        for formula, e in own.items()
    ]
    monkeypatch.setattr(phases, "members", lambda *_: held)
    entries = [HullEntry(formula, energy, formula) for formula, energy in known.items()]
    system = "-".join(sorted(formula for formula in known if formula.isalpha() and len(formula) <= 2))
    made = phases.diagram(SimpleNamespace(phases=lambda: {system: entries}), system)
    (ours,) = (trace for trace in made["data"] if trace.get("name") == "this campaign")
    return made, ours


def test_names_in_a_phase_diagram_stand_at_their_compositions(monkeypatch):
    """The campaign's crystals in any order, some on the hull: pymatgen puts the names of others beside them."""
    energies = {"NbRe2": -11.6, "NbRe": -10.9, "Nb3Re5": -11.4, "NbRe3": -11.55, "Nb2Re3": -11.3}
    _, ours = drawn(monkeypatch, energies, {"Nb": -10.0, "Re": -12.0, "Nb3Re": -10.4})
    share = {formula: Composition(formula).get_atomic_fraction("Re") for formula in energies}
    tips = [re.sub("<.*?>", "", tip.partition(" (")[0]) for tip in ours["hovertext"]]
    assert dict(zip(tips, ours["x"], strict=True)) == pytest.approx(share)
    words = [re.sub("<.*?>", "", name) for name in ours["text"]]
    assert all(word in ("", tip) for word, tip in zip(words, tips, strict=True))
    assert sum(map(bool, words)) >= 3


def test_names_in_a_phase_diagram_do_not_lie_on_each_other(monkeypatch):
    """At 500 pixels: of close marks one has its name beside it, all have it in their tooltips."""
    close = {"Nb3Re5": -11.4, "Nb2Re3": -11.345, "NbRe3": -11.52}
    made, ours = drawn(monkeypatch, close, {"Nb": -10.0, "Re": -12.0, "Nb3Re": -10.7})
    assert sorted(map(bool, ours["text"])) == [False, True, True]
    assert len(ours["hovertext"]) == 3
    shown = [trace["name"] for trace in made["data"] if trace.get("text") and any(trace["text"])]
    assert shown == ["known, on the hull", "this campaign"]  # none of pymatgen's own beside them
    corners = {"MgO": -6.0, "AlMgO": -5.6, "AlMg2O2": -5.7, "AlMg": -3.5, "Al": -3.6}
    made, ours = drawn(monkeypatch, corners, {"Al": -3.7, "Mg": -1.6, "O": -4.9, "Al2O3": -7.5})
    words = {re.sub("<.*?>", "", name) for name in ours["text"]}
    assert "Al" not in words  # the corner is called so
    assert {"MgO", "MgAl"} <= words


def test_a_long_campaign_stays_small(tmp_path):
    """500 candidates: all figures and the CIFs of the best in less than 8 MB."""

    class Many(FakeGenerator):
        """Distinct crystals: lattice parameters that no two share."""

        def propose(self, n, *, seed, round):
            made = []
            for index, candidate in enumerate(super().propose(n, seed=seed, round=round)):
                structure = candidate.structure.copy()
                structure.scale_lattice(structure.volume * (1 + 1e-3 * (index + 1)))
                made.append(replace(candidate, structure=structure))
            return made

    class Loose(NoveltyIndex):
        """Everything is new."""

        def judge(self, structures, ids):
            return [NoveltyIndex().judge([x], [id])[0] for x, id in zip(structures, ids, strict=True)]

        def add(self, structures, ids):
            pass

    settings = replace(SETTINGS, rounds=4, pool=120, budget=100, baseline_budget=100, chunk=50)
    history, path, page = reported(tmp_path, settings, generator=Many(iterations=2), novelty=Loose())
    assert len(history.labels()) >= 500
    assert path.stat().st_size < 8 * MEBIBYTE
    assert len(page.cifs) == 40
    assert "further candidates are in ranked.csv" in page.text


def test_numbers_for_people():
    assert [energy(x) for x in (None, np.nan, -8e-16, 0.0996, -0.05)] == ["–", "–", "0.000", "0.100", "-0.050"]
    assert energy(-0.001, 0.1) == "0.00 ± 0.10"
    assert [number(x) for x in (None, np.nan, 0.01234, 123456.7)] == ["–", "–", "0.0123", "123,457"]
    assert [number(2.0, 3, "GPa"), percent(0.5), percent(np.nan), ratio(1e4)] == ["2 GPa", "50%", "–", "more than 100"]
    assert number(2.0, 3, "1") == "2"
    assert mixture({"A": 0.25, "B": 0.75}) == "0.75 B + 0.25 A"
    assert [symmetry(225), symmetry(None)] == ["Fm-3m (225)", "–"]


def test_static_figures_are_the_same_twice(stiff):
    """Those that the Prefect UI shows."""
    from loop.report import figures

    history = stiff[0]
    for draw in (figures.learning_curve, figures.hit_rates, figures.pareto, figures.funnel, figures.calibration_curve):
        first = figures.to_svg(partial(draw, history), "a")
        assert first == figures.to_svg(partial(draw, history), "a")
        assert "fill: #ffffff" in first  # the UI may be dark
        assert not re.search(r"<image|<script", first)


def test_a_crystal_is_drawn_with_all_its_atoms():
    from loop.io.cif_writer import to_symmetrised_cif
    from loop.report import figures

    text = figures.to_svg(partial(figures.crystal, to_symmetrised_cif(rocksalt())), "a")
    assert text.count("#ab5cf2") >= 13  # sodium: 14 on corners and faces, the cell's others hide none wholly
    assert text.count("#1ff01f") >= 12


def test_every_count_is_that_of_the_hull_of_today(tmp_path):
    """A label that was stable in its round, and that later finds lift above the hull, is stable nowhere in the page."""

    def higher(finds, evaluations):
        """As if every find pulled the hull down by 3 meV/atom."""
        lift = 0.003 * len(finds)
        return [
            e.with_properties(e_above_hull=Quantity(e.value("e_above_hull") + lift, "eV/atom")) for e in evaluations
        ]

    history, _, page = reported(tmp_path, rehull=higher)
    then, now = history.reports(), reports_now(history)
    stable = [[x for x in history.labels(report.round) if x.is_stable(history.settings)] for report in now]
    assert [report.funnel["stable"] for report in now] == [len(some) for some in stable]
    assert sum(report.funnel["stable"] for report in then) > sum(len(some) for some in stable)
    assert [report.metrics["paid_total"] for report in now] == [report.metrics["paid_total"] for report in then]
    untuned = len(stable[0]) / len(history.labels(0))
    assert now[-1].metrics["baseline_hit_rate"] == pytest.approx(untuned)
    assert f"untuned generator: {percent(untuned)}" in page.text
    summary = summarise(history)
    assert summary["baseline_hit_rate"] == pytest.approx(untuned)
    assert summary["stable"] == sum(len(some) for some in stable)
    assert round_rows(SimpleNamespace(history=history))[0]["stable"] == len(stable[0])
