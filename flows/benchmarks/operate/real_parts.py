"""Shipped parts and oracles that really compute: for `benchmark growth` and `benchmark scale --oracle chgnet`."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flows.benchmarks.operate.world import ANIONS, METALS, components
from flows.build import Builder
from flows.config import CampaignConfig, GeneratorSection
from flows.dask_oracle import Build
from flows.models import substitution
from generator.constraints.conditions import Sampling
from generator.rl.config import FinetuneConfig
from generator.substitution import SubstitutionConfig
from loop.campaign import Components
from loop.screening import HullScreen
from loop.settings import CampaignSettings
from loop.values import OK, Candidate, Cost, Evaluation, Quantity, failed
from oracles.mlip import MlipConfig, build_oracle

LEARNING = FinetuneConfig(iterations=2, batch_size=64, minibatch_size=32)  # a round's costs do not grow with rounds
NOTHING = failed("energy")
SMALL = 8  # atoms of a cell at most: CHGNet's label of such a crystal takes some tenths of a second of a core
GOAL: dict[str, Any] = {"objective": "volume", "goal": "minimise", "chunk": 50}  # which every crystal has


@contextmanager
def real_components(campaign: CampaignSettings, folder: Path) -> Iterator[Components]:
    """Shipped generator, CHGNet's screen and features, Gaussian processes with forests, BoTorch's selection."""
    generator = GeneratorSection(finetune=LEARNING)
    builder = Builder(CampaignConfig(campaign=campaign, generator=generator), folder)
    try:
        oracle = StaticOracle(folder / "calls", builder.screen)
        yield replace(builder.components(), oracle=oracle, rehull=None, phases=None)
    finally:
        builder.close()


def relaxed_components() -> tuple[Build, Components]:
    """CHGNet's default label, as workers make it, and a campaign that has small crystals labelled by it.

    The crystals are made by ion substitution; the surrogate is made up and fits in no time.
    """
    build = partial(build_oracle, MlipConfig(potential="chgnet"))
    generator = substitution(Sampling(elements=(*METALS, *ANIONS)), SubstitutionConfig(max_atoms=SMALL))
    return build, replace(components(build()), generator=generator)


@dataclass
class StaticOracle:
    """Energy above the hull and volume of crystals as they are drawn, by the screening potential.

    Args:
        log: file that gets the id of each crystal that is labelled.
        screen: gives the energies.
    """

    log: Path
    screen: HullScreen
    name: str = "as-drawn@1"
    settings_hash: str = "0" * 8

    def evaluate(self, candidates: Sequence[Candidate]) -> list[Evaluation]:
        """One evaluation per candidate, in order."""
        began = time.perf_counter()
        above = self.screen(candidates)
        took = (time.perf_counter() - began) / max(1, len(candidates))
        with self.log.open("a", encoding="utf-8") as file:
            file.writelines(f"{candidate.id}{os.linesep}" for candidate in candidates)
        return [self._found(*pair, took) for pair in zip(candidates, map(float, above), strict=True)]

    def _found(self, candidate: Candidate, above: float, seconds: float) -> Evaluation:
        about = candidate.id, self.name, self.settings_hash
        if above != above:  # NaN: no energy
            return Evaluation(*about, NOTHING, cost=Cost(seconds))
        volume = candidate.structure.volume / len(candidate.structure)
        found = {"e_above_hull": Quantity(above, "eV/atom"), "volume": Quantity(volume, "A^3/atom")}
        return Evaluation(*about, OK, found, self.screen.energy_type, candidate.structure, cost=Cost(seconds))
