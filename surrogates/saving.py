"""A surrogate on disk: arrays in an npz, the rest in JSON; nothing that runs when read."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from loop.errors import CheckpointError
from surrogates.properties import GPConfig, Property
from surrogates.scaling import InputScaler

if TYPE_CHECKING:
    from surrogates.gp import GPSurrogate

ARRAYS, ABOUT = "surrogate.npz", "surrogate.json"
_SCALER = ("mean", "weight", "size", "columns", "group")


def save(surrogate: GPSurrogate, folder: Path) -> None:
    """Write a surrogate; each file appears complete or not at all, the JSON last."""
    from loop.io.files import make_folder, write_bytes

    folder = Path(folder)
    make_folder(folder)
    arrays = {"X": surrogate._X, "Y": surrogate._Y, "ids": np.array(surrogate._ids, dtype=str)}
    arrays |= {"reference": surrogate._reference}
    arrays |= {"blocks": surrogate._blocks}
    for name, state in surrogate._hyperparameters.items():
        arrays |= {f"gp/{name}/{key}": value for key, value in state.items()}
    if surrogate._scaler is not None:
        arrays |= {f"scaler/{key}": getattr(surrogate._scaler, key) for key in _SCALER}
    about = {
        "features": surrogate.extractor.key,
        "config": asdict(surrogate.config),
        "factors": {name: fitted.factor for name, fitted in surrogate._fitted.items()},
    }
    write_bytes(folder / ARRAYS, _npz(arrays))
    write_bytes(folder / ABOUT, json.dumps(about, indent=1).encode())


def load(surrogate: GPSurrogate, folder: Path) -> None:
    """Put a surrogate into the state that was saved (see `GPSurrogate.load`)."""
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        with np.load(folder / ARRAYS, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        config = GPConfig(
            **{**about["config"], "properties": tuple(Property(**prop) for prop in about["config"]["properties"])}
        )
        features, factors = about["features"], about["factors"]
        X, Y, ids, blocks = (arrays[name] for name in ("X", "Y", "ids", "blocks"))
        reference = arrays["reference"]
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"expected a surrogate ({ABOUT}, {ARRAYS}) in {folder}, cannot read it: {error!r}; fit it again"
        ) from error
    if features != surrogate.extractor.key:
        raise CheckpointError(
            f"the surrogate in {folder} has features {features}, expected {surrogate.extractor.key}: another "
            "potential, hull or version; fit it again"
        )
    surrogate.config = config
    surrogate._X, surrogate._Y, surrogate._ids, surrogate._blocks = X, Y, ids.tolist(), blocks
    surrogate._reference = reference
    surrogate._scaler = None
    if "scaler/mean" in arrays:
        parts = {key: arrays[f"scaler/{key}"] for key in _SCALER}
        surrogate._scaler = InputScaler(**parts, names=tuple(surrogate.extractor.groups))
    for prop in config.properties:
        prefix = f"gp/{prop.name}/"
        surrogate._hyperparameters[prop.name] = {
            name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)
        }
    surrogate._condition(refit=False)
    for name, factor in factors.items():
        surrogate._fitted[name].factor = factor


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    from io import BytesIO

    buffer = BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
