"""The second opinion: which potential gives it, and what it is asked."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from loop.errors import ConfigError
from loop.values import EnergyType
from oracles.mlip import MlipConfig
from oracles.potentials.loading import PotentialConfig
from oracles.relax import RelaxConfig


@dataclass(frozen=True)
class OpinionConfig(PotentialConfig):
    """Another potential's judgement of what is stable, after its own relaxation and on its own hull."""

    potential: str = field()
    """Potential that neither rewards nor labels: chgnet, sevennet, sevennet:mf-0, mace:MODEL, or an ASE calculator as
    module:Class.
    """
    references: str | None = None
    """Table of reference phases, or demand: phases are computed as they are needed; none: the shipped table, else
    demand.
    """
    phases: str | None = None
    """Ledger of the phases computed on demand, a file or URL; none: one for all work of this user."""
    relax: RelaxConfig = field(default_factory=RelaxConfig)
    """Relaxation, of candidates and of reference phases alike."""
    best: int = 100
    """Stable candidates per round, best first."""

    def oracle_config(self) -> MlipConfig:
        """What the oracle is told: energies and distances alone."""
        names = {item.name for item in fields(self)} - {"best"}
        return MlipConfig(**{name: getattr(self, name) for name in names}, bulk=None)


def require_other(role: str, judge: EnergyType, opinion: EnergyType) -> None:
    """Refuse a potential that has judged already: its errors are what a second opinion is to find.

    Args:
        role: what the first one does, as "labels".
        judge: type of its energies.
        opinion: of the second one's.

    Raises:
        ConfigError: both have the same weights.
    """
    by_weights = bool(judge.checksum and opinion.checksum)
    same = judge.checksum == opinion.checksum if by_weights else judge.method == opinion.method
    if same:
        raise ConfigError(
            f"second_opinion: {opinion.method} {role} already, so it would agree with itself: name a potential "
            "that neither rewards nor labels, such as sevennet:mf-0 where CHGNet rewards and SevenNet-l3i5 labels"
        )
