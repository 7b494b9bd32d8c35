"""discovery-loop benchmark resume: campaigns that are killed again and again end in the list of one that was not.

Victims of SIGKILL: the process of the campaign (engine), a process that labels for it (worker), and the database's
process that serves it (ledger, PostgreSQL only). When: round and stage are drawn, each alike, and in it a moment within
the seconds that it takes undisturbed; also before the campaign is in the ledger, and after its last event is. A stage
that is over by then is not killed. After each kill the ledger is read; a label that it held and that is computed again
later is paid twice. One that it held and no longer holds is lost, as is one that was computed and does not stand there
in the end. Of a campaign that ends otherwise the folder is kept beside the record.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from flows.benchmarks.harness import write_benchmark
from flows.benchmarks.operate.kills import SLURM, Outcome, ResumeBenchmark, Scenario, summary, write_kills
from flows.benchmarks.operate.own_server import prefect_server
from flows.benchmarks.operate.victims import backends, workers_of, workers_of_jobs
from flows.benchmarks.operate.world import SleepingOracle, calls, components
from loop.campaign import Campaign
from loop.contracts import Oracle
from loop.errors import StoreError
from loop.history import History
from loop.running import InTurn, Runner
from loop.settings import STAGES, CampaignSettings
from loop.stages import Labelled
from loop.store import Store
from loop.tiers import key_of

SETTINGS = CampaignSettings(name="reference", rounds=2, pool=24, budget=5, chunk=2)
STAGE_SECONDS, LABEL_SECONDS = 0.2, 0.08
JOBS = {"dask": "slurm", "memory": "1GB", "walltime": "00:20:00", "interface": "lo"}
KILLS = 6  # of one campaign, at most
MOST_LIVES = 60  # of one campaign: more would mean that it does not resume
WORKERS = 2
START, END = "start", "end"  # no event is in the ledger yet; all are, but the results are not all written
DEADLINE = 300.0  # s, for one life on a busy machine

Say = Callable[[str], None]
Place = tuple[int, str]  # round and stage, in the order of a campaign
PLACES: list[Place] = [
    (0, START),
    *product(range(SETTINGS.rounds + 1), STAGES),
    (SETTINGS.rounds + 1, END),
]


@dataclass(frozen=True)
class Job:
    """One campaign: all that its process has to know."""

    scenario: Scenario
    folder: Path
    url: str
    number: int

    @property
    def oracle(self) -> SleepingOracle:
        """Under settings of its own: campaigns that share a database must not share labels here."""
        return SleepingOracle(self.folder / "calls", LABEL_SECONDS, settings_hash=f"{self.number:08x}")

    @property
    def settings(self) -> CampaignSettings:
        """Of the loop."""
        return replace(SETTINGS, name=f"resume-{self.number}-{self.folder.parent.name}")


@dataclass(frozen=True)
class Reference:
    """A campaign that nobody kills: its ranked list, and how long it was at each place."""

    ranked: str
    seconds: dict[Place, float]


# the campaign's process -----------------------------------------------------------------------------------------------


def live(job: Job) -> None:
    """Run what is left of a campaign; ends with code 0 when it is finished, else with 1 and a line."""
    os.setsid()
    try:
        with labelling(job) as oracle, Store(job.url) as store:
            made = components(oracle, STAGE_SECONDS)
            runner = as_tasks() if job.scenario.engine == "prefect" else InTurn()
            with Campaign(job.settings, made, store, job.folder, runner=runner) as campaign:
                in_flow(campaign.run) if job.scenario.engine == "prefect" else campaign.run()
    except StoreError as error:
        print(error)
        raise SystemExit(1) from None


def as_tasks() -> Runner:
    """Stages and labels as Prefect's tasks."""
    from flows.discovery import AsTasks

    return AsTasks()


def in_flow(run: Callable[[], object]) -> None:
    """Run something inside a flow."""
    from prefect import flow

    def watched() -> None:
        run()

    flow(name="resume", persist_result=False)(watched)()


