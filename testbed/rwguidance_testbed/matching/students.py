r"""The students as generators: from noise and captions to clean latents, with gradients.

Latents are those of the flow. The class of SDXL adds the autoencoder's shift to them.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.outside import require

from .. import flow, turbo
from .pool import Captions
from .scores import trainable_copy

__all__ = ["FlowStudent", "Student", "TurboStudent", "flow_sigmas"]


def flow_sigmas() -> list[float]:
    """Returns the noise levels of the four steps of the flow, and the clean end."""

    diffusers = require("diffusers", "the test bed needs", "backbones")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(4)
    levels: list[float] = scheduler.sigmas.tolist()
    return levels


class Student(nn.Module, ABC):
    """A network that turns noise into clean latents in one or several steps.

    Arguments:
        network: Network to train.
        captions: Embeddings of the captions of a pool.
    """

    def __init__(self, network: Any, captions: Captions) -> None:
        super().__init__()
        self.network, self.captions = network, captions

    def noise(self, count: int, generator: Generator) -> Tensor:
        """Returns standard normal noise of the shape of latents."""

        config = self.network.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, generator=generator, device=generator.device)

    @abstractmethod
    def draw(self, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """Draws clean latents, with gradients.

        Arguments:
            index: Captions to draw, their places in the pool, with shape (B,).
            generator: Source of the noise.

        Returns:
            Latents with shape (B, C, H, W), and the places of their captions, which may be others.
        """

    @abstractmethod
    def regression(self, path: Tensor, index: Tensor, generator: Generator) -> Tensor:
        """Returns the mean squared error of jumps along paths of the teacher.

        Arguments:
            path: States of each path at the levels of :func:`flow_sigmas`, with shape
                (B, 5, C, H, W).
            index: Captions of the paths, their places in the pool, with shape (B,).
            generator: Source of other random numbers.
        """


class FlowStudent(Student):
    """The flow of four steps of Euler, the last of which hardly does anything.

    Arguments:
        transformer: Transformer to start from.
        captions: Embeddings of the captions of a pool.
    """

    def __init__(self, transformer: nn.Module, captions: Captions) -> None:
        super().__init__(trainable_copy(transformer), captions)
        self.sigmas = flow_sigmas()

    def draw(self, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        x = self.noise(len(index), generator)
        text, pooled = self.captions(index)
        zeros = self._zeros(len(index), generator)
        for upper, lower in zip(self.sigmas, self.sigmas[1:], strict=False):
            t = torch.full_like(zeros, upper)
            v = flow.velocity(self.network, x, t, text, pooled, zeros)
            x = x + (lower - upper) * v
        return x, index

    def regression(self, path: Tensor, index: Tensor, generator: Generator) -> Tensor:
        sigmas = torch.stack([path.new_full((), sigma) for sigma in self.sigmas])
        rows = torch.arange(len(path), device=path.device)
        level = rows % (len(self.sigmas) - 1)
        start, end = path[rows, level], path[rows, level + 1]
        width = (sigmas[level] - sigmas[level + 1])[:, None, None, None]
        text, pooled = self.captions(index)
        zeros = self._zeros(len(index), generator)
        v = flow.velocity(self.network, start, sigmas[level], text, pooled, zeros)
        return (v - (start - end) / width).square().mean()

    def _zeros(self, count: int, generator: Generator) -> Tensor:
        return flow.log_counts(count, generator)


class TurboStudent(Student):
    """The model of one step, and up to four.

    Half of what it draws takes one step. The rest goes on from what it drew before: the states of
    pipelines of several steps are clean ends of its own with noise on them.

    Arguments:
        unet: Network to start from, trained itself.
        captions: Embeddings of the captions of a pool.
        shift: What latents of its class have more than those of the flow.
        batch: Number of pictures that it draws at a time, a multiple of six.
    """

    state: Tensor
    index: Tensor
    sigma: Tensor
    step: Tensor

    def __init__(self, unet: Any, captions: Captions, shift: float, batch: int) -> None:
        super().__init__(unet.train().requires_grad_(True), captions)
        diffusers = require("diffusers", "the test bed needs", "backbones")
        scheduler = diffusers.EulerAncestralDiscreteScheduler(
            **turbo.SCHEDULE, timestep_spacing="trailing"
        )
        scheduler.set_timesteps(4)
        self.sigmas, self.shift = scheduler.sigmas.tolist()[:4], shift
        self.first, self.part = batch - 3 * (batch // 6), batch // 6
        levels = [0] * self.first + [k for k in (1, 2, 3) for _ in range(self.part)]
        pick = lambda values: torch.tensor([float(values[k]) for k in levels])
        self.register_buffer("sigma", pick(self.sigmas)[:, None, None, None])
        self.register_buffer("step", pick(scheduler.timesteps.tolist()))
        # Until states are carried on: noise alone, at every level.
        later = 3 * self.part
        noise = self.noise(later, Generator().manual_seed(0))
        self.register_buffer("state", self.sigma[self.first :] * noise)
        self.register_buffer("index", torch.zeros(later, dtype=torch.long))

    def draw(self, index: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        fresh = self.sigmas[0] * self.noise(self.first, generator)
        x = torch.cat((fresh, self.state))
        index = torch.cat((index[: self.first], self.index))
        clean = self._clean(x, self.sigma, self.step, index)
        self._carry(x, clean.detach(), index, generator)
        return clean - self.shift, index

    def regression(self, path: Tensor, index: Tensor, generator: Generator) -> Tensor:
        step = self.step[:1].expand(len(path))
        clean = self._clean(self.sigmas[0] * path[:, 0], self.sigma[:1], step, index)
        return (clean - self.shift - path[:, -1]).square().mean()

    def _clean(self, x: Tensor, sigma: Tensor, step: Tensor, index: Tensor) -> Tensor:
        scaled = x / (sigma**2 + 1) ** 0.5
        return x - sigma * turbo.predict_noise(self.network, scaled, step, *self.captions(index))

    def _carry(self, x: Tensor, clean: Tensor, index: Tensor, generator: Generator) -> None:
        """Takes states to the next level by an ancestral step, those of the last one away."""

        later = slice(self.first, self.first + 2 * self.part)
        keep = lambda values: torch.cat((values[: self.part], values[later]))
        before, after = keep(self.sigma), self.sigma[self.first :]
        down = after**2 / before
        noise = self.noise(len(before), generator)
        mean = keep(clean) + down / before * (keep(x) - keep(clean))
        self.state.copy_(mean + (after**2 - down**2).sqrt() * noise)
        self.index.copy_(keep(index))
