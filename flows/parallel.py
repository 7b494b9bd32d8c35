"""An oracle spread over processes: the same evaluations in the same order, side by side.

Processes and not threads: a potential's Python overhead holds the interpreter lock, and a crash must not end the
campaign.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from loop.contracts import Oracle
from loop.values import Candidate, Evaluation, failed

ALONE = 2  # tries of a candidate in a process of its own; one death may be somebody else's doing there, too
_oracle: Oracle | None = None  # of this worker process


class ParallelOracle:
    """Evaluates each candidate in one of several worker processes, which load the oracle once.

    Args:
        build: makes the oracle; must be picklable (a module-level function or a `functools.partial` of one).
        workers: number of processes.

    A worker that dies (out of memory, a crash in compiled code) costs what was in flight one more try, each crystal
    alone; only a crystal that dies alone, twice, is given up as ``failed:crashed``: a worker may also be ended from
    outside.
    """

    def __init__(self, build: Callable[[], Oracle], workers: int, oracle: Oracle | None = None) -> None:
        self._build = build
        self._workers = workers
        here = oracle or build()
        self._name, self._settings = here.name, here.settings_hash
        self._pool: ProcessPoolExecutor | None = None
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """``name@version``."""
        return self._name

    @property
    def settings_hash(self) -> str:
        """Hash of everything that changes the result; the number of workers does not."""
        return self._settings

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """One evaluation per candidate, in order. May be called from several threads."""
        done = self._attempt(list(candidates))
        return [evaluation or self._alone(candidate) for evaluation, candidate in zip(done, candidates, strict=True)]

    def close(self) -> None:
        """End the workers."""
        with self._lock:
            pool, self._pool = self._pool, None
        if pool is not None:
            _end(pool)

    def _attempt(self, candidates: list[Candidate]) -> list[Evaluation | None]:
        """Evaluations; None where a worker died before it was done."""
        done: list[Evaluation | None] = [None] * len(candidates)
        pool = self._executor()
        try:
            futures = {pool.submit(_evaluate, candidate): index for index, candidate in enumerate(candidates)}
            for future in as_completed(futures):
                done[futures[future]] = future.result()
        except BrokenProcessPool:
            self._drop(pool)
        except BaseException:
            self._drop(pool)
            raise
        return done

    def _alone(self, candidate: Candidate) -> Evaluation:
        """Try a candidate in processes of its own: the death before may have been another one's doing."""
        for _ in range(ALONE):
            pool = _make_pool(self._build, 1)
            try:
                return pool.submit(_evaluate, candidate).result()
            except BrokenProcessPool:
                continue
            finally:
                _end(pool)
        return self._crashed(candidate)

    def _executor(self) -> ProcessPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = _make_pool(self._build, self._workers)
            return self._pool

    def _drop(self, pool: ProcessPoolExecutor) -> None:
        """End a pool that broke, unless another thread did so already."""
        with self._lock:
            if self._pool is pool:
                self._pool = None
        _end(pool)

    def _crashed(self, candidate: Candidate) -> Evaluation:
        message = f"{ALONE} processes that had it alone died with it: out of memory, or a crash in compiled code"
        return Evaluation(candidate.id, self._name, self._settings, failed("crashed"), message=message)


def _make_pool(build: Callable[[], Oracle], workers: int) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # a forked torch may deadlock in its thread pool
    return ProcessPoolExecutor(workers, context, initializer=_start, initargs=(build,))


def _end(pool: ProcessPoolExecutor) -> None:
    """End a pool at once, busy workers included."""
    processes = list((pool._processes or {}).values())  # Python 3.11 has no public way
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _start(build: Callable[[], Oracle]) -> None:
    """Make the oracle of this process."""
    global _oracle
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent.sentinel,), daemon=True).start()
    _oracle = build()


def _leave_with(sentinel: int) -> None:
    """End this process when its parent is killed: nothing would ever take its results."""
    connection.wait([sentinel])
    os._exit(1)


def _evaluate(candidate: Candidate) -> Evaluation:
    if _oracle is None:
        raise RuntimeError("the worker was not started by ParallelOracle")
    return _oracle.evaluate([candidate])[0]
