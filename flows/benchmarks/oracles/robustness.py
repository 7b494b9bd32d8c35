"""discovery-loop benchmark robustness: damaged inputs through reading, symmetry, novelty, relaxation and hull.

The inputs go through a process of their own. One that dies or falls silent is a crash or a hang of the input that it
was at; it is started again, and the rest continues. A killed run resumes, too.
"""

from __future__ import annotations

import multiprocessing
import resource
import time
from collections import Counter
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from flows.benchmarks.harness import write_benchmark
from flows.benchmarks.oracles.damage import DAMAGES, damaged
from loop.contracts import Progress
from loop.errors import DiscoveryLoopError
from loop.io.files import make_folder

START = 600.0  # s for the process to load the potential
CRASH, HANG, ESCAPED = "crash", "hang", "exception"
PLURALS = {"crashes": CRASH, "hangs": HANG, "exceptions": ESCAPED}
PROTOCOL = (
    "Inputs are made from consecutive seeds: textbook crystals with one kind of damage each, as structures or as the "
    "text of a CIF. Each is read, its space group, fingerprint and identity for the ledger are found, its energy above "
    "the hull of the shipped reference phases is computed as it stands, and it is relaxed for a few steps and placed "
    "again. A crash, a hang (no answer within the limit) or an exception that reaches the caller is a failure of this "
    "program; every other outcome must have a name and, unless it is ok, a reason."
)


@dataclass(frozen=True)
class RobustnessBenchmark:
    """How many inputs, and what they may take."""

    n: int = 10_000
    seed: int = 0  # of the first input; the next ones have the next seeds
    batch: int = 20  # inputs put to the process at once
    max_steps: int = 4
    time_limit: float = 20.0  # s of relaxation a crystal, checked between steps
    memory: float = 12.0  # GiB of address space of the process: what needs more is an exception, and counted
    silence: float = 180.0  # s of the process's silence over one batch that count as a hang; the batch is tried singly
    potential: str = "chgnet"
    minutes: float = float("inf")  # no further batch is begun after this; the next call continues


def run(
    output: Path, config: RobustnessBenchmark = RobustnessBenchmark(), progress: Progress | None = None
) -> dict[str, Any]:
    """Put all inputs through, and write ``record.json``."""
    from flows.journal import Journal

    make_folder(output)
    began, worker = time.monotonic(), Worker(config)
    settings = {name: value for name, value in asdict(config).items() if name not in ("n", "minutes", "batch")}
    journal = Journal(output / "inputs", settings)
    try:
        seeds = [seed for seed in range(config.seed, config.seed + config.n) if str(seed) not in journal.done]
        for start in range(0, len(seeds), config.batch):
            if time.monotonic() - began > 60 * config.minutes:
                break
            for row in worker.put(seeds[start : start + config.batch]):
                journal.write(str(row["seed"]), row)
            if progress is not None:
                progress("inputs", len(journal.done), config.n, {})
        return _record(output, config, list(journal.done.values()))
    finally:
        worker.close()
        journal.__exit__(None if len(journal.done) == config.n else KeyboardInterrupt, None, None)


class Worker:
    """A process that judges inputs, watched from outside."""

    def __init__(self, config: RobustnessBenchmark) -> None:
        self.config = config
        self._process: Any = None
        self._connection: Connection | None = None

    def put(self, seeds: list[int]) -> list[dict[str, Any]]:
        """One row an input; a batch that kills or silences the process is put singly."""
        rows = self._ask(seeds)
        if rows is None or isinstance(rows, str):
            if len(seeds) == 1:
                row = {"seed": seeds[0], "damage": damaged(seeds[0])[0], "status": rows or CRASH, "seconds": np.nan}
                return [{**row, "message": "the process ended or fell silent", "relaxed": "", "hull": ""}]
            return [row for seed in seeds for row in self.put([seed])]
        return rows

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._process = None

    def _ask(self, seeds: list[int]) -> list[dict[str, Any]] | str | None:
        if self._process is None or not self._process.is_alive():
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            self._process = context.Process(target=_serve_process, args=(theirs, self.config), daemon=True)
            self._process.start()
            theirs.close()
            if not self._connection.poll(START):
                raise DiscoveryLoopError(f"the process that judges inputs did not start within {START:.0f} s")
            self._connection.recv()
        assert self._connection is not None
        try:
            self._connection.send(seeds)
            if not self._connection.poll(self.config.silence):
                self.close()
                return HANG
            return list(self._connection.recv())
        except (EOFError, OSError):
            self.close()
            return CRASH


