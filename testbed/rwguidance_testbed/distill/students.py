r"""Students: what they learn of their teachers' paths, and the pipelines that run them.

References:
    | PeRFlow: Piecewise Rectified Flow as Universal Plug-and-Play Accelerator
      (Yan et al., 2024), arXiv:2405.07510
    | Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
      (Liu et al., 2022), arXiv:2209.03003
    | Multistep Consistency Models (Heek et al., 2024), arXiv:2403.06807
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.outside import require
from rwguidance.support.randomness import generator_for

from .. import flow, turbo
from ..data import Drawings
from ..scenes import sample_scenes
from ..tokenizer import tokenize
from ..training.attention import CountedAttention, unfused_processor
from ..training.ema import ExponentialMovingAverage
from .teachers import FlowTeacher, Teacher, frozen_parts

__all__ = ["Examples", "FlowStudent", "Student", "TurboStudent"]

_WINDOW_STEPS = (2, 3, 5, 1)
"""Steps of the teacher in each window, more in the wide ones."""


@dataclass(frozen=True)
class Examples:
    """Examples of jumps along the paths of a teacher.

    Arguments:
        start: States to jump from, with shape (B, C, H, W).
        end: States where the teacher comes from there.
        level: Indices of the student's noise levels that the states have, with shape (B,).
        tokens: Tokens of the captions, with shape (B, L).
    """

    start: Tensor
    end: Tensor
    level: Tensor
    tokens: Tensor

    @classmethod
    def join(cls, parts: Sequence["Examples"]) -> "Examples":
        """Returns all of them in one."""

        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


class Student(ABC):
    """A network that learns to jump, and its moving average.

    Arguments:
        network: The network, of which a copy is trained.
        teacher: Teacher whose paths it learns.
        drawings: Drawings from whose captions paths start.
        fresh: Number of paths followed at a time.
        seed: Seed of captions and noise.
    """

    counts: ClassVar[tuple[int, ...]]
    """Numbers of steps in which its pipeline is run, the one that matters most first."""

    options: ClassVar[Mapping[str, Any]] = {}
    """Arguments of its pipeline."""

    def __init__(
        self, network: nn.Module, teacher: Teacher, drawings: Drawings, fresh: int, seed: int
    ) -> None:
        self.network: Any = copy.deepcopy(network).train().requires_grad_(True)
        self.ema = ExponentialMovingAverage([self.network])
        self.teacher: Any = teacher
        self.drawings, self.fresh, self.seed = drawings, fresh, seed

    @property
    def average(self) -> nn.Module:
        """Moving average of the network."""

        return self.ema.modules[0]

    def examples(self, number: int) -> Examples:
        """Returns jumps along some new paths, as many of each level in every call.

        Arguments:
            number: Number of the call, on which captions and noise depend.
        """

        generator = generator_for(self.seed, "paths", number)
        captions = [scene.caption for scene in sample_scenes(self.drawings, self.fresh, generator)]
        noise = self.noise(self.fresh, generator)
        tokens = tokenize(self.teacher.pipe.tokenizer, captions)
        return self.along(noise, tokens, number, generator)

    def noise(self, count: int, generator: Generator) -> Tensor:
        """Returns the noise that pipelines start from, with shape (count, C, H, W)."""

        config: Any = self.network.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, generator=generator)

    @abstractmethod
    def target(self, noise: Tensor, tokens: Tensor) -> Tensor:
        """Returns where the teacher's path from noise ends, in latents of the student's class."""

    @abstractmethod
    def along(self, noise: Tensor, tokens: Tensor, number: int, generator: Generator) -> Examples:
        """Returns jumps along paths that start from noise.

        Arguments:
            noise: Standard normal noise, with shape (B, C, H, W).
            tokens: Tokens of the captions, with shape (B, L).
            number: Number of the call of :meth:`examples`.
            generator: Source of other random numbers.
        """

    @abstractmethod
    def loss(self, batch: Examples, generator: Generator) -> Tensor:
        """Returns the mean squared error of the network on some examples."""

    @abstractmethod
    def pipe(self, network: nn.Module) -> Any:
        """Returns the pipeline of the student's class with a network."""