@contextmanager
def labelling(job: Job) -> Iterator[Oracle]:
    """The oracle: in this process, in processes beside it, or on a Dask cluster."""
    with ExitStack() as stack:
        if job.scenario.labels == "processes":
            from flows.parallel import ParallelOracle

            oracle = ParallelOracle(partial(replace, job.oracle), WORKERS, job.oracle)
            stack.callback(oracle.close)
            yield oracle
        elif job.scenario.labels in ("dask", SLURM):
            from flows import scale
            from flows.dask_oracle import DaskOracle

            asked = JOBS if job.scenario.labels == SLURM else {}
            client = stack.enter_context(scale.connected(scale.Scale(workers=WORKERS, **asked), job.folder))
            written_there = not asked or job.scenario.ledger != "sqlite"  # as campaigns do, see flows.build
            where = job.url if written_there else None
            yield DaskOracle(partial(replace, job.oracle), key_of(job.oracle), client, where)
        else:
            yield job.oracle


# who kills ------------------------------------------------------------------------------------------------------------


def run(output: Path, config: ResumeBenchmark, say: Say = lambda _: None) -> dict[str, Any]:
    """Kill until there were enough kills, or the time is over; returns the record, which is written."""
    began, rng = time.monotonic(), np.random.default_rng(config.seed)
    outcomes: list[Outcome] = []
    turns = in_turns(config.scenarios)
    with TemporaryDirectory() as name, prefect_server(Path(name), config.prefect):
        expected = reference(Path(name))
        while (done := sum(len(outcome.kills) for outcome in outcomes)) < config.kills or len(outcomes) < len(turns):
            if time.monotonic() - began > 60 * config.minutes:
                break
            scenario = turns[len(outcomes) % len(turns)]
            folder = Path(name) / f"c{len(outcomes)}"
            url = config.database if scenario.ledger == "postgresql" else str(folder / "campaign.db")
            job = Job(scenario, folder, url or "", int(rng.integers(2**31)))
            last = torture(job, expected, rng)
            outcomes.append(last)
            if not last.same_list or last.lost or last.paid_twice:
                keep(output / "differs" / folder.name, folder, expected)
            state = "same list" if last.same_list else "ANOTHER LIST"
            say(f"{done + len(last.kills)} kills: {scenario}: {len(last.kills)} kills, {state}")
            write_kills(output, outcomes)
            found = summary(outcomes, config, time.monotonic() - began)
            record = write_benchmark(output, {"benchmark": "resume", "protocol": __doc__, **found})
    return record


