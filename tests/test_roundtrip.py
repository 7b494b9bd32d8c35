"""Every crystal that leaves the program reads back alike: pymatgen, ASE, gemmi and this program see the same atoms."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice

import ase.io
import numpy as np
import pytest
from ase.db import connect
from pymatgen.core import Lattice, Structure
from pymatgen.io.vasp import Poscar
from typer.testing import CliRunner

from flows.cli import app
from flows.models import load_model
from flows.tables.generation import generate
from generator.constraints.conditions import Sampling
from generator.constraints.guard import Guard
from loop.campaign import Campaign
from loop.errors import ImplausibleError
from loop.io.ase_database import to_bytes
from loop.io.cif_writer import to_cif, to_symmetrised_cif
from loop.io.crystals import read_crystals
from loop.io.extxyz import read_extxyz, to_extxyz
from loop.io.optimade import resource
from loop.io.poscar import to_poscar
from loop.io.structure_dicts import from_dict
from loop.plausibility import require_plausible_structure
from loop.ranking import ranked
from loop.report.export import FORMATS, export, final_structure, write_cifs
from loop.settings import CampaignSettings
from loop.store import Store
from loop.values import Candidate, Origin
from oracles.references.crystals import load_reference_crystals
from tests.crystals import SYSTEMS
from tests.fakes import FakeGenerator, best_length, fake_components
from tests.readers import READERS, by_ourselves, of_atoms, optimade_by_pymatgen, same_atoms, same_crystal

SNAPPED = 2e-4  # of a lattice vector: pymatgen takes coordinates within 1e-4 of 1/3 and the like for these


def plausible(structure: Structure) -> bool:
    """Whether our readers take a crystal: what guards refuse is not read again."""
    try:
        require_plausible_structure(structure)
    except ImplausibleError:
        return False
    return True


def real(n: int) -> list[tuple[str, Structure]]:
    """Published crystals of the reference table, by id, in all kinds of cells."""
    table = load_reference_crystals()
    drawn = np.random.default_rng(0).permutation(table.ids)
    # 17 of the 92,661 have more than 1,000 A^3/atom, which every reader of this program refuses by name
    ids = sorted(islice((name for name in drawn.tolist() if plausible(table.structure(name))), n))
    return [(name, disturbed(table.structure(name), k)) for k, name in enumerate(ids)]


@cache
def generated(n: int) -> list[tuple[str, Structure]]:
    """Crystals that the shipped checkpoint draws, by id."""
    made = generate(load_model(None, "cpu", "float32"), n, 0, Sampling(), Guard())
    return [(candidate.id, candidate.structure) for candidate in made.candidates]


def disturbed(structure: Structure, k: int) -> Structure:
    """As crystals come: as they are, with the noise of a relaxation, in a skew, a doubled, or a left-handed cell."""
    rng = np.random.default_rng(k)
    if k % 5 == 1:
        noise = rng.normal(0, 1e-3, (len(structure), 3))
        return Structure(structure.lattice, structure.species, structure.cart_coords + noise, coords_are_cartesian=True)
    if k % 5 == 2:
        return structure * [[1, 1, 0], [0, 1, 0], [-1, 0, 1]]
    if k % 5 == 3 and len(structure) < 20:
        return structure * (1, 2, 1)
    if k % 5 == 4:
        return Structure(Lattice(-structure.lattice.matrix), structure.species, -structure.frac_coords)
    return structure


def by_optimade(structure: Structure) -> Structure:
    return from_dict(json.loads(json.dumps(resource("x", structure, {}, "2026-01-01T00:00:00Z"))))


def by_extxyz(structure: Structure) -> Structure:
    return of_atoms(ase.io.read(io.StringIO(to_extxyz(structure, {"energy": -1.0})), format="extxyz"))


def by_poscar(structure: Structure) -> Structure:
    return of_atoms(ase.io.read(io.StringIO(to_poscar(structure)), format="vasp"))


AS_HELD: dict[str, Callable[[Structure], Structure]] = {
    "json": lambda held: Structure.from_dict(json.loads(json.dumps(held.as_dict()))),
    "extxyz, ase": by_extxyz,
    "extxyz, ourselves": lambda held: read_extxyz(to_extxyz(held, {}))[0],
    "poscar, pymatgen": lambda held: Poscar.from_str(to_poscar(held)).structure,
    "poscar, ase": by_poscar,
    "optimade, ourselves": by_optimade,
}


def disagreements(name: str, held: Structure) -> Iterator[str]:
    """What does not read back as the crystal that is held, by format and reader."""
    plain, symmetrised = to_cif(held), to_symmetrised_cif(held)
    right = held
    if np.linalg.det(held.lattice.matrix) < 0:  # lengths and angles, and VASP, describe right-handed cells
        right = Structure(Lattice(-held.lattice.matrix), held.species, -held.frac_coords)
    for reader, read in READERS.items():
        if not same_atoms(right, read(plain), SNAPPED * max(held.lattice.abc)):
            yield f"{name}: cif in a table, {reader}"
    found = {reader: read(symmetrised) for reader, read in READERS.items()}
    if not same_crystal(held, found["gemmi"]):
        yield f"{name}: cif file is another crystal"
    for reader, other in found.items():
        if not same_atoms(found["gemmi"], other, SNAPPED * max(other.lattice.abc)):
            yield f"{name}: cif file, {reader}"
    for format, read in AS_HELD.items():
        if not same_atoms(right if "poscar" in format else held, read(held), 1e-5):
            yield f"{name}: {format}"


@pytest.mark.parametrize(
    ("source", "n"),
    [
        (real, 100),
        (generated, 50),
        pytest.param(real, 1333, marks=pytest.mark.slow),
        pytest.param(generated, 667, marks=pytest.mark.slow),
    ],
)
def test_real_and_generated_crystals_read_back_alike(source, n, tmp_path):
    chosen = source(n)
    assert len(chosen) == n
    assert [text for name, held in chosen for text in disagreements(name, held)] == []
    (tmp_path / "x.db").write_bytes(to_bytes((held, {"name": f"c {name}"}) for name, held in chosen))
    with connect(str(tmp_path / "x.db")) as database:
        read = [of_atoms(row.toatoms()) for row in database.select()]
    assert [name for (name, held), other in zip(chosen, read, strict=True) if not same_atoms(held, other, 1e-6)] == []


def relaxed_by_fakes(structure: Structure) -> Structure:
    """What the fake oracle makes of a crystal."""
    relaxed = structure.copy()
    relaxed.scale_lattice(best_length(relaxed) ** 3)
    return relaxed


class Drawn(FakeGenerator):
    """Proposes generated crystals and textbook ones of all crystal systems."""

    def propose(self, n: int, *, seed: int, round: int) -> list[Candidate]:
        return [Candidate(held, Origin("policy"), round) for held in pool()[round::2][-n:]]


@cache
def pool() -> list[Structure]:
    drawn = [held for _, held in generated(50)]
    kept = [held for held in drawn if plausible(relaxed_by_fakes(held))]
    return kept + [disturbed(make(), 2) for make in SYSTEMS.values()]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    settings = CampaignSettings(name="read back", rounds=1, pool=24, budget=16, chunk=8, seed=1)
    folder = tmp_path_factory.mktemp("campaign")
    with Store(folder / "campaign.db") as store, Campaign(settings, fake_components(Drawn()), store, folder) as made:
        made.run()
        yield made


def read_export(format: str, place) -> dict[str, list[Structure]]:
    """The crystals of an export, by every reader of its files, best first."""
    if format == "zip":
        with zipfile.ZipFile(place) as archive:
            archive.extractall(place.parent / "unpacked")
        folder = next((place.parent / "unpacked").iterdir())
        parts = {"cif": folder / "cifs", "extxyz": folder / "candidates.extxyz"}
        parts["optimade"] = folder / "candidates.optimade.jsonl"
        return {f"{kind}, {r}": x for kind, path in parts.items() for r, x in read_export(kind, path).items()}
    ours = {"this program": read_crystals(place).structures}
    if format == "cif":
        texts = [path.read_text() for path in sorted(place.glob("*.cif"))]
        return ours | {name: [read(text) for text in texts] for name, read in READERS.items()}
    if format == "poscar":
        texts = [path.read_text() for path in sorted(place.glob("*.vasp"))]
        ours["ase"] = [of_atoms(ase.io.read(io.StringIO(text), format="vasp")) for text in texts]
        return ours | {"pymatgen": [Poscar.from_str(text).structure for text in texts]}
    if format == "json":
        return ours | {"pymatgen": [Structure.from_dict(row["structure"]) for row in json.loads(place.read_text())]}
    if format in ("extxyz", "ase-db"):
        return ours | {"ase": [of_atoms(atoms) for atoms in ase.io.read(place, index=":")]}
    if format == "optimade":
        return ours | {"pymatgen": [optimade_by_pymatgen(line) for line in place.read_text().splitlines()[1:]]}
    return ours  # csv's CIFs are in the test above


@pytest.mark.parametrize("format", FORMATS)
def test_all_exports_of_a_campaign_read_back_alike(campaign, format, tmp_path):
    names = {"cif": "x", "poscar": "x", "ase-db": "x.db", "optimade": "x.jsonl"}
    place = tmp_path / names.get(format, f"x.{format}")
    labels = ranked(campaign.history.labels(), campaign.history.settings)
    assert export(campaign.history, format, place, directory=campaign.directory) == len(labels) > 20
    assert len({label.candidate.formula for label in labels}) > 15
    found = read_export(format, place)
    assert found
    for reader, structures in found.items():
        pairs = zip(labels, structures, strict=True)
        wrong = [label.candidate.formula for label, read in pairs if not same_crystal(final_structure(label), read)]
        assert wrong == [], reader


def test_the_cifs_of_the_campaign_are_those_of_the_export(campaign, tmp_path):
    write_cifs(campaign.history, tmp_path)
    export(campaign.history, "cif", tmp_path / "exported")
    texts = [{path.name: path.read_text() for path in (tmp_path / name).glob("*.cif")} for name in ("cifs", "exported")]
    assert texts[0] == texts[1] != {}


def test_what_is_generated_into_a_folder_is_what_is_generated_into_a_table(tmp_path):
    for place in ("a.csv", "a"):
        done = CliRunner().invoke(app, ["generate", "--n", "12", "--seed", "4", "--output", str(tmp_path / place)])
        assert done.exit_code == 0, done.stderr
    table = read_crystals(tmp_path / "a.csv")
    files = {path.stem: path.read_text() for path in (tmp_path / "a").glob("*.cif")}
    assert set(files) == set(table.ids)
    for name, held in table.readable():
        assert all(same_crystal(held, read(files[name])) for read in READERS.values())
    texts = zip(table.texts, table.readable(), strict=True)
    assert all(same_crystal(by_ourselves(str(text)), held) for text, (_, held) in texts)
