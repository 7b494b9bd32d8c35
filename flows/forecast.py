"""What a campaign would do and take, before it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.config import MLIP, CampaignConfig
from flows.known_labels import read_known_labels
from flows.provenance import cores
from flows.registry import GENERATORS
from loop.errors import ConfigError, StoreError
from loop.history import History
from loop.settings import STAGES
from loop.stopping import stop_reason
from loop.store import Store

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.build import Builder
    from generator.policy import CrystalFormerGenerator
    from loop.contracts import Reward
    from loop.values import Candidate

PROBE = 32  # crystals drawn and scored to estimate times
PROBE_LABELS = 2
ENOUGH = 5  # labels of a ledger whose mean cost says more than a probe
DFT = "dft-"  # names of DFT oracles begin so


@dataclass(frozen=True)
class Rest:
    """What of a campaign is left: rounds whose stage is not done, the baseline round among them, and oracle calls."""

    tuning: int  # rounds that learn, which the baseline round does not
    proposing: int
    labelling: int
    calls: int  # at most
    done: str = ""  # what is done, in words; empty where nothing is


def rest_of(config: CampaignConfig, directory: Path | None = None) -> Rest:
    """All of a campaign; less what is done, where the folder or the shared ledger holds it already."""
    settings = config.campaign
    calls = settings.round0_budget + settings.rounds * settings.budget
    whole = Rest(settings.rounds, settings.rounds + 1, settings.rounds + 1, _at_most(calls, settings.max_calls, 0))
    if directory is None:
        return whole
    try:
        store = Store(config.ledger(directory), create=False)
    except (ConfigError, StoreError):  # none yet, or none that is reached from here
        return whole
    with store:
        known = settings.name in store.campaigns()
        return _less_done(config, History.load(store, settings.name)) if known else whole


def _less_done(config: CampaignConfig, history: History) -> Rest:
    settings = config.campaign
    history.settings = settings  # stop rules may have changed since

    def open_rounds(stage: str) -> list[int]:
        return [round for round in range(settings.rounds + 1) if (round, stage) not in history.done]

    labelling = open_rounds("label")
    calls = 0
    for round in labelling:
        if (round, "select") in history.done:
            calls += sum(pick.candidate_id not in history.evaluations for pick in history.picks(round))
        else:
            calls += settings.budget if round else settings.round0_budget
    rounds = settings.rounds + 1 - len(open_rounds("report"))
    done = f"{rounds} of {settings.rounds + 1} rounds, the baseline round among them, and {history.paid} oracle calls: "
    if history.next_stage[1] == STAGES[0] and (reason := stop_reason(history)):
        return Rest(0, 0, 0, 0, f"{done}it goes on no more, for {reason}")
    return Rest(
        len([round for round in open_rounds("finetune") if round]),
        len(open_rounds("propose")),
        len(labelling),
        _at_most(calls, settings.max_calls, history.paid),
        f"{done}what follows is the rest",
    )


def _at_most(calls: int, limit: int | None, paid: int) -> int:
    return calls if limit is None else max(0, min(calls, limit - paid))


def forecast(config: CampaignConfig, rest: Rest | None = None) -> dict[str, Any]:
    """Counts: rounds, crystals drawn and scored, oracle calls at most, known labels.

    Args:
        config: of the campaign.
        rest: what of it is left (`rest_of`); None: all.

    Raises:
        InputError: the known labels cannot be used.
    """
    settings, rest = config.campaign, rest or rest_of(config)
    return {
        "campaign": settings.name,
        "rounds": f"{settings.rounds} after the baseline round",
        **({"done": rest.done} if rest.done else {}),
        **_learning(config, rest),
        "crystals_proposed": rest.proposing * settings.pool,
        "oracle_calls": rest.calls,
        "oracle": config.oracle.mlip.potential if config.oracle.kind == MLIP else config.oracle.kind,
        **_tiers(config, rest),
        **_known(config),
    }


def _learning(config: CampaignConfig, rest: Rest) -> dict[str, Any]:
    """Crystals that are rewarded; how many the generator of another package needs is not known beforehand."""
    finetune, own = config.generator.finetune, config.generator.kind == "crystalformer"
    if not own and GENERATORS.get(config.generator.kind).learns:
        return {}
    return {"reward_evaluations": own * rest.tuning * finetune.iterations * finetune.batch_size}


def _known(config: CampaignConfig) -> dict[str, Any]:
    """What surrogates are trained on beside the campaign's labels."""
    if config.surrogate.known is None:
        return {}
    known = read_known_labels(config.surrogate.known, config.surrogate.gp.properties)
    told = f"rows that are unreadable: {known.unreadable}, without a value: {known.empty}"
    if known.contradicting:
        names = ", ".join(known.contradicting[:3])
        told += f"; {len(known.contradicting)} with different values, whose mean is learned: {names}"
    return {"known_labels": f"{len(known.candidates)} crystals ({told})"}


