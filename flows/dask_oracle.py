"""An oracle on the workers of a Dask cluster: the same evaluations in the same order, each kept as soon as it is there.

The campaign's process claims labels, and each is written under that claim the moment it is computed: by the worker
itself where it reaches the ledger, else by the campaign's process. So a worker that dies costs the label that it was
at, which another one computes; and where Dask asks for a finished label again, it is read instead of computed.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from loop.contracts import Oracle
from loop.errors import ConfigError, StoreError
from loop.store import OracleKey, Store
from loop.tiers import key_of
from loop.values import Candidate, Evaluation, failed

if TYPE_CHECKING:
    from distributed import Client

Build = Callable[[], Oracle]
LIVES = 3  # workers that a crystal may take with it before it is given up; Dask's own default


@dataclass(frozen=True)
class Ledger:
    """A ledger that workers reach, and in whose name they write. No password: variables are read where it is opened."""

    where: str = field(repr=False)  # as `store` of the configuration says it, or a file
    worker: str  # of the store object that holds the claims


class DaskOracle:
    """Implements `loop.contracts.Recorder`: it writes what it computes into the ledger.

    Args:
        build: makes the oracle on a worker, once a process; picklable.
        key: of the oracle as the campaign's process knows it; a worker that has another one is an error.
        client: of the cluster.
        where: the ledger, as workers open it; None where they cannot.
    """

    def __init__(self, build: Build, key: OracleKey, client: Client, where: str | None = None) -> None:
        self._build, self._key, self._client, self._where = pickle.dumps(build), key, client, where

    @property
    def name(self) -> str:
        """``name@version``."""
        return self._key.oracle

    @property
    def settings_hash(self) -> str:
        """Hash of everything that changes the result; where it is computed does not."""
        return self._key.settings

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """One evaluation per candidate, in order; nothing is written."""
        return self._gather(candidates, None, lambda _: None)

    def record(
        self, candidates: Sequence[Candidate], store: Store, done: Callable[[int], None] = lambda _: None
    ) -> list[Evaluation]:
        """Evaluate what the store has claimed, and write each label as it comes.

        Args:
            candidates: claimed by `store`.
            store: the ledger.
            done: called with the number of labels that are there.

        Raises:
            ConfigError: a worker's oracle is another one.
            StoreError: a label cannot be written.
        """
        ledger = None if self._where is None else Ledger(self._where, store.worker)
        counted = 0

        def keep(evaluation: Evaluation) -> None:
            nonlocal counted
            if ledger is None or evaluation.status == failed("crashed"):
                store.finish([evaluation])
            counted += 1
            done(counted)

        return self._gather(candidates, ledger, keep)

    def _gather(
        self, candidates: Sequence[Candidate], ledger: Ledger | None, keep: Callable[[Evaluation], None]
    ) -> list[Evaluation]:
        from distributed import KilledWorker, as_completed

        futures = {
            self._client.submit(
                label_one, self._build, self._key, candidate, ledger, key=f"label-{candidate.id}-{uuid4().hex}"
            ): candidate
            for candidate in candidates
        }
        found: dict[str, Evaluation] = {}
        try:
            for future in as_completed(futures, loop=self._client.loop):
                candidate = futures[future]
                try:
                    evaluation = future.result()
                except KilledWorker:
                    evaluation = self._crashed(candidate)
                keep(evaluation)
                found[candidate.id] = evaluation
                future.release()  # what is kept need not be kept by the worker, too, nor computed again with it
        finally:
            self._client.cancel([future for future, candidate in futures.items() if candidate.id not in found])
        return [found[candidate.id] for candidate in candidates]

    def _crashed(self, candidate: Candidate) -> Evaluation:
        message = f"{LIVES + 1} workers died with it: out of memory, a crash in compiled code, or jobs that were ended"
        return Evaluation(candidate.id, self.name, self.settings_hash, failed("crashed"), message=message)


# on a worker ----------------------------------------------------------------------------------------------------------


def label_one(build: bytes, key: OracleKey, candidate: Candidate, ledger: Ledger | None) -> Evaluation:
    """The label of a candidate: from the ledger where it stands there already, else computed and written."""
    oracle = _oracle(build)
    if key_of(oracle) != key:
        raise ConfigError(
            f"the Dask worker on {socket.gethostname()} has the oracle {key_of(oracle)}, the campaign {key}: install "
            "the same versions, weights and reference phases there"
        )
    if ledger is None:
        return oracle.evaluate([candidate])[0]
    store = _store(ledger)
    if (kept := _kept(store, candidate, key)) is not None:
        return kept
    evaluation = oracle.evaluate([candidate])[0]
    try:
        store.finish([evaluation])
    except StoreError:  # a worker that was given up for dead may have been quicker
        if (kept := _kept(store, candidate, key)) is None:
            raise
        return kept
    return evaluation


def _kept(store: Store, candidate: Candidate, key: OracleKey) -> Evaluation | None:
    return store.evaluations([candidate.id], key).get(candidate.id)


@cache
def _oracle(build: bytes) -> Any:
    """The oracle of this process, loaded once."""
    return pickle.loads(build)()  # from the campaign's own process, as all that Dask sends


@cache
def _store(ledger: Ledger) -> Store:
    """The ledger of this process, opened once."""
    from flows.configfile import expand_environment

    return Store(expand_environment(ledger.where), create=False, worker=ledger.worker)
