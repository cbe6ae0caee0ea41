"""Pretrained text-to-image models, as the library sees them: a model and its two ends."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from .models import Model
from .samplers import DDIM, Sampler
from .support.randomness import Generators

__all__ = ["Backbone"]


class Backbone(Model, ABC):
    r"""A pretrained model with its conditioning, its noise, its decoder and its times.

    Everything one needs to sample:

        condition = backbone.condition(prompts)
        x_1 = backbone.draw_noise(len(prompts), generator)
        x_0 = sample(backbone, backbone.sampler, x_1, backbone.times(30), condition, generator)
        images = backbone.decode(x_0)

    An adapter flips signs and clocks here and nowhere else: times are in [0, 1], with data at 0.

    Arguments:
        schedule: The path the model was trained on.
    """

    incidental: ClassVar[tuple[str, ...]] = ()
    """Names of attributes that change no sample, such as batch sizes: a bank outlives them."""

    @abstractmethod
    def condition(self, prompts: Sequence[str]) -> Any:
        """Encodes prompts, once per run, into what the network is conditioned on.

        The result has a length and iterates over the prompts, one per sample, since banks and
        rewards tell conditions apart by them; how it holds its embeddings is its own affair.

        Arguments:
            prompts: One prompt per sample.
        """

    @abstractmethod
    def draw_noise(self, n: int, generator: Generators = None) -> Tensor:
        r"""Draws states at the noise end, `times(steps)[0]`, scaled by its :math:`\sigma`.

        Arguments:
            n: Number of states.
            generator: Source of randomness: one, or one per state.

        Returns:
            States with shape (n, \*event), on the device and in the dtype of the network.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        r"""Returns images of clean states: floating point in [0, 1], sRGB, with shape (B, 3, H, W).

        Differentiable in the latents, for rewards whose gradients are wanted.

        Arguments:
            latents: Clean states, with shape (B, \*event).
        """

    @abstractmethod
    def times(self, steps: int) -> Tensor:
        """Returns the times that the model's authors recommend, for :func:`rwguidance.sample`.

        Arguments:
            steps: Number of steps, at least 1.

        Returns:
            Strictly decreasing times in [0, 1], float64, with shape (steps + 1,).
        """

    @property
    def sampler(self) -> Sampler:
        """The steps that the model's authors recommend between these times."""

        return DDIM()
