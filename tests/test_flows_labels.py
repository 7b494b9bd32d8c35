"""Labels from elsewhere: what is out of range, comes later, repeats or contradicts."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
import pytest

from flows.tables.import_labels import import_labels
from loop.errors import EnergyTypeError, InputError, StoreError
from loop.properties import physical
from loop.store import OracleKey, Store
from loop.values import Evaluation, Quantity
from tests.test_loop_tiers import campaign, finished, form, give_back, reload  # noqa: F401

CASE = Path(__file__).parent / "cases" / "71_import_labels"


def case(folder, name):
    """A file of the case, with crystals of this campaign for those of the case, in their order."""
    text = (CASE / name).read_bytes().decode("utf-8")
    ours = [*form(folder)["candidate_id"], *form(folder, 1)["candidate_id"]]
    for theirs in dict.fromkeys(re.findall(r"\b[0-9a-f]{16}\b", text)):
        text = text.replace(theirs, ours.pop(0))
    return text


def take(folder, name):
    (folder / name).write_bytes(case(folder, name).encode("utf-8"))
    with Store(folder / "campaign.db") as store:
        return import_labels(store, "tiers", folder / name)


def test_a_spreadsheet_with_bad_cells(campaign):  # noqa: F811
    """Case 71: 1.5 and 1e0 are taken, the others named."""
    done = take(campaign, "excel.csv")
    assert (done.taken, dict(done.skipped)) == (2, {"bad value": 3, "unknown id": 1})
    told = "\n".join(done.examples)
    for word in ("'2,5'", "-0.1", "finite", "ffff"):
        assert word in told
    values = [e.value("band_gap") for e in reload(campaign).tiers["handoff"].evaluations.values()]
    assert sorted(values) == [1.0, 1.5]


@pytest.mark.parametrize(
    ("name", "said", "kind"),
    [
        ("semi.csv", "expected a column candidate_id", InputError),
        ("nounit.csv", "expected the unit eV", InputError),
        ("conflict.csv", "rows 2 and 3 give different results", InputError),
        ("energytotal.csv", "expected the unit eV/atom", InputError),
        ("notes.csv", "column 'notes'", InputError),
        ("comment.csv", "expected no more cells in a row", InputError),
    ],
)
def test_files_that_are_refused_whole(campaign, name, said, kind):  # noqa: F811
    """Case 71."""
    with pytest.raises(kind, match=said):
        take(campaign, name)
    assert reload(campaign).tiers["handoff"].evaluations == {}


def test_energies_with_their_type(campaign):  # noqa: F811
    """Case 71."""
    assert take(campaign, "energy.csv").taken == 1


def test_a_property_that_is_measured_later_is_added(campaign):  # noqa: F811
    names = list(form(campaign)["candidate_id"])
    first = pd.DataFrame(
        {"candidate_id": names, "band_gap (eV)": ["1", "2", "3", ""], "status": ["", "", "", "failed:scf"]}
    )
    assert give_back(campaign, first).taken == 4
    later = pd.DataFrame({"candidate_id": names, "dielectric_total": ["4", "5", "6", "7"]})
    done = give_back(campaign, later)
    assert (done.taken, done.extended) == (3, 3)
    assert dict(done.skipped) == {"contradicts its label": 1}
    assert "its status is failed:scf there, ok in the file" in done.examples[0]
    evaluations = reload(campaign).tiers["handoff"].evaluations
    assert [evaluations[name].value("band_gap") for name in names[:3]] == [1, 2, 3]
    assert [evaluations[name].value("dielectric_total") for name in names[:3]] == [4, 5, 6]
    assert (give_back(campaign, later).taken, give_back(campaign, first).taken) == (0, 0)


def test_an_energy_that_comes_later_brings_its_type(campaign):  # noqa: F811
    name = form(campaign)["candidate_id"][0]
    give_back(campaign, pd.DataFrame({"candidate_id": [name], "band_gap (eV)": ["1"]}))
    energy = pd.DataFrame({"candidate_id": [name], "energy (eV/atom)": ["-3"]})
    energy[["method", "functional", "corrections"]] = [["VASP", "PBE", "none"]]
    assert give_back(campaign, energy).extended == 1
    assert str(reload(campaign).tiers["handoff"].evaluations[name].energy_type) == "VASP/PBE/none"
    energy["functional"] = "PBEsol"
    with pytest.raises(EnergyTypeError):
        give_back(campaign, energy)


def test_a_contradiction_is_named_and_what_is_there_stays(campaign):  # noqa: F811
    name = form(campaign)["candidate_id"][0]
    give_back(campaign, pd.DataFrame({"candidate_id": [name], "band_gap (eV)": ["1.5"]}))
    both = pd.DataFrame({"candidate_id": [name], "band_gap (eV)": ["1.7"], "dielectric_total": ["4"]})
    done = give_back(campaign, both)
    assert (done.taken, dict(done.skipped)) == (0, {"contradicts its label": 1})
    assert f"row 2: contradicts its label: {name}: band_gap is 1.5 eV there, 1.7 in the file" in done.examples[0]
    assert reload(campaign).tiers["handoff"].evaluations[name].properties == {"band_gap": Quantity(1.5, "eV")}


def test_rows_of_one_crystal_add_up(campaign):  # noqa: F811
    name = form(campaign)["candidate_id"][0]
    rows = f"candidate_id,band_gap (eV),dielectric_total\n{name},1.5,\n{name},,4\n{name},1.5,4\n"
    done = give_back(campaign, pd.read_csv(io.StringIO(rows), dtype=str, keep_default_na=False))
    assert (done.taken, dict(done.skipped)) == (1, {"repeated": 1})
    found = reload(campaign).tiers["handoff"].evaluations[name]
    assert (found.value("band_gap"), found.value("dielectric_total")) == (1.5, 4)


@pytest.mark.parametrize("value", ["0", "-5", "1e12", "inf"])
def test_what_no_crystal_has_is_skipped_by_name(campaign, value):  # noqa: F811
    name = form(campaign)["candidate_id"][0]
    done = give_back(campaign, pd.DataFrame({"candidate_id": [name], "bulk_modulus (GPa)": [value]}))
    assert (done.taken, dict(done.skipped)) == (0, {"bad value": 1})
    assert "bulk_modulus" in done.examples[0]


def test_bounds_hold_under_the_name_of_an_oracle():
    assert physical("dft_band_gap", 0.0) == 0
    assert physical("hardness", -3.0) == -3  # of which nothing is known
    for name, value in {"dft_band_gap": -0.1, "lab_shear_modulus": 0.0, "dielectric_total": 0.5}.items():
        with pytest.raises(InputError, match=f"{name} must be"):
            physical(name, value)


def test_the_ledger_adds_properties_and_replaces_none(tmp_path):
    key = OracleKey("lab@1", "s")
    gap, dielectric = (
        Evaluation("x", *("lab@1", "s"), "ok", {n: Quantity(2.0, u)}) for n, u in (("a", "eV"), ("b", "1"))
    )
    with Store(tmp_path / "l.db") as store:
        with pytest.raises(StoreError, match="no label of x"):
            store.extend([gap])
        store.claim(["x"], key)
        store.finish([gap])
        store.extend([dielectric])
        assert set(store.evaluations(["x"], key)["x"].properties) == {"a", "b"}
        with pytest.raises(StoreError, match="holds a already"):
            store.extend([gap])
