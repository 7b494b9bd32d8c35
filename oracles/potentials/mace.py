"""MACE: foundation models by name, or a model file that its user trusts."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.data import chemical_symbols
from pymatgen.core import Structure

from loop.errors import ConfigError
from loop.io.files import sha256
from loop.values import EnergyType
from oracles.potentials.base import (
    Potential,
    PotentialInfo,
    PotentialKind,
    PotentialRequest,
    SinglePoint,
    refuse_environment,
    resolve_device,
)
from oracles.potentials.calculator import PotentialCalculator, to_atoms
from oracles.symmetry import Group

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

CITATION = "Batatia et al., NeurIPS 2022, arXiv 2206.07697; foundation models: Batatia et al., arXiv 2401.00096"
# What foundation models learned. Their energies are those of the data sets, without MP2020 corrections; the types keep
# the data sets apart, whose pseudopotentials and U values differ.
FUNCTIONALS = {"omat": "PBE(+U)-OMat24", "matpes-pbe": "PBE-MatPES", "matpes-r2scan": "r2SCAN-MatPES"}
ACADEMIC = ("omat", "matpes")  # under the Academic Software License, the others under MIT


class MacePotential(Potential):
    """A MACE model in batches; descriptors are its invariant node features."""

    def __init__(self, about: PotentialInfo, model: Any) -> None:
        super().__init__(about)
        from mace.tools import AtomicNumberTable

        self._model = model
        self._table = AtomicNumberTable([int(z) for z in model.atomic_numbers])
        self._cutoff = float(model.r_max)
        self._heads = list(getattr(model, "heads", None) or ["Default"])

    def compute(
        self,
        structures: Sequence[Structure],
        groups: Sequence[Group],  # noqa: ARG002  (its features are tensors: symmetry does not make it faster)
        *,
        gradients: bool,
    ) -> list[SinglePoint]:
        """Evaluate one batch."""
        batch = self._batch(structures).to(self.about.device)
        output = self._model(batch.to_dict(), compute_force=gradients, compute_stress=gradients)
        ends = np.cumsum([len(structure) for structure in structures])[:-1]
        energy = _array(output["energy"])
        features = [part.mean(axis=0) for part in np.split(self._invariant(_array(output["node_feats"])), ends)]
        forces = np.split(_array(output["forces"]), ends) if gradients else [None] * len(structures)
        stress = _array(output["stress"]) if gradients else [None] * len(structures)
        return [
            SinglePoint(energy=float(e) / len(structure), forces=f, stress=s, features=x)
            for e, structure, f, s, x in zip(energy, structures, forces, stress, features, strict=True)
        ]

    def calculator(self) -> Calculator:
        """An ASE calculator of the same evaluation."""
        return PotentialCalculator(self)

    def _batch(self, structures: Sequence[Structure]) -> Any:
        from mace import data
        from mace.tools import torch_geometric
        from mace.tools.torch_tools import default_dtype

        keys = data.KeySpecification(info_keys={}, arrays_keys={})
        with default_dtype(self.about.dtype):
            graphs = [
                data.AtomicData.from_config(
                    data.config_from_atoms(to_atoms(structure), key_specification=keys, head_name=self._heads[-1]),
                    z_table=self._table,
                    cutoff=self._cutoff,
                    heads=self._heads,
                )
                for structure in structures
            ]
            return torch_geometric.Batch.from_data_list(graphs)

    def _invariant(self, features: np.ndarray) -> np.ndarray:
        """The invariant part of node features (n, all) of every layer."""
        from e3nn import o3

        irreps = o3.Irreps(str(self._model.products[0].linear.irreps_out))
        scalars, width = irreps.count("0e"), irreps.dim
        layers = int(self._model.num_interactions)
        starts = [layer * width for layer in range(layers)]  # the last layer holds scalars only
        return np.concatenate([features[:, start : start + scalars] for start in starts], axis=1)


def load_mace(name: str, *, device: str | None, dtype: str | None, trust: bool) -> MacePotential:
    """Load a foundation model by name, or a model file.

    Raises:
        ConfigError: unknown name without such a file, no network, a file that is not trusted or no MACE model.
    """
    path = Path(name).expanduser()
    is_file = path.is_file()
    if is_file and not trust:
        raise ConfigError(
            f"The MACE model {path} is a pickle, which can run any code when it is loaded. If you made it or know who "
            "did, say so with trust: true; otherwise choose a foundation model by name, e.g. mace:medium-mpa-0."
        )
    if not is_file:
        path = _download(name)
    where, precision = resolve_device(device), dtype or "float64"
    model = _read(path, where).to(getattr(torch, precision)).eval()
    model.requires_grad_(False)
    about = PotentialInfo(
        name=f"mace:{path.stem if is_file else name}",
        energy_type=_energy_type("file" if is_file else name, path),
        elements=frozenset(chemical_symbols[int(z)] for z in model.atomic_numbers),
        citation=CITATION,
        licence="ASL" if any(word in name for word in ACADEMIC) else "see its author" if is_file else "MIT",
        device=where,
        dtype=precision,
    )
    return MacePotential(about, model)


def _download(name: str) -> Path:
    """A foundation model's file, fetched by mace-torch into its cache where it is not there yet."""
    _import_mace()
    from mace.calculators.foundations_models import download_mace_mp_checkpoint, mace_mp_urls

    if name not in mace_mp_urls:
        raise ConfigError(
            f"There is no MACE model {name!r}: expected a file, or one of {', '.join(sorted(mace_mp_urls))}."
        )
    try:
        return Path(download_mace_mp_checkpoint(name))
    except Exception as error:  # mace-torch wraps what urllib raises in exceptions of several kinds
        raise ConfigError(
            f"The MACE model {name!r} is not in the cache and cannot be fetched ({error}). Fetch it where there is a "
            "network and copy it to the cache of mace-torch (~/.cache/mace), or use chgnet, which needs no download."
        ) from error


def _read(path: Path, device: str) -> Any:
    """Unpickle a model that the caller trusts."""
    _import_mace()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = torch.load(path, map_location=device, weights_only=False)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, AttributeError, ImportError) as error:
        raise ConfigError(f"expected a MACE model in {path}, cannot load it: {error}") from error
    if not (hasattr(model, "atomic_numbers") and hasattr(model, "r_max") and hasattr(model, "products")):
        raise ConfigError(f"expected a MACE model in {path}, found {type(model).__name__}")
    return model


def _import_mace() -> None:
    """Import mace without what its import does to everybody: e3nn asks torch to load pickles unasked from then on."""
    variable = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(variable)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mace.calculators.foundations_models  # noqa: F401
    if before is None:
        os.environ.pop(variable, None)


def _energy_type(name: str, path: Path) -> EnergyType:
    functional = "unknown" if name == "file" else "PBE(+U)"
    functional = next((value for key, value in FUNCTIONALS.items() if key in name), functional)
    return EnergyType(f"MACE-{name}", functional, "none", sha256(path))


def _array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().cpu().numpy()


def _requested(request: PotentialRequest) -> MacePotential:
    refuse_environment(request)
    name = request.rest if request.kind == "mace" else request.name
    return load_mace(name, device=request.device, dtype=request.dtype, trust=request.trust)


POTENTIAL = PotentialKind(_requested)