def in_turns(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Each scenario once, and before it one of those that start quickly."""
    quick = [item for item in scenarios if item.engine == "plain" and item.labels == "here"]
    if not quick:
        return list(scenarios)
    return [turn for number, item in enumerate(scenarios) for turn in (quick[number % len(quick)], item)]


def keep(where: Path, folder: Path, expected: Reference) -> None:
    """Keep a campaign that ended in another list."""
    shutil.copytree(folder, where, dirs_exist_ok=True)
    (where / "expected.csv").write_text(expected.ranked)


def reference(folder: Path) -> Reference:
    """A campaign that nobody kills."""
    job = Job(Scenario("sqlite", "plain", "here", "engine"), folder / "reference", str(folder / "reference.db"), 0)
    warm_up(folder / "warm")
    started(job).join()
    with ledger(job) as store:
        assert store is not None
        done = History.load(store, job.settings.name).done
    seconds = dict.fromkeys(PLACES, STAGE_SECONDS) | {place: step.seconds for place, step in done.items()}
    return Reference((job.folder / "ranked.csv").read_text(), seconds)


def warm_up(folder: Path) -> None:
    """Run a campaign here: those that are forked from this process then import nothing, and their stages are short."""
    folder.mkdir(parents=True, exist_ok=True)
    made = components(SleepingOracle(folder / "calls", 0.0))
    with Store(folder / "campaign.db") as store, Campaign(SETTINGS, made, store, folder) as campaign:
        campaign.run()


def started(job: Job) -> BaseProcess:
    """A process that runs a campaign; forked, so that nothing has to be imported again."""
    job.folder.mkdir(parents=True, exist_ok=True)
    process = get_context("fork").Process(target=live, args=(job,))
    process.start()
    return process


def torture(job: Job, expected: Reference, rng: np.random.Generator) -> Outcome:
    """Kill a campaign at random moments until it is finished, then judge it."""
    outcome, ahead = Outcome(job.scenario), drawn(job.scenario, rng)
    for _ in range(MOST_LIVES):
        if one_life(job, started(job), outcome, ahead, expected, rng):
            break
    held, ranked = finished_labels(job), job.folder / "ranked.csv"
    called = calls(job.oracle.log)
    outcome.calls, outcome.labels = len(called), len(held)
    outcome.lost = len({*called, *(name for kill in outcome.kills for name in kill["held"])} - held)
    outcome.paid_twice = sum(len(set(kill["held"]) & set(calls(job.oracle.log, kill["log"]))) for kill in outcome.kills)
    outcome.same_list = ranked.exists() and ranked.read_text() == expected.ranked
    return outcome


def drawn(scenario: Scenario, rng: np.random.Generator) -> list[Place]:
    """Where a campaign will be killed, in the order in which it gets there."""
    if pooled(scenario):
        return [place for place in PLACES if place[1] == Labelled.stage]
    return [PLACES[number] for number in sorted(rng.integers(len(PLACES), size=KILLS))]


def pooled(scenario: Scenario) -> bool:
    """Whether workers live only while they label: killed once a round, for what dies alone twice is given up."""
    return scenario.labels == "processes" and scenario.victim == "worker"


def one_life(
    job: Job, process: BaseProcess, outcome: Outcome, ahead: list[Place], expected: Reference, rng: np.random.Generator
) -> bool:
    """Let a process live and kill at the places that lie ahead; returns whether the campaign is finished."""
    ends = job.scenario.victim == "engine"  # else it continues, and the ledger has to be read before
    while ahead and process.is_alive() and reached(job, process, ahead[0]):
        place = ahead.pop(0)
        after = float(rng.uniform(0, expected.seconds[place]))
        process.join(after)
        if position(job) != place:  # beyond it already
            continue
        held = set[str]() if ends else finished_labels(job)
        if process.is_alive() and kill(job, process, rng):
            if ends:
                process.join()
                held = finished_labels(job)
            size = job.oracle.log.stat().st_size if job.oracle.log.exists() else 0
            where = {"stage": position(job)[1], "after_s": round(after, 3), "victim": job.scenario.victim}
            outcome.kills.append(where | {"held": sorted(held), "log": size})
    process.join(DEADLINE)
    if process.is_alive():
        process.kill()
        process.join()
    return process.exitcode == 0


def reached(job: Job, process: BaseProcess, place: Place) -> bool:
    """Wait until a campaign is at a place or beyond; returns whether it got there in time."""
    deadline = time.monotonic() + DEADLINE
    while process.is_alive() and time.monotonic() < deadline:
        if PLACES.index(position(job)) >= PLACES.index(place):
            return True
        process.join(0.01)
    return False


def kill(job: Job, process: BaseProcess, rng: np.random.Generator) -> bool:
    """Kill what the scenario names; returns whether there was anything to kill."""
    if job.scenario.victim == "ledger":
        pids = backends(job.url)
    elif job.scenario.victim == "worker":
        pids = workers_of_jobs(process) if job.scenario.labels == SLURM else workers_of(process)
    else:
        pids = [process.pid or 0]
    if not pids:
        return False
    with suppress(ProcessLookupError):
        os.kill(int(rng.choice(pids)), signal.SIGKILL)
        return True
    return False


# what is left ---------------------------------------------------------------------------------------------------------


@contextmanager
def ledger(job: Job) -> Iterator[Store | None]:
    """The ledger of a campaign; None where it does not exist yet. A database that was killed is waited for."""
    deadline = time.monotonic() + DEADLINE
    while True:
        try:
            store = Store(job.url, create=False)
            break
        except StoreError as error:
            starting = job.scenario.ledger == "sqlite" or "table" in str(error)
            if starting or time.monotonic() > deadline:
                yield None
                return
            time.sleep(0.2)
    with store:
        yield store


def finished_labels(job: Job) -> set[str]:
    """Ids of candidates whose label stands in the ledger."""
    with ledger(job) as store:
        if store is None or job.settings.name not in store.campaigns():
            return set()
        ids = list(store.candidates(job.settings.name))
        return set(store.evaluations(ids, key_of(job.oracle)))


def position(job: Job) -> Place:
    """The round and the stage that a campaign is at."""
    with ledger(job) as store:
        if store is None or job.settings.name not in store.campaigns():
            return PLACES[0]
        place = History.load(store, job.settings.name).next_stage
        return place if place in PLACES else PLACES[-1]
