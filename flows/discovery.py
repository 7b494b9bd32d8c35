"""The Prefect flow `discovery-loop`: the same campaign as ``discovery-loop run``, watched.

Prefect shows and schedules; the truth is the campaign's own ledger. So nothing is cached or persisted here, and a
campaign that was cut off resumes with a new run of the same results folder.
"""
# no `from __future__ import annotations` here: Prefect 3.8 cannot resolve the flow's parameters with it when served

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect import Task, flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.states import Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import approval_form, artifacts, notify
from flows.hiding import hidden
from flows.run_form import RunGoal, Symbol
from loop.approval import Answer, Question
from loop.campaign import Campaign
from loop.errors import DiscoveryLoopError
from loop.settings import STAGES
from loop.stages import Labelled, Reported, Step
from loop.values import Candidate

LABEL_THREADS = 8  # pieces in flight; the processes behind the oracle decide how many really run


def run_name() -> str:
    """Name of a flow run: its configuration's, and when it was to start."""
    begun = runtime.flow_run.scheduled_start_time
    return f"{Path(str(runtime.flow_run.parameters['config'])).stem} {begun:%Y-%m-%d %H:%M:%S}"


def run_stage(campaign: Campaign, round: int, stage: str) -> Step:
    """One stage of one round."""
    return campaign.run_stage(round, stage)


def stage_task(stage: str) -> Task[[Campaign, int, str], Step]:
    """The task of a stage."""
    made = task(name=stage, task_run_name="round {round}: {stage}", cache_policy=NO_CACHE, persist_result=False)
    return made(run_stage)


TASKS = {stage: stage_task(stage) for stage in STAGES if stage != Labelled.stage}


@task(name="label", task_run_name="round {round}: label piece {piece}", cache_policy=NO_CACHE, persist_result=False)
def label_piece(campaign: Campaign, round: int, piece: int, candidates: list[Candidate]) -> int:  # noqa: ARG001
    """Label some candidates through the ledger; round and piece are for the task's name."""
    return len(campaign.label(candidates))


class AsTasks:
    """`loop.running.Runner`: each stage is a task; that of labels is one task per batch, side by side.

    Args:
        blocks: notification blocks that get the questions.
    """

    def __init__(self, blocks: Sequence[str] = ()) -> None:
        self._blocks = blocks

    def stage(self, campaign: Campaign, round: int, stage: str) -> Step:
        """Run a stage; labels are no task themselves, for their batches are."""
        return campaign.run_stage(round, stage) if stage == Labelled.stage else TASKS[stage](campaign, round, stage)

    def label(self, campaign: Campaign, round: int, batches: Sequence[list[Candidate]]) -> None:
        """Label all batches, and raise what one of them raised."""
        futures = [label_piece.submit(campaign, round, number, batch) for number, batch in enumerate(batches)]
        wait(futures)
        for future in futures:
            future.result()

    def ask(self, question: Question) -> Answer:
        """Pause the flow run with a form."""
        logger = get_run_logger()
        logger.info("%s Answer here, by `discovery-loop approve`, or in %s", question.text, question.path)
        notify.send(self._blocks, f"{question.campaign} asks", question.text, logger)
        answer = approval_form.decide(question, logger)
        logger.info("%s decided: %s, %d crystals", answer.by, answer.decision, answer.crystals)
        return answer


@flow(
    name="discovery-loop",
    flow_run_name=run_name,
    task_runner=ThreadPoolTaskRunner(max_workers=LABEL_THREADS),  # type: ignore[arg-type]
    persist_result=False,
    validate_parameters=True,
)
def discovery_loop(
    config: str = "quickstart",
    results: str | None = None,
    goal: RunGoal | None = None,
    elements: list[Symbol] | None = None,
    required: list[Symbol] | None = None,
    rounds: Annotated[int, Field(ge=1)] | None = None,
    budget: Annotated[int, Field(ge=1)] | None = None,
    seed: Annotated[int, Field(ge=0)] | None = None,
    overrides: dict[str, Any] | None = None,
) -> Any:
    """Discover crystals in a closed loop.

    Args:
        config: Path of a campaign's YAML file, or the name of a preset (quickstart, quickstart-dft, dielectric, smoke,
            single-gpu, hpc).
        results: Folder of the results. A campaign that it holds is continued. Default: results/NAME.
        goal: What is looked for; what is left empty stays as configured. A run ends at once where its campaign does not
            measure the property: volume always is, bulk_modulus in all presets but dielectric; shear_modulus,
            youngs_modulus and poisson_ratio need oracle.mlip.elastic, lowest_frequency oracle.mlip.phonons, and what
            begins with dft_ needs oracle.dft, as in quickstart-dft.
        elements: Elements that may occur, for learning and for proposals, for example Li, O, F. Default: as configured.
        required: Elements that each crystal has to contain. Default: as configured.
        rounds: Rounds after round 0, which measures the untuned generator. Default: as configured.
        budget: Oracle calls per round. Default: as configured.
        seed: Of everything random. Default: as configured.
        overrides: Further settings to change, by dotted key, for example {"campaign.threshold": 0.05}.
    """
    logger = get_run_logger()
    asked: dict[str, Any] = {"campaign.rounds": rounds, "campaign.budget": budget, "campaign.seed": seed}
    for part in ("finetune", "proposals"):
        asked |= {f"generator.{part}.sampling.elements": elements, f"generator.{part}.sampling.require": required}
    given = {key: value for key, value in asked.items() if value is not None}
    given |= {} if goal is None else goal.settings()
    try:
        return run_watched(config, results, given | (overrides or {}), logger)
    except DiscoveryLoopError as error:  # one message instead of a traceback
        logger.error(hidden(str(error)))
        return Failed(message=hidden(str(error)))


def run_watched(
    source: str, results: str | None, overrides: dict[str, Any], logger: artifacts.Logger
) -> dict[str, Any]:
    """Run all that is left of a campaign as tasks, and show it."""
    from flows import build, outcome
    from flows.config import read_config

    config = read_config(source, overrides)
    directory = config.directory(results)
    watcher = artifacts.Watcher(config.campaign.name, logger)
    runner = AsTasks(config.notify)
    with (
        notify.of_failure(config.notify, config.campaign.name, logger),
        build.open_campaign(config, directory, progress=watcher.progress, runner=runner) as campaign,
    ):
        watcher.begins(campaign)
        for step in campaign.steps():
            if step.stage == Reported.stage:
                outcome.write_report(campaign.history, directory)  # people look while it runs
            watcher.staged(campaign, step)
        summary = outcome.write_results(campaign.history, directory)
        watcher.finished(campaign, summary)
    notify.send(config.notify, f"{config.campaign.name} is done", artifacts.told_of(summary), logger)
    return summary
