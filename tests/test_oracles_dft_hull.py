"""Distances above DFT's own hull: an engine that is EMT shows the mechanism, the real one is in the test marked dft."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure
from typer.testing import CliRunner

from flows.benchmarks.oracles import dft_hull as benchmark
from flows.cli import app
from flows.config import read_config
from flows.goals import measured_properties
from flows.tables.dft import dft_table, phases_file
from loop.errors import ConfigError, EngineError
from loop.io.crystals import read_crystals, write_crystals
from loop.values import Candidate, EnergyType
from oracles.dft import oracle as dft
from oracles.dft import worker
from oracles.dft.hull import DftHull, dft_oracle
from oracles.dft.oracle import DftConfig, DftOracle
from oracles.dft.process import Engine, Outcome, Resources, find_engine
from oracles.potentials.corrections import anion_correction
from oracles.potentials.loading import load_potential
from oracles.references.phase_estimates import Estimates
from oracles.references.table import References
from tests.test_oracles_hull_on_demand import Alloys, Entry, table

METALS = ("Cu", "Ni", "Pd")
ENGINE = Engine("0", "0", mpi=False, elements=frozenset({"Cu", "Ni", "Pd", "Pt", "Al"}))


def emt_worker(folder, *_):
    """In place of an engine's process: reads and answers as ours does, but the physics is EMT's."""
    job, log = json.loads((folder / "job.json").read_text()), worker.Log(folder, 0)
    with (folder.parent / "calls.txt").open("a") as calls:
        calls.write(" ".join(job["steps"]) + "\n")
    atoms = worker.make_atoms(job["structure"], None)
    atoms.calc = EMT()
    if job["steps"] == ["relax"]:
        worker.optimise(atoms, job, log, 0)
        return Outcome("done", 0.5)
    energy = atoms.get_potential_energy() / len(atoms)
    rest = dict.fromkeys(("max_force", "max_stress", "magnetic_moment"), 0.0) | {"attempts": 1}
    log.add("ground", {"energy": energy, **rest})
    if "gap" in job["steps"]:
        log.add("gap", {"gap": 0.7, "direct": 0.7})
    return Outcome("done", 0.25)


TIGHT = {"fmax": 0.005, "smax": 0.02, "max_steps": 60}


class Published(Alloys):
    """Elements have a published height, compounds have none."""

    def known(self, id):
        return replace(super().known(id), e_above_hull=0.0 if id.endswith("-fcc") else float("nan"))


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Makes oracle and hull; the engine is EMT, and another potential's table proposes: EMT's, shifted, corrected."""
    monkeypatch.setattr(dft, "find_engine", lambda _: ENGINE)
    monkeypatch.setattr(dft, "run_worker", emt_worker)
    emt = load_potential("ase.calculators.emt:EMT")
    source = Published(METALS)
    other = table(source, emt, EnergyType("other", "PBE(+U)", "MP2020", "f" * 64), shift=2.0)

    def make(where="phases.db", **changes):
        resources = Resources(cores=1, scratch=str(tmp_path / "scratch"))
        config = DftConfig(
            preset="test", settings=TIGHT, properties=(), relax="cell", references="demand", resources=resources,
            phases=str(tmp_path / where),
        )  # fmt: skip
        config = replace(config, **changes)
        return DftOracle(config, DftHull(config, source=source, tables=[other]))

    make.source = source
    return make


def calls(tmp_path):
    path = tmp_path / "scratch" / "calls.txt"
    return path.read_text().splitlines() if path.is_file() else []


def test_it_equals_the_complete_hull_with_fewer_phases(world):
    oracle, whole = world(phase_margin=0.05), world("all.db")
    crystals = [world.source.structure(id) for id in ("CuPd-B2", "Cu3Ni-L12")]
    found = oracle.evaluate([Candidate(crystal) for crystal in crystals])
    for evaluation, crystal in zip(found, crystals, strict=True):
        complete = whole.hull.demand.complete(crystal.composition.chemical_system_set)
        expected = complete.e_above_hull(crystal.composition, evaluation.value("energy"), oracle.energy_type)
        assert evaluation.value("e_above_hull") == pytest.approx(expected.e_above_hull, abs=1e-6)
        assert evaluation.decomposition == pytest.approx(expected.decomposition)
    system = set(world.source.in_system(["Cu", "Pd"]))
    assert len(oracle.hull.demand.computed.keys() & system) < len(system)
    assert {id for id in oracle.hull.demand.computed if " " in id} == set()  # published crystals of the elements alone


