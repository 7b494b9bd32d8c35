"""CHGNet's forward pass over a `Graph`, rearranged to do the same sums with a third of the multiplications.

Each message goes through a gated network whose first layer acts on a concatenation [atom, bond, atom]. A linear layer
on a concatenation is a sum of linear layers on its parts, so they are applied to atoms and bonds once and gathered, not
once an edge. Weights, activations and readout are those of `chgnet.model.CHGNet`; tests hold the two together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from oracles.potentials.chgnet_graph import Graph


@dataclass(frozen=True)
class Output:
    """Results for g crystals of n atoms in all, on the model's device.

    Where the graph makes use of symmetry, forces and stress stand for those after the mean over the group.
    """

    energy: Tensor  # (g,) eV/atom
    forces: Tensor | None  # (n, 3) eV/A
    stress: Tensor | None  # (g, 3, 3) eV/A^3, positive under tension
    features: Tensor  # (g, 64) mean over atoms of the features before the readout


class Gate(nn.Module):
    """A `GatedMLP` whose first layer takes its input in parts of equal width, each with an index of rows to gather."""

    def __init__(self, gated: Any, n_parts: int) -> None:
        super().__init__()
        core = [layer for layer in gated.mlp_core.layers if isinstance(layer, nn.Linear)]
        gate = [layer for layer in gated.mlp_gate.layers if isinstance(layer, nn.Linear)]
        weight = torch.cat([core[0].weight, gate[0].weight]).detach()  # (2h, parts * width)
        self.parts = nn.ParameterList(nn.Parameter(part.T.contiguous()) for part in weight.chunk(n_parts, dim=1))
        self.bias = nn.Parameter(torch.cat([core[0].bias, gate[0].bias]).detach())
        self.core = nn.Sequential(*core[1:])
        self.gate = nn.Sequential(*gate[1:])
        self.core_norm, self.gate_norm = gated.bn1, gated.bn2

    def forward(self, first: tuple[Tensor, Tensor], *others: tuple[Tensor, Tensor | None]) -> Tensor:
        """Gated messages, shape (rows, h), from (features, rows to gather or None for all) of each part."""
        weights = list(self.parts)
        hidden = torch.addmm(self.bias, first[0], weights[0]).index_select(0, first[1])
        for weight, (features, index) in zip(weights[1:], others, strict=True):
            projected = features @ weight
            hidden = hidden.add_(projected if index is None else projected.index_select(0, index))
        if len(self.core):
            hidden = silu(hidden)  # before the cut: on a strided half it is ten times as slow
        core, gate = hidden.chunk(2, dim=1)
        return silu(self.core_norm(self.core(core))) * torch.sigmoid(self.gate_norm(self.gate(gate)))


class BatchedCHGNet(nn.Module):
    """CHGNet 0.3.0, or a model of the same architecture, over batches; forces and stress in one backward pass.

    Args:
        model: a `chgnet.model.CHGNet`.

    Raises:
        ValueError: the model has another architecture.
    """

    def __init__(self, model: Any) -> None:
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

    def forward(self, graph: Graph, lattice: np.ndarray, *, gradients: bool) -> Output:
        """Energies and features, and forces and stress where `gradients` is set.

        Args:
            graph: of g crystals.
            lattice: (g, 3, 3), row vectors in Angstrom.
            gradients: whether forces and stress are wanted.
        """
        with torch.set_grad_enabled(gradients):
            cells, owner = self._float(lattice), self._int(graph.owner)
            strain = torch.zeros_like(cells, requires_grad=gradients)
            cells = cells + cells @ strain
            positions = torch.einsum("ni,nij->nj", self._float(graph.frac), cells[owner])
            shift = torch.einsum("ei,eij->ej", self._float(graph.image), cells[owner[self._int(graph.start)]])
            vectors = positions[self._int(graph.start)] - positions[self._int(graph.end)] - shift
            site_energy, sites = self._sites(graph, vectors)
            count, site_owner = self._float(graph.multiplicity), self._int(graph.site_owner)
            n_atoms = torch.bincount(owner, minlength=len(cells))
            energy = cells.new_zeros(len(cells)).index_add(0, site_owner, site_energy * count)
            total = cells.new_zeros(len(cells), sites.shape[1]).index_add(0, site_owner, sites * count[:, None])
            features = (total / n_atoms[:, None]).detach()
            if not gradients:
                return Output(energy / n_atoms, None, None, features)
            slope, virial = torch.autograd.grad(energy.sum(), (positions, strain))
        volume = torch.linalg.det(cells.detach()).abs()
        return Output(energy.detach() / n_atoms, -slope, virial / volume[:, None, None], features)

    def _float(self, array: np.ndarray) -> Tensor:
        weight = self.model.bond_embedding.weight
        return torch.as_tensor(array, dtype=weight.dtype, device=weight.device)

    def _int(self, array: np.ndarray) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(array), device=self.model.bond_embedding.weight.device)

    def _sites(self, graph: Graph, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Energy of an atom of each site (eV) and the features it was read from, shapes (a,) and (a, 64).

        Args:
            graph: which bonds there are.
            vectors: (e, 3) of the directed bonds, Angstrom.
        """
        model, numbers = self.model, self._int(graph.numbers) - 1
        start, end, undirected, short = map(
            self._int, (graph.bond_start, graph.bond_end, graph.undirected, graph.short)
        )
        lengths = torch.linalg.vector_norm(vectors, dim=1)
        bond_lengths = lengths[self._int(graph.length_edge)]
        basis = model.bond_basis_expansion.rbf_expansion_ag(bond_lengths)
        short_weights = model.bond_weights_bg(model.bond_basis_expansion.rbf_expansion_bg(bond_lengths[short]))
        bond_weights = model.bond_weights_ag(basis)[undirected] * self._float(graph.bond_count)[:, None]
        atoms, bonds = model.atom_embedding(numbers), model.bond_embedding(basis)

        pivot, left, right = map(self._int, (graph.angle_site, graph.angle_bonds[:, 0], graph.angle_bonds[:, 1]))
        ends = (vectors / lengths[:, None])[self._int(graph.angle_edges)]
        angles = model.angle_embedding(model.angle_basis_expansion(ends[:, 0], ends[:, 1]))
        angle_weights = short_weights[left] * short_weights[right] * self._float(graph.angle_count)[:, None]

        layers = zip(self.bond_gates, self.angle_gates, model.bond_conv_layers, strict=True)
        for layer, gate, rest in zip(model.atom_conv_layers, self.atom_gates, [*layers, None], strict=True):
            message = gate((atoms, start), (bonds, undirected), (atoms, end)) * bond_weights
            atoms = atoms + layer.mlp_out(torch.zeros_like(atoms).index_add(0, start, message))
            if rest is not None:
                bond_gate, angle_gate, bond_layer = rest
                near = bonds[short]
                turn = bond_gate((near, left), (near, right), (angles, None), (atoms, pivot)) * angle_weights
                near = near + bond_layer.mlp_out(torch.zeros_like(near).index_add(0, left, turn))
                bonds = bonds.index_copy(0, short, near)
                angles = angles + angle_gate((near, left), (near, right), (angles, None), (atoms, pivot))
        atoms = model.readout_norm(atoms)
        return model.mlp(atoms)[:, 0] + model.composition_model.fc.weight[0, numbers], atoms
