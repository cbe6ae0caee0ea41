"""Guidance networks for vectors and small images: perceptrons."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..schedules import Schedule
from ..support import checks
from ..support.conditions import condition_keys
from ..support.randomness import seeded
from .common import FREQUENCIES, check_sizes, posterior_variance, silence, waves

__all__ = ["ExpectationMLP", "ShiftMLP"]


class ExpectationMLP(nn.Module):
    r"""A perceptron for :math:`\log h_t`.

    Arguments:
        event: Shape of one state.
        labels: Conditions that the network will see; None if there are none.
        width: Size of the hidden layers.
        depth: Number of hidden layers.
        seed: Seed of the initial weights.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.
    """

    depends_on = ()

    def __init__(
        self,
        event: Sequence[int],
        labels: Sequence[Hashable] | None = None,
        width: int = 256,
        depth: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_sizes("event", event)
        self.trunk = _Trunk(math.prod(event), 1, labels, width, depth, seed)

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.trunk(x_t.flatten(1), t, condition).squeeze(1)


class ShiftMLP(nn.Module):
    r"""A perceptron for the shift, scaled by :math:`\sigma_t^2 / (\alpha_t^2 + \sigma_t^2)`.

    That is the posterior variance under a unit Gaussian prior: the size of a shift at that time.

    Arguments:
        event: Shape of one state.
        schedule: Path of the base model.
        labels: Conditions that the network will see; None if there are none.
        width: Size of the hidden layers.
        depth: Number of hidden layers.
        seed: Seed of the initial weights.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If an argument is out of range.
    """

    depends_on = ("schedule",)

    def __init__(
        self,
        event: Sequence[int],
        schedule: Schedule,
        labels: Sequence[Hashable] | None = None,
        width: int = 256,
        depth: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check_sizes("event", event)
        checks.instance("schedule", schedule, Schedule, "a Schedule")
        size = math.prod(event)
        self.schedule = schedule
        self.trunk = _Trunk(size, size, labels, width, depth, seed)

    def forward(self, x_t: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        shift = self.trunk(x_t.flatten(1), t, condition).reshape(x_t.shape)
        return posterior_variance(self.schedule.at(t, like=x_t)) * shift


class _Trunk(nn.Module):
    """Residual perceptron on [state, time features, label embedding]."""

    depends_on = ("labels",)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        labels: Sequence[Hashable] | None,
        width: int,
        depth: int,
        seed: int,
    ) -> None:
        super().__init__()
        if labels is not None:
            checks.instance("labels", labels, Sequence, "a list of labels or None")
            labels = condition_keys(labels, len(labels), "labels") or ()
        checks.integer("width", width, 1)
        checks.integer("depth", depth, 1)
        checks.integer("seed", seed)
        self.labels = None if labels is None else {key: i for i, key in enumerate(labels)}
        with seeded(seed):
            self.first = nn.Linear(inputs + 2 * FREQUENCIES, width)
            self.embedding = None if labels is None else nn.Embedding(len(labels), width)
            self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(depth - 1))
            self.last = nn.Linear(width, outputs)
        silence(self.last)

    def forward(self, x: Tensor, t: Tensor, condition: Any) -> Tensor:
        features = waves(torch.pi / 2 * t).to(x.dtype)
        hidden = self.first(torch.cat((x, features), dim=1))
        if self.embedding is not None:
            hidden = hidden + self.embedding(self._indices(condition, x))
        for layer in self.hidden:
            hidden = hidden + layer(nn.functional.silu(hidden))
        return self.last(nn.functional.silu(hidden))

    def _indices(self, condition: Any, x: Tensor) -> Tensor:
        assert self.labels is not None
        keys = condition_keys(condition, len(x))
        if keys is None or any(key not in self.labels for key in keys):
            unknown = [key for key in dict.fromkeys(keys or ()) if key not in self.labels]
            raise ValueError(
                f"condition must hold labels that the network knows, {list(self.labels)}, "
                f"got {unknown if keys else None}"
            )
        return torch.tensor([self.labels[key] for key in keys], device=x.device)
