"""The generator as the loop sees it: it proposes candidates, and learns from rewards."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from generator.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from generator.constraints.conditions import Sampling
from generator.constraints.guard import Guard
from generator.draw import Drawn, draw
from generator.rl.config import FinetuneConfig
from generator.rl.loop import Finetuner
from generator.rl.rollout import to_candidates
from loop.contracts import Progress, Reward
from loop.errors import CheckpointError
from loop.values import Candidate


@dataclass(frozen=True)
class PolicyConfig:
    """How candidates are proposed. `space_groups` and `max_atoms` are short for those of `sampling`."""

    batch_size: int = 200
    """Crystals sampled at once; memory, not results, depends on it."""
    space_groups: tuple[int | str, ...] = ()
    """Allowed space groups, by number or symbol; empty: all that the network knows."""
    max_atoms: int | None = None
    """Largest primitive cell, atoms."""
    sampling: Sampling = field(default_factory=Sampling)
    """Temperature, top-p and conditions of the proposals."""
    guard: Guard | None = None
    """Redraw crystals whose atoms are too close; never applied during fine-tuning."""

    @property
    def conditions(self) -> Sampling:
        """`sampling` with the short cuts filled in."""
        sampling = self.sampling.within(self.space_groups)
        return sampling if self.max_atoms is None else replace(sampling, max_atoms=self.max_atoms)


class CrystalFormerGenerator:
    """Implements `loop.contracts.Generator`. The base stays frozen as the reference policy of the KL term."""

    def __init__(
        self,
        base: Checkpoint,
        config: PolicyConfig | None = None,
        finetune: FinetuneConfig | None = None,
    ) -> None:
        self.base, self.config, self.finetune = base, config or PolicyConfig(), finetune or FinetuneConfig()
        self.policy = copy.deepcopy(base.model)
        self.version = base.checksum[:8]
        self.last_draw: Drawn | None = None

    def propose(self, n: int, *, seed: int, round: int) -> list[Candidate]:
        """Draw n crystals; those that are no crystals are left out. `last_draw` tells what the guard did.

        Raises:
            ConditionError: conditions that cannot be met in an allowed space group, or in any.
        """
        config = self.config
        rng = np.random.default_rng(seed)
        drawn = draw(self.policy, n, rng, config.conditions, guard=config.guard, batch_size=config.batch_size)
        self.last_draw = drawn
        source = "base" if self.version == self.base.checksum[:8] else "policy"
        candidates = to_candidates(drawn.sample, policy=self.version, round=round, source=source)
        return [candidate for candidate in candidates if candidate is not None]

    def learn(
        self,
        reward: Reward,
        *,
        seed: int,
        round: int,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> list[dict[str, Any]]:
        """Fine-tune the policy; with a checkpoint folder, an interrupted call resumes to the same end."""
        name = f"{self.base.checksum[:8]}+r{round}"
        tuner = Finetuner(self.policy, self.base.model, self.finetune, seed=seed, reference_checksum=self.base.checksum)
        rows = tuner.run(reward, name=name, round=round, progress=progress, folder=checkpoint)
        self.version = name
        return rows

    def save(self, path: Path) -> None:
        """Write the policy as a checkpoint that `discovery-loop generate --checkpoint` takes."""
        save_checkpoint(self.policy, path, {"base": self.base.checksum, "version": self.version})

    def load(self, path: Path) -> None:
        """Take over a saved policy.

        Raises:
            CheckpointError: damaged, or tuned from another base.
        """
        saved = load_checkpoint(path, device=str(self.policy.device), dtype=self.policy.dtype)
        if saved.provenance.get("base") != self.base.checksum:
            raise CheckpointError(
                f"{path} was tuned from the base {str(saved.provenance.get('base'))[:12]}…, "
                f"this campaign's base is {self.base.checksum[:12]}…"
            )
        self.policy.load_state_dict(saved.model.state_dict())
        self.version = saved.provenance["version"]