def test_what_it_rests_on_is_told(world):
    oracle = world()
    evaluation = oracle.evaluate([Candidate(world.source.structure("CuPd-B2"))])[0]
    phases = oracle.hull.phases(["Cu", "Pd"])
    assert evaluation.value("hull_phases") == len(phases) >= 3
    assert evaluation.value("hull_seconds") == pytest.approx(sum(phase["seconds"] for phase in phases))
    assert all(phase["seconds"] > 0 and phase["status"] == "ok" for phase in phases)
    lowest = {phase["id"]: phase["energy"] for phase in phases if phase["relaxed"]}
    assert set(lowest) == set(oracle.hull.demand.computed)
    assert {"Cu-fcc", "Pd-fcc"} <= set(lowest)
    assert evaluation.energy_type.corrections == "none"


def test_a_kill_in_the_middle_costs_nothing(world, tmp_path, monkeypatch):
    crystal = Candidate(world.source.structure("CuPd-B2"))
    whole = world("whole.db").evaluate([crystal])[0]
    all_calls = len(calls(tmp_path))
    run_worker, left = dft.run_worker, iter(range(4))

    def killed(*arguments):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return run_worker(*arguments)

    monkeypatch.setattr(dft, "run_worker", killed)
    with pytest.raises(KeyboardInterrupt):
        world().evaluate([crystal])
    monkeypatch.setattr(dft, "run_worker", run_worker)
    again = world().evaluate([crystal])[0]
    assert again.value("e_above_hull") == whole.value("e_above_hull")
    label = 2  # runs for the crystal itself: a campaign's ledger keeps that one
    assert len(calls(tmp_path)) == 2 * all_calls + label  # four ended before the kill, and are not computed again
    world().evaluate([crystal])
    assert len(calls(tmp_path)) == 2 * all_calls + 2 * label  # no phase is paid for twice


def test_a_crystal_that_was_not_relaxed_is_relaxed_for_its_distance(world):
    """The label keeps the crystal, gap and energy that were asked for."""
    plain = world(relax="none", properties=("gap",))
    crystal = Candidate(world.source.structure("CuPd-B2"))
    label, relaxed = plain.evaluate([crystal])[0], world().evaluate([crystal])[0]
    assert label.value("e_above_hull") == pytest.approx(relaxed.value("e_above_hull"), abs=1e-6)
    assert label.value("energy") > relaxed.value("energy")
    assert label.value("band_gap") == 0.7
    small = world(relax="none", properties=("gap",), hull_above_gap=1.0).evaluate([crystal])[0]
    assert small.ok
    assert "e_above_hull" not in small.properties


def test_phases_too_large_are_named(world):
    oracle = world(phase_atoms=3)
    found = oracle.evaluate([Candidate(world.source.structure("CuPd-B2"))])[0]
    assert found.ok
    assert "not among the phases" in found.message
    assert "failed:size" in found.message


def test_few_crystals_of_an_element_are_tried(world):
    """Lowest published heights, what a potential found lowest, and one packing of molecules; no built prototypes."""
    source = Published(("Cu", "Pd"))
    heights = {"Cu-near": 0.005, "Cu-far": 0.05, "Cu-unknown": float("nan"), "Cu-named": float("nan")}
    heights |= {f"N2-{number}": 0.001 * number for number in range(5)}
    for id in heights:
        if id.startswith("Cu"):
            source.crystals[id] = Structure(Lattice.cubic(3.6), ["Cu"], [[0, 0, 0]])
        else:  # the first is no molecule, the second has two in its cell, of the others the lowest is meant
            single = Structure(Lattice.cubic(4.0), ["N"], [[0, 0, 0]])
            pair = Structure(Lattice.cubic(4.0), ["N", "N"], [[0, 0, 0], [1.1 / 4.0, 0, 0]])
            source.crystals[id] = single if id == "N2-0" else pair * (2 if id == "N2-1" else 1, 1, 1)

    def known(id):
        return Entry(id, source.crystals[id].composition.reduced_formula, heights.get(id, 0.0))

    source.known = known
    kind = EnergyType("other", "PBE(+U)", "MP2020", "f" * 64)
    corners = {"corners": {"Cu": {"name": "Cu-named", "energy": -1.0}, "Pd": {"name": "built", "energy": -1.0}}}
    zeros = np.zeros(3)
    named = References(("Cu", "Pd", "N2"), zeros, ("a", "b", "c"), zeros > 0, kind, "", corners)
    hull = DftHull(world().config, source=source, tables=[named]).demand
    assert hull._allotropes("Cu") == {"Cu-fcc", "Cu-near", "Cu-named"}
    assert hull._allotropes("Pd") == {"Pd-fcc"}
    assert hull._allotropes("N") == {"N2-2"}


