r"""The few-step models of the test bed: what their teachers do in many steps, done in four or one.

.. code-block:: text

    python -m rwguidance_testbed.distill flow  --teacher FOLDER --out FOLDER
    python -m rwguidance_testbed.distill turbo --teacher FOLDER --out FOLDER

Both teachers, those of :mod:`rwguidance_testbed.flow` and :mod:`rwguidance_testbed.turbo`, follow
an ordinary differential equation with classifier-free guidance. The students learn to jump along
its solutions, without guidance, at the noise levels where their pipelines call them.

- **flow**: The scheduler has the shift 3, as that of SD3.5-Turbo has; its four steps cut a path
  into four windows. From the upper end of each to the lower the student takes one step of Euler, so
  what it learns is :math:`(x_\text{upper} - x_\text{lower}) / (\sigma_\text{upper} -
  \sigma_\text{lower})` in place of the velocity. The upper ends are where the teacher's path led
  or, for every other sample, the student's own steps: there the student will have to go on from.
- **turbo**: From each of the four noise levels of a pipeline as SDXL-Turbo's the student goes to
  the clean end at once. The largest one alone makes a model of one step. What the others see is a
  clean end with fresh noise on it, as the pipeline's ancestral steps make it.

Paths start from noise and captions; no picture is needed. Each is used several times, and many are
followed at once, since a small batch costs a CPU hardly less than a large one.

References:
    | PeRFlow: Piecewise Rectified Flow as Universal Plug-and-Play Accelerator
      (Yan et al., 2024), arXiv:2405.07510
    | Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow
      (Liu et al., 2022), arXiv:2209.03003
    | Multistep Consistency Models (Heek et al., 2024), arXiv:2403.06807
"""

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from rwguidance.support.outside import require
from rwguidance.support.randomness import generator_for

from . import flow, turbo
from .data import Drawings, load_names
from .effective_dimension import effective_dimension
from .scenes import render, sample_scenes, scenes_with_caption
from .tokenizer import tokenize
from .training.attention import CountedAttention
from .training.cards import write_card
from .training.loop import Run, learning_rate, move_averages
from .training.muon import Muon, groups
from .training.sheets import check_prompts, write_sheet
from .vae import encode

__all__ = [
    "Examples",
    "FlowStudent",
    "FlowTeacher",
    "NoiseTeacher",
    "ReplayBuffer",
    "TurboStudent",
    "euler",
    "measure",
    "read_teacher",
    "train",
]

_WINDOW_STEPS = (2, 3, 5, 1)
"""Of the teacher in each window, the wide ones more."""

_PATH_STEPS = 8
"""Of the teacher from noise to data, fewer from less noise."""


def euler(slope: Callable[[Tensor, int], Tensor], x: Tensor, sigmas: Sequence[float]) -> Tensor:
    r"""Follows :math:`dx / d\sigma` by steps of Euler.

    Arguments:
        slope: The derivative at a state and the i-th noise level.
        x: States at the first noise level.
        sigmas: Noise levels, the last where to end.

    Returns:
        The states there.
    """

    for i in range(len(sigmas) - 1):
        x = x + (sigmas[i + 1] - sigmas[i]) * slope(x, i)
    return x


