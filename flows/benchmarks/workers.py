"""Campaigns and episodes of a benchmark side by side, one thread each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any, TypeVar

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


def spread(
    function: Callable[[Shared, Item], Result], shared: Shared, items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Result]]:
    """Yield (item, function(shared, item)) as they come, in order where one process does it all.

    Args:
        function: a module's own, so that processes find it by name.
        shared: what all items need; goes to each process once.
        items: begun in this order.
        workers: processes; 1 works in this one.

    Raises:
        Exception: what the function raised; items that are not begun by then are dropped.
    """
    if workers == 1 or len(items) < 2:
        for item in items:
            yield item, function(shared, item)
        return
    # spawn: a forked torch may deadlock in its thread pool, and CUDA does not survive a fork
    with ProcessPoolExecutor(
        min(workers, len(items)), get_context("spawn"), initializer=_start, initargs=(function, shared)
    ) as executor:
        futures = {executor.submit(_work, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


_given: tuple[Callable[[Any, Any], Any], Any] | None = None


def _start(function: Callable[[Any, Any], Any], shared: Any) -> None:
    global _given
    import torch

    torch.set_num_threads(1)
    _given = (function, shared)


def _work(item: Any) -> Any:
    if _given is None:
        raise RuntimeError("the worker was not started by the benchmark")
    function, shared = _given
    return function(shared, item)
