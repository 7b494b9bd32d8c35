"""The oracle made of potential, hull and equation of state: labels, guards, settings."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from ase.build import bulk
from pymatgen.core import Lattice, Structure

from loop.contracts import Oracle
from loop.errors import EnergyTypeError, PotentialError
from loop.values import Candidate, Evaluation
from oracles import mlip
from oracles.mlip import MlipConfig, PotentialOracle, build_oracle
from oracles.potentials.base import SinglePoint
from oracles.potentials.calculator import to_structure
from oracles.potentials.canary import check_canary
from oracles.potentials.loading import load_potential
from oracles.properties.bulk import BulkConfig
from oracles.references.table import load_references, write_references
from oracles.relax import RelaxConfig, relax

torch.set_num_threads(1)
EMT = "ase.calculators.emt:EMT"


def copper_gold() -> Structure:
    return Structure(Lattice.tetragonal(2.8, 3.7), ["Cu", "Au"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Reference phases for EMT: the elements and ordered Cu-Au."""
    potential = load_potential(EMT)
    crystals = {symbol: to_structure(bulk(symbol)) for symbol in ("Cu", "Au", "Al", "Ni")}
    crystals["AuCu"] = copper_gold()
    energies = [outcome.energy for outcome in relax(list(crystals.values()), potential, RelaxConfig(smax=0.01))]
    rows = pd.DataFrame({"formula": list(crystals), "energy_per_atom": energies, "id": list(crystals), "held_out": 0})
    path = tmp_path_factory.mktemp("references") / "emt.csv"
    write_references(path, rows, potential)
    return path


@pytest.fixture(scope="module")
def oracle(table):
    return build_oracle(MlipConfig(potential=EMT, references=str(table)))


def candidates() -> list[Candidate]:
    alloy = to_structure(bulk("Cu", cubic=True))
    alloy.replace(0, "Au")
    shaken = alloy.copy()
    shaken.perturb(0.05, seed=1)
    return [Candidate(copper_gold()), Candidate(shaken)]


def test_it_fulfils_the_contract(oracle):
    assert isinstance(oracle, Oracle)
    assert "@" in oracle.name
    labels = oracle.evaluate(candidates())
    assert [label.candidate_id for label in labels] == [candidate.id for candidate in candidates()]
    assert all(label.oracle == oracle.name and label.settings == oracle.settings_hash for label in labels)
    assert oracle.evaluate([]) == []


def test_a_label_holds_what_it_promises(oracle):
    label, other = oracle.evaluate(candidates())
    assert label.ok
    assert other.ok
    units = {"energy": "eV/atom", "e_above_hull": "eV/atom", "bulk_modulus": "GPa", "volume": "A^3/atom"}
    units |= {"max_force": "eV/A", "max_stress": "GPa", "steps": "1"}
    for name, unit in units.items():
        assert label.properties[name].unit == unit
        assert np.isfinite(label.value(name))
    assert label.value("e_above_hull") == pytest.approx(0, abs=1e-3)
    assert label.decomposition == pytest.approx({"CuAu": 1.0})
    assert sum(other.decomposition.values()) == pytest.approx(1)
    assert label.value("max_force") <= RelaxConfig().fmax
    assert (label.space_group, label.space_group_relaxed) == (123, 123)
    assert label.energy_type == oracle.potential.energy_type
    assert label.cost.seconds > 0


def test_a_label_costs_its_own_equation_of_state_not_a_share_of_all(oracle, monkeypatch):
    spent = iter((100.0, 200.0))
    measure = mlip.bulk_moduli

    def slower(*arguments):
        found = measure(*arguments)
        assert all(modulus.seconds > 0 for modulus in found)
        return [dataclasses.replace(modulus, seconds=next(spent)) for modulus in found]

    monkeypatch.setattr(mlip, "bulk_moduli", slower)
    costs = [label.cost.seconds for label in oracle.evaluate(candidates())]
    assert 100 < costs[0] < 110
    assert 200 < costs[1] < 210


def test_labels_survive_json(oracle):
    label = oracle.evaluate(candidates()[:1])[0]
    again = Evaluation.from_dict(json.loads(json.dumps(label.to_dict())))
    assert again == label


def test_the_distance_is_the_energy_less_the_products(oracle):
    label = oracle.evaluate(candidates())[1]
    energies = dict(zip(oracle.references.formulas, oracle.references.energies, strict=True))
    mixture = sum(energies[formula] * share for formula, share in label.decomposition.items())
    assert label.value("e_above_hull") == pytest.approx(label.value("energy") - mixture, abs=1e-9)


