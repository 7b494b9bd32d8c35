"""CHGNet, whose weights are inside its PyPI wheel: the potential that is always there."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from ase.calculators.calculator import Calculator
from ase.data import chemical_symbols
from pymatgen.core import Structure

from loop.errors import ConfigError
from loop.io.files import sha256
from loop.values import EnergyType, failed
from oracles.potentials.base import (
    Potential,
    PotentialInfo,
    PotentialKind,
    PotentialRequest,
    SinglePoint,
    refuse_environment,
    resolve_device,
)
from oracles.potentials.chgnet_graph import build_graph, isolated
from oracles.potentials.chgnet_model import BatchedCHGNet
from oracles.symmetry import Group

FILES = {
    "0.3.0": "0.3.0/chgnet_0.3.0_e29f68s314m37.pth.tar",
    "r2scan": "r2scan/chgnet_r2scan_transfer_learning_e15f36s161m23.pth.tar",
}
# Trained on Materials Project energies after MaterialsProject2020Compatibility (paper, Methods); the r2SCAN model on
# uncorrected r2SCAN energies (MP-r2SCAN).
TRAINED_ON = {"0.3.0": ("PBE(+U)", "MP2020"), "r2scan": ("r2SCAN", "none")}
CITATION = "Deng et al., Nat. Mach. Intell. 5, 1031 (2023), doi 10.1038/s42256-023-00716-3"
N_ELEMENTS = 94  # hydrogen to plutonium
# Pairs of bonds below 3 A in a batch, some 12 kB of memory each. 500 atoms of iron have 91,000, of diamond 120,000;
# what is crushed in a relaxation can have millions.
MOST_ANGLES = 200_000
UNTRAINED = frozenset({"Po", "At", "Rn", "Fr", "Ra"})  # no crystal of these in MPtrj: weights at their initial values


class ChgnetPotential(Potential):
    """CHGNet in batches, with forces and stress from one backward pass."""

    def __init__(self, about: PotentialInfo, model: BatchedCHGNet) -> None:
        super().__init__(about)
        self._model = model

    def compute(
        self, structures: Sequence[Structure], groups: Sequence[Group], *, gradients: bool
    ) -> list[SinglePoint]:
        """Evaluate one batch.

        Raises:
            ValueError: atoms are packed so densely that memory would not do.
        """
        graph = build_graph(structures, groups, self._model.bond_cutoff, self._model.angle_cutoff)
        if len(graph.angle_site) > MOST_ANGLES:
            raise ValueError(
                f"{len(graph.angle_site)} angles between bonds, more than {MOST_ANGLES}: packed too densely"
            )
        lattice = np.array([structure.lattice.matrix for structure in structures])
        output = self._model(graph, lattice, gradients=gradients)
        energy = output.energy.double().cpu().numpy()
        lonely = isolated(graph, len(structures))
        features = output.features.double().cpu().numpy()
        ends = np.cumsum([len(structure) for structure in structures])[:-1]
        forces = None if output.forces is None else np.split(output.forces.double().cpu().numpy(), ends)
        stress = None if output.stress is None else output.stress.double().cpu().numpy()
        return [
            SinglePoint(
                energy=float(energy[index]),
                forces=None if forces is None else forces[index],
                stress=None if stress is None else (stress[index] + stress[index].T) / 2,
                features=features[index],
            )
            if not lonely[index]
            else SinglePoint(status=failed("isolated-atoms"), message=self._lonely())
            for index in range(len(structures))
        ]

    def _lonely(self) -> str:
        return f"an atom has no neighbour within {self._model.bond_cutoff} A, where CHGNet knows nothing of it"

    def calculator(self) -> Calculator:
        """An ASE calculator of the same evaluation."""
        from oracles.potentials.calculator import PotentialCalculator

        return PotentialCalculator(self)


def load_chgnet(version: str, *, device: str | None, dtype: str | None) -> ChgnetPotential:
    """Load CHGNet from its wheel.

    Raises:
        ConfigError: no such version.
    """
    import chgnet
    from chgnet.model.model import CHGNet

    if version not in FILES:
        raise ConfigError(f"There is no CHGNet {version!r}: expected one of {', '.join(FILES)}.")
    path = Path(chgnet.__file__).parent / "pretrained" / FILES[version]
    checksum = sha256(path)
    where, precision = resolve_device(device), dtype or "float32"
    state = torch.load(path, map_location="cpu", weights_only=True)["model"]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints its size
        warnings.simplefilter("ignore")
        model = CHGNet.from_dict(state, mlp_out_bias=False, version=version)
    functional, corrections = TRAINED_ON[version]
    about = PotentialInfo(
        name="chgnet" if version == "0.3.0" else f"chgnet:{version}",
        energy_type=EnergyType(f"CHGNet-{version}", functional, corrections, checksum),
        elements=frozenset(chemical_symbols[1 : N_ELEMENTS + 1]) - UNTRAINED,
        citation=CITATION,
        licence="BSD-3-Clause-LBNL",
        device=where,
        dtype=precision,
    )
    return ChgnetPotential(about, BatchedCHGNet(model).to(device=where, dtype=getattr(torch, precision)))


def _requested(request: PotentialRequest) -> ChgnetPotential:
    refuse_environment(request)
    return load_chgnet(request.rest or "0.3.0", device=request.device, dtype=request.dtype)


POTENTIAL = PotentialKind(_requested)