def test_the_hull_is_part_of_the_key_and_leaves_former_keys(world):
    plain = world(references=None)
    assert plain.settings_hash == DftOracle(replace(plain.config, phase_margin=0.3, phases=None)).settings_hash
    keys = {world(**changes).settings_hash for changes in ({}, {"phase_margin": 0.3}, {"hull_above_gap": 1.0})}
    assert len(keys | {plain.settings_hash}) == 4
    assert world("other.db").settings_hash in keys  # where phases are kept is no result
    with pytest.raises(ConfigError, match="phase_margin >= 0"):
        DftConfig(phase_margin=-0.1)


def test_anion_corrections_are_taken_out_of_what_proposes():
    """Wang et al. (2021): -0.687 eV per O of an oxide. What corrects +U does not belong to plain PBE."""
    assert anion_correction("MgO") == pytest.approx(-0.687 / 2)
    assert anion_correction("Fe2O3") == pytest.approx(-0.687 * 3 / 5)
    assert anion_correction("MgAg") == anion_correction("O2") == 0.0
    kind = EnergyType("other", "PBE(+U)", "MP2020", "f" * 64)
    energies = np.array([0.0, 0.0, -3.0])
    made = References(("Mg", "O2", "MgO"), energies, ("a", "b", "c"), energies > 0, kind, "", {})

    class One:
        def in_system(self, _):
            return ["c"]

        def known(self, id):
            return Entry(id, "MgO", 0.0, -3.0)

    judge = EnergyType("GPAW", "PBE", "none", "a" * 64)
    as_they_are, plain = (
        Estimates([made], judge, uncorrected=raw).phases(["Mg", "O"], One())[0] for raw in (False, True)
    )
    assert as_they_are.estimate == pytest.approx(-3.0)
    assert plain.estimate == pytest.approx(-3.0 + 0.687 / 2)


def test_formation_energies_are_relative_to_relaxed_elements():
    """N2 as built lies 5 eV/atom too high by SevenNet; nitrides then looked 2.6 eV/atom too deep."""
    kind = EnergyType("other", "PBE(+U)", "none", "f" * 64)
    energies = np.array([0.0, -8.0, -5.0])
    corners = {"corners": {"N": {"name": "b", "energy": -8.0}}}
    made = References(
        ("Al", "N2", "AlN"), energies, ("a", "b", "c"), energies > 0, kind, "", corners,
        unrelaxed=np.array([0.0, -3.0, -5.0]), relaxed=frozenset({"N2"}),
    )  # fmt: skip

    class One:
        def in_system(self, _):
            return ["c"]

        def known(self, id):
            return Entry(id, "AlN", 0.0, -1.0)

    judge = EnergyType("GPAW", "PBE", "none", "a" * 64)
    assert Estimates([made], judge).phases(["Al", "N"], One())[0].estimate == pytest.approx(-1.0)


# from files to files, and in a campaign ------------------------------------------------------------------------------


def test_a_table_has_distances_and_its_phases_beside_it(world, tmp_path):
    path, output = tmp_path / "in.csv", tmp_path / "out.csv"
    write_crystals(path, ["b2", "l12"], [world.source.structure(id) for id in ("CuPd-B2", "Cu3Pd-L12")], {})
    oracle = world()
    frame = dft_table(read_crystals(path), oracle, output, hull=oracle.hull)
    assert list(frame["status"]) == ["ok", "ok"]
    assert frame["e_above_hull"].between(-0.1, 0.5).all()
    shares = json.loads(frame["decomposition"][0])
    assert sum(shares.values()) == pytest.approx(1.0, abs=1e-5)
    phases = pd.read_csv(phases_file(output))
    assert {"id", "formula", "energy", "seconds"} <= set(phases)
    assert set(shares) <= set(phases["formula"])
    assert set(frame["hull_phases"]) == {len(phases)}
    again = world()
    whole = dft_table(read_crystals(path), again, output, hull=again.hull)  # nothing is computed
    assert list(whole["e_above_hull"]) == pytest.approx(list(frame["e_above_hull"]), rel=1e-5)
    assert len(pd.read_csv(phases_file(output))) == len(phases)


