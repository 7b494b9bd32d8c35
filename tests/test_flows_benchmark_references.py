"""The hull benchmark: metrics against sklearn, and a small run."""

import json

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from sklearn.metrics import confusion_matrix, precision_score, recall_score

from flows.benchmarks.oracles import references_on_demand
from flows.benchmarks.oracles.references import Arrays, metrics, run
from loop.errors import InputError
from loop.io.cif_writer import to_cif
from oracles.potentials.calculator import to_structure
from oracles.potentials.loading import load_potential
from oracles.references.hull_on_demand import demand_hull
from oracles.relax import RelaxConfig, relax


def test_metrics_are_those_of_sklearn():
    rng = np.random.default_rng(0)
    published = np.abs(rng.normal(0, 0.15, 300))
    found = published + rng.normal(0.01, 0.08, 300)
    truly, said = published <= 0.1, found <= 0.1
    result = metrics(Arrays(published, found))
    tn, fp, fn, tp = confusion_matrix(truly, said).ravel()
    assert [result[f"{a}_{b}"] for a in ("true", "false") for b in ("negatives", "positives")] == [tn, tp, fn, fp]
    assert result["precision"] == pytest.approx(precision_score(truly, said))
    assert result["recall"] == pytest.approx(recall_score(truly, said))
    assert result["mae"] == pytest.approx(np.abs(found - published).mean())


def test_what_was_not_found_counts_as_not_stable():
    result = metrics(Arrays(np.array([0.0, 0.0, 0.5]), np.array([0.0, np.nan, np.nan])))
    assert (result["recall"], result["precision"], result["found"]) == (0.5, 1.0, 1)
    with pytest.raises(InputError):
        metrics(Arrays(np.array([0.0]), np.array([np.nan])))


def test_a_small_run_leaves_record_table_and_figure(tmp_path):
    crystals = {"MgO": bulk("MgO", "rocksalt", a=4.21), "NaCl": bulk("NaCl", "rocksalt", a=5.64), "Cu": bulk("Cu")}
    rows = [(f, f, len(a), 0.0, "test", to_cif(to_structure(a))) for f, a in crystals.items()]
    names = ["material_id", "pretty_formula", "n_atoms", "e_above_hull", "split", "cif"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "data.csv", index=False)
    record = run(tmp_path / "out", 2, [tmp_path / "data.csv"])
    assert record == json.loads((tmp_path / "out" / "record.json").read_text())
    assert record["results"]["relaxed"]["statuses"] == {"ok": 2}
    assert record["results"]["unrelaxed_full_hull"]["mae"] < 0.02
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert len(table) == 3
    assert "published" not in table
    assert (tmp_path / "out" / "parity.png").stat().st_size > 1000


def test_a_killed_run_relaxes_nothing_twice(tmp_path, monkeypatch):
    from flows.benchmarks.oracles import references
    from oracles import relax as relaxing

    crystals = {"MgO": bulk("MgO", "rocksalt", a=4.21), "NaCl": bulk("NaCl", "rocksalt", a=5.64)}
    rows = [(f, f, len(a), 0.0, "test", to_cif(to_structure(a))) for f, a in crystals.items()]
    names = ["material_id", "pretty_formula", "n_atoms", "e_above_hull", "split", "cif"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "data.csv", index=False)
    asked, right = [], relaxing.relax

    def counted(structures, *arguments, **options):
        asked.append(len(structures))
        return right(structures, *arguments, **options)

    monkeypatch.setattr(relaxing, "relax", counted)
    with monkeypatch.context() as patched:
        patched.setattr(references, "_place", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        patched.setattr(
            references, "_unrelaxed", lambda *_: {"unrelaxed": 0.0, "unrelaxed_full_hull": 0.0, "sparse": False}
        )
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "out", 2, [tmp_path / "data.csv"])
    record = run(tmp_path / "out", 2, [tmp_path / "data.csv"])
    assert asked == [2, 0]
    assert record["results"]["relaxed"]["statuses"] == {"ok": 2}


def test_data_without_test_rows_is_refused(tmp_path):
    (tmp_path / "x.csv").write_text("material_id,cif\n1,a\n")
    with pytest.raises(InputError, match="split"):
        run(tmp_path / "out", 1, [tmp_path / "x.csv"])


@pytest.fixture
def alloys(tmp_path):
    """Gold-copper alloys of the test split, one of them 0.4 eV/atom too high by what is published."""
    cells = {"CuAu": (bulk("Cu", "sc", a=2.8) * (1, 1, 2), 0.0), "Cu3Au": (bulk("Cu", "fcc", a=3.75, cubic=True), 0.4)}
    rows = []
    for formula, (atoms, height) in cells.items():
        atoms[0].symbol = "Au"
        rows.append((formula, formula, len(atoms), height, "test", to_cif(to_structure(atoms))))
    names = ["material_id", "pretty_formula", "n_atoms", "e_above_hull", "split", "cif"]
    pd.DataFrame(rows, columns=names).to_csv(tmp_path / "data.csv", index=False)
    return tmp_path / "data.csv"


