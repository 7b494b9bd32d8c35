"""Records of runs and benchmarks: `record.json` beside their results."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flows.provenance import provenance


def write_record(folder: Path, record: Mapping[str, Any]) -> dict[str, Any]:
    """Write ``record.json`` with what it was made with; returns what a reader of the file gets.

    NaN and infinity become null, numbers of numpy plain numbers, paths and dates text.
    """
    from loop.io.files import write_text  # brings the ledger: too slow for those who need `finite` only

    whole = {**record} if "made_with" in record else {**record, "made_with": provenance()}
    text = json.dumps(finite(whole), indent=1, default=_plain, allow_nan=False) + "\n"
    write_text(folder / "record.json", text)
    return json.loads(text)


def finite(value: Any) -> Any:
    """The value with NaN and infinity as None, which JSON has not."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float):  # float64 of numpy is one, too
        return float(value) if math.isfinite(value) else None
    return value


def _plain(value: Any) -> Any:
    """What JSON has for other things: scalars and arrays of numpy as numbers and lists, the rest as text."""
    return finite(value.tolist()) if hasattr(value, "tolist") else str(value)
