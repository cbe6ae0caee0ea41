"""Pretrained text-to-image models, as the library sees them: what makes states, and two ends."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from .models import Model
from .samplers import DDIM, Sampler
from .support.randomness import Generators

__all__ = ["Backbone", "Generator", "TextToImage"]


class TextToImage(nn.Module, ABC):
    """The two ends of a pretrained model: prompts and noise in, images out.

    What is between them is a path of noisy states, as :class:`Backbone` says, or one call, as
    :class:`Generator` says.
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
        r"""Draws the noise that states are made of, Gaussian, centered, of one standard deviation.

        That of a :class:`Backbone` are states at the noise end, `times(steps)[0]`, scaled by its
        :math:`\sigma`.

        Arguments:
            n: Number of samples.
            generator: Source of randomness: one, or one per sample.

        Returns:
            Noise with shape (n, \*shape), on the device and in the dtype of the network.
        """

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        r"""Returns images of clean states: floating point in [0, 1], sRGB, with shape (B, 3, H, W).

        Differentiable in the latents, for rewards whose gradients are wanted.

        Arguments:
            latents: Clean states, with shape (B, \*event).
        """


class Backbone(Model, TextToImage):
    r"""A pretrained model with its conditioning, its noise, its decoder and its times.

    Everything one needs to sample:

    .. code-block:: python

        condition = backbone.condition(prompts)
        x_1 = backbone.draw_noise(len(prompts), generator)
        x_0 = sample(backbone, backbone.sampler, x_1, backbone.times(30), condition, generator)
        images = backbone.decode(x_0)

    An adapter flips signs and clocks here and nowhere else: times are in [0, 1], with data at 0.

    Arguments:
        schedule: The path the model was trained on.
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


class Generator(TextToImage):
    r"""A pretrained map from noise to clean states, :math:`x_0 = G(z, y)`, of any two shapes.

    A GAN, or a variational autoencoder that is conditioned in its decoder. There is no path between
    noise and data, and so nothing to guide; best of n and the methods of
    :mod:`rwguidance.noise_space` need none. A call of the object is :meth:`generate`.
    """

    std: float = 1.0
    """Standard deviation of its noise."""

    @abstractmethod
    def generate(self, noise: Tensor, condition: Any) -> Tensor:
        r"""Returns clean states of noise, differentiable where gradients are wanted.

        Arguments:
            noise: Noise as :meth:`draw_noise` draws it, with shape (B, \*shape).
            condition: Conditions of the B samples, as :meth:`condition` returns them.

        Returns:
            Clean states with shape (B, \*event), in the dtype of the noise.
        """

    def forward(self, noise: Tensor, condition: Any) -> Tensor:
        return self.generate(noise, condition)
