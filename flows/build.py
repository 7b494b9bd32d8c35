"""Configuration to concrete objects: the only place that knows the concrete classes of the rooms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from flows import configfile, scale
from flows.checks import problems, refuse
from flows.config import CONFIG_FILE, MLIP, CampaignConfig, DftTier, HandoffTier, check_same
from flows.known_labels import read_known_labels
from flows.ledger import open_ledger
from flows.novelty import shipped_novelty
from flows.parallel import ParallelOracle
from flows.provenance import cores, provenance
from flows.registry import GENERATORS, ORACLES
from flows.rehull import Rehuller
from flows.surrogate import AnyCampaignSurrogate, campaign_surrogate
from generator.constraints.conditions import Sampling, names, symbols
from generator.policy import CrystalFormerGenerator
from loop.campaign import Campaign, Components
from loop.contracts import Choosy, Generator, HullOracle, Oracle, Progress, Reward
from loop.database import as_url
from loop.errors import ConfigError
from loop.history import SECOND_OPINION
from loop.io.files import make_folder
from loop.known import KnownCrystals
from loop.novelty import NoveltyIndex
from loop.registry import GeneratorRequest
from loop.reward import PropertyReward, RewardInputs
from loop.running import Runner
from loop.screening import HullScreen
from loop.tiers import HandOff, Tier, key_of
from loop.values import PRODUCT
from oracles.cheap import CheapPotential, ScreenConfig
from oracles.mlip import PotentialOracle, references_of
from oracles.opinion import OpinionConfig, require_other
from oracles.potentials.base import Potential
from oracles.potentials.loading import potential_of
from oracles.references.hull_on_demand import DemandHull
from surrogates.acquisition import PoolAcquisition
from surrogates.features import FeatureExtractor, default_blocks
from surrogates.steps import StepAcquisition

TYPICAL = 128  # crystals of the base from which the surrogate's input scaling is taken


@contextmanager
def open_campaign(
    config: CampaignConfig,
    directory: Path,
    progress: Progress | None = None,
    *,
    runner: Runner | None = None,
    resume: bool = False,
) -> Iterator[Campaign]:
    """The campaign of a results folder, begun or continued; leaving ends its worker processes.

    Args:
        config: its settings.
        directory: the results folder.
        progress: called often.
        runner: where stages and labels are computed; default: here, one after the other.
        resume: it was begun before, so that a missing ledger is an error.

    Raises:
        ConfigError: a new campaign's settings make no sense, or the folder holds a campaign with other ones.
        StoreError: another process works in the folder, the ledger cannot be used, or it does not hold the campaign
            whose results the folder holds.
    """
    path, begun = directory / CONFIG_FILE, False
    new = not path.exists()
    if new:
        refuse(problems(config))
    make_folder(directory)
    check_same(config, directory, resume=resume)
    about = {"config": config.model_dump(mode="json"), "provenance": provenance()}
    with open_ledger(config, directory, resume=resume) as store:
        configfile.dump(config, path)  # before anything slow: a run that is killed at once can be resumed
        try:
            with (
                components(config, directory) as made,
                Campaign(
                    config.campaign, made, store, directory, progress=progress, runner=runner, about=about
                ) as campaign,
            ):
                begun = True
                yield campaign
        except Exception:
            if new and not begun:  # what could not begin may be begun with other settings
                path.unlink(missing_ok=True)
            raise


@contextmanager
def components(config: CampaignConfig, directory: Path) -> Iterator[Components]:
    """What a campaign is put together from; leaving ends the oracle's processes."""
    builder = Builder(config, directory)
    try:
        yield builder.components()
    finally:
        builder.close()


