"""Cells of tables: texts as they stand in a file, and the numbers that they are where it makes no difference."""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loop.errors import InputError
from loop.io.opening import decode, read_bytes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ID_COLUMNS = ("material_id", "id", "candidate_id")

_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d*)")
_DECIMAL = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")


def number_of(text: str) -> Any:
    """The number that a text is, else the text: what overflows (3e400) or starts with zeros (007) is no number."""
    if _WHOLE.fullmatch(text):
        return int(text)
    if not _DECIMAL.fullmatch(text):
        return text
    value = float(text)
    return value if math.isfinite(value) else text


def typed(text: Any) -> Any:
    """A number or truth value where writing it gives the very text again, None for no text, else the text itself."""
    if not isinstance(text, str):
        return text
    if not text:
        return None
    if len(text) > 40:
        return text
    value = number_of(text) if text not in ("True", "False") else text == "True"
    return value if repr(value) == text else text


def numbers(column: pd.Series) -> np.ndarray:
    """Values of a column as floats, shape (rows,); NaN where a cell is empty or no number."""
    import pandas as pd

    return pd.to_numeric(column, errors="coerce").to_numpy(float)


def read_cells(path: Path, *, only_commas: bool = False) -> pd.DataFrame:
    """A CSV, packed or not, in any of the usual encodings, with every cell as the text that it is ("": nothing).

    Args:
        path: of the file.
        only_commas: where numbers are to be read: with semicolons they mostly have decimal commas.

    Raises:
        InputError: it cannot be read, or is no CSV.
    """
    import pandas as pd

    text = decode(read_bytes(path))
    separator, text = (",", text) if only_commas else _separator(text)
    try:
        with warnings.catch_warnings():  # pandas would shift the columns, or cut the rows and warn
            warnings.simplefilter("error", pd.errors.ParserWarning)
            frame = pd.read_csv(
                io.StringIO(text), dtype=str, keep_default_na=False, na_filter=False, sep=separator, index_col=False
            )
    except pd.errors.ParserWarning as error:
        raise InputError(
            f"expected no more cells in a row of {path} than in its header: are there commas in numbers, or at the "
            "ends of rows?"
        ) from error
    except ValueError as error:
        raise InputError(f"expected a CSV file at {path}, cannot read it: {error}") from error
    _check_header(text, separator, path)
    return frame


def _check_header(text: str, separator: str, path: Path) -> None:
    """Refuse names that stand twice: pandas would take the first for what is meant, and call the second another."""
    header: list[str] = []
    with suppress(csv.Error):  # longer than any header is
        header = next(csv.reader(io.StringIO(text), delimiter=separator), [])
    twice = sorted(name for name, count in Counter(header).items() if count > 1 and name.strip())
    if twice:
        raise InputError(f"expected each column once in {path}, found {', '.join(twice)} more than once")


def _separator(text: str) -> tuple[str, str]:
    """What separates the cells, and the text: a comma, or what the header has that has no comma.

    Excel writes semicolons in half of the world, and may name them in a line of its own (``sep=;``).
    """
    header, _, rest = text.partition("\n")
    stated = header.strip().lower()
    if stated.startswith("sep=") and len(stated) == len("sep=;"):
        return stated[-1], rest
    return next((mark for mark in ";\t" if mark in header and "," not in header), ","), text