def test_failures_are_values_and_the_rest_goes_on(oracle):
    overlap = Structure(Lattice.cubic(3.6), ["Cu", "Cu"], [[0, 0, 0], [0.01, 0, 0]])
    unknown = Structure(Lattice.cubic(4.2), ["Cu", "Rn"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    labels = oracle.evaluate([Candidate(overlap), candidates()[0], Candidate(unknown)])
    assert [label.status for label in labels] == ["failed:overlap", "ok", "failed:unsupported-element"]
    assert all(label.message for label in labels if not label.ok)
    assert np.isnan(labels[0].value("e_above_hull"))


def test_an_element_without_reference_is_a_status(oracle):
    crystal = Structure(Lattice.cubic(2.9), ["Cu", "Pd"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    label = oracle.evaluate([Candidate(crystal)])[0]
    assert label.status == "failed:no-reference"
    assert "Pd" in label.message


def test_not_converged_is_no_label(table):
    config = MlipConfig(potential=EMT, references=str(table), relax=RelaxConfig(max_steps=1, fmax=1e-6))
    label = build_oracle(config).evaluate(candidates()[1:])[0]
    assert label.status == "not-converged"
    assert label.structure is not None
    assert "bulk_modulus" not in label.properties


def test_far_below_the_hull_is_an_error_and_no_jackpot(oracle):
    strict = PotentialOracle(oracle.potential, oracle.references, dataclasses.replace(oracle.config, lowest=0.1))
    label = strict.evaluate(candidates()[:1])[0]
    assert label.status == "failed:energy-outlier"
    assert "e_above_hull" not in label.properties
    assert "bulk_modulus" not in label.properties


def test_sparse_systems_abstain_unless_told_otherwise(oracle):
    crystal = Candidate(Structure(Lattice.cubic(2.9), ["Ni", "Al"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
    assert oracle.evaluate([crystal])[0].status == "failed:sparse-hull"
    bold = PotentialOracle(
        oracle.potential, oracle.references, dataclasses.replace(oracle.config, abstain_when_sparse=False)
    )
    label = bold.evaluate([crystal])[0]
    assert label.ok
    assert label.value("hull_sparse") == 1
    assert "too few" in label.message


def test_the_modulus_is_measured_only_where_wanted(table):
    config = MlipConfig(potential=EMT, references=str(table), bulk=None)
    assert "bulk_modulus" not in build_oracle(config).evaluate(candidates()[:1])[0].properties
    config = MlipConfig(potential=EMT, references=str(table), bulk_below=-1.0)
    label = build_oracle(config).evaluate(candidates()[:1])[0]
    assert label.ok
    assert "bulk_modulus" not in label.properties


def test_references_of_another_potential_are_refused():
    with pytest.raises(EnergyTypeError, match=r"EMT.*CHGNet"):
        PotentialOracle(load_potential(EMT), load_references())


CHANGES = {
    "relax": RelaxConfig(fmax=0.01),
    "bulk": BulkConfig(points=9),
    "bulk_below": 0.1,
    "lowest": -0.3,
    "abstain_when_sparse": False,
}


def test_the_hash_of_the_settings_knows_what_changes_a_result(oracle):
    hashes = {oracle.settings_hash}
    for name, value in CHANGES.items():
        config = dataclasses.replace(oracle.config, **{name: value})
        hashes.add(PotentialOracle(oracle.potential, oracle.references, config).settings_hash)
    other = dataclasses.replace(oracle.references, checksum="other")
    hashes.add(PotentialOracle(oracle.potential, other, oracle.config).settings_hash)
    assert len(hashes) == len(CHANGES) + 2
    faster = dataclasses.replace(oracle.config, relax=RelaxConfig(batch_size=3))
    assert PotentialOracle(oracle.potential, oracle.references, faster).settings_hash == oracle.settings_hash


def test_a_wrong_potential_labels_nothing(monkeypatch):
    potential = load_potential("chgnet", device="cpu")
    check_canary(potential)
    right = potential.single_points

    def wrong(structures, **options):
        return [dataclasses.replace(point, energy=point.energy + 0.01) for point in right(structures, **options)]

    monkeypatch.setattr(potential, "single_points", wrong)
    with pytest.raises(PotentialError, match=r"expected -5\.3122"):
        PotentialOracle(potential, load_references())


def test_a_potential_without_known_energies_must_at_least_agree_with_itself(monkeypatch):
    potential = load_potential("ase.calculators.lj:LennardJones", options={"rc": 5.0})
    check_canary(potential)
    monkeypatch.setattr(potential, "single_points", lambda s, **_: [SinglePoint(energy=float(len(x))) for x in s])
    with pytest.raises(PotentialError):
        check_canary(potential)


def test_chgnet_labels_a_crystal_in_seconds():
    oracle = build_oracle(MlipConfig(device="cpu"))
    crystal = Structure(Lattice.cubic(4.0), ["Ti", "N"] * 4, [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0, 0, 0.5],
                        [0.5, 0, 0.5], [0, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0]])  # fmt: skip
    label = oracle.evaluate([Candidate(crystal)])[0]
    assert label.ok, label.message
    assert label.value("e_above_hull") == pytest.approx(0, abs=0.01)
    assert label.value("bulk_modulus") == pytest.approx(277, rel=0.25)  # PBE; Materials Project mp-492
    assert label.space_group_relaxed == 225
