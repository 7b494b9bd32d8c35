"""The Wyckoff tables against pyxtal itself, and against published facts of the 230 groups."""

import numpy as np
import pytest

from generator.representation.wyckoff import LETTERS, letter_index, project, symmetrize_lattice, tables

LETTERS_PER_GROUP = """
1,9,5,1,3,3,1,2,1,15,6,10,7,5,6,21,5,3,1,3,12,11,11,4,9,3,5,4,1,3,2,3,1,3,6,2,4,6,4,3,2,5,2,5,3,3,27,13,18,13,12,5,9,6,
9,5,5,8,7,4,3,4,8,7,18,13,15,9,16,8,15,11,6,10,4,1,4,1,3,2,8,7,12,11,7,7,9,6,16,7,4,2,16,7,4,2,11,7,7,4,5,4,4,3,6,3,5,4,
3,2,15,14,6,5,12,10,9,9,10,9,10,5,21,14,14,11,12,9,11,7,18,16,11,14,9,11,8,10,15,13,9,7,4,1,1,2,7,6,12,7,3,3,3,3,6,5,4,
4,3,3,2,12,9,10,7,9,6,4,1,1,3,3,3,12,12,9,14,3,3,11,11,9,6,4,4,4,15,12,12,9,18,13,12,12,10,8,6,2,3,12,8,9,7,8,4,5,11,13,
10,8,10,5,5,9,10,9,8,9,8,5,14,9,12,12,12,10,9,8,12,8
"""
GENERAL_MULTIPLICITIES = """
1,2,2,2,4,2,2,4,4,4,4,8,4,4,8,4,4,4,4,8,8,16,8,8,4,4,4,4,4,4,4,4,4,4,8,8,8,8,8,8,8,16,16,8,8,8,8,8,8,8,8,8,8,8,8,8,8,
8,8,8,8,8,16,16,16,16,16,16,32,32,16,16,16,16,4,4,4,4,8,8,4,8,8,8,8,8,16,16,8,8,8,8,8,8,8,8,16,16,8,8,8,8,8,8,8,8,16,
16,16,16,8,8,8,8,8,8,8,8,16,16,16,16,16,16,16,16,16,16,16,16,16,16,16,16,16,16,16,16,32,32,32,32,3,3,3,9,6,18,6,6,6,6,
6,6,18,6,6,6,6,18,18,12,12,12,12,36,36,6,6,6,6,6,6,6,12,12,12,12,12,12,12,12,12,12,12,12,12,12,12,12,24,24,24,24,12,
48,24,12,24,24,24,96,96,48,24,48,24,24,96,96,48,24,24,48,24,96,48,24,96,48,48,48,48,48,192,192,192,192,96,96
"""
# group: multiplicities, degrees of freedom, moving coordinates (CrystalFormer's mask), for letters a, b, ...
POSITIONS = {
    2: ("1x8,2", "0x8,3", "000x8,111"),
    25: ("1,1,1,1,2,2,2,2,4", "1,1,1,1,2,2,2,2,3", "001x4,101,101,011,011,111"),
    47: ("1x8,2x12,4x6,8", "0x8,1x12,2x6,3", "000x8,100x4,010x4,001x4,011x2,101x2,110x2,111"),
    62: ("4,4,4,8", "0,0,2,3", "000,000,101,111"),
    99: ("1,1,2,4,4,4,8", "1,1,1,2,2,2,3", "001,001,001,111,101,101,111"),
    123: ("1x4,2x4,4x7,8x5,16", "0x6,1x9,2x5,3", "000x6,001x3,110x2,100x4,110,110,111,101,101,111"),
    139: (
        "2,2,4,4,4,8x5,16x4,32",
        "0,0,0,0,1,0,1,1,1,1,1,2,2,2,3",
        "000x4,001,000,001,110,100,100,110,110,111,011,111",
    ),
    160: ("3,9,18", "1,2,3", "001,111,111"),
    166: ("3,3,6,9,9,18,18,18,36", "0,0,1,0,0,1,1,2,3", "000,000,001,000,000,100,100,111,111"),
    167: ("6,6,12,18,18,36", "0,0,1,0,1,3", "000,000,001,000,100,111"),
    194: (
        "2,2,2,2,4,4,6,6,12,12,12,24",
        "0,0,0,0,1,1,0,1,1,2,2,3",
        "000x4,001,001,000,110,100,110,111,111",
    ),
    216: ("4x4,16,24,24,48,96", "0x4,1,1,1,2,3", "000x4,111,100,100,111,111"),
    221: (
        "1,1,3,3,6,6,8,12,12,12,24,24,24,48",
        "0x4,1x6,2,2,2,3",
        "000x4,100,100,111,100,011,011,011,011,111,111",
    ),
    225: ("4,4,8,24,24,32,48,48,48,96,96,192", "0x4,1x5,2,2,3", "000x4,100,111,100,011,011,011,111,111"),
    227: ("8,8,16,16,32,48,96,96,192", "0x4,1,1,2,1,3", "000x4,111,100,111,011,111"),
    230: ("16,16,24,24,32,48,48,96", "0x4,1,1,1,3", "000x4,111,100,011,111"),
}


