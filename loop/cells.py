"""Cells of tables: texts as they stand in a file, and the numbers that they are where it makes no difference."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ID_COLUMNS = ("material_id", "id", "candidate_id")

_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d*)")
_DECIMAL = re.compile(r"[+-]?(?:0|[1-9]\d*)?(?:\.\d*)?(?:[eE][+-]?\d+)?")


def number_of(text: str) -> Any:
    """The number that a text is, else the text: what overflows (3e400) or starts with zeros (007) is no number."""
    if _WHOLE.fullmatch(text):
        return int(text)
    if not text or not _DECIMAL.fullmatch(text) or not any(character.isdigit() for character in text):
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
