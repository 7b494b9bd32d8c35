"""The extended XYZ format, frame by frame, so that a broken frame does not hide the good ones."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from loop.errors import InputError

if TYPE_CHECKING:
    from pymatgen.core import Structure


def split_frames(text: str) -> Iterator[str]:
    """The frames of an (ext)xyz file: a line with the number of atoms, a comment, the atoms."""
    lines = text.splitlines()
    start = 0
    while start < len(lines):
        count = lines[start].strip()
        if not count:
            start += 1
            continue
        # without a number of atoms nobody can tell where the next frame begins
        stop = start + 2 + int(count) if count.isascii() and count.isdigit() else len(lines)
        yield "\n".join(lines[start:stop]) + "\n"
        start = stop


def read_extxyz(frame: str) -> tuple[Structure, dict[str, Any]]:
    """Structure and further values (numbers, texts) of one frame.

    Raises:
        InputError: the frame is broken, not periodic in three directions, or holds unknown elements.
    """
    from ase.io import read
    from pymatgen.core import Element, Lattice, Structure

    try:
        atoms: Any = read(io.StringIO(frame), format="extxyz", index=0)
    except Exception as error:  # ASE raises whatever its parser meets
        raise InputError(f"unreadable frame: {type(error).__name__}: {error}") from error
    if not atoms.pbc.all() or atoms.cell.rank < 3:
        raise InputError("expected a crystal, found a frame that is not periodic in three directions")
    numbers = atoms.numbers.tolist()
    if not numbers or min(numbers) < 1:
        raise InputError("expected atoms of known elements")
    coordinates = atoms.get_scaled_positions(wrap=False)
    structure = Structure(Lattice(atoms.cell.array), [Element.from_Z(z) for z in numbers], coordinates)
    values = atoms.info | (atoms.calc.results if atoms.calc else {})  # ASE takes `energy` for a calculator's result
    return structure, {key: value for key, value in values.items() if isinstance(value, (str, int, float, bool))}


def to_extxyz(structure: Structure, values: Mapping[Any, Any]) -> str:
    """One frame; values that are None or NaN are left out."""
    from ase import Atoms
    from ase.io import write

    atoms = Atoms(structure.atomic_numbers, structure.cart_coords, cell=structure.lattice.matrix, pbc=True)
    atoms.info = {str(key): value for key, value in values.items() if value is not None and value == value}
    text = io.StringIO()
    write(text, atoms, format="extxyz")
    return text.getvalue()
