"""Inputs for codes on clusters: no licence and no code is needed to check them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from loop.errors import EngineError
from loop.io.crystals import read_crystals
from oracles.dft import inputs as dft_inputs
from oracles.dft.inputs import vasp_flow, write_espresso, write_inputs
from tests.crystals import nacl, rutile


def test_espresso_inputs_hold_the_crystal(tmp_path):
    from pymatgen.io.ase import AseAtomsAdaptor

    write_espresso(rutile(), tmp_path)
    for name in ("relax.in", "scf.in"):
        atoms = read(tmp_path / name, format="espresso-in")
        assert AseAtomsAdaptor.get_structure(atoms).matches(rutile())
    scf = (tmp_path / "scf.in").read_text()
    assert "'fixed'" in scf  # ph.x takes insulators only
    assert "vc-relax" in (tmp_path / "relax.in").read_text()
    assert "Ti.upf" in scf
    mesh = [int(number) for number in scf.partition("K_POINTS")[2].splitlines()[1].split()]
    # 2 pi / 4.594 = 1.368 and 2 pi / 2.959 = 2.123 per Angstrom, at most 0.2 apart
    assert mesh == [7, 7, 11, 0, 0, 0]
    assert "epsil = .true." in (tmp_path / "ph.in").read_text()


def magnetisation(text: str) -> dict[str, float]:
    """Starting magnetisation by species, read as pw.x does: by the number of the species."""
    start = {int(n): float(x) for n, x in re.findall(r"starting_magnetization\((\d+)\) *= *(\S+)", text)}
    species = [line.split()[0] for line in text.partition("ATOMIC_SPECIES\n")[2].partition("\n\n")[0].splitlines()]
    return {name: start[number] for number, name in enumerate(species, 1)}


def test_crystals_with_magnetic_ions_are_spin_polarised_as_by_the_dft_oracle(tmp_path):
    table = read_crystals(Path(__file__).parent / "cases" / "78_dft_inputs_order" / "x.csv")
    folders = write_inputs(table.readable(), tmp_path, "espresso")
    # moments of the DFT oracle over the valence electrons of data sets with semicore shells
    expected = [{"Fe": 4 / 16, "O": 0}, {"Co": 3 / 17, "Gd": 7 / 18}, {"Ni": 2 / 18, "O": 0}]
    totals = [16, 9, 2]  # Co and Gd have 91 electrons: an odd moment
    for folder, structure, polarised, total in zip(folders, table.structures, expected, totals, strict=True):
        for name in ("relax.in", "scf.in"):
            text = (folder / name).read_text()
            assert re.search(r"nspin *= *2\b", text)
            assert magnetisation(text) == pytest.approx(polarised, abs=1e-4)
            atoms = read(folder / name, format="espresso-in")
            assert atoms.get_chemical_symbols() == [site.specie.symbol for site in structure]
        assert float(re.search(r"tot_magnetization *= *(\S+)", text)[1]) == total
        assert text.startswith("! tot_magnetization")
        assert "tot_magnetization" not in (folder / "relax.in").read_text()
    write_espresso(nacl(), tmp_path / "plain")
    assert "nspin" not in (tmp_path / "plain" / "scf.in").read_text()


def test_vasp_lists_are_in_the_order_of_the_poscar(tmp_path):
    pytest.importorskip("atomate2")
    from pymatgen.io.vasp import Incar, Poscar

    table = read_crystals(Path(__file__).parent / "cases" / "78_dft_inputs_order" / "x.csv")
    folder = write_inputs(table.readable()[:1], tmp_path, "vasp")[0]  # O and Fe by turns
    for step in dft_inputs.STEPS:
        incar, poscar = (
            Incar.from_file(folder / step / "INCAR"),
            Poscar.from_file(folder / step / "POSCAR", check_for_potcar=False),
        )
        assert (poscar.site_symbols, poscar.natoms) == (["Fe", "O"], [4, 4])
        assert incar["ISPIN"] == 2
        assert incar["MAGMOM"] == [5.0] * 4 + [0.6] * 4
        assert incar["LDAUU"] == [5.3, 0]
        data_sets = (folder / step / "POTCAR.spec").read_text().split()
        assert [name.partition("_")[0] for name in data_sets] == ["Fe", "O"]


def test_one_folder_a_crystal(tmp_path):
    folders = write_inputs([("mp-22862", nacl()), ("a/b", rutile())], tmp_path, "espresso")
    assert [folder.name for folder in folders] == ["0000_mp-22862", "0001_a_b"]
    assert all((folder / "scf.in").is_file() for folder in folders)


def test_vasp_needs_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr(dft_inputs, "find_spec", lambda _: None)
    with pytest.raises(EngineError, match=r"pip install 'discovery-loop\[vasp\]'"):
        write_inputs([("x", nacl())], tmp_path, "vasp")


def test_vasp_inputs_are_those_of_the_materials_project(tmp_path):
    pytest.importorskip("atomate2")
    from pymatgen.io.vasp import Incar, Kpoints, Poscar

    folder = write_inputs([("x", nacl().get_primitive_structure())], tmp_path, "vasp")[0]
    incars = {step: Incar.from_file(folder / step / "INCAR") for step in dft_inputs.STEPS}
    assert incars["relax"]["ENCUT"] == 520  # Jain et al., Comput. Mater. Sci. 50, 2295 (2011)
    assert incars["relax"]["ISIF"] == 3
    assert incars["static"]["NSW"] == 0
    assert incars["dielectric"]["LEPSILON"]
    assert incars["dielectric"]["IBRION"] in (7, 8)  # phonons at Gamma: the ionic part
    for step in dft_inputs.STEPS:
        poscar = Poscar.from_file(folder / step / "POSCAR", check_for_potcar=False)
        assert poscar.structure.matches(nacl())
        data_sets = (folder / step / "POTCAR.spec").read_text().split()
        assert sorted(data_sets) == ["Cl", "Na_pv"]
        assert [name.partition("_")[0] for name in data_sets] == poscar.site_symbols  # VASP goes by their order
    assert np.prod(Kpoints.from_file(folder / "relax" / "KPOINTS").kpts[0]) >= 64


def test_the_flow_chains_its_steps(tmp_path):
    pytest.importorskip("atomate2")
    from jobflow import Flow
    from monty.serialization import loadfn

    flow = vasp_flow(nacl())
    assert len(flow.jobs) == 3
    links = flow.graph  # a step waits for the one whose crystal it takes
    assert [len(list(links.predecessors(job.uuid))) for job in flow.jobs] == [0, 1, 1]
    dft_inputs.write_vasp(nacl(), tmp_path)
    assert isinstance(loadfn(tmp_path / "flow.json"), Flow)
    assert "atomate2" in sys.modules
