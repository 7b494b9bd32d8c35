"""Generators by themselves: a checkpoint on a device, and ion substitution on the known crystals that ship."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loop.errors import ConfigError

if TYPE_CHECKING:
    from generator.checkpoint import Checkpoint
    from generator.constraints.conditions import Sampling
    from generator.substitution import SubstitutionConfig, SubstitutionGenerator


def load_model(checkpoint: Path | None, device: str, dtype: str) -> Checkpoint:
    """A checkpoint on a device.

    Raises:
        CheckpointError: there is none.
        ConfigError: there is no such device.
    """
    import torch

    from generator.checkpoint import load_checkpoint

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device}: no CUDA device is at hand; leave --device out for the CPU")
    return load_checkpoint(checkpoint, device=device, dtype=getattr(torch, dtype))


def substitution(sampling: Sampling, config: SubstitutionConfig | None = None) -> SubstitutionGenerator:
    """Ion substitution on the known crystals that ship.

    Raises:
        ConfigError: no known crystal can become what is asked for.
    """
    from generator.substitution import SubstitutionConfig, SubstitutionGenerator
    from oracles.references.crystals import load_reference_crystals

    config, crystals = config or SubstitutionConfig(), load_reference_crystals()
    rows = [crystals.known(id) for id in crystals.lowest() if crystals.n_atoms(id) <= config.max_atoms]
    parents = [known for known in rows if known.e_above_hull <= config.max_e_above_hull]
    ids, formulas = [known.id for known in parents], [known.formula for known in parents]
    return SubstitutionGenerator(ids, formulas, crystals, sampling, config)