def test_the_verb_asks_for_relaxed_crystals(tmp_path):
    path = tmp_path / "in.cif"
    path.write_text(Structure(Lattice.cubic(2.9), ["Cu", "Pd"], [[0] * 3, [0.5] * 3]).to(fmt="cif"))
    done = CliRunner().invoke(app, ["dft", "-i", str(path), "-o", str(tmp_path / "o.csv"), "--hull"])
    assert done.exit_code == 1
    assert "expected --relax cell with --hull" in done.stderr


def test_the_dielectric_campaign_asks_for_it():
    config = read_config("dielectric")
    tier = config.oracle.dft
    assert tier.references == "demand"
    assert tier.hull_above_gap == tier.min_gap == 1.0
    assert "dft_e_above_hull" in measured_properties(config)
    without = read_config("dielectric", {"oracle.dft.references": None})
    assert "dft_e_above_hull" not in measured_properties(without)


def test_the_benchmark_compares_crystals_and_polymorphs(world, tmp_path):
    """Copper and palladium by EMT, from the crystals in the package; a second run computes nothing."""
    config = benchmark.DftHullConfig(
        replace(world().config, phase_margin=0.02), crystals=("mp-1018029",), polymorphs=("mp-1225701",)
    )
    record = benchmark.run(tmp_path / "b", config)
    judged, compared = (record["results"][id] for id in (*config.crystals, *config.polymorphs))
    assert judged["phases"] > 2
    assert judged["phase_seconds"] > 0
    assert sum(judged["decomposition"].values()) == pytest.approx(1.0)
    assert -0.1 < judged["e_above_hull"] < 0.3
    assert compared["e_above_hull"] is None  # as asked: no phase is computed for it
    assert min(judged["height"], compared["height"]) == 0.0
    before, phases = len(calls(tmp_path)), pd.read_csv(tmp_path / "b" / "phases.csv")
    assert len(phases) == judged["phases"]
    assert record["largest_gain_of_relaxing"] < 0.1
    again = benchmark.run(tmp_path / "b", config)
    assert again["results"]["mp-1018029"]["e_above_hull"] == judged["e_above_hull"]
    assert len(calls(tmp_path)) == before
    with pytest.raises(ConfigError, match="there are no crystals mp-0"):
        benchmark.run(tmp_path / "b", replace(config, crystals=("mp-0",)))


# the real engine -----------------------------------------------------------------------------------------------------


@pytest.mark.dft
def test_an_ordered_alloy_lies_on_its_own_hull(tmp_path):
    """Al and Mg in the order of rock salt, with a third of the neighbours that they want."""
    try:
        find_engine(sys.executable)
    except EngineError as error:
        pytest.skip(str(error))

    class Few:
        checksum = "few"
        crystals = {  # noqa: RUF012
            "Al": Structure.from_spacegroup("Fm-3m", Lattice.cubic(4.04), ["Al"], [[0, 0, 0]]),
            "Mg": Structure.from_spacegroup("P6_3/mmc", Lattice.hexagonal(3.19, 5.18), ["Mg"], [[1 / 3, 2 / 3, 0.25]]),
            "AlMg": Structure(Lattice.cubic(3.38), ["Al", "Mg"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
        }

        def in_system(self, elements):
            return [id for id, c in self.crystals.items() if set(c.composition.chemical_system_set) <= set(elements)]

        def known(self, id):
            return Entry(id, self.crystals[id].composition.reduced_formula, 0.0, 0.0)

        def structure(self, id):
            return self.crystals[id]

    config = DftConfig(
        preset="test", settings={"k_spacing": 0.5}, properties=(), relax="cell", references="demand",
        phases=str(tmp_path / "phases.db"), resources=Resources(cores=1, scratch=str(tmp_path)), time_limit=900,
    )  # fmt: skip
    oracle = DftOracle(config, DftHull(config, source=Few(), tables=[]))
    rock = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.7), ["Al", "Mg"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    found = oracle.evaluate([Candidate(rock)])[0]
    assert found.ok, found.message
    assert 0.1 < found.value("e_above_hull") < 0.8


def test_an_oracle_that_is_asked_for_a_hull_has_one(monkeypatch):
    monkeypatch.setattr(dft, "find_engine", lambda _: ENGINE)
    asked = DftConfig(preset="test", references="demand")
    with pytest.raises(ConfigError, match="dft_oracle"):
        DftOracle(asked)
    assert dft_oracle(asked).hull.checksum
    assert dft_oracle(replace(asked, references=None)).hull is None
