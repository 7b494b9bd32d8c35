"""The public suite passes for every kind of potential, and each of its checks can fail."""

import dataclasses
from functools import lru_cache

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from oracles.potentials.base import Potential
from oracles.potentials.conformance import conformance, default_crystals
from oracles.potentials.loading import load_potential
from tests.test_oracles_potentials import tiny_mace

torch.set_num_threads(1)
EMT = "ase.calculators.emt:EMT"
LJ = {"sigma": 2.3, "epsilon": 0.2, "rc": 6.0, "smooth": True}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = tiny_mace(tmp_path_factory.mktemp("mace") / "tiny.model")
    return {
        "chgnet, float32": load_potential("chgnet", device="cpu"),
        "chgnet, float64": load_potential("chgnet", device="cpu", dtype="float64"),
        "mace": load_potential(f"mace:{path}", device="cpu", trust=True),
        "emt": load_potential(EMT),
        "lj": load_potential("ase.calculators.lj:LennardJones", options=LJ),
    }


@pytest.mark.parametrize("name", ["chgnet, float32", "chgnet, float64", "mace", "emt", "lj"])
def test_shipped_potentials_conform(loaded, name):
    crystals = default_crystals(loaded[name])[::2] if name == "chgnet, float64" else None  # the first and the last
    findings = conformance(loaded[name], crystals)
    assert [finding for finding in findings if not finding.passed] == []
    assert len(findings) == 12
    assert all(finding.text for finding in findings)


class Remembering(Potential):
    """EMT that computes a crystal once: the faults below are all tried on the same ones."""

    def __init__(self):
        self.right, self.known = load_potential(EMT), {}
        super().__init__(self.right.about)

    def compute(self, structures, groups, *, gradients):
        found = []
        for structure, group in zip(structures, groups, strict=True):
            key = (
                structure.lattice.matrix.tobytes(),
                structure.frac_coords.tobytes(),
                tuple(structure.species),
                gradients,
            )
            if key not in self.known:
                (self.known[key],) = self.right.compute([structure], [group], gradients=gradients)
            found.append(self.known[key])
        return found

    def calculator(self):
        return self.right.calculator()


@lru_cache
def emt():
    return Remembering()


class Broken(Potential):
    """EMT with one fault."""

    def __init__(self, fault):
        self.right = emt()
        about = self.right.about
        if fault == "provenance":
            about = dataclasses.replace(about, citation="")
        super().__init__(about)
        self.fault, self.calls = fault, 0

    def compute(self, structures, groups, *, gradients):
        self.calls += 1
        if self.fault == "inputs":
            structures[0].translate_sites([0], [0.1, 0, 0])
        points = self.right.compute(structures, groups, gradients=gradients)
        return [self.spoiled(p, s, len(structures), gradients) for p, s in zip(points, structures, strict=True)]

    def spoiled(self, point, structure, batch, gradients):
        extra = {
            "batches": 1e-3 * (batch - 1),
            "repeatability": 1e-3 * (self.calls % 2),
            "translation": 1e-3 * structure.frac_coords[0, 0],
            "rotation": 1e-3 * structure.lattice.matrix[0, 1],
            "supercell": 1e-3 * len(structure),
            "order": 1e-3 * structure.atomic_numbers[0],
        }.get(self.fault, 0.0)
        point = dataclasses.replace(point, energy=point.energy + extra)
        if gradients and self.fault == "forces":
            point = dataclasses.replace(point, forces=point.forces * 1.01)
        if gradients and self.fault == "stress":
            point = dataclasses.replace(point, stress=-point.stress)
        return point

    def check(self, structure):
        verdict = super().check(structure)
        unknown = self.fault == "unknown elements" and "unsupported" in verdict.status
        return dataclasses.replace(verdict, status="failed:error") if unknown else verdict

    def calculator(self):
        return (
            load_potential("ase.calculators.lj:LennardJones") if self.fault == "calculator" else self.right
        ).calculator()


FAULTS = ["provenance", "batches", "repeatability", "forces", "stress", "translation", "rotation", "supercell", "order"]
FAULTS += ["inputs", "unknown elements", "calculator"]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_check(fault):
    found = {finding.name: finding for finding in conformance(Broken(fault))}
    assert not found[fault].passed
    assert found[fault].text


def test_one_fault_does_not_spoil_the_other_checks():
    failed = [finding.name for finding in conformance(Broken("forces")) if not finding.passed]
    assert failed == ["forces", "calculator"]


def test_own_crystals_can_be_given(loaded):
    from tests.crystals import triclinic

    crystal = triclinic()
    assert all(finding.passed for finding in conformance(loaded["chgnet, float64"], [crystal]))
    refused = conformance(loaded["emt"], [crystal])
    assert not any(finding.passed for finding in refused if finding.name == "forces")
    assert any("unsupported-element" in finding.text for finding in refused)
    assert np.isfinite(crystal.frac_coords).all()


def test_doctor_runs_it():
    from flows.cli import app

    done = CliRunner().invoke(app, ["doctor", "--potential", EMT])
    assert done.exit_code == 0, done.stdout
    assert "negative gradient" in done.stdout
    unknown = CliRunner().invoke(app, ["doctor", "--potential", "nothing"])
    assert unknown.exit_code == 1
    assert "no potential 'nothing'" in unknown.stderr
