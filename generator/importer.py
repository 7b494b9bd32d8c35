"""Published CrystalFormer checkpoints (v0.4: pickles of JAX arrays), read without trusting them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from generator.array_pickle import PickledArray, read_pickle
from loop.errors import CheckpointError
from loop.io.opening import is_pointer

if TYPE_CHECKING:
    from generator.model import ModelConfig

_LETTERS, _SPACE_GROUPS = 28, 230


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A published checkpoint in the terms of `generator.model`."""

    sizes: dict[str, int]  # arguments of `ModelConfig.published`
    weights: dict[str, np.ndarray]  # by parameter name
    sha256: str  # of the pickle

    @property
    def config(self) -> ModelConfig:
        """The configuration of the network."""
        from generator.model import ModelConfig

        return ModelConfig.published(**self.sizes)


def import_checkpoint(
    path: str | Path, *, heads: int | None = None, coordinate_components: int = 16, slots: int = 21
) -> ImportedCheckpoint:
    """Read a checkpoint that CrystalFormer v0.4 wrote.

    Args:
        path: the pickle, e.g. ``epoch_005500.pkl``.
        heads: attention heads. Shapes do not tell them: by default 16 for an inner width of 1024, as published, else
            such that a head has size 32.
        coordinate_components: von Mises components, which shapes do not tell either.
        slots: sites + 1, likewise.

    Raises:
        CheckpointError: no such file, a pickle that asks for anything but arrays, or another network.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"expected a CrystalFormer checkpoint at {path}: {error.strerror or error}") from error
    if is_pointer(data):
        raise CheckpointError(f"{path} is a Git LFS pointer, not the file itself; fetch it with `git lfs pull`")
    parameters = _parameters(read_pickle(data, str(path)), path)
    sizes = _sizes(parameters, path, heads) | {"coordinate_components": coordinate_components, "slots": slots}
    return ImportedCheckpoint(sizes, _rename(parameters, sizes, path), hashlib.sha256(data).hexdigest())


def convert_checkpoint(path: str | Path, folder: str | Path, **sizes: Any) -> str:
    """Import a published checkpoint and write it in our format; returns the checksum of the weights.

    Raises:
        CheckpointError: as `import_checkpoint`.
    """
    import torch

    from generator.checkpoint import save_checkpoint
    from generator.model import CrystalFormer

    imported = import_checkpoint(path, **sizes)
    model = CrystalFormer(imported.config)
    state = {name: torch.from_numpy(array.copy()) for name, array in imported.weights.items()}
    try:
        missing, unexpected = model.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit the published network: {str(error)[:300]}") from error
    # The published model is given its space group; ours starts from the uniform distribution.
    if unexpected or set(missing) - {"space_group_logits"}:
        raise CheckpointError(f"{path} does not fit the published network: {missing=} {unexpected=}")
    provenance = {"source": Path(path).name, "source_sha256": imported.sha256, "sizes": imported.sizes}
    return save_checkpoint(model, Path(folder), provenance)


def _parameters(tree: Any, path: Path) -> dict[str, np.ndarray]:
    """Arrays by ``module/name``."""
    modules = tree.get("params") if isinstance(tree, dict) else None
    if not isinstance(modules, dict) or not all(isinstance(arrays, dict) for arrays in modules.values()):
        raise CheckpointError(f"{path}: expected a dict with 'params' of modules, as CrystalFormer v0.4 writes it")
    flat = {f"{module}/{name}": array for module, arrays in modules.items() for name, array in arrays.items()}
    for name, array in flat.items():
        if not isinstance(array, PickledArray) or array.value.dtype.kind != "f":
            raise CheckpointError(f"{path}: expected an array of floats as {name}")
        if not np.isfinite(array.value).all():
            raise CheckpointError(f"{path}: {name} holds numbers that are not finite")
    return {name: array.value for name, array in flat.items()}


def _sizes(parameters: dict[str, np.ndarray], path: Path, heads: int | None) -> dict[str, int]:
    """Arguments of `ModelConfig.published` from the shapes."""
    layers = sum(name.startswith("multi_head_attention") and name.endswith("/query/w") for name in parameters)
    needed = ("~/g_embeddings", "~/a_embeddings", "linear/w", "linear_2/w", "linear_4/w", f"linear_{7 + 2 * layers}/w")
    missing = [name for name in (*needed, "multi_head_attention/query/w") if name not in parameters]
    if missing:
        raise CheckpointError(f"{path}: not a CrystalFormer v0.4 network, {', '.join(missing)} missing")
    embedding, inner = parameters["~/g_embeddings"].shape[1], parameters["multi_head_attention/query/w"].shape[1]
    atom_types, outputs = len(parameters["~/a_embeddings"]), parameters[needed[-1]].shape[1]
    heads = heads or (16 if inner == 1024 else max(inner // 32, 1))
    if inner % heads or (outputs - atom_types) % 13:
        raise CheckpointError(f"{path}: inner width {inner} for {heads} heads, {outputs} outputs: no published network")
    return {
        "layers": layers,
        "heads": heads,
        "head_size": inner // heads,
        "width": parameters["linear_2/w"].shape[1],
        "embedding": embedding,
        "first_letter_hidden": parameters["linear/w"].shape[1],
        "fourier": (len(parameters["linear_4/w"]) - embedding) // 2,
        "lattice_components": (outputs - atom_types) // 13,
        "atom_types": atom_types,
    }


def published_names(layers: int) -> dict[str, tuple[str, ...]]:
    """Module of the published network by the name of ours, and what it holds: ``w``, ``b``; ``scale``, ``offset``."""
    linear, norm = ("w", "b"), ("scale", "offset")
    names: dict[str, tuple[str, ...]] = {"first_letter.0": ("linear", *linear), "first_letter.2": ("linear_1", *linear)}
    inputs = ("input_letter", "input_element", *(f"input_coordinate.{axis}" for axis in range(3)))
    names |= {ours: (f"linear_{2 + i}", *linear) for i, ours in enumerate(inputs)}
    for i in range(layers):
        attention = f"multi_head_attention_{i}" if i else "multi_head_attention"
        before = f"layer_norm_{2 * i}" if i else "layer_norm"
        names[f"blocks.{i}.norm_attention"] = (before, *norm)
        for ours, theirs in (("query", "query"), ("key", "key"), ("value", "value"), ("out", "linear")):
            names[f"blocks.{i}.attention.{ours}"] = (f"{attention}/{theirs}", *linear)
        names[f"blocks.{i}.norm_mlp"] = (f"layer_norm_{2 * i + 1}", *norm)
        names[f"blocks.{i}.up"] = (f"linear_{7 + 2 * i}", *linear)
        names[f"blocks.{i}.down"] = (f"linear_{8 + 2 * i}", *linear)
    names["norm"] = (f"layer_norm_{2 * layers}" if layers else "layer_norm", *norm)
    names["head"] = (f"linear_{7 + 2 * layers}", *linear)
    return names


def _rename(parameters: dict[str, np.ndarray], sizes: dict[str, int], path: Path) -> dict[str, np.ndarray]:
    """Arrays under our names; matrices (in, out) become (out, in)."""
    rest = dict(parameters)

    def take(name: str) -> np.ndarray:
        if name not in rest:
            raise CheckpointError(f"{path}: not a CrystalFormer v0.4 network, {name} is missing")
        return rest.pop(name)

    tables = (("space_groups", "g"), ("letters", "w"), ("elements", "a"))
    weights = {f"{ours}.weight": take(f"~/{theirs}_embeddings") for ours, theirs in tables}
    for ours, (module, weight, bias) in published_names(sizes["layers"]).items():
        weights[f"{ours}.weight"] = take(f"{module}/{weight}").T  # a no-op for the vectors of a norm
        weights[f"{ours}.bias"] = take(f"{module}/{bias}")
    if rest:
        raise CheckpointError(
            f"{path}: not a CrystalFormer v0.4 network, it also has {', '.join(sorted(rest)[:5])} "
            "(v0.3 has a table of positions, v0.5 and later a formula input)"
        )
    if len(weights["space_groups.weight"]) != _SPACE_GROUPS or len(weights["letters.weight"]) != _LETTERS:
        raise CheckpointError(f"{path}: expected tables of {_SPACE_GROUPS} space groups and {_LETTERS} letters")
    return {name: np.ascontiguousarray(array) for name, array in weights.items()}
