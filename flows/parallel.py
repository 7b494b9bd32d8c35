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
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection

from loop.contracts import Oracle
from loop.values import Candidate, Evaluation, failed

_oracle: Oracle | None = None  # of this worker process


class ParallelOracle:
    """Evaluates each candidate in one of several worker processes, which load the oracle once.

    Args:
        build: makes the oracle; must be picklable (a module-level function or a `functools.partial` of one).
        workers: number of processes.

    A worker that dies (out of memory, a crash in compiled code) costs its candidate one more try, alone; if that dies
    too, the candidate's evaluation is ``failed:crashed``.
    """

    def __init__(self, build: Callable[[], Oracle], workers: int, oracle: Oracle | None = None) -> None:
        self._build = build
        self._workers = workers
        here = oracle or build()
        self._name, self._settings = here.name, here.settings_hash
        self._pool: ProcessPoolExecutor | None = None

    @property
    def name(self) -> str:
        """``name@version``."""
        return self._name

    @property
    def settings_hash(self) -> str:
        """Hash of everything that changes the result; the number of workers does not."""
        return self._settings

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """One evaluation a candidate, in order."""
        done = self._attempt(list(candidates))
        for index in [index for index, evaluation in enumerate(done) if evaluation is None]:
            done[index] = self._attempt([candidates[index]])[0] or self._crashed(candidates[index])
        return [evaluation for evaluation in done if evaluation is not None]

    def close(self) -> None:
        """End the workers."""
        if self._pool is not None:
            processes = list((self._pool._processes or {}).values())  # Python 3.11 has no public way to end busy ones
            self._pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            self._pool = None

    def _attempt(self, candidates: list[Candidate]) -> list[Evaluation | None]:
        """Evaluations; None where the worker died."""
        done: list[Evaluation | None] = [None] * len(candidates)
        try:
            futures: dict[Future[Evaluation], int] = {
                self._executor().submit(_evaluate, candidate): index for index, candidate in enumerate(candidates)
            }
            for future in as_completed(futures):
                done[futures[future]] = future.result()
        except BrokenProcessPool:
            self.close()
        except BaseException:
            self.close()
            raise
        return done

    def _executor(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")  # a forked torch may deadlock in its thread pool
            self._pool = ProcessPoolExecutor(self._workers, context, initializer=_start, initargs=(self._build,))
        return self._pool

    def _crashed(self, candidate: Candidate) -> Evaluation:
        message = "the worker process died twice: out of memory, or a crash in compiled code"
        return Evaluation(candidate.id, self._name, self._settings, failed("crashed"), message=message)


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
