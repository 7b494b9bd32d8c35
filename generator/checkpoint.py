"""Checkpoints: a folder with safetensors and JSON, never a pickle."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from generator.model import CrystalFormer, ModelConfig
from loop.errors import CheckpointError
from loop.io.files import make_folder, sha256, write_text

FORMAT = "crystalformer-1"
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


@dataclass(frozen=True)
class Checkpoint:
    """A model with what is known of it."""

    model: CrystalFormer
    checksum: str  # sha256 of the weights file
    provenance: dict[str, Any]


def default_checkpoint() -> Path:
    """The checkpoint that the package ships."""
    return Path(__file__).parent / "checkpoints" / "mp-small"


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint that a folder stands for: itself, the one that `finetune` left in it, or a campaign's last one."""
    rounds = sorted((folder / "generator").glob("round_*"))
    found = [path for path in (folder, folder / "checkpoint", *reversed(rounds)) if (path / DESCRIPTION).is_file()]
    return found[0] if found else folder


def save_checkpoint(model: CrystalFormer, folder: Path, provenance: dict[str, Any] | None = None) -> str:
    """Write weights and description; returns the checksum. Readers never see half a file."""
    make_folder(folder)
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    part = folder / (WEIGHTS + ".part")
    save_file(weights, part)
    part.replace(folder / WEIGHTS)
    digest = sha256(folder / WEIGHTS)
    config = {k: ("inf" if v == float("inf") else v) for k, v in asdict(model.config).items()}
    text = {"format": FORMAT, "model": config, "sha256": digest, "provenance": provenance or {}}
    write_text(folder / DESCRIPTION, json.dumps(text, indent=1) + "\n")
    return digest


def load_checkpoint(
    folder: str | Path | None = None, *, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Checkpoint:
    """Read a checkpoint, or that of a fine-tuning's or a campaign's folder; None is the one that the package ships.

    Raises:
        CheckpointError: nothing there, damaged, not one of ours, or not of finite weights.
    """
    folder = default_checkpoint() if folder is None else find_checkpoint(Path(folder))
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(
                f"no checkpoint in {folder}: expected {DESCRIPTION} and {WEIGHTS}, {name} is missing. "
                "Make one with `discovery-loop pretrain` or `discovery-loop import-checkpoint`, "
                "or name none for the one that is shipped."
            )
    try:
        text = json.loads((folder / DESCRIPTION).read_text())
        if text.get("format") != FORMAT:
            raise CheckpointError(f"{folder / DESCRIPTION}: expected format {FORMAT!r}, got {text.get('format')!r}")
        sizes: dict[str, Any] = {k: (float("inf") if v == "inf" else v) for k, v in text["model"].items()}
        config = ModelConfig(**sizes)
        weights = load_file(folder / WEIGHTS, device=device)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged or not a checkpoint of this program: {error}") from error
    digest = sha256(folder / WEIGHTS)
    if text.get("sha256") != digest:
        raise CheckpointError(
            f"{folder / WEIGHTS} has sha256 {digest[:12]}…, its description says {str(text.get('sha256'))[:12]}…: "
            "the files do not belong together; copy the checkpoint again"
        )
    model = CrystalFormer(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / WEIGHTS} does not fit its description: {str(error)[:300]}") from error
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise CheckpointError(
            f"{folder / WEIGHTS} holds weights that are no finite numbers ({broken[0]}): its training went astray; "
            "take an earlier checkpoint, or train again at a lower learning rate"
        )
    return Checkpoint(model.to(device=device, dtype=dtype).eval(), digest, text.get("provenance", {}))
