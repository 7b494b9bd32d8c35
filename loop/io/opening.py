"""Bytes and text of files as users have them: compressed or not, in any of the usual encodings."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path

from loop.errors import InputError

COMPRESSIONS = (".gz", ".bz2", ".xz")
_OPENERS = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress}
_LFS = b"version https://git-lfs.github.com/spec/"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read_bytes(path: Path) -> bytes:
    """Contents of a file, unpacked where it is gzip, bzip2 or xz by its content, whatever its name says.

    Raises:
        InputError: it cannot be read, is cut off, is not what its ending says, or is a Git LFS pointer.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if is_pointer(data):
        raise InputError(
            f"cannot read {path}: it is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"
        )
    opener = next((opener for magic, opener in _OPENERS.items() if data.startswith(magic)), None)
    if opener is None:
        if path.suffix.lower() in COMPRESSIONS and data:
            raise InputError(
                f"cannot read {path}: its name ends in {path.suffix}, and its content is not packed so; rename it, or "
                "fetch it again"
            )
        return data
    try:
        return opener(data)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise InputError(f"cannot read {path}: the packed file is cut off or damaged ({error})") from error


def is_pointer(data: bytes) -> bool:
    """Whether a file is what Git LFS leaves in place of the file."""
    return data.startswith(_LFS)


def decode(data: bytes) -> str:
    """Text of bytes: UTF-16 and UTF-8 with their marks, UTF-16 without (by its zero bytes), UTF-8, else Latin-1."""
    if data.startswith(_UTF16):
        return data.decode("utf-16", errors="replace")
    if len(data) > 1 and 0 in data[:2] and data[:2] != b"\0\0":
        return data.decode("utf-16-be" if data[0] == 0 else "utf-16-le", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_text(path: Path) -> str:
    """`clean` text of a file.

    Raises:
        InputError: as `read_bytes`.
    """
    return clean(decode(read_bytes(path)))


def clean(text: str) -> str:
    """Text with line feeds alone between lines, without the marks that DOS sets at the start and end of files."""
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").rstrip("\x1a")


def bare_name(path: Path) -> str:
    """Name without the ending of a compression: ``a.cif`` of ``a.cif.gz``."""
    return path.stem if path.suffix.lower() in COMPRESSIONS else path.name
