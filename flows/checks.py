"""What a run would refuse of a configuration, found from the configuration alone; `flows.preflight` loads the parts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows import scale
from flows.config import MLIP
from flows.configfile import listed
from flows.ranges import out_of_range
from loop.database import as_url
from loop.errors import ConfigError, DiscoveryLoopError
from loop.properties import spec_of
from loop.settings import check_name
from loop.validity import NOBLE_GASES, RADIOACTIVE

if TYPE_CHECKING:
    from flows.config import CampaignConfig
    from generator.constraints.conditions import Sampling

# of a round's report, for stop rules; those of a prediction begin with the property's name
METRICS = {"validity", "uniqueness", "novelty", "replay", "f_block_share", "element_concentration"}
METRICS |= {"kl", "iterations", "reward_first", "reward_last", "stable_total", "stable_new_total", "best_objective"}
METRICS |= {"baseline_hit_rate", "engine_hit_rate", "shadow_hit_rate", "acceleration", "gain_over_baseline"}


def refuse(found: list[str]) -> None:
    """Raise what was found wrong, if anything was.

    Raises:
        ConfigError: a line each.
    """
    if found:
        raise ConfigError(listed(found, "the campaign cannot run"))


def problems(config: CampaignConfig, *, elsewhere: bool = False) -> list[str]:
    """What is wrong with the settings by themselves, and with the files and devices that they name."""
    found = [*out_of_range(config), *told("campaign.name", lambda: check_name(config.campaign.name))]
    found += [*_budgets(config), *_rules(config), *_units(config), *_products(config), *_conditions(config)]
    if elsewhere:
        return found
    return [*found, *_potentials(config), *_files(config), *_devices(config), *scale.problems(config.scale)]


def told(key: str, part: Callable[[], object]) -> list[str]:
    """What making a part of the campaign refuses, under its key; empty where it can be made."""
    try:
        part()
    except DiscoveryLoopError as error:
        return [f"{key}: {error}"]
    return []


def _budgets(config: CampaignConfig) -> Iterator[str]:
    """More labels per round than crystals are proposed in it cannot be spent."""
    settings = config.campaign
    for name in ("budget", "baseline_budget"):
        value = getattr(settings, name)
        if value is not None and value > settings.pool:
            yield f"campaign.{name}: expected at most campaign.pool, which is {settings.pool}, got {value}"
    if settings.max_calls is not None and settings.max_calls < settings.round0_budget:
        yield (
            f"campaign.max_calls: {settings.max_calls} calls end within the baseline round, which takes "
            f"{settings.round0_budget}: nothing would be learned"
        )
    by_potential = config.oracle.kind == MLIP and settings.stability == "e_above_hull"
    if by_potential and config.oracle.mlip.lowest >= settings.threshold:
        yield (
            f"oracle.mlip.lowest: {config.oracle.mlip.lowest:g} eV/atom refuses all that campaign.threshold "
            f"{settings.threshold:g} calls stable"
        )


def _rules(config: CampaignConfig) -> Iterator[str]:
    """A stop rule on a number that no report holds would never act."""
    predicted = tuple(f"{item.name}_" for item in config.surrogate.gp.properties)
    for rule in ("stop_below", "stop_above"):
        for name in getattr(config.campaign, rule):
            if re.sub("_(low|high)$", "", name) not in METRICS and not name.startswith(predicted):
                yield f"campaign.{rule}.{name}: no report holds such a number; there are {', '.join(sorted(METRICS))}"


def _units(config: CampaignConfig) -> Iterator[str]:
    """A property is predicted in the unit in which it is measured: labels carry no other."""
    for at, item in enumerate(config.surrogate.gp.properties):
        unit = spec_of(item.name).unit
        if unit and item.unit != unit:
            yield f"surrogate.gp.properties.{at}: {item.name} is measured in {unit}, got the unit {item.unit!r}"


def _products(config: CampaignConfig) -> Iterator[str]:
    """A product is learned from its factors."""
    from flows.surrogate import product_of

    try:
        product_of(config.surrogate.gp.properties)
    except ConfigError as error:
        yield str(error)


def _conditions(config: CampaignConfig) -> Iterator[str]:
    """Conditions that make no sense together, or whose crystals the rules of validity would all drop."""
    for name in ("proposals", "finetune"):
        section = getattr(config.generator, name)
        if wrong := told(f"generator.{name}", lambda section=section: section.conditions):  # type: ignore[misc]
            yield from wrong
        else:
            yield from _dropped(config, f"generator.{name}", section.conditions)


def _dropped(config: CampaignConfig, key: str, conditions: Sampling) -> Iterator[str]:
    from generator.constraints.conditions import names, numbers

    rules = config.validity
    dropped = {
        "validity.radioactive": frozenset() if rules.radioactive else frozenset(RADIOACTIVE),
        "validity.noble_gases": frozenset() if rules.noble_gases else frozenset(NOBLE_GASES),
        "validity.exclude": frozenset(numbers(rules.exclude)),
        "validity.elements": frozenset(range(1, 119)) - frozenset(numbers(rules.elements or range(1, 119))),
    }
    for rule, elements in dropped.items():
        if lost := conditions.required & elements:
            yield f"{key}: {', '.join(names(lost))} must occur, but {rule} drops every crystal that holds it"
    if not conditions.allowed - frozenset().union(*dropped.values()):
        yield f"{key}: every element that may occur is dropped by the rules of validity"
    if rules.max_elements is not None and len(conditions.required) > rules.max_elements:
        count = len(conditions.required)
        yield f"{key}: {count} elements must occur, but validity.max_elements is {rules.max_elements}"


def _potentials(config: CampaignConfig) -> Iterator[str]:
    """Potentials have names that stand for one; packages may add some."""
    from oracles.potentials.base import PotentialRequest
    from oracles.potentials.loading import registered_kind, uncorrected

    oracle = config.oracle
    named = {"mlip": oracle.mlip if oracle.kind == MLIP else None, "screen": oracle.screen}
    for key, asked in (named | {"second_opinion": oracle.second_opinion}).items():
        if asked is not None:
            request = PotentialRequest(uncorrected(asked.potential), environment=asked.environment)
            yield from told(f"oracle.{key}.potential", partial(registered_kind, request))


def _files(config: CampaignConfig) -> Iterator[str]:
    """Files that are named must be there."""
    from generator.checkpoint import DESCRIPTION, WEIGHTS
    from oracles.mlip import DEMAND

    checkpoint, reference = config.generator.checkpoint, config.novelty.reference
    if checkpoint is not None and not all((checkpoint / name).is_file() for name in (DESCRIPTION, WEIGHTS)):
        yield f"generator.checkpoint: no checkpoint in {checkpoint}: expected a folder with {DESCRIPTION} and {WEIGHTS}"
    oracle = config.oracle
    named: dict[str, str | Path | None]
    named = {"novelty.reference": reference if isinstance(reference, Path) else None}
    table = None if oracle.mlip.references == DEMAND else oracle.mlip.references
    named |= {"surrogate.known": config.surrogate.known, "oracle.mlip.references": table}
    named |= {"oracle.screen.references": None if oracle.screen is None else oracle.screen.references}
    for key, path in named.items():
        if path is not None and not Path(path).exists():
            yield f"{key}: there is no {path}"
    yield from told("store", lambda: config.ledger(Path()))
    if config.store and "://" in config.store and (password := as_url(config.store).password) and "${" not in password:
        yield (
            "store: a password stands in the configuration, which the results keep: put it into the environment and "
            "write ${DB_PASSWORD} in its place"
        )


def _devices(config: CampaignConfig) -> Iterator[str]:
    """Devices must be there, too."""
    oracle = config.oracle
    named = {"generator.device": config.generator.device, "oracle.mlip.device": oracle.mlip.device}
    named |= {"oracle.screen.device": None if oracle.screen is None else oracle.screen.device}
    for key, device in named.items():
        if device is None or device == "cpu":
            continue
        if not re.fullmatch(r"cuda(:\d+)?", device):
            yield f"{key}: expected cpu or cuda, got {device!r}"
            continue
        import torch

        at = int(device.partition(":")[2] or 0)
        if at >= torch.cuda.device_count():
            seen = torch.cuda.device_count() or "no"
            yield (
                f"{key}: {device} was asked for, but this machine shows {seen} CUDA devices: use cpu, or validate with "
                "--elsewhere where the campaign will run on another machine"
            )
