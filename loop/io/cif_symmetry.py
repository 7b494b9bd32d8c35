"""The symmetry of a CIF: which operators it gives, or which settings its names leave open; and what they make of sites.

Order of trust: operators, Hall symbol, Hermann-Mauguin symbol with its setting, number. What is given twice must agree.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import lru_cache

import gemmi
import numpy as np

from loop.errors import InputError
from loop.io.cif_items import Items

MERGED = 0.05  # A; images of a site that are closer are one atom on a special position
LENGTHS = 0.02  # relative, what a cell may differ from the metric of its group
ANGLES = 1.0  # degrees, likewise

_OPERATORS = (
    "_space_group_symop_magn_operation_xyz",
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
)
_CENTRINGS = "_space_group_symop_magn_centering_xyz"
_HALLS = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
_NAMES = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_symmetry_space_group_name_h-m_full",
)
_GROUP_NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
_CODE = "_space_group_it_coordinate_system_code"
_MAGNETIC = ("_space_group_magn_number_bns", "_space_group_magn_name_bns", "_space_group_magn_number_og")
_SUFFIX = re.compile(r"^(.+?)\s*:?\s*([12hrsz])$", re.IGNORECASE)
_ICSD = {"S": "1", "Z": "2", "H": "H", "R": "R", "1": "1", "2": "2"}  # S: origin choice 1, Z: origin choice 2
_HABITS = (
    (r"\((\d)\)", r"\1"),  # P 2(1)/c
    (r"\s*\((no\.?\s*)?\d+\)$", ""),  # F m -3 m (225)
    (r"\s*[({]?\s*origin\s*(?:choice)?\s*([12])\s*[)}]?$", r" :\1"),  # F d -3 m (origin choice 2)
)
_STEPS = 24  # translations of groups in conventional cells are multiples of 1/24
_SNAP = 5e-3  # what rounded decimals may differ from them: 0.67 does by 0.0033
_STEPS_APART = 120  # in which translations are compared
_DIGITS = 7  # that the entries of a rotation can take


@dataclass(frozen=True, eq=False)
class Setting:
    """A group of operators in fractional coordinates: x -> rotations x + translations."""

    name: str
    rotations: np.ndarray  # (m, 3, 3) integers
    translations: np.ndarray  # (m, 3) in [0, 1)

    def __len__(self) -> int:
        return len(self.rotations)


IDENTITY = Setting("P 1", np.eye(3, dtype=int)[None], np.zeros((1, 3)))


def read_settings(items: Items, cell: gemmi.UnitCell) -> tuple[list[Setting], tuple[str, ...]]:
    """The settings that a file leaves open (one, mostly), in order of preference, and what to tell of them.

    Raises:
        InputError: the file's statements contradict one another or the cell, or cannot be read.
    """
    if (items.number("_cell_modulation_dimension") or 0) > 0 or items.known("_space_group_ssg_name"):
        raise InputError("expected a periodic crystal, found a modulated one: give a commensurate approximant")
    given = operators(items)
    hall, name, number = items.text(*_HALLS), items.text(*_NAMES), items.number(*_GROUP_NUMBERS)
    stated = given is IDENTITY or (given is None and (hall, name, number) != (None, None, None))
    if stated and _is_trivial(hall, name, number):
        return [IDENTITY], ()
    named = _named(name, number, items.text(_CODE))
    by_hall = None if hall is None else _by_hall(hall)
    if given is None and by_hall is None and not named:
        if items.known(*_MAGNETIC):
            raise InputError("expected operators, found the number of a magnetic space group alone")
        return [IDENTITY], ("no symmetry given: read as P 1",)
    if given is not None and by_hall is not None and not _same(given, by_hall):
        raise InputError(f"the operators are not those of the Hall symbol {hall!r}")
    found = given or by_hall
    if found is not None:
        _require_name(found, named, name, number, cell)
        return _fitting([found], cell), ()
    return _fitting([setting_of(group) for group in _by_cell(named, cell, name)], cell), ()


def operators(items: Items) -> Setting | None:
    """The operators that a block lists, centrings of magnetic ones included; None where it lists none.

    Raises:
        InputError: an operator cannot be read, or they are not closed.
    """
    texts = items.known(*_OPERATORS)
    if not texts:
        return None
    if len(texts) == 1 and texts[0].replace(" ", "").lower() == "x,y,z" and _CENTRINGS not in items:
        return IDENTITY
    parsed = [_operator(text) for text in texts]
    for text in items.known(_CENTRINGS):
        _, shift = _operator(text)
        parsed += [(rotation, translation + shift) for rotation, translation in parsed[: len(texts)]]
    return _group("the operators given", np.array([r for r, _ in parsed]), np.array([t for _, t in parsed]))


def setting_of(group: gemmi.SpaceGroup) -> Setting:
    """The operators of a tabulated setting."""
    return _of_hall(group.hall, group.xhm())


@lru_cache(maxsize=600)
def _of_hall(hall: str, name: str) -> Setting:
    operations = list(gemmi.symops_from_hall(hall))
    rotations = np.array([op.rot for op in operations]) // gemmi.Op.DEN
    return _group(name, rotations, np.array([op.tran for op in operations]) / gemmi.Op.DEN)


@lru_cache(maxsize=10_000)
def _operator(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Rotation and translation of a text such as '-y, x-y, z+1/3'; the time reversal of magnetic ones is left out."""
    from pymatgen.core.operations import SymmOp

    parts = [part.strip().lower() for part in text.split(",")]
    plain = all(re.fullmatch(r"[-+xyz0-9./*\s]+", part) for part in parts)
    if len(parts) not in (3, 4) or not plain:
        raise InputError(f"expected a symmetry operator such as '-x, y+1/2, z', got {text!r}")
    try:
        matrix = SymmOp.from_xyz_str(",".join(parts[:3])).affine_matrix
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise InputError(f"expected a symmetry operator such as '-x, y+1/2, z', got {text!r}") from error
    rotation, translation = np.rint(matrix[:3, :3]).astype(int), matrix[:3, 3]
    if abs(round(float(np.linalg.det(rotation)))) != 1 or not np.allclose(rotation, matrix[:3, :3]):
        raise InputError(f"expected a symmetry operator such as '-x, y+1/2, z', got {text!r}")
    near = np.rint(translation * _STEPS) / _STEPS
    return rotation, np.where(abs(near - translation) < _SNAP, near, translation)


