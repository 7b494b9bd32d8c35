"""Crystals of all tabulated settings, and of all systems as other programs write them, are read as what they are."""

import io
import warnings

import ase.io
import gemmi
import numpy as np
import pytest
from pymatgen.core import Structure
from pymatgen.io.cif import CifWriter

from loop.errors import InputError
from loop.io.cif import parse_cif, read_cif
from tests import crystals
from tests.readers import by_ourselves, same_crystal

SETTINGS = list(gemmi.spacegroup_table_itb())
SITES = (("O", 8, (0.403, 0.158, 0.075)), ("Si", 14, (0.0, 0.0, 0.0)))


def cell_of(group: gemmi.SpaceGroup) -> gemmi.UnitCell:
    """A cell with the symmetry of a setting and no more, large enough for its atoms to stay apart."""
    rng = np.random.default_rng(group.number)
    length = max(9.0, (100.0 * len(group.operations())) ** (1 / 3))
    vectors = length * (np.eye(3) + rng.uniform(-0.16, 0.16, (3, 3)))
    rotations = np.array([op.rot for op in group.operations().sym_ops]) // gemmi.Op.DEN
    metric = np.mean([r.T @ vectors @ vectors.T @ r for r in rotations], axis=0)
    a, b, c = np.sqrt(np.diag(metric))
    angles = (metric[1, 2] / b / c, metric[0, 2] / a / c, metric[0, 1] / a / b)
    return gemmi.UnitCell(a, b, c, *np.degrees(np.arccos(angles)))


def crystal_in(group: gemmi.SpaceGroup) -> tuple[Structure, str]:
    """A crystal in a setting as gemmi expands it, and its CIF without a word on the symmetry."""
    small = gemmi.SmallStructure()
    small.cell, small.spacegroup = cell_of(group), group
    for label, _, point in SITES:
        site = gemmi.SmallStructure.Site()
        site.label, site.type_symbol, site.element = label, label, gemmi.Element(label)
        site.fract, site.occ = gemmi.Fractional(*point), 1.0
        small.add_site(site)
    small.setup_cell_images()
    atoms = small.get_all_unit_cell_sites()
    basis = np.array(small.cell.orth.mat.tolist()).T
    structure = Structure(basis, [atom.element.name for atom in atoms], [atom.fract.tolist() for atom in atoms])
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"_cell_{name} {value:.8f}" for name, value in zip(names, small.cell.parameters, strict=True)]
    lines += ["loop_", "_atom_site_label", *(f"_atom_site_fract_{axis}" for axis in "xyz")]
    lines += [f"{label}1 {' '.join(map(str, point))}" for label, _, point in SITES]
    return structure, "\n".join(lines) + "\n"


def same_places(text: str, expected: Structure) -> bool:
    """Whether the atoms that are read are those expected, each within 0.001 A."""
    basis, numbers, coordinates = parse_cif(text)
    if len(numbers) != len(expected) or not np.allclose(basis, expected.lattice.matrix, atol=1e-6):
        return False
    steps = coordinates[:, None] - expected.frac_coords
    away = np.linalg.norm((steps - np.round(steps)) @ basis, axis=2)
    away[numbers[:, None] != np.array(expected.atomic_numbers)] = np.inf
    return bool((away.min(axis=1) < 1e-3).all() and len(set(away.argmin(axis=1).tolist())) == len(numbers))


def spellings(group: gemmi.SpaceGroup) -> dict[str, str]:
    """Ways to state a setting without leaving anything open."""
    triplets = [op.triplet() for op in group.operations()]
    listed = "\n".join(f"{number} '{text}'" for number, text in enumerate(triplets, 1))
    decimal = "\n".join(f"'{op.triplet(style='x').upper()}'" for op in group.operations())
    return {
        "operators": f"loop_\n_space_group_symop_id\n_space_group_symop_operation_xyz\n{listed}",
        "upper case": f"loop_\n_symmetry_equiv_pos_as_xyz\n{decimal}",
        "Hall": f"_space_group_name_Hall '{group.hall}'"
        if "'" not in group.hall
        else f'_space_group_name_Hall "{group.hall}"',
        "symbol": f"_space_group_name_H-M_alt '{group.xhm()}'\n_space_group_IT_number {group.number}",
        "squeezed": f"_symmetry_space_group_name_H-M {group.xhm().replace(' ', '')}",
    }


