"""Reading CIF: each file is the crystal that it describes, or refused with a reason. Inputs of cases: tests/cases."""

import csv
from collections import Counter
from pathlib import Path

import gemmi
import numpy as np
import pytest
from pymatgen.core import Structure

from loop.errors import DisorderedError, ImplausibleError, InputError
from loop.io.cif import cif_blocks, parse_cif
from loop.io.cif_writer import to_cif
from loop.plausibility import MIN_DISTANCE, require_plausible, shortest_distance
from tests import crystals

CASES = Path(__file__).parent / "cases"

# file, atoms of the cell, its volume (A^3), shortest distance (A)
READ = [
    ("01_origin_choice1/si.cif", "Si8", 160.19, 2.352),
    ("02_origin_unsaid/si.cif", "Si8", 160.19, 2.352),
    ("03_rhombohedral_axes/bi.cif", "Bi2", 70.77, 3.071),
    ("07_hall_only/nacl.cif", "Cl4 Na4", 179.41, 2.820),
    ("10_unlooped_operator/x.cif", "Mg4 O4", 74.62, 2.105),
    ("11_third_three_decimals/mg.cif", "Mg2", 46.47, 3.197),
    ("13_deuterium/lid.cif", "H4 Li4", 67.32, 2.034),
    ("13_deuterium/lit_p1.cif", "H1 Li1", 16.82, 2.034),
    ("14_label_OH_dropped/brucite.cif", "H2 Mg1 O2", 40.75, 0.918),
    ("18_latin1/mgo.cif", "Mg4 O4", 74.62, 2.105),
    ("21_ddlm_dots/x.cif", "Mg4 O4", 74.62, 2.105),
    ("22_magcif/x.cif", "Au2 Mn2", 54.00, 2.598),
    ("23_several_blocks/two.cif", "Fe2", 23.64, 2.485),
    ("25_type_symbol_unknown/x.cif", "Cl1 Na1", 44.92, 2.821),
    ("29_occupancy_odd/a_1.000_5.cif", "Fe2", 23.64, 2.485),
    ("29_occupancy_odd/b_unknown.cif", "Fe2", 23.64, 2.485),
    ("29_occupancy_odd/c_0.9999.cif", "Fe2", 23.64, 2.485),
    ("29_occupancy_odd/d_1.002.cif", "Fe2", 23.64, 2.485),
    ("29_occupancy_odd/e_dot.cif", "Fe2", 23.64, 2.485),
    ("29_occupancy_odd/g_zero.cif", "Fe1", 23.64, 2.870),
    ("32_operator_tag_unknown/x.cif", "Mg4 O4", 74.62, 2.105),
    ("34_operators_decimal/x.cif", "Mg2", 46.47, 3.197),
    ("36_spinel_origin2/colon2.cif", "Al16 Mg8 O32", 527.51, 1.922),
    ("36_spinel_origin2/fd-3mz.cif", "Al16 Mg8 O32", 527.51, 1.922),
    ("36_spinel_origin2/it_only.cif", "Al16 Mg8 O32", 527.51, 1.922),
    ("36_spinel_origin2/plain.cif", "Al16 Mg8 O32", 527.51, 1.922),
    ("36_spinel_origin2/s.cif", "Al16 Mg8 O32", 527.51, 1.922),
    ("36_spinel_origin2/z.cif", "Al16 Mg8 O32", 527.51, 1.922),
    ("39_dummy_species_row/rows.csv#good", "Fe2", 23.64, 2.485),
    ("39_dummy_species_row/rows.csv#good2", "Fe2", 23.64, 2.485),
    ("82_cell_choice/in.csv#prim", "Mg1 O1", 18.65, 2.105),
    ("82_cell_choice/in.csv#conv", "Mg4 O4", 74.62, 2.105),
    ("82_cell_choice/in.csv#shifted", "Mg4 O4", 74.62, 2.105),
    ("85_no_label_column/x.cif", "Mg4 O4", 74.62, 2.105),
    ("86_text_field_with_data_/x.cif", "Mg4 O4", 74.62, 2.105),
    ("86_text_field_with_data_/row.csv#a", "Mg4 O4", 74.62, 2.105),
    ("87_long_line_and_stop/x.cif", "Mg4 O4", 74.62, 2.105),
    ("89_global_block_then_crystal/before.cif", "Mg4 O4", 74.62, 2.105),
    ("89_global_block_then_crystal/p1.cif", "Fe2", 23.64, 2.485),
    ("89_global_block_then_crystal/sym.cif", "Mg4 O4", 74.62, 2.105),
]
REFUSED = [
    ("08_no_symmetry_at_all/nacl.cif", "read Na1 Cl1 in the cell, the file says Na4 Cl4"),
    ("15_label_Wat/x.cif", "site Wat1: expected the symbol of an element"),
    ("20_mmcif/x.cif", r"found Cartesian ones alone.*mmCIF"),
    ("23_several_blocks/two.csv#m", r"found 2 data blocks with atoms \(one, two\)"),
    ("24_duplicate_sites/p1.cif", "read Fe3 in the cell, the file says multiples of Fe2"),
    ("26_label_vacancy_centroid/cent.cif", "site CENT: expected the symbol of an element"),
    ("26_label_vacancy_centroid/ree.cif", "site REE1: expected the symbol of an element"),
    ("26_label_vacancy_centroid/vac.cif", "site Vac1: expected the symbol of an element, got 'Vac'"),
    ("28_truncated/x.cif", "read Mg4 O2 in the cell, the file says Mg4 O4"),
    ("29_occupancy_odd/f_0.5.cif", "Fe1 has 0.5"),
    ("30_cartesian_only/x.cif", "expected fractional coordinates"),
    ("31_coordinate_unknown/dot.cif", r"site Fe2 has '\.' as x"),
    ("31_coordinate_unknown/q.cif", r"site Fe2 has '\?' as x"),
    ("33_tag_without_value/x.cif", "line 12 .*_symmetry_space_group_name_H-M has no value"),
    ("38_pseudo_atoms/nh4cl.cif", "read N1 Cl1 in the cell, the file says multiples of N H4 Cl"),
    ("38_pseudo_atoms/nano3.cif", "expected the symbol of an element, got 'NO3'"),
    ("38_pseudo_atoms/caco3.cif", "expected the symbol of an element, got 'CO3'"),
    ("38_pseudo_atoms/ice.cif", "expected the symbol of an element, got 'H2O'"),
    ("39_dummy_species_row/rows.csv#x", "site X1: expected the symbol of an element"),
    ("39_dummy_species_row/rows.csv#q", "site Q1: expected the symbol of an element"),
    ("83_angles_in_radians/g05.csv#g05", "volume: .*got 0.326"),
    ("83_angles_in_radians/g1.csv#g1", "volume: "),
    ("83_angles_in_radians/g2.csv#g2", "volume: "),
    ("83_angles_in_radians/g5.csv#g5", "overlap: .*got 0.367 A"),
    ("83_angles_in_radians/radians.csv#radians", "cell: .*radians"),
    ("83_angles_in_radians/radians_hex.csv#radians_hex", "cell: .*radians"),
]


