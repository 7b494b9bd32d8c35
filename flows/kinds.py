"""Our own oracles and generators, as an installed package would offer its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from generator.substitution import SubstitutionConfig
from loop.registry import GeneratorKind, GeneratorRequest, OracleKind
from oracles.dft.handoff import HandoffConfig
from oracles.dft.oracle import DftConfig
from oracles.mlip import MlipConfig, build_oracle

if TYPE_CHECKING:
    from generator.policy import CrystalFormerGenerator
    from generator.substitution import SubstitutionGenerator
    from oracles.dft.handoff import HandoffOracle
    from oracles.dft.oracle import DftOracle

RELAXED = ("e_above_hull", "energy", "volume", "max_force", "max_stress")  # what the default oracle always measures
ELASTIC = ("bulk_modulus_vrh", "shear_modulus", "youngs_modulus", "poisson_ratio", "elastic_anisotropy")
ELASTIC += ("elastic_stability",)  # type: ignore[assignment]
PHONONS = ("lowest_frequency", "highest_frequency", "dynamically_stable")
ELECTRONS = ("energy", "volume", "magnetic_moment", "band_gap", "band_gap_direct", "dielectric_electronic")
ELECTRONS += ("dielectric_total", "max_force", "max_stress")  # type: ignore[assignment]
PLACED = ("e_above_hull", "hull_entries", "hull_sparse", "hull_phases", "hull_seconds")  # where DFT has a hull


def _measured(config: MlipConfig) -> set[str]:
    found = {*RELAXED}
    found |= {"bulk_modulus"} if config.bulk is not None else set()
    found |= set(ELASTIC) if config.elastic is not None else set()
    return found | (set(PHONONS) if config.phonons is not None else set())


def _dft(config: DftConfig) -> DftOracle:
    from oracles.dft.hull import dft_oracle

    return dft_oracle(config)


def _handoff(config: HandoffConfig) -> HandoffOracle:
    from oracles.dft.handoff import HandoffOracle

    return HandoffOracle(config)


def _crystalformer(request: GeneratorRequest) -> CrystalFormerGenerator:
    from flows.models import load_model
    from generator.policy import CrystalFormerGenerator

    section: Any = request.section
    base = load_model(section.checkpoint, section.device, section.dtype)
    return CrystalFormerGenerator(base, section.proposals, section.finetune)


def _substitution(request: GeneratorRequest) -> SubstitutionGenerator:
    from flows.models import substitution

    return substitution(request.conditions, request.options)


MLIP = OracleKind(build_oracle, _measured, MlipConfig, parallel=True)
DFT = OracleKind(_dft, lambda config: ELECTRONS + (PLACED if config.references else ()), DftConfig)
HANDOFF = OracleKind(_handoff, lambda config: config.ask, HandoffConfig, labels=False)
CRYSTALFORMER = GeneratorKind(_crystalformer)
SUBSTITUTION = GeneratorKind(_substitution, SubstitutionConfig, learns=False)