def _group(name: str, rotations: np.ndarray, translations: np.ndarray) -> Setting:
    """A setting of distinct operators.

    Raises:
        InputError: they are not closed.
    """
    keys, first = np.unique(_keys(rotations, translations), return_index=True)
    rotations, translations = rotations[np.sort(first)], np.mod(translations[np.sort(first)], 1.0)
    products = np.einsum("aij,bjk->abik", rotations, rotations).reshape(-1, 3, 3)
    shifts = (np.einsum("aij,bj->abi", rotations, translations) + translations[:, None]).reshape(-1, 3)
    if not np.isin(_keys(products, shifts), keys).all():
        raise InputError(f"{name} are no group ({len(keys)}): some are missing, or belong to another cell")
    return Setting(name, rotations, translations)


def _keys(rotations: np.ndarray, translations: np.ndarray) -> np.ndarray:
    """One integer for each operator."""
    linear = (rotations.reshape(-1, 9) % _DIGITS) @ _DIGITS ** np.arange(9)
    shifts = (np.rint(translations * _STEPS_APART).astype(int) % _STEPS_APART) @ _STEPS_APART ** np.arange(3)
    result: np.ndarray = linear * _STEPS_APART**3 + shifts
    return result


def _same(one: Setting, other: Setting) -> bool:
    return set(_keys(one.rotations, one.translations)) == set(_keys(other.rotations, other.translations))


def _is_trivial(hall: str | None, name: str | None, number: float | None) -> bool:
    return (
        (name is None or name.replace(" ", "") in ("P1", "1"))
        and number in (None, 1.0)
        and (hall is None or hall.replace(" ", "") == "P1")
    )


def _by_hall(text: str) -> Setting:
    try:
        return _of_hall(text, text)
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"expected a Hall symbol such as '-F 4 2 3', got {text!r}") from error


