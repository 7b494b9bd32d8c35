"""Outcomes of checks, and how the suites of `loop.testing` compare numbers, labels and crystals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pymatgen.core import Lattice, Structure

from loop.contracts import Reward
from loop.errors import CheckpointError
from loop.values import Candidate, Evaluation, structure_id

CLOSE = {"rtol": 1e-5, "atol": 1e-7}  # of numbers that should be the same but for round-off


@dataclass(frozen=True)
class Finding:
    """Outcome of one check."""

    name: str
    passed: bool
    text: str


def failures(findings: Sequence[Finding]) -> list[str]:
    """What failed, a line each."""
    return [f"{finding.name}: {finding.text}" for finding in findings if not finding.passed]


def run_checks(checks: Mapping[str, Callable[[], str | None]]) -> list[Finding]:
    """One finding per check; what a check raises is a failure of it."""
    found = []
    for name, check in checks.items():
        try:
            found.append(Finding(name, True, check() or "ok"))
        except AssertionError as error:
            found.append(Finding(name, False, str(error)))
        except Exception as error:  # a part may fail in any way
            found.append(Finding(name, False, f"raises {type(error).__name__}: {error}"))
    return found


def ids(candidates: Sequence[Candidate]) -> list[str]:
    """Content ids."""
    return [candidate.id for candidate in candidates]


def require(condition: bool, text: str) -> None:
    """Raise AssertionError with a text unless something holds."""
    if not condition:
        raise AssertionError(text)


def same(first: Sequence[Any], second: Sequence[Any], what: str) -> None:
    """Whether two sequences are equal."""
    require(list(first) == list(second), f"{what}: expected {list(first)[:3]}..., got {list(second)[:3]}...")


def close(first: Any, second: Any, what: str, **bounds: float) -> None:
    """Whether numbers are equal but for round-off; NaN equals NaN."""
    first, second = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    require(first.shape == second.shape, f"{what}: shape {second.shape}, expected {first.shape}")
    if not np.allclose(first, second, equal_nan=True, **(CLOSE | bounds)):
        raise AssertionError(f"{what}: off by up to {np.nanmax(np.abs(first - second)):.3g}")


def alike(found: Sequence[Evaluation], again: Sequence[Evaluation], what: str) -> None:
    """Whether labels are the same: status, and every property to round-off."""
    same([(e.candidate_id, e.status) for e in found], [(e.candidate_id, e.status) for e in again], what)
    for first, second in zip(found, again, strict=True):
        same(sorted(first.properties), sorted(second.properties), f"properties {what}")
        names = sorted(first.properties)
        close([first.value(n) for n in names], [second.value(n) for n in names], what, rtol=1e-3, atol=1e-3)


def untouched(candidates: Sequence[Candidate], job: Callable[[], object]) -> None:
    """Whether a job leaves crystals as they are."""
    before = [structure_id(candidate.structure) for candidate in candidates]
    job()
    same(before, [structure_id(candidate.structure) for candidate in candidates], "crystals that were given")


def refuses(job: Callable[[], object]) -> None:
    """Whether a folder that is not there is refused as the contracts say."""
    try:
        job()
    except CheckpointError:
        return
    raise AssertionError("a missing folder is not refused by a CheckpointError")


class CutOff(BaseException):
    """As a kill: nothing may catch it."""


@dataclass
class Cut:
    """A reward that ends the process at its n-th batch."""

    reward: Reward
    left: int

    @property
    def counts(self) -> Mapping[str, int]:
        """Those of the reward."""
        return self.reward.counts

    def __call__(self, candidates: Sequence[Candidate | None]) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Rewards, as long as there are batches left."""
        self.left -= 1
        if self.left <= 0:
            raise CutOff
        return self.reward(candidates)


def overlapping(candidate: Candidate) -> Candidate:
    """The elements of a crystal on one spot."""
    symbols = [str(element) for element in candidate.structure.composition] * 2
    sites = [[0.01 * number, 0, 0] for number in range(len(symbols))]
    return Candidate(Structure(Lattice.cubic(4.0), symbols, sites))