def _tiers(config: CampaignConfig, rest: Rest) -> dict[str, Any]:
    """Calls of costlier oracles, at most."""
    rounds, oracle = rest.labelling, config.oracle
    found: dict[str, Any] = {}
    if oracle.dft is not None:
        found |= {"dft_calls": rounds * oracle.dft.best, "dft": f"GPAW, preset {oracle.dft.preset}"}
    if oracle.handoff is not None:
        found["handed_out"] = rounds * oracle.handoff.best
    if oracle.second_opinion is not None:
        found["second_opinion"] = f"{oracle.second_opinion.potential}, on what is stable"
    return found


def label_costs(config: CampaignConfig, directory: Path) -> dict[str, tuple[int, float]]:
    """Labels that the ledger holds, and seconds of one on average, by name of the oracle; of all its campaigns.

    Empty where there is no ledger yet, or none that can be read from here.
    """
    spent: dict[str, tuple[int, float]] = {}
    with suppress(ConfigError, StoreError), Store(config.ledger(directory), create=False) as store:
        for campaign in store.campaigns():
            for cost in store.costs(campaign):
                labels, seconds = spent.get(cost.oracle, (0, 0.0))
                spent[cost.oracle] = labels + cost.labels, seconds + cost.seconds
    return {oracle: (labels, seconds / labels) for oracle, (labels, seconds) in spent.items() if labels}


def measured(config: CampaignConfig, directory: Path, plan: dict[str, Any], rest: Rest) -> dict[str, Any]:
    """Minutes that the stages would take on this machine: a rough guess.

    Labels at what those in the ledger have cost, where it holds enough of the same oracle, DFT likewise; else from a
    probe, as all other stages: it draws, scores and learns from a few crystals, and labels two. Relaxations differ by a
    factor of ten.

    Args:
        config: of the campaign.
        directory: of its results.
        plan: its `forecast`.
        rest: what of it is left.
    """
    from flows import build
    from generator.policy import CrystalFormerGenerator

    builder = build.Builder(config)
    generator, reward = builder.proposer, builder.reward_for(0)
    drawn = generator.propose(PROBE, seed=0, round=0)
    work: dict[str, Callable[[], object]] = {
        "propose": lambda: generator.propose(PROBE, seed=1, round=0),
        "screen": lambda: builder.screen(drawn),
    }
    builder.screen(drawn)  # warms up
    tuning = 0.0
    if isinstance(generator, CrystalFormerGenerator) and plan.get("reward_evaluations"):
        tuning = rest.tuning * learning_seconds(generator, reward)
    seconds = {name: timed(job) for name, job in work.items()}
    known = {name: cost for name, cost in label_costs(config, directory).items() if cost[0] >= ENOUGH}
    labels, each = known.get(builder.labelling.name) or probed(builder, drawn)
    minutes = {
        "finetune": tuning / 60,
        "propose_and_select": plan["crystals_proposed"] * (seconds["propose"] + 2 * seconds["screen"]) / PROBE / 60,
        "label": plan["oracle_calls"] * each / min(builder.workers, config.campaign.chunk) / 60,
    }
    paid_for_dft = [seconds for name, (_, seconds) in known.items() if name.startswith(DFT)]
    if paid_for_dft and "dft_calls" in plan:
        minutes["dft"] = plan["dft_calls"] * paid_for_dft[0] / 60
    minutes["total"] = sum(minutes.values())
    source = f"{labels} labels of {'the ledger' if builder.labelling.name in known else 'a probe'}"
    told = {"seconds_per_label": round(each, 3), "seconds_per_label_from": source}
    return {"cores": cores(), **told, "minutes_estimated": {name: round(value, 1) for name, value in minutes.items()}}


def probed(builder: Builder, drawn: Sequence[Candidate]) -> tuple[int, float]:
    """How many crystals were labelled to see how long one takes, and the seconds of one by one worker."""
    valid = [c for c in drawn if builder.config.validity.reason(c.structure) is None][:PROBE_LABELS] or drawn[:1]
    builder.labelling.evaluate(valid[:1])  # warms up
    spent = [evaluation.cost.seconds for evaluation in builder.labelling.evaluate(valid)]
    return len(valid), sum(spent) / len(valid)


def learning_seconds(generator: CrystalFormerGenerator, reward: Reward) -> float:
    """Seconds of one round's fine-tuning: what it begins with, and its iterations, from one and from two of them.

    A single iteration as the measure of all counted the beginning with each of them, which is most of a small campaign.
    """
    wanted, least = generator.finetune, min(PROBE, generator.finetune.batch_size)
    part = min(wanted.minibatch_size, max(1, least // 2))

    def run(iterations: int) -> float:
        generator.finetune = replace(wanted, iterations=iterations, batch_size=least, minibatch_size=part)
        return timed(lambda: generator.learn(reward, seed=iterations, round=0))

    run(1)  # warms up
    once, twice = run(1), run(2)
    each = max(twice - once, 0.0)
    generator.finetune = wanted
    return max(once - each, 0.0) + wanted.iterations * each * wanted.batch_size / least


def timed(job: Callable[[], object]) -> float:
    """Seconds that a job takes."""
    began = time.monotonic()
    job()
    return time.monotonic() - began
