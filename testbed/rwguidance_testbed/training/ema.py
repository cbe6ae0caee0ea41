"""Exponential moving averages of weights."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage:
    """Copies of modules whose weights follow theirs.

    Arguments:
        modules: Modules that are trained; copied as they are now.
        decay: Share of an average that one step keeps.
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float = 0.999) -> None:
        self.decay = decay
        self.modules = [copy.deepcopy(m).eval().requires_grad_(False) for m in modules]
        """The copies, in the order of the modules."""
        self._weights: list[Tensor] = [p for module in modules for p in module.parameters()]
        self._averages: list[Tensor] = [p for module in self.modules for p in module.parameters()]

    def update(self, step: int) -> None:
        """Moves the averages towards the weights.

        Arguments:
            step: Number of steps taken; the averages of the first ones reach less far back.
        """

        share = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, [w.detach() for w in self._weights], share)
