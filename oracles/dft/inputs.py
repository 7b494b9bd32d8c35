"""Input files for codes on clusters: VASP through atomate2's makers, Quantum ESPRESSO through ASE.

VASP's data sets are under licence: POTCAR.spec names those to be put in. Quantum ESPRESSO's are taken to be called
``Si.upf`` and so on, as those of PseudoDojo (www.pseudo-dojo.org) are.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.errors import EngineError, InputError
from loop.io.crystal_writers import file_names
from loop.io.files import make_folder
from loop.io.poscar import right_handed
from oracles.dft.mesh import mesh_size
from oracles.dft.presets import starting_moments

if TYPE_CHECKING:
    from pymatgen.core import Structure

INSTALL = "pip install 'discovery-loop[vasp]'"
# Ry; PseudoDojo's hints for hard elements reach 90 Ry for wavefunctions (van Setten et al., Comput. Phys. Commun. 226,
# 39 (2018)); norm-conserving data sets need four times as much for the density
ECUTWFC = 90.0
K_SPACING = 0.20  # 1/A, 2 pi included
STEPS = ("relax", "static", "dielectric")
# pw.x takes fixed occupations of a magnet only with its total moment
MAGNET = (
    "! tot_magnetization is that of high-spin ions, all parallel: put in the total magnetization that relax.in ends "
    "with.\n"
)


def vasp_makers() -> dict[str, Any]:
    """atomate2's makers by step: the Materials Project's relaxation and static run, then LEPSILON.

    Raises:
        EngineError: atomate2 is not installed.
    """
    if find_spec("atomate2") is None:
        raise EngineError(f"Inputs for VASP are made by atomate2, which is not installed: {INSTALL}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of optional parts of atomate2
        from atomate2.vasp.jobs.core import DielectricMaker
        from atomate2.vasp.jobs.mp import MPGGARelaxMaker, MPGGAStaticMaker
    return {"relax": MPGGARelaxMaker(), "static": MPGGAStaticMaker(), "dielectric": DielectricMaker()}


def vasp_flow(structure: Structure) -> Any:
    """The `jobflow.Flow` relax, static, dielectric: each step takes the crystal of the one before.

    Submit it with jobflow-remote or FireWorks where VASP is.

    Raises:
        EngineError: atomate2 is not installed.
    """
    makers = vasp_makers()
    from jobflow import Flow

    relax = makers["relax"].make(structure)
    static = makers["static"].make(relax.output.structure, prev_dir=relax.output.dir_name)
    dielectric = makers["dielectric"].make(static.output.structure, prev_dir=static.output.dir_name)
    return Flow([relax, static, dielectric], output=dielectric.output, name=structure.composition.reduced_formula)


def write_inputs(crystals: Sequence[tuple[str, Structure]], folder: Path, code: str) -> list[Path]:
    """Write one folder per crystal, named by its id.

    Raises:
        EngineError: what makes the inputs is not installed.
        InputError: a folder of that name is there already, perhaps with inputs that were edited.
    """
    stems = file_names([name for name, _ in crystals])
    folders = [folder / f"{number:04d}_{stem}" for number, stem in enumerate(stems)]
    there = [place.name for place in folders if place.exists()]
    if there:
        raise InputError(f"{folder} holds inputs already ({', '.join(there[:3])}): choose a new folder")
    for place, (_, structure) in zip(folders, crystals, strict=True):
        (write_vasp if code == "vasp" else write_espresso)(structure, place)
    return folders


def write_vasp(structure: Structure, folder: Path) -> None:
    """Write one folder per step with INCAR, KPOINTS, POSCAR and POTCAR.spec, and the flow as ``flow.json``.

    Raises:
        EngineError: atomate2 is not installed.
    """
    from monty.json import MontyEncoder

    make_folder(folder)
    structure = right_handed(structure).get_sorted_structure()  # LEPSILON's set keeps the order, one POTCAR per run
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that data sets are not there to be looked at
        for step, maker in vasp_makers().items():
            inputs = maker.input_set_generator.get_input_set(structure, potcar_spec=True)
            inputs.write_input(folder / step, make_dir_if_not_present=True)
        flow = json.dumps(vasp_flow(structure), cls=MontyEncoder)
    (folder / "flow.json").write_text(flow, encoding="utf-8")


def write_espresso(structure: Structure, folder: Path) -> None:
    """Write relax.in (vc-relax), scf.in (fixed occupations) and ph.in (dielectric tensor and Born charges).

    Crystals with magnetic ions are spin-polarised, with the ferromagnetic start of the DFT oracle.
    """
    make_folder(folder)
    (folder / "relax.in").write_text(_pw_input(structure, "vc-relax"), encoding="utf-8")
    (folder / "scf.in").write_text(_pw_input(structure, "scf"), encoding="utf-8")
    (folder / "ph.in").write_text(
        "dielectric tensor and Born charges\n&INPUTPH\n  prefix = 'crystal'\n  outdir = './out'\n  epsil = .true.\n"
        "  trans = .true.\n  tr2_ph = 1.0d-14\n  fildyn = 'crystal.dyn'\n/\n0.0 0.0 0.0\n",
        encoding="utf-8",
    )


def _pw_input(structure: Structure, calculation: str) -> str:
    """Input of pw.x."""
    import io

    from ase.io.espresso import write_espresso_in
    from pymatgen.io.ase import AseAtomsAdaptor

    atoms = AseAtomsAdaptor.get_atoms(structure, msonable=False)
    moments = starting_moments(structure)
    atoms.set_initial_magnetic_moments(_polarisations(structure, moments))  # ASE sets nspin where one is not zero
    scf = calculation == "scf"
    fixed = {"tot_magnetization": _total(structure, moments)} if scf and any(moments) else {}
    data = {
        "control": {"calculation": calculation, "prefix": "crystal", "outdir": "./out", "pseudo_dir": "./pseudo",
                    "tprnfor": True, "tstress": True},
        "system": {"ecutwfc": ECUTWFC, "ecutrho": 4 * ECUTWFC, "occupations": "fixed" if scf else "smearing",
                   **(fixed if scf else {"smearing": "gaussian", "degauss": 0.005})},
        "electrons": {"conv_thr": 1e-10 if scf else 1e-8},
    }  # fmt: skip
    text = io.StringIO()
    mesh = mesh_size(np.array(structure.lattice.matrix), K_SPACING).tolist()
    pseudopotentials = {str(element): f"{element}.upf" for element in structure.composition}
    write_espresso_in(text, atoms, input_data=data, pseudopotentials=pseudopotentials, kpts=mesh)
    return (MAGNET if fixed else "") + text.getvalue()


def _polarisations(structure: Structure, moments: Sequence[float]) -> list[float]:
    """Moments per valence electron, which is what every version of pw.x takes for a starting magnetisation."""
    valence = [site.specie.Z - (10 if site.specie.Z < 57 else 46) for site in structure]  # cores: of neon, palladium
    return [round(moment / n, 4) if moment else 0.0 for moment, n in zip(moments, valence, strict=True)]


def _total(structure: Structure, moments: Sequence[float]) -> float:
    """High spin of all ions, one less where the number of electrons does not allow it (cores hold an even number)."""
    total = sum(moments)
    return total - (total - sum(structure.atomic_numbers)) % 2