def integers(text: str) -> list[int]:
    return [int(number) for number in text.replace("\n", "").split(",")]


def repeated(text: str) -> list[str]:
    parts = (part.split("x") for part in text.split(","))
    return [value for value, *count in parts for _ in range(int(count[0]) if count else 1)]


def positions() -> np.ndarray:
    t = tables()
    return t.multiplicity > 0


def test_numbers_of_letters_and_general_multiplicities():
    t = tables()
    assert t.n_letters[1:].tolist() == integers(LETTERS_PER_GROUP)
    general = [len(t.general_ops(g)) for g in range(1, 231)]
    assert general == integers(GENERAL_MULTIPLICITIES)
    assert sum(general) == 4425
    assert t.n_letters.sum() == positions().sum() == 1731
    assert t.multiplicity.sum() == len(t.operators) == 14433


def test_degrees_of_freedom_and_masks():
    t, exists = tables(), positions()
    assert np.bincount(t.dof[exists]).tolist() == [616, 718, 167, 230]
    assert t.fc_mask.sum() == 1961
    assert t.free.sum() == 1742
    assert t.dof0[~exists].all()
    assert t.dof0[exists].sum() == 616
    pairs: dict[str, int] = {}
    for moving, free in zip(t.fc_mask[exists], t.free[exists], strict=True):
        key = "->".join("".join("01"[flag] for flag in mask.astype(int)) for mask in (moving, free))
        pairs[key] = pairs.get(key, 0) + 1
    assert pairs == {
        "000->000": 616,
        "001->001": 320,
        "010->010": 66,
        "011->010": 27,
        "011->011": 43,
        "100->100": 185,
        "101->101": 42,
        "110->100": 84,
        "110->110": 46,
        "111->100": 36,
        "111->101": 36,
        "111->111": 230,
    }


@pytest.mark.parametrize("g", POSITIONS)
def test_positions_of_a_group(g):
    t = tables()
    letters = slice(1, t.n_letters[g] + 1)
    multiplicity, dof, moving = (repeated(text) for text in POSITIONS[g])
    assert t.multiplicity[g, letters].tolist() == [int(m) for m in multiplicity]
    assert t.dof[g, letters].tolist() == [int(d) for d in dof]
    assert ["".join("01"[flag] for flag in row.astype(int)) for row in t.fc_mask[g, letters]] == moving


def test_first_operator_is_a_lower_triangular_projection():
    op0 = tables().op0
    linear, shift = op0[..., :3], op0[..., 3]
    assert np.array_equal(linear @ linear, linear)
    again = (linear @ shift[..., None])[..., 0] + shift
    assert np.abs(again - shift - np.round(again - shift)).max() < 1e-9
    assert not np.triu(linear, 1).any()


def test_tables_equal_pyxtal():
    from pyxtal.symmetry import Group

    t = tables()
    for g in range(1, 231):
        for w, position in enumerate(Group(g).Wyckoff_positions[::-1], start=1):
            expected = np.array([op.affine_matrix[:3] for op in position.ops])
            np.testing.assert_allclose(t.orbit_ops(g, w), expected, atol=1e-4)
            assert LETTERS[w] == position.letter
            assert letter_index(position.letter) == w


def test_operator_parsing():
    """-2y+1/2, 3x+1/2, z-y+1/2 as pymatgen reads it: the convention of our affine rows."""
    from pymatgen.core.operations import SymmOp

    rows = SymmOp.from_xyz_str("-2y+1/2, 3x+1/2, z-y+1/2").affine_matrix[:3]
    assert rows.tolist() == [[0, -2, 0, 0.5], [3, 0, 0, 0.5], [0, -1, 1, 0.5]]
    x = np.array([0.1, 0.2, 0.3])
    np.testing.assert_allclose(project(rows, x), [0.1, 0.8, 0.6])


@pytest.mark.parametrize(
    ("g", "w", "point", "expected"),
    [
        (225, 1, (0.3, 0.5, 0.5), (0, 0, 0)),
        (225, 6, (0.3, 0.5, 0.5), (0.3, 0.3, 0.3)),
        (225, 5, (0.3, 0.5, 0.5), (0.3, 0, 0)),
        (194, 8, (0.2, 0.9, 0.9), (0.2, 0.4, 0.25)),
        (166, 8, (0.1, 0.2, 0.3), (0.1, 0.9, 0.3)),
        (167, 5, (0.12, 0.3, 0.3), (0.12, 0, 0.25)),
        (62, 3, (0.1, 0.9, 0.3), (0.1, 0.25, 0.3)),
        (230, 7, (0.2, 0.7, 0.1), (0.125, 0.7, 0.55)),
    ],
)
def test_projection(g, w, point, expected):
    np.testing.assert_allclose(project(tables().op0[g, w], np.array(point)) % 1, expected, atol=1e-9)


def representative(g: int, w: int, point: tuple[float, float, float]) -> np.ndarray:
    """The image of a point that is closest to the first operator of the position."""
    t = tables()
    images = project(t.general_ops(g), np.array(point))
    residual = project(t.op0[g, w], images) - images
    distance = np.abs(residual - np.round(residual)).max(-1)
    return images[distance.argmin()]


