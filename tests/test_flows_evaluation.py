"""The evaluation of generated crystals: each number against crystals whose answer is known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from flows.cli import app
from flows.evaluation.distances import coverage, total_variation, wasserstein
from flows.evaluation.figures import HULL_EDGES, figure_of
from flows.evaluation.report import EvaluationConfig, evaluate, told
from loop.elements import CRYSTAL_SYSTEMS
from loop.io.crystals import CrystalTable, read_crystals, write_crystals
from tests import crystals as known

CASES = Path(__file__).parent / "cases"
NONE = EvaluationConfig(relax=0, shipped=False)


def squeezed(scale: float) -> Structure:
    structure = known.nacl().copy()
    structure.scale_lattice(structure.volume * scale)
    return structure


def table(tmp_path, structures, name="s.csv"):
    write_crystals(tmp_path / name, [str(i) for i in range(len(structures))], structures)
    return read_crystals(tmp_path / name)


def test_rules_and_verdicts(tmp_path):
    crowded = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.1, 0, 0]])  # 0.4 A apart
    charged = Structure(Lattice.cubic(4.5), ["Na", "Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0]])
    moved = known.perovskite().copy()
    moved.translate_sites(range(len(moved)), [0.3, 0.1, 0.2])
    samples = [known.perovskite(), moved, known.nacl(), known.nacl(), crowded, charged, squeezed(0.2)]
    # not by way of a file: what reads files refuses the crowded one
    made = CrystalTable([*map(str, range(7)), "broken"], [*samples, None], pd.DataFrame(index=range(8)), [])
    record = evaluate(made, table(tmp_path, [known.nacl()], "r.csv"), tmp_path / "out", config=NONE)
    rows = pd.read_csv(tmp_path / "out" / "crystals.csv", keep_default_na=False)
    assert rows["broken_rule"].tolist() == ["", "", "", "", "atoms-too-close", "", "bonds-too-short"]
    assert rows["composition_valid"].tolist() == [True] * 5 + [False, True]
    assert rows["verdict"].tolist()[:4] == ["new", "duplicate", "known", "duplicate"]
    results = record["results"]
    assert (results["samples"], results["readable"]) == (8, 7)
    assert results["structure_valid"]["count"] == 6
    assert results["structure_valid_strict"]["count"] == 5
    assert results["valid"]["count"] == 5
    assert results["unique"]["share"] == pytest.approx(rows["unique"].sum() / 8)
    assert "stable" not in results
    assert (tmp_path / "out" / "distributions.png").stat().st_size > 1000


@pytest.mark.filterwarnings("ignore:No data available")
def test_no_element_ends_the_evaluation(tmp_path):
    record = evaluate(read_crystals(CASES / "73_heavy_elements" / "all.csv"), None, tmp_path, config=NONE)
    rows = pd.read_csv(tmp_path / "crystals.csv", keep_default_na=False).set_index("id")
    assert len(rows) == record["results"]["readable"] == 36
    assert rows.loc["UO", "broken_rule"] == ""
    assert (rows.loc["RfO":"OgO", "broken_rule"] == "no-oxidation-states").all()
    assert not rows.loc["RfO":"OgO", "composition_valid"].any()


def test_energies_say_what_is_stable_and_new(tmp_path):
    from flows.build import Builder
    from flows.config import CampaignConfig
    from flows.evaluation.report import Evaluators

    stretched = squeezed(1.5)
    samples = table(tmp_path, [known.nacl(), known.wurtzite(), stretched])
    config = EvaluationConfig(relax=2, shipped=True, reference_energies=2)
    record = evaluate(
        samples,
        table(tmp_path, [known.rutile()] * 4, "r.csv"),
        tmp_path / "out",
        Evaluators(Builder(CampaignConfig())),
        config,
    )
    rows = pd.read_csv(tmp_path / "out" / "crystals.csv")
    assert rows["e_above_hull"][0] < 0.1 < rows["e_above_hull"][2]
    results = record["results"]
    assert results["metastable"]["count"] == 2
    assert results["msun"]["count"] == 0  # rock salt and wurtzite are among the shipped fingerprints
    assert results["relaxed"]["crystals"] == 2
    relaxed = rows["e_above_hull_relaxed"]
    assert relaxed.notna().sum() == 2
    # as drawn on phases as they stand, relaxed on relaxed phases: what these gain by relaxing is some 0.01 eV/atom
    assert (relaxed <= rows["e_above_hull"] + 0.02)[relaxed.notna()].all()
    assert np.isfinite(results["distances"]["formation_energy_wasserstein"])


def test_coverage_of_itself_and_of_something_else():
    rng = np.random.default_rng(0)

    def salts(cations, anions, n):
        made = []
        for _ in range(n):
            structure = known.nacl().copy()
            structure.replace_species({"Na": str(rng.choice(cations)), "Cl": str(rng.choice(anions))})
            structure.scale_lattice(structure.volume * rng.uniform(0.8, 1.4))
            made.append(structure)
        return made

    reference = salts(["Li", "Na", "K"], ["F", "Cl", "Br"], 40)
    same = coverage(reference, reference, lambda *_: None)
    assert same["coverage"] == same["precision"] == 1
    assert same["structure_mean_nearest"] == pytest.approx(0, abs=1e-6)
    alike = coverage(salts(["Li", "Na", "K"], ["F", "Cl", "Br"], 40), reference, lambda *_: None)
    assert alike["coverage"] > 0.6
    other = coverage(salts(["U", "Th"], ["W", "Re"], 40), reference, lambda *_: None)
    assert other["coverage"] == other["precision"] == 0
    narrow = coverage(salts(["Li"], ["F"], 40), reference, lambda *_: None)
    assert narrow["coverage"] < 0.5 < narrow["precision"]  # what is drawn is real, and little of what is real is drawn


def test_distances_of_distributions():
    assert total_variation("aab", "aab") == 0
    assert total_variation("aa", "bb") == 1
    assert total_variation("ab", "aa") == pytest.approx(0.5)
    assert wasserstein([0, 1], [2, 3]) == pytest.approx(2)
    assert np.isnan(wasserstein([], [1]))


def test_held_out_likelihood_through_the_command_line(tmp_path):
    write_crystals(
        tmp_path / "s.csv", ["a", "b", "c", "d"], [known.nacl(), known.rutile(), known.wurtzite(), known.spinel()]
    )
    common = [
        "evaluate-generator",
        "--input",
        tmp_path / "s.csv",
        "--output",
        tmp_path / "o",
        "--no-energies",
        "--json",
    ]
    done = CliRunner().invoke(app, [str(a) for a in [*common, "--held-out", tmp_path / "s.csv"]])
    assert done.exit_code == 0, done.stderr
    results = json.loads(done.stdout)
    terms = results["held_out_nll"]
    assert terms["crystals"] == 4
    assert terms["nll"] == pytest.approx(sum(terms[name] for name in ("w", "a", "xyz", "l")))
    scored = CliRunner().invoke(
        app, [str(a) for a in ["likelihood", "--input", tmp_path / "s.csv", "--output", tmp_path / "l.csv"]]
    )
    assert scored.exit_code == 0, scored.stderr
    assert terms["nll"] == pytest.approx(-pd.read_csv(tmp_path / "l.csv")["logp"].mean(), abs=1e-4)
    assert "distances" not in results


def test_what_is_told_holds_intervals_and_what_was_relaxed():
    share = {"share": 0.5, "low": 0.1, "high": 0.9, "count": 2}
    relaxed = {"crystals": 3, "statuses": {"ok": 2, "not-converged": 1}, "msun": share, "median_energy_gained": 0.25}
    lines = told({"samples": 4, "readable": 4, "valid": share, "e_above_hull": {"p50": 0.1}, "relaxed": relaxed})
    assert lines["valid"] == "0.500 (0.100 to 0.900), 2 of 4"
    assert lines["relaxed"] == "3 (2 ok, 1 not-converged)"
    assert lines["relaxed: msun"] == "0.500 (0.100 to 0.900), 2 of 3"
    assert lines["relaxed: energy gained"] == "0.25 eV/atom (median)"


@pytest.mark.parametrize("reference", [[], [known.rutile(), known.wurtzite()]])
def test_the_figure_has_labels_and_bars_on_their_ticks(reference):
    rows = pd.DataFrame({"e_above_hull": [0.05, 0.35, 9.0]})
    axes = figure_of([known.nacl(), known.spinel(), known.perovskite()], reference, rows).axes
    assert len(axes) == 6
    assert all(axis.get_xlabel() and axis.get_ylabel() for axis in axes)
    assert "eV/atom" in axes[4].get_xlabel()
    for axis in axes[1:4]:
        centres = np.array([bar.get_x() + bar.get_width() / 2 for bar in axis.patches]).reshape(1 + bool(reference), -1)
        np.testing.assert_allclose(centres.mean(axis=0), axis.get_xticks(), atol=1e-12)
    assert [bar.get_height() for bar in axes[2].patches][: len(CRYSTAL_SYSTEMS)] == [
        0,
        0,
        0,
        0,
        0,
        0,
        1,
    ]  # all are cubic
    found = axes[4].patches[0].get_data()
    assert (found.values[[5, 8, -1]] == 1).all()  # 9 eV/atom is in the last bin
    np.testing.assert_allclose(found.edges, HULL_EDGES)
    assert "1 of them beyond the axis" in axes[4].get_title()
    assert axes[5].texts[0].get_text() == "not measured"