def text_of(name: str) -> str:
    """The CIF of a case; of a file with several blocks the first with atoms."""
    file, _, row = name.partition("#")
    text = (CASES / file).read_bytes().decode("utf-8", errors="replace")
    if not row:
        return cif_blocks(text)[0][1]
    return next(cells["cif"] for cells in csv.DictReader(text.splitlines(keepends=True)) if row in cells.values())


def formula(numbers: np.ndarray) -> str:
    counts = Counter(gemmi.Element(int(z)).name for z in numbers)
    return " ".join(f"{symbol}{counts[symbol]}" for symbol in sorted(counts))


def nearest(basis: np.ndarray, numbers: np.ndarray, coordinates: np.ndarray) -> float:
    """By pymatgen, images included."""
    structure = Structure(basis, numbers.tolist(), coordinates)
    return min(min(site.nn_distance for site in structure.get_neighbors(atom, 4.0)) for atom in structure)


@pytest.mark.parametrize(("name", "atoms", "volume", "distance"), READ, ids=[row[0] for row in READ])
def test_cases_that_describe_a_crystal(name, atoms, volume, distance):
    basis, numbers, coordinates = parse_cif(text_of(name))
    assert formula(numbers) == atoms
    assert np.linalg.det(basis) == pytest.approx(volume, abs=0.01)
    assert nearest(basis, numbers, coordinates) == pytest.approx(distance, abs=0.002)


