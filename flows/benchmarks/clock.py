"""Times that can be quoted from a machine that does other things, too."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of each repetition: on the wall, and computed by this process and its children (all threads)."""

    wall: list[float]
    cpu: list[float]

    def summary(self) -> dict[str, Any]:
        """Medians and ranges."""
        parts: dict[str, Any] = {}
        for name in ("wall", "cpu"):
            values = np.array(getattr(self, name))
            parts[f"{name}_seconds"] = float(np.median(values))
            parts[f"{name}_range"] = [float(values.min()), float(values.max())]
        return parts | {"repetitions": len(self.wall)}


def cpu_seconds() -> float:
    """Seconds computed by this process and its finished children."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@contextmanager
def torch_threads(n: int) -> Iterator[None]:
    """Torch computes on n threads within, and on as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timed(works: dict[str, Callable[[], Any]], repetitions: int, *, warm_up: bool = True) -> dict[str, Timing]:
    """Times of several pieces of work, taken in turns after a warm-up, so that other load meets all of them."""
    for work in works.values() if warm_up else ():
        work()
    found: dict[str, Timing] = {name: Timing([], []) for name in works}
    for _ in range(repetitions):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            work()
            found[name].cpu.append(cpu_seconds() - cpu)
            found[name].wall.append(time.perf_counter() - wall)
    return found


def load() -> float | None:
    """Processes that need a core, mean of the last minute: above the number of cores, wall times mean little."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
