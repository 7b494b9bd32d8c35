"""Dropout: shares, means and gradients against the definition; the generator of random numbers is torch's own."""

import pytest
import torch

from generator.dropout import Dropout


@pytest.fixture
def ones() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.ones(301, 1001, requires_grad=True)


def test_a_share_is_dropped_and_the_mean_is_kept(ones: torch.Tensor) -> None:
    y = Dropout(0.1)(ones).detach()
    n = y.numel()
    dropped = float((y == 0).double().mean())
    assert abs(dropped - 0.1) < 4 * (0.1 * 0.9 / n) ** 0.5  # four standard errors of a binomial share
    assert y.unique().tolist() == pytest.approx([0.0, 1 / 0.9], abs=1e-4)


def test_elements_are_dropped_independently(ones: torch.Tensor) -> None:
    """Four elements share a word: neighbours at every distance up to 4 must be uncorrelated."""
    gone = (Dropout(0.3)(ones).detach().flatten() == 0).double() - 0.3
    for step in (1, 2, 3, 4):
        correlation = float((gone[:-step] * gone[step:]).mean()) / 0.21
        assert abs(correlation) < 4 / len(gone) ** 0.5


def test_the_gradient_is_that_of_the_mask(ones: torch.Tensor) -> None:
    y = Dropout(0.5)(ones)
    y.sum().backward()
    assert ones.grad is not None
    assert torch.equal(ones.grad, y.detach())


def test_a_seed_repeats_it_and_evaluation_leaves_it_out(ones: torch.Tensor) -> None:
    layer = Dropout(0.2)
    torch.manual_seed(3)
    first = layer(ones)
    torch.manual_seed(3)
    assert torch.equal(first, layer(ones))
    assert torch.equal(layer.eval()(ones), ones)


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_impossible_probabilities_are_refused(p: float) -> None:
    with pytest.raises(ValueError, match="dropout probability"):
        Dropout(p)