@pytest.mark.parametrize(("name", "message"), REFUSED, ids=[row[0] for row in REFUSED])
def test_cases_that_describe_none(name, message):
    with pytest.raises(InputError, match=message):
        parse_cif(text_of(name))


@pytest.mark.parametrize("name", ["05_p21n_setting/x.cif", "06_p21b_unique_c/x.cif"])
def test_settings_of_monoclinic_groups_are_as_gemmi_has_them(name):
    path = CASES / name
    basis, numbers, coordinates = parse_cif(path.read_text())
    expected = gemmi.read_small_structure(str(path)).get_all_unit_cell_sites()
    assert sorted(numbers.tolist()) == sorted(site.element.atomic_number for site in expected)
    given = np.array([site.fract.tolist() for site in expected])
    steps = coordinates[:, None] - given[None]
    away = np.linalg.norm((steps - np.round(steps)) @ basis, axis=2)
    assert away.min(axis=1).max() < 1e-6


def test_a_file_of_several_crystals_is_split_by_block():
    text = (CASES / "23_several_blocks/two.cif").read_text()
    assert [(name, formula(parse_cif(block)[1])) for name, block in cif_blocks(text)] == [("one", "Fe2"), ("two", "W2")]


# Brothers of the cases


CELL = (
    "_cell_length_a {0}\n_cell_length_b {1}\n_cell_length_c {2}\n"
    "_cell_angle_alpha {3}\n_cell_angle_beta {4}\n_cell_angle_gamma {5}\n"
)
COLUMNS = "_atom_site_label _atom_site_type_symbol _atom_site_fract_x _atom_site_fract_y _atom_site_fract_z"
CUBIC = (4.21, 4.21, 4.21, 90, 90, 90)
ROCK_SALT = "Mg1 Mg 0 0 0\nO1 O 0.5 0.5 0.5"
FM3M = "_symmetry_space_group_name_H-M 'F m -3 m'\n"


def cif(header: str = "", sites: str = ROCK_SALT, cell: tuple = CUBIC, columns: str = COLUMNS) -> str:
    loop = "\n".join(["loop_", *columns.split(), sites])
    return f"data_x\n{header}{CELL.format(*cell)}{loop}\n"