def _named(name: str | None, number: float | None, code: str | None) -> list[gemmi.SpaceGroup]:
    """All settings that a name, or else a number, may stand for; empty where there is neither.

    Raises:
        InputError: the name is unknown and there is no number, or they contradict each other.
    """
    known = [] if name is None else groups_of_name(name)
    if number is not None and not (number == int(number) and 1 <= number <= 230):
        raise InputError(f"expected a space group number from 1 to 230, got {number:g}")
    if known and number is not None and known[0].number != number:
        raise InputError(f"the space group {name!r} has number {known[0].number}, the file says {number:g}")
    if not known and number is not None:
        known = tuple(group for group in gemmi.spacegroup_table_itb() if group.number == number)
    if not known and name is not None:
        raise InputError(f"unknown space group {name!r}: give the operators or a standard symbol")
    chosen = [group for group in known if code is not None and group.ext == _ICSD.get(code.upper(), code.upper())]
    return chosen or list(known)


@lru_cache(maxsize=2000)
def groups_of_name(name: str) -> tuple[gemmi.SpaceGroup, ...]:
    """The tabulated settings that a Hermann-Mauguin symbol may stand for; empty if unknown.

    Several where it leaves open the origin (F d -3 m), the axes (R -3 m), or the unique axis (P 21).
    """
    plain = name.strip(" '\"").replace("_", "")
    for pattern, replacement in _HABITS:
        plain = re.sub(pattern, replacement, plain, flags=re.IGNORECASE)
    groups = _lookup(plain)
    if groups:
        return groups
    found = _SUFFIX.match(plain)
    if found is None:
        return ()
    extension = _ICSD[found[2].upper()]
    return tuple(group for group in _lookup(found[1]) if group.ext in (extension, "")) if found else ()


def _lookup(name: str) -> tuple[gemmi.SpaceGroup, ...]:
    table = _table()
    squeezed = name.replace(" ", "").lower()
    short = tuple(group for group in table if _short(group) == squeezed)
    if len(short) > 1 and len({group.hm for group in short}) > 1:  # P 21: the unique axis is left open
        return short
    group = gemmi.find_spacegroup_by_name(name)
    if group is None:
        full = _full_symbols().get(name.replace(" ", ""))
        group = None if full is None else gemmi.find_spacegroup_by_name(full)
    if group is None:
        return short
    if ":" in name or (name.rstrip()[-1:].upper() in ("H", "R") and group.ext in ("H", "R")):
        return (group,)
    return tuple(other for other in table if other.hm == group.hm and other.number == group.number)


@lru_cache(maxsize=1)
def _full_symbols() -> dict[str, str]:
    """Symbols by full ones, such as P n m a by P21/n21/m21/a."""
    from pymatgen.symmetry.groups import SpaceGroup

    return {full.replace("_", ""): short.replace("_", "") for full, short in SpaceGroup.full_sg_mapping.items()}


@lru_cache(maxsize=1)
def _table() -> tuple[gemmi.SpaceGroup, ...]:
    return tuple(gemmi.spacegroup_table())


@lru_cache(maxsize=1000)
def _short(group: gemmi.SpaceGroup) -> str:
    """The symbol without the 1 of axes without symmetry: P 21/c of P 1 21/c 1."""
    parts = group.hm.split()
    kept = [part for part in parts[1:] if part != "1"]
    return "".join([parts[0], *(kept if 3 <= group.number <= 15 else parts[1:])]).lower()


def _by_cell(groups: list[gemmi.SpaceGroup], cell: gemmi.UnitCell, name: str | None) -> list[gemmi.SpaceGroup]:
    """Those settings that the cell allows; of a short monoclinic symbol the usual axis b where several remain.

    Raises:
        InputError: none.
    """
    fitting = [group for group in groups if fits(setting_of(group), cell)]
    if not fitting:
        raise InputError(_misfit(groups[0].xhm(), cell))
    axes = {group.monoclinic_unique_axis() for group in fitting}
    if name is not None and len(axes) > 1 and "b" in axes:
        return [group for group in fitting if group.monoclinic_unique_axis() == "b"]
    return fitting


