"""Counts of calls: a pass forward is one, a pass back two, of each state."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

import rwguidance as rw

__all__ = ["CountedModel", "CountedReward"]


def _watched(values: Tensor, note: Callable[[int], None]) -> Tensor:
    """The values, whose passes forward and back are noted."""

    note(len(values))
    if values.requires_grad:
        n = len(values)
        values.register_hook(lambda gradient: note(2 * n))
    return values


class CountedModel(rw.Model):
    """A model that counts its calls."""

    def __init__(self, model: rw.Model) -> None:
        super().__init__(model.schedule)
        self.model, self.calls = model, 0

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> rw.Prediction:
        mean = _watched(self.model(x_t, t, condition).mean, self._note)
        return rw.Prediction.from_mean(mean, x_t, self.schedule.at(t, like=x_t))

    def _note(self, n: int) -> None:
        self.calls += n


class CountedReward:
    """A reward that counts its calls."""

    def __init__(self, reward: Callable[..., Tensor]) -> None:
        self.reward, self.calls = reward, 0

    def __call__(self, x: Tensor, condition: Any = None) -> Tensor:
        return _watched(self.reward(x, condition), self._note)

    def _note(self, n: int) -> None:
        self.calls += n
