r"""The few-step models of the test bed: what their teachers do in many steps, done in four or one.

.. code-block:: text

    python -m rwguidance_testbed.distill flow  --teacher FOLDER --out FOLDER
    python -m rwguidance_testbed.distill turbo --teacher FOLDER --out FOLDER

The students learn to jump along the solutions of their teachers' equations, without guidance, at
the noise levels where their pipelines call them.

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
"""

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from .. import flow, turbo
from ..data import Drawings, load_names
from ..training.cards import write_card
from ..training.loop import Run, learning_rate
from ..training.muon import Muon, groups
from ..training.options import BufferedOptions
from ..training.sheets import check_prompts, write_sheet
from ..vae import read as read_vae
from .buffer import ReplayBuffer
from .fidelity import measure
from .students import FlowStudent, Student, TurboStudent
from .teachers import FlowTeacher, Teacher, read_teacher

__all__ = ["OPTIONS", "DistillationOptions", "train"]


@dataclass(frozen=True, kw_only=True)
class DistillationOptions(BufferedOptions):
    """Options of distillation; beside those of :class:`BufferedOptions`:

    Arguments:
        fresh: Paths of the teacher that are followed at a time.
        uses: Number of times that an example is used, on average, before new ones must come.
        guidance: Scale of the teacher's classifier-free guidance.
        own: Share of the states in which windows of the flow begin that the student led to.
    """

    fresh: int = 128
    uses: int = 4
    guidance: float = 3.0
    own: float = 0.5


OPTIONS = DistillationOptions(steps=2000, batch=256, peak=5e-4, kept=8192)
"""Default options of the training."""


def train(
    kind: str,
    teacher: Path = Path("out/testbed/emoji-flow-teacher"),
    vae: Path = Path("out/testbed/emoji-vae"),
    out: Path | None = None,
    data: Path = Path("out/testbed"),
    seed: int = 0,
    every: int = 500,
    start: Path | None = None,
    options: DistillationOptions = OPTIONS,
) -> None:
    """Trains a student and writes it to `out`, with figures, a card and contact sheets beside it.

    Arguments:
        kind: Kind of the student, "flow" or "turbo".
        teacher: Folder of the teacher: of the flow for the flow, of either for turbo.
        vae: Folder of the autoencoder.
        out: Folder to write to, the state of the run beside it. Default: "emoji-" and the kind, in
            `data`.
        data: Folder of the drawings.
        seed: Seed of captions and noise.
        every: Steps between two exports with a contact sheet.
        start: Folder of a pipeline of the student's class to start from. Default: the teacher, or
            new weights if that is of the other class.
        options: Options of the training.

    Raises:
        ValueError: If the kind is unknown.
    """

    if kind not in ("flow", "turbo"):
        raise ValueError(f"kind must be flow or turbo, got {kind!r}")
    torch.set_num_threads(options.threads)
    out = data / f"emoji-{kind}" if out is None else out
    autoencoder = read_vae(vae)
    guide = read_teacher(teacher, autoencoder, options.guidance, options.compile)
    drawings = Drawings.load(data).where("generator", load_names()["train"])
    student = _student(kind, guide, start, drawings, seed, options)
    before = copy.deepcopy(student.average)
    buffer = ReplayBuffer(student, options.kept)
    run = _train(student, buffer, teacher, out, seed, every, options)
    student.teacher = read_teacher(teacher, autoencoder, options.guidance)  # for any batch size
    figures = _figures(student, before, options)
    figures |= {"steps": run.step, "batch": options.batch, "pictures_seen": run.seen}
    figures |= {"paths": options.fresh * int(buffer.made), "minutes": run.figures()["minutes"]}
    _write_card(out, kind, student, guide, figures, _settings(kind, start, seed, options))
    print(json.dumps(figures, indent=2))


def _student(
    kind: str,
    teacher: Teacher,
    start: Path | None,
    drawings: Drawings,
    seed: int,
    options: DistillationOptions,
) -> Student:
    fresh = options.fresh
    if kind == "flow":
        velocity = options.compile(flow.predict_velocity)
        first = None if start is None else flow.read(start, teacher.pipe.vae).transformer
        return FlowStudent(teacher, drawings, fresh, seed, options.own, velocity, first)
    pipe = teacher.pipe if start is None else turbo.read(start, teacher.pipe.vae)
    if hasattr(pipe, "transformer"):
        pipe = turbo.new(pipe, options.smoke, seed)
    predict = options.compile(turbo.predict_noise)
    return TurboStudent(pipe, teacher, drawings, fresh, seed, predict)


def _train(
    student: Student,
    buffer: ReplayBuffer,
    teacher: Path,
    out: Path,
    seed: int,
    every: int,
    options: DistillationOptions,
) -> Run:
    optimizer = Muon(groups([student.network]), lr=options.peak)
    generator = Generator().manual_seed(seed)
    modules = {"network": student.network, "average": student.average, "buffer": buffer}
    made_with = {
        "data": student.drawings,
        "weights": student.network,
        "teacher": [
            p for p in student.teacher.pipe.components.values() if isinstance(p, nn.Module)
        ],
        "seed": seed,
        **options.deciding,
    }
    run = Run(out.with_suffix(".state"), modules, optimizer, generator, made_with, student.ema)
    if options.resume:
        run.restore()

    def loss() -> Tensor:
        if buffer.seen * options.uses < (run.step + 1) * options.batch:
            buffer.renew()
        return student.loss(buffer.batch(options.batch, generator), generator)

    def write() -> None:
        pipe = student.pipe(student.average)
        flow.export(pipe, teacher / "tokenizer", out)
        prompts = check_prompts()[: 4 if options.smoke else None]
        for count in student.counts:
            path = out.with_name("sheets") / f"{out.name}-{count}-{run.seen:08d}.png"
            write_sheet(pipe, prompts, path, guidance=0.0, steps=count)

    warmup = min(200, 1 + options.steps // 10)
    rate = lambda step: learning_rate(step, options.steps, options.peak, warmup)
    run.train(options.steps, options.batch, rate, loss, write, every, printed=50)
    return run


def _figures(student: Student, before: nn.Module, options: DistillationOptions) -> dict[str, float]:
    steps, draws = student.counts[0], 4 if options.smoke else 48
    figures = measure(student, student.average, steps, draws)
    start = measure(student, before, steps, draws)
    return {**figures, "distance_at_the_start": start["distance"]}


def _settings(kind: str, start: Path | None, seed: int, options: DistillationOptions) -> str:
    """Returns the options of the command that made a student, but that of the teacher."""

    settings = (
        f"--steps {options.steps} --batch {options.batch} --uses {options.uses} "
        f"--peak {options.peak} --guidance {options.guidance}"
    )
    if kind == "flow":
        settings += f" --own {options.own}"
    if start is not None:
        settings += f" --start .../{start.name}"
    return f"{settings} --kept {options.kept} --seed {seed}"


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
