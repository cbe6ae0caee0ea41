"""Objectives for models of one or a few steps: a network changes their output, or their noise."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sized
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..noise_space import Draw, Generate
from ..noise_space.networks import change_of
from ..noise_space.slopes import check_differentiable
from ..support import checks
from ..support.conditions import condition_keys, take
from ..tilt import Tilt
from .chunks import log_w_in_chunks

__all__ = ["ONE_STEP", "NoiseObjective", "OneStepObjective", "OutputObjective", "Prior"]

Prior = Callable[[Tensor, Any, torch.Generator], Tensor]
r"""A function of clean states (B, \*event), condition and generator to nats, with shape (B,)."""

ONE_STEP = ("generate", "tilt", "draw", "condition", "batch_size")
"""Names of the attributes of :class:`OneStepObjective` that decide results."""


@dataclass(eq=False, repr=False)
class OneStepObjective(ABC):
    """A loss of a network that changes what a generator makes, by the gradient of the reward.

    Arguments:
        generate: The generator, frozen.
        tilt: The tilt, whose rewards and `decode` are differentiable.
        draw: A function that draws noise.
        condition: Conditions from which each step takes some at random, such as what
            `backbone.condition(prompts)` returns; None if there are none.
        batch_size: Number of states per step.
        decode_batch: Number of states that are decoded and scored at once, with the gradient of
            their log-weights; None is all of them. The memory of decoder and reward is that of so
            many; the gradient is the same up to rounding.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If `batch_size` or `decode_batch` is less than 1, there are no conditions, or a
            reward says of itself that it has no gradient.
    """

    depends_on: ClassVar[tuple[str, ...]]
    """Names of the attributes that decide results, see :mod:`rwguidance.support.fingerprint`.

    How many states are decoded at once decides the rounding alone.
    """

    generate: Generate
    tilt: Tilt
    draw: Draw
    condition: Any = None
    _: KW_ONLY
    batch_size: int = 16
    decode_batch: int | None = None

    def __post_init__(self) -> None:
        checks.function("generate", self.generate)
        checks.instance("tilt", self.tilt, Tilt, "a Tilt")
        checks.function("draw", self.draw)
        self.batch_size = checks.integer("batch_size", self.batch_size, 1)
        checks.optional(checks.integer, "decode_batch", self.decode_batch, 1)
        check_differentiable(self.tilt)
        _check_condition(self.condition)

    @abstractmethod
    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """Draws a batch and returns the terms of the loss, in nats, scalars by name."""

    def drawn(self, generator: torch.Generator) -> tuple[Tensor, Any]:
        """Returns noise of a batch, and its conditions."""

        condition = self.condition
        if condition is not None:
            rows = torch.randint(len(condition), (self.batch_size,), generator=generator)
            condition = take(condition, rows.tolist())
        return self.draw(self.batch_size, generator), condition

    def log_w(self, x_0: Tensor, condition: Any) -> Tensor:
        """Returns log-weights of states, which carry gradients.

        Raises:
            ValueError: If they carry none.
        """

        if self.decode_batch is None or not x_0.requires_grad:
            log_w = self.tilt(x_0, condition)
        else:
            log_w = log_w_in_chunks(self.tilt, x_0, condition, self.decode_batch)
        if log_w is None or not log_w.requires_grad:
            raise ValueError(
                "tilt must be differentiable in the states, and generate in the noise, but no "
                "gradient reaches the network; EstimatedShiftObjective needs none"
            )
        return log_w


def _check_condition(condition: Any) -> None:
    """Raises for what holds no conditions that could be counted and taken out."""

    if condition is None:
        return
    if not isinstance(condition, Sized) or isinstance(condition, Mapping):
        raise TypeError(
            "condition must have one item per prompt, as what backbone.condition(prompts) returns "
            f"or a list, got {checks.described(condition)}"
        )
    if len(condition) == 0:
        raise ValueError("condition must hold one item at least, got none")
    condition_keys(condition, len(condition))
    take(condition, [0])


@dataclass(eq=False, repr=False)
class OutputObjective(OneStepObjective):
    r"""Trains a network for a change of the output, :math:`x + f(x, y)` with :math:`x = G(z, y)`.

    .. math:: E\Big[ -\log w(x + f, y) + \frac{\|f\|^2}{2 \, \mathrm{variance}} \Big]

    Gradients pass through the reward and its decoder, not through the generator, so that a step
    costs one forward pass of it. The minimum is the proximal map of the log-weight. Where the law
    of x is Gaussian with this variance and the log-weight is linear, that is the tilted law; where
    it is quadratic, the mean is that of the tilted law, and the variance too small, by the factor
    that the tilt itself makes it smaller. Otherwise it is a step towards more reward that stays
    near, not a draw of the tilted law: hold what it makes against a bank
    (:func:`rwguidance.metrics.energy_distance`).

    It takes the arguments of :class:`OneStepObjective`, and one more. Guide with
    :func:`rwguidance.noise_space.output_map`.

    Arguments:
        variance: Variance of the clean states of a condition in every direction, positive, in
            squared data units; less of it keeps outputs nearer.
    """

    depends_on = (*ONE_STEP, "variance")

    variance: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.variance = checks.number("variance", self.variance, above=0)

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        noise, condition = self.drawn(generator)
        with torch.no_grad():
            x_0 = self.generate(noise, condition)
        change = change_of(network, x_0, 0.0, condition)
        near = change.square().flatten(1).sum(1) / (2 * self.variance)
        return {"reward": -self.log_w(x_0 + change, condition).mean(), "proximal": near.mean()}


@dataclass(eq=False, repr=False)
class NoiseObjective(OneStepObjective):
    r"""Trains a network for a change of the noise, :math:`G(z + d(z, y), y)`.

    .. math:: E\Big[ -\log w(G(z + d), y) + \frac{\|d\|^2}{2 \, \mathrm{std}^2} \Big]

    The tilted law of the noise minimizes :math:`E[-\log w] + \mathrm{KL}`, and the divergence of
    changed noise from noise is exactly

    .. math:: \mathrm{KL} = E\Big[ \frac{\|d\|^2}{2 \, \mathrm{std}^2} \Big]
        + E\big[ \mathrm{tr} \, \partial d - \log |\det(I + \partial d)| \big],

    whose second part is zero where d is the same for all noise (so the minimum is the tilted law if
    the log-weight is linear in the noise), of second order in the derivative of d otherwise, and is
    left out. Without it noise may contract: with a quadratic log-weight the mean is that of the
    tilted law, and the variance too small.

    It takes the arguments of :class:`OneStepObjective`, and two more. Gradients pass through the
    generator: make it with ``flow_map(..., gradient=True)``. Guide with
    :func:`rwguidance.noise_space.noise_map`.

    Arguments:
        std: Standard deviation of the noise, positive, such as the sigma of the first time.
        prior: What takes the place of the divergence, such as the negative log-density of outputs
            under a flow (:func:`rwguidance.regularizers.flow_prior`); None for the divergence.

    References:
        | Noise Hypernetworks (Eyring et al., 2025), arXiv:2508.09968
    """

    depends_on = (*ONE_STEP, "std", "prior")

    std: float = 1.0
    prior: Prior | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.std = checks.number("std", self.std, above=0)
        checks.optional(checks.function, "prior", self.prior)

    def __call__(self, network: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        noise, condition = self.drawn(generator)
        change = change_of(network, noise, 1.0, condition)
        x_0 = self.generate(noise + change, condition)
        reward = -self.log_w(x_0, condition).mean()
        if self.prior is not None:
            return {"reward": reward, "prior": self.prior(x_0, condition, generator).mean()}
        divergence = change.square().flatten(1).sum(1) / (2 * self.std**2)
        return {"reward": reward, "divergence": divergence.mean()}
