"""The mean of a policy's weights over the last iterations of a run: a steadier policy than the last one alone.

Each update teaches a few crystals, so that the last weights lean to those that came last; their mean does not
(averages of the last part of a run: Rakhlin, Shamir and Sridharan, arXiv 1109.5647; of networks: Izmailov et al.,
arXiv 1803.05407). Learning goes on from the weights themselves, the mean is what a finished run leaves.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from generator.model import CrystalFormer

COUNT = "count"


class TailMean:
    """Running mean of all that a run moves: the network's weights, and the logits of p(g)."""

    def __init__(self, policy: CrystalFormer) -> None:
        self._weights = dict(policy.named_parameters()) | {"space_group_logits": policy.space_group_logits}
        self.count = 0
        self._mean: dict[str, Tensor] = {}

    def after(self, iteration: int, iterations: int, part: float) -> None:
        """Take up the weights after an iteration (from 1), if it belongs to the last `part` of a run of `iterations`.

        Earlier ones leave no trace: where a run is made longer, the mean starts over.
        """
        before = iterations - math.ceil(part * iterations)
        if iteration - self.count <= before:
            self.count, self._mean = 0, {}
        if iteration <= before:
            return
        self.count += 1
        for name, weight in self._weights.items():
            now = weight.detach()
            self._mean[name] = now.clone() if self.count == 1 else self._mean[name].lerp(now, 1 / self.count)

    def put(self) -> None:
        """The policy gets the mean; where nothing was taken up it stays as it is."""
        with torch.no_grad():
            for name, mean in self._mean.items():
                self._weights[name].copy_(mean)

    def tensors(self) -> dict[str, Tensor]:
        """All of it, for a file."""
        return {COUNT: torch.tensor(self.count), **self._mean} if self.count else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of `tensors`."""
        self.count = int(tensors.pop(COUNT, torch.tensor(0)))
        self._mean = {name: tensors[name].to(self._weights[name]) for name in tensors}
