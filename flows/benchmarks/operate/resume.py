"""discovery-loop benchmark resume: campaigns that are killed again and again end in the list of one that was not.

Victims of SIGKILL: the process of the campaign (engine), a process that labels for it (worker), and the database's
process that serves it (ledger, PostgreSQL only). When: round and stage are drawn, each alike, and in it a moment within
the seconds that it takes undisturbed; also before the campaign is in the ledger, and after its last event is. After
each kill the ledger is read; a label that it held and that is computed again later is paid twice. One that it held and
no longer holds is lost, as is one that was computed and does not stand there in the end. Of a campaign that ends
otherwise the folder is kept beside the record.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import sqlalchemy as sa

from flows.benchmarks.harness import write_benchmark
from flows.benchmarks.operate.world import SleepingOracle, calls, components
from loop.campaign import Campaign
from loop.contracts import Oracle
from loop.database import as_url
from loop.errors import StoreError
from loop.history import History
from loop.running import InTurn, Runner
from loop.settings import STAGES, CampaignSettings
from loop.stages import Labelled
from loop.store import Store
from loop.tiers import key_of

SETTINGS = CampaignSettings(name="reference", rounds=2, pool=24, budget=5, chunk=2)
STAGE_SECONDS, LABEL_SECONDS = 0.2, 0.08
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
class Scenario:
    """Where a campaign runs, and what is killed."""

    ledger: str  # sqlite or postgresql
    engine: str  # plain or prefect
    labels: str  # here, processes or dask
    victim: str  # engine, worker or ledger


@dataclass(frozen=True)
class ResumeBenchmark:
    """How much is killed: as many as `kills` at least, and at least one campaign of each scenario."""

    kills: int = 200
    database: str | None = None  # URL of a PostgreSQL database on this machine; None: SQLite alone
    prefect: bool = True
    seed: int = 0
    minutes: float = float("inf")

    @property
    def scenarios(self) -> list[Scenario]:
        """All that make sense: without workers none can be killed, and only PostgreSQL has a process."""
        ledgers = ("sqlite", "postgresql") if self.database else ("sqlite",)
        engines = ("plain", "prefect") if self.prefect else ("plain",)
        every = (Scenario(*names) for names in product(ledgers, engines, LABELS, ("engine", "worker", "ledger")))
        return [item for item in every if not (
            (item.victim == "worker" and item.labels == "here") or (item.victim == "ledger" and item.ledger == "sqlite")
        )]  # fmt: skip


LABELS = ("here", "processes", "dask")


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


@dataclass
class Outcome:
    """What became of one campaign."""

    scenario: Scenario
    kills: list[dict[str, Any]] = field(default_factory=list)
    calls: int = 0
    labels: int = 0
    paid_twice: int = 0
    lost: int = 0
    same_list: bool = False


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
        elif job.scenario.labels == "dask":
            from flows import scale
            from flows.dask_oracle import DaskOracle

            client = stack.enter_context(scale.connected(scale.Scale(workers=WORKERS), job.folder))
            yield DaskOracle(partial(replace, job.oracle), key_of(job.oracle), client, job.url)
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
            record = write_benchmark(output, summary(outcomes, config, time.monotonic() - began))
    return record


def in_turns(scenarios: Sequence[Scenario]) -> list[Scenario]:
    """Each scenario once, and before it one of those that start quickly."""
    quick = [item for item in scenarios if item.engine == "plain" and item.labels == "here"]
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
    """Whether workers live only while they label: killed once a round, since a crystal that kills two is given up."""
    return scenario.labels == "processes" and scenario.victim == "worker"


def one_life(
    job: Job, process: BaseProcess, outcome: Outcome, ahead: list[Place], expected: Reference, rng: np.random.Generator
) -> bool:
    """Let a process live and kill at the places that lie ahead; returns whether the campaign is finished."""
    ends = job.scenario.victim == "engine"  # else it continues, and the ledger has to be read before
    while ahead and process.is_alive() and reached(job, process, ahead[0]):
        place = ahead.pop(0)
        if pooled(job.scenario) and position(job) != place:  # of another round already: see `drawn`
            continue
        after = float(rng.uniform(0, expected.seconds[place]))
        process.join(after)
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
        pids = workers_of(process)
    else:
        pids = [process.pid or 0]
    if not pids:
        return False
    with suppress(ProcessLookupError):
        os.kill(int(rng.choice(pids)), signal.SIGKILL)
        return True
    return False


def workers_of(process: BaseProcess) -> list[int]:
    """Processes that label for a campaign's process."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [member.pid for member in family if "spawn_main" in command_of(member)]


