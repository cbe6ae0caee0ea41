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
from collections.abc import Mapping, Sequence
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
from .teachers import FlowTeacher, Teacher, compile_if, frozen_parts, plain_attention

__all__ = ["Examples", "FlowStudent", "Student", "TurboStudent"]

_WINDOW_STEPS = (2, 3, 5, 1)
"""Of the teacher in each window, the wide ones more."""


@dataclass(frozen=True)
class Examples:
    """Where a student jumps from and where to.

    Arguments:
        start: States, with shape (B, C, H, W).
        end: Where the teacher comes from there.
        level: Which of the student's noise levels the states have, with shape (B,).
        tokens: Of the captions, with shape (B, L).
    """

    start: Tensor
    end: Tensor
    level: Tensor
    tokens: Tensor

    @classmethod
    def join(cls, parts: Sequence["Examples"]) -> "Examples":
        """All of them in one."""

        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))


class Student(ABC):
    """A network that learns to jump, and its moving average.

    Arguments:
        network: The network, of which a copy is trained.
        teacher: Whose paths it learns.
        drawings: From whose captions paths start.
        fresh: Paths followed at a time.
        seed: Of captions and noise.
    """

    counts: ClassVar[tuple[int, ...]]
    """Steps in which its pipeline is run, the first those that matter most."""

    options: ClassVar[Mapping[str, Any]] = {}
    """What its pipeline is called with."""

    def __init__(
        self, network: nn.Module, teacher: Teacher, drawings: Drawings, fresh: int, seed: int
    ) -> None:
        self.network: Any = copy.deepcopy(network).train().requires_grad_(True)
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.teacher: Any = teacher
        self.drawings, self.fresh, self.seed = drawings, fresh, seed

    def examples(self, number: int) -> Examples:
        """Jumps along some new paths, as many of each level in every call.

        Arguments:
            number: Of the call: captions and noise depend on it.
        """

        generator = generator_for(self.seed, "paths", number)
        captions = [scene.caption for scene in sample_scenes(self.drawings, self.fresh, generator)]
        noise = self.noise(self.fresh, generator)
        tokens = tokenize(self.teacher.pipe.tokenizer, captions)
        return self.along(noise, tokens, number, generator)

    def noise(self, count: int, generator: Generator) -> Tensor:
        """What pipelines start from, with shape (count, C, H, W)."""

        config: Any = self.network.config
        shape = (count, config.in_channels, config.sample_size, config.sample_size)
        return torch.randn(shape, generator=generator)

    @abstractmethod
    def target(self, noise: Tensor, tokens: Tensor) -> Tensor:
        """Where the teacher comes from noise, in latents of the student's pipeline."""

    @abstractmethod
    def along(self, noise: Tensor, tokens: Tensor, number: int, generator: Generator) -> Examples:
        """Jumps along paths that start from noise.

        Arguments:
            noise: Standard normal, with shape (B, C, H, W).
            tokens: Of the captions, with shape (B, L).
            number: Of the call of :meth:`examples`.
            generator: Source of other random numbers.
        """

    @abstractmethod
    def loss(self, batch: Examples, generator: Generator) -> Tensor:
        """The mean squared error of the network on some examples."""

    @abstractmethod
    def pipe(self, network: nn.Module) -> Any:
        """The pipeline of the class to be written, with a network."""


class FlowStudent(Student):
    """The student of four windows, see the module.

    Arguments:
        teacher: Which it starts from, too.
        drawings: From whose captions paths start.
        fresh: Paths followed at a time.
        seed: Of captions and noise.
        own: Share of upper ends that the student's own steps led to.
        compiled: Whether to compile the network.

    Raises:
        ValueError: If the teacher is none of flows.
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
        compiled: bool = False,
    ) -> None:
        if not isinstance(teacher, FlowTeacher):
            raise ValueError("the teacher of a flow must be a StableDiffusion3Pipeline")
        super().__init__(teacher.pipe.transformer, teacher, drawings, fresh, seed)
        diffusers = require("diffusers", "the test bed needs", "testbed")
        self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        self.scheduler.set_timesteps(len(_WINDOW_STEPS))
        self.sigmas = self.scheduler.sigmas.tolist()
        self.own, self.velocity = own, compile_if(flow.predict_velocity, compiled)
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
    """The student of one step and up to four, see the module.

    Arguments:
        pipe: A StableDiffusionXLPipeline to start from, whose text encoders stay as they are.
        teacher: Whose paths it learns, of either class, with the same tokenizer.
        drawings: From whose captions paths start.
        fresh: Paths followed at a time.
        seed: Of captions and noise.
        compiled: Whether to compile the network.

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
        compiled: bool = False,
    ) -> None:
        if pipe.tokenizer.get_vocab() != teacher.pipe.tokenizer.get_vocab():
            raise ValueError("the student must have the tokenizer of its teacher, has another")
        super().__init__(pipe.unet, teacher, drawings, fresh, seed)
        diffusers = require("diffusers", "the test bed needs", "testbed")
        self.encoders = frozen_parts(pipe, "unet")[1:]
        self.network.set_attn_processor(plain_attention())
        self.scheduler = diffusers.EulerAncestralDiscreteScheduler(
            **turbo.SCHEDULE, timestep_spacing="trailing"
        )
        self.scheduler.set_timesteps(4)
        self.sigmas = self.scheduler.sigmas.tolist()
        self.steps = self.scheduler.timesteps.long().tolist()
        self.start, self.noise_of = pipe, compile_if(turbo.predict_noise, compiled)

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
            noise = self.noise_of(self.network, scaled, step, text, pooled)
        return (batch.start - sigma * noise.float() - batch.end).square().mean()

    def pipe(self, network: nn.Module) -> Any:
        components = {"unet": network, "scheduler": copy.deepcopy(self.scheduler)}
        return type(self.start)(**{**self.start.components, **components}, add_watermarker=False)
