"""What a campaign has seen: its labelled crystals, as proposed and as relaxed, in the order of the first time."""

from __future__ import annotations

from loop.history import History
from loop.novelty import NoveltyIndex
from loop.prototypes import parent_lattice, prototype
from loop.stages import Labelled, Novelty, Prototype


def fill(index: NoveltyIndex, history: History) -> None:
    """Put the crystals of all rounds that are labelled into an index that holds none of them yet."""
    for round in history.records(Labelled):
        remember(index, history, round)


def remember(index: NoveltyIndex, history: History, round: int) -> dict[str, Novelty]:
    """Put the crystals of one round into the index; returns the verdicts on the relaxed ones, by candidate id.

    They are judged one after the other, for a relaxation can end in a known or an earlier crystal; and before the
    unrelaxed ones are added, for a crystal is no copy of its own unrelaxed self. What an interrupted call of this
    process had put in is taken out first.
    """
    verdicts = {}
    ids = [pick.candidate_id for pick in history.picks(round)]
    index.forget(set(ids))
    for key in ids:
        evaluation = history.evaluations[key]
        relaxed = evaluation.structure
        if relaxed is not None:
            verdict = index.judge([relaxed], [key])[0]
            verdicts[key] = Novelty(verdict.kind, verdict.match or "")
            if evaluation.ok:  # else a later crystal that ends there with a usable label would count as a copy
                index.add([relaxed], [key])
    index.add([history.candidates[key].structure for key in ids], ids)
    return verdicts


def prototypes(history: History, round: int) -> dict[str, Prototype]:
    """Prototype and parent lattice of each usable crystal of a round, as relaxed, by candidate id."""
    found = {}
    for pick in history.picks(round):
        evaluation = history.evaluations[pick.candidate_id]
        if evaluation.ok:
            structure = evaluation.structure or history.candidates[pick.candidate_id].structure
            found[pick.candidate_id] = Prototype(prototype(structure), parent_lattice(structure))
    return found
