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
from pathlib import Path

import torch
from torch import Generator, Tensor

from rwguidance.support.outside import require

from .. import flow, turbo
from ..data import Drawings, load_names
from ..training.cards import write_card
from ..training.loop import Run, learning_rate, move_averages
from ..training.muon import Muon, groups
from ..training.sheets import check_prompts, write_sheet
from .buffer import ReplayBuffer
from .fidelity import measure
from .students import FlowStudent, Student, TurboStudent
from .teachers import FlowTeacher, Teacher, read_teacher

__all__ = ["train"]


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
    run = Run(out.with_suffix(".state"), modules, optimizer, generator)
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
