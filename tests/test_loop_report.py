from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from loop.campaign import Campaign
from loop.history import CAMPAIGN, CREATED, History
from loop.report.export import ranked_rows, write_cifs
from loop.report.figures import to_svg
from loop.report.page import _verdict, context, write_report
from loop.report.tables import energy, number, percent, ratio
from loop.settings import CampaignSettings
from loop.store import Store
from tests.fakes import FakeGenerator, FakeOracle, fake_parts

SETTINGS = CampaignSettings(name="<b>reported</b>", rounds=2, pool=30, budget=8, chunk=8, seed=2)
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects texts, links and figures; notes tags that are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.bad, self.links, self.titles, self.texts, self.ids = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag not in VOID:
            self.open.append(tag)
        self.links += [values[key] for key in ("href", "src") if key in values and tag != "use"]
        self.ids += [values["id"]] if "id" in values else []

    def handle_startendtag(self, tag, attrs):
        self.ids += [dict(attrs)["id"]] if "id" in dict(attrs) else []

    def handle_endtag(self, tag):
        if self.open.pop() != tag:
            self.bad.append(tag)

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] == "h3":
            self.titles.append(data)


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("campaign")
    parts = fake_parts(FakeGenerator(iterations=4))
    with Store(folder / "campaign.db") as store, Campaign(SETTINGS, parts, store, folder) as campaign:
        campaign.run()
        write_cifs(campaign.history, folder)
        path = write_report(campaign.history, folder, [("potential", "fake & analytic")])
    return campaign.history, folder, Page(path.read_text())


def test_the_page_is_whole_and_needs_nothing_else(reported):
    history, folder, page = reported
    assert page.open == []
    assert page.bad == []
    assert all((folder / link).is_file() for link in page.links)  # only CIFs beside it: no network, no scripts
    assert len(page.links) == len(history.labels())
    assert len(set(page.ids)) == len(page.ids)  # figures do not take each other's clip paths


def test_every_figure_is_there(reported):
    titles = {"Finds against labels", "Hit rate by round", "Engine against shadow", "Stability and objective", "Funnel"}
    titles |= {"Energy above the hull", "Elements", "Predictions and labels", "Calibration", "Drift", "Learning"}
    titles |= {"Finds: stable and new", "Not stable, or without a usable label"}
    assert set(reported[2].titles) == titles


def test_names_and_protocol_are_text_and_not_markup(reported):
    """Case 92 of tests/cases."""
    texts = " ".join(reported[2].texts)
    assert "<b>reported</b>" in texts
    assert "fake & analytic" in texts
    assert "while learning: far-above" in texts


def test_the_table_says_what_the_ranked_list_says(reported):
    history, _, page = reported
    rows = ranked_rows(history)
    page_text = " ".join(text.strip() for text in page.texts if text.strip())
    positions = [page_text.index(f" {row['rank']} {row['formula']} ") for row in rows]
    assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("low", "high", "words", "shown"),
    [
        pytest.param(1.2, 4.0, "lies above 1: it pays", True, id="better"),
        pytest.param(1.0001, 4.0, "1.00 to 4.00). The interval includes 1: this", False, id="as shown"),
        pytest.param(0.5, 4.0, "includes 1: this campaign does not show that it pays", False, id="open"),
        pytest.param(0.1, 0.8, "lies below 1: it did worse", False, id="worse"),
    ],
)
def test_the_verdict_follows_the_interval(low, high, words, shown):
    metrics = {"gain": 1.0, "gain_low": low, "gain_high": high}
    metrics |= {f"{arm}_{what}": 3.0 for arm in ("engine", "shadow") for what in ("hits", "labels")}
    verdict = _verdict(metrics, "gain", "shadow", "chance", "it pays")
    assert words in verdict["text"]
    assert verdict["shown"] is shown


def test_a_campaign_without_rounds_or_usable_labels_is_reported_too(tmp_path):
    class Broken(FakeOracle):
        def _evaluate(self, candidate):
            found = super()._evaluate(candidate)
            return replace(found, status="failed:exploded", properties={}, structure=None)

    settings = replace(SETTINGS, name="broken", rounds=1)
    with Store(tmp_path / "campaign.db") as store:
        store.append("new", 0, CAMPAIGN, CREATED, {"settings": {"name": "new"}, "oracle": "o", "oracle_settings": "s"})
        fresh = History.load(store, "new")
        assert "no round done" in str(context(fresh, []))
        write_report(fresh, tmp_path)
        with Campaign(settings, fake_parts(oracle=Broken()), store, tmp_path) as campaign:
            campaign.run()
            page = Page(write_report(campaign.history, tmp_path).read_text())
    assert "no usable label yet" in " ".join(page.texts)
    assert page.open == []


def test_figures_are_the_same_twice(reported):
    from loop.report import figures

    history = reported[0]
    assert to_svg(figures.pareto(history), "a") == to_svg(figures.pareto(history), "a")
    assert not re.search(r"<image|<script", to_svg(figures.elements(history), "b"))


def test_numbers_for_people():
    assert [energy(x) for x in (None, np.nan, -8e-16, 0.0996, -0.05)] == ["–", "–", "0.000", "0.100", "-0.050"]
    assert energy(-0.001, 0.1) == "0.00 ± 0.10"
    assert [number(x) for x in (None, np.nan, 0.01234, 123456.7)] == ["–", "–", "0.0123", "123,457"]
    assert [number(2.0, 3, "GPa"), percent(0.5), percent(np.nan), ratio(1e4)] == ["2 GPa", "50%", "–", "more than 100"]
