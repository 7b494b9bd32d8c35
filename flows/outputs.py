"""Refuse an output that cannot be written before hours of work go into it."""

from __future__ import annotations

import os
from pathlib import Path

from loop.errors import InputError
from loop.files import check_replaceable, make_folder

CRYSTAL_FORMATS = (".csv", ".csv.gz", ".extxyz", ".xyz")


def check_file(path: Path) -> Path:
    """A file that can be written; its folder is made.

    Raises:
        InputError: it cannot.
    """
    make_folder(path.parent)
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected the name of a file to write")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{path} cannot be written: change its permissions, or choose another name")
    return path


def check_crystals(path: Path) -> Path:
    """A file of one of the crystal formats, or a folder.

    Raises:
        InputError: the format is unknown, the place cannot be written, or other files there would be lost.
    """
    if path.resolve() == Path.cwd():
        raise InputError(
            f"{path} is the present folder: expected the name of a file ending in {', '.join(CRYSTAL_FORMATS)}, "
            "or of a new folder of CIFs"
        )
    if not path.suffix:
        check_replaceable(path, (".cif",))
        return make_folder(path)
    if not path.name.endswith(CRYSTAL_FORMATS):
        raise InputError(f"expected a name ending in {', '.join(CRYSTAL_FORMATS)}, or a folder, got {path}")
    return check_file(path)


def check_folder(path: Path) -> Path:
    """A folder that can be written.

    Raises:
        InputError: it cannot.
    """
    return make_folder(path)