class FlowTeacher:
    r"""The ordinary differential equation of a flow, with guidance.

    Arguments:
        pipe: A StableDiffusion3Pipeline.
        guidance: Scale of classifier-free guidance.
        velocity: :func:`rwguidance_testbed.flow.predict_velocity`, or that compiled.
    """

    def __init__(
        self, pipe: Any, guidance: float, velocity: Callable[..., Tensor] = flow.predict_velocity
    ) -> None:
        self.pipe, self.guidance, self.velocity = pipe, guidance, velocity
        self.parts: Sequence[Any] = _frozen(pipe, "transformer")
        self.parts[0].set_attn_processor(CountedAttention())
        self.empty = tokenize(pipe.tokenizer, [""])
        self.shift = float(pipe.vae.config.shift_factor * pipe.vae.config.scaling_factor)

    @torch.no_grad()
    def follow(self, x: Tensor, sigmas: Sequence[float], tokens: Tensor) -> Tensor:
        r"""Takes states :math:`(1 - \sigma) x_0 + \sigma \epsilon` from one noise level to another.

        Arguments:
            x: States at the first noise level, with shape (B, C, H, W).
            sigmas: Noise levels in [0, 1], falling.
            tokens: Of the captions, with shape (B, L).
        """

        both = torch.cat((tokens, self.empty.expand(len(tokens), -1)))

        def slope(x: Tensor, i: int) -> Tensor:
            t = torch.full((len(both),), sigmas[i])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                v = self.velocity(self.parts, torch.cat((x, x)), t, both, torch.zeros(len(both)))
            with_caption, without = v.float().chunk(2)
            return without + self.guidance * (with_caption - without)

        return euler(slope, x, sigmas)

    def clean(self, x: Tensor, step: int, sigma: float, tokens: Tensor) -> Tensor:
        r"""Takes states of a pipeline of the SDXL class, :math:`x_0 + \sigma \epsilon`, to the end.

        That class has another shift of latents: none. What it starts from is taken as pure noise.

        Arguments:
            x: States, with shape (B, C, H, W).
            step: Of 1,000, to which the noise level belongs.
            sigma: The noise level.
            tokens: Of the captions, with shape (B, L).
        """

        pure = step == 999
        top = 1.0 if pure else sigma / (1 + sigma)
        x = x / sigma if pure else (x - self.shift) / (1 + sigma)
        grid = torch.linspace(1, 0, _path_steps(step) + 1)
        sigmas = top * 2 * grid / (1 + grid)  # finer where paths bend
        return self.follow(x, sigmas.tolist(), tokens) + self.shift


class NoiseTeacher:
    r"""The ordinary differential equation of a model that predicts noise, with guidance.

    Arguments:
        pipe: A StableDiffusionXLPipeline.
        guidance: Scale of classifier-free guidance.
        noise: :func:`rwguidance_testbed.turbo.predict_noise`, or that compiled.
    """

    def __init__(
        self, pipe: Any, guidance: float, noise: Callable[..., Tensor] = turbo.predict_noise
    ) -> None:
        self.pipe, self.guidance, self.noise = pipe, guidance, noise
        self.unet, *encoders = _frozen(pipe, "unet")
        self.encoders = (encoders[0], encoders[1])
        self.unet.set_attn_processor(_plain_attention())
        alphas = pipe.scheduler.alphas_cumprod
        self.sigmas = ((1 - alphas) / alphas).sqrt().tolist()

    @torch.no_grad()
    def clean(self, x: Tensor, step: int, sigma: float, tokens: Tensor) -> Tensor:
        r"""Takes states :math:`x_0 + \sigma \epsilon` to the end, see `FlowTeacher`."""

        with torch.autocast("cpu", dtype=torch.bfloat16):
            text, pooled = turbo.embed_captions(self.encoders, tokens)
        # Without a caption the pipeline puts zeros.
        both = [torch.cat((part, torch.zeros_like(part))) for part in (text, pooled)]
        count = _path_steps(step)
        steps = [round((step + 1) * (count - i) / count) - 1 for i in range(count)]
        sigmas = [sigma, *(self.sigmas[step] for step in steps[1:]), 0.0]

        def slope(x: Tensor, i: int) -> Tensor:
            scaled = torch.cat((x, x)) / (1 + sigmas[i] ** 2) ** 0.5
            t = torch.full((len(scaled),), steps[i])
            with torch.autocast("cpu", dtype=torch.bfloat16):
                noise = self.noise(self.unet, scaled, t, *both)
            with_caption, without = noise.float().chunk(2)
            return without + self.guidance * (with_caption - without)

        return euler(slope, x, sigmas)


Teacher = FlowTeacher | NoiseTeacher


