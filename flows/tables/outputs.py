"""Refuse an output that cannot be written, or would cost the user something, before hours of work go into it."""

from __future__ import annotations

import os
from pathlib import Path

from loop.errors import InputError
from loop.io.files import check_replaceable, make_folder


def check_file(path: Path, *inputs: Path | None) -> Path:
    """A file that can be written. Nothing is left behind by looking.

    Raises:
        InputError: it cannot, or it is one of the inputs.
    """
    _check_place(path, inputs)
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected the name of a file to write")
    if path.exists() and not os.access(path, os.W_OK):
        raise InputError(f"{path} cannot be written: change its permissions, or choose another name")
    return path


def check_crystals(path: Path, *inputs: Path | None) -> Path:
    """A file of one of the formats for crystals, or a folder.

    Raises:
        InputError: the format is unknown, the place cannot be written, it is one of the inputs, or other files there
            would be lost.
    """
    from loop.io.crystal_writers import OUTPUTS, is_folder

    if path.resolve() == Path.cwd():
        raise InputError(f"{path} is the present folder: expected the name of a file ending in {OUTPUTS}")
    if not is_folder(path):
        return check_file(path, *inputs)
    _check_place(path, inputs)
    check_replaceable(path)
    return path


def check_folder(path: Path) -> Path:
    """A folder that can be written; it is made.

    Raises:
        InputError: it cannot, or it holds a campaign, whose record and report would be lost.
    """
    if any((path / name).exists() for name in ("config.yaml", "campaign.db")):
        raise InputError(f"{path} holds a campaign: choose another folder")
    return make_folder(path)


def _check_place(path: Path, inputs: tuple[Path | None, ...]) -> None:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:  # such as a name that is too long
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    _refuse_inputs(path, inputs)
    missing = [folder for folder in path.parents if not folder.exists()]
    make_folder(path.parent)
    for folder in missing:  # the innermost first
        folder.rmdir()


def _refuse_inputs(path: Path, inputs: tuple[Path | None, ...]) -> None:
    from loop.io.formats import kind_of

    for source in inputs:
        if source is None or not source.exists():
            continue
        if path.exists() and path.samefile(source):
            raise InputError(
                f"{path} is the input: what cannot be evaluated would be lost; choose another name for the output"
            )
        if path.resolve() in source.resolve().parents and path.is_dir():
            raise InputError(f"{path} holds the input {source.name}: choose another folder for the output")
        if source.is_dir() and path.resolve().parent == source.resolve() and kind_of(path) is not None:
            raise InputError(f"{path} would be read as an input of {source} next time: choose another folder")
