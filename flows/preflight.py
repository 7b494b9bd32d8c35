"""Everything that a run would refuse, found before it begins: `validate` makes every part that `run` would make."""

from __future__ import annotations

from collections.abc import Callable

from flows.build import Builder
from flows.checks import problems, refuse, told
from flows.config import MLIP, CampaignConfig


def check(config: CampaignConfig, *, elsewhere: bool = False) -> None:
    """Refuse what a run would refuse.

    Args:
        config: of the campaign.
        elsewhere: the campaign will run on another machine; what depends on this one is not looked at.

    Raises:
        ConfigError: all that is wrong, a line each, with its key.
    """
    refuse(problems(config, elsewhere=elsewhere))
    if not elsewhere:
        refuse(missing_parts(config))


def missing_parts(config: CampaignConfig) -> list[str]:
    """What cannot be loaded: potential with its reference phases, checkpoint, space, known crystals, DFT engine."""
    builder = Builder(config)
    where = f"oracle.{MLIP}" if config.oracle.kind == MLIP else "oracle.kind"
    parts: dict[str, Callable[[], object]] = {where: lambda: builder.labelling}
    parts |= {"generator": lambda: builder.proposer, "generator.proposals": lambda: _draws(builder, config)}
    parts |= {"reward.terms": lambda: builder.reward_for(0)}
    parts |= {"novelty.reference": lambda: builder.novelty, "oracle": lambda: builder.tiers}
    found: list[str] = []
    for key, part in parts.items():
        if not (found and key.startswith("generator")):  # which asks the potential, and would tell the same again
            found += told(key, part)
    return found


def _draws(builder: Builder, config: CampaignConfig) -> None:
    """Whether the generator can draw anything within the conditions; looks at each space group, draws no crystal."""
    import numpy as np

    from generator.policy import CrystalFormerGenerator
    from generator.sample import draw_space_groups

    generator = builder.proposer
    if not isinstance(generator, CrystalFormerGenerator):
        return
    for sampling in (config.generator.proposals.conditions, config.generator.finetune.conditions):
        draw_space_groups(generator.policy, 1, np.random.default_rng(0), sampling=sampling)
