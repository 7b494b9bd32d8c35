"""A surrogate on disk: arrays in an npz, the rest in JSON; nothing that runs when read."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from loop.errors import CheckpointError
from loop.io.files import make_folder, write_bytes
from surrogates.features import FeatureExtractor
from surrogates.label_table import LabelTable
from surrogates.properties import GPConfig, Property
from surrogates.scaling import InputScaler

ARRAYS, ABOUT = "surrogate.npz", "surrogate.json"
_SCALER = ("mean", "weight", "size", "columns", "group")


@dataclass(frozen=True)
class State:
    """All that a surrogate's predictions depend on.

    Attributes:
        features: key of the feature extractor.
        config: settings.
        table: labels with their features.
        reference: features of unlabelled crystals on which calibration is meant to hold, shape (r, d).
        scaler: of the inputs, where it was given by unlabelled crystals.
        hyperparameters: arrays by name, by property.
        factors: conformal factor of each property.
    """

    features: str
    config: GPConfig
    table: LabelTable
    reference: np.ndarray
    scaler: InputScaler | None
    hyperparameters: dict[str, dict[str, np.ndarray]]
    factors: dict[str, float]


def save(state: State, folder: Path) -> None:
    """Write a surrogate; each file appears complete or not at all, the JSON last."""
    folder = Path(folder)
    make_folder(folder)
    table = state.table
    arrays = {"X": table.X, "Y": table.Y, "ids": np.array(table.ids, dtype=str), "blocks": table.formulas}
    arrays |= {"reference": state.reference}
    for name, values in state.hyperparameters.items():
        arrays |= {f"gp/{name}/{key}": value for key, value in values.items()}
    if state.scaler is not None:
        arrays |= {f"scaler/{key}": getattr(state.scaler, key) for key in _SCALER}
    about = {"features": state.features, "config": asdict(state.config), "factors": state.factors}
    write_bytes(folder / ARRAYS, _npz(arrays))
    write_bytes(folder / ABOUT, json.dumps(about, indent=1).encode())


def load(folder: Path, extractor: FeatureExtractor) -> State:
    """What `save` wrote.

    Raises:
        CheckpointError: missing, damaged, or made with other features than the extractor's.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        with (folder / ARRAYS).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        state = _state(about, arrays, tuple(extractor.groups))
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"expected a surrogate ({ABOUT}, {ARRAYS}) in {folder}, cannot read it: {error!r}; fit it again"
        ) from error
    if state.features != extractor.key:
        raise CheckpointError(
            f"the surrogate in {folder} has features {state.features}, expected {extractor.key}: another "
            "potential, hull or version; fit it again"
        )
    return state


def _state(about: dict[str, Any], arrays: dict[str, np.ndarray], groups: tuple[str, ...]) -> State:
    properties = tuple(Property(**prop) for prop in about["config"]["properties"])
    ids, n = arrays["ids"].tolist(), len(arrays["ids"])
    table = LabelTable(tuple(ids), arrays["X"], arrays["Y"], arrays["blocks"], np.zeros(n, dtype=bool))
    scaler = None
    if "scaler/mean" in arrays:
        scaler = InputScaler(**{key: arrays[f"scaler/{key}"] for key in _SCALER}, names=groups)
    hyperparameters = {
        prop.name: {
            name.removeprefix(f"gp/{prop.name}/"): array
            for name, array in arrays.items()
            if name.startswith(f"gp/{prop.name}/")
        }
        for prop in properties
    }
    config = GPConfig(**{**about["config"], "properties": properties})
    return State(about["features"], config, table, arrays["reference"], scaler, hyperparameters, about["factors"])


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()
