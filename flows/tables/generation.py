"""The generator by itself, from files to files: generate, likelihood, pretrain, finetune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loop.errors import ConfigError
from loop.reward import PropertyReward

if TYPE_CHECKING:
    import pandas as pd

    from flows.config import CampaignConfig
    from generator.checkpoint import Checkpoint
    from generator.constraints.conditions import Sampling
    from generator.constraints.guard import Guard
    from generator.representation.tokens import CrystalBatch
    from loop.contracts import Progress
    from loop.io.crystals import CrystalTable
    from loop.values import Candidate

BATCH = 256
TOKENS = "tokens"  # column
TERMS = ("g", "w", "a", "xyz", "l")


@dataclass(frozen=True)
class Generated:
    """Crystals drawn under conditions, and what it took."""

    candidates: list[Candidate]
    batch: CrystalBatch  # their tokens as drawn
    logp: dict[str, list[float]]  # g, w, a, xyz, l: nats, given the conditions but not the guard
    drawn: int  # crystals drawn; the guard turned the others away
    acceptance: float  # share that passed the guard
    acceptance_error: float  # standard error


def generate(
    checkpoint: Checkpoint,
    n: int,
    seed: int,
    sampling: Sampling,
    guard: Guard | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Draw n crystals that keep the conditions; fewer where the guard's tries run out.

    Raises:
        ConditionError: conditions that cannot be met.
    """
    from generator.draw import draw
    from generator.rl.rollout import to_candidates

    def report(kept: int, drawn: int) -> None:
        if progress is not None:
            progress("generate", kept, n, {"drawn": float(drawn)})

    rng = np.random.default_rng(seed)
    found = draw(checkpoint.model, n, rng, sampling, guard=guard, batch_size=BATCH, report=report)
    made = to_candidates(found.sample, policy=checkpoint.checksum[:8], round=0, source="base")
    rows = [row for row, candidate in enumerate(made) if candidate is not None]
    crystals = [candidate for candidate in made if candidate is not None]
    logp = {name: getattr(found.sample.logp, name).double().cpu().numpy()[rows].tolist() for name in TERMS}
    batch = found.sample.batch[np.array(rows, dtype=int)]
    return Generated(crystals, batch, logp, found.tries, found.acceptance, found.acceptance_error)


def substituted_columns(candidates: Sequence[Candidate]) -> dict[str, list[Any]]:
    """Columns that go with crystals of ion substitution, the known crystal that each comes from among them."""
    return {
        "id": [candidate.id for candidate in candidates],
        "formula": [candidate.formula for candidate in candidates],
        "parent": [candidate.origin.parent for candidate in candidates],
        "n_atoms": [len(candidate.structure) for candidate in candidates],
    }


def candidate_columns(made: Generated) -> dict[str, list[Any]]:
    """Columns that go with generated crystals. `n_atoms` counts the primitive cell, as the conditions do.

    `logp_drawn` is the log-probability of the draw (nats), given the space group and all that was asked: conditions,
    temperature, top-p. It is no likelihood of the crystal, which is `logp` (see `likelihoods`); where nothing was asked
    both are equal. `logp_drawn_g` is that of the space group.
    """
    from generator.representation.serialization import describe

    return {
        "id": [candidate.id for candidate in made.candidates],
        "formula": [candidate.formula for candidate in made.candidates],
        **{f"logp_drawn_{name}": values for name, values in made.logp.items()},
        "logp_drawn": [candidate.origin.logp for candidate in made.candidates],
        **describe(made.batch),
    }


def write_generated(output: Path, made: Generated) -> None:
    """Write generated crystals: tables with columns, or a folder of CIFs with their symmetry.

    Raises:
        InputError: the format is unknown, or the place cannot be written.
    """
    from loop.io.crystals import write_crystals

    structures = [candidate.structure for candidate in made.candidates]
    ids = [candidate.id for candidate in made.candidates]
    write_crystals(output, ids, structures, candidate_columns(made))


def likelihoods(
    checkpoint: Checkpoint,
    table: CrystalTable,
    compat: bool,
    progress: Progress | None = None,
    *,
    as_written: bool = True,
) -> pd.DataFrame:
    """The table's columns, then space_group, logp_w, logp_a, logp_xyz, logp_l and their sum logp (nats), and a status.

    A row with `tokens`, as `generate` writes them, is scored as it was drawn if they are the tokens of the crystal that
    stands in the row: where nothing was asked of the generator, that is its `logp_drawn`. Any other row, or all of them
    without `as_written`, gets the likelihood of its canonical description (7 of 10 samples of the shipped checkpoint
    are drawn canonically); the message tells of tokens that describe another crystal.

    Raises:
        ConfigError: `compat` of a model that is none of the published ones.
    """
    import torch

    from flows.tables.columns import rows_with
    from generator.compat import tokenize_published
    from generator.likelihood import log_prob
    from generator.representation.sequence import Crystals
    from generator.representation.tokens import CrystalBatch, TokenError, tokenize
    from loop.values import failed

    model = checkpoint.model.eval()
    if compat and model.config.free_layout:
        raise ConfigError("--compat reproduces the published likelihood; it needs a checkpoint of `import-checkpoint`")
    read = tokenize_published if compat else tokenize
    names = ("w", "a", "xyz", "l")
    nothing = dict.fromkeys(("space_group", *(f"logp_{name}" for name in names), "logp"), float("nan"))
    tokens, rows, found = [], [], {}
    written, stale = _written(table, model.config.slots, ask=as_written and not compat)
    for row, structure in enumerate(table.structures):
        if structure is not None:
            try:
                here = written.get(row)
                tokens.append(read(structure, max_sites=model.config.slots - 1) if here is None else here)
                rows.append(row)
            except TokenError as error:
                message = "; ".join(filter(None, (str(error), stale.get(row))))
                found[row] = nothing | {"status": failed(error.kind), "message": message}
        if progress is not None:
            progress("tokenise", row + 1, len(table), {})
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            batch = CrystalBatch.concatenate(tokens[start : start + BATCH])
            crystals = Crystals.from_batch(batch, model.head.weight)
            terms = log_prob(model, crystals, definition="published" if compat else "exact")
            block = torch.stack([getattr(terms, name) for name in names], 1).double().cpu().numpy()
            for row, group, values in zip(rows[start : start + BATCH], batch.G.tolist(), block, strict=True):
                parts = {f"logp_{name}": value for name, value in zip(names, values.tolist(), strict=True)}
                parts |= {"logp": values.sum(), "description": "as-written" if row in written else "canonical"}
                found[row] = {"space_group": group} | parts | {"status": "ok", "message": stale.get(row, "")}
            if progress is not None:
                progress("likelihood", min(start + BATCH, len(rows)), len(rows), {})
    return rows_with(table, found)


