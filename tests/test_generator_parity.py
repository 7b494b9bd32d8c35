"""Numbers of the published CrystalFormer: the compatibility mode must reproduce them.

The network is a tiny one whose weights are sines, or all zero; the figures were computed with the published code.
"""

import numpy as np
import pytest
import torch

from generator.constraints.conditions import Sampling
from generator.importer import published_names
from generator.likelihood import letter_distribution, log_prob
from generator.model import CrystalFormer, ModelConfig, rotary_table, rotate
from generator.representation.sequence import Crystals, build_sequence
from generator.representation.tokens import CrystalBatch
from generator.representation.wyckoff import symmetrize_lattice, tables

TINY = ModelConfig.published(
    layers=2, heads=2, head_size=8, width=16, embedding=6, first_letter_hidden=8, coordinate_components=4,
    lattice_components=2, slots=5, dropout=0.0,
)  # fmt: skip
# space group, cell (lengths in Angstrom, degrees), sites (letter, element, representative)
CRYSTALS = {
    "NaCl": (225, (5.64,) * 3 + (90,) * 3, [(1, 11, (0, 0, 0)), (2, 17, (0.5, 0.5, 0.5))]),
    "SrTiO3": (
        221,
        (3.905,) * 3 + (90,) * 3,
        [(1, 38, (0, 0, 0)), (2, 22, (0.5, 0.5, 0.5)), (3, 8, (0, 0.5, 0.5))],
    ),
    "LaH10": (
        225,
        (5.1,) * 3 + (90,) * 3,
        [(1, 57, (0, 0, 0)), (3, 1, (0.25, 0.25, 0.25)), (6, 1, (0.375, 0.375, 0.375))],
    ),
    "ZnO": (186, (3.25, 3.25, 5.21, 90, 90, 120), [(2, 30, (1 / 3, 2 / 3, 0)), (2, 8, (1 / 3, 2 / 3, 0.382))]),
    "TiO2": (136, (4.594, 4.594, 2.959, 90, 90, 90), [(1, 22, (0, 0, 0)), (6, 8, (0.305, 0.305, 0))]),
    "P1": (1, (4, 5, 6, 80, 95, 100), [(1, 3, (0.1, 0.2, 0.3)), (1, 8, (0.6, 0.7, 0.8))]),
}
# logp of letters, coordinates, elements, cell
SINES = {
    "NaCl": (-7.3293359, 0, -9.4861790, -8.6469831),
    "SrTiO3": (-10.3192294, 0, -14.2673745, -5.9835895),
    "LaH10": (-9.3023530, -4.4181354, -14.2415398, -2.7098314),
    "ZnO": (-4.1118304, -4.0939450, -9.5367543, -16.7350883),
    "TiO2": (-6.7411752, -3.4503555, -9.4865431, -10.4230578),
    "P1": (-1.3879650, -11.7132828, -9.5027370, -60.1436536),
}
ZEROS = {
    "NaCl": (-7.36771, 0, -9.54137, -8.80598),
    "SrTiO3": (-10.32797, 0, -14.31205, -5.96551),
    "LaH10": (-9.35184, -4.39331, -14.31205, -2.71944),
    "ZnO": (-4.15888, -4.09107, -9.54137, -16.63557),
    "TiO2": (-6.74170, -3.43954, -9.54137, -10.49192),
    "P1": (-1.38629, -11.72739, -9.54137, -61.69509),
}


def crystals(model: CrystalFormer) -> Crystals:
    """The six crystals as tensors."""
    n, slots = len(CRYSTALS), model.config.slots
    W, A = np.zeros((2, n, slots), np.int8)
    XYZ, G, L = np.zeros((n, slots, 3)), np.zeros(n, np.int16), np.zeros((n, 6))
    for i, (g, cell, sites) in enumerate(CRYSTALS.values()):
        G[i] = g
        for j, (w, a, x) in enumerate(sites):
            W[i, j], A[i, j], XYZ[i, j] = w, a, x
        natoms = tables().multiplicity[g, W[i]].sum()
        L[i] = symmetrize_lattice(g, np.array([*np.array(cell[:3]) / natoms ** (1 / 3), *np.radians(cell[3:])]))
    return Crystals.from_batch(CrystalBatch(G, W, A, XYZ, L), model.head.weight)


