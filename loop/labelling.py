"""Labels through the ledger: what it holds is not computed again, and what another process computes is waited for."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from loop.contracts import Oracle, Progress, Recorder
from loop.errors import StoreError
from loop.store import OracleKey, Store
from loop.tiers import key_of
from loop.values import Candidate, Evaluation

WAIT_SECONDS = 2.0  # between looks at labels that another process is computing


@dataclass(frozen=True)
class Labelling:
    """Labels candidates of one campaign. Safe to call from several threads with different candidates."""

    store: Store
    campaign: str  # who pays
    chunk: int  # labels written together: what a killed process loses at most
    progress: Progress = lambda *_: None

    def label(self, candidates: Sequence[Candidate], oracle: Oracle) -> list[Evaluation]:
        """One evaluation per candidate, in order.

        Raises:
            StoreError: the oracle answered for other candidates than those that it was asked about.
        """
        key, by_id = key_of(oracle), {candidate.id: candidate for candidate in candidates}
        while True:
            finished = self.store.evaluations(list(by_id), key)
            open_ids = [structure_id for structure_id in by_id if structure_id not in finished]
            if not open_ids:
                return [finished[candidate.id] for candidate in candidates]
            # an oracle that writes each label itself gets all of them at once
            claimed = self._claim(open_ids, key, len(open_ids) if isinstance(oracle, Recorder) else self.chunk)
            if claimed:
                self._evaluate([by_id[structure_id] for structure_id in claimed], oracle)
            else:
                time.sleep(WAIT_SECONDS)

    def _claim(self, open_ids: list[str], key: OracleKey, most: int) -> list[str]:
        """At most so many ids that nobody else computes; empty where all are being computed elsewhere."""
        claimed = self.store.claim(open_ids[:most], key, campaign=self.campaign)
        if not claimed:  # the first ones are being computed elsewhere: try the others before waiting
            claimed = self.store.claim(open_ids, key, campaign=self.campaign)
            self.store.release(claimed[most:], key)
        return claimed[:most]

    def _evaluate(self, candidates: list[Candidate], oracle: Oracle) -> None:
        """Compute claimed labels and write them; on any way out but success the claims are given back."""
        ids = [candidate.id for candidate in candidates]
        try:
            if isinstance(oracle, Recorder):
                oracle.record(candidates, self.store, lambda done: self.progress("label", done, len(ids), {}))
                return
            evaluations = oracle.evaluate(candidates)
            if [evaluation.candidate_id for evaluation in evaluations] != ids:
                got = [evaluation.candidate_id for evaluation in evaluations]
                raise StoreError(f"Oracle {oracle.name} was asked for {ids} and answered for {got}.")
            self.store.finish(evaluations)
        except BaseException:
            self.store.release(ids, key_of(oracle))
            raise