STALE = "its tokens do not describe the crystal as it stands in this row: scored by its canonical description"


def _written(table: CrystalTable, slots: int, *, ask: bool) -> tuple[dict[int, CrystalBatch], dict[int, str]]:
    """Tokens that came with crystals and are theirs, by row; and what is wrong with the others."""
    from generator.representation.serialization import describes, from_json
    from generator.representation.tokens import TokenError

    if TOKENS not in table.frame or not ask:
        return {}, {}
    written, stale = {}, {}
    for row, (text, structure) in enumerate(zip(table.frame[TOKENS].tolist(), table.structures, strict=True)):
        if structure is None or not isinstance(text, str) or not text:
            continue
        try:
            tokens = from_json(text, slots)
        except TokenError as error:
            stale[row] = f"{error}; scored by its canonical description"
            continue
        if describes(tokens, structure):
            written[row] = tokens
        else:
            stale[row] = STALE
    return written, stale


def pretrain(
    train: Path, val: Path, output: Path, config: Any, *, resume: bool, progress: Progress | None = None
) -> dict[str, Any]:
    """Prepare two files of crystals and train on them; returns the last row of the curve and what was left out."""
    from generator.data import prepare
    from generator.pretrain import STATE, pretrain

    if (output / STATE).exists() and not resume:
        raise ConfigError(f"{output} holds a training run: continue with --resume, or choose another folder")
    sets = [prepare(path, cache=output / "tokens", progress=progress) for path in (train, val)]
    report: Callable[[dict[str, float]], None] | None = None
    if config.devices > 1:
        report = _print_row  # in another process, where the progress bar is not
    elif progress is not None:
        tell = progress
        shown = ("train", "nll", "seconds")
        report = lambda row: tell(  # noqa: E731
            "epoch", int(row["epoch"]), config.epochs, {name: row[name] for name in shown}
        )
    last = pretrain(config, sets[0].batch, sets[1].batch, output, resume=resume, report=report)
    failures = {name: one.failures_by_kind() for name, one in zip(("train", "val"), sets, strict=True)}
    return {**last, "crystals": {"train": len(sets[0].batch), "val": len(sets[1].batch)}, "failures": failures}


def _print_row(row: dict[str, float]) -> None:
    from flows.console import note

    note(f"epoch {row['epoch']:.0f}  train {row['train']:.4g}  nll {row['nll']:.4g}  seconds {row['seconds']:.0f}")


def finetune(config: CampaignConfig, output: Path, *, resume: bool, progress: Progress | None = None) -> dict[str, Any]:
    """Tune the policy towards the reward of a configuration; writes ``checkpoint/``, ``curve.csv`` and ``record.json``.

    Raises:
        ConfigError: the folder holds a run and `resume` is not asked for.
    """
    from flows.build import Builder
    from flows.records import write_record
    from flows.registry import GENERATORS
    from loop.io.files import write_text
    from loop.report.export import to_csv

    if not GENERATORS.get(config.generator.kind).learns:
        raise ConfigError(f"generator.kind is {config.generator.kind}, which learns nothing: expected crystalformer")
    state = output / "state"
    if not resume and (state.exists() or (output / "checkpoint").exists()):
        raise ConfigError(f"{output} holds a fine-tuning: continue with --resume, or choose another folder")
    builder = Builder(config)
    reward = builder.reward_for(0)
    seed = config.campaign.seed
    rows = builder.proposer.learn(reward, seed=seed, round=1, progress=progress, checkpoint=state)
    builder.proposer.save(output / "checkpoint")
    write_text(output / "curve.csv", to_csv(rows))
    guards = dict(reward.counts) if isinstance(reward, PropertyReward) else {}
    summary = {"iterations": len(rows), "reward_first": rows[0]["reward"], "reward_last": rows[-1]["reward"]}
    summary |= {"kl": rows[-1]["kl"], "checkpoint": str(output / "checkpoint")}
    record = {"summary": summary, "guards": guards, "config": config.model_dump(mode="json"), "seed": seed}
    write_record(output, record)
    return summary
