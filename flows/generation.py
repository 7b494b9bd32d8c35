"""The generator by itself, from files to files: generate, likelihood, pretrain, finetune."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.errors import ConfigError, InputError

if TYPE_CHECKING:
    import pandas as pd

    from generator.checkpoint import Checkpoint
    from loop.contracts import Progress
    from loop.crystals import CrystalTable
    from loop.values import Candidate

TRIES = 200  # crystals drawn at most for each one asked for, before a condition counts as out of reach
BATCH = 256


@dataclass(frozen=True)
class Conditions:
    """What generated crystals must fulfil."""

    space_groups: tuple[int, ...] = ()  # allowed; empty: all of p(g)
    elements: tuple[str, ...] = ()  # allowed; empty: all
    require: tuple[str, ...] = ()  # each must occur
    formula: str | None = None  # reduced formula
    max_atoms: int | None = None  # in the conventional cell
    temperature: float = 1.0
    top_p: float = 1.0

    def allowed(self) -> tuple[int, ...]:
        """Atomic numbers that may occur; empty: all.

        Raises:
            ConfigError: something is no element, or the conditions exclude each other.
        """
        allowed = set(self.elements)
        if self.formula is not None:
            parts = set(formula_of(self.formula).get_el_amt_dict())
            allowed = parts & allowed if allowed else parts
            if parts != allowed:
                raise ConfigError(f"the formula {self.formula} needs elements that --elements does not allow")
        if allowed and not set(self.require) <= allowed:
            raise ConfigError(f"required elements {', '.join(self.require)} are not all among the allowed ones")
        return tuple(sorted(atomic_number(symbol) for symbol in allowed))

    def admits(self, candidate: Candidate) -> bool:
        """Whether a crystal fulfils what the sampler does not enforce by itself."""
        structure = candidate.structure
        if self.max_atoms is not None and len(structure) > self.max_atoms:
            return False
        symbols = {str(element) for element in structure.composition}
        wanted = None if self.formula is None else formula_of(self.formula).reduced_formula
        return set(self.require) <= symbols and wanted in (None, candidate.formula)


@dataclass
class Drawn:
    """Crystals that fulfil the conditions, and how many were drawn for them."""

    candidates: list[Candidate] = field(default_factory=list)
    drawn: int = 0
    no_crystals: int = 0  # tokens that make no crystal
    refused: int = 0  # crystals that the conditions exclude


def atomic_number(symbol: str) -> int:
    """Atomic number.

    Raises:
        ConfigError: no such element.
    """
    from pymatgen.core import Element

    try:
        return int(Element(symbol).Z)
    except ValueError:
        raise ConfigError(f"{symbol!r} is no element; expected symbols such as Li or O") from None


def formula_of(text: str) -> Any:
    """Composition of a formula.

    Raises:
        ConfigError: it is none.
    """
    from pymatgen.core import Composition

    try:
        return Composition(text)
    except ValueError as error:
        raise ConfigError(f"{text!r} is no formula such as SrTiO3: {error}") from None


def load_model(checkpoint: Path | None, device: str, dtype: str) -> Checkpoint:
    """A checkpoint on a device.

    Raises:
        CheckpointError: there is none.
        ConfigError: there is no such device.
    """
    import torch

    from generator.checkpoint import load_checkpoint

    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {device}: no CUDA device is at hand; leave --device out for the CPU")
    return load_checkpoint(checkpoint, device=device, dtype=getattr(torch, dtype))


def generate(
    checkpoint: Checkpoint, n: int, seed: int, conditions: Conditions, progress: Progress | None = None
) -> Drawn:
    """Draw n crystals that fulfil the conditions: space groups and allowed elements by masks, the rest by rejection.

    Raises:
        InputError: too few of `TRIES` n crystals fulfil them.
    """
    from generator.finetune import to_candidates
    from generator.model import Sampling
    from generator.sample import draw_space_groups, sample

    rng = np.random.default_rng(seed)
    sampling = Sampling(conditions.temperature, conditions.top_p, conditions.allowed())
    for symbol in conditions.require:
        atomic_number(symbol)
    out = Drawn()
    while len(out.candidates) < n:
        if out.drawn >= TRIES * max(n, 10):
            found = len(out.candidates)
            raise InputError(
                f"{out.drawn} crystals drawn, {found} of {n} fulfil the conditions: relax them or ask for fewer"
            )
        size = min(BATCH, max(n - len(out.candidates), 32))
        groups = draw_space_groups(checkpoint.model, size, rng, list(conditions.space_groups))
        made = to_candidates(
            sample(checkpoint.model, groups, rng, sampling), policy=checkpoint.checksum[:8], round=0, source="base"
        )
        out.drawn += size
        crystals = [candidate for candidate in made if candidate is not None]
        good = [candidate for candidate in crystals if conditions.admits(candidate)]
        out.no_crystals += size - len(crystals)
        out.refused += len(crystals) - len(good)
        out.candidates += good[: n - len(out.candidates)]
        if progress is not None:
            progress("generate", len(out.candidates), n, {"drawn": float(out.drawn)})
    return out


def candidate_columns(candidates: list[Candidate]) -> dict[str, list[Any]]:
    """Columns that go with generated crystals."""
    return {
        "id": [candidate.id for candidate in candidates],
        "formula": [candidate.formula for candidate in candidates],
        "space_group": [candidate.origin.space_group for candidate in candidates],
        "n_atoms": [len(candidate.structure) for candidate in candidates],
        "logp": [candidate.origin.logp for candidate in candidates],
    }


def likelihoods(
    checkpoint: Checkpoint, table: CrystalTable, compat: bool, progress: Progress | None = None
) -> pd.DataFrame:
    """One row a crystal: its id, logp_w, logp_a, logp_xyz, logp_l and their sum logp (nats), and a status.

    Raises:
        ConfigError: `compat` of a model that is none of the published ones.
    """
    import pandas as pd
    import torch

    from generator.likelihood import log_prob
    from generator.sequence import Crystals
    from generator.tokens import CrystalBatch, TokenError, tokenize

    model = checkpoint.model.eval()
    if compat and model.config.free_layout:
        raise ConfigError("--compat reproduces the published likelihood; it needs a checkpoint of `import-checkpoint`")
    tokens, rows, status = [], [], ["unreadable"] * len(table)
    for row, structure in enumerate(table.structures):
        if structure is not None:
            try:
                tokens.append(tokenize(structure, max_sites=model.config.slots - 1, canonical=not compat))
                rows.append(row)
                status[row] = "ok"
            except TokenError as error:
                status[row] = error.kind
        if progress is not None:
            progress("tokenise", row + 1, len(table), {})
    names = ("w", "a", "xyz", "l")
    values = np.full((len(table), len(names)), np.nan)
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            crystals = Crystals.from_batch(CrystalBatch.concatenate(tokens[start : start + BATCH]), model.head.weight)
            terms = log_prob(model, crystals, definition="published" if compat else "exact")
            block = torch.stack([getattr(terms, name) for name in names], 1).double().cpu().numpy()
            values[rows[start : start + BATCH]] = block
            if progress is not None:
                progress("likelihood", min(start + BATCH, len(rows)), len(rows), {})
    frame = pd.DataFrame(values, columns=[f"logp_{name}" for name in names])
    frame["logp"] = values.sum(1)
    frame.insert(0, "id", table.ids)
    frame["status"] = status
    return frame


def status_counts(frame: pd.DataFrame) -> dict[str, int]:
    """How many rows have each status."""
    return dict(Counter(frame["status"].tolist()))


def pretrain(
    train: Path, val: Path, output: Path, config: Any, *, resume: bool, progress: Progress | None = None
) -> dict[str, Any]:
    """Prepare two files of crystals and train on them; returns the last row of the curve and what was left out."""
    from generator.data import prepare
    from generator.pretrain import STATE, pretrain

    if (output / STATE).exists() and not resume:
        raise ConfigError(f"{output} holds a training run: go on with --resume, or choose another folder")
    sets = [prepare(path, cache=output / "tokens", progress=progress) for path in (train, val)]
    report: Callable[[dict[str, float]], None] | None = None
    if progress is not None:
        tell = progress
        shown = ("train", "nll", "seconds")
        report = lambda row: tell(  # noqa: E731
            "epoch", int(row["epoch"]), config.epochs, {name: row[name] for name in shown}
        )
    last = pretrain(config, sets[0].batch, sets[1].batch, output, resume=resume, report=report)
    failures = {name: one.failures_by_kind() for name, one in zip(("train", "val"), sets, strict=True)}
    return {**last, "crystals": {"train": len(sets[0].batch), "val": len(sets[1].batch)}, "failures": failures}
