r"""Steps of the noise along the gradient of the reward: one picture, a few calls, no bank.

The noise of the tilted law has the log-density :math:`\log w(G(z)) - z^T C^{-1} z / 2`. A draw z of
N(0, C), moved along the gradient,

.. math:: z' = z + c \, C \, \nabla_z \log w(G(z)),

is a draw of it if c = 1 and :math:`\log w(G(z))` is linear in z. Otherwise the step is an
approximation: it moves the mean of :math:`\log w` by
:math:`c \, E[\nabla^T C \, \nabla] + O(c^2)`, and the tilt by
:math:`\mathrm{Var}(\log w)` in the same order of the strength. Since the Gaussian Poincare
inequality says that :math:`\mathrm{Var}(\log w) \le E[\nabla^T C \, \nabla]`, a generator that is
bent needs c < 1 where the tilt is weak; :func:`size_for_gain` finds it. The correction that makes
it exact is :func:`rwguidance.noise_space.pcnl`.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ..schedules import working_dtype
from ..support import checks
from ..support.randomness import Generators
from ..tilt import Tilt
from .generators import Draw, Generate
from .slopes import check_differentiable, inner, slope
from .tasks import Selection, Task

__all__ = ["GainOutOfReach", "noise_gradient", "size_for_gain"]

_DOUBLINGS, _HALVINGS = 8, 5
# Gains flatten where the norm is kept: of sizes that gain nearly as much the smallest moves least.
_NEARLY = 0.95


class GainOutOfReach(ValueError):
    """No size of some steps gains what was asked.

    Arguments:
        message: The message.
        size: The smallest of the sizes that were tried which gains nearly as much as any.
        gain: Gain of the pilots with it, in nats; it may be negative.
    """

    def __init__(self, message: str, size: float, gain: float) -> None:
        super().__init__(message)
        self.size, self.gain = size, gain


def noise_gradient(
    generate: Generate,
    tilt: Tilt,
    draw: Draw,
    outputs: int,
    size: float,
    steps: int = 1,
    condition: Any = None,
    generator: Generators = None,
    batch_size: int | None = None,
    std: float = 1.0,
    keep_norm: bool = True,
    proxy: Generate | None = None,
) -> Selection:
    r"""Moves fresh noise along the gradient of the log-weight, and generates from where it ends.

    .. math:: d = z + c \, \mathrm{std}^2 \, \nabla_z \log w(G(z)), \qquad z' = |z| \, d / |d|

    The norm of high-dimensional Gaussian noise hardly varies, and generators have seen no other; so
    it is kept. Without it, c = 1 is exact where the log-weight is linear in the noise.

    Arguments:
        generate: The generator, differentiable: ``flow_map(..., gradient=True)``.
        tilt: The tilt, whose rewards and `decode` are differentiable.
        draw: A function that draws noise of the law N(0, std^2 I).
        outputs: Number of outputs B, at least 1.
        size: The size c of every step, positive; :func:`size_for_gain` finds one.
        steps: Number of steps, at least 1, each with a gradient of its own. Strong tilts need
            several.
        condition: Conditions of the B outputs, as
            :func:`rwguidance.support.conditions.take` takes them.
        generator: Source of randomness: one, or one per output, with which an output depends
            neither on the others nor on `batch_size`.
        batch_size: Number of states whose gradients are computed at once. None is `outputs`.
        std: Standard deviation of the noise, such as the sigma of the first time.
        keep_norm: Whether z' has the norm of z, which is not meant for noise of few dimensions.
        proxy: A cheaper generator whose gradients are used. None is `generate` itself.

    Returns:
        The states at the last noise, with the diagnostic ``squared_slope``, the mean over the steps
        of :math:`\mathrm{std}^2 |\nabla_z \log w|^2`, in squared nats. An output costs `steps`
        gradients, of one forward and one backward pass each, and one forward pass.

    Raises:
        ValueError: If generator or tilt carry no gradient. If a number is out of range, or a length
            does not fit.
        FloatingPointError: If a gradient is not finite; names the outputs.
        TypeError: If `tilt` is no Tilt, or noise or states are no batches of floating point.
    """

    task = Task(generate, tilt, draw, outputs, condition, generator, batch_size)
    climb = _Climb(task, size, steps, std, keep_norm, proxy)
    with torch.no_grad():
        parts = [climb.run(task.noise(rows), rows) for rows in task.groups()]
    noise, x_0, log_w, slopes = (torch.cat(column) for column in zip(*parts, strict=True))
    return Selection(x_0, noise, log_w, climb.steps + 1, {"squared_slope": slopes})


def size_for_gain(
    generate: Generate,
    tilt: Tilt,
    noise: Tensor,
    gain: float,
    steps: int = 1,
    condition: Any = None,
    batch_size: int | None = None,
    std: float = 1.0,
    keep_norm: bool = True,
    proxy: Generate | None = None,
) -> float:
    r"""Finds the size with which :func:`noise_gradient` raises the mean log-weight by `gain`.

    The tilted law's gain is that of a bank, :math:`\tilde E[\log w] - E[\log w]`, or
    :math:`\mathrm{Var}(\log w) = 2 \, \mathrm{KL}` where the log-weight is about Gaussian. The
    search begins at gain / (mean squared slope), which is too small where the gain grows less than
    linearly; it doubles the size until the gain is reached, and bisects.

    Arguments:
        generate: As for :func:`noise_gradient`, as are `tilt`, `steps`, `std`, `keep_norm` and
            `proxy`.
        tilt: The tilt.
        noise: Noise of a few pilots, with shape (n, \*event). The error of the gain is that of a
            mean of n.
        gain: Gain of the mean log-weight, positive, in nats.
        steps: Number of steps.
        condition: Conditions of the n pilots.
        batch_size: Number of pilots at once. None is all.
        std: Standard deviation of the noise.
        keep_norm: Whether the norm is kept.
        proxy: A cheaper generator whose gradients are used.

    Returns:
        The size, within 3 % of one at which the pilots gain as much.

    Raises:
        GainOutOfReach: If no size reaches the gain, a ValueError: says which gain was reached.
        ValueError: As :func:`noise_gradient` says.
    """

    checks.states("noise", noise)
    gain = checks.number("gain", gain, above=0)
    source = lambda n, generator: noise
    task = Task(generate, tilt, source, len(noise), condition, None, batch_size)
    climb = _Climb(task, 1.0, steps, std, keep_norm, proxy)
    with torch.no_grad():
        pilots = _Pilots(climb, noise)
        if pilots.squared_slope == 0:  # no size moves anything
            raise _out_of_reach({0.0: 0.0}, gain, steps)
        low = gain / pilots.squared_slope
        reached = high = low
        gains: dict[float, float] = {}
        for _ in range(_DOUBLINGS):
            gains[high] = pilots.gain(high)
            if gains[high] >= gain:
                break
            low, high = high, 2 * high
        else:
            raise _out_of_reach(gains, gain, steps)
        if high == reached:  # the first size is already too large
            low = high / 2
            while pilots.gain(low) >= gain and low > high / 2**_DOUBLINGS:
                low /= 2
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            low, high = (low, middle) if pilots.gain(middle) >= gain else (middle, high)
    return math.sqrt(low * high)


def _out_of_reach(gains: dict[float, float], gain: float, steps: int) -> GainOutOfReach:
    most = max(gains.values())
    size = min(size for size, found in gains.items() if found >= min(_NEARLY * most, most))
    message = (
        f"gain must be one that {steps} steps reach, at most {most:.3g} nats on these pilots, "
        f"got {gain:.3g}; take more steps or a weaker tilt"
    )
    return GainOutOfReach(message, size, gains[size])


class _Climb:
    """The settings of steps along the gradient, and the steps."""

    def __init__(
        self,
        task: Task,
        size: float,
        steps: int,
        std: float,
        keep_norm: bool,
        proxy: Generate | None,
    ) -> None:
        check_differentiable(task.tilt)
        checks.optional(checks.function, "proxy", proxy)
        self.task = task
        self.size = checks.number("size", size, above=0)
        self.steps = checks.integer("steps", steps, 1)
        self.std = checks.number("std", std, above=0)
        self.keep_norm = checks.flag("keep_norm", keep_norm)
        self.generate = proxy or task.generate

    def run(
        self, noise: Tensor, rows: list[int], size: float | None = None, first: Any = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noise, states, log-weights and mean squared slopes of the outputs `rows` after all steps.

        The gradient of the first step is `first`, if it is known.
        """

        z, slopes = noise.to(working_dtype(noise.dtype)), []
        for step in range(self.steps):
            known = step == 0 and first is not None
            gradient = first if known else self.gradient(z, rows, noise.dtype)
            slopes.append(self.std**2 * inner(gradient, gradient))
            z = self.moved(z, gradient, size or self.size)
        x_0, log_w = self.task.evaluate(z.to(noise.dtype), rows)
        return z.to(noise.dtype), x_0, log_w, torch.stack(slopes).mean(0)

    def gradient(self, z: Tensor, rows: list[int], dtype: torch.dtype) -> Tensor:
        return slope(self.task, self.generate, z, rows, dtype)[2]

    def moved(self, z: Tensor, gradient: Tensor, size: float) -> Tensor:
        """Noise after one step."""

        moved = z + size * self.std**2 * gradient
        if not self.keep_norm:
            return moved
        axes = tuple(range(1, z.ndim))
        norm = lambda x: torch.linalg.vector_norm(x, dim=axes, keepdim=True)
        return moved * (norm(z) / norm(moved))


class _Pilots:
    """Pilots, whose first gradients and log-weights are computed once for all sizes."""

    def __init__(self, climb: _Climb, noise: Tensor) -> None:
        self.climb, self.noise, self.groups = climb, noise, climb.task.groups()
        z = noise.to(working_dtype(noise.dtype))
        self.first = [climb.gradient(z[rows], rows, noise.dtype) for rows in self.groups]
        before = [climb.task.evaluate(noise[rows], rows)[1] for rows in self.groups]
        self.before = float(torch.cat(before).double().mean())
        flat = torch.cat(self.first).flatten(1).double()
        self.squared_slope = float((climb.std * flat).square().sum(1).mean())

    def gain(self, size: float) -> float:
        """Mean gain of the log-weight with steps of a size, in nats."""

        runs = [
            self.climb.run(self.noise[rows], rows, size, first)[2]
            for rows, first in zip(self.groups, self.first, strict=True)
        ]
        return float(torch.cat(runs).double().mean()) - self.before