class FlowStudent(Student):
    """The student of four windows, see :mod:`rwguidance_testbed.distill.command`.

    Arguments:
        teacher: The teacher.
        drawings: Drawings from whose captions paths start.
        fresh: Number of paths followed at a time.
        seed: Seed of captions and noise.
        own: Share of upper ends that the student's own steps led to.
        velocity: The function :func:`rwguidance_testbed.flow.predict_velocity`, or that compiled.
        start: Transformer to start from; None is the teacher's.

    Raises:
        ValueError: If the teacher is not a flow.
    """

    counts = (4,)
    options: ClassVar[Mapping[str, Any]] = {"max_sequence_length": 1}

    def __init__(
        self,
        teacher: Teacher,
        drawings: Drawings,
        fresh: int,
        seed: int = 0,
        own: float = 0.5,
        velocity: Callable[..., Tensor] = flow.predict_velocity,
        start: Any = None,
    ) -> None:
        if not isinstance(teacher, FlowTeacher):
            raise ValueError("the teacher of a flow must be a StableDiffusion3Pipeline")
        first = teacher.pipe.transformer if start is None else start
        super().__init__(first, teacher, drawings, fresh, seed)
        self.network.set_attn_processor(CountedAttention())
        diffusers = require("diffusers", "the test bed needs", "backbones")
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.scheduler.set_timesteps(len(_WINDOW_STEPS))
        self.sigmas = self.scheduler.sigmas.tolist()
        self.own, self.velocity = own, velocity
        self.encoders = teacher.parts[1:]

    def target(self, noise: Tensor, tokens: Tensor) -> Tensor:
        return self.teacher.follow(noise, torch.linspace(1, 0, 21).tolist(), tokens)

    def along(self, noise: Tensor, tokens: Tensor, number: int, generator: Generator) -> Examples:
        x, parts = noise, []
        for level, count in enumerate(_WINDOW_STEPS):
            upper, lower = self.sigmas[level : level + 2]
            end = self.teacher.follow(x, torch.linspace(upper, lower, count + 1).tolist(), tokens)
            window = torch.full((len(x),), level)
            # The last window is narrow and easy.
            kept = slice(None if level + 1 < len(_WINDOW_STEPS) else -(-len(x) // 4))
            parts.append(Examples(x[kept], end[kept], window[kept], tokens[kept]))
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                zeros = torch.zeros(len(x))
                v = flow.predict_velocity(self._parts(), x, zeros + upper, tokens, zeros).float()
            own = torch.rand(len(x), 1, 1, 1, generator=generator) < self.own
            x = torch.where(own, x + (lower - upper) * v, end)
        return Examples.join(parts)

    def loss(self, batch: Examples, generator: Generator) -> Tensor:
        sigmas = torch.tensor(self.sigmas)
        upper, lower = sigmas[batch.level], sigmas[batch.level + 1]
        target = (batch.start - batch.end) / (upper - lower)[:, None, None, None]
        log_count = flow.log_counts(len(upper), generator)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            v = self.velocity(self._parts(), batch.start, upper, batch.tokens, log_count)
        return (v.float() - target).square().mean()

    def pipe(self, network: nn.Module) -> Any:
        components = {"transformer": network, "scheduler": copy.deepcopy(self.scheduler)}
        return type(self.teacher.pipe)(**{**self.teacher.pipe.components, **components})

    def _parts(self) -> list[nn.Module]:
        return [self.network, *self.encoders]


class TurboStudent(Student):
    """The student of one step and up to four, see :mod:`rwguidance_testbed.distill.command`.

    Arguments:
        pipe: StableDiffusionXLPipeline to start from, whose text encoders stay as they are.
        teacher: Teacher of either class, with the same tokenizer.
        drawings: Drawings from whose captions paths start.
        fresh: Number of paths followed at a time.
        seed: Seed of captions and noise.
        predict: The function :func:`rwguidance_testbed.turbo.predict_noise`, or that compiled.

    Raises:
        ValueError: If the tokenizers differ.
    """

    counts = (1, 4)

    def __init__(
        self,
        pipe: Any,
        teacher: Teacher,
        drawings: Drawings,
        fresh: int,
        seed: int = 0,
        predict: Callable[..., Tensor] = turbo.predict_noise,
    ) -> None:
        if pipe.tokenizer.get_vocab() != teacher.pipe.tokenizer.get_vocab():
            raise ValueError("the student must have the tokenizer of its teacher, has another")
        super().__init__(pipe.unet, teacher, drawings, fresh, seed)
        diffusers = require("diffusers", "the test bed needs", "backbones")
        self.encoders = frozen_parts(pipe, "unet")[1:]
        self.network.set_attn_processor(unfused_processor())
        self.scheduler = diffusers.EulerAncestralDiscreteScheduler(
            **turbo.SCHEDULE, timestep_spacing="trailing"
        )
        self.scheduler.set_timesteps(4)
        self.sigmas = self.scheduler.sigmas.tolist()
        self.steps = self.scheduler.timesteps.long().tolist()
        self.start, self.predict = pipe, predict

    def target(self, noise: Tensor, tokens: Tensor) -> Tensor:
        x = self.sigmas[0] * noise
        return self.teacher.clean(x, self.steps[0], self.sigmas[0], tokens)

    def along(self, noise: Tensor, tokens: Tensor, number: int, generator: Generator) -> Examples:
        x, clean = self.sigmas[0] * noise, self.target(noise, tokens)
        first = Examples(x, clean, torch.zeros(len(x), dtype=torch.long), tokens)
        # One of the other levels in turn, from a quarter of the ends.
        level = 1 + number % (len(self.steps) - 1)
        kept = -(-len(x) // 4)
        x, tokens = clean[:kept], tokens[:kept]
        x = x + self.sigmas[level] * torch.randn(x.shape, generator=generator)
        clean = self.teacher.clean(x, self.steps[level], self.sigmas[level], tokens)
        return Examples.join([first, Examples(x, clean, torch.full((kept,), level), tokens)])

    def loss(self, batch: Examples, generator: Generator) -> Tensor:
        sigma = torch.tensor(self.sigmas)[batch.level][:, None, None, None]
        step = torch.tensor(self.steps)[batch.level]
        scaled = batch.start / (sigma**2 + 1) ** 0.5
        with torch.autocast("cpu", dtype=torch.bfloat16):
            text, pooled = turbo.embed_captions(self.encoders, batch.tokens)
            noise = self.predict(self.network, scaled, step, text, pooled)
        return (batch.start - sigma * noise.float() - batch.end).square().mean()

    def pipe(self, network: nn.Module) -> Any:
        components = {"unet": network, "scheduler": copy.deepcopy(self.scheduler)}
        return type(self.start)(**{**self.start.components, **components}, add_watermarker=False)
