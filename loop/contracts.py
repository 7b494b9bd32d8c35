"""The seams between the rooms: Protocols of one or two methods. `flows.build` binds them to concrete classes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from pymatgen.core import Structure

from loop.values import Candidate, Evaluation, Prediction

if TYPE_CHECKING:
    from loop.hull import Hull
    from loop.store import Store

Progress = Callable[[str, int, int, dict[str, float]], None]
"""``progress(stage, done, total, metrics)``: called often, must be cheap and must not raise."""


Screen = Callable[[Sequence[Candidate]], np.ndarray]
"""Cheap energies above the hull of *unrelaxed* candidates: eV/atom, shape (n,), NaN where there is none."""

Rehull = Callable[[Sequence[Candidate], Sequence[Evaluation]], list[Evaluation]]
"""Recomputes energies above the hull that holds all finished evaluations: same length and order, no oracle call."""


class CrystalLibrary(Protocol):
    """Known crystals as crystals, by id."""

    def __contains__(self, id: object) -> bool:
        """Whether it holds the crystal of an id."""
        ...

    def structure(self, id: str) -> Structure:
        """The crystal of an id that it holds."""
        ...


class Validity(Protocol):
    """Cheap rules that a crystal must pass before anything is spent on it."""

    def __call__(self, structures: Sequence[Structure]) -> list[str | None]:
        """Per structure the name of the first rule that it breaks, or None."""
        ...


class Reward(Protocol):
    """Scores crystals for the policy. Higher is better; dimensionless."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How often each guard was triggered so far, by its name; empty for a reward without guards."""
        ...

    def __call__(self, candidates: Sequence[Candidate | None]) -> tuple[np.ndarray, list[dict[str, float]]]:
        """Rewards of shape (n,), finite, and per candidate the components behind each.

        None stands for a sample that is no crystal (it cannot be built); it gets the reward of a failure.
        """
        ...


@runtime_checkable
class Generator(Protocol):
    """Proposes crystals, and learns from rewards."""

    def propose(self, n: int, *, seed: int, round: int) -> list[Candidate]:
        """Draw n crystals from the present policy (fewer where samples are no crystals)."""
        ...

    def learn(
        self,
        reward: Reward,
        *,
        seed: int,
        round: int,
        progress: Progress | None = None,
        checkpoint: Path | None = None,
    ) -> list[dict[str, Any]]:
        """Fine-tune the policy against a reward; returns one row of metrics an iteration.

        A row holds at least ``iteration``, ``reward`` (mean of the batch) and ``kl`` (to the frozen base, nats).
        Where a checkpoint folder is given, the state of the fine-tuning is kept in it as it goes, and a second call
        with the same arguments on a fresh object continues from there, to the same end as if it had not been cut off.
        """
        ...

    def save(self, path: Path) -> None:
        """Write the policy into a folder (made if absent): all that `propose` and `learn` depend on."""
        ...

    def load(self, path: Path) -> None:
        """Take over the policy that `save` wrote.

        Raises:
            CheckpointError: the folder is missing, damaged or from another model.
        """
        ...


@runtime_checkable
class Surrogate(Protocol):
    """Predicts what an oracle would find, from the unrelaxed candidate."""

    def fit(
        self,
        candidates: Sequence[Candidate],
        evaluations: Sequence[Evaluation],
        *,
        picked_at_random: Collection[str] = frozenset(),
    ) -> dict[str, float]:
        """Learn from labels (failures included in the input are ignored); returns metrics of the fit.

        `picked_at_random` holds the ids of those that chance picked: calibration may rest on them.
        """
        ...

    def predict(self, candidates: Sequence[Candidate]) -> Prediction:
        """Mean and standard deviation per property, shape (n, m)."""
        ...

    def save(self, path: Path) -> None:
        """Write what `predict` needs into a folder (made if absent)."""
        ...

    def load(self, path: Path) -> None:
        """Take over what `save` wrote.

        Raises:
            CheckpointError: the folder is missing or damaged.
        """
        ...


@runtime_checkable
class Acquisition(Protocol):
    """Chooses which candidates to label."""

    def select(self, candidates: Sequence[Candidate], surrogate: Surrogate, k: int, *, seed: int) -> list[int]:
        """Indices of k distinct candidates, best first."""
        ...


@runtime_checkable
class HullOracle(Protocol):
    """An oracle whose distances from the hull can be judged again once there are finds that lie on it."""

    @property
    def hull(self) -> Hull:
        """Of the reference phases alone, with energies of the oracle's own type."""
        ...


@runtime_checkable
class Choosy(Protocol):
    """An oracle that knows which crystals it can measure at all."""

    def accepts(self, structure: Structure) -> bool:
        """Whether it can."""
        ...


@runtime_checkable
class Oracle(Protocol):
    """Measures candidates."""

    @property
    def name(self) -> str:
        """``name@version``."""
        ...

    @property
    def settings_hash(self) -> str:
        """Hash of everything that changes the result."""
        ...

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """One evaluation per candidate, in order. A failure is an element, never an exception."""
        ...


@runtime_checkable
class Recorder(Oracle, Protocol):
    """An oracle that writes each label into the ledger the moment it is computed, wherever that is."""

    def record(self, candidates: Sequence[Candidate], store: Store, done: Callable[[int], None]) -> list[Evaluation]:
        """One evaluation per candidate, in order, each written under the claim of `store`; `done` counts them."""
        ...