class Builder:
    """Makes each part of a campaign once; parts share their potentials and hulls."""

    def __init__(self, config: CampaignConfig, directory: Path | None = None) -> None:
        self.config, self.directory = config, directory
        self._open = ExitStack()  # processes and connections, ended by `close`

    @cached_property
    def measuring(self) -> PotentialOracle:
        """Potential, hull and oracle of this process. The canary is checked here."""
        mlip = self.config.oracle.mlip
        potential = potential_of(mlip, self.workers)
        return PotentialOracle(potential, references_of(mlip, potential), mlip)

    @cached_property
    def cheap(self) -> CheapPotential:
        """What judges unrelaxed crystals: a potential of its own, or the one that labels."""
        if self.config.oracle.screen is not None:
            return CheapPotential.of(self.config.oracle.screen)
        if self.config.oracle.kind != MLIP:  # no potential labels
            return CheapPotential.of(ScreenConfig())
        return CheapPotential(self.measuring.potential, self.measuring.table)

    @property
    def workers(self) -> int:
        """Processes that label side by side."""
        return self.config.oracle.workers or cores()

    @cached_property
    def labelling(self) -> Oracle:
        """What labels, in this process."""
        section = self.config.oracle
        return self.measuring if section.kind == MLIP else self._made(section.kind, section.chosen_options)

    @cached_property
    def oracle(self) -> Oracle:
        """What labels: on a cluster, in processes of its own where there is more than one core, or here."""
        section, here = self.config.oracle, self.labelling
        kind = ORACLES.get(section.kind)
        build = partial(kind.build, section.chosen_options)
        if not kind.parallel:
            return here
        if self.config.scale is not None:
            return self._on_cluster(build, here)
        if self.workers == 1 or (isinstance(here, PotentialOracle) and _alone(here.potential)):
            return here
        oracle = ParallelOracle(build, self.workers, here)
        self._open.callback(oracle.close)
        return oracle

    @cached_property
    def client(self) -> Any:
        """Of the Dask cluster, which is begun when it is first needed."""
        assert self.config.scale is not None
        return self._open.enter_context(scale.connected(self.config.scale, self.directory or Path()))

    def _on_cluster(self, build: Callable[[], Oracle], oracle: Oracle) -> Oracle:
        """An oracle on the cluster's workers, which write into the ledger where they reach it."""
        from flows.dask_oracle import DaskOracle

        asked, directory = self.config.scale, (self.directory or Path()).resolve()
        assert asked is not None
        where = self.config.store or str(directory / "campaign.db")
        server = as_url(self.config.ledger(directory)).get_backend_name() != "sqlite"
        # several machines cannot share an SQLite file: then the campaign's own process writes
        return DaskOracle(build, key_of(oracle), self.client, where if server or asked.here else None)

    @cached_property
    def tiers(self) -> tuple[Tier, ...]:
        """Costlier oracles for the best of each round. The DFT engine is looked for here, before anything is spent."""
        found = []
        for name, tier in (("dft", self.config.oracle.dft), ("handoff", self.config.oracle.handoff)):
            if tier is not None:
                found.append(self._tier(name, tier, self._made(name, tier.oracle_config())))
        if (asked := self.config.oracle.second_opinion) is not None:
            found.append(Tier(SECOND_OPINION, self.opinion(asked), asked.best, only_stable=True, together=True))
        return tuple(found)

    def opinion(
        self,
        section: OpinionConfig,
        levels: Sequence[float] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PotentialOracle:
        """The oracle of another potential.

        Args:
            section: which, and how it judges.
            levels: distances from the hull that alone are asked about (`DemandHull.deciding`); None: all is computed.
            progress: called with phases of such a hull done and their total.

        Raises:
            ConfigError: it rewards or labels already.
        """
        config = section.oracle_config()
        potential = potential_of(config, self.workers)
        require_other("rewards and screens", self.cheap.potential.energy_type, potential.energy_type)
        if self.config.oracle.kind == MLIP:
            require_other("labels", self.measuring.potential.energy_type, potential.energy_type)
        references = references_of(config, potential)
        if levels is not None and isinstance(references, DemandHull):
            references = references.deciding(levels, progress)
        return PotentialOracle(potential, references, config)

    def _tier(self, name: str, section: DftTier | HandoffTier, made: Any) -> Tier:
        """A tier; what chooses for it looks at the features that the campaign keeps anyway."""
        accepts = made.accepts if isinstance(made, Choosy) else None
        chosen = section.choose == "acquisition"
        properties = self.config.surrogate.gp.properties
        selection = StepAcquisition(self.surrogate.extractor, properties) if chosen else None
        oracle = self._scaled(name, made)
        share, rule = section.shadow_share, section.approval
        only_new = not self.config.campaign.allow_known  # nobody pays hours for copper that a relaxation ended in
        return Tier(name, oracle, section.best, section.only_stable, accepts, selection, share, rule, only_new=only_new)

    def _scaled(self, name: str, oracle: Oracle | HandOff) -> Oracle | HandOff:
        """DFT on the cluster, where there is one: each calculation on the cores of its worker."""
        asked, tier = self.config.scale, self.config.oracle.dft
        if asked is None or name != "dft" or tier is None or isinstance(oracle, HandOff):
            return oracle
        resources = replace(tier.resources, cores=tier.resources.cores or asked.cores)
        here = replace(tier.oracle_config(), resources=resources)
        return self._on_cluster(partial(ORACLES.get(name).build, here), oracle)

    @staticmethod
    def _made(kind: str, options: object) -> Any:
        with ORACLES.blaming(kind):
            return ORACLES.get(kind).build(options)

    @cached_property
    def screen(self) -> HullScreen:
        """Unrelaxed energies above the hull."""
        return self.cheap.screen

    @cached_property
    def proposer(self) -> Generator:
        """What proposes: the policy with its frozen base, ion substitution, or a package's own."""
        section = self.config.generator
        kind, conditions = GENERATORS.get(section.kind), section.proposals.conditions
        self._check_elements("proposals", conditions)
        if kind.learns:
            self._check_elements("finetune", section.finetune.conditions)
        with GENERATORS.blaming(section.kind):
            return kind.build(GeneratorRequest(section.chosen_options, conditions, section))

    @property
    def generator(self) -> CrystalFormerGenerator:
        """The learned generator that ships.

        Raises:
            ConfigError: the configuration chooses another one.
        """
        if not isinstance(self.proposer, CrystalFormerGenerator):
            raise ConfigError(f"generator.kind is {self.config.generator.kind}: expected crystalformer")
        return self.proposer

    @cached_property
    def novelty(self) -> NoveltyIndex:
        """Known crystals and an empty archive."""
        section = self.config.novelty
        if section.reference == "none":
            return NoveltyIndex(None, section.tolerances)
        if section.reference == "shipped":
            return shipped_novelty(section.tolerances)
        return NoveltyIndex(KnownCrystals.load(Path(section.reference)), section.tolerances)

    @cached_property
    def surrogate(self) -> AnyCampaignSurrogate:
        """Gaussian processes on features of the unrelaxed crystal, the potential's descriptors among them."""
        cheap = self.cheap
        describe, width = cheap.potential.energies_and_descriptors, cheap.potential.width
        blocks = default_blocks(describe if width else None, cheap.above_hull, key=cheap.key, size=width)
        cache = None if self.directory is None else self.directory / "features"
        section = self.config.surrogate
        plain = [prop for prop in section.gp.properties if PRODUCT not in prop.name]
        known = read_known_labels(section.known, plain) if section.known else None
        return campaign_surrogate(FeatureExtractor(blocks, cache), section.gp).teach(self._typical, known)

    def components(self) -> Components:
        """Everything."""
        rehuller = Rehuller(self.labelling.hull) if isinstance(self.labelling, HullOracle) else None
        return Components(
            generator=self.proposer,
            surrogate=self.surrogate,
            acquisition=PoolAcquisition(self.config.selection),
            oracle=self.oracle,
            reward_for=self.reward_for,
            novelty=self.novelty,
            validity=self.config.validity,
            screen=self.screen,
            rehull=rehuller,
            phases=None if rehuller is None else rehuller.phases,
            tiers=self.tiers,
        )

    def reward_for(self, round: int) -> Reward:
        """The reward of a round; the surrogate has something to say from round 1 on."""
        surrogate = self.surrogate if round > 0 else None
        return PropertyReward(
            self.config.reward, RewardInputs(self.config.validity, self.novelty, self.screen, surrogate)
        )

    def _check_elements(self, name: str, asked_for: Sampling) -> None:
        """Elements that a user named; those that the generator draws by itself fail one by one, and are counted."""
        asked = {"screen": self.cheap.potential}
        asked |= {MLIP: self.measuring.potential} if self.config.oracle.kind == MLIP else {}
        for key, potential in sorted(asked.items()):
            unknown = sorted({*names(asked_for.required), *symbols(asked_for.elements)} - potential.elements)
            if unknown:
                raise ConfigError(
                    f"generator.{name}.sampling asks for {', '.join(unknown)}, which the potential "
                    f"{potential.energy_type.method} does not know; leave it out, or choose another "
                    f"oracle.{key}.potential"
                )

    def close(self) -> None:
        """End the oracles' processes."""
        self._open.close()

    def _typical(self) -> list:
        return self.proposer.propose(TYPICAL, seed=self.config.campaign.seed, round=0)


def _alone(potential: Potential) -> bool:
    """Whether more processes would not help: a GPU is one, and some potentials have processes of their own."""
    return potential.about.device != "cpu" or potential.in_processes
