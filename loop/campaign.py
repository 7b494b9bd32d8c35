"""The campaign: fine-tune, propose, select, label, retrain, report, round after round, until the budget ends.

`Campaign` is the one mutable object, and all of its state is a fold over its ledger: a stage runs once, is recorded,
and is skipped from then on. Kill the process anywhere and make the same campaign again: it resumes where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from loop import archive
from loop.contracts import (
    Acquisition,
    Generator,
    Oracle,
    Progress,
    Recorder,
    Rehull,
    Reward,
    Screen,
    Surrogate,
    Validity,
)
from loop.errors import DiscoveryLoopError, StoreError
from loop.history import CAMPAIGN, CREATED, DONE, SETTINGS, STOPPED, History
from loop.hull import HullEntry
from loop.io.files import FolderLock, read_candidates, write_candidates, write_folder
from loop.labelling import Labelling
from loop.novelty import NoveltyIndex
from loop.properties import heading
from loop.report import export
from loop.report.columns import unit_of
from loop.report.phases import systems_of
from loop.report.summary import round_report
from loop.running import InTurn, Runner
from loop.selection import choose, columns_of, row_of
from loop.settings import ENGINE, STAGES, CampaignSettings
from loop.stages import (
    Finetuned,
    Funnel,
    HullPoint,
    KnownPhase,
    Labelled,
    Novelty,
    Pick,
    Proposed,
    Reported,
    Retrained,
    Selected,
    StageRecord,
    Step,
    timed,
)
from loop.stopping import stop_reason
from loop.store import Store
from loop.tiers import Tier, key_of, run_tier
from loop.values import Candidate, Evaluation, RoundReport


@dataclass(frozen=True)
class Components:
    """What a campaign is put together from; `flows.build` chooses the concrete classes."""

    generator: Generator
    surrogate: Surrogate
    acquisition: Acquisition
    oracle: Oracle
    reward_for: Callable[[int], Reward]  # of a round: it may use that round's surrogate and archive
    novelty: NoveltyIndex
    validity: Validity
    screen: Screen | None = None
    rehull: Rehull | None = None
    phases: Callable[[str], list[HullEntry]] | None = None  # known phases of a chemical system such as Li-O, for people
    tiers: tuple[Tier, ...] = ()  # costlier oracles for the best of each round


class Campaign:
    """One campaign in one folder, driven by `steps`.

    ::

        with Campaign(settings, components, store, directory) as campaign:
            for step in campaign.steps():
                print(step.round, step.stage, step.record)

    A context manager: the folder's lock is released on exit.

    Args:
        settings: of the loop; on resume they must agree with the recorded ones, but for when to stop.
        components: generator, surrogate, acquisition, oracle and what judges candidates before labels.
        store: the ledger; may be shared with other campaigns.
        directory: policies, surrogates, pools and results; one campaign per folder.
        progress: called often with (stage, done, total, metrics).
        runner: where stages and labels are computed; default: in this thread, one after the other.
        about: provenance that is kept with the campaign (versions, hashes, configuration).

    Raises:
        ConfigError: the recorded campaign has other settings.
        StoreError: another process writes in the folder, or the campaign was labelled by another oracle.
    """

    def __init__(
        self,
        settings: CampaignSettings,
        components: Components,
        store: Store,
        directory: Path,
        *,
        progress: Progress | None = None,
        runner: Runner | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.components = components
        self.store = store
        self.directory = Path(directory)
        self.progress: Progress = progress or (lambda *_: None)
        self.runner: Runner = runner or InTurn()
        self._work: dict[str, Callable[[int], StageRecord]] = {
            "finetune": self._finetune,
            "propose": self._propose,
            "select": self._select,
            "label": self._label,
            "retrain": self._retrain,
            "report": self._report,
        }
        self._lock = FolderLock(self.directory)
        try:
            self.history = self._open(settings, about or {})
        except DiscoveryLoopError:
            self._lock.release()
            raise
        self._policy: int | None = None  # round whose policy the generator holds
        self._fit: int | None = None  # round whose fit the surrogate holds
        self._verdicts: dict[int, dict[str, Novelty]] = {}  # on the relaxed crystals of the rounds labelled here
        archive.fill(components.novelty, self.history)

    @property
    def settings(self) -> CampaignSettings:
        """Settings in force."""
        return self.history.settings

    def close(self) -> None:
        """Release the folder's lock."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def steps(self) -> Iterator[Step]:
        """Run what is left of all rounds, one stage at a time; each is on record when it is yielded.

        A caller that stops iterating stops the campaign; `steps` of the same campaign continues later. After the last
        round, or where a stop rule holds, the reason is recorded.
        """
        while not self.finished:
            yield self.runner.stage(self, *self.history.next_stage)
        self.record_stop()
        # once more: a process that was killed between a report's record and its list has left an earlier round's list
        export.write_ranked(self.history, self.directory)

    def run(self) -> list[RoundReport]:
        """Run what is left of all rounds; returns the reports of all rounds."""
        for _ in self.steps():
            pass
        return self.history.reports()

    @property
    def finished(self) -> bool:
        """Whether the last round is done or a stop rule holds (rules are looked at between rounds). Reads only."""
        round, stage = self.history.next_stage
        return round > self.settings.rounds or (stage == STAGES[0] and bool(stop_reason(self.history)))

    def record_stop(self) -> str:
        """Write into the ledger why no further round is begun, once; returns the reason, empty where there is none.

        `steps` does it; for drivers that run single stages.
        """
        round, stage = self.history.next_stage
        reason = stop_reason(self.history) if stage == STAGES[0] else ""
        if reason and reason != self.history.stopped:
            self.record(round, CAMPAIGN, STOPPED, {"reason": reason})
        return reason

    def run_stage(self, round: int, stage: str) -> Step:
        """Run one stage and record it; one that is done is not run again.

        Raises:
            ValueError: there is no such stage, or an earlier one is not done.
        """
        if stage not in STAGES:
            raise ValueError(f"no stage {stage!r}; there are {STAGES}")
        if (round, stage) in self.history.done:
            return self.history.done[round, stage]
        if (round, stage) != self.history.next_stage:
            raise ValueError(f"stage {stage!r} of round {round} is not next: {self.history.next_stage} is")
        self.progress(stage, 0, 1, {})
        start = time.monotonic()
        record = self._work[stage](round)
        seconds = time.monotonic() - start
        self.record(round, stage, DONE, Step(round, stage, timed(record, seconds), seconds).to_dict())
        if stage == Reported.stage:
            export.write_ranked(self.history, self.directory)
        self.progress(stage, 1, 1, {})
        return self.history.done[round, stage]

    def pending(self, round: int) -> list[Candidate]:
        """Selected candidates of a round that have no label yet, in order of choice."""
        self.history.refresh(self.store)
        ids = [pick.candidate_id for pick in self.history.picks(round)]
        return [self.history.candidates[key] for key in ids if key not in self.history.evaluations]

    def label(self, candidates: Sequence[Candidate], oracle: Oracle | None = None) -> list[Evaluation]:
        """Label candidates through the ledger, in order. May be called from several threads with different batches."""
        labelling = Labelling(self.store, self.history.name, self.settings.chunk, self.progress)
        return labelling.label(candidates, oracle or self.components.oracle)

    def _finetune(self, round: int) -> Finetuned:
        """Round 0 keeps the untuned generator: its labels are the baseline that reinforcement has to beat."""
        rows: list[dict[str, Any]] = []
        guards: dict[str, int] = {}
        if round > 0:
            self._hold_policy(round - 1)
            self._hold_fit(round - 1)
            checkpoint = self.directory / "generator" / f"finetune_{round:03d}"
            self._policy = None  # neither the old nor the new one, should this be interrupted
            reward = self.components.reward_for(round)
            rows = self.components.generator.learn(
                reward,
                seed=self.settings.seed_for(round, "finetune"),
                round=round,
                progress=self.progress,
                checkpoint=checkpoint,
            )
            guards = dict(reward.counts)  # in this process: a resumed fine-tuning counts what it saw itself
        write_folder(self._policy_path(round), self.components.generator.save)
        self._policy = round
        shutil.rmtree(self.directory / "generator" / f"finetune_{round:03d}", ignore_errors=True)
        return Finetuned(tuple(rows), guards)

    def _propose(self, round: int) -> Proposed:
        """Sample a pool; drop invalid, duplicate and known crystals, and count them."""
        self._hold_policy(round)
        seed = self.settings.seed_for(round, "propose")
        sampled = self.components.generator.propose(self.settings.pool, seed=seed, round=round)
        reasons = self.components.validity([candidate.structure for candidate in sampled])
        valid = [candidate for candidate, reason in zip(sampled, reasons, strict=True) if reason is None]
        verdicts = self.components.novelty.judge([candidate.structure for candidate in valid], [c.id for c in valid])
        kinds = Counter(verdict.kind for verdict in verdicts)
        wanted = {"new", "known"} if self.settings.allow_known else {"new"}
        pool = [candidate for candidate, verdict in zip(valid, verdicts, strict=True) if verdict.kind in wanted]
        write_candidates(self._pool_path(round), pool)
        funnel = Funnel(
            asked=self.settings.pool,
            sampled=len(sampled),
            accepted=len(valid),
            unique=len(valid) - kinds["duplicate"],
            new=kinds["new"],
            pool=len(pool),
        )
        kept = [verdict for verdict in verdicts if verdict.kind in wanted]
        known = [verdict for verdict in verdicts if verdict.kind == "known"]
        return Proposed(
            funnel,
            invalid=dict(Counter(reason for reason in reasons if reason is not None)),
            verdicts=tuple(verdict.kind for verdict in kept),
            matches=tuple(verdict.match or "" for verdict in kept),
            replayed=sum(verdict.in_training for verdict in known),
            known=tuple(sorted({str(verdict.match) for verdict in known})[:50]),
            elements=dict(Counter(str(e) for candidate in valid for e in candidate.structure.composition)),
        )

    def _select(self, round: int) -> Selected:
        """Spend the round's budget on a pool, and keep what was predicted for it: the labels judge that."""
        pool, surrogate = read_candidates(self._pool_path(round)), self.components.surrogate
        trained = round > 0 and bool(pool) and self._hold_fit(round - 1)
        judges = (self.components.acquisition, surrogate) if trained else None
        arms = choose(pool, self.settings, round, self.settings.budget_of(round, self.history.paid), judges)
        posteriors = surrogate.predict(pool) if trained else None
        screen = self.components.screen(pool).tolist() if self.components.screen and pool else [None] * len(pool)
        proposed = self.history.record(round, Proposed)
        kinds, matches = proposed.verdicts, proposed.matches or ("",) * len(pool)  # no matches in earlier ledgers
        picks = tuple(
            Pick(pool[index].id, round, arm, kinds[index], matches[index], screen[index], *row_of(posteriors, index))
            for index, arm in arms.items()
        )
        self.store.add_candidates(self.history.name, [pool[index] for index in arms])
        self.history.candidates |= {pool[index].id: pool[index] for index in arms}
        known = tuple(value for value in screen if value is not None)
        return Selected(picks, columns_of(posteriors), known, random=not trained)

    def _label(self, round: int) -> Labelled:
        """Label what is selected and not labelled, then judge the relaxed crystals' novelty."""
        pending = self.pending(round)
        chunk = max(1, len(pending)) if isinstance(self.components.oracle, Recorder) else self.settings.chunk
        paid_before = sum(labelled.paid for labelled in self.history.records(Labelled).values())
        self.runner.label(self, round, [pending[at : at + chunk] for at in range(0, len(pending), chunk)])
        self.history.refresh(self.store)
        novelty = self._novelty_of(round)
        tiers = {tier.name: run_tier(self, round, tier, novelty) for tier in self.components.tiers}
        evaluations = [self.history.evaluations[pick.candidate_id] for pick in self.history.picks(round)]
        return Labelled(
            statuses=dict(Counter(evaluation.status for evaluation in evaluations)),
            paid=self.history.paid - paid_before,
            novelty=novelty,
            prototypes=archive.prototypes(self.history, round),
            tiers=tiers,
        )

    def _novelty_of(self, round: int) -> dict[str, Novelty]:
        """Verdicts on a round's relaxed crystals. Formed once: each crystal enters the index as it is judged."""
        if round not in self._verdicts:
            self._verdicts[round] = archive.remember(self.components.novelty, self.history, round)
        return self._verdicts[round]

    def _retrain(self, round: int) -> Retrained:
        """Fit the surrogate to all usable labels of the campaign."""
        labels = [label for label in self.history.labels() if label.first.ok]
        self._fit = None
        if not labels:
            return Retrained({}, 0)
        metrics = self.components.surrogate.fit(
            [label.candidate for label in labels],
            [label.first for label in labels],
            picked_at_random=frozenset(label.candidate.id for label in labels if label.pick.arm != ENGINE),
        )
        write_folder(self._fit_path(round), self.components.surrogate.save)
        self._fit = round
        return Retrained({name: float(value) for name, value in metrics.items()}, len(labels))

    def _report(self, round: int) -> Reported:
        """Judge all finds on the hull that holds all of them, then sum the round up.

        What lies implausibly far below the hull is no phase of it: such an error would hide the true finds around it.
        """
        hull: dict[str, HullPoint] = {}
        labels = [label for label in self.history.labels() if label.first.ok and not label.suspect(self.settings)]
        if self.components.rehull and labels:
            judged = self.components.rehull([label.candidate for label in labels], [label.first for label in labels])
            hull = {e.candidate_id: HullPoint(e.value(self.settings.stability), e.decomposition) for e in judged}
        objective = heading(self.settings.objective, unit_of(self.history, self.settings.objective))
        return Reported(round_report(self.history, round, hull), hull, objective, self._known_phases(hull))

    def _known_phases(self, hull: dict[str, HullPoint]) -> dict[str, tuple[KnownPhase, ...]]:
        """Reference phases of the chemical systems whose phase diagrams a report draws."""
        if self.components.phases is None:
            return {}
        systems = systems_of(self.history.labels(hull=hull), self.settings)
        return {
            system: tuple(KnownPhase(entry.formula, entry.energy, entry.id) for entry in self.components.phases(system))
            for system in systems
        }

    # internals --------------------------------------------------------------------------------------------------------

    def _open(self, settings: CampaignSettings, about: dict[str, Any]) -> History:
        key = key_of(self.components.oracle)
        if settings.name not in self.store.campaigns():
            created = {"settings": settings.to_dict(), "oracle": key.oracle, "oracle_settings": key.settings}
            self.store.append(settings.name, 0, CAMPAIGN, CREATED, {**created, "about": about})
        history = History.load(self.store, settings.name)
        settings.check_resumes(history.settings)
        if history.oracle != key:
            raise StoreError(
                f"Campaign {settings.name!r} is labelled by {history.oracle}, now given {key}: labels of two oracles "
                "do not mix. Give it the first one, or start a new campaign."
            )
        if settings != history.settings:
            payload = {"settings": settings.to_dict()}
            self.store.append(settings.name, history.next_stage[0], CAMPAIGN, SETTINGS, payload)
            history.apply(0, CAMPAIGN, SETTINGS, payload)
        return history

    def record(self, round: int, stage: str, kind: str, payload: dict[str, Any]) -> None:
        """Write an event and take it in."""
        self.store.append(self.history.name, round, stage, kind, payload)
        # as a later process will read it: a list where there was a tuple, a text where a key was a number
        self.history.apply(round, stage, kind, json.loads(json.dumps(payload)))

    def _policy_path(self, round: int) -> Path:
        return self.directory / "generator" / f"round_{round:03d}"

    def _fit_path(self, round: int) -> Path:
        return self.directory / "surrogate" / f"round_{round:03d}"

    def _pool_path(self, round: int) -> Path:
        return self.directory / "pools" / f"round_{round:03d}.jsonl.gz"

    def _hold_policy(self, round: int) -> None:
        if self._policy != round:
            self.components.generator.load(self._policy_path(round))
            self._policy = round

    def _hold_fit(self, round: int) -> bool:
        """Have the surrogate hold the fit of a round; False where no label was usable and so none exists."""
        if self._fit != round and self.history.record(round, Retrained).labels:
            self.components.surrogate.load(self._fit_path(round))
            self._fit = round
        return self._fit == round
