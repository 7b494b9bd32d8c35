"""CHGNet's forward pass over a `GraphBatch`, rearranged to do the same sums with a third of the multiplications.

Each message goes through a gated network whose first layer acts on a concatenation [atom, bond, atom]. A linear layer
on a concatenation is a sum of linear layers on its parts, so they are applied to atoms and bonds once and gathered, not
once an edge. Weights, activations and readout are those of `chgnet.model.CHGNet`; tests hold the two against each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from chgnet.model.functions import GatedMLP
from chgnet.model.model import CHGNet
from torch import Tensor, nn
from torch.nn.functional import silu

from oracles.chgnet_graph import GraphBatch


@dataclass(frozen=True)
class Output:
    """Results for g crystals of n atoms in all, on the model's device."""

    energy: Tensor  # (g,) eV
    forces: Tensor | None  # (n, 3) eV/A
    stress: Tensor | None  # (g, 3, 3) eV/A^3, positive under tension
    features: Tensor  # (g, 64) mean over atoms of the features before the readout


class Gate(nn.Module):
    """A `GatedMLP` whose first layer takes its input in parts of equal width, each with an index of rows to gather."""

    def __init__(self, gated: GatedMLP, n_parts: int) -> None:
        super().__init__()
        core = [layer for layer in gated.mlp_core.layers if isinstance(layer, nn.Linear)]
        gate = [layer for layer in gated.mlp_gate.layers if isinstance(layer, nn.Linear)]
        weight = torch.cat([core[0].weight, gate[0].weight]).detach()  # (2h, parts * width)
        self.parts = nn.ParameterList(nn.Parameter(part.T.contiguous()) for part in weight.chunk(n_parts, dim=1))
        self.bias = nn.Parameter(torch.cat([core[0].bias, gate[0].bias]).detach())
        self.core, self.gate = (core[1], gate[1]) if len(core) > 1 else (None, None)
        self.core_norm, self.gate_norm = gated.bn1, gated.bn2

    def forward(self, *inputs: tuple[Tensor, Tensor | None]) -> Tensor:
        """Gated messages, shape (rows, h), from (features, rows to gather or None for all) of each part."""
        hidden: Tensor | None = None
        for weight, (features, index) in zip(self.parts, inputs, strict=True):
            projected = torch.addmm(self.bias, features, weight) if hidden is None else features @ weight
            gathered = projected if index is None else projected.index_select(0, index)
            hidden = gathered if hidden is None else hidden.add_(gathered)
        assert hidden is not None
        if self.core is None or self.gate is None:
            core, gate = hidden.chunk(2, dim=1)
        else:
            core, gate = silu(hidden).chunk(2, dim=1)  # before the cut: on a strided half it is ten times as slow
            core, gate = self.core(core), self.gate(gate)
        return silu(self.core_norm(core)) * torch.sigmoid(self.gate_norm(gate))