@pytest.mark.parametrize(
    "header",
    [
        FM3M,
        "_space_group_name_H-M_alt 'Fm-3m'\n_chemical_formula_sum 'Mg O'\n_cell_formula_units_Z 4\n",
        "_SYMMETRY_SPACE_GROUP_NAME_H-M 'F M -3 M'\n",
        "_space_group_IT_number 225\n",
        "_space_group_name_Hall '-F 4 2 3'\n_space_group_IT_number 225\n_cell_volume 74.6(1)\n",
        FM3M + "_exptl_crystal_density_diffrn 3.59\n",
        FM3M + "_chemical_formula_weight 40.3\n_cell_formula_units_Z 4\n",
        FM3M + "_chemical_formula_sum 'Mg4 O4'\n_cell_formula_units_Z 4\n",  # pymatgen's habit
        FM3M + "_chemical_formula_sum '2(Mg O)'\n",
        FM3M + "_chemical_formula_moiety 'Mg 2+, O 2-'\n",
        FM3M + "_chemical_formula_sum 'periclase'\n",  # is no list of elements: not compared
        "_symmetry_space_group_name_H-M 'F m -3 m (No. 225)'\n",
        "_symmetry_space_group_name_H-M 'F 4/m -3 2/m'\n",
        FM3M + "_chemical_formula_sum ?\n_cell_formula_units_Z .\n",
    ],
)
def test_ways_to_say_rock_salt(header):
    basis, numbers, coordinates = parse_cif(cif(header))
    assert formula(numbers) == "Mg4 O4"
    assert nearest(basis, numbers, coordinates) == pytest.approx(2.105, abs=1e-3)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (FM3M + "_chemical_formula_sum 'Mg O2'\n", "read Mg4 O4 in the cell, the file says multiples of Mg O2"),
        (FM3M + "_chemical_formula_sum 'Mg O'\n_cell_formula_units_Z 8\n", "the file says Mg8 O8"),
        (FM3M + "_chemical_formula_sum 'Mg O H2'\n", "multiples of Mg O H2"),
        (FM3M + "_chemical_formula_sum 'Mg O, 2(H2 O)'\n", "read Mg4 O4 in the cell"),
        (FM3M + "_cell_volume 80.1\n", r"has 74.618 A\^3, the file says 80.1 \(_cell_volume\)"),
        (FM3M + "_exptl_crystal_density_diffrn 2.70\n", r"read 3.588 g/cm3, the file says 2.7"),
        (FM3M + "_chemical_formula_weight 58.3\n_cell_formula_units_Z 4\n", "read 40.30. u per formula unit"),
        (FM3M + "_space_group_IT_number 216\n", "has number 225, the file says 216"),
        (FM3M + "_symmetry_equiv_pos_as_xyz x,y,z\n", "operators are those of space group 1, its name says 'F m -3 m'"),
        (FM3M + "_space_group_name_Hall '-P 4 2 3'\n", "operators are those of space group 221, its name says"),
        ("_symmetry_space_group_name_H-M 'P m -3 q'\n", "unknown space group 'P m -3 q'"),
        ("_space_group_IT_number 231\n", "expected a space group number from 1 to 230, got 231"),
        ("_symmetry_space_group_name_H-M 'P 63/m m c'\n", "does not have the symmetry of P 63/m m c"),
        ("_space_group_name_Hall 'nonsense'\n", "expected a Hall symbol"),
        ("_symmetry_equiv_pos_as_xyz 'x,y'\n", "expected a symmetry operator"),
        ("_symmetry_equiv_pos_as_xyz 'x,y,foo'\n", "expected a symmetry operator"),
        ("_cell_modulation_dimension 1\n", "modulated"),
        ("_space_group_magn_number_BNS 62.441\n", "magnetic space group alone"),
        ("_cell_length_a 4.3\n", "line 3 breaks its syntax|expected one value of _cell_length_a"),
        ("_cell.length_a 4.3\n", "expected one value of _cell_length_a, found '4.3' and '4.21'"),
        ("loop_\n_symmetry_equiv_pos_as_xyz\n'x,y,z'\n'-x,y,z+1/2'\n'x,y,z+1/4'\n", "are no group"),
    ],
)
def test_contradictions_are_named(header, message):
    with pytest.raises(InputError, match=message):
        parse_cif(cif(header))


@pytest.mark.parametrize(
    ("label", "element"),
    [
        ("Mg1", "Mg"),
        ("Mg", "Mg"),
        ("O1W", "O"),
        ("Fe(2)", "Fe"),
        ("Na1A", "Na"),
        ("C2'", "C"),
        ("CL3", "Cl"),
        ("D1", "H"),
    ],
)
def test_elements_of_labels(label, element):
    columns = COLUMNS.replace("_atom_site_type_symbol ", "")
    numbers = parse_cif(cif(sites=f'"{label}" 0 0 0', columns=columns))[1]
    assert formula(numbers) == f"{element}1"