def command_of(process: psutil.Process) -> str:
    """How a process was called; nothing where it has ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""


def backends(url: str) -> list[int]:
    """Processes of the database that serve a campaign."""
    engine = sa.create_engine(as_url(url), poolclass=sa.NullPool)
    query = "select pid from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    query += " and backend_type = 'client backend'"
    with suppress(sa.exc.SQLAlchemyError), engine.connect() as connection:
        return list(connection.execute(sa.text(query)).scalars())
    return []


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


@contextmanager
def prefect_server(folder: Path, wanted: bool) -> Iterator[None]:
    """A Prefect server of this benchmark's own, on the loopback address."""
    if not wanted:
        yield
        return
    from flows import server

    with socket.socket() as probe:
        probe.bind((server.HOST, 0))
        port = probe.getsockname()[1]
    here = server.Local(folder / "server", port)
    here.home.mkdir(parents=True)
    before = os.environ.copy()
    process = server.start(here, "server", "prefect", "server", "start", "--host", server.HOST, "--port", str(port))
    try:
        server.wait_for(lambda: server.healthy(here.api), process, here.home / "server.log", "the Prefect server")
        os.environ.update({"PREFECT_HOME": str(here.home), "PREFECT_API_URL": here.api})
        os.environ["PREFECT_LOGGING_LEVEL"] = "CRITICAL"
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        server.end(server.read_state(here.state)["processes"]["server"])


def summary(outcomes: Sequence[Outcome], config: ResumeBenchmark, seconds: float) -> dict[str, Any]:
    """The record: what was killed, and what became of it."""
    kills = [kill for outcome in outcomes for kill in outcome.kills]
    where = Counter[str]()
    for outcome in outcomes:
        for name, value in asdict(outcome.scenario).items():
            where[f"{name}: {value}"] += len(outcome.kills)
    labels, made = sum(outcome.labels for outcome in outcomes), sum(outcome.calls for outcome in outcomes)
    return {
        "benchmark": "resume",
        "protocol": __doc__,
        "settings": {**asdict(config), "database": bool(config.database)},
        "seconds": seconds,
        "results": {
            "kills": len(kills),
            "campaigns": len(outcomes),
            "campaigns_with_the_same_list": sum(outcome.same_list for outcome in outcomes),
            "labels": labels,
            "labels_paid_twice": sum(outcome.paid_twice for outcome in outcomes),
            "labels_lost": sum(outcome.lost for outcome in outcomes),
            "calls_cut_off": made - labels,
            "kills_by_stage": dict(sorted(Counter(kill["stage"] for kill in kills).items())),
            "kills_by_place": dict(sorted(where.items())),
        },
    }


def write_kills(output: Path, outcomes: Sequence[Outcome]) -> None:
    """One line a kill."""
    from loop.io.files import write_text

    lines = ["campaign,ledger,engine,labels,victim,stage,after_s,labels_held,same_list"]
    for number, outcome in enumerate(outcomes):
        place = ",".join(asdict(outcome.scenario).values())
        for kill in outcome.kills:
            held = len(kill["held"])
            lines.append(f"{number},{place},{kill['stage']},{kill['after_s']},{held},{outcome.same_list}")
    write_text(output / "kills.csv", "\n".join(lines) + "\n")