def fits(setting: Setting, cell: gemmi.UnitCell) -> bool:
    """Whether the operators leave lengths and angles as they are, within `LENGTHS` and `ANGLES`."""
    basis = np.array(cell.orth.mat.tolist())
    images = basis @ setting.rotations  # column vectors of the cell's images
    lengths, own = np.linalg.norm(images, axis=1), np.linalg.norm(basis, axis=0)
    if (np.abs(lengths / own - 1) > LENGTHS).any():
        return False
    units, plain = images / lengths[:, None, :], basis / own
    cosines, before = np.swapaxes(units, 1, 2) @ units, plain.T @ plain
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)) - np.arccos(np.clip(before, -1, 1)))
    return bool((np.abs(angles[:, [0, 0, 1], [1, 2, 2]]) <= ANGLES).all())


def _fitting(settings: list[Setting], cell: gemmi.UnitCell) -> list[Setting]:
    kept = [setting for setting in settings if fits(setting, cell)]
    if not kept:
        raise InputError(_misfit(settings[0].name, cell))
    return kept


def _misfit(name: str, cell: gemmi.UnitCell) -> str:
    return (
        f"the cell ({cell.a:.4g} {cell.b:.4g} {cell.c:.4g} A, {cell.alpha:.4g} {cell.beta:.4g} {cell.gamma:.4g} "
        f"degrees) does not have the symmetry of {name}"
    )


def _require_name(
    setting: Setting, named: list[gemmi.SpaceGroup], name: str | None, number: float | None, cell: gemmi.UnitCell
) -> None:
    """Refuse operators (or a Hall symbol) that belong to another group or setting than the name says.

    Raises:
        InputError: with both in its message.
    """
    if not named:
        return
    found = number_of(setting, cell)
    told = repr(name) if name is not None and groups_of_name(name) else f"number {number:g}"
    if found is not None and found not in {group.number for group in named}:
        raise InputError(f"the file's operators are those of space group {found}, its name says {told}")
    operations = [_to_gemmi(*pair) for pair in zip(setting.rotations, setting.translations, strict=True)]
    known = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(operations))
    if name is not None and known is not None and known.xhm() not in {group.xhm() for group in named}:
        raise InputError(f"the file's operators are those of {known.xhm()!r}, its name says {told}")


def number_of(setting: Setting, cell: gemmi.UnitCell) -> int | None:
    """Number of the space group that operators make; None where it is not found."""
    import spglib

    basis = np.array(cell.orth.mat.tolist()).T
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it returns None now, and will raise one day
        found = spglib.get_spacegroup_type_from_symmetry(
            setting.rotations.astype("intc"), setting.translations, lattice=basis, symprec=1e-3
        )
    return None if found is None else int(found.number)


def _to_gemmi(rotation: np.ndarray, translation: np.ndarray) -> gemmi.Op:
    op = gemmi.Op()
    op.rot = (rotation * gemmi.Op.DEN).tolist()
    op.tran = np.rint(translation * gemmi.Op.DEN).astype(int).tolist()
    return op


def orbit(setting: Setting, point: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """The images of a point, each once; a point within `MERGED` of a special position is put onto it.

    Args:
        setting: operators.
        point: (3,) fractional.
        basis: (3, 3) row vectors in Angstrom.

    Returns:
        Fractional coordinates in [0, 1), shape (multiplicity, 3).
    """
    for _ in range(3):  # a point that was moved may come near to a more special one
        images = setting.rotations @ point + setting.translations
        steps = images - point
        steps -= np.round(steps)
        near = np.linalg.norm(steps @ basis, axis=1) < MERGED
        moved = point + steps[near].mean(axis=0)
        if np.abs(moved - point).max() < 1e-9:
            break
        point = moved
    images = np.mod(setting.rotations @ point + setting.translations, 1.0)
    steps = images[:, None] - images[None]
    steps -= np.round(steps)
    close = np.linalg.norm(steps @ basis, axis=2) < MERGED
    result: np.ndarray = images[close.argmax(axis=1) == np.arange(len(images))]
    return result
