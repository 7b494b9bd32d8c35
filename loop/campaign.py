"""The campaign: fine-tune, propose, select, label, retrain, report, round after round, until the budget ends.

`Campaign` is the one mutable object, and all of its state is a fold over its ledger: a stage runs once, is recorded,
and is skipped from then on. Kill the process anywhere and make the same campaign again: it goes on where it stopped.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from loop.contracts import Acquisition, Generator, Oracle, Progress, Rehull, Reward, Screen, Surrogate, Validity
from loop.errors import DiscoveryLoopError, StoreError
from loop.history import CAMPAIGN, CREATED, DONE, SETTINGS, STOPPED, History, Pick
from loop.hull import HullEntry
from loop.io.files import FolderLock, read_candidates, write_candidates, write_folder
from loop.novelty import NoveltyIndex
from loop.properties import heading
from loop.prototypes import parent_lattice, prototype
from loop.report import export
from loop.report.columns import unit_of
from loop.report.phases import systems_of
from loop.report.summary import round_report
from loop.rungs import Rung, climb, key_of
from loop.selection import choose, columns_of, row_of
from loop.settings import ENGINE, STAGES, CampaignSettings
from loop.stopping import stop_reason
from loop.store import Store
from loop.values import Candidate, Evaluation, RoundReport

WAIT_SECONDS = 2.0  # between looks at labels that another process is computing


@dataclass(frozen=True)
class Parts:
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
    rungs: tuple[Rung, ...] = ()  # dearer oracles for the best of each round


class Campaign:
    """One campaign in one folder. Use it as a context manager: leaving gives the folder free.

    Args:
        settings: of the loop; on resume they must agree with the recorded ones, but for when to stop.
        parts: generator, surrogate, acquisition, oracle and what judges candidates before labels.
        store: the ledger; may be shared with other campaigns.
        directory: policies, surrogates, pools and results; one campaign a folder.
        progress: called often with (stage, done, total, metrics).
        about: provenance that is kept with the campaign (versions, hashes, configuration).

    Raises:
        ConfigError: the recorded campaign has other settings.
        StoreError: another process writes in the folder, or the campaign was labelled by another oracle.
    """

    def __init__(
        self,
        settings: CampaignSettings,
        parts: Parts,
        store: Store,
        directory: Path,
        *,
        progress: Progress | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        self.parts = parts
        self.store = store
        self.directory = Path(directory)
        self.progress: Progress = progress or (lambda *_: None)
        # how the pieces of a label stage run side by side, where the caller knows; it calls `label` with each piece
        self.spread: Callable[[list[Candidate]], None] | None = None
        self._lock = FolderLock(self.directory)
        try:
            self.history = self._open(settings, about or {})
        except DiscoveryLoopError:
            self._lock.release()
            raise
        self._policy: int | None = None  # round whose policy the generator holds
        self._fit: int | None = None  # round whose fit the surrogate holds
        self._fill_archive()

    @property
    def settings(self) -> CampaignSettings:
        """Settings in force."""
        return self.history.settings

    def close(self) -> None:
        """Give the folder free for other processes."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self) -> list[RoundReport]:
        """Run what is left of all rounds; returns the reports of all rounds."""
        while not self.finished:
            self.run_round(self.history.next_stage[0])
        self.record_stop()
        return self.history.reports()

    @property
    def finished(self) -> bool:
        """Whether the last round is done or a stop rule holds (rules are looked at between rounds). Reads only."""
        round, stage = self.history.next_stage
        return round > self.settings.rounds or (stage == STAGES[0] and bool(stop_reason(self.history)))

    def record_stop(self) -> str:
        """Write into the ledger why no further round is begun, once; returns the reason, empty where there is none.

        For whoever drives the stages, when they are over.
        """
        round, stage = self.history.next_stage
        reason = stop_reason(self.history) if stage == STAGES[0] else ""
        if reason and reason != self.history.stopped:
            self.record(round, CAMPAIGN, STOPPED, {"reason": reason})
        return reason

    def run_round(self, round: int) -> RoundReport:
        """Run the stages of a round that are not done."""
        for stage in STAGES:
            self.run_stage(round, stage)
        return self.history.reports()[round]

    def run_stage(self, round: int, stage: str) -> dict[str, Any]:
        """Run one stage and record it; one that is done is not run again. Returns what is recorded.

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
        payload = getattr(self, f"_{stage}")(round)
        payload["seconds"] = time.monotonic() - start
        if stage == "report":
            payload["report"]["seconds"]["report"] = payload["seconds"]
        self.record(round, stage, DONE, payload)
        if stage == "report":
            export.write_ranked(self.history, self.directory)
        self.progress(stage, 1, 1, {})
        return self.history.done[round, stage]

    def pending(self, round: int) -> list[Candidate]:
        """Selected candidates of a round that have no label yet, in order of choice."""
        self.history.refresh(self.store)
        ids = [pick.candidate_id for pick in self.history.picks(round)]
        return [self.history.candidates[key] for key in ids if key not in self.history.evaluations]

    def label(self, candidates: Sequence[Candidate], oracle: Oracle | None = None) -> list[Evaluation]:
        """Label candidates through the ledger, in order. May be called from several threads with different pieces.

        What the ledger holds is not computed again; what another process computes is waited for; a process killed here
        loses at most the `chunk` it was at.
        """
        oracle = oracle or self.parts.oracle
        key, by_id = key_of(oracle), {candidate.id: candidate for candidate in candidates}
        while True:
            finished = self.store.evaluations(list(by_id), key)
            open_ids = [structure_id for structure_id in by_id if structure_id not in finished]
            if not open_ids:
                return [finished[candidate.id] for candidate in candidates]
            claimed = self.store.claim(open_ids[: self.settings.chunk], key, campaign=self.history.name)
            if not claimed:  # the first ones are being computed elsewhere: try the others before waiting
                claimed = self.store.claim(open_ids, key, campaign=self.history.name)
                self.store.release(claimed[self.settings.chunk :], key)
                claimed = claimed[: self.settings.chunk]
            if claimed:
                self._evaluate([by_id[structure_id] for structure_id in claimed], oracle)
            else:
                time.sleep(WAIT_SECONDS)

    def _label_in_turn(self, candidates: list[Candidate]) -> None:
        for start in range(0, len(candidates), self.settings.chunk):
            self.label(candidates[start : start + self.settings.chunk])
            self.progress("label", min(start + self.settings.chunk, len(candidates)), len(candidates), {})

    def _evaluate(self, candidates: list[Candidate], oracle: Oracle) -> None:
        """Compute claimed labels and write them; on any way out but success the claims are given back."""
        ids = [candidate.id for candidate in candidates]
        try:
            evaluations = oracle.evaluate(candidates)
            if [evaluation.candidate_id for evaluation in evaluations] != ids:
                got = [evaluation.candidate_id for evaluation in evaluations]
                raise StoreError(f"Oracle {oracle.name} was asked for {ids} and answered for {got}.")
            self.store.finish(evaluations)
        except BaseException:
            self.store.release(ids, key_of(oracle))
            raise

    def _finetune(self, round: int) -> dict[str, Any]:
        """Round 0 keeps the untuned generator: its labels are the baseline that reinforcement has to beat."""
        rows: list[dict[str, Any]] = []
        guards: dict[str, int] = {}
        if round > 0:
            self._hold_policy(round - 1)
            self._hold_fit(round - 1)
            checkpoint = self.directory / "generator" / f"finetune_{round:03d}"
            self._policy = None  # neither the old nor the new one, should this be interrupted
            reward = self.parts.reward_for(round)
            rows = self.parts.generator.learn(
                reward,
                seed=self.settings.seed_for(round, "finetune"),
                round=round,
                progress=self.progress,
                checkpoint=checkpoint,
            )
            guards = dict(getattr(reward, "counts", {}))  # how often each bit, in this process
        write_folder(self._policy_path(round), self.parts.generator.save)
        self._policy = round
        shutil.rmtree(self.directory / "generator" / f"finetune_{round:03d}", ignore_errors=True)
        return {"rows": rows, "guards": guards}

    def _propose(self, round: int) -> dict[str, Any]:
        """Sample a pool; drop invalid, duplicate and known crystals, and count them."""
        self._hold_policy(round)
        seed = self.settings.seed_for(round, "propose")
        sampled = self.parts.generator.propose(self.settings.pool, seed=seed, round=round)
        reasons = self.parts.validity([candidate.structure for candidate in sampled])
        valid = [candidate for candidate, reason in zip(sampled, reasons, strict=True) if reason is None]
        verdicts = self.parts.novelty.judge([candidate.structure for candidate in valid], [c.id for c in valid])
        kinds = Counter(verdict.kind for verdict in verdicts)
        wanted = {"new", "known"} if self.settings.allow_known else {"new"}
        pool = [candidate for candidate, verdict in zip(valid, verdicts, strict=True) if verdict.kind in wanted]
        write_candidates(self._pool_path(round), pool)
        funnel = {
            "asked": self.settings.pool,
            "sampled": len(sampled),
            "accepted": len(valid),
            "unique": len(valid) - kinds["duplicate"],
            "new": kinds["new"],
            "pool": len(pool),
        }
        known = {verdict.match: verdict.in_training for verdict in verdicts if verdict.kind == "known"}
        return {
            "funnel": funnel,
            "invalid": dict(Counter(reason for reason in reasons if reason is not None)),
            "verdicts": [verdict.kind for verdict in verdicts if verdict.kind in wanted],
            "matches": [verdict.match or "" for verdict in verdicts if verdict.kind in wanted],
            "replayed": sum(verdict.in_training for verdict in verdicts if verdict.kind == "known"),
            "known": sorted(str(match) for match in known)[:50],
            "elements": dict(Counter(str(e) for candidate in valid for e in candidate.structure.composition)),
        }

    def _select(self, round: int) -> dict[str, Any]:
        """Spend the round's budget on a pool, and keep what was believed of it: that is judged by the labels."""
        pool, surrogate = read_candidates(self._pool_path(round)), self.parts.surrogate
        trained = round > 0 and bool(pool) and self._hold_fit(round - 1)
        judges = (self.parts.acquisition, surrogate) if trained else None
        arms = choose(pool, self.settings, round, self._budget(round), judges)
        beliefs = surrogate.predict(pool) if trained else None
        screen = self.parts.screen(pool).tolist() if self.parts.screen and pool else [None] * len(pool)
        kinds = self.history.done[round, "propose"]["verdicts"]
        matches = self.history.done[round, "propose"].get("matches", [""] * len(pool))  # none in earlier ledgers
        picks = [
            Pick(pool[index].id, round, arm, kinds[index], matches[index], screen[index], *row_of(beliefs, index))
            for index, arm in arms.items()
        ]
        self.store.add_candidates(self.history.name, [pool[index] for index in arms])
        self.history.candidates |= {pool[index].id: pool[index] for index in arms}
        return {
            "picks": [pick.to_dict() for pick in picks],
            "pool_mean": columns_of(beliefs),
            "pool_screen": [value for value in screen if value is not None],
            "random": not trained,
        }

    def _label(self, round: int) -> dict[str, Any]:
        """Label what is selected and not labelled, then judge the relaxed crystals' novelty."""
        pending = self.pending(round)
        paid_before = sum(payload["paid"] for (_, stage), payload in self.history.done.items() if stage == "label")
        (self.spread or self._label_in_turn)(pending)
        self.history.refresh(self.store)
        rungs = {rung.name: climb(self, round, rung) for rung in self.parts.rungs}
        picks = self.history.picks(round)
        evaluations = [self.history.evaluations[pick.candidate_id] for pick in picks]
        return {
            "statuses": dict(Counter(evaluation.status for evaluation in evaluations)),
            "paid": self.history.paid - paid_before,
            "novelty": self._remember(picks, evaluations),
            "prototypes": self._prototypes(picks, evaluations),
            "rungs": rungs,
        }

    def _retrain(self, round: int) -> dict[str, Any]:
        """Fit the surrogate to all usable labels of the campaign."""
        labels = [label for label in self.history.labels() if label.first.ok]
        self._fit = None
        if not labels:
            return {"metrics": {}, "labels": 0}
        metrics = self.parts.surrogate.fit(
            [label.candidate for label in labels],
            [label.first for label in labels],
            drawn=frozenset(label.candidate.id for label in labels if label.pick.arm != ENGINE),
        )
        write_folder(self._fit_path(round), self.parts.surrogate.save)
        self._fit = round
        return {"metrics": {name: float(value) for name, value in metrics.items()}, "labels": len(labels)}

    def _report(self, round: int) -> dict[str, Any]:
        """Judge all finds on the hull that holds all of them, then sum the round up.

        What lies implausibly far below the hull is no phase of it: such an error would hide the true finds around it.
        """
        hull: dict[str, Any] = {}
        labels = [label for label in self.history.labels() if label.first.ok and not label.suspect(self.settings)]
        if self.parts.rehull and labels:
            judged = self.parts.rehull([label.candidate for label in labels], [label.first for label in labels])
            hull = {
                evaluation.candidate_id: {
                    "value": evaluation.value(self.settings.stability),
                    "decomposition": evaluation.decomposition,
                }
                for evaluation in judged
            }
        objective = heading(self.settings.objective, unit_of(self.history, self.settings.objective))
        return {
            "hull": hull,
            "report": round_report(self.history, round, hull).to_dict(),
            "objective": objective,
            "phases": self._known_phases(hull),
        }

    def _known_phases(self, hull: dict[str, Any]) -> dict[str, list[tuple[str, float, str]]]:
        """Reference phases (formula, eV/atom, id) of the chemical systems whose phase diagrams a report draws."""
        if self.parts.phases is None:
            return {}
        labels = self.history.labels(hull=hull)
        return {
            system: [(entry.formula, entry.energy, entry.id) for entry in self.parts.phases(system)]
            for system in systems_of(labels, self.settings)
        }

    # internals --------------------------------------------------------------------------------------------------------

    def _open(self, settings: CampaignSettings, about: dict[str, Any]) -> History:
        key = key_of(self.parts.oracle)
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

    def _fill_archive(self) -> None:
        """Everything labelled so far, as relaxed and as proposed, counts as seen: in the order of the first time."""
        for round, stage in sorted(self.history.done):
            if stage == "label":
                picks = self.history.picks(round)
                self._remember(picks, [self.history.evaluations[pick.candidate_id] for pick in picks])

    def _remember(self, picks: list[Pick], evaluations: list[Evaluation]) -> dict[str, tuple[str, str]]:
        """Put a round's crystals into the archive; returns the verdicts on the relaxed ones.

        They are judged one after the other, for a relaxation can end in a known or an earlier crystal; and before the
        unrelaxed ones are added, for a crystal is no copy of its own unrelaxed self.
        """
        novelty, verdicts = self.parts.novelty, {}
        for pick, evaluation in zip(picks, evaluations, strict=True):
            if evaluation.structure is not None:
                verdict = novelty.judge([evaluation.structure], [pick.candidate_id])[0]
                verdicts[pick.candidate_id] = (verdict.kind, verdict.match or "")
                novelty.add([evaluation.structure], [pick.candidate_id])
        novelty.add(
            [self.history.candidates[pick.candidate_id].structure for pick in picks], [p.candidate_id for p in picks]
        )
        return verdicts

    def _prototypes(self, picks: list[Pick], evaluations: list[Evaluation]) -> dict[str, tuple[str, str]]:
        """Prototype and parent lattice of each usable crystal, as relaxed."""
        pairs = zip(picks, evaluations, strict=True)
        ends = {
            p.candidate_id: e.structure or self.history.candidates[p.candidate_id].structure for p, e in pairs if e.ok
        }
        return {key: (prototype(structure), parent_lattice(structure)) for key, structure in ends.items()}

    def _budget(self, round: int) -> int:
        settings = self.settings
        budget = settings.round0_budget if round == 0 else settings.budget
        left = budget if settings.max_calls is None else settings.max_calls - self.history.paid
        return max(0, min(budget, left))

    def _policy_path(self, round: int) -> Path:
        return self.directory / "generator" / f"round_{round:03d}"

    def _fit_path(self, round: int) -> Path:
        return self.directory / "surrogate" / f"round_{round:03d}"

    def _pool_path(self, round: int) -> Path:
        return self.directory / "pools" / f"round_{round:03d}.jsonl.gz"

    def _hold_policy(self, round: int) -> None:
        if self._policy != round:
            self.parts.generator.load(self._policy_path(round))
            self._policy = round

    def _hold_fit(self, round: int) -> bool:
        """Have the surrogate hold the fit of a round; False where no label was usable and so none exists."""
        if self._fit != round and self.history.done[round, "retrain"]["labels"]:
            self.parts.surrogate.load(self._fit_path(round))
            self._fit = round
        return self._fit == round
