"""Dropout whose random numbers are cheap on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEVELS = 2**16


class Dropout(nn.Module):
    """Inverted dropout (Srivastava et al., JMLR 15, 1929 (2014)), as `torch.nn.Dropout`, for CPUs.

    There a float for each element is most of what dropout costs, and is drawn by one thread. Here one 64-bit integer
    decides on four elements; the probability is thereby a multiple of 2^-16.

    Args:
        p: probability of an element to be set to zero, in [0, 1).

    Raises:
        ValueError: no such probability.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"expected a dropout probability in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Of the same shape."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return F.dropout(x, self.p, self.training)
        kept = round((1 - self.p) * LEVELS)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        levels = words.view(torch.int16)[: x.numel()].view(x.shape)  # uniform on -2^15 ... 2^15 - 1
        return x * (levels < kept - LEVELS // 2).to(x.dtype).mul_(LEVELS / kept)