class BatchedCHGNet(nn.Module):
    """CHGNet 0.3.0 (or a model of the same architecture) over batches, with forces and stress in one backward pass."""

    def __init__(self, model: CHGNet) -> None:
        super().__init__()
        args = model.model_args
        if not (model.mlp_first and args.get("gMLP_norm") == "layer" and args.get("non_linearity") == "silu"):
            raise ValueError(f"expected the architecture of CHGNet 0.3.0, got {args}")
        self.model = model.eval().requires_grad_(False)
        self.atom_gates = nn.ModuleList(Gate(layer.twoBody_atom, 3) for layer in model.atom_conv_layers)
        self.bond_gates = nn.ModuleList(Gate(layer.twoBody_bond, 4) for layer in model.bond_conv_layers)
        self.angle_gates = nn.ModuleList(Gate(layer.twoBody_bond, 4) for layer in model.angle_layers)
        self.requires_grad_(False)
        self.bond_cutoff = float(model.graph_converter.atom_graph_cutoff)
        self.angle_cutoff = float(model.graph_converter.bond_graph_cutoff)

    @property
    def dtype(self) -> torch.dtype:
        """Floating type of the weights."""
        return self.model.bond_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.bond_embedding.weight.device

    def forward(self, graph: GraphBatch, *, gradients: bool) -> Output:
        """Energies and features, and forces and stress where `gradients` is set."""
        with torch.set_grad_enabled(gradients):
            frac, lattice = self._tensor(graph.frac), self._tensor(graph.lattice)
            owner, n_atoms = self._index(graph.owner), self._index(graph.n_atoms)
            strain = torch.zeros_like(lattice, requires_grad=gradients)
            lattice = lattice + lattice @ strain
            positions = torch.einsum("ni,nij->nj", frac, lattice.index_select(0, owner))
            site_energy, atoms = self._sites(graph, positions, lattice, owner)
            energy = torch.zeros_like(lattice[:, 0, 0]).index_add(0, owner, site_energy)
            features = torch.zeros_like(lattice[:, 0, :1]).expand(-1, atoms.shape[1]).index_add(0, owner, atoms)
            features = features / n_atoms[:, None]
            if not gradients:
                return Output(energy, None, None, features)
            slope, virial = torch.autograd.grad(energy.sum(), (positions, strain))
        volume = torch.linalg.det(lattice.detach()).abs()
        return Output(energy.detach(), -slope, virial / volume[:, None, None], features.detach())

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(array, dtype=self.dtype, device=self.device)

    def _index(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), device=self.device)

    def _sites(self, graph: GraphBatch, positions: Tensor, lattice: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
        """Energy of each atom (eV) and the features it was read from, shapes (n,) and (n, 64)."""
        model, numbers = self.model, self._index(graph.numbers)
        center, neighbor = self._index(graph.center), self._index(graph.neighbor)
        undirected, short = self._index(graph.undirected), self._index(graph.short)
        shift = torch.einsum("ei,eij->ej", self._tensor(graph.image), lattice[owner[center]])
        vectors = positions[center] - positions[neighbor] - shift
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        bond_lengths = lengths[self._index(graph.directed)]
        basis = model.bond_basis_expansion.rbf_expansion_ag(bond_lengths)
        short_weights = model.bond_weights_bg(model.bond_basis_expansion.rbf_expansion_bg(bond_lengths[short]))
        bond_weights = model.bond_weights_ag(basis)[undirected]
        atoms, bonds = model.atom_embedding(numbers - 1), model.bond_embedding(basis)

        pivot, angle_bonds = self._index(graph.angle_center), self._index(graph.angle_bonds)
        left, right = angle_bonds[:, 0].contiguous(), angle_bonds[:, 1].contiguous()
        unit = vectors / lengths[:, None]
        ends = unit[self._index(graph.angle_directed)]
        angles = model.angle_embedding(model.angle_basis_expansion(ends[:, 0], ends[:, 1]))
        angle_weights = short_weights[left] * short_weights[right]

        for layer, gate, bond_layer, bond_gate, angle_gate in zip(
            model.atom_conv_layers,
            self.atom_gates,
            model.bond_conv_layers,
            self.bond_gates,
            self.angle_gates,
            strict=False,
        ):
            message = gate((atoms, center), (bonds, undirected), (atoms, neighbor)) * bond_weights
            atoms = atoms + layer.mlp_out(torch.zeros_like(atoms).index_add(0, center, message))
            near = bonds[short]
            turn = bond_gate((near, left), (near, right), (angles, None), (atoms, pivot)) * angle_weights
            near = near + bond_layer.mlp_out(torch.zeros_like(near).index_add(0, left, turn))
            bonds = bonds.index_copy(0, short, near)
            angles = angles + angle_gate((near, left), (near, right), (angles, None), (atoms, pivot))
        message = self.atom_gates[-1]((atoms, center), (bonds, undirected), (atoms, neighbor)) * bond_weights
        atoms = atoms + model.atom_conv_layers[-1].mlp_out(torch.zeros_like(atoms).index_add(0, center, message))
        atoms = model.readout_norm(atoms)
        return model.mlp(atoms)[:, 0] + model.composition_model.fc.weight[0, numbers - 1], atoms