@pytest.mark.parametrize(
    "label", ["OH1", "OW2", "Wat", "M1", "T1", "A1", "Q1", "X", "H2O1", "NO3", "CO1", "Cg1", "Du1", "?"]
)
def test_labels_that_are_no_elements(label):
    columns = COLUMNS.replace("_atom_site_type_symbol ", "")
    with pytest.raises(InputError, match="expected the symbol of an element"):
        parse_cif(cif(sites=f"{label} 0 0 0", columns=columns))


@pytest.mark.parametrize(
    ("symbol", "element"),
    [
        ("Fe3+", "Fe"),
        ("O2-", "O"),
        ("Fe+3", "Fe"),
        ("Mn3.5+", "Mn"),
        ("Na+", "Na"),
        ("Si4", "Si"),
        ("CL", "Cl"),
        ("si", "Si"),
    ],
)
def test_elements_of_type_symbols(symbol, element):
    assert formula(parse_cif(cif(sites=f"a {symbol} 0 0 0"))[1]) == f"{element}1"


@pytest.mark.parametrize(
    "symbol", ["OH", "OH-", "H2O", "NH4+", "CO", "NO", "CN", "SO4", "Wat", "X", "Xx", "Vac", "M", "Zz", "Fe/Ni"]
)
def test_type_symbols_that_are_no_elements(symbol):
    with pytest.raises(InputError, match="site a: expected the symbol of an element"):
        parse_cif(cif(sites=f"a {symbol} 0 0 0"))


def test_the_formula_decides_about_letters_that_are_two_elements():
    assert formula(parse_cif(cif("_chemical_formula_sum Co\n", sites="a CO 0 0 0"))[1]) == "Co1"
    with pytest.raises(InputError, match="expected the symbol"):
        parse_cif(cif("_chemical_formula_sum 'C O'\n", sites="a CO 0 0 0"))


def with_column(tag: str, *values: str) -> str:
    rows = "\n".join(f"{row} {value}" for row, value in zip(ROCK_SALT.splitlines(), values, strict=True))
    return cif(FM3M, sites=rows, columns=f"{COLUMNS} {tag}")


@pytest.mark.parametrize(
    ("tag", "values", "error", "message"),
    [
        ("_atom_site_attached_hydrogens", ("0", "1"), InputError, "site O1 counts 1 attached hydrogen"),
        ("_atom_site_calc_flag", ("d", "dum"), InputError, "site O1 is a dummy"),
        ("_atom_site_disorder_group", ("1", "2"), DisorderedError, "alternatives"),
        ("_atom_site_disorder_group", (".", "-1"), DisorderedError, "alternatives"),
        ("_atom_site_occupancy", ("1", "1.2"), DisorderedError, "O1 has 1.2"),
        ("_atom_site_occupancy", ("1", "full"), DisorderedError, "O1 has full"),
        ("_atom_site_symmetry_multiplicity", ("4", "8"), InputError, r"site O1 has 4 images, the file says 8"),
    ],
)
def test_marks_of_sites_are_heeded(tag, values, error, message):
    with pytest.raises(error, match=message):
        parse_cif(with_column(tag, *values))


@pytest.mark.parametrize(
    ("tag", "values"),
    [
        ("_atom_site_attached_hydrogens", ("0", "?")),
        ("_atom_site_calc_flag", ("d", "calc")),
        ("_atom_site_disorder_group", (".", "1")),
        ("_atom_site_symmetry_multiplicity", ("4", "4")),
        ("_atom_site_symmetry_multiplicity", ("48", "48")),  # order of the site's symmetry
        ("_atom_site_symmetry_multiplicity", ("1", "1")),  # ASE's habit
    ],
)
def test_marks_that_say_nothing_against_a_site(tag, values):
    assert formula(parse_cif(with_column(tag, *values))[1]) == "Mg4 O4"


