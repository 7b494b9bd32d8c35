"""What a full disk looks like in the exceptions of the libraries that write, and one message for all of them."""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loop.errors import DiscoveryLoopError, InputError

_ERRORS = (errno.ENOSPC, errno.EDQUOT)
_WORDS = re.compile("no space left|disk is full|quota exceeded|os error (28|122)\\b", re.IGNORECASE)
_SPACE = 2**20  # bytes: with less than this left, a failure to write is one of space (torch does not say why it fails)
ADVICE = (
    "No space left, the disk is full. What was recorded is kept: free some space, then repeat the command or resume"
)


def is_full(error: BaseException, folder: Path | None = None) -> bool:
    """Whether an exception tells of a full disk or quota, by its number or its words.

    Args:
        error: of any library.
        folder: where it was written, if known: then an error without words counts where nothing is left.
    """
    if isinstance(error, OSError):
        return error.errno in _ERRORS
    said = bool(_WORDS.search(str(error)))
    return said or (folder is not None and folder.is_dir() and shutil.disk_usage(folder).free < _SPACE)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """While a file or folder is written: what the system refuses becomes one message that names it.

    Raises:
        InputError: it cannot be written, or the disk is full.
    """
    try:
        yield
    except DiscoveryLoopError:
        raise
    except Exception as error:
        if is_full(error, path.parent):
            raise InputError(f"{path} cannot be written: {ADVICE}.") from error
        if isinstance(error, OSError):
            raise InputError(f"{path} cannot be written: {error.strerror or error}.") from error
        raise