def test_a_potential_without_a_table_judges_by_its_own_hull(alloys, tmp_path, monkeypatch):
    monkeypatch.setenv("DISCOVERY_LOOP_PHASES", str(tmp_path / "phases.db"))
    emt = load_potential("ase.calculators.emt:EMT")
    pd.DataFrame({"material_id": ["Cu3Au"], "relaxed_full_hull": [0.1]}).to_csv(tmp_path / "former.csv", index=False)
    record = references_on_demand.run(tmp_path / "out", 5, [alloys], emt, former=tmp_path / "former.csv")
    assert record == json.loads((tmp_path / "out" / "record.json").read_text())
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("material_id")
    hull = demand_hull(emt, RelaxConfig())
    ordered = relax([to_structure(l12())], emt, RelaxConfig())[0]
    expected = hull.batch(["Cu3Au"], [ordered.energy], emt.energy_type)[0]
    assert table.loc["Cu3Au", "relaxed_full_hull"] == pytest.approx(expected.e_above_hull, abs=1e-4)
    assert set(expected.decomposition) == {
        part.split(":")[0] for part in table.loc["Cu3Au", "competing_full_hull"].split()
    }
    results = record["results"]
    assert results["relaxed_full_hull"]["found"] == results["relaxations"]["statuses"]["ok"] == 2
    assert results["relaxed_full_hull"]["phases"] > 2
    assert results["same_crystals_full_hull"]["rows"] == results["former_relaxed_full_hull"]["rows"] == 1
    assert results["former_relaxed_full_hull"]["mae"] == pytest.approx(0.3)
    before = emt_calls(monkeypatch)
    again = references_on_demand.run(tmp_path / "out", 5, [alloys], emt)
    mae = results["relaxed_full_hull"]["mae"]
    assert again["results"]["relaxed_full_hull"]["mae"] == pytest.approx(mae, abs=1e-6)
    assert sum(before) == 0  # the ledger holds the phases


def test_only_the_first_crystals_get_the_distance_itself(alloys, tmp_path, monkeypatch):
    """All get a verdict and bounds; that bounds hold is tested where the hull is."""
    monkeypatch.setenv("DISCOVERY_LOOP_PHASES", str(tmp_path / "phases.db"))
    emt = load_potential("ase.calculators.emt:EMT")
    former = tmp_path / "former.csv"
    pd.DataFrame({"material_id": ["CuAu", "Cu3Au"], "relaxed_full_hull": [0.2, 0.3]}).to_csv(former, index=False)
    results = references_on_demand.run(tmp_path / "out", 5, [alloys], emt, exact=1, former=former)["results"]
    table = pd.read_csv(tmp_path / "out" / "table.csv").set_index("material_id")
    assert table["exact"].tolist() == [True, False]
    assert results["relaxed_full_hull"]["rows"] == 1
    assert results["same_crystals_full_hull"]["rows"] == results["former_relaxed_full_hull"]["rows"] == 1
    verdicts, former = results["verdicts_full_hull"], results["former_verdicts_full_hull"]
    assert verdicts["rows"] == results["same_verdicts_full_hull"]["rows"] == former["rows"] == 2
    assert former["false_negatives"] == former["true_negatives"] == 1
    published = np.array([{"CuAu": 0.0, "Cu3Au": 0.4}[id] for id in table.index])
    low, high, standing, found = (
        table[f"{name}_full_hull"].to_numpy() for name in ("lowest", "highest", "standing", "relaxed")
    )
    assert (low <= high + 1e-5).all()
    errors = np.abs(np.array([low, high, np.clip(published, low, high)]) - published)
    assert verdicts["mae_most"] == pytest.approx(errors.max(axis=0).mean(), abs=1e-5)
    assert verdicts["mae_least"] == pytest.approx(errors.min(axis=0).mean(), abs=1e-5)
    before, after = (np.abs(np.maximum(each, 0.0) - published) for each in (standing, found))
    assert verdicts["mae_clipped_standing"] == pytest.approx(before.mean(), abs=1e-5)
    one = before.mean() + (after - before)[0]  # the change of the one crystal whose distance was computed
    assert verdicts["mae_clipped_all"]["value"] == pytest.approx(one, abs=1e-5)


def test_the_error_of_all_is_found_from_a_part():
    """400 crystals whose phases relax by up to 0.02 eV/atom: 40 of them tell the mean error of all."""
    rng = np.random.default_rng(0)
    published = np.where(rng.random(400) < 0.7, 0.0, rng.gamma(2.0, 0.1, 400))
    standing = published + rng.normal(0.0, 0.05, 400)
    relaxed = standing + rng.uniform(0.0, 0.02, 400)
    frame = pd.DataFrame(
        {"published": published, "standing": standing, "relaxed": relaxed, "exact": np.arange(400) < 40}
    )
    told = references_on_demand._error_of_all(frame)["mae_clipped_all"]
    right = np.abs(np.maximum(relaxed, 0.0) - published).mean()
    assert told["low"] < right < told["high"]
    assert told["high"] - told["low"] < 0.006
    assert abs(np.abs(np.maximum(standing, 0.0) - published).mean() - right) > 0.002  # by phases as published it is off


def l12():
    atoms = bulk("Cu", "fcc", a=3.75, cubic=True)
    atoms[0].symbol = "Au"
    return atoms


def emt_calls(monkeypatch):
    """How many crystals each further relaxation is asked for."""
    from oracles.references import phase_ledger

    asked, right = [], phase_ledger.relax

    def counted(structures, *arguments, **options):
        asked.append(len(structures))
        return right(structures, *arguments, **options)

    monkeypatch.setattr(phase_ledger, "relax", counted)
    return asked