def sine_model() -> CrystalFormer:
    """Element k (row-major, as (in, out)) of tensor t is s * sin(0.37 (t + 1) + 0.71 k)."""
    model = CrystalFormer(TINY).double().eval()
    parameters = dict(model.named_parameters())
    names = [f"{table}.weight" for table in ("space_groups", "letters", "elements")]
    names += [f"{layer}.{what}" for layer in published_names(TINY.layers) for what in ("weight", "bias")]
    assert len(names) == len(parameters) == 53
    with torch.no_grad():
        for t, name in enumerate(names):
            parameter = parameters[name]
            shape = parameter.T.shape if parameter.ndim == 2 and t > 2 else parameter.shape
            sines = torch.sin(0.37 * (t + 1) + 0.71 * torch.arange(parameter.numel(), dtype=torch.float64))
            scale = 0.5 if t < 3 else 0.05 if parameter.ndim == 2 else 0.02
            value = scale * sines.reshape(shape)
            if "norm" in name and name.endswith("weight"):
                value = 1 + value
            parameter.copy_(value.T if parameter.ndim == 2 and t > 2 else value)
    return model


def zero_model(config: ModelConfig) -> CrystalFormer:
    model = CrystalFormer(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def rows(logp) -> np.ndarray:
    return torch.stack([logp.w, logp.xyz, logp.a, logp.l], 1).detach().numpy()


def test_number_of_parameters():
    published = CrystalFormer(ModelConfig.published())
    assert sum(p.numel() for p in published.parameters()) == 4_833_575
    assert sum(p.numel() for p in CrystalFormer(TINY).parameters()) == 12_875


def test_sine_network():
    model = sine_model()
    logp = log_prob(model, crystals(model), definition="published")
    np.testing.assert_allclose(rows(logp), list(SINES.values()), rtol=0, atol=1e-6)
    assert -logp.total.mean().item() == pytest.approx(39.0051565, abs=1e-6)


def test_sine_network_in_single_precision():
    model = sine_model().float()
    logp = log_prob(model, crystals(model), definition="published")
    np.testing.assert_allclose(rows(logp), list(SINES.values()), rtol=0, atol=1e-4)


def test_outputs_of_the_sine_network():
    model = sine_model()
    hidden = model(build_sequence(crystals(model), None))[0]  # NaCl
    elements = model.predict("element", hidden[0])
    elements[0] = -torch.inf
    expected = [-4.713990, -4.739359, -4.780657, -4.817925, -4.833153]
    np.testing.assert_allclose(torch.log_softmax(elements, 0)[1:6].detach(), expected, atol=1e-6)
    lattice = torch.log_softmax(model.predict("lattice", hidden[0])[:2], 0)
    np.testing.assert_allclose(lattice.detach(), [-0.684951, -0.701411], atol=1e-6)
    logits, loc, kappa = model.predict("coordinate", hidden[1]).chunk(3)
    np.testing.assert_allclose(
        torch.log_softmax(logits, 0).detach(), [-1.386677, -1.393396, -1.389163, -1.376024], atol=1e-6
    )
    np.testing.assert_allclose(loc.detach(), [0.010406, 0.021072, 0.021555, 0.011621], atol=1e-6)
    kappa = torch.nn.functional.softplus(kappa)
    np.testing.assert_allclose(kappa.detach(), [0.691184, 0.684395, 0.681844, 0.684731], atol=1e-6)


@pytest.mark.parametrize("config", [ModelConfig.published(), TINY], ids=["published size", "tiny"])
def test_zero_network(config):
    model = zero_model(config)
    logp = log_prob(model, crystals(model), definition="published")
    np.testing.assert_allclose(rows(logp), list(ZEROS.values()), rtol=0, atol=1e-5)
    assert -logp.total.mean().item() == pytest.approx(39.348133, abs=1e-6)


def test_closed_forms_behind_the_zero_network():
    model = zero_model(TINY)
    logp = log_prob(model, crystals(model), definition="published")
    assert logp.w[0].item() == pytest.approx(-(2 * np.log(12) + np.log(11)), abs=1e-9)
    assert logp.a[0].item() == pytest.approx(-2 * np.log(118), abs=1e-9)
    sigma = np.log(2) + 1e-3
    length = 5.64 / 2
    expected = -0.5 * (length / sigma) ** 2 - np.log(sigma) - 0.5 * np.log(2 * np.pi)
    assert logp.l[0].item() == pytest.approx(expected, abs=1e-9)


def test_the_exact_likelihood_counts_each_degree_of_freedom_once():
    """Published: y = x and z = x are densities of their own; they are no random numbers."""
    model = zero_model(TINY)
    exact = log_prob(model, crystals(model)).xyz.tolist()
    published = log_prob(model, crystals(model), definition="published").xyz.tolist()
    names = list(CRYSTALS)
    assert exact[names.index("TiO2")] == pytest.approx(-1.71977, abs=1e-5)
    assert exact[names.index("LaH10")] == pytest.approx(-1.46444, abs=1e-5)
    for name in ("NaCl", "SrTiO3", "ZnO", "P1"):  # nothing dependent here
        assert exact[names.index(name)] == pytest.approx(published[names.index(name)], abs=1e-12)


def test_masks_of_group_225():
    zeros = torch.zeros(3, 28, dtype=torch.float64)
    before = torch.tensor([3, 5, 0])
    last = torch.zeros(3, dtype=torch.bool)
    logp = letter_distribution(zeros, torch.full((3,), 225), before, last, Sampling()).logp
    allowed = [torch.isfinite(row).nonzero()[:, 0].tolist() for row in logp]
    assert allowed == [[0, *range(4, 13)], [0, *range(5, 13)], [0]]


def test_causality():
    """A token changes only what follows it: with a start row before the first token, rows >= 7, 13 and 11."""
    model = sine_model()
    base = crystals(model)
    changes = {7: ("A", 1, 3), 13: ("XYZ", 2, 0.4), 11: ("W", 2, 2)}
    reference = model(build_sequence(base, None))[1].detach()
    for first, (field, site, value) in changes.items():
        changed = {name: getattr(base, name).clone() for name in ("G", "W", "A", "XYZ", "L")}
        target = changed[field][1, site]
        if field == "XYZ":
            target[0] = value
        else:
            changed[field][1, site] = value
        hidden = model(build_sequence(Crystals(**changed), None))[1].detach()
        differs = ((hidden - reference).abs().amax(-1) > 1e-12).nonzero()[:, 0]
        assert differs.min().item() == first - 1  # row 0 is the first-letter head
        assert len(differs) == len(reference) - (first - 1)


def test_gelu_is_the_tanh_form():
    """Weights of zero but for one path through the activation; the erf form differs by 1.5e-4 here."""
    model = zero_model(TINY)
    c = 1.0
    expected = 0.5 * c * (1 + np.tanh(np.sqrt(2 / np.pi) * (c + 0.044715 * c**3)))
    block = model.blocks[0]
    with torch.no_grad():
        for hidden, out in ((block.up, block.down), (model.first_letter[0], model.first_letter[2])):
            hidden.bias.fill_(c)
            out.weight[0, 0] = 1.0
    assert block.mlp(torch.zeros(1, TINY.width, dtype=torch.float64))[0, 0].item() == pytest.approx(expected, abs=1e-9)
    assert model.predict_first_letter(torch.tensor([1]))[0, 0].item() == pytest.approx(expected, abs=1e-9)


def test_rotary_embedding():
    cos, sin = rotary_table(3, 4, torch.float64)
    np.testing.assert_allclose(sin[1, :2], [0.841471, 0.01], atol=1e-6)
    np.testing.assert_allclose(cos[1, :2], [0.540302, 0.99995], atol=1e-6)
    q = torch.tensor([[5.0, 6, 7, 8], [9, 10, 11, 12]], dtype=torch.float64)
    interleaved = [0, 2, 1, 3]  # the order in which `rotate` takes the features of a head
    turned = rotate(q[:, interleaved], torch.complex(cos, sin)[1:, :2])[:, interleaved]
    expected = [[-3.188786, 5.919702, 7.989470, 8.059599], [-13.747593, 9.758017, 3.606062, 12.197587]]
    np.testing.assert_allclose(turned, expected, atol=1e-6)