@pytest.mark.parametrize(
    ("g", "w", "point", "index", "expected"),
    [
        (225, 5, (0, 0, 0.7334), 0, {(0.7334, 0, 0), (0.2666, 0, 0)}),
        (225, 5, (0, 0, 0.7334), 3, {(0, 0.2666, 0), (0, 0.7334, 0)}),
        (167, 5, (0.123, 0.123, 0.75), 5, {(0.123, 0.123, 0.75), (0.877, 0.877, 0.75)}),
        (167, 5, (0.123, 0.123, 0.25), 5, {(0.877, 0.877, 0.75), (0.123, 0.123, 0.75)}),
        (166, 8, (0.1, 0.2, 0.3), 5, {(0.9, 0.8, 0.7), (0.1, 0.2, 0.3)}),
    ],
)
def test_find_representative_then_operator(g, w, point, index, expected):
    """Images that satisfy op0(x) = x come in pairs here (x and -x): either is a representative."""
    image = project(tables().orbit_ops(g, w)[index], representative(g, w, point)) % 1
    assert tuple(np.round(image, 4).tolist()) in expected


@pytest.mark.parametrize(
    ("g", "w", "point", "count", "total", "tolerance"),
    [
        (225, 5, (0, 0, 0.7334), 24, (8, 8, 8), 1e-9),
        (166, 3, (0, 0, 0.5619), 6, (2, 2, 3), 1e-9),
        (225, 8, (0, 0.23, 0.23), 48, (20, 20, 20), 1e-9),
        (136, 6, (0.305, 0.305, 0), 4, (2, 2, 1), 1e-9),
    ],
)
def test_orbits(g, w, point, count, total, tolerance):
    points = project(tables().orbit_ops(g, w), representative(g, w, point))
    points = np.mod(np.round(points, 9), 1)
    assert len(np.unique(np.round(points, 6), axis=0)) == count
    np.testing.assert_allclose(points.sum(0), total, atol=tolerance)


@pytest.mark.parametrize(
    ("first", "last", "mask"),
    [
        (1, 2, "111111"),
        (3, 15, "111010"),
        (16, 74, "111000"),
        (75, 142, "101000"),
        (143, 194, "101000"),
        (195, 230, "100000"),
    ],
)
def test_independent_cell_parameters(first, last, mask):
    for g in (first, last):
        assert "".join("01"[flag] for flag in tables().lattice_mask[g].astype(int)) == mask


@pytest.mark.parametrize(
    ("g", "expected"),
    [
        (2, (4, 5, 6, 70, 80, 95)),
        (15, (4, 5, 6, 90, 80, 90)),
        (74, (4, 5, 6, 90, 90, 90)),
        (142, (4, 4, 6, 90, 90, 90)),
        (194, (4, 4, 6, 90, 90, 120)),
        (230, (4, 4, 4, 90, 90, 90)),
    ],
)
def test_symmetrize_lattice(g, expected):
    given = np.array([4, 5, 6, *np.radians([70, 80, 95])])
    result = symmetrize_lattice(g, given)
    np.testing.assert_allclose([*result[:3], *np.degrees(result[3:])], expected)
    independent = tables().lattice_mask[g]
    np.testing.assert_array_equal(result[independent], given[independent])


def test_normalizers_match_the_international_tables():
    """Numbers of equal descriptions (index of the group in its normaliser, polar shifts and mirror images left out)."""
    t = tables()
    known = {1: 1, 2: 8, 14: 8, 15: 4, 62: 8, 63: 4, 139: 2, 148: 4, 186: 2, 194: 2, 198: 4, 216: 8, 225: 2, 230: 1}
    assert {g: len(t.normalizer_ops(g)[0]) for g in known} == known
    operators, letters = t.normalizer_ops(225)
    assert operators[1, :, 3].tolist() == [0.5, 0.5, 0.5] or operators[1, :, 3].tolist() == [0, 0, 0.5]
    assert letters[1, 1:3].tolist() == [2, 1]  # NaCl: cation and anion swap


@pytest.mark.parametrize("g", [2, 16, 36, 62, 88, 122, 148, 155, 160, 180, 198, 205, 216, 227])
def test_normalizers_map_the_group_to_itself(g):
    t = tables()
    group = {_key(op) for op in t.general_ops(g)}
    for operator in t.normalizer_ops(g)[0]:
        inverse = np.linalg.inv(np.vstack([operator, [0, 0, 0, 1]]))
        for op in t.general_ops(g):
            square = np.vstack([op, [0, 0, 0, 1]])
            conjugate = np.vstack([operator, [0, 0, 0, 1]]) @ square @ inverse
            assert _key(conjugate[:3]) in group


def _key(op: np.ndarray) -> tuple[float, ...]:
    return (*np.round(op[:, :3]).ravel().tolist(), *(np.round(op[:, 3] * 24) % 24).tolist())


def test_tables_are_shared_and_read_only():
    t = tables()
    assert t is tables()
    with pytest.raises(ValueError, match="read-only"):
        t.op0[1, 1, 0, 0] = 2.0
