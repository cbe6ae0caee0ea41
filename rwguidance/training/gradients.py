"""The objective for models of one or a few steps that takes the gradients of its pictures once."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..noise_space.networks import change_of
from ..support import checks
from ..support.conditions import take
from ..support.randomness import generator_for
from .one_step import ONE_STEP, OneStepObjective

__all__ = ["GradientObjective"]


@dataclass(frozen=True)
class _Side:
    """States that a network sees at one time, and the changes that it should want of them."""

    time: float
    states: Tensor
    changes: Tensor
    size: Tensor


@dataclass(eq=False, repr=False)
class GradientObjective(OneStepObjective):
    r"""Trains one network for changes of the noise and of the output, on pictures scored once.

    Some pictures :math:`x = G(z, y)` are made and scored, and the gradients of their log-weights in
    the noise and in the output are kept. The network is regressed on both,

    .. math:: d(z, y) \to \mathrm{std}^2 \, \nabla_z \log w(G(z, y), y), \qquad
        f(x, y) \to \mathrm{variance} \, \nabla_x \log w(x, y),

    which minimize the losses of :class:`NoiseObjective` and :class:`OutputObjective` to first order
    in the change. Those score a batch of new pictures in every step; here steps cost passes of the
    network alone, so that few pictures serve many steps. Each squared error is divided by the mean
    square of its gradients, so that it is 1 for a network that changes nothing.

    A change of the noise stays on what the model can make, and little of it can be told from the
    noise; a change of the output gains more reward and leaves the law of the model. Guide with
    :func:`rwguidance.noise_space.change_map`, which makes both.

    It takes the arguments of :class:`OneStepObjective`, and more. Gradients pass through the
    generator: make it with ``flow_map(..., gradient=True)``. Pictures are made in the first call,
    `batch_size` at once, by every process for itself.

    Arguments:
        std: Standard deviation of the noise, positive.
        variance: Variance of the clean states of a condition in every direction, positive, in
            squared data units; the length of what the network wants of outputs is proportional to
            it.
        pictures: Number of pictures that are made and scored, whose conditions are taken in turn.
        seed: Seed of their noise.
    """

    depends_on = (*ONE_STEP, "std", "variance", "pictures", "seed")

    std: float = 1.0
    variance: float = 1.0
    pictures: int = 1200
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.std = checks.number("std", self.std, above=0)
        self.variance = checks.number("variance", self.variance, above=0)
        self.pictures = checks.integer("pictures", self.pictures, 1)
        self.seed = checks.integer("seed", self.seed)

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        rows = torch.randint(self.pictures, (self.batch_size,), generator=generator)
        condition = self._condition(rows)
        return {name: _error(network, side, rows, condition) for name, side in self.sides.items()}

    @cached_property
    def sides(self) -> dict[str, Any]:
        """The states of all pictures and the changes that are wanted of them, by side.

        Raises:
            ValueError: If no gradient reaches the noise or the output, or all of them are zero.
        """

        parts = []
        for start in range(0, self.pictures, self.batch_size):
            rows = torch.arange(start, min(start + self.batch_size, self.pictures))
            parts.append(self._scored(start, rows))
        z, of_z, x, of_x = (torch.cat(part) for part in zip(*parts, strict=True))
        sides = {"noise": (1.0, z, self.std**2 * of_z), "output": (0.0, x, self.variance * of_x)}
        return {
            name: _Side(time, states, changes, _mean_square(name, changes))
            for name, (time, states, changes) in sides.items()
        }

    def _scored(self, start: int, rows: Tensor) -> tuple[Tensor, ...]:
        """Noise, the gradient in it, outputs and the gradient in them."""

        condition = self._condition(rows)
        noise = self.draw(len(rows), generator_for(self.seed, "pictures", start))
        with torch.enable_grad():
            noise = noise.detach().requires_grad_()
            x_0 = self.generate(noise, condition)
            log_w = self.log_w(x_0, condition)
            of_noise, of_x = torch.autograd.grad(log_w.sum(), (noise, x_0), allow_unused=True)
        if of_noise is None or of_x is None:
            raise ValueError(
                "generate must carry gradients from the noise to its states, but they carry none; "
                "make it with flow_map(model, sampler, times, gradient=True)"
            )
        return noise.detach(), of_noise, x_0.detach(), of_x

    def _condition(self, rows: Tensor) -> Any:
        if self.condition is None:
            return None
        return take(self.condition, (rows % len(self.condition)).tolist())


def _error(network: nn.Module, side: _Side, rows: Tensor, condition: Any) -> Tensor:
    some = rows.to(side.states.device)
    change = change_of(network, side.states[some], side.time, condition)
    return (change - side.changes[some]).square().mean() / side.size


def _mean_square(name: str, changes: Tensor) -> Tensor:
    size = changes.square().mean()
    if not bool(size > 0):
        raise ValueError(f"tilt must have a gradient in the {name}, but all of it is {float(size)}")
    return size