def test_an_origin_that_is_left_open_is_refused_where_it_matters():
    silicon = (5.431, 5.431, 5.431, 90, 90, 90)
    with pytest.raises(InputError, match=r"leaves open which setting.*F d -3 m:1, F d -3 m:2"):
        parse_cif(cif("_symmetry_space_group_name_H-M 'F d -3 m'\n", "Si1 Si 0 0 0", silicon))
    # 1/8 1/8 1/8 is a diamond's site in origin choice 2, and 3/8 3/8 3/8 by its inversion: the same crystal
    numbers = parse_cif(cif("_symmetry_space_group_name_H-M 'F d -3 m :2'\n", "Si1 Si 0.125 0.125 0.125", silicon))[1]
    assert len(numbers) == 8


def test_a_number_alone_does_not_say_the_setting():
    """As the dictionary has it, it names the class of a group."""
    cell, sites = (5.1, 5.2, 5.3, 90, 99.2, 90), "Zr1 Zr 0.2754 0.0395 0.2083"
    with pytest.raises(InputError, match=r"leaves open which setting.*P 1 21/c 1, P 1 21/n 1, P 1 21/a 1"):
        parse_cif(cif("_space_group_IT_number 14\n", sites, cell))


@pytest.mark.parametrize(
    ("name", "angle", "images"),
    [
        ("P2(1)/m", "beta", 4),
        ("P 21/m", "beta", 4),
        ("P 21/m", "gamma", 4),
        ("P 21/b", "gamma", 4),
        ("C 2/c", "beta", 8),
    ],
)
def test_short_monoclinic_symbols_follow_the_cell(name, angle, images):
    angles = [99.2 if axis == angle else 90 for axis in ("alpha", "beta", "gamma")]
    text = cif(f"_space_group_name_H-M_alt '{name}'\n", "Zr1 Zr 0.2754 0.0395 0.2083", (7.1, 7.2, 7.3, *angles))
    assert len(parse_cif(text)[1]) == images


@pytest.mark.parametrize(("axes", "count"), [("R -3 m :H", 6), ("R -3 m H", 6), ("R-3mH", 6), ("R -3 m", 6)])
def test_hexagonal_axes(axes, count):
    text = cif(f"_symmetry_space_group_name_H-M '{axes}'\n", "Bi1 Bi 0 0 0.2339", (4.546, 4.546, 11.86, 90, 90, 120))
    assert len(parse_cif(text)[1]) == count


def test_rhombohedral_axes_on_a_hexagonal_cell_are_refused():
    text = cif("_symmetry_space_group_name_H-M 'R -3 m :R'\n", "Bi1 Bi 0 0 0.2339", (4.546, 4.546, 11.86, 90, 90, 120))
    with pytest.raises(InputError, match="does not have the symmetry"):
        parse_cif(text)


def test_a_primitive_cell_under_a_centred_symbol_is_refused():
    """What this program itself once wrote."""
    side = 4.21 / 2**0.5
    with pytest.raises(InputError, match="does not have the symmetry of F m -3 m"):
        parse_cif(cif(FM3M, cell=(side, side, side, 60, 60, 60)))


def test_images_near_a_special_position_are_one_atom_on_it():
    """Within 0.05 A; from there to 0.5 A they overlap."""
    header, cell = "_symmetry_space_group_name_H-M 'P -1'\n", (4.0, 4.1, 4.2, 85, 88, 95)
    _, numbers, coordinates = parse_cif(cif(header, "Fe1 Fe 0.003 0.002 0.498", cell))
    assert len(numbers) == 1
    np.testing.assert_allclose(np.abs(coordinates - [0, 0, 0.5]), 0, atol=1e-12)
    with pytest.raises(ImplausibleError, match=r"^overlap: "):
        parse_cif(cif(header, "Fe1 Fe 0.02 0.01 0.49", cell))