def read_teacher(folder: Path, vae: Any, guidance: float, compiled: bool = False) -> Teacher:
    """The teacher in a folder, of either class.

    Arguments:
        folder: What :func:`rwguidance_testbed.flow.export` wrote.
        vae: The autoencoder.
        guidance: Scale of classifier-free guidance.
        compiled: Whether to compile the network.

    Raises:
        ValueError: If it holds a pipeline of another class.
    """

    name = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    if name == "StableDiffusion3Pipeline":
        return FlowTeacher(
            flow.read(folder, vae), guidance, _compile(flow.predict_velocity, compiled)
        )
    if name == "StableDiffusionXLPipeline":
        return NoiseTeacher(
            turbo.read(folder, vae), guidance, _compile(turbo.predict_noise, compiled)
        )
    raise ValueError(
        "teacher must hold a StableDiffusion3Pipeline or a StableDiffusionXLPipeline, "
        f"got a {name} in {folder}"
    )


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
        self.own, self.velocity = own, _compile(flow.predict_velocity, compiled)
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
        self.encoders = _frozen(pipe, "unet")[1:]
        self.network.set_attn_processor(_plain_attention())
        self.scheduler = diffusers.EulerAncestralDiscreteScheduler(
            **turbo.SCHEDULE, timestep_spacing="trailing"
        )
        self.scheduler.set_timesteps(4)
        self.sigmas = self.scheduler.sigmas.tolist()
        self.steps = self.scheduler.timesteps.long().tolist()
        self.start, self.noise_of = pipe, _compile(turbo.predict_noise, compiled)

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


