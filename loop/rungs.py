"""Rungs above the default oracle: the best of a round go on to a dearer one, or into a folder for people.

What a rung finds is kept in the ledger under the relaxed crystal that it was asked about, and shown under its name:
property ``band_gap`` of rung ``dft`` is ``dft_band_gap``. Surrogates, ranking and reports may use it like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from loop.contracts import Oracle, Recorder
from loop.errors import ConfigError
from loop.history import RUNG, Label
from loop.ranking import ranked
from loop.settings import CampaignSettings
from loop.stages import SentUp
from loop.store import OracleKey
from loop.values import Candidate, Evaluation, Origin

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from loop.campaign import Campaign


@runtime_checkable
class HandOff(Protocol):
    """Gives candidates to people or to a queue elsewhere; their results come by ``import-labels``."""

    @property
    def name(self) -> str:
        """``name@version``."""
        ...

    @property
    def settings_hash(self) -> str:
        """Hash of what is asked for."""
        ...

    def hand_out(self, candidates: Sequence[Candidate], folder: Path) -> None:
        """Write what is needed to measure candidates into a folder; one that is there already stays."""
        ...


@dataclass(frozen=True)
class Rung:
    """An oracle above the default one.

    Raises:
        ConfigError: the name or number makes no sense.
    """

    name: str  # prefix of its properties
    oracle: Oracle | HandOff
    best: int = 2  # candidates of a round
    only_stable: bool = False
    accepts: Callable[[Structure], bool] | None = None  # what it can measure at all; the others are passed over

    def __post_init__(self) -> None:
        """Check values."""
        if not self.name.isidentifier() or self.best < 1:
            raise ConfigError(f"a rung wants a name such as dft and best >= 1, got {self.name!r} and {self.best}.")

    @property
    def key(self) -> OracleKey:
        """What its labels are kept under."""
        return key_of(self.oracle)


def key_of(oracle: Oracle | HandOff) -> OracleKey:
    """What labels of an oracle are kept under."""
    return OracleKey(oracle.name, oracle.settings_hash)


def best_of(labels: Sequence[Label], settings: CampaignSettings, rung: Rung) -> list[Label]:
    """The labels of a round that a rung shall look at, best first."""
    usable = [label for label in labels if label.evaluation.ok]
    if rung.only_stable:
        usable = [label for label in usable if label.is_stable(settings)]
    if rung.accepts is not None:
        usable = [label for label in usable if rung.accepts(sent_up(label.candidate, label.first).structure)]
    return ranked(usable, settings)[: rung.best]


def sent_up(candidate: Candidate, evaluation: Evaluation) -> Candidate:
    """What a rung measures: the relaxed crystal where there is one, as a child of the candidate."""
    if evaluation.structure is None:
        return candidate
    return Candidate(evaluation.structure, Origin("relaxed", parent=candidate.id), candidate.round)


def climb(campaign: Campaign, round: int, rung: Rung) -> int:
    """Have a dearer oracle look at the best of a round; returns how many. Who was chosen once stays chosen."""
    history = campaign.history
    labels = history.labels(round)
    up = {label.candidate.id: sent_up(label.candidate, label.first) for label in labels}
    if rung.name not in history.rungs or round not in history.rungs[rung.name].rounds:
        best = [label.candidate.id for label in best_of(labels, campaign.settings, rung)]
        campaign.store.add_candidates(history.name, [up[key] for key in best])
        chosen = {key: up[key].id for key in best}
        event = SentUp(rung.name, rung.key.oracle, rung.key.settings, chosen, chosen=True)
        campaign.record(round, "label", RUNG, event.to_dict())
    candidates = [up[key] for key in history.rungs[rung.name].labels if key in up]
    if isinstance(rung.oracle, HandOff):
        rung.oracle.hand_out(candidates, campaign.directory / rung.name / f"round_{round:03d}")
    elif isinstance(rung.oracle, Recorder):  # it keeps each as it comes
        campaign.label(candidates, rung.oracle)
    else:
        for done, candidate in enumerate(candidates):  # one by one: each may take hours, and is kept at once
            campaign.progress(rung.name, done, len(candidates), {})
            campaign.label([candidate], rung.oracle)
    history.refresh(campaign.store)
    return len(candidates)