def _serve(connection: Connection, config: RobustnessBenchmark) -> None:
    """The process: judge batches until the other side goes away."""
    limit = int(config.memory * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    judge = Judge(config)
    connection.send("ready")
    while True:
        try:
            seeds = connection.recv()
        except EOFError:
            return
        connection.send(judge(seeds))


_serve_process = _serve


class Judge:
    """Everything that this program does with a crystal that comes from outside."""

    def __init__(self, config: RobustnessBenchmark) -> None:
        from flows.threads import set_defaults

        set_defaults()
        import torch

        from oracles.potentials.loading import load_potential
        from oracles.references.table import load_references
        from oracles.relax import RelaxConfig

        torch.set_num_threads(1)
        self.potential = load_potential(config.potential, device="cpu")
        references = load_references()
        known = references.energy_type == self.potential.energy_type
        self.hulls = {relaxed: references.hull(relaxed=relaxed) for relaxed in (False, True)} if known else {}
        self.relaxation = RelaxConfig(max_steps=config.max_steps, time_limit=config.time_limit)

    def __call__(self, seeds: list[int]) -> list[dict[str, Any]]:
        """One row per seed."""
        rows = [self._read(seed) for seed in seeds]
        crystals = [(row, row.pop("structure")) for row in rows]
        there = [(row, structure) for row, structure in crystals if structure is not None]
        for row, structure in there:
            self._describe(row, structure)
        try:
            self._energies(there)
            self._relax(there)
        except Exception as error:  # what must not happen: it is counted as a failure of this program
            for row, _ in there:
                row |= {"status": ESCAPED, "message": f"{type(error).__name__}: {error}"}
        return rows

    def _read(self, seed: int) -> dict[str, Any]:
        from loop.errors import InputError
        from loop.io.cif import read_cif

        began = time.perf_counter()
        damage, given = damaged(seed)
        row = {
            "seed": seed,
            "damage": damage,
            "status": "",
            "relaxed": "",
            "hull": "",
            "message": "",
            "structure": None,
        }
        try:
            row["structure"] = read_cif(given).structure if isinstance(given, str) else given
        except InputError as error:
            row |= {"status": "failed:unreadable", "message": str(error)}
        except Exception as error:
            row |= {"status": ESCAPED, "message": f"{type(error).__name__}: {error}"}
        return row | {"seconds": time.perf_counter() - began}

    def _describe(self, row: dict[str, Any], structure: Any) -> None:
        """What a campaign asks of candidates before any energy."""
        from loop.fingerprint import fingerprint
        from loop.identity import Identity
        from loop.validity import ValidityRules
        from loop.values import structure_id
        from oracles.symmetry import space_group

        began = time.perf_counter()
        try:
            structure_id(structure)
            Identity.of(structure)
            reason = ValidityRules()([structure])[0]
            row["valid"] = reason or "valid"
            if self.potential.check(structure).ok:  # as everywhere, the guards stand before what follows
                space_group(structure, 0.1)
                fingerprint(structure)
        except Exception as error:
            row |= {"status": ESCAPED, "message": f"{type(error).__name__}: {error}"}
        row["seconds"] += time.perf_counter() - began

    def _energies(self, there: list[tuple[dict[str, Any], Any]]) -> None:
        began = time.perf_counter()
        points = self.potential.single_points([structure for _, structure in there], gradients=False)
        for (row, structure), point in zip(there, points, strict=True):
            if row["status"] == ESCAPED:
                continue
            row |= {"status": point.status, "message": point.message}
            if point.ok and self.hulls:
                place = self.hulls[False].e_above_hull(structure.composition, point.energy, self.potential.energy_type)
                row |= {"hull": place.status, "message": place.message}
        self._share(there, time.perf_counter() - began)

    def _relax(self, there: list[tuple[dict[str, Any], Any]]) -> None:
        from oracles.relax import relax

        began = time.perf_counter()
        outcomes = relax([structure for _, structure in there], self.potential, self.relaxation)
        for (row, _), outcome in zip(there, outcomes, strict=True):
            row["relaxed"] = outcome.status
            if outcome.structure is not None and self.hulls:
                composition = outcome.structure.composition
                self.hulls[True].e_above_hull(composition, outcome.energy, self.potential.energy_type)
        self._share(there, time.perf_counter() - began)

    def _share(self, there: list[tuple[dict[str, Any], Any]], seconds: float) -> None:
        for row, _ in there:
            row["seconds"] += seconds / len(there)


def unnamed(row: dict[str, Any]) -> bool:
    """Whether an outcome lacks its name or, where it is a failure, its reason."""
    named = row["status"] == "ok" or (row["status"].startswith("failed:") and bool(row["message"]))
    return not named


def _statuses(rows: list[dict[str, Any]]) -> dict[str, int]:
    return dict(Counter(row["status"] for row in rows).most_common())


def _record(output: Path, config: RobustnessBenchmark, rows: list[dict[str, Any]]) -> dict[str, Any]:

    wrong = [row for row in rows if row["status"] in (CRASH, HANG, ESCAPED) or unnamed(row)]
    results = {
        "inputs": len(rows),
        **{name: sum(row["status"] == kind for row in rows) for name, kind in PLURALS.items()},
        "without a name or reason": sum(unnamed(row) for row in rows) - sum(
            row["status"] in (CRASH, HANG, ESCAPED) for row in rows
        ),
        "as they stand": _statuses(rows),
        "on the hull of known phases": dict(Counter(row["hull"] for row in rows if row["hull"]).most_common()),
        "relaxed": dict(Counter(row["relaxed"] for row in rows if row["relaxed"]).most_common()),
        "by damage": {name: _statuses([row for row in rows if row["damage"] == name]) for name in DAMAGES},
        "seconds of the slowest": float(np.nanmax([row["seconds"] for row in rows], initial=0.0)),
    }  # fmt: skip
    record = {
        "benchmark": "robustness", "protocol": PROTOCOL, "settings": asdict(config),
        "results": results, "failures": wrong[:50],
    }  # fmt: skip
    return write_benchmark(output, record)