class ReplayBuffer(nn.Module):
    """Examples, the oldest of which make room for new ones; grows until it is full.

    It is a module so that a run saves it.

    Arguments:
        student: Makes examples.
        size: Examples kept, at least.
    """

    made: Tensor
    level: Tensor

    def __init__(self, student: Student, size: int) -> None:
        super().__init__()
        self.make = student.examples
        first = self.make(0)
        self.count = -(-size // len(first.level))
        for f in fields(Examples):
            value = getattr(first, f.name)
            room = value.new_zeros(self.count, *value.shape)
            room[0] = value
            self.register_buffer(f.name, room)
        self.register_buffer("made", torch.tensor(1))

    def renew(self) -> None:
        """Makes examples, in place of the oldest if there is no more room."""

        number = int(self.made)
        for name, value in vars(self.make(number)).items():
            getattr(self, name)[number % self.count] = value
        self.made.add_(1)

    @property
    def seen(self) -> int:
        """Examples made so far, those counted in that made room for others."""

        return int(self.made) * self.level.shape[1]

    def batch(self, count: int, generator: Generator) -> Examples:
        """Some of the examples, chosen uniformly."""

        filled = min(int(self.made), self.count) * self.level.shape[1]
        index = torch.randint(filled, (count,), generator=generator)
        return Examples(*(getattr(self, f.name).flatten(0, 1)[index] for f in fields(Examples)))


@torch.no_grad()
def measure(
    student: Student, network: nn.Module, steps: int, draws: int = 48, seed: int = 0
) -> dict[str, float]:
    """How near a student comes to its teacher from the same noise, and how wide its law is.

    Arguments:
        student: The student, whose pipeline is run.
        network: Which to run it with.
        steps: Of the pipeline.
        draws: Of each of six prompts.
        seed: Of noise and pictures.

    Returns:
        The mean squared difference of clean latents from those of the teacher; and of student,
        teacher and true pictures the variance of latents given a prompt and its effective
        dimension; means over prompts.
    """

    pipe, teacher = student.pipe(network), student.teacher
    pipe.set_progress_bar_config(disable=True)
    generator = Generator().manual_seed(seed)
    learned = [entry.name for entry in student.drawings.entries]
    prompts = [f"{name} on a blue background" for name in sorted(set(learned))]
    rows = []
    for prompt in prompts[:: max(1, len(prompts) // 6)][:6]:
        noise = student.noise(draws, generator)
        found = pipe(
            [prompt] * draws,
            height=64,
            width=64,
            num_inference_steps=steps,
            guidance_scale=0.0,
            latents=noise,
            generator=generator,
            output_type="latent",
            **student.options,
        ).images
        tokens = tokenize(teacher.pipe.tokenizer, [prompt] * draws)
        wanted = student.target(noise, tokens)
        scenes = scenes_with_caption(student.drawings, prompt, draws, generator)
        true = encode(pipe.vae, render(student.drawings, scenes))
        row = {"distance": float((found - wanted).square().mean())}
        for name, x in (("student", found), ("teacher", wanted), ("pictures", true)):
            row[f"variance_{name}"] = float(x.var(dim=0).mean())
            row[f"dimension_{name}"] = effective_dimension(x)
        rows.append(row)
    return {key: round(sum(row[key] for row in rows) / len(rows), 4) for key in rows[0]}


def train(
    kind: str,
    teacher: Path = Path("out/testbed/emoji-flow-teacher"),
    vae: Path = Path("out/testbed/emoji-vae"),
    out: Path | None = None,
    data: Path = Path("out/testbed"),
    steps: int = 2000,
    batch: int = 256,
    fresh: int = 128,
    uses: int = 4,
    peak: float = 5e-4,
    guidance: float = 3.0,
    own: float = 0.5,
    kept: int = 8192,
    seed: int = 0,
    threads: int = 1,
    every: int = 500,
    start: Path | None = None,
    compiled: bool = False,
    resume: bool = True,
    smoke: bool = False,
) -> None:
    """Trains a student and writes it to `out`, with figures, a card and contact sheets beside it.

    Arguments:
        kind: "flow" or "turbo".
        teacher: Folder of the teacher: of the flow for the flow, of either for turbo.
        vae: Folder of the autoencoder.
        out: Folder to write to, the state of the run beside it. Default: "emoji-" and the kind, in
            `data`.
        data: Folder of the drawings.
        steps: In all. With no more than an earlier run took, writes what it reached.
        batch: Examples of a step.
        fresh: Paths of the teacher that are followed at a time.
        uses: How often an example is used, on average, before there must be new ones.
        peak: The largest learning rate.
        guidance: Scale of the teacher's classifier-free guidance.
        own: Share of the states in which windows of the flow begin that the student led to.
        kept: Examples kept at a time.
        seed: Of captions and noise.
        threads: Of PyTorch.
        every: Steps between two exports with a contact sheet.
        start: Folder of a pipeline as `turbo` writes it from which that student starts. Default:
            the teacher, or new weights if that is a flow.
        compiled: Whether to compile the networks first: needs a compiler of C++ and minutes.
        resume: Whether to go on where an earlier run was.
        smoke: Tiny new weights, and few pictures to measure with, for tests.

    Raises:
        ValueError: If the kind is unknown.
    """

    if kind not in ("flow", "turbo"):
        raise ValueError(f"kind must be flow or turbo, got {kind!r}")
    diffusers = require("diffusers", "the test bed needs", "testbed")
    torch.set_num_threads(threads)
    out = data / f"emoji-{kind}" if out is None else out
    drawings = Drawings.load(data).where("generator", load_names()["train"])
    autoencoder = diffusers.AutoencoderKL.from_pretrained(vae).eval().requires_grad_(False)
    guide = read_teacher(teacher, autoencoder, guidance, compiled)
    student: Student
    if kind == "flow":
        student = FlowStudent(guide, drawings, fresh, seed, own, compiled)
    else:
        pipe = guide.pipe if start is None else turbo.read(start, autoencoder)
        if hasattr(pipe, "transformer"):
            pipe = turbo.new(pipe, smoke, seed)
        student = TurboStudent(pipe, guide, drawings, fresh, seed, compiled)
    before = copy.deepcopy(student.average)
    optimizer = Muon(groups([student.network]), lr=peak)
    generator = Generator().manual_seed(seed)
    buffer = ReplayBuffer(student, kept)
    modules = {"network": student.network, "average": student.average, "buffer": buffer}
    made_with = {
        "data": drawings,
        "weights": student.network,
        "teacher": [p for p in guide.pipe.components.values() if isinstance(p, nn.Module)],
        "batch": batch,
        "fresh": fresh,
        "uses": uses,
        "peak": peak,
        "guidance": guidance,
        "own": own,
        "kept": kept,
        "seed": seed,
    }
    run = Run(out.with_suffix(".state"), modules, optimizer, generator, made_with=made_with)
    if resume and run.restore():
        print(f"going on at step {run.step}")
    means: list[Tensor] = list(student.average.parameters())
    weights = list(student.network.parameters())

    def loss() -> Tensor:
        if buffer.seen * uses < (run.step + 1) * batch:
            buffer.renew()
        return student.loss(buffer.batch(batch, generator), generator)

    def after(step: int) -> None:
        move_averages(means, weights, step)
        if step % every == 0 and step < steps:
            write()

    def write() -> None:
        pipe = student.pipe(student.average)
        flow.export(pipe, teacher / "tokenizer", out)
        prompts = check_prompts()[: 4 if smoke else None]
        for count in student.counts:
            path = out.with_name("sheets") / f"{out.name}-{count}-{run.seen:08d}.png"
            write_sheet(pipe, prompts, path, guidance=0.0, steps=count)

    rate = lambda step: learning_rate(step, steps, peak, warmup=min(200, 1 + steps // 10))
    run.train(steps, batch, rate, loss, after, printed=50)
    write()
    student.teacher = read_teacher(teacher, autoencoder, guidance)  # for batches of any size
    first = student.counts[0]
    figures = measure(student, student.average, first, 4 if smoke else 48)
    figures["distance_at_the_start"] = measure(student, before, first, 4 if smoke else 48)[
        "distance"
    ]
    figures |= {
        "steps": run.step,
        "batch": batch,
        "pictures_seen": run.seen,
        "paths": fresh * int(buffer.made),
    }
    figures["minutes"] = round(run.seconds / 60, 1)
    settings = f"--steps {steps} --batch {batch} --uses {uses} --peak {peak} --guidance {guidance}"
    if kind == "flow":
        settings += f" --own {own}"
    elif start is not None:
        settings += f" --start .../{start.name}"
    settings += f" --kept {kept} --seed {seed}"
    _write_card(out, kind, student, guide, figures, settings)
    print(json.dumps(figures, indent=2))


def _path_steps(step: int) -> int:
    return math.ceil(_PATH_STEPS * (step + 1) / 1000)


def _compile(function: Callable[..., Tensor], compiled: bool) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=False) if compiled else function


def _frozen(pipe: Any, network: str) -> tuple[Any, Any, Any]:
    """The network and both text encoders of a pipeline, as they are."""

    parts = [getattr(pipe, name) for name in (network, "text_encoder", "text_encoder_2")]
    first, second, third = (part.eval().requires_grad_(False) for part in parts)
    return first, second, third


def _plain_attention() -> Any:
    """The fused kernel is slow on the CPU's way back."""

    return require(
        "diffusers.models.attention_processor", "the test bed needs", "testbed"
    ).AttnProcessor()


def _write_card(
    folder: Path,
    kind: str,
    student: Student,
    teacher: Teacher,
    figures: Mapping[str, float],
    settings: str,
) -> None:
    count = sum(p.numel() for p in student.average.parameters()) / 1e6
    title = {"flow": "four steps", "turbo": "one step, and two to four"}[kind]
    name = type(student.pipe(student.average)).__name__
    source = "emoji-flow-teacher" if isinstance(teacher, FlowTeacher) else "emoji-turbo-teacher"
    write_card(
        folder,
        f"The model of {title} of the test bed, a `{name}` of diffusers for 64 x 64 pixels: a "
        f"network of {count:.1f} million parameters, two text encoders, a tokenizer learned from "
        "the captions, and the autoencoder of `emoji-vae`, which lies beside it. Stored in half "
        "precision. To be run without guidance, `guidance_scale=0`.",
        "Captions of drawings of the names to learn in eight emoji styles, those of role "
        f'"generator", and what `{source}` makes of them.',
        "See `rwguidance_testbed.distill`.",
        f"distill {kind} --teacher .../{source} {settings}",
        "Distances are mean squares of the differences of latents, which have the variance 1, from "
        "the teacher's of the same noise, over six prompts; variance and effective dimension are "
        "those of latents given a prompt. See `rwguidance_testbed.distill.measure`.",
        figures,
    )


if __name__ == "__main__":
    require("typer", "the command needs", "testbed").run(train)