@pytest.mark.parametrize("number", range(1, 231))
def test_all_settings_in_all_spellings(number):
    for group in SETTINGS:
        if group.number != number:
            continue
        expected, text = crystal_in(group)
        for spelling, header in spellings(group).items():
            assert same_places(f"data_x\n{header}\n{text}", expected), (group.xhm(), spelling)


@pytest.mark.parametrize("number", range(1, 231))
def test_a_symbol_that_leaves_the_setting_open_gives_the_right_crystal_or_none(number):
    for group in SETTINGS:
        if group.number != number or not group.ext:
            continue
        expected, text = crystal_in(group)
        counts = expected.composition.get_el_amt_dict()
        said = f"_chemical_formula_sum 'O{counts['O']:g} Si{counts['Si']:g}'\n_cell_formula_units_Z 1"
        for header in (f"_space_group_name_H-M_alt '{group.hm}'", f"_space_group_IT_number {number}"):
            whole = f"data_x\n{header}\n{said}\n{text}"
            assert refused_as_open(whole) or same_places(whole, expected), (group.xhm(), header)


def refused_as_open(text: str) -> bool:
    try:
        parse_cif(text)
    except InputError as error:
        return "leaves open which setting" in str(error)
    return False


def by_pymatgen(structure: Structure, **options) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(CifWriter(structure, **options))


def by_ase(structure: Structure) -> str:
    buffer = io.BytesIO()
    ase.io.write(buffer, structure.to_ase_atoms(), format="cif")
    return buffer.getvalue().decode()


def by_gemmi(structure: Structure) -> str:
    """Its own P1 block."""
    small = gemmi.SmallStructure()
    small.cell = gemmi.UnitCell(*structure.lattice.parameters)
    small.spacegroup = gemmi.SpaceGroup("P 1")
    for atom in structure:
        site = gemmi.SmallStructure.Site()
        site.label = site.type_symbol = atom.specie.symbol
        site.element, site.occ = gemmi.Element(atom.specie.symbol), 1.0
        site.fract = gemmi.Fractional(*atom.frac_coords)
        small.add_site(site)
    document = gemmi.cif.Document()
    document.add_copied_block(small.make_cif_block())
    return document.as_string()


def with_charges(structure: Structure) -> str:
    charged = structure.copy()
    charged.add_oxidation_state_by_element({element.symbol: n - 1 for n, element in enumerate(charged.elements)})
    return by_pymatgen(charged, symprec=0.01)


WRITERS = {
    "pymatgen": by_pymatgen,
    "pymatgen with symmetry": lambda s: by_pymatgen(s, symprec=0.01),
    "pymatgen with few digits": lambda s: by_pymatgen(s, symprec=0.01, significant_figures=4),
    "pymatgen with charges": with_charges,
    "ASE": by_ase,
    "gemmi": by_gemmi,
}
CELLS = {
    "as it is": lambda s: s.copy(),
    "primitive": lambda s: s.get_primitive_structure(),
    "doubled": lambda s: s * (2, 1, 1),
    "skew": lambda s: s * [[1, 1, 0], [0, 1, 0], [-1, 0, 1]],
    "shifted": lambda s: s.copy().translate_sites(range(len(s)), [0.11, 0.27, 0.39]),
    "axes in another order": lambda s: Structure(s.lattice.matrix[[1, 2, 0]], s.species, s.frac_coords[:, [1, 2, 0]]),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("make", crystals.SYSTEMS.values(), ids=crystals.SYSTEMS)
def test_what_others_write_is_read_as_it_was(make, cell):
    held = CELLS[cell](make())
    for writer, write in WRITERS.items():
        text = write(held)
        assert same_crystal(by_ourselves(text), held), (writer, text)
        assert read_cif(text).notes in ((), ("no symmetry given: read as P 1",)), writer  # gemmi says none of P 1