def test_sites_listed_twice_by_symmetry_overlap():
    with pytest.raises(ImplausibleError, match=r"^overlap: .*got 0 A"):
        parse_cif(cif(FM3M, ROCK_SALT + "\nMg2 Mg 0.5 0.5 0"))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ((4.21, 4.21, "?", 90, 90, 90), "_cell_length_c is not given"),
        ((4.21, 4.21, 0, 90, 90, 90), "^cell: expected lengths above 0"),
        ((4.21, 4.21, -4.21, 90, 90, 90), "^cell: expected lengths above 0"),
        ((4.21, 4.21, 4.21, 90, 90, 190), "^cell: expected lengths above 0"),
        ((4.21, 4.21, 4.21, 60, 60, 150), "^cell: "),
        ((4.21, 4.21, 4.21, 90, 90, 0.01), "^cell: .*flat"),
        ((42.1, 42.1, 42.1, 90, 90, 90), "^volume: .*1000"),
        ((1.5, 1.5, 1.5, 90, 90, 90), "^volume: expected 2 to 1000"),
    ],
)
def test_cells_that_are_none(cell, message):
    with pytest.raises(InputError, match=message):
        parse_cif(cif("_symmetry_space_group_name_H-M 'P 1'\n", cell=cell))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the text is empty"),
        ("nonsense", "no data block"),
        ("data_x\n_cell_length_a 4\n", r"none of the file's data blocks \(1\) lists any"),
        ("data_x\nloop_\n_a\n_b\n1 2 3\n", "line 2 breaks its syntax: Wrong number of values in loop"),
        ("data_x\n_a 'open\n", "line 2 breaks its syntax"),
    ],
)
def test_syntax(text, message):
    with pytest.raises(InputError, match=message):
        parse_cif(text)


@pytest.mark.parametrize("end", ["\r\n", "\r", "\n\n"])
def test_ends_of_lines(end):
    assert formula(parse_cif("\ufeff" + cif(FM3M).replace("\n", end))[1]) == "Mg4 O4"


# The plain P1 texts of this program, and the guard


@pytest.mark.filterwarnings("ignore:Issues encountered while parsing CIF")
@pytest.mark.parametrize("make", crystals.SYSTEMS.values(), ids=crystals.SYSTEMS)
def test_p1_agrees_with_pymatgen(make):
    text = to_cif(make())
    basis, numbers, coordinates = parse_cif(text)
    expected = Structure.from_str(text, fmt="cif")
    np.testing.assert_allclose(basis @ basis.T, expected.lattice.matrix @ expected.lattice.matrix.T, atol=1e-6)
    found, wanted = (
        sorted([float(z), *np.round(np.mod(x, 1), 6).tolist()] for z, x in zip(*pair, strict=True))
        for pair in ((numbers, coordinates), (expected.atomic_numbers, expected.frac_coords))
    )
    np.testing.assert_allclose(found, wanted, atol=1e-8)  # pymatgen sorts its sites and snaps to 1/3


@pytest.mark.parametrize("seed", range(20))
def test_shortest_distance_is_pymatgens(seed):
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(3, 3)) * rng.choice([0.7, 3.0], size=3)
    coordinates = rng.random((rng.integers(1, 6), 3)) * 3 - 1
    structure = Structure(basis, ["H"] * len(coordinates), coordinates)
    neighbours = structure.get_neighbor_list(2.0)[3]
    wanted = float(neighbours.min()) if len(neighbours) else float("inf")
    assert shortest_distance(basis, coordinates, 2.0) == pytest.approx(wanted, abs=1e-9)


def test_the_guard_names_what_is_wrong():
    cube = 3.0 * np.eye(3)
    require_plausible(cube, np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))
    for kind, basis, coordinates in [
        ("overlap", cube, [[0, 0, 0], [0.9, 0, 0]]),
        ("volume", 0.9 * np.eye(3), [[0, 0, 0]]),
        ("cell", np.diag([3.0, 3.0, 0.0]), [[0, 0, 0]]),
        ("not-finite", cube, [[0, 0, np.nan]]),
        ("not-finite", np.full((3, 3), np.inf), [[0, 0, 0]]),
        ("coordinates", cube, [[0, 0, 2e4]]),
        ("size", cube, np.zeros((0, 3))),
    ]:
        with pytest.raises(ImplausibleError, match=f"^{kind}: ") as error:
            require_plausible(np.array(basis), np.array(coordinates))
        assert error.value.kind == kind
    assert MIN_DISTANCE < 0.74  # H2
